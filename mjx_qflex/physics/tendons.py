"""Exact muscle paths: straight pieces between sites, and wraps around spheres and cylinders.

For muscles that no polynomial follows: paths over a dozen joints, or paths that jump over a wrap.
What lies on one rigid piece of the body has a constant length and costs nothing.

A path pulls along straight lines, from each point where it leaves one node to the point where it
meets the next; what a wrap adds between its two points of contact turns no joint. A line with unit
direction u through the point p is the spatial vector w = (p x u, u), the same for all of its
points, so that its ends' nodes with spatial velocities V_i, V_j lengthen it at the rate
w . (V_j - V_i) and tension F in it puts the wrenches F w and -F w on them.

Lengths and moment arms agree with C MuJoCo's `ten_length` and `ten_J` (MuJoCo documentation,
"Tendon wrapping"; tests/test_port_tendons.py).
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from mjx_qflex.physics import dynamics, wrapping
from mjx_qflex.physics.shapes import rotation_matrix
from mjx_qflex.physics.tree import Tree

_SITE, _SPHERE, _PULLEY = (
    int(t)
    for t in (
        mujoco.mjtWrap.mjWRAP_SITE,
        mujoco.mjtWrap.mjWRAP_SPHERE,
        mujoco.mjtWrap.mjWRAP_PULLEY,
    )
)


class Anchors(NamedTuple):
    """K points fixed in nodes."""

    node: np.ndarray  # [K]
    position: np.ndarray  # [3, K] in the node's frame


class Straight(NamedTuple):
    """S straight pieces between points on different nodes."""

    muscle: np.ndarray  # [S] index among the exact muscles
    share: np.ndarray  # [S] how much of the piece counts: the muscle's gear over a pulley's divisor
    start: Anchors
    end: Anchors


class Wraps(NamedTuple):
    """W pieces that may wrap around an obstacle, all of them around the same kind of it."""

    round: bool  # around spheres, else around cylinders
    inside: bool  # the path is held inside the obstacle
    muscle: np.ndarray  # [W]
    share: np.ndarray  # [W]
    start: Anchors
    end: Anchors
    center: Anchors
    rotation: np.ndarray  # [3, 3, W] the obstacle's axes in its node's frame; a cylinder's is z
    radius: np.ndarray  # [W] m
    side: Anchors  # the path passes on this point's side
    has_side: np.ndarray  # [W] bool


@dataclasses.dataclass(frozen=True)
class Tendons:
    """The paths of E muscles that are evaluated exactly."""

    muscles: np.ndarray  # [E] actuator indices
    rigid_length: np.ndarray  # [E] m, of all pieces on one rigid piece of the body
    straight: Straight
    wraps: tuple[Wraps, ...]


class TendonState(NamedTuple):
    """Exact paths at one pose; L straight lines, in the order of `_lines`."""

    length: jax.Array  # [E] m
    line: (
        jax.Array
    )  # [6, L] share of a piece times spatial vectors about the common point of `dynamics.Motion`


def from_model(model: mujoco.MjModel, tree: Tree, muscles: Sequence[int]) -> Tendons:
    """Collects the paths of the actuators `muscles` of `model`, all on spatial tendons."""
    data = mujoco.MjData(model)
    mujoco.mj_kinematics(model, data)
    mujoco.mj_comPos(model, data)
    mujoco.mj_tendon(model, data)
    rigid = np.zeros(len(muscles))
    straight: list[tuple[float, ...]] = []
    wraps: dict[tuple[bool, bool], list[tuple[float, ...]]] = {}
    for m, actuator in enumerate(muscles):
        tendon, gear = model.actuator_trnid[actuator, 0], model.actuator_gear[actuator, 0]
        pieces = _pieces(model, tendon)
        if len({node for _, piece in pieces for node in _nodes(model, tree, piece)}) == 1:
            rigid[m] = gear * data.ten_length[tendon]
            continue
        for divisor, (kind, *objects) in pieces:
            share = gear / divisor
            if kind == _SITE:
                if len(set(_nodes(model, tree, (kind, *objects)))) == 1:
                    rigid[m] += share * np.linalg.norm(np.subtract(*data.site_xpos[objects]))
                else:
                    straight.append((m, share, *objects))
                continue
            _, geom, _, side = objects
            reach = np.linalg.norm(data.site_xpos[side] - data.geom_xpos[geom])
            inside = bool(side >= 0 and reach < model.geom_size[geom, 0])
            wraps.setdefault((kind == _SPHERE, inside), []).append((m, share, *objects))
    muscle, share, start, end = _columns(straight, 4)
    return Tendons(
        muscles=np.array(muscles, int),
        rigid_length=rigid,
        straight=Straight(muscle, share, _sites(model, tree, start), _sites(model, tree, end)),
        wraps=tuple(_wraps(model, tree, *key, rows) for key, rows in sorted(wraps.items())),
    )


def _columns(rows: list[tuple[float, ...]], num: int) -> list[np.ndarray]:
    """The `num` columns of `rows`: whole numbers, but for the second, which is a share."""
    columns = np.reshape(np.array(rows, float), (-1, num)).T
    return [column if i == 1 else column.astype(int) for i, column in enumerate(columns)]


def _pieces(model: mujoco.MjModel, tendon: int) -> list[tuple[float, tuple[int, ...]]]:
    """The pieces along a path, each with the divisor of the pulley before it.

    A piece is (SITE, from, to) or (kind of obstacle, from, geom, to, side site or -1). A pulley
    ends one branch of the path; the next begins behind it.
    """
    first = model.tendon_adr[tendon]
    path = slice(first, first + model.tendon_num[tendon])
    kinds: list[int] = model.wrap_type[path].tolist()
    objects: list[int] = model.wrap_objid[path].tolist()
    pieces, i, divisor = [], 0, 1.0
    while i < len(kinds) - 1:
        if kinds[i] == _PULLEY:
            divisor = float(model.wrap_prm[first + i])
            i += 1
        elif kinds[i + 1] == _PULLEY:
            i += 1
        elif kinds[i + 1] == _SITE:
            pieces.append((divisor, (_SITE, objects[i], objects[i + 1])))
            i += 1
        else:
            side = int(round(model.wrap_prm[first + i + 1]))
            piece = (kinds[i + 1], objects[i], objects[i + 1], objects[i + 2], side)
            pieces.append((divisor, piece))
            i += 2
    return pieces


def _nodes(model: mujoco.MjModel, tree: Tree, piece: tuple[int, ...]) -> list[int]:
    """The nodes that carry a piece's ends, and its obstacle."""
    kind, start, *rest = piece
    bodies = [model.site_bodyid[start]]
    if kind == _SITE:
        bodies.append(model.site_bodyid[rest[0]])
    else:
        bodies += [model.geom_bodyid[rest[0]], model.site_bodyid[rest[1]]]
    return tree.body_node[bodies].tolist()


