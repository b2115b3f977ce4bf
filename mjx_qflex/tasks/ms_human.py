"""Walking, running and dancing with a full-body musculoskeletal model, after the Qflex paper.

The paper's body is MS-Human-700. Ours, `ms_human`, is built on MyoFullBody and divided into as many
actuators; `body=` also takes `myo_full_body` (its 416 muscles, fingers free) and `ms_human_700`
(the paper's own; `motions/anatomy.py` has what they call their parts). What stands for what:

| MS-Human-700 | `ms_human` |
|---|---|
| 85 joint coordinates, 6 of them the pelvis' | 31 independent joints and a free root (7 numbers, 6 velocities); coupled joints follow and are not observed |
| 37 joints of the pose term: legs 14, torso 9, arms 14 | the 31 independent joints: legs 14, torso 3, arms 14; of any body all that do not place the root |
| pelvis translations tx (forward), ty (up), tz | root translation: forward is -y, up +z, the right side -x |
| pelvis tilt, list, rotation | the pelvis' rotation from its rest: about the lateral axis, then the forward one, then up |
| height of body `pelvis` at least 0.6 m | the same; 0.945 m when this body stands, about 0.91 m when it walks |
| height of body `sternum` at least 1 m | site `chest` of body `torso`, on the breastbone; 1.28 m when this body stands |
| v, mass-weighted mean velocity | velocity of the whole body's centre of mass |

Departures from the original, on purpose:
* Muscle lengths, velocities, forces and body positions belong to the new state; MuJoCo's are one
  physics step old. `qacc` is that of the last physics step, and zero right after a reset.
* `paper` compares a state with the reference of its own time; `code`, like the official code, with
  the reference of one action earlier. The code covers walking only.
* The paper weighs the norm of actuator forces without naming a unit. Here they are in kN, as
  observed, over the number of actuators, as the official code divides its activations.
* An episode has 300 actions in both sets (6 s); the official code notices the limit one later.
* `start_activation="reference"`, not the default: see `MsHumanWalkConfig`.

What the paper leaves open about running (Eq. 33) and dancing (Eq. 34), and what is done here:
* Its motions are CMU's 02/03 and 05/09. Ours are made by scripts in `assets/motions/`: a run at
  3 m/s, whose speed no term of Eq. 33 rewards, and a dance on one foot. `motion=` takes others.
* r_qpos is that of walking: the joints, not the root. Time limit, reset and observation, too.
* r_xpos is the sum of squared distances (m^2) in the world of six bodies, pelvis, chest, hands and
  heels, from where they are in the reference. Being in the world it also holds the dance to its
  place and its turns, of which r_qpos knows nothing.
* A dance turns. Its health takes tilt and list relative to the pelvis' own heading and leaves the
  heading free; walking and running end, as in the official code, when the body turns by 0.4 rad.
* A free root's quaternion may have either sign; "target minus qpos" takes the nearer one.

Sources: Qflex (arXiv 2601.19707) Eq. 32 to 34 and Table 3 for `paper`; the authors' released code
for `code`, which also ends an episode at the time limit and observes a phase without its random
offset.
"""  # noqa: E501

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, cast, get_args

import jax
import jax.numpy as jnp
import numpy as np
from brax.envs.base import State

from mjx_qflex import motions, porting
from mjx_qflex.lookup import unknown_name
from mjx_qflex.motions import activations, anatomy
from mjx_qflex.physics.body import Kinematics, Muscles, PhysicsState
from mjx_qflex.physics.dynamics import matmul
from mjx_qflex.tasks import action_maps
from mjx_qflex.tasks.action_maps import ActionMap, excitation
from mjx_qflex.tasks.body_task import BodyTask
from mjx_qflex.tasks.options import TaskConfig

EPISODE_LENGTH = 300  # actions: 6 s
PHYSICS_STEPS = 10  # of one action
WALKING_SPEED = 1.25  # m/s
MIN_PELVIS_HEIGHT = 0.6  # m
MIN_STERNUM_HEIGHT = 1.0  # m
MAX_TILT = 0.4  # rad, of each of the three angles of the root
MAX_DEVIATION = 3.0  # norm of target minus qpos
FORCE_SCALE = 1e-3  # N -> kN
StartActivation = Literal["zero", "reference"]
CLIP = 100.0  # of observed muscle forces (kN) and velocities (m/s)


