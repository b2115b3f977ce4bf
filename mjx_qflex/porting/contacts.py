"""Soft constraints of a ported body: joint limits and the contacts that a recipe names.

Rows follow MuJoCo's soft-constraint model: impedance and reference acceleration from `solref` and
`solimp`, pyramidal friction cones. Contacts are spheres and capsules against a plane.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from mjx_qflex.errors import UserError
from mjx_qflex.porting import dynamics
from mjx_qflex.porting.tree import Tree, _rotation

_PLANE, _SPHERE, _CAPSULE = (
    int(t)
    for t in (
        mujoco.mjtGeom.mjGEOM_PLANE,
        mujoco.mjtGeom.mjGEOM_SPHERE,
        mujoco.mjtGeom.mjGEOM_CAPSULE,
    )
)


@dataclasses.dataclass(frozen=True)
class FloorContacts:
    """K spheres (a capsule is its two end spheres) that may touch one plane fixed to the world."""

    node: np.ndarray  # [K]
    center: np.ndarray  # [3, K] in the node's frame
    direction: np.ndarray  # [3, K] unit axis of the capsule in the node's frame, 0 for a sphere
    radius: np.ndarray  # [K]
    normal: np.ndarray  # [3] of the plane
    height: float  # of the plane along its normal
    friction: np.ndarray  # [K]
    margin: np.ndarray  # [K]
    weight: np.ndarray  # [K] inverse weight of the bodies' translation
    solref: np.ndarray  # [K, 2]
    solimp: np.ndarray  # [K, 5]


class Rows(NamedTuple):
    """Inequality rows of the constraint solver: force = -stiffness * min(J a - reference, 0)."""

    limit_sign: jax.Array  # [nv] +1 at the lower limit, -1 at the upper, 0 without limits
    limit_reference: jax.Array  # [nv] reference acceleration
    limit_stiffness: jax.Array  # [nv] 0 where no limit is reached
    contact_jacobian: jax.Array  # [nv, 4 K] transposed: its products are faster so on a CPU
    contact_reference: jax.Array  # [4 K]
    contact_stiffness: jax.Array  # [4 K]


def floor_contacts(
    model: mujoco.MjModel, tree: Tree, floor: str | None, geoms: list[str]
) -> FloorContacts:
    """Collects the named geoms' contacts with the plane called `floor`.

    Raises:
      UserError: a geom is not in the model, or is neither sphere nor capsule, or the floor is no
        plane of the world.
    """
    known = {model.geom(g).name: g for g in range(model.ngeom)}
    for name in [*geoms, *([floor] if floor else [])]:
        if name not in known:
            raise UserError(f"the recipe names geom {name!r}, which the model does not have")
    rows = []
    plane = known[floor] if floor else -1
    normal, height = np.array([0.0, 0.0, 1.0]), 0.0
    if floor:
        if model.geom_type[plane] != _PLANE or model.geom_bodyid[plane] != 0:
            raise UserError(f"geom {floor!r} must be a plane of the world to serve as the floor")
        normal = _rotation(model.geom_quat[plane])[:, 2]
        height = float(normal @ model.geom_pos[plane])
    for name in geoms:
        rows += _end_spheres(model, tree, known[name], plane)
    columns = list(zip(*rows, strict=True)) if rows else [[] for _ in range(9)]
    node, center, direction, radius, friction, margin, weight, solref, solimp = columns
    return FloorContacts(
        node=np.array(node, int),
        center=np.reshape(np.array(center, float), (-1, 3)).T.copy(),
        direction=np.reshape(np.array(direction, float), (-1, 3)).T.copy(),
        radius=np.array(radius, float),
        normal=normal,
        height=height,
        friction=np.array(friction, float),
        margin=np.array(margin, float),
        weight=np.array(weight, float),
        solref=np.reshape(np.array(solref, float), (-1, 2)),
        solimp=np.reshape(np.array(solimp, float), (-1, 5)),
    )


def _end_spheres(model: mujoco.MjModel, tree: Tree, geom: int, plane: int) -> list[tuple]:
    kind = model.geom_type[geom]
    if kind not in (_SPHERE, _CAPSULE):
        raise UserError(
            f"geom {model.geom(geom).name!r} is no sphere and no capsule; contacts need one"
        )
    body = model.geom_bodyid[geom]
    rotation = tree.body_rotation[body]
    center = tree.body_position[body] + rotation @ model.geom_pos[geom]
    axis = rotation @ _rotation(model.geom_quat[geom])[:, 2]
    half = model.geom_size[geom, 1] if kind == _CAPSULE else 0.0
    direction = axis if kind == _CAPSULE else np.zeros(3)
    solref, solimp, friction, margin = _mixed(model, plane, geom)
    weight = model.body_invweight0[body, 0]
    common = (friction, margin, weight, solref, solimp)
    ends = (half, -half) if kind == _CAPSULE else (0.0,)
    radius = model.geom_size[geom, 0]
    return [(tree.body_node[body], center + end * axis, direction, radius, *common) for end in ends]


def _mixed(model: mujoco.MjModel, a: int, b: int) -> tuple:
    """Contact parameters of two geoms by MuJoCo's rules (priority, else weighted mix)."""
    higher = model.geom_priority[a] - model.geom_priority[b]
    margin = model.geom_margin[a] + model.geom_margin[b]
    if higher:
        g = a if higher > 0 else b
        return model.geom_solref[g], model.geom_solimp[g], model.geom_friction[g, 0], margin
    weight_a, weight_b = model.geom_solmix[a], model.geom_solmix[b]
    share = weight_a / (weight_a + weight_b) if weight_a + weight_b > 0 else 0.5
    solref = share * model.geom_solref[a] + (1 - share) * model.geom_solref[b]
    solimp = share * model.geom_solimp[a] + (1 - share) * model.geom_solimp[b]
    friction = max(model.geom_friction[a, 0], model.geom_friction[b, 0])
    return solref, solimp, friction, margin


