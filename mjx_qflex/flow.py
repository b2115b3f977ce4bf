"""Value-guided flow, as pure functions of batched actions (Qflex, arXiv 2601.19707).

`ascend` moves actions of the source uphill on the critic, `flow_matching_loss` teaches a velocity
field to move them the same way, and `euler_sample` acts by integrating that field.
"""

from collections.abc import Callable
from typing import Literal, TypeVar

import jax
import jax.numpy as jnp

EulerGrid = Literal["right", "left"]
Aux = TypeVar("Aux")


def euler_sample(
    velocity: Callable[[jax.Array, jax.Array], jax.Array],
    start: jax.Array,
    num_steps: int,
    grid: EulerGrid,
    guidance: Callable[[jax.Array, jax.Array, jax.Array], jax.Array] | None = None,
) -> jax.Array:
    """Integrates `velocity` from `start` [B, A] at time 0 to time 1 in equal Euler steps.

    Args:
      velocity: maps actions [B, A] and times [B, 1] to velocities [B, A]; each component is clipped
        to +-num_steps, so that one step moves it by at most 1.
      start: actions of the source [B, A].
      num_steps: number of steps; one lasts dt = 1 / num_steps.
      grid: "left" takes the velocity at a step's begin, "right" at its end.
      guidance: maps actions [B, A], their clipped velocities [B, A] and the times left to go [B, 1]
        to what is added to the velocities [B, A]; that is not clipped.
    """
    dt = 1.0 / num_steps
    first = 1 if grid == "right" else 0

    def step(action: jax.Array, index: jax.Array) -> tuple[jax.Array, None]:
        time = jnp.full((action.shape[0], 1), (index + first) * dt)
        slope = jnp.clip(velocity(action, time), -1.0 / dt, 1.0 / dt)
        if guidance is not None:
            slope = slope + guidance(action, slope, jnp.full_like(time, 1.0 - index * dt))
        return action + dt * slope, None

    return jax.lax.scan(step, start, jnp.arange(num_steps))[0]


def ascend(
    q_function: Callable[[jax.Array], jax.Array],
    start: jax.Array,
    num_steps: int,
    step_size: float,
    clip: bool,
    metric: jax.Array | None = None,
) -> jax.Array:
    """Moves actions uphill on a critic (Eq. 11 with truncated steps); returns them [B, A].

    A step is `min(step_size, 2 sqrt(A) / (||g|| + 1e-6)) g` with `g = M dQ/da`: never longer than
    the diagonal of the box of valid actions. No gradient flows through the result.

    Args:
      q_function: maps actions [B, A] to values [B], each row's from that row alone.
      start: actions [B, A].
      num_steps: number of steps.
      step_size: factor on the gradient.
      clip: whether each iterate is projected to the box [-1, 1]^A.
      metric: M as its diagonal [A] or in full [A, A]; None is the identity.
    """
    longest = 2.0 * start.shape[-1] ** 0.5
    gradient = jax.grad(lambda action: jnp.sum(q_function(action)))

    def step(action: jax.Array, _: None) -> tuple[jax.Array, None]:
        direction = gradient(action)
        if metric is not None:
            direction = direction * metric[None] if metric.ndim == 1 else direction @ metric.T
        norm = jnp.linalg.norm(direction, axis=-1, keepdims=True)
        action = action + jnp.minimum(step_size, longest / (norm + 1e-6)) * direction
        return (jnp.clip(action, -1.0, 1.0) if clip else action), None

    return jax.lax.stop_gradient(jax.lax.scan(step, start, None, length=num_steps)[0])


def flow_matching_loss(
    velocity: Callable[[jax.Array, jax.Array], tuple[jax.Array, Aux]],
    start: jax.Array,
    end: jax.Array,
    time: jax.Array,
) -> tuple[jax.Array, Aux]:
    """Returns the mean square error of `velocity` on straight paths, and what it returned besides.

    Args:
      velocity: maps actions [B, A] and times [B, 1] to (velocities [B, A], aux).
      start: where the paths begin [B, A].
      end: where they end at time 1 [B, A].
      time: when each path is looked at [B, 1], in [0, 1].
    """
    slope, aux = velocity((1.0 - time) * start + time * end, time)
    return jnp.mean(jnp.square(slope - (end - start))), aux
