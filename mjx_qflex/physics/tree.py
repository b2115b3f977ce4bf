"""A MuJoCo model as constant arrays of a kinematic tree, with its joint couplings eliminated.

Every joint is one *node* of the tree (a free joint is one node with six degrees of freedom), bodies
without joints are lumped into the node that carries them, and each coupled joint is expressed by
the independent joint that drives it; its own limits leave with it. What sums over ancestors or
descendants becomes a product with a constant 0/1 matrix, so that no step of the dynamics walks
down the tree body by body.

Arrays put the tree's axis last (`[6, D]`), which keeps batched elementwise work contiguous.
"""

import dataclasses

import mujoco
import numpy as np

from mjx_qflex.errors import UserError
from mjx_qflex.physics import audit
from mjx_qflex.physics.shapes import rotation_matrix

FREE, BALL, SLIDE, HINGE = (int(t) for t in mujoco.mjtJoint.__members__.values())
_DISABLE = mujoco.mjtDisableBit
_ON_JOINTS = (int(mujoco.mjtTrn.mjTRN_JOINT), int(mujoco.mjtTrn.mjTRN_JOINTINPARENT))


@dataclasses.dataclass(frozen=True)
class Coupling:
    """The source joints `x` as functions of the independent ones, one row for each scalar joint.

    `x[i] - x0[i] = polynomial(coefficients[i])(x[driver[i]] - x0[driver[i]])`; an independent joint
    drives itself by the identity, and `depth` applications resolve the longest chain.
    """

    coefficients: np.ndarray  # [J, 5], from the constant to the fourth power
    driver: np.ndarray  # [J] index of the driving joint among the scalar joints
    depth: int
    independent: np.ndarray  # [R] which of the J scalar joints are independent
    source: np.ndarray  # [J] which independent joint (0..R-1) each follows in the end


@dataclasses.dataclass(frozen=True)
class Tree:
    """The constants of a body's dynamics; N nodes, D source dofs, R reduced dofs, B bodies."""

    # Joint coordinates. Free joints come first in qpos and qvel, then the scalar joints.
    num_free: int
    coupling: Coupling
    joint_home: np.ndarray  # [J] value of each scalar joint in the model's reference pose
    joint_names: tuple[str, ...]  # the independent ones: free joints, then scalar joints
    source_qpos_address: np.ndarray  # [7F + J] place of (free, scalar) coordinates in source qpos
    source_qvel_address: np.ndarray  # [6F + J] likewise in source qvel
    # Nodes: local transform = base + sin(q) * sine + (1 - cos(q)) * versine + q * slide.
    parent: np.ndarray  # [N], N itself stands for the world
    base: np.ndarray  # [12, N] rotation (row-major 9) and translation
    sine: np.ndarray  # [12, N]
    versine: np.ndarray  # [12, N]
    slide: np.ndarray  # [12, N]
    depth: int
    # Degrees of freedom of the source model.
    dof_node: np.ndarray  # [D]
    dof_axis: np.ndarray  # [3, D] in the node's frame (world frame for a free joint's translation)
    dof_anchor: np.ndarray  # [3, D] in the node's frame
    dof_rotates: np.ndarray  # [D] bool
    dof_in_world: np.ndarray  # [D] bool, axis fixed in the world
    moves: np.ndarray  # [D, N] 1 where the dof moves the node
    reduce: np.ndarray  # [D, R] 1 where the source dof follows the reduced one
    armature: np.ndarray  # [D] kg m^2 or kg
    damping: np.ndarray  # [D]
    damping_growth: np.ndarray  # [D, 2] what |q'| and |q'|^2 add to the damping
    stiffness: np.ndarray  # [D] springs of scalar joints; 0 for free joints
    stiffness_growth: np.ndarray  # [D, 2] what the stretch and its square add to the stiffness
    spring_home: np.ndarray  # [D]
    # Inertia, lumped on nodes, in the node's frame: mass, first moment, second moment about origin.
    mass: np.ndarray  # [N]
    first_moment: np.ndarray  # [3, N] mass times centre of mass
    second_moment: np.ndarray  # [3, 3, N] rotational inertia about the node's origin
    gravity: np.ndarray  # [3]
    implicit_damping: bool  # in Euler's step
    # Bodies of the source model, rigidly attached to nodes.
    body_names: tuple[str, ...]
    body_node: np.ndarray  # [B]
    body_rotation: np.ndarray  # [B, 3, 3] in the node's frame
    body_position: np.ndarray  # [B, 3]
    # Limits of the independent scalar joints.
    limit_dof: np.ndarray  # [L] reduced dof
    limit_range: np.ndarray  # [L, 2]
    limit_margin: np.ndarray  # [L]
    limit_weight: np.ndarray  # [L] inverse weight of the row
    limit_solref: np.ndarray  # [L, 2]
    limit_solimp: np.ndarray  # [L, 5]
    actuator_range: np.ndarray  # [R, 2] of all actuators' force together; infinite: no limit

    @property
    def is_coupled(self) -> bool:
        """Whether some source dofs follow others; else each is an independent one, in order."""
        return len(self.dof_node) > self.nv

    @property
    def num_nodes(self) -> int:
        return len(self.parent)

    @property
    def nq(self) -> int:
        return 7 * self.num_free + len(self.coupling.independent)

    @property
    def nv(self) -> int:
        return 6 * self.num_free + len(self.coupling.independent)