def constraint_rows(
    tree: Tree,
    floor: FloorContacts,
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
    jacobian, distance, weight = _floor_jacobian(tree, floor, world, move, slope)
    along = dynamics.matmul(qvel, jacobian)
    solref, solimp = np.tile(floor.solref, (4, 1)), np.tile(floor.solimp, (4, 1))
    contact_reference, contact_stiffness = _soft(distance, along, weight, solref, solimp, timestep)
    of_dof = np.equal.outer(tree.limit_dof, np.arange(tree.nv))
    sign, reference, stiffness = dynamics.matmul(jnp.stack([sign, reference, stiffness]), of_dof)
    return Rows(sign, reference, stiffness, jacobian, contact_reference, contact_stiffness)


def _limits(tree: Tree, qpos: jax.Array, qvel: jax.Array) -> tuple[jax.Array, ...]:
    value = qpos[tree.num_free + tree.limit_dof]  # a free joint has one more qpos than dofs
    below, above = value - tree.limit_range[:, 0], tree.limit_range[:, 1] - value
    sign = jnp.where(below < above, 1.0, -1.0)
    return sign, jnp.minimum(below, above) - tree.limit_margin, sign * qvel[tree.limit_dof]


def _floor_jacobian(
    tree: Tree,
    floor: FloorContacts,
    world: dynamics.Poses,
    move: dynamics.Motion,
    slope: jax.Array,
) -> tuple[jax.Array, jax.Array, np.ndarray]:
    """Returns the pyramid's edges `[nv, 4 K]`, distances less margin and weights `[4 K]`."""
    rotation = dynamics.take(world.rotation, floor.node)
    position = dynamics.take(world.position, floor.node)
    center = sum(rotation[:, k] * floor.center[None, k] for k in range(3)) + position
    direction = sum(rotation[:, k] * floor.direction[None, k] for k in range(3))
    normal = floor.normal.astype(np.float32)
    distance = jnp.sum(normal[:, None] * center, axis=0) - floor.height - floor.radius
    point = center - normal[:, None] * (floor.radius + 0.5 * distance)[None]

    flat = direction - normal[:, None] * jnp.sum(normal[:, None] * direction, axis=0)[None]
    length = jnp.sqrt(jnp.sum(flat * flat, axis=0))
    default = np.array([0.0, 1.0, 0.0]) if abs(normal[1]) < 0.5 else np.array([0.0, 0.0, 1.0])
    default = default - normal * (normal @ default)
    default = default / np.linalg.norm(default)
    lies = length >= 0.5
    tangent = jnp.where(lies[None], flat / jnp.where(lies, length, 1.0)[None], default[:, None])
    across = dynamics.cross(jnp.broadcast_to(normal[:, None], tangent.shape), tangent)
    sides = jnp.concatenate([tangent, -tangent, across, -across], axis=1)
    edges = sides * np.tile(floor.friction, 4)[None] + normal[:, None]
    points, nodes = jnp.tile(point, (1, 4)), np.tile(floor.node, 4)
    jacobian = dynamics.force_jacobian(tree, move, slope, points, edges, nodes)
    square = floor.friction**2
    weight = floor.weight * (1 + square) * 2 * square
    return jacobian, jnp.tile(distance - floor.margin, 4), np.tile(weight, 4)


def _soft(
    position: jax.Array,
    velocity: jax.Array,
    weight: np.ndarray,
    solref: np.ndarray,
    solimp: np.ndarray,
    timestep: float,
) -> tuple[jax.Array, jax.Array]:
    """Reference acceleration and stiffness of rows (MuJoCo, "Solver parameters").

    Rows whose `position` is not below 0 get stiffness 0: they are not in contact.
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
    reference = velocity * -damp - impedance * stiff * position
    row = impedance / (weight * jnp.maximum(1 - impedance, mujoco.mjMINVAL))
    return reference, jnp.where(position < 0, row, 0.0)
