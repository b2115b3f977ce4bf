"""In what precision the networks take their matrix products.

Only what an algorithm's policy and `update` compute is concerned, and there only what names no
precision itself. Physics names full precision at each product (`physics.dynamics.matmul`).
"""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import jax

from mjx_qflex.sizes import MatmulPrecision
from mjx_qflex.types import Algorithm, Learner, Policy

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def with_matmul_precision(algorithm: Algorithm, precision: MatmulPrecision) -> Algorithm:
    """Returns the algorithm that takes its networks' products in `precision`."""
    if precision == "default":
        return algorithm

    def policy(learner: Learner) -> Policy:
        own = algorithm.policy(learner)
        functions = {"sample", "mode", "log_prob", "parts"}
        return own._replace(
            **{
                name: _traced_in(precision, function)
                for name, function in own._asdict().items()
                if name in functions and function is not None
            }
        )

    return algorithm._replace(policy=policy, update=_traced_in(precision, algorithm.update))


def _traced_in(
    precision: MatmulPrecision, function: Callable[Parameters, Result]
) -> Callable[Parameters, Result]:
    @wraps(function)
    def traced(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        with jax.default_matmul_precision(precision):
            return function(*args, **kwargs)

    return traced
