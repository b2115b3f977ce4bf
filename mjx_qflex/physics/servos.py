"""Motors on joints, MuJoCo's affine actuators: torque motors and position or velocity servos.

force = clip(gain u + offset + stiffness (gear q) + damping (gear q'), limits), times the gear on
the joint (MuJoCo documentation, "Actuation model"); with Euler integration all of it is explicit.
"""

import dataclasses

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from mjx_qflex.errors import UserError
from mjx_qflex.physics import audit, dynamics
from mjx_qflex.physics.muscle import limits
from mjx_qflex.physics.tree import Tree

_COVERED = (
    (
        "a transmission other than a joint",
        "trntype",
        {int(mujoco.mjtTrn.mjTRN_JOINT), int(mujoco.mjtTrn.mjTRN_JOINTINPARENT)},
    ),
    ("an activation", "dyntype", {int(mujoco.mjtDyn.mjDYN_NONE)}),
    ("a gain that is not constant", "gaintype", {int(mujoco.mjtGain.mjGAIN_FIXED)}),
    (
        "a bias that is not affine",
        "biastype",
        {int(mujoco.mjtBias.mjBIAS_NONE), int(mujoco.mjtBias.mjBIAS_AFFINE)},
    ),
)


@dataclasses.dataclass(frozen=True)
class Servos:
    """Parameters of A motors on independent joints, arrays `[A]`."""

    joint: np.ndarray  # place among the independent scalar joints
    gear: np.ndarray
    gain: np.ndarray
    offset: np.ndarray
    stiffness: np.ndarray  # force for each unit of gear q; negative for a position servo
    damping: np.ndarray  # force for each unit of gear q'; negative damps
    control_range: np.ndarray  # [A, 2], infinite where unlimited
    force_range: np.ndarray  # [A, 2], likewise

    @classmethod
    def from_model(cls, model: mujoco.MjModel, tree: Tree) -> "Servos":
        """Reads all actuators of `model` that are no muscles.

        Raises:
          UserError: one of them is no affine motor on an independent joint.
        """
        names = list(tree.joint_names[tree.num_free :])
        motors = np.flatnonzero(model.actuator_gaintype != mujoco.mjtGain.mjGAIN_MUSCLE)
        joint = []
        for a in motors:
            actuator = f"actuator {model.actuator(int(a)).name!r}"
            for what, field, allowed in _COVERED:
                if getattr(model, f"actuator_{field}")[a] not in allowed:
                    raise UserError(f"{actuator} has {what}; give it a motor or servo on a joint")
            name = model.joint(model.actuator_trnid[a, 0]).name
            if name not in names:
                raise UserError(f"{actuator} drives {name!r}, which is no independent scalar joint")
            joint.append(names.index(name))
        affine = model.actuator_biastype[motors] == int(mujoco.mjtBias.mjBIAS_AFFINE)
        bias = np.where(affine[:, None], model.actuator_biasprm[motors, :3], 0.0)
        control = limits(model.actuator_ctrlrange, model.actuator_ctrllimited)[motors]
        if audit.disabled(model, mujoco.mjtDisableBit.mjDSBL_CLAMPCTRL):
            control = limits(control, np.zeros(len(control)))
        return cls(
            joint=np.array(joint, int),
            gear=model.actuator_gear[motors, 0],
            gain=model.actuator_gainprm[motors, 0],
            offset=bias[:, 0],
            stiffness=bias[:, 1],
            damping=bias[:, 2],
            control_range=control,
            force_range=limits(model.actuator_forcerange, model.actuator_forcelimited)[motors],
        )

    def without_force(self) -> "Servos":
        """The same motors, all of them limp."""
        return dataclasses.replace(self, force_range=np.zeros_like(self.force_range))


def force(servos: Servos, ctrl: jax.Array, q: jax.Array, qdot: jax.Array) -> jax.Array:
    """Returns actuator forces `[A]` for scalar joints `q [R]` with velocities `qdot [R]`."""
    s = servos
    position, rate = (s.gear * dynamics.take(x, s.joint) for x in (q, qdot))
    drive = s.gain * jnp.clip(ctrl, *s.control_range.T)
    return jnp.clip(drive + s.offset + s.stiffness * position + s.damping * rate, *s.force_range.T)


def joint_force(servos: Servos, force: jax.Array, num_joints: int) -> jax.Array:
    """Returns generalised forces `[num_joints]` of actuator forces `[A]`."""
    return dynamics.matmul(servos.gear * force, np.equal.outer(servos.joint, np.arange(num_joints)))
