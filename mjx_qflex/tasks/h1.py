"""Running and balancing with the Unitree H1, after HumanoidBench (arXiv 2403.10506).

Departures from the original, on purpose:
* The robot is the Menagerie's, with HumanoidBench's servos and range of the hips' pitch: its feet
  weigh 0.45 kg instead of 0.55.
* Contacts are those of `models/unitree_h1*/recipe.toml`: feet on the floor, or feet on the board
  and the board on the ball, with capsules under the feet instead of their meshes. In `h1_run` other
  parts sink into the floor, until the episode ends at a pelvis height of 0.2 m as the original's.
  In both tasks parts of the robot pass through each other.
* `h1_balance` finds what touches floor and ball by the distances of the robot's spheres and
  capsules and of the board's corners; the torso's box and the hips' cylinders are left out.
* Actuator forces belong to the new state; MuJoCo's are one physics step old.

Head height is that of a point on the torso, 0.7 m above the origin of `torso_link`, where the
original has its site `head`. Names of factors are the original's.
"""

from dataclasses import dataclass
from typing import cast

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from mjx_qflex.physics import shapes
from mjx_qflex.physics.body import Kinematics, PhysicsState
from mjx_qflex.tasks.options import TaskConfig
from mjx_qflex.tasks.servo_task import ServoTask
from mjx_qflex.tasks.tolerance import tolerance

EPISODE_LENGTH = 1000  # actions: 20 s
PHYSICS_STEPS = 10  # of one action
HEAD = 0.7  # m above the torso's origin, along the torso's axis
HEAD_HEIGHT = 1.65  # m, of a standing robot's head
HEAD_MARGIN = HEAD_HEIGHT / 4
BOARD_HEIGHT = 0.37  # m, of the board's middle on the ball
RUNNING_SPEED = 5.0  # m/s
POSE = (0.0, 0.0, -0.4, 0.8, -0.4) * 2 + (0.0,) * 9  # rad, joints of the keyframe
RUN_KEYFRAME = (0.0, 0.0, 0.98, 1.0, 0.0, 0.0, 0.0, *POSE)
BOARD_POSE = (0.0, 0.0, BOARD_HEIGHT, 1.0, 0.0, 0.0, 0.0)
BALANCE_KEYFRAME = (-0.1, 0.0, 1.38, 1.0, 0.0, 0.0, 0.0, *POSE, *BOARD_POSE)


@dataclass(frozen=True)
class H1RunConfig(TaskConfig):
    """`h1_run` has no options."""


@dataclass(frozen=True)
class H1BalanceConfig(TaskConfig):
    """`h1_balance` has no options."""


class _H1Task(ServoTask):
    """What both tasks share: their observation, and the factors of a good posture."""

    def __init__(
        self, config: H1RunConfig | H1BalanceConfig, body: str, keyframe: tuple[float, ...]
    ):
        super().__init__(config, body, keyframe, EPISODE_LENGTH, PHYSICS_STEPS)
        model, tree = self.body.source_model(), self.body.tree
        self._qpos_order = np.argsort(tree.source_qpos_address)
        self._qvel_order = np.argsort(tree.source_qvel_address)
        self._root = cast(slice, self.body.qpos_index("pelvis"))
        self._torso = self.body.body_index("torso_link")
        self._robot = np.flatnonzero(model.body_rootid == model.body("pelvis").id)
        self._mass = model.body_mass[self._robot].astype(np.float32)
        self._centre = model.body_ipos[self._robot].astype(np.float32)

    @property
    def observation_size(self) -> int:
        return self.body.nq + self.body.nv

    def observe(self, physics: PhysicsState, kinematics: Kinematics) -> jax.Array:
        """MuJoCo's qpos and qvel."""
        return jnp.concatenate([physics.qpos[self._qpos_order], physics.qvel[self._qvel_order]])

    def _posture(
        self, kinematics: Kinematics, force: jax.Array, head_height: float
    ) -> dict[str, jax.Array]:
        """The factors that both tasks have."""
        up = kinematics.xmat[self._torso, 2, 2]
        head = kinematics.xpos[self._torso, 2] + HEAD * up
        small = tolerance(force, margin=10.0, sigmoid="quadratic", value_at_margin=0.0)
        return {
            "small_control": (4.0 + jnp.mean(small)) / 5.0,
            "standing": tolerance(head, head_height, np.inf, HEAD_MARGIN),
            "upright": tolerance(up, 0.9, np.inf, 1.9, "linear", 0.0),
        }

    def robot_velocity(self, kinematics: Kinematics) -> jax.Array:
        """Velocity `[3]` of the robot's centre of mass (m/s), without what it stands on."""
        spin, velocity = jnp.split(kinematics.velocity[self._robot], 2, axis=1)
        arm = jnp.sum(kinematics.xmat[self._robot] * self._centre[:, None, :], axis=2)
        moved = velocity + jnp.cross(spin, arm)
        return jnp.sum(self._mass[:, None] * moved, axis=0) / self._mass.sum()


