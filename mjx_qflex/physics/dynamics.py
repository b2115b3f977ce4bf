"""Rigid-body dynamics in independent coordinates, as products with constant matrices.

With r the independent coordinates, the source model's joints are q = g(r), its velocities
v = G(r) r', and its accelerations G r'' + G' r'. Each source joint follows exactly one independent
coordinate, so G is a column of derivatives `slope` times a constant 0/1 matrix (`Tree.reduce`).
The equations of motion are projected:

    (G'MG) r'' = G' (passive + applied - bias(q, v) - M (dG/dt) r')

Spatial vectors are `[6, ...]`, angular part first, in world axes about one common point (the
first node's origin), which keeps single precision accurate far from the world's origin.
Featherstone, Rigid Body Dynamics Algorithms (2008), chapters 2, 5 and 6.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mjx_qflex.physics.tree import Coupling, Tree

HIGHEST = jax.lax.Precision.HIGHEST
MAX_WRITTEN_OUT = 64  # entries of a 0/1 matrix


class JointState(NamedTuple):
    """The source model's coordinates, from the independent ones; J scalar joints, D dofs."""

    position: jax.Array  # [J]
    slope: jax.Array  # [D] the one nonzero of each row of G
    velocity: jax.Array  # [D] v = G r'
    drift: jax.Array  # [D] (dG/dt) r'


class Poses(NamedTuple):
    """Nodes in the world, the world itself last."""

    rotation: jax.Array  # [3, 3, N + 1]
    position: jax.Array  # [3, N + 1]


class Motion(NamedTuple):
    """Spatial quantities about the common point."""

    origin: jax.Array  # [3] the common point
    axes: jax.Array  # [6, D] motion of each dof
    velocity: jax.Array  # [6, N]
    inertia: jax.Array  # [10, N] mass, first moment (3), second moment (xx yy zz xy xz yz)


def matmul(a: jax.Array | np.ndarray, b: jax.Array | np.ndarray) -> jax.Array:
    """`a @ b` at full precision: accelerators otherwise round the factors to TF32 or bf16."""
    return jnp.matmul(a, jnp.asarray(b, jnp.float32), precision=HIGHEST)


def combine(x: jax.Array | np.ndarray, members: np.ndarray) -> jax.Array:
    """Sums `[..., n]` of what is in `x [..., m]`, as the constant 0/1 matrix `members [m, n]` says.

    A product, unless the matrix is so small that XLA had better fuse the sums with what follows.
    """
    if not 0 < members.size <= MAX_WRITTEN_OUT:
        return matmul(x, members)
    zero = jnp.zeros(x.shape[:-1])
    return jnp.stack(
        [sum((x[..., i] for i in np.flatnonzero(m)), zero) for m in members.T], axis=-1
    )


def take(x: jax.Array, index: np.ndarray) -> jax.Array:
    """`x[..., index]` for a constant index, as a product with a 0/1 matrix.

    It is exact, and on a CPU twice as fast as a gather under `vmap`.
    """
    return combine(x, np.equal.outer(np.arange(x.shape[-1]), index))


def rotate(rotation: jax.Array, vector: jax.Array | np.ndarray) -> jax.Array:
    """Rotation matrices `[3, 3, n]` times vectors `[3, n]`.

    Three products are added by hand here and below: a sum over an axis takes XLA:CPU three times
    as long.
    """
    return _add(*(rotation[:, k] * vector[None, k] for k in range(3)))


def rotate_back(rotation: jax.Array, vector: jax.Array) -> jax.Array:
    """The inverse of `rotate`: vectors `[3, n]` seen from the frames `rotation [3, 3, n]`."""
    return _add(*(rotation[k] * vector[None, k] for k in range(3)))


def compose(first: jax.Array, then: np.ndarray) -> jax.Array:
    """Products `[3, 3, n]` of rotation matrices `[3, 3, n]`."""
    return _add(*(first[:, k, None] * then[None, k] for k in range(3)))


