"""Floating-point operations of a function, counted in its jaxpr.

XLA's own count (`compiled.cost_analysis()`) takes the body of a loop once, however often it runs:
of Qflex's update, whose ascent is a scan of 20 steps, it would miss most.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core

# They move numbers, or make integers; the rest counts one operation for each result.
# fmt: off
FREE = frozenset((
    "broadcast_in_dim", "reshape", "transpose", "squeeze", "slice", "dynamic_slice",
    "dynamic_update_slice", "gather", "concatenate", "pad", "copy", "convert_element_type", "iota",
    "rev", "bitcast_convert_type", "stop_gradient", "split", "random_bits", "random_seed",
    "random_wrap", "random_unwrap", "optimization_barrier",
))
# fmt: on


class Flops(NamedTuple):
    """Operations of matrix products, and all others on floating-point numbers."""

    products: float = 0.0
    others: float = 0.0

    def __add__(self, other: Any) -> "Flops":
        return Flops(self.products + other.products, self.others + other.others)

    def times(self, number: float) -> "Flops":
        return Flops(number * self.products, number * self.others)

    @property
    def total(self) -> float:
        return self.products + self.others


def count(function: Callable, *arguments: Any) -> Flops:
    """Returns the operations of one call with arguments of these shapes.

    A scan counts all of its steps, a conditional its dearest branch. A `while` counts once: here
    those are rare work that mostly does not run (`conditional.when`).
    """
    return _of_jaxpr(jax.make_jaxpr(function)(*arguments).jaxpr)


def _of_jaxpr(jaxpr: core.Jaxpr) -> Flops:
    return sum(map(_of_equation, jaxpr.eqns), Flops())


def _of_equation(equation: Any) -> Flops:
    name, params = equation.primitive.name, equation.params
    if name == "cond":
        return max((_of_jaxpr(b.jaxpr) for b in params["branches"]), key=lambda f: f.total)
    inner = list(_jaxprs(params))
    if inner:
        times = params["length"] if name == "scan" else 1
        return sum(map(_of_jaxpr, inner), Flops()).times(times)
    result = equation.outvars[0].aval
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        return Flops(products=2.0 * result.size * math.prod(shape[axis] for axis in contracted))
    if name in FREE or not jnp.issubdtype(result.dtype, jnp.inexact):
        return Flops()
    if name in ("cholesky", "triangular_solve"):
        size = equation.invars[0].aval.shape[-1]
        each = size / 3 if name == "cholesky" else size
        return Flops(others=result.size * each)
    operand = equation.invars[0].aval
    reduces = name.startswith(("reduce_", "cum", "arg"))
    return Flops(others=float(operand.size if reduces else result.size))


def _jaxprs(params: dict[str, Any]) -> Iterator[core.Jaxpr]:
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, core.ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, core.Jaxpr):
                yield item
