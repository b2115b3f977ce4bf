"""What the muscles of a body can do at given states: equations of motion, and who balances them.

The force of a muscle is affine in its activation, so that the equations of motion are linear in all
activations and contact forces:

    M qacc = free + pull @ activation + contact @ edges + limit

`terms` gives these matrices, from the ported body's own dynamics; `bounded_least_squares` finds
activations in [0, 1] and edges >= 0 that come as near as they can.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mjx_qflex.physics import contacts, dynamics, muscle, tendons

NEWTON_STEPS = 500
LINE_STEPS = 60
TOLERANCE = 1e-6  # of the dual's gradient, relative


class Terms(NamedTuple):
    """The equations of motion of one state; K contacts."""

    mass: np.ndarray  # [nv, nv]
    free: np.ndarray  # [nv] joint springs and dampers, gravity, inertia: all but the rest here
    damping: np.ndarray  # [nv] of the joints; Euler integration takes it implicitly
    passive: np.ndarray  # [nv] pull of the muscles without activation
    pull: np.ndarray  # [nv, nu] pull of each muscle's activation from 0 to 1
    peak: np.ndarray  # [nu] N, active force of each muscle at full activation, here and now
    directions: np.ndarray  # [nv, 3 K] normals, then tangents times friction
    distance: np.ndarray  # [K] m above the floor
    reference: np.ndarray  # [4, K] acceleration that a touching contact asks for
    stiffness: np.ndarray  # [K] of contacts; 0 where nothing touches
    limit: np.ndarray  # [nv] sign of a joint's nearer limit where it is reached, else 0
    limit_reference: np.ndarray  # [nv]
    limit_stiffness: np.ndarray  # [nv]

    def edges(self) -> np.ndarray:
        """Unit forces `[nv, 4 K]` along the edges of all friction pyramids."""
        normal, first, second = np.split(self.directions, 3, axis=1)
        return np.concatenate([normal + first, normal - first, normal + second, normal - second], 1)


def make_terms(body):
    """A compiled function from a batch of `PhysicsState` to `Terms` of float64 arrays `[N, ...]`.

    Only for bodies whose muscle paths are all exact.
    """
    if body.path_groups:
        raise SystemExit(f"{body.name} has fitted muscle paths; this needs a body with exact ones")

    def of_state(state):
        tree, placed = body.tree, body._place_nodes(state)
        joints, world, move = placed
        paths = tendons.evaluate(body.tendons, world, move.origin)
        speed = tendons.velocity(body.tendons, paths, move.velocity)

        def generalised(force):
            wrenches = tendons.node_wrenches(body.tendons, paths, force, tree.num_nodes)
            return dynamics.wrench_force(tree, move, joints.slope, wrenches)

        none = jnp.zeros(body.nu)
        resting = muscle.force(body.muscle_constants, paths.length, speed, none)
        active = muscle.force(body.muscle_constants, paths.length, speed, none + 1.0) - resting
        arms = jax.jacrev(generalised)(none)
        rows = contacts.constraint_rows(
            tree, body.contacts, body.timestep, state.qpos, state.qvel, world, move, joints.slope
        )
        distance = contacts._contact_jacobian(tree, body.contacts, world, move, joints.slope)[1]
        return Terms(
            mass=dynamics.mass_matrix(tree, move, joints.slope),
            free=dynamics.passive_force(tree, joints) - dynamics.bias_force(tree, move, joints),
            damping=dynamics.damping_matrix(tree, joints.slope),
            passive=generalised(resting),
            pull=arms * active[None],
            peak=-active,
            directions=rows.contact_jacobian,
            distance=distance + body.contacts[0].margin,
            reference=rows.contact_reference,
            stiffness=rows.contact_stiffness,
            limit=jnp.where(rows.limit_stiffness > 0, rows.limit_sign, 0.0),
            limit_reference=rows.limit_reference,
            limit_stiffness=rows.limit_stiffness,
        )

    compiled = jax.jit(jax.vmap(of_state), compiler_options=body.compiler_options or None)
    return lambda states: Terms(*(np.asarray(x, np.float64) for x in compiled(states)))


def world(terms: Terms, index: int) -> Terms:
    """The terms of one world of a batch."""
    return Terms(*(x[index] for x in terms))


def bounded_least_squares(matrix, goal, ridge, centre, low, high):
    """Returns x `[n]` in [low, high] that minimises |matrix x - goal|^2 + sum ridge (x - centre)^2.

    There are far fewer rows than unknowns, so this solves the dual, one unknown for each row: for
    multipliers y the best x is clip(centre + matrix' y / ridge), and y = goal - matrix x at the
    optimum. Newton's method with an exact line search finds it (the dual is piecewise quadratic).
    """
    y, scaled = np.zeros(len(goal)), matrix / ridge
    enough = TOLERANCE * (1.0 + np.linalg.norm(goal))
    for _ in range(NEWTON_STEPS):
        free = centre + y @ scaled
        gradient = y + matrix @ np.clip(free, low, high) - goal
        if np.linalg.norm(gradient) < enough:
            return np.clip(free, low, high)
        inside = (free > low) & (free < high)
        hessian = np.eye(len(y)) + scaled[:, inside] @ matrix[:, inside].T
        direction = -np.linalg.solve(hessian, gradient)
        y = y + direction * _line_search(
            direction @ (y - goal),
            direction @ direction,
            direction @ matrix,
            free,
            ridge,
            low,
            high,
        )
    raise ArithmeticError(f"the bounded fit did not converge: {np.linalg.norm(gradient):.1e}")


def _line_search(linear, quadratic, along, free, ridge, low, high):
    """The root of the dual's derivative along a line, which is piecewise linear and rises."""
    rate, start, end, step = along / ridge, 0.0, np.inf, 1.0
    for _ in range(LINE_STEPS):
        there = free + step * rate
        slope = linear + step * quadratic + along @ np.clip(there, low, high)
        start, end = (step, end) if slope < 0 else (start, step)
        curvature = quadratic + np.sum((along * rate)[(there > low) & (there < high)])
        guess = step - slope / curvature
        if abs(guess - step) < 1e-12 * step:
            break
        # Newton's guess can leap over the root where unknowns meet their bounds.
        middle = 2.0 * start + 1.0 if np.isinf(end) else 0.5 * (start + end)
        step = guess if start < guess < end else middle
    return step
