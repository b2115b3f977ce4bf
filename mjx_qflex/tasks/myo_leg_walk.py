"""Walking with two muscle-driven legs under a rigid trunk, after MyoSuite's myoLegWalk-v0.

Departures from the original, on purpose:
* Five physics steps of 2 ms make an action of 10 ms; there ten of 1 ms.
* Coupled joints (patella, the knee's sliding and twisting) follow the independent ones and are not
  observed: 19 positions and 20 velocities where the original has 33 and 34.
* Upright is the identity for this body's root, which then faces -y; there it is a quarter turn
  about z. The two rotations that the reward and the fall compare are the same.
* The start is ours, since MyoSuite's keyframe is not part of myo_sim: the shipped reference gait at
  the moment when the right foot strikes, set on the floor, with that moment's velocities. Half of
  the episodes start with its mirror image and half a cycle later. Leg joints get normal noise of
  0.02 rad, as in MyoSuite's random start. There every episode starts from one and the same state.
* The velocity rewarded is that of the centre of mass. The original averages the linear parts of
  MuJoCo's `cvel`, which leaves out how parts move as they turn about their own centres.
* The observed phase is the one that the next action's reward will use; there it is a step older,
  but right after a reset.
* Muscle quantities and body positions belong to the new state; MuJoCo's are one physics step old.
* Actions are clipped to [-1, 1] ahead of the sigmoid.

Sources: MyoHub/myosuite (Apache-2.0), myobase/walk_v0.py, v2.12.1.
"""

from dataclasses import dataclass
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from brax.envs.base import State

from mjx_qflex import motions, porting, resources
from mjx_qflex.physics import shapes
from mjx_qflex.physics.body import Kinematics, PhysicsState
from mjx_qflex.tasks import action_maps
from mjx_qflex.tasks.action_maps import ActionMap
from mjx_qflex.tasks.body_task import BodyTask
from mjx_qflex.tasks.options import TaskConfig

EPISODE_LENGTH = 1000  # actions: 10 s
PHYSICS_STEPS = 5  # of one action
HIP_PERIOD = 100  # actions of one cycle
HIP_SWING = 0.8  # rad, of hip flexion to either side
WALKING_SPEED = 1.2  # m/s
MIN_HEIGHT = 0.8  # m, of the centre of mass
MAX_TURN = 0.8  # sideways component of the heading
START_NOISE = 0.02  # rad
FORCE_SCALE = 1e-3  # N -> kN
CLIP = 100.0  # of observed muscle forces (kN) and velocities (m/s)
WEIGHTS = {
    "velocity": 5.0,
    "cyclic_hip": -10.0,
    "root_rotation": 10.0,
    "joint_angles": 5.0,
    "fallen": -100.0,
}
STRAIGHT_JOINTS = ("hip_adduction_l", "hip_adduction_r", "hip_rotation_l", "hip_rotation_r")
SOLES = tuple(
    f"{part}_{side}"
    for side in "lr"
    for part in ("foot_col1", "foot_col3", "bofoot_col1", "bofoot_col2")
)


@dataclass(frozen=True)
class MyoLegWalkConfig(TaskConfig):
    """Options of `myo_leg_walk`: how actions become excitations (`action_maps.excitation`)."""

    action_map: ActionMap = "sigmoid"


class LegWalkState(NamedTuple):
    """All that evolves."""

    physics: PhysicsState
    offset: jax.Array  # [] int32, actions of the hip's cycle before the reset
    steps: jax.Array  # [] int32, actions since reset