def _add(x: jax.Array, y: jax.Array, z: jax.Array) -> jax.Array:
    return x + y + z


def cross(a: jax.Array, b: jax.Array) -> jax.Array:
    """Cross product along the first axis, `[3, ...]`."""
    return jnp.stack(_cross_components(a, b))


def _cross_components(a: jax.Array, b: jax.Array) -> list[jax.Array]:
    return [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]]


def scalar_joints(coupling: Coupling, home: np.ndarray, r: jax.Array) -> tuple[jax.Array, ...]:
    """Returns source positions `[J]` with first and second derivatives by their coordinate."""
    c0, c1, c2, c3, c4 = coupling.coefficients.T
    value = r[coupling.source] - home[coupling.independent][coupling.source]
    first, second = jnp.ones_like(value), jnp.zeros_like(value)
    if len(coupling.independent) == len(coupling.driver):
        return value + home, first, second
    free = np.zeros(len(coupling.driver), bool)
    free[coupling.independent] = True
    result = value, first, second
    for _ in range(coupling.depth):
        x, dx, ddx = (entry[coupling.driver] for entry in result)
        y = c0 + x * (c1 + x * (c2 + x * (c3 + x * c4)))
        slope = c1 + x * (2 * c2 + x * (3 * c3 + x * 4 * c4))
        curvature = 2 * c2 + x * (6 * c3 + x * 12 * c4)
        step = y, slope * dx, curvature * dx * dx + slope * ddx
        result = tuple(
            jnp.where(free, own, new) for own, new in zip((value, first, second), step, strict=True)
        )
    return result[0] + home, result[1], result[2]


def joint_state(tree: Tree, qpos: jax.Array, qvel: jax.Array) -> JointState:
    """Expands reduced coordinates `qpos [nq]`, `qvel [nv]` to the source model's joints."""
    free_q, free_v = 7 * tree.num_free, 6 * tree.num_free
    position, first, second = scalar_joints(tree.coupling, tree.joint_home, qpos[free_q:])
    rate = qvel[free_v:][tree.coupling.source]
    ones, zeros = jnp.ones(free_v), jnp.zeros(free_v)
    return JointState(
        position,
        jnp.concatenate([ones, first]),
        jnp.concatenate([qvel[:free_v], first * rate]),
        jnp.concatenate([zeros, second * rate * rate]),
    )


def _compose(a: jax.Array, b: jax.Array) -> jax.Array:
    """Rigid transforms `a [12, n]` after `b [12, n]`: nine rotation rows, three of translation."""
    rotation = [
        sum(a[3 * i + k] * b[3 * k + j] for k in range(3)) for i in range(3) for j in range(3)
    ]
    position = [sum(a[3 * i + k] * b[9 + k] for k in range(3)) + a[9 + i] for i in range(3)]
    return jnp.stack([*rotation, *position])


def _quaternion_rotation(q: jax.Array) -> jax.Array:
    """Rotation matrices `[3, 3, F]` of quaternions `[4, F]` (w first), normalised here."""
    w, x, y, z = q / jnp.sqrt(jnp.sum(q * q, axis=0, keepdims=True))
    return jnp.stack(
        [
            jnp.stack([1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)]),
            jnp.stack([2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)]),
            jnp.stack([2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)]),
        ]
    )


