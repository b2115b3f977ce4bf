"""Soft constraints of a ported body: joint limits and the contacts that a recipe names.

Rows follow MuJoCo's soft-constraint model: impedance and reference acceleration from `solref` and
`solimp`, pyramidal friction cones. Contacts are spheres and capsules against planes, spheres,
capsules and boxes. A capsule meets a plane or a box with its two end spheres; two capsules meet in
one point (MuJoCo has two where they are parallel, and its own rules for a capsule over an edge).
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from mjx_qflex.errors import UserError
from mjx_qflex.lookup import unknown_name
from mjx_qflex.physics import audit, dynamics, mixing
from mjx_qflex.physics.shapes import rotation_matrix
from mjx_qflex.physics.tree import Tree

_PLANE, _SPHERE, _CAPSULE, _BOX = (
    int(t)
    for t in (
        mujoco.mjtGeom.mjGEOM_PLANE,
        mujoco.mjtGeom.mjGEOM_SPHERE,
        mujoco.mjtGeom.mjGEOM_CAPSULE,
        mujoco.mjtGeom.mjGEOM_BOX,
    )
)
_SURFACES = (_PLANE, _CAPSULE, _BOX)
_NO_CONTACTS = (mujoco.mjtDisableBit.mjDSBL_CONTACT, mujoco.mjtDisableBit.mjDSBL_CONSTRAINT)


@dataclasses.dataclass(frozen=True)
class Contacts:
    """K possible contacts of spheres or capsules with surfaces of one kind; N stands for the world.

    Nodes carry both sides; vectors are in their node's frame.
    """

    kind: int  # mjGEOM_PLANE, mjGEOM_CAPSULE (a sphere is a capsule without length) or mjGEOM_BOX
    node: np.ndarray  # [K] of the sphere or capsule
    center: np.ndarray  # [3, K]
    axis: np.ndarray  # [3, K] from a capsule's centre to its end; of an end sphere, its capsule's
    radius: np.ndarray  # [K]
    other_node: np.ndarray  # [K] of the surface
    other_center: np.ndarray  # [3, K]
    other_rotation: np.ndarray  # [3, 3, K]
    other_size: np.ndarray  # [3, K] as in MuJoCo's geom_size
    friction: np.ndarray  # [K]
    margin: np.ndarray  # [K]
    weight: np.ndarray  # [K] inverse weight of both bodies' translation
    solref: np.ndarray  # [K, 2]
    solimp: np.ndarray  # [K, 5]


class Rows(NamedTuple):
    """Inequality rows of the constraint solver: force = -stiffness * min(J a - reference, 0).

    A contact has four rows, the edges of its friction pyramid: normal + tangent, normal - tangent,
    and the same with the second tangent, all tangents times friction. They share these three
    directions; `solver.edges` combines them.
    """

    limit_sign: jax.Array  # [nv] +1 at the lower limit, -1 at the upper, 0 without limits
    limit_reference: jax.Array  # [nv] reference acceleration
    limit_stiffness: jax.Array  # [nv] 0 where no limit is reached
    contact_jacobian: jax.Array  # [nv, 3 K] of normals, first and second tangents times friction
    contact_reference: jax.Array  # [4, K]
    contact_stiffness: jax.Array  # [K] the same for all edges of a contact


def build(
    model: mujoco.MjModel, tree: Tree, pairs: Sequence[tuple[str, str]]
) -> tuple[Contacts, ...]:
    """Collects the contacts of the named pairs of geoms, one entry for each kind of surface.

    Raises:
      UserError: a geom is not in the model, or a pair is of geoms that cannot meet here, or not
        with Coulomb friction in two directions.
    """
    if pairs and audit.disabled(model, *_NO_CONTACTS):
        raise UserError(
            "the model's <flag> disables contacts, and the recipe names some; drop the one or the "
            "other"
        )
    known = {model.geom(g).name: g for g in range(model.ngeom) if model.geom(g).name}
    rows: dict[int, list[dict]] = {}
    seen: set[frozenset[str]] = set()
    for pair in pairs:
        if frozenset(pair) in seen:
            raise UserError(
                f"the recipe lets {pair[0]!r} and {pair[1]!r} touch twice; once will do"
            )
        seen.add(frozenset(pair))
        for name in pair:
            if name not in known:
                raise unknown_name("geom of [contacts]", name, known)
        first, other = (known[name] for name in pair)
        if model.geom_type[first] in (_PLANE, _BOX):
            first, other = other, first
        kind = model.geom_type[other]
        kind = _CAPSULE if kind == _SPHERE else int(kind)
        if model.geom_type[first] not in (_SPHERE, _CAPSULE) or kind not in _SURFACES:
            raise _cannot_meet(model, first, other)
        rows.setdefault(kind, []).extend(_rows(model, tree, first, other, kind))
    return tuple(
        Contacts(
            kind,
            **{
                field: np.stack([row[field] for row in rows[kind]], axis=axis)
                for field, axis in _STACKED.items()
            },
        )
        for kind in sorted(rows)
    )


def _cannot_meet(model: mujoco.MjModel, first: int, other: int) -> UserError:
    one, two = (
        f"{model.geom(g).name!r} ({mujoco.mjtGeom(int(model.geom_type[g])).name[7:].lower()})"
        for g in (first, other)
    )
    mesh = mujoco.mjtGeom.mjGEOM_MESH in model.geom_type[[first, other]]
    hint = "; [contacts] mesh_capsules = true makes capsules of meshes" if mesh else ""
    return UserError(
        f"geoms {one} and {two} cannot meet: one must be a sphere or a capsule, the other a "
        f"plane, sphere, capsule or box{hint}"
    )


# Where the K contacts are counted in each array.
_STACKED = {
    "node": 0, "center": -1, "axis": -1, "radius": 0, "other_node": 0, "other_center": -1,
    "other_rotation": -1, "other_size": -1, "friction": 0, "margin": 0, "weight": 0, "solref": 0,
    "solimp": 0,
}  # fmt: skip


def _rows(model: mujoco.MjModel, tree: Tree, first: int, other: int, kind: int) -> list[dict]:
    capsule = model.geom_type[first] == _CAPSULE
    node, center, rotation = _placement(model, tree, first)
    axis = rotation[:, 2] * (model.geom_size[first, 1] if capsule else 0.0)
    other_node, other_center, other_rotation = _placement(model, tree, other)
    if node == other_node:
        names = f"{model.geom(first).name!r} and {model.geom(other).name!r}"
        raise UserError(f"geoms {names} do not move against each other; they cannot touch")
    size = model.geom_size[other] * (1, model.geom_type[other] != _SPHERE, 1)
    bodies = model.geom_bodyid[[first, other]]
    friction, margin, solref, solimp = mixing.touch(model, other, first)
    common = {
        "node": node, "axis": axis, "radius": model.geom_size[first, 0],
        "other_node": other_node, "other_center": other_center, "other_rotation": other_rotation,
        "other_size": size, "friction": friction, "margin": margin,
        "weight": model.body_invweight0[bodies, 0].sum() / model.opt.impratio,
        "solref": solref, "solimp": solimp,
    }  # fmt: skip
    ends = (1, -1) if capsule and kind != _CAPSULE else (0,)
    return [{**common, "center": center + end * axis} for end in ends]


def _placement(
    model: mujoco.MjModel, tree: Tree, geom: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Node of a geom, its centre `[3]` and its axes `[3, 3]` in the node's frame."""
    body = model.geom_bodyid[geom]
    rotation = tree.body_rotation[body]
    center = tree.body_position[body] + rotation @ model.geom_pos[geom]
    return tree.body_node[body], center, rotation @ rotation_matrix(model.geom_quat[geom])


