"""Jumping with a humanoid of SMPL's skeleton, after SMPLHumanoidJump-v1 of the Qflex paper.

Departures from the original, on purpose:
* The body is ours (`models/smpl_humanoid`): SMPL's 24 joints and 69 servos, other measures, ranges
  and gains. The original's comes from a file for non-commercial use. This one has its head's joint
  at 1.52 m when it stands. `spine3` and `head` are what the original calls Chest and Head.
* Its frames stand upright with x forward in T-pose, so no turn of the root is taken off before
  heading and rotations are observed.
* Velocities are those of the bodies' origins, and belong to the new state.
* Only feet and fingers touch the floor; a fall ends the episode soon after. Parts of the body pass
  through each other.
* A reset draws a little noise around the T-pose, where the original starts from one and the same
  state.

Sources: Qflex (arXiv 2601.19707) and its code, on the reward "jump-2" of humenv.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from mjx_qflex.physics.body import Kinematics, PhysicsState
from mjx_qflex.tasks.options import TaskConfig
from mjx_qflex.tasks.servo_task import ServoTask
from mjx_qflex.tasks.tolerance import tolerance

EPISODE_LENGTH = 300  # actions: 10 s
PHYSICS_STEPS = 15  # of one action
JUMP_HEIGHT = (2.0, 2.1)  # m, where the head shall be
SPEED = 5.0  # m/s upwards
MIN_HEAD_HEIGHT = 0.5  # m
MIN_PELVIS_HEIGHT = 0.2  # m


@dataclass(frozen=True)
class SmplJumpConfig(TaskConfig):
    """`smpl_jump` has no options."""


class SmplJump(ServoTask):
    """Bring the head to 2 m, upright and fast.

    Actions [69] are the servos' targets. Observation [358], in axes that turn with the pelvis'
    heading: its height, the other 23 bodies' positions from it, and of all 24 the two columns x and
    z of their rotation, velocities (m/s) and angular velocities (rad/s). Reward: height * speed *
    upright, as the term `jump` of an upright body and the loss `lean` of one that is not. The
    episode ends when the head is lower than 0.5 m or the pelvis lower than 0.2 m.
    """

    terms = ("jump", "lean")
    factors = ("height", "speed", "upright")

    def __init__(self, config: SmplJumpConfig = SmplJumpConfig()):
        super().__init__(config, "smpl_humanoid", None, EPISODE_LENGTH, PHYSICS_STEPS)
        self._pelvis, self._chest, self._head = (
            self.body.body_index(name) for name in ("pelvis", "spine3", "head")
        )

    @property
    def observation_size(self) -> int:
        return 15 * (len(self.body.body_names) - 1) - 2

    def observe(self, physics: PhysicsState, kinematics: Kinematics) -> jax.Array:
        position, rotation, velocity = (
            x[1:] for x in (kinematics.xpos, kinematics.xmat, kinematics.velocity)
        )  # without the world
        forward = kinematics.xmat[self._pelvis, :2, 0]
        cosine, sine = forward / jnp.linalg.norm(forward)
        from_root = position - position[:1]
        columns = jnp.moveaxis(rotation[:, :, jnp.array([0, 2])], 2, 1)
        spin, velocity = jnp.split(velocity, 2, axis=1)
        return jnp.concatenate(
            [
                position[0, 2:],
                *(
                    jnp.ravel(_turned(vectors, cosine, -sine))
                    for vectors in (from_root[1:], columns, velocity, spin)
                ),
            ]
        )

    def reward_factors(self, kinematics: Kinematics, force: jax.Array) -> dict[str, jax.Array]:
        head, up = kinematics.xpos[self._head, 2], kinematics.xmat[self._chest, 2, 2]
        rising = kinematics.com_velocity[2]
        return {
            "height": tolerance(head, *JUMP_HEIGHT, JUMP_HEIGHT[0], "linear", 0.01),
            "speed": tolerance(rising, SPEED, np.inf, SPEED, "linear", 0.0),
            "upright": tolerance(up, 0.9, np.inf, 1.9, "linear", 0.0),
        }

    def reward_terms(self, factors: dict[str, jax.Array]) -> dict[str, jax.Array]:
        jump = factors["height"] * factors["speed"]
        return {"jump": jump, "lean": (factors["upright"] - 1.0) * jump}

    def is_over(self, physics: PhysicsState, kinematics: Kinematics) -> jax.Array:
        height = kinematics.xpos[:, 2]
        return (height[self._head] < MIN_HEAD_HEIGHT) | (height[self._pelvis] < MIN_PELVIS_HEIGHT)


def _turned(vectors: jax.Array, cosine: jax.Array, sine: jax.Array) -> jax.Array:
    """Turns `vectors [..., 3]` about the vertical by the angle of the given cosine and sine."""
    x, y, z = jnp.moveaxis(vectors, -1, 0)
    return jnp.stack([cosine * x - sine * y, sine * x + cosine * y, z], axis=-1)