def poses(tree: Tree, qpos: jax.Array, joint_position: jax.Array) -> Poses:
    """Places every node in the world by pointer doubling: log2(depth) batched compositions.

    Args:
      tree: the body.
      qpos: reduced coordinates `[nq]`; only free joints are read from it.
      joint_position: scalar joints of the source model `[J]`.
    """
    f = tree.num_free
    angle = joint_position - tree.joint_home
    # The product with the identity stands for itself: without it, XLA:CPU evaluates sine and
    # cosine anew for each of the twelve rows, on both sides of the first composition.
    turn = jnp.stack([jnp.sin(angle), 1 - jnp.cos(angle), angle])
    sine, versine, angle = take(turn, np.arange(len(angle)))
    local = (
        tree.base[:, f:]
        + tree.sine[:, f:] * sine[None]
        + tree.versine[:, f:] * versine[None]
        + tree.slide[:, f:] * angle[None]
    )
    free = qpos[: 7 * f].reshape(f, 7).T
    transforms = jnp.concatenate(
        [
            jnp.concatenate([_quaternion_rotation(free[3:]).reshape(9, f), free[:3]]),
            local,
            jnp.concatenate([np.eye(3).reshape(9), np.zeros(3)])[:, None],
        ],
        axis=1,
    )
    up = np.append(tree.parent, tree.num_nodes)
    reach = 1
    while reach < tree.depth:
        transforms = _compose(take(transforms, up), transforms)
        up, reach = up[up], 2 * reach
    return Poses(transforms[:9].reshape(3, 3, -1), transforms[9:])


def _inertia(tree: Tree, rotation: jax.Array, arm: jax.Array) -> jax.Array:
    """Node inertias `[10, N]` about the common point; `arm [3, N]` leads from it to the nodes."""
    mass = jnp.asarray(tree.mass, jnp.float32)
    zero = jnp.zeros(())
    first = sum((rotation[:, k] * tree.first_moment[None, k] for k in range(3)), zero)
    half = sum((rotation[:, k, None] * tree.second_moment[None, k] for k in range(3)), zero)
    second = sum((half[:, k, None] * rotation[None, :, k] for k in range(3)), zero)
    # Steiner about a point that is not the centre of mass: both cross terms stay.
    product = arm[:, None] * first[None, :] + first[:, None] * arm[None, :]
    product = product + mass[None, None] * arm[:, None] * arm[None, :]
    trace = product[0, 0] + product[1, 1] + product[2, 2]
    moment = trace[None, None] * np.eye(3)[:, :, None] - product + second
    rows = [(0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2)]
    shifted = first + mass[None] * arm
    return jnp.concatenate([mass[None], shifted, jnp.stack([moment[i, j] for i, j in rows])])


def _apply_inertia(inertia: jax.Array, motion: jax.Array) -> jax.Array:
    """Momentum `[6, n]` of inertias `[10, n]` moving with `[6, n]`."""
    mass, first, (xx, yy, zz, xy, xz, yz) = inertia[0], inertia[1:4], inertia[4:]
    w, v = motion[:3], motion[3:]
    angular = jnp.stack(
        [
            xx * w[0] + xy * w[1] + xz * w[2],
            xy * w[0] + yy * w[1] + yz * w[2],
            xz * w[0] + yz * w[1] + zz * w[2],
        ]
    )
    return jnp.concatenate([angular + cross(first, v), mass[None] * v - cross(first, w)])


def motion(tree: Tree, world: Poses, velocity: jax.Array) -> Motion:
    """Spatial axes, velocities and inertias of the placed tree; `velocity [D]` of the source."""
    origin = world.position[:, 0]
    rotation, arm = world.rotation[:, :, :-1], world.position[:, :-1] - origin[:, None]
    turned = take(rotation, tree.dof_node)
    axis = sum(turned[:, k] * tree.dof_axis[None, k] for k in range(3))
    axis = jnp.where(tree.dof_in_world[None], tree.dof_axis, axis)
    anchor = sum(turned[:, k] * tree.dof_anchor[None, k] for k in range(3))
    anchor = anchor + take(arm, tree.dof_node)
    rotates = tree.dof_rotates[None]
    axes = jnp.concatenate(
        [jnp.where(rotates, axis, 0.0), jnp.where(rotates, cross(anchor, axis), axis)]
    )
    return Motion(
        origin, axes, combine(axes * velocity[None], tree.moves), _inertia(tree, rotation, arm)
    )