class MyoLegWalk(BodyTask):
    """Walk towards -y at 1.2 m/s, the hips swinging once a second.

    Actions in [-1, 1] are excitations. Observation: qpos without x and y; qvel times 10 ms;
    velocity of the centre of mass to the right and forwards (m/s); the trunk's quaternion; heights
    of left and right ankle and of the centre of mass, both ankles relative to the pelvis (m);
    phase; length, velocity, force (kN) and activation of every muscle. It is over when the centre
    of mass is below 0.8 m or the heading points sideways.
    """

    def __init__(self, config: MyoLegWalkConfig = MyoLegWalkConfig()):
        action_maps.check("myo_leg_walk", config.action_map)
        body = porting.load("myo_legs")
        super().__init__(config, body, EPISODE_LENGTH, PHYSICS_STEPS)
        self.heading = (0.0, -1.0)  # forward in the world, for the camera
        self._hips = np.array([body.qpos_index(f"hip_flexion_{side}") for side in "lr"])
        self._straight = np.array([body.qpos_index(name) for name in STRAIGHT_JOINTS])
        self._ankles = np.array([body.body_index(f"talus_{side}") for side in "lr"])
        self._pelvis = body.body_index("pelvis")
        source = body.source_model()
        self._torso_in_root = _orientation(source, "torso")
        soles = [source.geom(name).id for name in SOLES]
        self._sole_body = source.geom_bodyid[soles]
        self._sole_radius = source.geom_size[soles, 0].astype(np.float32)
        self._sole_ends = shapes.capsule_ends(source, soles).astype(np.float32)  # [G, 2, 3]
        self._joint_range = np.array(
            [source.joint(name).range for name in body.joint_names[1:]], np.float32
        )
        gait = resources.data_folder("assets") / "motions" / "human_walk.csv"
        reference = motions.load(gait, body.joint_names)
        times = (jnp.float32(0.0), 0.5 * reference.period)
        self._start_qpos = np.stack([reference.qpos(t) for t in times])
        self._start_qpos[:, :2] = 0.0
        self._start_qvel = np.stack([reference.qvel(t) for t in times])

    @property
    def observation_sizes(self) -> dict[str, int]:
        nq, nv, nu = self.body.nq, self.body.nv, self.body.nu
        return {
            "qpos": nq - 2,
            "qvel": nv,
            "com_velocity": 2,
            "torso": 4,
            "feet_heights": 2,
            "height": 1,
            "feet": 6,
            "phase": 1,
            "muscle_length": nu,
            "muscle_velocity": nu,
            "muscle_force": nu,
            "activation": nu,
        }

    def reset(self, rng: jax.Array) -> State:
        """Returns a stride's beginning, right or left foot in front, all muscles inactive."""
        side_key, noise_key = jax.random.split(rng)
        side = jax.random.bernoulli(side_key).astype(jnp.int32)
        noise = START_NOISE * jax.random.normal(noise_key, (self.body.nq - 7,))
        qpos = jnp.asarray(self._start_qpos)[side]
        joints = jnp.clip(qpos[7:] + noise, self._joint_range[:, 0], self._joint_range[:, 1])
        physics = self.body.initial_state()._replace(
            qpos=jnp.concatenate([qpos[:7], joints]), qvel=jnp.asarray(self._start_qvel)[side]
        )
        lowest = self._lowest_sole_point(self.body.kinematics(physics))
        physics = physics._replace(qpos=physics.qpos.at[2].add(-lowest))
        walk = LegWalkState(physics, side * (HIP_PERIOD // 2), jnp.zeros((), jnp.int32))
        obs, outside = self._observe(walk, self.body.kinematics(physics))
        measured = self._measured(physics, self.body.kinematics(physics))
        return self.started(walk, obs, terms=WEIGHTS, outside_range=outside, **measured)

    def step(self, state: State, action: jax.Array) -> State:
        """Excites the muscles by `action` [A] in [-1, 1] for 10 ms."""
        old = cast(LegWalkState, state.pipeline_state)
        ctrl = action_maps.excitation(action, self.config.action_map)
        physics, _ = self.body.advance(old.physics, ctrl, self.physics_steps)
        walk = LegWalkState(physics, old.offset, old.steps + 1)
        kinematics = self.body.kinematics(physics)
        terms = self.reward_terms(physics, kinematics, _phase(old))
        obs, outside = self._observe(walk, kinematics)
        fallen = self.has_fallen(physics, kinematics)
        measured = self._measured(physics, kinematics)
        return self.stepped(state, walk, obs, terms, fallen, outside_range=outside, **measured)

    def _measured(self, physics: PhysicsState, kinematics: Kinematics) -> dict[str, jax.Array]:
        """Speed forwards (m/s) and the sum of all muscles' activations, as Table 4 has it."""
        return {
            "forward_speed": -kinematics.com_velocity[1],
            "total_activation": jnp.sum(physics.act),
        }

    def reward_terms(
        self, physics: PhysicsState, kinematics: Kinematics, phase: jax.Array
    ) -> dict[str, jax.Array]:
        """The weighted terms, each `[]`; they sum to the reward. `phase` in [0, 1) is the hips'."""
        qpos = physics.qpos
        right, forward = -kinematics.com_velocity[:2]
        swing = HIP_SWING * jnp.cos(2 * jnp.pi * phase)
        upright = self.body.initial_state().qpos[3:7]
        terms = {
            "velocity": jnp.exp(-((WALKING_SPEED - forward) ** 2)) + jnp.exp(-(right**2)),
            "cyclic_hip": jnp.linalg.norm(jnp.stack([-swing, swing]) - qpos[self._hips]),
            "root_rotation": jnp.exp(-5.0 * jnp.linalg.norm(qpos[3:7] - upright)),
            "joint_angles": jnp.exp(-5.0 * jnp.mean(jnp.abs(qpos[self._straight]))),
            "fallen": self.has_fallen(physics, kinematics).astype(jnp.float32),
        }
        return {name: WEIGHTS[name] * value for name, value in terms.items()}

    def has_fallen(self, physics: PhysicsState, kinematics: Kinematics) -> jax.Array:
        """Whether the body is down, or has turned away from its way (`[]` bool)."""
        w, x, y, z = physics.qpos[3:7]
        sideways = 2.0 * (x * y - w * z)  # of the root's y axis; it faces along -y
        return (kinematics.com[2] < MIN_HEIGHT) | (jnp.abs(sideways) > MAX_TURN)

    def _lowest_sole_point(self, kinematics: Kinematics) -> jax.Array:
        """Height `[]` of the feet's lowest point (m)."""
        down = kinematics.xmat[self._sole_body, 2][:, None]
        height = kinematics.xpos[self._sole_body, 2][:, None] + jnp.sum(
            down * self._sole_ends, axis=2
        )
        return jnp.min(height - self._sole_radius[:, None])

    def _observe(self, walk: LegWalkState, kinematics: Kinematics) -> tuple[jax.Array, jax.Array]:
        """Returns the observation `[O]`, and the share of muscles outside their fitted range."""
        physics, muscles = walk.physics, self.body.muscles(walk.physics)
        ankles = kinematics.xpos[self._ankles]
        obs = self.observed(
            qpos=physics.qpos[2:],
            qvel=physics.qvel * self.control_dt,
            com_velocity=-kinematics.com_velocity[:2],
            torso=_quaternion_product(physics.qpos[3:7], jnp.asarray(self._torso_in_root)),
            feet_heights=ankles[:, 2],
            height=kinematics.com[2:],
            feet=(ankles - kinematics.xpos[self._pelvis][None]).ravel(),
            phase=_phase(walk)[None],
            muscle_length=muscles.length,
            muscle_velocity=jnp.clip(muscles.velocity, -CLIP, CLIP),
            muscle_force=jnp.clip(FORCE_SCALE * muscles.force, -CLIP, CLIP),
            activation=physics.act,
        )
        return obs, muscles.outside


def _phase(walk: LegWalkState) -> jax.Array:
    """Phase `[]` of the hips' cycle in [0, 1)."""
    return jnp.mod(walk.offset + walk.steps, HIP_PERIOD) / HIP_PERIOD


def _quaternion_product(p: jax.Array, q: jax.Array) -> jax.Array:
    """Hamilton product `[4]`, w first."""
    scalar = p[0] * q[0] - jnp.sum(p[1:] * q[1:])
    return jnp.concatenate([scalar[None], p[0] * q[1:] + q[0] * p[1:] + jnp.cross(p[1:], q[1:])])


def _orientation(model: mujoco.MjModel, body: str) -> np.ndarray:
    """Quaternion `[4]` of a body that is rigidly attached to the root, relative to the root."""
    data = mujoco.MjData(model)
    mujoco.mj_kinematics(model, data)
    inverse, relative = np.zeros(4), np.zeros(4)
    mujoco.mju_negQuat(inverse, model.qpos0[3:7])
    mujoco.mju_mulQuat(relative, inverse, data.body(body).xquat)
    return relative.astype(np.float32)