class H1Run(_H1Task):
    """Run forward (+x) at 5 m/s or more.

    Actions [19] are joint targets; observation [51]: qpos and qvel. Reward: small_control *
    standing * upright * (1 + 5 speed) / 6, whose part without speed is the term `standing`. The
    episode ends when the pelvis is lower than 0.2 m.
    """

    terms = ("standing", "moving")
    factors = ("small_control", "standing", "upright", "speed")

    def __init__(self, config: H1RunConfig = H1RunConfig()):
        super().__init__(config, "unitree_h1", RUN_KEYFRAME)

    def reward_factors(self, kinematics: Kinematics, force: jax.Array) -> dict[str, jax.Array]:
        forward = self.robot_velocity(kinematics)[0]
        speed = tolerance(forward, RUNNING_SPEED, np.inf, RUNNING_SPEED, "linear", 0.0)
        return {**self._posture(kinematics, force, HEAD_HEIGHT), "speed": speed}

    def reward_terms(self, factors: dict[str, jax.Array]) -> dict[str, jax.Array]:
        stand = factors["small_control"] * factors["standing"] * factors["upright"]
        return {"standing": stand / 6.0, "moving": stand * factors["speed"] * (5.0 / 6.0)}

    def is_over(self, physics: PhysicsState, kinematics: Kinematics) -> jax.Array:
        return physics.qpos[self._root][2] < 0.2


class H1Balance(_H1Task):
    """Stand on a board that lies on a ball.

    Actions [19] are joint targets; observation [64]: qpos and qvel, the board's last. Reward:
    small_control * standing * upright * dont_move, as the term `balance` without regard to forces,
    and the loss `effort` through them. The episode ends when the pelvis is lower than 0.8 m, when
    the board or the robot touches the floor, or the robot the ball.
    """

    terms = ("balance", "effort")
    factors = ("small_control", "standing", "upright", "dont_move")

    def __init__(self, config: H1BalanceConfig = H1BalanceConfig()):
        super().__init__(config, "unitree_h1_board", BALANCE_KEYFRAME)
        model = self.body.source_model()
        self._board = self.body.body_index("board")
        self._board_half = model.geom("board").size.astype(np.float32)
        self._ball = model.geom("ball").pos.astype(np.float32)[None]
        self._ball_radius = float(model.geom("ball").size[0])
        kinds = [int(mujoco.mjtGeom.mjGEOM_SPHERE), int(mujoco.mjtGeom.mjGEOM_CAPSULE)]
        solid = np.isin(model.geom_type, kinds) & (model.geom_contype > 0)
        geoms = np.flatnonzero(solid & np.isin(model.geom_bodyid, self._robot))
        self._geom_body = model.geom_bodyid[geoms]
        self._ends = shapes.capsule_ends(model, geoms).astype(np.float32)  # [G, 2, 3]
        self._radius = model.geom_size[geoms, 0].astype(np.float32)

    def reward_factors(self, kinematics: Kinematics, force: jax.Array) -> dict[str, jax.Array]:
        still = jnp.mean(tolerance(self.robot_velocity(kinematics)[:2], margin=2.0))
        posture = self._posture(kinematics, force, HEAD_HEIGHT + BOARD_HEIGHT)
        return {**posture, "dont_move": still}

    def reward_terms(self, factors: dict[str, jax.Array]) -> dict[str, jax.Array]:
        balance = factors["standing"] * factors["upright"] * factors["dont_move"]
        return {"balance": balance, "effort": (factors["small_control"] - 1.0) * balance}

    def is_over(self, physics: PhysicsState, kinematics: Kinematics) -> jax.Array:
        rotation = kinematics.xmat[self._geom_body][:, None]
        ends = kinematics.xpos[self._geom_body][:, None] + jnp.sum(
            rotation * self._ends[:, :, None, :], axis=3
        )
        on_floor = jnp.any(ends[:, :, 2] < self._radius[:, None])
        on_ball = jnp.any(
            _distance(self._ball, ends[:, 0], ends[:, 1]) < self._radius + self._ball_radius
        )
        slope = jnp.abs(kinematics.xmat[self._board, 2])
        board_down = kinematics.xpos[self._board, 2] < jnp.sum(slope * self._board_half)
        low = physics.qpos[self._root][2] < 0.8
        return low | on_floor | on_ball | board_down


def _distance(point: np.ndarray, start: jax.Array, end: jax.Array) -> jax.Array:
    """Distances `[G]` from `point [1, 3]` to the segments from `start` to `end` `[G, 3]`."""
    along = end - start
    squared = jnp.sum(along * along, axis=1)
    share = jnp.sum((point - start) * along, axis=1) / jnp.where(squared > 0, squared, 1.0)
    nearest = start + jnp.clip(share, 0.0, 1.0)[:, None] * along
    return jnp.linalg.norm(point - nearest, axis=1)