def build(model: mujoco.MjModel) -> Tree:
    """Extracts the tree of `model`, eliminating its joint couplings.

    Raises:
      UserError: the model has something that a port does not cover (`audit.check`), couplings that
        contradict each other or leave no joint free, or a range of actuator force that they hide.
    """
    audit.check(model)
    joints = _ordered_joints(model)
    scalar = [j for j in joints if model.jnt_type[j] != FREE]
    num_free = len(joints) - len(scalar)
    coupling = _coupling(model, scalar)
    nodes = _nodes(model, joints)
    dofs = _dofs(model, joints)
    num_nodes, num_dofs = len(joints), len(dofs["dof_node"])

    ancestor_or_self = np.zeros((num_nodes, num_nodes))
    depth = 1
    for node, parent in enumerate(nodes["parent"]):
        ancestor_or_self[node, node] = 1
        if parent < num_nodes:
            ancestor_or_self[:, node] += ancestor_or_self[:, parent]
        depth = max(depth, int(ancestor_or_self[:, node].sum()))

    num_reduced = 6 * num_free + len(coupling.independent)
    reduce = np.zeros((num_dofs, num_reduced))
    reduce[: 6 * num_free, : 6 * num_free] = np.eye(6 * num_free)
    reduce[6 * num_free + np.arange(len(scalar)), 6 * num_free + coupling.source] = 1

    names = [model.joint(j).name for j in joints]
    independent = [names[num_free + i] for i in coupling.independent]
    return Tree(
        num_free=num_free,
        coupling=coupling,
        joint_home=model.qpos0[model.jnt_qposadr[scalar]],
        joint_names=tuple(names[:num_free] + independent),
        source_qpos_address=_addresses(model.jnt_qposadr, joints, num_free, 7),
        source_qvel_address=_addresses(model.jnt_dofadr, joints, num_free, 6),
        depth=depth,
        moves=ancestor_or_self[dofs["dof_node"]],
        reduce=reduce,
        gravity=model.opt.gravity * (not audit.disabled(model, _DISABLE.mjDSBL_GRAVITY)),
        implicit_damping=not audit.disabled(model, _DISABLE.mjDSBL_EULERDAMP),
        body_names=tuple(model.body(b).name for b in range(model.nbody)),
        **nodes,
        **dofs,
        **_limits(model, scalar, coupling, num_free),
        actuator_range=_actuator_range(model, scalar, coupling, num_free),
    )


