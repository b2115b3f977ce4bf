"""Forward kinematics of a source model in its independent coordinates, with slopes, in float64."""

from collections.abc import Sequence
from typing import NamedTuple

import mujoco
import numpy as np

from mjx_qflex.motions.reference import FREE_SUFFIXES
from mjx_qflex.physics import shapes
from mjx_qflex.physics import tree as trees


class Points(NamedTuple):
    """`P` points that are fixed to bodies of the source model."""

    body: np.ndarray  # [P]
    local: np.ndarray  # [P, 3] m, in the body's frame
    radius: np.ndarray  # [P] m; the point meant is this far below (the end of a capsule)


class Skeleton:
    """A source model whose coupled joints follow; `q [nq]` and `dq [nv]` as in `PortedBody`."""

    def __init__(self, model: mujoco.MjModel, tree: trees.Tree | None = None):
        """Takes the model's `tree` where there is one already."""
        self.model = model
        self.tree = tree or trees.build(model)
        self.free = self.tree.num_free
        self._data = mujoco.MjData(model)
        self._slopes = np.ones(len(self.tree.dof_node))
        home = model.qpos0[self.tree.source_qpos_address[: 7 * self.free]]
        scalars = self.tree.coupling.independent
        self.home = np.concatenate([home, self.tree.joint_home[scalars]])
        self.joint_names = self.tree.joint_names
        ranges = [model.joint(name) for name in self.joint_names[self.free :]]
        self.low, self.high = (
            np.array([j.range[side] if model.jnt_limited[j.id] else endless for j in ranges])
            for side, endless in ((0, -np.inf), (1, np.inf))
        )  # [nq - 7 free] of the scalar joints

    @property
    def nq(self) -> int:
        return self.tree.nq

    @property
    def nv(self) -> int:
        return self.tree.nv

    def qpos_place(self, joint: str) -> int:
        """Place in `q` of a joint, of a free one that of its first number."""
        i = self.joint_names.index(joint)
        return 7 * i if i < self.free else 6 * self.free + i

    def joints_between(self, base: str, end: str) -> np.ndarray:
        """Which scalar joints `[nq - 7 free]` move the body `end`, but not the body `base`."""

        def chain(body: str) -> set[int]:
            above, found = self.model.body(body).id, set()
            while above:
                found.add(above)
                above = self.model.body_parentid[above]
            return found

        own = chain(end) - chain(base)
        joints = [self.model.joint(name) for name in self.joint_names[self.free :]]
        return np.array([joint.bodyid[0] in own for joint in joints])

    def columns(self) -> dict[str, int]:
        """The columns of a motion file in the order of `q`, with their places in it."""
        names = [name + s for name in self.joint_names[: self.free] for s in FREE_SUFFIXES]
        return {name: i for i, name in enumerate([*names, *self.joint_names[self.free :]])}

    def move(self, q: np.ndarray) -> mujoco.MjData:
        """MuJoCo's data with the kinematics of `q [nq]`, couplings satisfied."""
        scalar, slope = trees.source_positions(self.tree, q[None, 7 * self.free :])
        self._slopes[6 * self.free :] = slope[0]
        self._data.qpos[self.tree.source_qpos_address] = np.concatenate(
            [q[: 7 * self.free], scalar[0]]
        )
        mujoco.mj_kinematics(self.model, self._data)
        mujoco.mj_comPos(self.model, self._data)
        return self._data

    def integrate(self, q: np.ndarray, dq: np.ndarray) -> np.ndarray:
        """`q [nq]` moved by `dq [nv]`, of a free joint as MuJoCo's velocities for one second."""
        moved = q.copy()
        for i in range(self.free):
            moved[7 * i : 7 * i + 3] += dq[6 * i : 6 * i + 3]
            mujoco.mju_quatIntegrate(moved[7 * i + 3 : 7 * i + 7], dq[6 * i + 3 : 6 * i + 6], 1.0)
        moved[7 * self.free :] += dq[6 * self.free :]
        return moved

    def positions(self, points: Points) -> np.ndarray:
        """World positions `[P, 3]` after `move`."""
        data = self._data
        rotation = data.xmat[points.body].reshape(-1, 3, 3)
        world = data.xpos[points.body] + np.einsum("pij,pj->pi", rotation, points.local)
        world[:, 2] -= points.radius
        return world

    def slopes(self, points: Points) -> np.ndarray:
        """Slopes `[P, 3, nv]` of `positions`, after `move`."""
        ends = self.positions(points)
        ends[:, 2] += points.radius
        jacobian = np.zeros((len(ends), 3, self.model.nv))
        for row, end, body in zip(jacobian, ends, points.body, strict=True):
            mujoco.mj_jac(self.model, self._data, row, None, end, body)
        return self._reduced(jacobian)

    def centre_of_mass(self) -> tuple[np.ndarray, np.ndarray]:
        """The whole body's centre of mass `[3]` and its slopes `[3, nv]`, after `move`."""
        jacobian = np.zeros((3, self.model.nv))
        mujoco.mj_jacSubtreeCom(self.model, self._data, jacobian, 0)
        return self._data.subtree_com[0].copy(), self._reduced(jacobian)

    def _reduced(self, jacobian: np.ndarray) -> np.ndarray:
        ordered = jacobian[..., self.tree.source_qvel_address]
        return (ordered * self._slopes) @ self.tree.reduce

    def origins(self, bodies: Sequence[str]) -> Points:
        """The origins of bodies."""
        ids = np.array([self.model.body(name).id for name in bodies])
        return Points(ids, np.zeros((len(ids), 3)), np.zeros(len(ids)))

    def capsule_ends(self, geoms: Sequence[str]) -> Points:
        """The lowest points of both ends of capsules: all rear ends, then all front ends."""
        ids = [self.model.geom(name).id for name in geoms]
        ends = shapes.capsule_ends(self.model, ids)
        body, radius = self.model.geom_bodyid[ids], self.model.geom_size[ids, 0]
        return Points(
            np.tile(body, 2), np.concatenate([ends[:, 0], ends[:, 1]]), np.tile(radius, 2)
        )