def constraint_rows(
    tree: Tree,
    contacts: Sequence[Contacts],
    timestep: float,
    qpos: jax.Array,
    qvel: jax.Array,
    world: dynamics.Poses,
    move: dynamics.Motion,
    slope: jax.Array,
) -> Rows:
    """Builds the rows of all limits and contacts at one state; shapes as in `Rows`."""
    sign, position, velocity = _limits(tree, qpos, qvel)
    reference, stiffness = _soft(
        position, velocity, tree.limit_weight, tree.limit_solref, tree.limit_solimp, timestep
    )
    jacobian, distance = _contact_jacobian(tree, contacts, world, move, slope)
    along = edges(dynamics.matmul(qvel, jacobian))
    weight, solref, solimp = _row_parameters(contacts)
    contact_reference, contact_stiffness = _soft(distance, along, weight, solref, solimp, timestep)
    of_dof = np.equal.outer(tree.limit_dof, np.arange(tree.nv))
    sign, reference, stiffness = dynamics.matmul(jnp.stack([sign, reference, stiffness]), of_dof)
    return Rows(sign, reference, stiffness, jacobian, contact_reference, contact_stiffness)


def _limits(tree: Tree, qpos: jax.Array, qvel: jax.Array) -> tuple[jax.Array, ...]:
    value = qpos[tree.num_free + tree.limit_dof]  # a free joint has one more qpos than dofs
    below, above = value - tree.limit_range[:, 0], tree.limit_range[:, 1] - value
    sign = jnp.where(below < above, 1.0, -1.0)
    return sign, jnp.minimum(below, above) - tree.limit_margin, sign * qvel[tree.limit_dof]