class RewardSet(NamedTuple):
    """Weights of the reward terms (0: not computed), and what paper and code do differently."""

    qpos: float
    qvel: float = 0.0
    actuation: float = 0.0
    velocity: float = 0.0
    xpos: float = 0.0
    healthy: float = 100.0
    as_code: bool = False

    def terms(self) -> tuple[str, ...]:
        return tuple(name for name in self._fields if name != "as_code" and getattr(self, name))


WALK_REWARDS = {
    "paper": RewardSet(50.0, qvel=0.1, actuation=50.0, velocity=5.0),
    "code": RewardSet(50.0, qvel=0.1, actuation=1.0, velocity=5.0, as_code=True),
}
RUN_REWARDS = {"paper": RewardSet(10.0)}
DANCE_REWARDS = {"paper": RewardSet(5.0, xpos=100.0)}


@dataclass(frozen=True)
class MsHumanWalkConfig(TaskConfig):
    """Options of the family; `ms_human_run` and `ms_human_dance` have other defaults.

    `body` is one of `anatomy.ANATOMIES`; `num_actuators` None: as many as its recipe says.
    `motion` is the name of a shipped reference or the path of a user's file (`motions.of_body`).
    `reward_set` "paper" follows the paper's text, "code" the authors' code in all of reward, time
    limit and phase observation. `action_map` is how actions become excitations: see
    `action_maps.excitation`.

    `start_activation` "zero" starts all muscles at rest, as the original does. "reference" departs
    from it: muscles start with the activations that hold the reference at the episode's phase
    (`motions.activations`). A state of a walking body includes its muscles, and passive tension
    alone throws a resting body over within 0.13 s.
    """

    body: str = "ms_human"
    num_actuators: int | None = None
    reward_set: str = "paper"
    motion: str = "human_walk"
    action_map: ActionMap = "linear"
    start_activation: StartActivation = "zero"


@dataclass(frozen=True)
class MsHumanRunConfig(MsHumanWalkConfig):
    """Options of `ms_human_run`."""

    motion: str = "human_run"


@dataclass(frozen=True)
class MsHumanDanceConfig(MsHumanWalkConfig):
    """Options of `ms_human_dance`."""

    motion: str = "human_dance"


class WalkState(NamedTuple):
    """All that evolves."""

    physics: PhysicsState
    offset: jax.Array  # [] s, time within the reference at reset
    steps: jax.Array  # [] int32, actions since reset


class Target(NamedTuple):
    """The reference at one time."""

    qpos: jax.Array  # [nq], quaternions signed as the state's
    qvel: jax.Array  # [nv]
    xpos: jax.Array  # [6, 3] of the key bodies; empty where no term asks for them


