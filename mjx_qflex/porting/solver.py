"""MuJoCo's convex constraint problem, solved by Newton's method with an exact line search.

The acceleration minimises 1/2 |a - a0|^2_M + sum_i 1/2 D_i min(J_i a - ref_i, 0)^2, where a0 is the
acceleration without constraints (Todorov 2014; MuJoCo documentation, "Computation").
"""

import jax
import jax.numpy as jnp
import numpy as np

from mjx_qflex.porting.contacts import Rows
from mjx_qflex.porting.dynamics import matmul


def solve_factored(factor: jax.Array, vector: jax.Array) -> jax.Array:
    """Solves `L L' x = vector [n]` for the lower Cholesky factor `L [n, n]`."""
    return jax.scipy.linalg.cho_solve((factor, True), vector)


def constrained_acceleration(
    mass: jax.Array,
    force: jax.Array,
    start: jax.Array,
    limit_dof: np.ndarray,
    rows: Rows,
    iterations: int,
    ls_iterations: int,
) -> jax.Array:
    """Returns the acceleration `[nv]` that obeys all soft constraints.

    Args:
      mass: mass matrix `[nv, nv]`.
      force: all forces but the constraints' `[nv]`.
      start: acceleration to start from `[nv]`.
      limit_dof: static indices `[L]` of the limited dofs.
      rows: inequality rows of limits and contacts.
      iterations: Newton steps.
      ls_iterations: steps of the one-dimensional Newton line search.
    """

    def residual(a):
        limit = rows.limit_sign * a[limit_dof] - rows.limit_reference
        return limit, matmul(rows.contact_jacobian, a) - rows.contact_reference

    def newton_step(a, _):
        limit, contact = residual(a)
        limit_active = jnp.where(limit < 0, rows.limit_stiffness, 0.0)
        contact_active = jnp.where(contact < 0, rows.contact_stiffness, 0.0)
        gradient = matmul(mass, a) - force
        gradient = gradient.at[limit_dof].add(rows.limit_sign * limit_active * limit)
        gradient = gradient + matmul(contact_active * contact, rows.contact_jacobian)
        weighted = contact_active[:, None] * rows.contact_jacobian
        hessian = mass + matmul(rows.contact_jacobian.T, weighted)
        hessian = hessian.at[limit_dof, limit_dof].add(limit_active)
        direction = -solve_factored(jnp.linalg.cholesky(hessian), gradient)
        step = _line_search(a, direction, (limit, contact))
        return a + step * direction, None

    def _line_search(a, direction, at_zero):
        """Root of the cost's derivative along `direction`, which is piecewise linear and rises."""
        quadratic = matmul(direction, matmul(mass, direction))
        linear = matmul(direction, matmul(mass, a) - force)
        x = jnp.concatenate(at_zero)
        limit_rate = rows.limit_sign * direction[limit_dof]
        rate = jnp.concatenate([limit_rate, matmul(rows.contact_jacobian, direction)])
        stiffness = jnp.concatenate([rows.limit_stiffness, rows.contact_stiffness])

        def refine(bracket, _):
            low, high, step = bracket
            here = x + step * rate
            active = jnp.where(here < 0, stiffness * rate, 0.0)
            slope = linear + step * quadratic + jnp.sum(active * here)
            curvature = quadratic + jnp.sum(active * rate)
            low = jnp.where(slope < 0, step, low)
            high = jnp.where(slope < 0, high, step)
            guess = step - slope / jnp.maximum(curvature, 1e-12)
            # Newton's guess can leap over the root where rows switch; then halve the bracket.
            middle = jnp.where(jnp.isinf(high), 2 * low + 1, 0.5 * (low + high))
            return (low, high, jnp.where((guess >= low) & (guess <= high), guess, middle)), None

        start = (jnp.float32(0), jnp.float32(jnp.inf), jnp.float32(1))
        (_, _, step), _ = jax.lax.scan(refine, start, length=ls_iterations)
        return step

    return jax.lax.scan(newton_step, start, length=iterations)[0]