def node_momentum(move: Motion) -> jax.Array:
    """Spatial momentum `[6, N]` of each node about the common point."""
    return _apply_inertia(move.inertia, move.velocity)


def project(tree: Tree, slope: jax.Array, force: jax.Array | np.ndarray) -> jax.Array:
    """G' `force`: from `[D]` on the source's dofs to `[nv]` on the independent ones."""
    force = jnp.asarray(force) * slope
    return combine(force, tree.reduce) if tree.is_coupled else force


def project_columns(tree: Tree, slope: jax.Array, forces: jax.Array | np.ndarray) -> jax.Array:
    """G' `forces`: from `[D, K]` on the source's dofs to `[nv, K]` on the independent ones.

    Products that XLA:CPU runs fast have their summed axis last on both sides: `a @ b.T`.
    """
    if not tree.is_coupled:
        return jnp.asarray(forces) * slope[:, None]
    return matmul(jnp.asarray(tree.reduce.T, jnp.float32) * slope[None], forces)


def mass_matrix(tree: Tree, move: Motion, slope: jax.Array) -> jax.Array:
    """Returns G'MG `[nv, nv]`, armature included (composite rigid bodies)."""
    composite = combine(move.inertia, tree.moves.T)
    momentum = _apply_inertia(composite, move.axes) * slope[None]
    # Dof i meets dof j's composite body where i carries j; half of the diagonal, then symmetrise.
    carries = tree.moves[:, tree.dof_node] * _first_of_each_pair(tree)
    product = sum(move.axes[k, :, None] * momentum[k, None, :] for k in range(6))
    product = product * carries.astype(np.float32)
    if tree.is_coupled:
        product = combine(product, tree.reduce)
    half = project_columns(tree, slope, product)
    armature = project(tree, slope, tree.armature * slope)
    return half + half.T + jnp.diag(armature)


def _first_of_each_pair(tree: Tree) -> np.ndarray:
    """Weights `[D, D]`: 1 above the diagonal, 1/2 on it; a free joint's dofs share a node."""
    num = len(tree.dof_node)
    same = tree.dof_node[:, None] == tree.dof_node[None, :]
    upper = np.triu(np.ones((num, num)), 1)
    return np.where(same, upper, 1.0) + 0.5 * np.eye(num)


def bias_force(tree: Tree, move: Motion, joints: JointState) -> jax.Array:
    """Returns G'(bias + M (dG/dt) r') `[nv]`: gravity, gyroscopic and coupling-drift forces."""
    carried = take(move.velocity, tree.dof_node)
    angular, linear = carried[:3], carried[3:]
    axes_rate = jnp.concatenate(
        [
            cross(angular, move.axes[:3]),
            cross(angular, move.axes[3:]) + cross(linear, move.axes[:3]),
        ]
    )
    axes_rate = jnp.where(tree.dof_in_world[None], 0.0, axes_rate)
    acceleration = combine(
        axes_rate * joints.velocity[None] + move.axes * joints.drift[None], tree.moves
    )
    acceleration = acceleration - np.concatenate([np.zeros(3), tree.gravity])[:, None]
    momentum = node_momentum(move)
    w, v = move.velocity[:3], move.velocity[3:]
    gyroscopic = jnp.concatenate(
        [cross(w, momentum[:3]) + cross(v, momentum[3:]), cross(w, momentum[3:])]
    )
    force = _apply_inertia(move.inertia, acceleration) + gyroscopic
    armature = project(tree, joints.slope, tree.armature * joints.drift)
    return wrench_force(tree, move, joints.slope, force) + armature


def passive_force(tree: Tree, joints: JointState) -> jax.Array:
    """Returns G'(joint springs and dampers) `[nv]`."""
    position = jnp.concatenate([jnp.zeros(6 * tree.num_free), joints.position])
    stretch, speed = position - tree.spring_home, jnp.abs(joints.velocity)
    stiffness = _grown(tree.stiffness, tree.stiffness_growth, stretch)
    damping = _grown(tree.damping, tree.damping_growth, speed)
    return project(tree, joints.slope, -stiffness * stretch - damping * joints.velocity)