class MsHumanWalk(BodyTask):
    """Follow a reference gait at 1.25 m/s with every muscle under the policy's control.

    Actions in [-1, 1] are excitations from none to full (`excitation`). Observation: qpos, qvel,
    qacc; activation, force, length and velocity of every muscle; time, phase; position of pelvis
    and sternum; target minus qpos.
    """

    task_name: ClassVar[str] = "ms_human_walk"
    reward_sets: ClassVar[dict[str, RewardSet]] = WALK_REWARDS
    free_heading: ClassVar[bool] = False  # health leaves the heading alone

    def __init__(self, config: MsHumanWalkConfig | None = None):
        config = config or MsHumanWalkConfig()
        if config.reward_set not in self.reward_sets:
            raise unknown_name(
                f"reward set of {self.task_name}", config.reward_set, self.reward_sets
            )
        action_maps.check(self.task_name, config.action_map)
        if config.start_activation not in get_args(StartActivation):
            raise unknown_name(
                f"start activation of {self.task_name}",
                config.start_activation,
                get_args(StartActivation),
            )
        names = anatomy.of(config.body)
        body = porting.load(config.body, num_actuators=config.num_actuators)
        super().__init__(config, body, EPISODE_LENGTH, PHYSICS_STEPS)
        self.rewards = self.reward_sets[config.reward_set]
        self.reference = motions.of_body(config.motion, self.body)
        self._start_activations = (
            activations.of_body(config.motion, self.body)
            if config.start_activation == "reference"
            else None
        )
        self.heading = names.forward  # in the world, for the camera
        forward, up = np.array([*names.forward, 0.0]), np.array([0.0, 0.0, 1.0])
        self._axes = np.stack([np.cross(up, forward), -forward, up]).astype(np.float32)
        self._joints = np.array(
            [self.body.qpos_index(name) for name in self.body.joint_names if name not in names.root]
        )
        self._pelvis = self.body.body_index(names.pelvis)
        self._chest = self.body.body_index(names.chest)
        source = self.body.source_model()
        site = np.zeros(3) if names.sternum is None else source.site(names.sternum).pos
        self._sternum_in_chest = site.astype(np.float32)
        rest = jax.jit(self.body.kinematics)(self.body.initial_state())
        self._pelvis_at_rest = np.asarray(rest.xmat[self._pelvis])
        self._key_bodies = np.array([self.body.body_index(n) for n in names.key_bodies()])
        self._landmarks = (
            motions.landmarks(self.reference, self.body, names.key_bodies())
            if self.rewards.xpos
            else None
        )

    @property
    def observation_sizes(self) -> dict[str, int]:
        nq, nv, nu = self.body.nq, self.body.nv, self.body.nu
        return {
            "qpos": nq,
            "qvel": nv,
            "qacc": nv,
            "activation": nu,
            "muscle_force": nu,
            "muscle_length": nu,
            "muscle_velocity": nu,
            "time": 1,
            "phase": 1,
            "pelvis": 3,
            "sternum": 3,
            "miss": nq,
        }

    def reset(self, rng: jax.Array) -> State:
        """Returns a state on the reference at a random phase; for muscles see the config."""
        offset = jax.random.uniform(rng, ()) * self.reference.period
        physics = self.body.initial_state()._replace(
            qpos=self.reference.qpos(offset), qvel=self.reference.qvel(offset)
        )
        if self._start_activations is not None:
            phase = offset / self.reference.period
            physics = physics._replace(act=activations.at(self._start_activations, phase))
        walk = WalkState(physics, offset, jnp.zeros((), jnp.int32))
        kinematics, muscles = self.body.kinematics(physics), self.body.muscles(physics)
        obs = self._observe(walk, jnp.zeros(self.body.nv), kinematics, muscles, physics.qpos)
        measured = self._measured(physics, kinematics, muscles)
        return self.started(walk, obs, self.rewards.terms(), **measured)

    def step(self, state: State, action: jax.Array) -> State:
        """Excites the muscles by `action` [A] in [-1, 1] for 20 ms."""
        old = cast(WalkState, state.pipeline_state)
        ctrl = excitation(action, self.config.action_map)
        physics, qacc = self.body.advance(old.physics, ctrl, self.physics_steps)
        walk = WalkState(physics, old.offset, old.steps + 1)
        kinematics, muscles = self.body.kinematics(physics), self.body.muscles(physics)
        compared = old.physics.time if self.rewards.as_code else physics.time
        target = self.target(old.offset + compared, physics.qpos)
        healthy = self.is_healthy(physics, kinematics, target.qpos)
        terms = self.reward_terms(physics, kinematics, muscles, target, healthy)
        ended = ~healthy | self.timed_out(walk) if self.rewards.as_code else ~healthy
        obs = self._observe(walk, qacc, kinematics, muscles, target.qpos)
        measured = self._measured(physics, kinematics, muscles)
        return self.stepped(state, walk, obs, terms, ended, **measured)

    def _measured(
        self, physics: PhysicsState, kinematics: Kinematics, muscles: Muscles
    ) -> dict[str, jax.Array]:
        """Speed forwards (m/s), the sum of all muscles' activations as Table 4 has it, and the
        share of muscles outside their fitted range."""
        return {
            "forward_speed": -self._left_and_backward(kinematics.com_velocity)[1],
            "total_activation": jnp.sum(physics.act),
            "outside_range": muscles.outside,
        }

    def target(self, time: jax.Array, qpos: jax.Array) -> Target:
        """The reference at `time` (s), for a body at `qpos [nq]`."""
        landmarks = self._landmarks
        return Target(
            qpos=self.reference.nearest(time, qpos),
            qvel=self.reference.qvel(time),
            xpos=jnp.zeros((0, 3)) if landmarks is None else landmarks.positions(time),
        )

    def reward_terms(
        self,
        physics: PhysicsState,
        kinematics: Kinematics,
        muscles: Muscles,
        target: Target,
        healthy: jax.Array,
    ) -> dict[str, jax.Array]:
        """The weighted terms of Eq. 32, 33 or 34, each `[]`; they sum to the reward."""
        weight = self.rewards
        makers = {
            "qpos": lambda: -jnp.sum((target.qpos - physics.qpos)[self._joints] ** 2),
            "qvel": lambda: -self._qvel_error(physics.qvel, target.qvel),
            "actuation": lambda: -self._effort(physics, muscles),
            "velocity": lambda: -self._speed_error(kinematics.com_velocity),
            "xpos": lambda: -jnp.sum((target.xpos - kinematics.xpos[self._key_bodies]) ** 2),
            "healthy": lambda: healthy.astype(jnp.float32),
        }
        return {name: getattr(weight, name) * makers[name]() for name in weight.terms()}

    def _qvel_error(self, qvel: jax.Array, target: jax.Array) -> jax.Array:
        squared = jnp.sum((target - qvel) ** 2)
        return jnp.sqrt(squared) if self.rewards.as_code else squared

    def _effort(self, physics: PhysicsState, muscles: Muscles) -> jax.Array:
        effort = physics.act if self.rewards.as_code else FORCE_SCALE * muscles.force
        return jnp.linalg.norm(effort) / self.body.nu

    def _speed_error(self, velocity: jax.Array) -> jax.Array:
        left, backward = self._left_and_backward(velocity)
        return left**2 + (WALKING_SPEED + backward) ** 2

    def _left_and_backward(self, velocity: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Components `[]` of a velocity `[3]` in the world."""
        left, backward, _ = jnp.sum(self._axes * velocity[None], axis=1)
        return left, backward

    def is_healthy(
        self, physics: PhysicsState, kinematics: Kinematics, target: jax.Array
    ) -> jax.Array:
        """Whether the body is upright and near its reference pose `target [nq]` (`[]` bool)."""
        turned = matmul(kinematics.xmat[self._pelvis], self._pelvis_at_rest.T)
        turned = matmul(matmul(self._axes, turned), self._axes.T)
        angles = heading_angles(turned)[:2] if self.free_heading else rotation_angles(turned)
        return (
            (kinematics.xpos[self._pelvis, 2] >= MIN_PELVIS_HEIGHT)
            & (self._sternum(kinematics)[2] >= MIN_STERNUM_HEIGHT)
            & jnp.all(jnp.abs(angles) <= MAX_TILT)
            & (jnp.linalg.norm(target - physics.qpos) <= MAX_DEVIATION)
        )

    def _sternum(self, kinematics: Kinematics) -> jax.Array:
        """Position `[3]` of the breastbone."""
        turned = jnp.sum(kinematics.xmat[self._chest] * self._sternum_in_chest[None], axis=1)
        return kinematics.xpos[self._chest] + turned

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
        return self.observed(
            qpos=physics.qpos,
            qvel=physics.qvel,
            qacc=qacc,
            activation=physics.act,
            muscle_force=jnp.clip(FORCE_SCALE * muscles.force, -CLIP, CLIP),
            muscle_length=muscles.length,
            muscle_velocity=jnp.clip(muscles.velocity, -CLIP, CLIP),
            time=physics.time[None],
            phase=jnp.mod(time / self.reference.period, 1.0)[None],
            pelvis=kinematics.xpos[self._pelvis],
            sternum=self._sternum(kinematics),
            miss=target - physics.qpos,
        )


class MsHumanRun(MsHumanWalk):
    """Follow a run; all else as in walking."""

    task_name = "ms_human_run"
    reward_sets = RUN_REWARDS

    def __init__(self, config: MsHumanRunConfig | None = None):
        super().__init__(config or MsHumanRunConfig())


class MsHumanDance(MsHumanWalk):
    """Follow a dance, joints and places alike; all else as in walking."""

    task_name = "ms_human_dance"
    reward_sets = DANCE_REWARDS
    free_heading = True

    def __init__(self, config: MsHumanDanceConfig | None = None):
        super().__init__(config or MsHumanDanceConfig())


def rotation_angles(rotation: jax.Array) -> jax.Array:
    """Tilt, list and rotation `[3]` (rad) of `rotation [3, 3]`, a turn about x, then y, then z."""
    return jnp.stack(
        [
            jnp.arctan2(-rotation[1, 2], rotation[2, 2]),
            jnp.arcsin(jnp.clip(rotation[0, 2], -1.0, 1.0)),
            jnp.arctan2(-rotation[0, 1], rotation[0, 0]),
        ]
    )


def heading_angles(rotation: jax.Array) -> jax.Array:
    """The same for a turn about z, the heading, first: tilt and list are the heading's own."""
    tilt_list_heading = rotation_angles(rotation.T)
    return -tilt_list_heading
