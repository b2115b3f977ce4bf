"""Paths whose length is linear in the joints: of muscles on joints and on fixed tendons."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from mjx_qflex.errors import UserError
from mjx_qflex.physics import dynamics
from mjx_qflex.physics.tree import Tree

_TENDON, _JOINT = int(mujoco.mjtTrn.mjTRN_TENDON), int(mujoco.mjtWrap.mjWRAP_JOINT)


@dataclasses.dataclass(frozen=True)
class LinearPaths:
    """The paths of E muscles over the D source dofs."""

    muscles: np.ndarray  # [E] actuator indices
    arms: np.ndarray  # [E, D] m/rad or 1, gear included; 0 for free joints


def muscles(model: mujoco.MjModel) -> list[int]:
    """Returns the actuators of `model` that are muscles with such paths."""
    is_muscle = model.actuator_gaintype == mujoco.mjtGain.mjGAIN_MUSCLE
    return [a for a in np.flatnonzero(is_muscle).tolist() if _is_linear(model, a)]


def _is_linear(model: mujoco.MjModel, actuator: int) -> bool:
    if model.actuator_trntype[actuator] != _TENDON:
        return True
    return model.wrap_type[model.tendon_adr[model.actuator_trnid[actuator, 0]]] == _JOINT


def from_model(model: mujoco.MjModel, tree: Tree, actuators: Sequence[int]) -> LinearPaths:
    """Collects the paths of the muscles `actuators` of `model`.

    Raises:
      UserError: a muscle on a free joint.
    """
    place = {int(address): d for d, address in enumerate(tree.source_qvel_address)}
    arms = np.zeros((len(actuators), len(place)))
    for row, actuator in zip(arms, actuators, strict=True):
        target = model.actuator_trnid[actuator, 0]
        joints, factors = [target], [1.0]
        if model.actuator_trntype[actuator] == _TENDON:
            first = model.tendon_adr[target]
            path = slice(first, first + model.tendon_num[target])
            joints, factors = model.wrap_objid[path], model.wrap_prm[path]
        for joint, factor in zip(joints, factors, strict=True):
            d = place[int(model.jnt_dofadr[joint])]
            if d < 6 * tree.num_free:
                name = model.actuator(actuator).name
                raise UserError(f"muscle {name!r} pulls on a free joint; put it on a scalar one")
            row[d] += factor * model.actuator_gear[actuator, 0]
    return LinearPaths(np.array(actuators, int), arms)


def evaluate(
    paths: LinearPaths, tree: Tree, joints: dynamics.JointState
) -> tuple[jax.Array, jax.Array]:
    """Returns lengths `[E]` (m, or rad times gear) and lengthening velocities `[E]`."""
    of_scalars = paths.arms[:, 6 * tree.num_free :]
    length = dynamics.matmul(joints.position, of_scalars.T)
    return length, dynamics.matmul(joints.velocity, paths.arms.T)


def generalised_force(
    paths: LinearPaths, tree: Tree, slope: jax.Array, force: jax.Array
) -> jax.Array:
    """Returns generalised forces `[nv]` of muscle forces `[E]` (N, negative pulls)."""
    return dynamics.project(tree, slope, dynamics.matmul(force, jnp.asarray(paths.arms)))
