"""Running and balancing with the Unitree H1, after HumanoidBench (arXiv 2403.10506).

Departures from the original, on purpose:
* The robot is the Menagerie's: its feet weigh 0.45 kg instead of 0.55, its hips pitch within +-1.57
  rad instead of [-3.14, 2.53], and so do their servos' targets.
* Contacts are those of `models/unitree_h1*/recipe.toml`: feet on the floor, or feet on the board and
  the board on the ball, with capsules under the feet instead of their meshes. In `h1_run` other
  parts fall through the floor; the episode ends soon after, as the original's does at a pelvis height of
  0.2 m.
* `h1_balance` finds what touches floor and ball by the distances of the robot's spheres and
  capsules and of the board's corners; the torso's box and the hips' cylinders are left out.
* Actuator forces belong to the new state; MuJoCo's are one physics step old.

Head height is that of a point on the torso, 0.7 m above the origin of `torso_link`, where the
original has its site `head`. Names of factors are the original's.
"""  # noqa: E501

from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from brax.envs.base import Env, State

from mjx_qflex import porting
from mjx_qflex.porting import Kinematics, PhysicsState
from mjx_qflex.tasks.tolerance import tolerance

EPISODE_LENGTH = 1000  # actions: 20 s
PHYSICS_STEPS = 10  # of one action
RESET_NOISE = 0.01  # m, rad: half width of the uniform noise on every coordinate
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
class H1RunConfig:
    """Options of `h1_run`."""

    body: str = "unitree_h1"


@dataclass(frozen=True)
class H1BalanceConfig:
    """Options of `h1_balance`."""

    body: str = "unitree_h1_board"


class H1State(NamedTuple):
    """All that evolves."""

    physics: PhysicsState
    steps: jax.Array  # [] int32, actions since reset