def _sites(model: mujoco.MjModel, tree: Tree, sites: np.ndarray) -> Anchors:
    return _anchors(tree, model.site_bodyid[sites], model.site_pos[sites])


def _anchors(tree: Tree, body: np.ndarray, position: np.ndarray) -> Anchors:
    turned = np.einsum("kij,kj->ki", tree.body_rotation[body], position)
    return Anchors(tree.body_node[body], (tree.body_position[body] + turned).T.copy())


def _wraps(model: mujoco.MjModel, tree: Tree, is_round: bool, inside: bool, rows: list) -> Wraps:
    muscle, share, start, geom, end, side = _columns(rows, 6)
    body = model.geom_bodyid[geom]
    axes = np.stack([rotation_matrix(quaternion) for quaternion in model.geom_quat[geom]])
    return Wraps(
        round=is_round,
        inside=inside,
        muscle=muscle,
        share=share,
        start=_sites(model, tree, start),
        end=_sites(model, tree, end),
        center=_anchors(tree, body, model.geom_pos[geom]),
        rotation=np.moveaxis(tree.body_rotation[body] @ axes, 0, -1).copy(),
        radius=model.geom_size[geom, 0],
        side=_sites(model, tree, side),
        has_side=side >= 0,
    )


def evaluate(tendons: Tendons, world: dynamics.Poses, origin: jax.Array) -> TendonState:
    """Returns the paths in a placed body; lines are about the common point `origin [3]`."""
    start, end = (
        _place(world, anchors) for anchors in (tendons.straight.start, tendons.straight.end)
    )
    length, direction = wrapping.normalized(end - start)
    lengths, lines = [length], [_line(start - origin[:, None], direction)]
    for wraps in tendons.wraps:
        arc, ends = _wrap(wraps, world)
        for from_point, to_point in ends:
            length, direction = wrapping.normalized(to_point - from_point)
            arc = arc + length
            lines.append(_line(from_point - origin[:, None], direction))
        lengths.append(arc)
    of_muscle, share = (
        np.concatenate([getattr(part, name) for part in (tendons.straight, *tendons.wraps)])
        for name in ("muscle", "share")
    )
    length, line = jnp.concatenate(lengths), jnp.concatenate(lines, axis=1)
    if (share != 1).any():
        length, line = length * share, line * _of_lines(tendons)[None]
    moving = _sum_by_muscle(length, of_muscle, len(tendons.muscles))
    return TendonState(moving + tendons.rigid_length, line)


def _of_lines(tendons: Tendons) -> np.ndarray:
    """The share `[L]` of each line, in the order of `_lines`."""
    both = [share for wraps in tendons.wraps for share in (wraps.share, wraps.share)]
    return np.concatenate([tendons.straight.share, *both])