def edges(directions: jax.Array) -> jax.Array:
    """Rows `[4, K]` of the pyramids' edges, from those of the three directions, `[3 K]`."""
    normal, first, second = jnp.split(directions, 3)
    return jnp.stack([normal + first, normal - first, normal + second, normal - second])


def _row_parameters(contacts: Sequence[Contacts]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inverse weights `[K]` of the pyramids' edges, `solref [K, 2]` and `solimp [K, 5]`."""
    weight, friction, solref, solimp = (
        np.concatenate([np.zeros(shape), *(getattr(c, name) for c in contacts)])
        for name, shape in (
            ("weight", 0), ("friction", 0), ("solref", (0, 2)), ("solimp", (0, 5)),
        )
    )  # fmt: skip
    return weight * (1 + friction**2) * 2 * friction**2, solref, solimp


def _contact_jacobian(
    tree: Tree,
    contacts: Sequence[Contacts],
    world: dynamics.Poses,
    move: dynamics.Motion,
    slope: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Returns directions `[nv, 3 K]`, as in `Rows`, and distances less margin `[K]`."""
    if not contacts:
        return jnp.zeros((tree.nv, 0)), jnp.zeros(0)
    parts = [_meet(c, world) for c in contacts]
    normal, point, tangent = (
        jnp.concatenate([part[i] for part in parts], axis=1) for i in range(3)
    )
    distance = jnp.concatenate([part[3] for part in parts])
    friction, margin, node, other = (
        np.concatenate([getattr(c, name) for c in contacts])
        for name in ("friction", "margin", "node", "other_node")
    )
    tangent = tangent * friction[None]
    directions = jnp.concatenate([normal, tangent, dynamics.cross(normal, tangent)], axis=1)
    jacobian = dynamics.force_jacobian(
        tree, move, slope, jnp.tile(point, (1, 3)), directions, np.tile(node, 3), np.tile(other, 3)
    )
    return jacobian, distance - margin


def _meet(contacts: Contacts, world: dynamics.Poses) -> tuple[jax.Array, ...]:
    """Normal, point and first tangent `[3, K]`, and distance `[K]` of each pair.

    The normal leads from the surface to the sphere or capsule.
    """
    c = contacts
    rotation, position = _node_poses(world, c.node)
    center = dynamics.rotate(rotation, c.center) + position
    axis = dynamics.rotate(rotation, c.axis)
    other, position = _node_poses(world, c.other_node)
    surface = dynamics.rotate(other, c.other_center) + position
    turned = dynamics.compose(other, c.other_rotation)
    if c.kind == _PLANE:
        normal = turned[:, 2]
        distance = jnp.sum(normal * (center - surface), axis=0) - c.radius
        tangent = _tangent_along(normal, axis)
    elif c.kind == _CAPSULE:
        on_first, on_other = _closest_points(
            center, axis, surface, turned[:, 2] * c.other_size[1][None]
        )
        normal, distance = _normal_and_distance(on_first - on_other)
        center, distance = on_first, distance - c.radius - c.other_size[0]
        tangent = _tangent(normal)
    else:
        normal, distance = _box_distance(center - surface, turned, c.other_size)
        distance = distance - c.radius
        tangent = _tangent(normal)
    point = center - normal * (c.radius + 0.5 * distance)[None]
    return normal, point, tangent, distance


def _node_poses(world: dynamics.Poses, node: np.ndarray) -> tuple[jax.Array, jax.Array]:
    return dynamics.take(world.rotation, node), dynamics.take(world.position, node)


def _tangent(normal: jax.Array) -> jax.Array:
    """MuJoCo's choice of a direction across `normal [3, K]`: what is left of y, or of z."""
    steep = jnp.abs(normal[1]) >= 0.5
    axis = jnp.stack([jnp.zeros_like(normal[0]), 1.0 - steep, 1.0 * steep])
    rest = axis - normal * jnp.sum(normal * axis, axis=0)[None]
    return rest / jnp.sqrt(jnp.sum(rest * rest, axis=0))[None]


def _tangent_along(normal: jax.Array, axis: jax.Array) -> jax.Array:
    """The direction of a capsule's `axis [3, K]` across the normal, unless it stands upright."""
    length = jnp.sqrt(jnp.maximum(jnp.sum(axis * axis, axis=0), 1e-20))
    flat = (axis - normal * jnp.sum(normal * axis, axis=0)[None]) / length[None]
    share = jnp.sqrt(jnp.maximum(jnp.sum(flat * flat, axis=0), 1e-20))
    return jnp.where((share >= 0.5)[None], flat / share[None], _tangent(normal))


def _closest_points(
    center: jax.Array, axis: jax.Array, other: jax.Array, other_axis: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Closest points `[3, K]` of the segments center +- axis and other +- other_axis."""
    gap = center - other
    a, b = axis, other_axis
    aa, bb, ab, a_gap, b_gap = (
        jnp.sum(x * y, axis=0) for x, y in ((a, a), (b, b), (a, b), (a, gap), (b, gap))
    )
    determinant = aa * bb - ab * ab
    parallel = determinant < 1e-6 * jnp.maximum(aa * bb, 1e-20)
    first = (ab * b_gap - bb * a_gap) / jnp.where(parallel, 1.0, determinant)
    first = jnp.clip(jnp.where(parallel, 0.0, first), -1.0, 1.0)

    def along_other(s):
        return jnp.clip((b_gap + ab * s) / jnp.maximum(bb, 1e-20), -1.0, 1.0)

    second = along_other(first)
    first = jnp.clip((ab * second - a_gap) / jnp.maximum(aa, 1e-20), -1.0, 1.0)
    second = along_other(first)
    return center + axis * first[None], other + other_axis * second[None]


def _normal_and_distance(gap: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Directions and lengths of vectors `[3, K]`; x where there is no length."""
    length = jnp.sqrt(jnp.sum(gap * gap, axis=0))
    none = length < 1e-9
    fallback = np.array([1.0, 0.0, 0.0], np.float32)[:, None]
    return jnp.where(none[None], fallback, gap / jnp.where(none, 1.0, length)[None]), length


def _box_distance(gap: jax.Array, axes: jax.Array, half: np.ndarray) -> tuple[jax.Array, jax.Array]:
    """Normals `[3, K]` and distances `[K]` of points from the surfaces of boxes; inside, negative.

    `gap [3, K]` leads from the box's centre to the point; `axes [3, 3, K]`, `half [3, K]` sizes.
    """
    local = dynamics.rotate_back(axes, gap)
    beyond = local - jnp.clip(local, -half, half)
    outer, distance = _normal_and_distance(beyond)
    depth = half - jnp.abs(local)  # [3, K] to each pair of faces
    nearest = jnp.argmin(depth, axis=0)
    face = (jnp.arange(3)[:, None] == nearest[None]) * jnp.where(local < 0, -1.0, 1.0)
    inside = jnp.all(depth > 0, axis=0)
    normal = jnp.where(inside[None], face, outer)
    distance = jnp.where(inside, -jnp.min(depth, axis=0), distance)
    return dynamics.rotate(axes, normal), distance


def _soft(
    position: jax.Array,
    velocity: jax.Array,
    weight: np.ndarray,
    solref: np.ndarray,
    solimp: np.ndarray,
    timestep: float,
) -> tuple[jax.Array, jax.Array]:
    """Reference accelerations `[..., n]` and stiffness `[n]` of rows (MuJoCo, "Solver parameters").

    Several `velocity [..., n]` may share their `position [n]`. Rows whose position is not below 0
    get stiffness 0: they are not in contact.
    """
    low, high = mujoco.mjMINIMP, mujoco.mjMAXIMP
    d0, d1 = np.clip(solimp[:, 0], low, high), np.clip(solimp[:, 1], low, high)
    width = np.maximum(mujoco.mjMINVAL, solimp[:, 2])
    mid, power = np.clip(solimp[:, 3], low, high), np.maximum(1, solimp[:, 4])
    time = np.maximum(solref[:, 0], 2 * timestep)
    stiff = np.where(solref[:, 0] > 0, 1 / (d1 * time * solref[:, 1]) ** 2, -solref[:, 0] / d1**2)
    damp = np.where(solref[:, 1] > 0, 2 / (d1 * time), -solref[:, 1] / d1)

    x = jnp.minimum(jnp.abs(position) / width, 1.0)
    rising = x**power / mid ** (power - 1)
    settling = 1 - (1 - x) ** power / (1 - mid) ** (power - 1)
    impedance = jnp.where(x < mid, rising, settling) * (d1 - d0) + d0
    shape = velocity.shape
    reference = velocity * np.broadcast_to(-damp, shape)
    reference = reference - jnp.broadcast_to(impedance * stiff * position, shape)
    row = impedance / (weight * jnp.maximum(1 - impedance, mujoco.mjMINVAL))
    return reference, jnp.where(position < 0, row, 0.0)