def source_positions(tree: Tree, q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns all scalar joints `[S, J]` of independent ones `[S, R]`, with slopes, in float64."""
    coupling, home = tree.coupling, tree.joint_home
    value = q[:, coupling.source] - home[coupling.independent][coupling.source]
    result = value, np.ones_like(value)
    free = np.isin(np.arange(len(coupling.driver)), coupling.independent)
    for _ in range(coupling.depth):
        x, dx = result[0][:, coupling.driver], result[1][:, coupling.driver]
        powers = np.stack([x**n for n in range(5)])
        y = np.einsum("nsj,jn->sj", powers, coupling.coefficients)
        slope = np.einsum("nsj,jn->sj", powers[:4], coupling.coefficients[:, 1:] * np.arange(1, 5))
        result = np.where(free, value, y), np.where(free, 1.0, slope * dx)
    return result[0] + home, result[1]


def _ordered_joints(model: mujoco.MjModel) -> list[int]:
    """Returns the joints, free ones first; parents stay before children, as MuJoCo orders them."""
    joints = range(model.njnt)
    free = [j for j in joints if model.jnt_type[j] == FREE]
    return free + [j for j in joints if model.jnt_type[j] != FREE]


def _addresses(address: np.ndarray, joints: list[int], num_free: int, width: int) -> np.ndarray:
    free = [address[j] + np.arange(width) for j in joints[:num_free]]
    return np.concatenate([*free, address[joints[num_free:]]]).astype(int)


def _coupling(model: mujoco.MjModel, scalar: list[int]) -> Coupling:
    place = {j: i for i, j in enumerate(scalar)}
    coefficients = np.tile([0.0, 1.0, 0.0, 0.0, 0.0], (len(scalar), 1))
    driver = np.arange(len(scalar))
    dependent = set()
    for e in audit.active_equalities(model):
        joint, other = model.eq_obj1id[e], model.eq_obj2id[e]
        i = place[joint]
        if i in dependent:
            raise UserError(
                f"joint {model.joint(joint).name!r} is coupled twice; keep one coupling"
            )
        dependent.add(i)
        coefficients[i] = model.eq_data[e, :5]
        if other >= 0:
            driver[i] = place[other]
        else:  # held at a constant: any driver does, with all powers but the constant removed
            coefficients[i, 1:] = 0
    free_standing = [i for i in range(len(scalar)) if i not in dependent]
    if dependent and not free_standing:
        raise UserError(
            "every joint is coupled; a body to port needs a hinge or slide that is not ([joints] "
            "lock holds joints, too)"
        )
    for i in dependent:
        if driver[i] == i:
            driver[i] = free_standing[0]

    resolved, depth = driver.copy(), 1
    while any(r in dependent for r in resolved):
        resolved, depth = driver[resolved], depth + 1
        if depth > len(scalar):
            raise UserError("the joint couplings form a cycle; take one of them out of the model")
    independent = np.array(free_standing, int)
    return Coupling(
        coefficients, driver, depth, independent, np.searchsorted(independent, resolved)
    )


def _nodes(model: mujoco.MjModel, joints: list[int]) -> dict[str, np.ndarray]:
    """Chains bodies and joints into nodes and lumps the bodies' inertia on them."""
    node_of_joint = {j: n for n, j in enumerate(joints)}
    num = len(joints)
    world = num
    parent = np.full(num, world)
    base, sine, versine, slide = (np.zeros((num, 12)) for _ in range(4))
    mass, first, second = np.zeros(num), np.zeros((num, 3)), np.zeros((num, 3, 3))
    body_node = np.full(model.nbody, world)
    body_rotation = np.tile(np.eye(3), (model.nbody, 1, 1))
    body_position = np.zeros((model.nbody, 3))

    for body in range(1, model.nbody):
        above = model.body_parentid[body]
        node = body_node[above]
        rotation = body_rotation[above] @ rotation_matrix(model.body_quat[body])
        position = body_position[above] + body_rotation[above] @ model.body_pos[body]
        start = model.body_jntadr[body]
        for joint in range(start, start + model.body_jntnum[body]):
            below = node_of_joint[joint]
            parent[below] = node
            if model.jnt_type[joint] == FREE:
                rotation, position = np.eye(3), np.zeros(3)
            _joint_motion(model, joint, rotation, position, below, base, sine, versine, slide)
            node, rotation, position = below, np.eye(3), np.zeros(3)
        body_node[body], body_rotation[body], body_position[body] = node, rotation, position
        if node < num:
            _lump(model, body, node, rotation, position, mass, first, second)

    return dict(
        parent=parent,
        base=base.T.copy(),
        sine=sine.T.copy(),
        versine=versine.T.copy(),
        slide=slide.T.copy(),
        mass=mass,
        first_moment=first.T.copy(),
        second_moment=np.moveaxis(second, 0, -1).copy(),
        body_node=body_node,
        body_rotation=body_rotation,
        body_position=body_position,
    )


def _joint_motion(model, joint, rotation, position, node, base, sine, versine, slide) -> None:
    """Writes the node's transform; Rodrigues' formula makes it linear in sin and 1 - cos."""
    axis, anchor = model.jnt_axis[joint], model.jnt_pos[joint]
    base[node] = np.concatenate([rotation.ravel(), position])
    if model.jnt_type[joint] == HINGE:
        cross = np.cross(np.eye(3), axis)  # the matrix of "axis x"
        for target, turn in ((sine, cross), (versine, cross @ cross)):
            target[node, :9] = (rotation @ turn).ravel()
            target[node, 9:] = -rotation @ turn @ anchor
    elif model.jnt_type[joint] == SLIDE:
        slide[node, 9:] = rotation @ axis


def _lump(model, body, node, rotation, position, mass, first, second) -> None:
    weight = model.body_mass[body]
    centre = position + rotation @ model.body_ipos[body]
    principal = rotation @ rotation_matrix(model.body_iquat[body])
    inertia = principal @ np.diag(model.body_inertia[body]) @ principal.T
    mass[node] += weight
    first[node] += weight * centre
    second[node] += inertia + weight * (centre @ centre * np.eye(3) - np.outer(centre, centre))


def _dofs(model: mujoco.MjModel, joints: list[int]) -> dict[str, np.ndarray]:
    node, axis, anchor, rotates, in_world, address, home = [], [], [], [], [], [], []
    for n, j in enumerate(joints):
        if model.jnt_type[j] == FREE:
            node += [n] * 6
            axis += [*np.eye(3), *np.eye(3)]
            anchor += [np.zeros(3)] * 6
            rotates += [False] * 3 + [True] * 3
            in_world += [True] * 3 + [False] * 3
            address += list(model.jnt_dofadr[j] + np.arange(6))
            home += [0.0] * 6
        else:
            node.append(n)
            axis.append(model.jnt_axis[j])
            anchor.append(model.jnt_pos[j])
            rotates.append(model.jnt_type[j] == HINGE)
            in_world.append(False)
            address.append(model.jnt_dofadr[j])
            home.append(model.qpos_spring[model.jnt_qposadr[j]])
    return dict(
        dof_node=np.array(node),
        dof_axis=np.array(axis, float).T.copy(),
        dof_anchor=np.array(anchor, float).T.copy(),
        dof_rotates=np.array(rotates),
        dof_in_world=np.array(in_world),
        **{name: values[address] for name, values in _resistance(model).items()},
        spring_home=np.array(home, float),
    )


def _resistance(model: mujoco.MjModel) -> dict[str, np.ndarray]:
    """Armature, damping and springs of all dofs of the model, its actuators' own included."""
    joint = model.dof_jntid
    scalar = model.jnt_type[joint] != FREE
    found = {
        "armature": model.dof_armature.copy(),
        "damping": model.dof_damping.copy(),
        "damping_growth": model.dof_dampingpoly.copy(),
        "stiffness": model.jnt_stiffness[joint] * scalar,
        "stiffness_growth": model.jnt_stiffnesspoly[joint] * scalar[:, None],
    }
    for actuator in np.flatnonzero(np.isin(model.actuator_trntype, _ON_JOINTS)):
        dof = model.jnt_dofadr[model.actuator_trnid[actuator, 0]]
        square = model.actuator_gear[actuator, 0] ** 2
        found["armature"][dof] += square * model.actuator_armature[actuator]
        found["damping"][dof] += square * model.actuator_damping[actuator]
        found["damping_growth"][dof] += square * model.actuator_dampingpoly[actuator]
    for flag, part in ((_DISABLE.mjDSBL_DAMPER, "damping"), (_DISABLE.mjDSBL_SPRING, "stiffness")):
        if audit.disabled(model, flag):
            for name in (part, f"{part}_growth"):
                found[name] = np.zeros_like(found[name])
    return found


def _limits(model, scalar, coupling: Coupling, num_free: int) -> dict[str, np.ndarray]:
    rows = [(r, scalar[i]) for r, i in enumerate(coupling.independent)]
    rows = [(r, j) for r, j in rows if model.jnt_limited[j] and audit.limits_act(model)]
    joints = [j for _, j in rows]
    return dict(
        limit_dof=np.array([6 * num_free + r for r, _ in rows], int),
        limit_range=model.jnt_range[joints],
        limit_margin=model.jnt_margin[joints],
        limit_weight=model.dof_invweight0[model.jnt_dofadr[joints]],
        limit_solref=model.jnt_solref[joints],
        limit_solimp=model.jnt_solimp[joints],
    )


def _actuator_range(model, scalar, coupling: Coupling, num_free: int) -> np.ndarray:
    followers = np.bincount(coupling.source, minlength=len(coupling.independent))
    result = np.tile([-np.inf, np.inf], (6 * num_free + len(coupling.independent), 1))
    for i, joint in enumerate(scalar):
        if not model.jnt_actfrclimited[joint]:
            continue
        place = coupling.source[i]
        if followers[place] > 1:
            raise UserError(
                f"joint {model.joint(joint).name!r} is coupled and has an actuatorfrcrange, which "
                "a ported body cannot have; give its actuators a forcerange"
            )
        result[6 * num_free + place] = model.jnt_actfrcrange[joint]
    return result