def velocity(tendons: Tendons, state: TendonState, node_velocity: jax.Array) -> jax.Array:
    """Returns lengthening velocities `[E]` in m/s for spatial node velocities `[6, N]`."""
    muscle, start, end = _lines(tendons)
    moving = jnp.concatenate([node_velocity, jnp.zeros((6, 1))], axis=1)
    relative = moving[:, end] - moving[:, start]
    rate = jnp.sum(state.line * relative, axis=0)
    return _sum_by_muscle(rate, muscle, len(tendons.muscles))


def node_wrenches(
    tendons: Tendons, state: TendonState, force: jax.Array, num_nodes: int
) -> jax.Array:
    """Returns wrenches `[6, N]` on all nodes of muscle forces `[E]` (N, negative pulls)."""
    muscle, start, end = _lines(tendons)
    nodes = np.arange(num_nodes)
    incidence = np.equal.outer(end, nodes).astype(float) - np.equal.outer(start, nodes)
    return dynamics.matmul(state.line * force[muscle][None], incidence)


def _lines(tendons: Tendons) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Muscle, first and last node `[L]` of each line: straight pieces, then both of each wrap."""
    straight = tendons.straight
    parts = [(straight.muscle, straight.start.node, straight.end.node)]
    for wraps in tendons.wraps:
        parts.append((wraps.muscle, wraps.start.node, wraps.center.node))
        parts.append((wraps.muscle, wraps.center.node, wraps.end.node))
    muscle, start, end = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    return muscle, start, end


def _sum_by_muscle(values: jax.Array, muscle: np.ndarray, num: int) -> jax.Array:
    """Sums `values [P]` of pieces over each of `num` muscles, `[num]`."""
    order = np.argsort(muscle, kind="stable")
    count = np.bincount(muscle, minlength=num)
    place = np.full((max(1, count.max(initial=0)), num), len(muscle))
    for m, pieces in enumerate(np.split(order, np.cumsum(count)[:-1])):
        place[: len(pieces), m] = pieces
    padded = jnp.concatenate([values, jnp.zeros(1)])
    return jnp.sum(padded[place], axis=0)


def _place(world: dynamics.Poses, anchors: Anchors) -> jax.Array:
    """World positions `[3, K]` of points fixed in nodes."""
    turned = dynamics.rotate(world.rotation[:, :, anchors.node], anchors.position)
    return turned + world.position[:, anchors.node]


def _line(arm: jax.Array, direction: jax.Array) -> jax.Array:
    return jnp.concatenate([dynamics.cross(arm, direction), direction])


def _wrap(
    wraps: Wraps, world: dynamics.Poses
) -> tuple[jax.Array, tuple[tuple[jax.Array, jax.Array], ...]]:
    """Returns the arcs' lengths `[W]` and, in the world, the ends `[3, W]` of both straight lines.

    Where a path does not touch its obstacle both lines lie on the one that joins its ends.
    """
    start, end, side, center = (
        _place(world, anchors) for anchors in (wraps.start, wraps.end, wraps.side, wraps.center)
    )
    axes = dynamics.compose(world.rotation[:, :, wraps.center.node], wraps.rotation)
    p0, p1, s = (dynamics.rotate_back(axes, point - center) for point in (start, end, side))
    if wraps.round:
        plane = wrapping.plane_through_center(p0, p1)
    else:
        plane = tuple(jnp.eye(3)[k][:, None] for k in range(2))
    flat0, flat1, flat_side = (
        jnp.stack([wrapping.dot(p, axis) for axis in plane]) for p in (p0, p1, s)
    )
    if wraps.inside:
        touch, arc, touch0, touch1 = wrapping.hold_inside(flat0, flat1, wraps.radius)
    else:
        touch, arc, touch0, touch1 = wrapping.wrap_circle(
            flat0, flat1, flat_side, wraps.has_side, wraps.radius
        )
    contact0, contact1 = (t[0][None] * plane[0] + t[1][None] * plane[1] for t in (touch0, touch1))
    if not wraps.round:
        # Unrolled, the path climbs along the axis at one rate.
        before, after = (
            wrapping.normalized(f - t)[0] for f, t in ((flat0, touch0), (flat1, touch1))
        )
        climb = (p1[2] - p0[2]) / jnp.maximum(before + arc + after, wrapping.TINY)
        z0, z1 = p0[2] + climb * before, p0[2] + climb * (before + arc)
        contact0, contact1 = (
            jnp.stack([c[0], c[1], z]) for c, z in ((contact0, z0), (contact1, z1))
        )
        arc = jnp.sqrt(arc * arc + jnp.square(z1 - z0))
    on0, on1 = (dynamics.rotate(axes, contact) + center for contact in (contact0, contact1))
    middle = 0.5 * (start + end)
    on0, on1 = jnp.where(touch[None], on0, middle), jnp.where(touch[None], on1, middle)
    return jnp.where(touch, arc, 0.0), ((start, on0), (on1, end))
