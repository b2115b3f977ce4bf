"""MuJoCo's convex constraint problem, solved by Newton's method with an exact line search.

The acceleration minimises 1/2 |a - a0|^2_M + sum_i 1/2 D_i min(J_i a - ref_i, 0)^2, where a0 is the
acceleration without constraints (Todorov 2014; MuJoCo documentation, "Computation").
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mjx_qflex.physics.contacts import Rows, edges
from mjx_qflex.physics.dynamics import matmul

# Factors of so few coordinates are written out: a call of LAPACK for each world takes longer.
MAX_WRITTEN_OUT = 4


class _Iterate(NamedTuple):
    """An acceleration and what is linear in it, which a step along a line only adds to."""

    acceleration: jax.Array  # [nv]
    unbalanced: jax.Array  # [nv] M a - force
    residual: jax.Array  # [nv + 4 K] J a - reference of limits and contacts


def factor(matrix: jax.Array) -> jax.Array:
    """Lower Cholesky factor `[n, n]` of a symmetric matrix."""
    if len(matrix) <= MAX_WRITTEN_OUT:
        return _written_out_factor(matrix)
    # Transposed, because LAPACK expects columns side by side: this saves XLA:CPU a copy.
    return jax.lax.linalg.cholesky(matrix.T, symmetrize_input=False)


def solve_factored(lower: jax.Array, vector: jax.Array) -> jax.Array:
    """Solves `L L' x = vector [n]` for the lower Cholesky factor `L [n, n]`."""
    if len(lower) <= MAX_WRITTEN_OUT:
        return _written_out_solve(lower, vector)
    return jax.scipy.linalg.cho_solve((lower, True), vector)


def _written_out_factor(matrix: jax.Array) -> jax.Array:
    n, zero = len(matrix), jnp.zeros(())
    lower = [[zero] * n for _ in range(n)]
    for i in range(n):
        for j in range(i + 1):
            rest = matrix[i, j] - sum((lower[i][k] * lower[j][k] for k in range(j)), zero)
            lower[i][j] = jnp.sqrt(rest) if i == j else rest / lower[j][j]
    return jnp.stack([jnp.stack(row) for row in lower])


def _written_out_solve(lower: jax.Array, vector: jax.Array) -> jax.Array:
    n, zero, x = len(lower), jnp.zeros(()), list(vector)
    for i in range(n):
        x[i] = (x[i] - sum((lower[i, k] * x[k] for k in range(i)), zero)) / lower[i, i]
    for i in reversed(range(n)):
        x[i] = (x[i] - sum((lower[k, i] * x[k] for k in range(i + 1, n)), zero)) / lower[i, i]
    return jnp.stack(x)


def constrained_acceleration(
    mass: jax.Array,
    force: jax.Array,
    rows: Rows,
    iterations: int,
    ls_iterations: int,
) -> jax.Array:
    """Returns the acceleration `[nv]` that obeys all soft constraints.

    The search starts from no acceleration, where more rows have their final sign than at the
    unconstrained acceleration: it then takes a Newton step less.

    Args:
      mass: mass matrix `[nv, nv]`.
      force: all forces but the constraints' `[nv]`.
      rows: inequality rows of limits and contacts.
      iterations: Newton steps.
      ls_iterations: steps of the one-dimensional Newton line search.
    """
    nv, jacobian = len(force), rows.contact_jacobian
    stiffness = jnp.concatenate([rows.limit_stiffness, jnp.tile(rows.contact_stiffness, 4)])

    def along_rows(a):
        return jnp.concatenate([rows.limit_sign * a, edges(matmul(a, jacobian)).ravel()])

    def newton_step(here, _):
        active = jnp.where(here.residual < 0, stiffness, 0.0)
        push = active * here.residual
        gradient = here.unbalanced + rows.limit_sign * push[:nv]
        gradient = gradient + matmul(jacobian, _directions(push[nv:]))
        hessian = mass + matmul(_weighted(jacobian, active[nv:]), jacobian.T)
        hessian = hessian + jnp.where(np.eye(nv, dtype=bool), active[:nv, None], 0.0)
        direction = -solve_factored(factor(hessian), gradient)
        rate = _Iterate(direction, matmul(mass, direction), along_rows(direction))
        step = _line_search(here, rate, stiffness, ls_iterations)
        return jax.tree.map(lambda x, dx: x + step * dx, here, rate), None

    reference = jnp.concatenate([rows.limit_reference, rows.contact_reference.ravel()])
    first = _Iterate(jnp.zeros(nv), -force, -reference)
    return jax.lax.scan(newton_step, first, length=iterations)[0].acceleration


def _directions(rows: jax.Array) -> jax.Array:
    """The transpose of `contacts.edges`: `[4 K]` of edges to `[3 K]` of directions."""
    plus_first, minus_first, plus_second, minus_second = jnp.split(rows, 4)
    first, second = plus_first + minus_first, plus_second + minus_second
    return jnp.concatenate([first + second, plus_first - minus_first, plus_second - minus_second])


def _weighted(jacobian: jax.Array, weight: jax.Array) -> jax.Array:
    """The directions `[nv, 3 K]` times E' W E, for edges E and their weights W `[4 K]`.

    E' W E couples a contact's normal to both tangents, and the tangents not to each other.
    """
    normal, first, second = jnp.split(jacobian, 3, axis=1)
    plus_first, minus_first, plus_second, minus_second = jnp.split(weight[None], 4, axis=1)
    of_first, of_second = plus_first + minus_first, plus_second + minus_second
    tilt_first, tilt_second = plus_first - minus_first, plus_second - minus_second
    along_normal = (of_first + of_second) * normal + tilt_first * first + tilt_second * second
    along_first = tilt_first * normal + of_first * first
    along_second = tilt_second * normal + of_second * second
    return jnp.concatenate([along_normal, along_first, along_second], axis=1)


def _line_search(
    here: _Iterate, rate: _Iterate, stiffness: jax.Array, iterations: int
) -> jax.Array:
    """Root of the cost's derivative along `rate`, which is piecewise linear and rises."""
    quadratic = jnp.sum(rate.acceleration * rate.unbalanced)
    linear = jnp.sum(rate.acceleration * here.unbalanced)
    low, high, step = jnp.float32(0), jnp.float32(jnp.inf), jnp.float32(1)
    for _ in range(iterations):
        there = here.residual + step * rate.residual
        active = jnp.where(there < 0, stiffness * rate.residual, 0.0)
        slope = linear + step * quadratic + jnp.sum(active * there)
        curvature = quadratic + jnp.sum(active * rate.residual)
        low, high = jnp.where(slope < 0, step, low), jnp.where(slope < 0, high, step)
        guess = step - slope / jnp.maximum(curvature, 1e-12)
        # Newton's guess can leap over the root where rows switch; then halve the bracket.
        middle = jnp.where(jnp.isinf(high), 2 * low + 1, 0.5 * (low + high))
        step = jnp.where((guess >= low) & (guess <= high), guess, middle)
    return step