class _H1Task(Env):
    """What both tasks share: the robot under position control, its start and its observation."""

    terms: tuple[str, ...]  # of the reward
    factors: tuple[str, ...]

    def __init__(self, config: H1RunConfig | H1BalanceConfig, keyframe: tuple[float, ...]):
        self.config = config
        self.body = porting.load(config.body)
        self.episode_length = EPISODE_LENGTH
        self.control_dt = PHYSICS_STEPS * self.body.timestep
        self.compiler_options = self.body.compiler_options
        self._physics_steps = PHYSICS_STEPS
        model, tree = self.body.source_model(), self.body.tree
        self._key = np.array(keyframe, np.float32)[tree.source_qpos_address]
        self._qpos_order = np.argsort(tree.source_qpos_address)
        self._qvel_order = np.argsort(tree.source_qvel_address)
        self._low, self._high = model.actuator_ctrlrange.astype(np.float32).T
        self._root = cast(slice, self.body.qpos_index("pelvis"))
        self._torso = self.body.body_index("torso_link")
        pelvis = model.body("pelvis").id
        self._robot = np.flatnonzero(model.body_rootid == pelvis)
        self._mass = model.body_mass[self._robot].astype(np.float32)
        self._centre = model.body_ipos[self._robot].astype(np.float32)

    @property
    def observation_size(self) -> int:
        return self.body.nq + self.body.nv

    @property
    def action_size(self) -> int:
        return self.body.nu

    @property
    def backend(self) -> str:
        return "mjx"

    def reset(self, rng: jax.Array) -> State:
        """Returns the keyframe with a little noise on every coordinate, at rest."""
        noise = jax.random.uniform(rng, self._key.shape, minval=-RESET_NOISE, maxval=RESET_NOISE)
        qpos = self._key + noise
        for i in range(self.body.tree.num_free):
            at = slice(7 * i + 3, 7 * i + 7)
            qpos = qpos.at[at].set(qpos[at] / jnp.linalg.norm(qpos[at]))
        physics = self.body.initial_state()._replace(qpos=qpos)
        robot = H1State(physics, jnp.zeros((), jnp.int32))
        zero = jnp.zeros(())
        metrics = {f"reward/{name}": zero for name in self.terms}
        metrics |= {f"factor/{name}": zero for name in self.factors}
        # brax annotates pipeline_state as a state of its own pipelines.
        return State(
            cast(Any, robot), self._observe(robot), zero, zero, metrics, {"truncation": zero}
        )

    def step(self, state: State, action: jax.Array) -> State:
        """Moves the servos' targets to `action` [19] in [-1, 1] of their ranges for 20 ms."""
        old = cast(H1State, state.pipeline_state)
        ctrl = self.targets(action)
        physics, _ = self.body.advance(old.physics, ctrl, self._physics_steps)
        robot = H1State(physics, old.steps + 1)
        kinematics = self.body.kinematics(physics)
        factors = self.reward_factors(kinematics, self.body.servo_force(physics, ctrl))
        terms = self.reward_terms(factors)
        ended = self.is_over(physics, kinematics)
        timed_out = robot.steps >= self.episode_length
        metrics = {f"reward/{name}": value for name, value in terms.items()}
        metrics |= {f"factor/{name}": value for name, value in factors.items()}
        return state.replace(
            pipeline_state=robot,
            obs=self._observe(robot),
            reward=sum(terms.values(), start=jnp.zeros(())),
            done=ended.astype(jnp.float32),
            metrics={**state.metrics, **metrics},
            info={**state.info, "truncation": (timed_out & ~ended).astype(jnp.float32)},
        )

    def targets(self, action: jax.Array) -> jax.Array:
        """Joint angles `[19]` (rad) that an action asks for: -1 and 1 are the joints' limits."""
        share = 0.5 * (jnp.clip(action, -1.0, 1.0) + 1.0)
        return self._low + share * (self._high - self._low)

    def reward_factors(self, kinematics: Kinematics, force: jax.Array) -> dict[str, jax.Array]:
        """The factors of the reward, each `[]`, from poses and motor forces `[19]` (N m)."""
        raise NotImplementedError

    def reward_terms(self, factors: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """The reward, a product, as a sum of terms, each `[]`."""
        raise NotImplementedError

    def is_over(self, physics: PhysicsState, kinematics: Kinematics) -> jax.Array:
        """Whether the robot has failed (`[]` bool)."""
        raise NotImplementedError

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

    def render_qpos(self, robot: H1State) -> tuple[np.ndarray, np.ndarray]:
        """Returns the source model's qpos, and an activation of 0 for each motor."""
        return self.body.source_qpos(robot.physics.qpos), np.zeros(self.action_size)

    def source_model(self) -> mujoco.MjModel:
        return self.body.source_model()

    def _observe(self, robot: H1State) -> jax.Array:
        physics = robot.physics
        return jnp.concatenate([physics.qpos[self._qpos_order], physics.qvel[self._qvel_order]])


class H1Run(_H1Task):
    """Run forward (+x) at 5 m/s or more.

    Actions [19] are joint targets; observation [51]: qpos and qvel. Reward: small_control *
    standing * upright * (1 + 5 speed) / 6, whose part without speed is the term `standing`. The
    episode ends when the pelvis is lower than 0.2 m.
    """

    terms = ("standing", "moving")
    factors = ("small_control", "standing", "upright", "speed")

    def __init__(self, config: H1RunConfig = H1RunConfig()):
        super().__init__(config, RUN_KEYFRAME)

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
        super().__init__(config, BALANCE_KEYFRAME)
        model = self.body.source_model()
        self._board = self.body.body_index("board")
        self._board_half = model.geom("board").size.astype(np.float32)
        self._ball = model.geom("ball").pos.astype(np.float32)[None]
        self._ball_radius = float(model.geom("ball").size[0])
        kinds = (mujoco.mjtGeom.mjGEOM_SPHERE, mujoco.mjtGeom.mjGEOM_CAPSULE)
        solid = np.isin(model.geom_type, kinds) & (model.geom_contype > 0)
        geoms = np.flatnonzero(solid & np.isin(model.geom_bodyid, self._robot))
        self._geom_body = model.geom_bodyid[geoms]
        axis = np.zeros((len(geoms), 9))
        for row, geom in zip(axis, geoms, strict=True):
            mujoco.mju_quat2Mat(row, model.geom_quat[geom])
        capsule = model.geom_type[geoms] == mujoco.mjtGeom.mjGEOM_CAPSULE
        half = np.where(capsule, model.geom_size[geoms, 1], 0.0)[:, None] * axis[:, 2::3]
        ends = np.stack([model.geom_pos[geoms] - half, model.geom_pos[geoms] + half], axis=1)
        self._ends = ends.astype(np.float32)  # [G, 2, 3] of the robot's spheres and capsules
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
