"""How long a strong tracker with full knowledge keeps `ms_human` on its reference gait.

    python experiments/paper/ms_human_walk/tracking.py

Every 20 ms it reads the true state and solves one bounded least squares for the activations that
bring the accelerations nearest to the reference's plus feedback (computed muscle control, with the
contact forces as unknowns), within what the activation dynamics can reach. Excitations then invert
the activation dynamics. Worlds start on the reference at evenly spaced phases.
"""

import argparse
from typing import NamedTuple

import balance
import feasibility
import jax
import jax.numpy as jnp
import numpy as np

from mjx_qflex.porting import muscle
from mjx_qflex.tasks.ms_human import MsHumanWalk

SCHEDULE = 0.012  # m; where the reference is so near the floor, a touching sole stays
TOUCHING = 2e-3  # m
HALVINGS = 8  # of the search for an excitation
FORCE_UNIT = 1000.0


class Gains(NamedTuple):
    """Feedback and weights of the tracker."""

    joints: float = 15.0  # rad/s, natural frequency of joint feedback, critically damped
    root: float = 8.0  # 1/s, of the root's
    root_weight: float = 3.0  # of the root's rotation and height, against joints
    across_weight: float = 1.0  # of the root's horizontal way
    least_weight: float = 0.5  # of a joint however light what it moves
    forward_root: float = 1.0  # share of the reference's root acceleration
    contact_weight: float = 30.0
    ridge: float = 0.1
    friction: float = 0.8  # share of the floor's friction that it plans with


def errors(target, qpos):
    """Position error `[nv]` in velocity coordinates: root rotation in the body's own frame."""
    w0, v0 = qpos[3], qpos[4:7]
    w1, v1 = target[3], target[4:7]
    turn = np.array([w0 * w1 + v0 @ v1, *(w0 * v1 - w1 * v0 - np.cross(v0, v1))])
    turn *= np.sign(turn[0]) or 1.0
    return np.concatenate([target[:3] - qpos[:3], 2.0 * turn[1:], target[7:] - qpos[7:]])


def desired(gains, target, target_velocity, target_acceleration, qpos, qvel):
    """Accelerations `[nv]` that lead back to the reference."""
    rate = np.where(np.arange(len(qvel)) < 6, gains.root, gains.joints)
    back = rate**2 * errors(target, qpos) + 2.0 * rate * (target_velocity - qvel)
    share = np.where(np.arange(len(qvel)) < 6, gains.forward_root, 1.0)
    return share * target_acceleration + back


def activations(gains, terms, planned, wanted, low, high, offset=0.0):
    """Activations `[nu]` in [low, high], and the accelerations `[nv]` that they should give.

    `planned [K]` tells which contacts the reference has, `offset [nv]` is what accelerations were
    found to have besides.
    """
    num = len(low)
    touching = np.flatnonzero((terms.distance < TOUCHING) & planned)
    normal, first, second = np.split(terms.directions, 3, axis=1)
    normal, first, second = normal[:, touching], first[:, touching], second[:, touching]
    slide = gains.friction
    edges = np.concatenate(
        [normal + slide * first, normal - slide * first,
         normal + slide * second, normal - slide * second], axis=1,
    ) * FORCE_UNIT  # fmt: skip
    inverse = np.linalg.inv(terms.mass)
    move = inverse @ np.concatenate([terms.pull, edges], axis=1)
    drift = inverse @ (terms.free + terms.passive) + offset
    weight = np.maximum(np.sqrt(np.diag(terms.mass)), gains.least_weight)
    weight[:2] *= gains.across_weight
    weight[2:6] *= gains.root_weight
    reference = terms.reference[:, touching]
    asked = np.concatenate([
        0.5 * (reference[0] + reference[1]), 0.5 * (reference[0] - reference[1]),
        0.5 * (reference[2] - reference[3]),
    ])  # fmt: skip
    points = np.concatenate([normal, first, second], axis=1).T
    matrix = np.concatenate([weight[:, None] * move, gains.contact_weight * points @ move])
    goal = np.concatenate(
        [weight * (wanted - drift), gains.contact_weight * (asked - points @ drift)]
    )
    ridge = np.repeat([gains.ridge, 0.1], [num, edges.shape[1]])
    zeros = np.zeros(edges.shape[1])
    lower, upper = np.concatenate([low, zeros]), np.concatenate([high, zeros + np.inf])
    x = balance.bounded_least_squares(matrix, goal, ridge, 0.0 * ridge, lower, upper)
    return x[:num], move @ x + drift


def make_activation(body, steps):
    """`after(excitation, activation)`: the activation after `steps` physics steps."""

    def after(excitation, activation):
        def once(_, act):
            rate = muscle.activation_rate(body.muscle_constants, excitation, act)
            return act + body.timestep * rate

        return jax.lax.fori_loop(0, steps, once, activation)

    def inverse(goal, activation):
        """The excitation after which the activation is nearest to `goal`."""
        low, high = jnp.zeros_like(goal), jnp.ones_like(goal)
        for _ in range(HALVINGS):
            middle = 0.5 * (low + high)
            short = after(middle, activation) < goal
            low, high = jnp.where(short, middle, low), jnp.where(short, high, middle)
        return 0.5 * (low + high)

    return jax.jit(after), jax.jit(inverse)
