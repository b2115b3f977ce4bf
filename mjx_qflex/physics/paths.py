"""Muscle paths compiled to polynomials of the independent joints that they span.

Muscles that span the same joints share one vector of monomials, so that a group of M muscles over
k joints costs one product `[T] x [T, (1 + k) M]` for all its lengths and moment arms: the
derivative of a polynomial is a polynomial in the same monomials.

Outside the fitted range a path continues linearly from the clipped pose c:
L(c) + R(c) (q - c), with the moment arms R(c); a polynomial would explode there.
"""

import dataclasses
import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mjx_qflex.physics.dynamics import matmul, take


@dataclasses.dataclass(frozen=True)
class PathGroup:
    """M muscles over the same k joints, one polynomial each of total degree `degree`."""

    muscles: np.ndarray  # [M] actuator indices
    joints: np.ndarray  # [k] independent scalar joints
    center: np.ndarray  # [k] middle of the fitted range
    half_range: np.ndarray  # [k]
    degree: int
    coefficients: np.ndarray  # [M, T] of monomials of (q - center) / half_range, in m


class PathState(NamedTuple):
    """Lengths and moment arms at one pose."""

    length: jax.Array  # [A] m
    arms: tuple[jax.Array, ...]  # for each group dL/dq `[k, M]`, m/rad or 1
    outside: jax.Array  # [A] bool, some spanned joint is outside its fitted range


def monomials(x: jax.Array, degree: int) -> jax.Array:
    """Returns all monomials `[T]` of total degree up to `degree` of `x [k]`.

    T = (k + degree)! / (k! degree!), in the order of `exponents`. Each variable's powers are
    spread over the monomials by a product with a 0/1 matrix: half the time of slicing them
    together degree by degree, and a third of the compile time.
    """
    powers = [jnp.ones_like(x)]
    for _ in range(degree):
        powers.append(powers[-1] * x)
    table = jnp.stack(powers)
    result = jnp.ones(1)
    for j, powers_of_j in enumerate(exponents(len(x), degree).T):
        result = result * take(table[:, j], powers_of_j)
    return result


def monomial_derivatives(num_variables: int, degree: int) -> np.ndarray:
    """Returns `[k, T, T]`: entry (j, t, u) is the factor of monomial u in d(monomial t)/dx_j."""
    powers = exponents(num_variables, degree)
    place = {tuple(exponent): t for t, exponent in enumerate(powers)}
    result = np.zeros((num_variables, len(powers), len(powers)))
    for t, exponent in enumerate(powers):
        for j in np.flatnonzero(exponent):
            lower = exponent.copy()
            lower[j] -= 1
            result[j, t, place[tuple(lower)]] = exponent[j]
    return result


@functools.cache
def exponents(num_variables: int, degree: int) -> np.ndarray:
    """Returns the exponents `[T, k]` of all monomials, from the constant to the highest degree."""
    found = itertools.product(range(degree + 1), repeat=num_variables)
    return np.array(sorted((e for e in found if sum(e) <= degree), key=lambda e: (sum(e), e)), int)


def length_and_arm_coefficients(group: PathGroup) -> np.ndarray:
    """Returns `[1 + k, M, T]`: the polynomials of the lengths and of their derivatives by q."""
    arms = group.coefficients @ monomial_derivatives(len(group.joints), group.degree)
    return np.concatenate([group.coefficients[None], arms / group.half_range[:, None, None]])


def evaluate(groups: tuple[PathGroup, ...], q: jax.Array) -> PathState:
    """Returns lengths and moment arms of all muscles at the independent scalar joints `q [R]`.

    `groups` together hold each actuator once.
    """
    center, half_range = (
        np.concatenate([getattr(group, name) for group in groups])
        for name in ("center", "half_range")
    )
    x = (take(q, _joints(groups)) - center) / half_range
    clipped = jnp.clip(x, -1.0, 1.0)
    beyond = _split((x - clipped) * half_range, groups)
    lengths, arms, outside = [], [], []
    for group, inside, past in zip(groups, _split(clipped, groups), beyond, strict=True):
        num_joints, num_muscles = len(group.joints), len(group.muscles)
        factors = length_and_arm_coefficients(group).reshape(-1, group.coefficients.shape[1])
        values = matmul(monomials(inside, group.degree), factors.T)
        values = values.reshape(1 + num_joints, num_muscles)
        lengths.append(values[0] + jnp.sum(past[:, None] * values[1:], axis=0))
        arms.append(values[1:])
        outside.append(jnp.broadcast_to(jnp.any(past != 0), (num_muscles,)))
    return PathState(
        _in_actuator_order(groups, lengths), tuple(arms), _in_actuator_order(groups, outside)
    )


def _joints(groups: tuple[PathGroup, ...]) -> np.ndarray:
    """The joints that each group spans, one group after the other."""
    return np.concatenate([group.joints for group in groups])


def _split(x: jax.Array, groups: tuple[PathGroup, ...]) -> list[jax.Array]:
    """Undoes the concatenation of `_joints`: one array `[k]` for each group."""
    return jnp.split(x, np.cumsum([len(group.joints) for group in groups])[:-1])


def _in_actuator_order(groups: tuple[PathGroup, ...], parts: list[jax.Array]) -> jax.Array:
    """Puts one array `[M]` for each group together in the order of the actuators, `[A]`."""
    order = np.argsort(np.concatenate([group.muscles for group in groups]))
    return jnp.concatenate(parts)[order]


def velocity(groups: tuple[PathGroup, ...], path: PathState, qdot: jax.Array) -> jax.Array:
    """Returns lengthening velocities `[A]` in m/s for joint velocities `qdot [R]`."""
    rates = _split(take(qdot, _joints(groups)), groups)
    parts = [
        jnp.sum(rate[:, None] * arms, axis=0) for rate, arms in zip(rates, path.arms, strict=True)
    ]
    return _in_actuator_order(groups, parts)


def joint_force(
    groups: tuple[PathGroup, ...], path: PathState, force: jax.Array, num_joints: int
) -> jax.Array:
    """Returns generalised forces `[num_joints]` of muscle forces `[A]` (N, negative pulls)."""
    grouped = force[np.concatenate([group.muscles for group in groups])]
    parts = jnp.split(grouped, np.cumsum([len(group.muscles) for group in groups])[:-1])
    pulls = [
        jnp.sum(arms * part[None], axis=1) for arms, part in zip(path.arms, parts, strict=True)
    ]
    of_joint = np.equal.outer(_joints(groups), np.arange(num_joints))
    return matmul(jnp.concatenate(pulls), of_joint)
