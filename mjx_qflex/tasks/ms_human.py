"""Walking with a full-body musculoskeletal model, after the walking task of the Qflex paper.

The paper's body is MS-Human-700. Ours, `ms_human`, is built on MyoFullBody and divided into as many
actuators; this is what stands for what:

| MS-Human-700 | here |
|---|---|
| 85 joint coordinates, 6 of them the pelvis' | 31 independent joints and a free root (7 numbers, 6 velocities); coupled joints follow and are not observed |
| 37 joints of the pose term: legs 14, torso 9, arms 14 | the 31 independent joints: legs 14, torso 3, arms 14 |
| pelvis translations tx (forward), ty (up), tz | root translation: forward is -y, up +z, the right side -x |
| pelvis tilt, list, rotation | angles of the root's rotation about world x (lateral), then y (along), then z |
| height of body `pelvis` at least 0.6 m | the same; 0.945 m when this body stands, about 0.91 m when it walks |
| height of body `sternum` at least 1 m | site `chest` of body `torso`, on the breastbone; 1.28 m when this body stands |
| v, mass-weighted mean velocity | velocity of the whole body's centre of mass |

Departures from the original, on purpose:
* Muscle lengths, velocities, forces and body positions belong to the new state; MuJoCo's are one
  physics step old. `qacc` is that of the last physics step, and zero right after a reset.
* `paper` compares a state with the reference of its own time; `code`, like the official code, with
  the reference of one action earlier.
* The paper weighs the norm of actuator forces without naming a unit. Here they are in kN, as
  observed, over the number of actuators, as the official code divides its activations.
* An episode has 300 actions in both sets (6 s); the official code notices the limit one later.

Sources: Qflex (arXiv 2601.19707) Eq. 32 and Table 3 for `paper`; the authors' released code for
`code`, which also ends an episode at the time limit and observes a phase without its random offset.
"""  # noqa: E501

from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from brax.envs.base import Env, State

from mjx_qflex import motions, porting, resources
from mjx_qflex.lookup import unknown_name
from mjx_qflex.porting import Kinematics, Muscles, PhysicsState
from mjx_qflex.tasks import action_maps
from mjx_qflex.tasks.action_maps import ActionMap, excitation

EPISODE_LENGTH = 300  # actions: 6 s
PHYSICS_STEPS = 10  # of one action
WALKING_SPEED = 1.25  # m/s
MIN_PELVIS_HEIGHT = 0.6  # m
MIN_STERNUM_HEIGHT = 1.0  # m
MAX_TILT = 0.4  # rad, of each of the three angles of the root
MAX_DEVIATION = 3.0  # norm of target minus qpos
FORCE_SCALE = 1e-3  # N -> kN
CLIP = 100.0  # of observed muscle forces (kN) and velocities (m/s)


class RewardSet(NamedTuple):
    """Weights of the reward terms, and what the paper and the code do differently."""

    qpos: float
    qvel: float
    actuation: float
    velocity: float
    healthy: float
    as_code: bool


REWARD_SETS = {
    "paper": RewardSet(50.0, 0.1, 50.0, 5.0, 100.0, as_code=False),
    "code": RewardSet(50.0, 0.1, 1.0, 5.0, 100.0, as_code=True),
}


@dataclass(frozen=True)
class MsHumanWalkConfig:
    """Options of `ms_human_walk`.

    `reward_set` "paper" follows the paper's text, "code" the authors' code in all of reward, time
    limit and phase observation. `action_map` is how actions become excitations: see
    `action_maps.excitation`.
    """

    body: str = "ms_human"
    num_actuators: int = 700
    reward_set: str = "paper"
    motion: str = "human_walk"
    action_map: ActionMap = "linear"


class WalkState(NamedTuple):
    """All that evolves."""

    physics: PhysicsState
    offset: jax.Array  # [] s, time within the reference at reset
    steps: jax.Array  # [] int32, actions since reset