def _grown(constant: np.ndarray, growth: np.ndarray, x: jax.Array) -> np.ndarray | jax.Array:
    """`constant [D]` plus `growth [D, P]` times the powers of `x [D]`, if there is any growth."""
    if not growth.any():
        return constant
    return constant + sum(growth[:, n] * x ** (n + 1) for n in range(growth.shape[1]))


def damping_matrix(tree: Tree, joints: JointState) -> jax.Array:
    """Returns the diagonal `[nv]` of G'DG, which Euler integration treats implicitly.

    D is how the dampers' force rises with velocity.
    """
    growth = tree.damping_growth * np.arange(2, 2 + tree.damping_growth.shape[1])
    rise = _grown(tree.damping, growth, jnp.abs(joints.velocity))
    return project(tree, joints.slope, rise * joints.slope)


def force_jacobian(
    tree: Tree,
    move: Motion,
    slope: jax.Array,
    points: jax.Array,
    forces: jax.Array,
    nodes: np.ndarray,
    others: np.ndarray,
) -> jax.Array:
    """Returns `[nv, K]`: what forces `[3, K]` at world points `[3, K]` do to r.

    They act on `nodes [K]`, and their opposites on `others [K]`; nothing moves the world (node N).
    """
    wrench = [*_cross_components(points - move.origin[:, None], forces), *forces]
    moves = np.append(tree.moves, np.zeros((len(tree.dof_node), 1)), axis=1).T
    power = sum(w[:, None] * axis[None] for w, axis in zip(wrench, move.axes, strict=True))
    generalised = power * (moves[nodes] - moves[others]).astype(np.float32)
    return project_columns(tree, slope, generalised.T)


def wrench_force(tree: Tree, move: Motion, slope: jax.Array, wrenches: jax.Array) -> jax.Array:
    """Generalised forces `[nv]` of wrenches `[6, N]` on the nodes, about the common point."""
    carried = combine(wrenches, tree.moves.T)
    force = sum((move.axes[k] * carried[k] for k in range(6)), jnp.zeros(()))
    return project(tree, slope, force)


def integrate(tree: Tree, qpos: jax.Array, qvel: jax.Array, dt: float) -> jax.Array:
    """Returns `qpos [nq]` after moving with `qvel [nv]` for `dt` seconds (MuJoCo's convention)."""
    parts = []
    for f in range(tree.num_free):
        place, turn = qpos[7 * f : 7 * f + 3], qpos[7 * f + 3 : 7 * f + 7]
        linear, angular = qvel[6 * f : 6 * f + 3], qvel[6 * f + 3 : 6 * f + 6]
        parts += [place + dt * linear, _turn(turn, angular * dt)]
    parts.append(qpos[7 * tree.num_free :] + dt * qvel[6 * tree.num_free :])
    return jnp.concatenate(parts)


def _turn(quaternion: jax.Array, rotation_vector: jax.Array) -> jax.Array:
    """Quaternion `[4]` turned by a rotation vector `[3]` in the body's own frame, normalised."""
    square = jnp.sum(rotation_vector * rotation_vector)
    small = square < 1e-12
    angle = jnp.sqrt(jnp.where(small, 1.0, square))
    scale = jnp.where(small, 0.5, jnp.sin(0.5 * angle) / angle)
    cosine = jnp.where(small, 1.0, jnp.cos(0.5 * angle))
    w, u = quaternion[0], quaternion[1:]
    x = scale * rotation_vector
    turned = jnp.concatenate(
        [(w * cosine - jnp.sum(u * x))[None], w * x + cosine * u + cross(u, x)]
    )
    return turned / jnp.sqrt(jnp.sum(turned * turned))
