"""dm_control's soft indicator function, of which HumanoidBench and humenv build their rewards."""

import math
from typing import Literal

import jax
import jax.numpy as jnp

Sigmoid = Literal["gaussian", "linear", "quadratic"]


def tolerance(
    x: jax.Array,
    lower: float = 0.0,
    upper: float = 0.0,
    margin: float = 0.0,
    sigmoid: Sigmoid = "gaussian",
    value_at_margin: float = 0.1,
) -> jax.Array:
    """Returns 1 where `x` lies within [lower, upper], and less the farther it lies outside.

    At the distance `margin` from the nearest bound the value is `value_at_margin`; with margin 0 it
    is 0 outside. Source: dm_control (arXiv 2006.12983), `utils.rewards.tolerance`.

    Args:
      x: any shape, in the unit of bounds and margin.
      lower, upper: bounds, possibly infinite.
      margin: positive, or 0 for a hard indicator.
      sigmoid: how the value falls with the distance: "gaussian" for ever, "linear" and "quadratic"
        until they reach 0.
      value_at_margin: in (0, 1); 0 too where the sigmoid reaches 0.
    """
    outside = jnp.maximum(jnp.maximum(lower - x, x - upper), 0.0)
    if margin == 0.0:
        return jnp.where(outside == 0.0, 1.0, 0.0)
    distance = outside / margin
    if sigmoid == "gaussian":
        return jnp.exp(math.log(value_at_margin) * distance**2)
    power = {"linear": 1, "quadratic": 2}[sigmoid]
    return jnp.maximum(1.0 - (1.0 - value_at_margin) * distance**power, 0.0)
