"""The shortest way around spheres and cylinders, in the plane in which a path wraps.

Points are `[3, W]`, or `[2, W]` in the plane, seen from the obstacles' centres; W wraps at once.
MuJoCo documentation, "Tendon wrapping".
"""

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from mjx_qflex.physics import dynamics

TINY = mujoco.mjMINVAL
_INSIDE_ITERATIONS = 6  # of Newton's method; its function is smooth, monotone and nearly linear


def dot(a: jax.Array, b: jax.Array) -> jax.Array:
    return sum((x * y for x, y in zip(a, b, strict=True)), jnp.zeros(()))


def normalized(vector: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Lengths `[K]` and directions of vectors `[3, K]` or `[2, K]`; no direction without length."""
    length = jnp.sqrt(jnp.maximum(dot(vector, vector), 1e-20))
    return length, vector / length[None]


def plane_through_center(p0: jax.Array, p1: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Two axes `[3, W]` of the planes through the origin and the points `p0`, `p1 [3, W]`."""
    first = normalized(p0)[1]
    across = dynamics.cross(p0, p1)
    # Where both points lie on one line through the centre, any plane through it will do.
    largest = jnp.argmax(first, axis=0)
    other = jnp.where(jnp.arange(3)[:, None] == largest[None], 0.0, 1.0)
    parallel = dot(across, across) < TINY * TINY
    across = jnp.where(parallel[None], dynamics.cross(first, other), across)
    return first, normalized(dynamics.cross(normalized(across)[1], first))[1]


def _cross2(a: jax.Array, b: jax.Array) -> jax.Array:
    return a[0] * b[1] - a[1] * b[0]


def wrap_circle(
    d0: jax.Array, d1: jax.Array, side: jax.Array, has_side: np.ndarray, radius: np.ndarray
) -> tuple[jax.Array, ...]:
    """The shortest way from `d0` to `d1 [2, W]` around circles of `radius [W]`.

    Of the two ways, `side [2, W]` chooses the nearer one, else the shorter is taken.

    Returns whether the path touches the circle, the arc's length `[W]`, and the two points of
    contact `[2, W]`.
    """
    square0, square1, square = dot(d0, d0), dot(d1, d1), radius**2
    between = d1 - d0
    distance = dot(between, between)
    part = jnp.clip(-dot(between, d0) / jnp.maximum(distance, TINY), 0.0, 1.0)
    nearest = d0 + part[None] * between
    clear = (dot(nearest, nearest) > square) & (~has_side | (dot(side, nearest) >= 0))
    outside = (square0 >= square) & (square1 >= square)
    possible = outside & (radius >= TINY) & (distance >= TINY) & ~clear

    def tangent(point, squared, turn):
        """Where the tangent from a point touches the circle, on the side `turn` (1 or -1)."""
        reach = radius * jnp.sqrt(jnp.maximum(squared - square, TINY)) * turn
        across = jnp.stack([point[1], -point[0]])
        reached = point * square[None] + across * reach[None]
        return reached / jnp.maximum(squared, TINY)[None]

    ways = [(tangent(d0, square0, turn), tangent(d1, square1, -turn)) for turn in (1.0, -1.0)]
    crosses, good = [], []
    side = normalized(side)[1] * radius[None]
    for t0, t1 in ways:
        gap = t0 - t1
        toward_side = dot(normalized(t0 + t1)[1], side)
        crosses.append(_segments_cross(d0, t0, d1, t1))
        good.append(jnp.where(crosses[-1], -1e4, jnp.where(has_side, toward_side, -dot(gap, gap))))
    first = good[0] >= good[1]
    t0, t1 = (jnp.where(first[None], a, b) for a, b in zip(*ways, strict=True))
    # The first way runs clockwise. Where the path only just touches, rounding must not make a full
    # circle of an arc that vanishes; one of nearly a full circle would cross its own path.
    angle = jnp.arctan2(_cross2(t0, t1), dot(t0, t1)) * jnp.where(first, -1.0, 1.0)
    angle = jnp.where(angle < -0.05, angle + 2 * np.pi, jnp.maximum(angle, 0.0))
    touch = possible & ~jnp.where(first, *crosses)
    return touch, angle * radius, t0, t1


def _segments_cross(a0: jax.Array, a1: jax.Array, b0: jax.Array, b1: jax.Array) -> jax.Array:
    """Whether the segments a0-a1 and b0-b1 `[2, W]` meet (`[W]` bool)."""
    a, b, gap = a1 - a0, b1 - b0, a0 - b0
    determinant = _cross2(a, b)
    safe = jnp.where(jnp.abs(determinant) < TINY, 1.0, determinant)
    along_a, along_b = _cross2(b, gap) / safe, _cross2(a, gap) / safe
    meet = (along_a >= 0) & (along_a <= 1) & (along_b >= 0) & (along_b <= 1)
    return meet & (jnp.abs(determinant) >= TINY)


def hold_inside(d0: jax.Array, d1: jax.Array, radius: np.ndarray) -> tuple[jax.Array, ...]:
    """The path from `d0` to `d1 [2, W]` through one point of the circle, straight on both sides.

    At that point, both parts make one angle phi with the radius:
    asin(A sin phi) + asin(B sin phi) - 2 phi + G = 0 with A, B the ratios of the radius to the
    ends' distances from the centre and G the angle between them. It falls steadily in phi.

    Returns as `wrap_circle`; the two points of contact are one.
    """
    far0, unit0 = normalized(d0)
    far1, unit1 = normalized(d1)
    between = d1 - d0
    distance = dot(between, between)
    part = -dot(between, d0) / jnp.maximum(distance, TINY)
    nearest = normalized(d0 + part[None] * between)[0]
    through = (distance > TINY) & (part > 0) & (part < 1) & (nearest <= radius)
    ratio0, ratio1 = radius / far0, radius / far1
    turn = _cross2(unit0, unit1)
    angle = jnp.arctan2(jnp.abs(turn), dot(unit0, unit1))
    touch = (far0 > radius) & (far1 > radius) & (radius >= TINY) & ~through
    ratio0, ratio1 = jnp.minimum(ratio0, 1.0), jnp.minimum(ratio1, 1.0)

    def residual(phi):
        sine = jnp.sin(phi)
        return jnp.arcsin(ratio0 * sine) + jnp.arcsin(ratio1 * sine) - 2 * phi + angle

    phi = jnp.full_like(angle, 0.5 * np.pi)
    solvable = residual(phi) <= 0
    for _ in range(_INSIDE_ITERATIONS):
        sine, cosine = jnp.sin(phi), jnp.cos(phi)
        slope0, slope1 = (
            ratio * cosine / jnp.sqrt(jnp.maximum(1 - jnp.square(ratio * sine), 1e-12))
            for ratio in (ratio0, ratio1)
        )
        slope = jnp.minimum(slope0 + slope1 - 2, -1e-6)
        phi = jnp.clip(phi - residual(phi) / slope, 0.0, 0.5 * np.pi)
    from_start = turn > 0
    ratio, unit = jnp.where(from_start, ratio0, ratio1), jnp.where(from_start[None], unit0, unit1)
    rotate = phi - jnp.arcsin(ratio * jnp.sin(phi))
    sine, cosine = jnp.sin(rotate), jnp.cos(rotate)
    point = jnp.stack([cosine * unit[0] - sine * unit[1], sine * unit[0] + cosine * unit[1]])
    middle = normalized(d0 + d1)[1]
    point = jnp.where((solvable & (angle > 1e-6))[None], point, middle) * radius[None]
    return touch, jnp.zeros_like(angle), point, point