class MsHumanWalk(Env):
    """Follow a reference gait at 1.25 m/s with every muscle under the policy's control.

    Actions in [-1, 1] are excitations from none to full (`excitation`). Observation: qpos, qvel,
    qacc; activation, force, length and velocity of every muscle; time, phase; position of pelvis
    and sternum; target minus qpos.
    """

    def __init__(self, config: MsHumanWalkConfig = MsHumanWalkConfig()):
        if config.reward_set not in REWARD_SETS:
            raise unknown_name("reward set of ms_human_walk", config.reward_set, REWARD_SETS)
        action_maps.check("ms_human_walk", config.action_map)
        self.config = config
        self.rewards = REWARD_SETS[config.reward_set]
        self.body = porting.load(config.body, num_actuators=config.num_actuators)
        folder = resources.data_folder("assets") / "motions"
        self.reference = motions.load(folder / f"{config.motion}.csv", self.body.joint_names)
        self.episode_length = EPISODE_LENGTH
        self.control_dt = PHYSICS_STEPS * self.body.timestep
        self.compiler_options = self.body.compiler_options
        self.idle_action = np.full(self.action_size, -1.0, np.float32)
        self.heading = (0.0, -1.0)  # forward in the world, for the camera
        self._root = self.body.qpos_index("root")
        self._joints = np.array([self.body.qpos_index(name) for name in self.body.joint_names[1:]])
        self._pelvis = self.body.body_index("pelvis")
        self._torso = self.body.body_index("torso")
        self._sternum_in_torso = self.body.source_model().site("chest").pos.astype(np.float32)

    @property
    def observation_size(self) -> int:
        body = self.body
        return 2 * body.nq + 2 * body.nv + 4 * body.nu + 8

    @property
    def action_size(self) -> int:
        return self.body.nu

    @property
    def backend(self) -> str:
        return "mjx"

    def reset(self, rng: jax.Array) -> State:
        """Returns a state on the reference at a random phase, all muscles inactive."""
        offset = jax.random.uniform(rng, ()) * self.reference.period
        physics = self.body.initial_state()._replace(
            qpos=self.reference.qpos(offset), qvel=self.reference.qvel(offset)
        )
        walk = WalkState(physics, offset, jnp.zeros((), jnp.int32))
        kinematics, muscles = self.body.kinematics(physics), self.body.muscles(physics)
        obs = self._observe(walk, jnp.zeros(self.body.nv), kinematics, muscles, physics.qpos)
        zero = jnp.zeros(())
        terms = ("qpos", "qvel", "actuation", "velocity", "healthy")
        metrics = {f"reward/{term}": zero for term in terms} | {"outside_range": muscles.outside}
        # brax annotates pipeline_state as a state of its own pipelines.
        return State(cast(Any, walk), obs, zero, zero, metrics, {"truncation": zero})

    def step(self, state: State, action: jax.Array) -> State:
        """Excites the muscles by `action` [A] in [-1, 1] for 20 ms."""
        old = cast(WalkState, state.pipeline_state)
        ctrl = excitation(action, self.config.action_map)
        physics, qacc = self.body.advance(old.physics, ctrl, PHYSICS_STEPS)
        walk = WalkState(physics, old.offset, old.steps + 1)
        kinematics, muscles = self.body.kinematics(physics), self.body.muscles(physics)
        compared = old.physics.time if self.rewards.as_code else physics.time
        target = self.reference.qpos(old.offset + compared)
        target_qvel = self.reference.qvel(old.offset + compared)
        healthy = self.is_healthy(physics, kinematics, target)
        terms = self.reward_terms(physics, kinematics, muscles, target, target_qvel, healthy)
        timed_out = walk.steps >= self.episode_length
        ended = ~healthy | timed_out if self.rewards.as_code else ~healthy
        metrics = {f"reward/{name}": value for name, value in terms.items()}
        return state.replace(
            pipeline_state=walk,
            obs=self._observe(walk, qacc, kinematics, muscles, target),
            reward=sum(terms.values(), start=jnp.zeros(())),
            done=ended.astype(jnp.float32),
            metrics={**state.metrics, **metrics, "outside_range": muscles.outside},
            info={**state.info, "truncation": (timed_out & ~ended).astype(jnp.float32)},
        )

    def reward_terms(
        self,
        physics: PhysicsState,
        kinematics: Kinematics,
        muscles: Muscles,
        target: jax.Array,
        target_qvel: jax.Array,
        healthy: jax.Array,
    ) -> dict[str, jax.Array]:
        """The weighted terms of Eq. 32, each `[]`; they sum to the reward."""
        weight, nu = self.rewards, self.body.nu
        qvel_error = jnp.sum((target_qvel - physics.qvel) ** 2)
        if weight.as_code:
            qvel_error = jnp.sqrt(qvel_error)
            effort = jnp.linalg.norm(physics.act) / nu
        else:
            effort = jnp.linalg.norm(FORCE_SCALE * muscles.force) / nu
        lateral, forward = kinematics.com_velocity[0], -kinematics.com_velocity[1]
        return {
            "qpos": -weight.qpos * jnp.sum((target - physics.qpos)[self._joints] ** 2),
            "qvel": -weight.qvel * qvel_error,
            "actuation": -weight.actuation * effort,
            "velocity": -weight.velocity * (lateral**2 + (WALKING_SPEED - forward) ** 2),
            "healthy": weight.healthy * healthy.astype(jnp.float32),
        }

    def is_healthy(
        self, physics: PhysicsState, kinematics: Kinematics, target: jax.Array
    ) -> jax.Array:
        """Whether the body is upright and near its reference (`[]` bool)."""
        angles = root_angles(physics.qpos[self._root][3:])
        return (
            (kinematics.xpos[self._pelvis, 2] >= MIN_PELVIS_HEIGHT)
            & (self._sternum(kinematics)[2] >= MIN_STERNUM_HEIGHT)
            & jnp.all(jnp.abs(angles) <= MAX_TILT)
            & (jnp.linalg.norm(target - physics.qpos) <= MAX_DEVIATION)
        )

    def render_qpos(self, walk: WalkState) -> tuple[np.ndarray, np.ndarray]:
        """Returns the source model's qpos, and the activation of each of its muscles."""
        return self.body.source_qpos(walk.physics.qpos), np.asarray(walk.physics.act)

    def source_model(self) -> mujoco.MjModel:
        return self.body.source_model()

    def _sternum(self, kinematics: Kinematics) -> jax.Array:
        """Position `[3]` of the breastbone."""
        turned = jnp.sum(kinematics.xmat[self._torso] * self._sternum_in_torso[None], axis=1)
        return kinematics.xpos[self._torso] + turned

    def _observe(
        self,
        walk: WalkState,
        qacc: jax.Array,
        kinematics: Kinematics,
        muscles: Muscles,
        target: jax.Array,
    ) -> jax.Array:
        physics = walk.physics
        time = physics.time if self.rewards.as_code else physics.time + walk.offset
        return jnp.concatenate(
            [
                physics.qpos,
                physics.qvel,
                qacc,
                physics.act,
                jnp.clip(FORCE_SCALE * muscles.force, -CLIP, CLIP),
                muscles.length,
                jnp.clip(muscles.velocity, -CLIP, CLIP),
                physics.time[None],
                jnp.mod(time / self.reference.period, 1.0)[None],
                kinematics.xpos[self._pelvis],
                self._sternum(kinematics),
                target - physics.qpos,
            ]
        )


def root_angles(quaternion: jax.Array) -> jax.Array:
    """Tilt, list and rotation `[3]` (rad) of `quaternion [4]`: about x, then y, then z."""
    w, x, y, z = quaternion
    return jnp.stack(
        [
            jnp.arctan2(2.0 * (w * x - y * z), 1.0 - 2.0 * (x * x + y * y)),
            jnp.arcsin(jnp.clip(2.0 * (x * z + w * y), -1.0, 1.0)),
            jnp.arctan2(2.0 * (w * z - x * y), 1.0 - 2.0 * (y * y + z * z)),
        ]
    )
