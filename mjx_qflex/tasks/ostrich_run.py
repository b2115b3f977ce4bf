"""Running with OstrichRL's ostrich (La Barbera et al. 2021), as OstrichRun-v1 of the Qflex paper.

Departures from the original, on purpose:
* A reset draws the joints as OstrichRL does, uniformly from a fifth of their limits, and an episode
  has its 25 s; Qflex's code starts from one and the same pose and allows 75 s.
* Only toes, tarsometatarsus and tibiotarsus touch the floor: the episode ends before anything else
  can. Parts of the bird pass through each other.
* Muscle lengths, velocities and forces belong to the new state; MuJoCo's are one physics step old.

As in the original, actions are the muscles' excitations themselves, from a control range of
[-1, 1] of which MuJoCo's muscles heed [0, 1]: everything below 0 is rest.
"""

from dataclasses import dataclass
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from brax.envs.base import State

from mjx_qflex import porting
from mjx_qflex.physics.body import Kinematics, Muscles, PhysicsState
from mjx_qflex.tasks.body_task import BodyTask
from mjx_qflex.tasks.options import TaskConfig

EPISODE_LENGTH = 1000  # actions: 25 s
PHYSICS_STEPS = 10  # of one action
RESET_SHARE = 0.2  # of the joints' limits
MIN_HEAD_HEIGHT = 0.9  # m
MIN_PELVIS_HEIGHT = 0.6  # m
MAX_PITCH = 0.8  # rad
FORCE_SCALE = 1e-3  # N -> kN
CLIP = 100.0  # of observed velocities (m/s, rad/s) and forces (kN)
ROOT = 6  # joints of the root


@dataclass(frozen=True)
class OstrichRunConfig(TaskConfig):
    """`ostrich_run` has no options."""


class OstrichState(NamedTuple):
    """All that evolves."""

    physics: PhysicsState
    steps: jax.Array  # [] int32, actions since reset


class OstrichRun(BodyTask):
    """Run forward (+x) as fast as possible.

    Actions [120] excite the muscles. Observation [596]: heights of head, pelvis and both feet; qpos
    without x; qvel; activation, force (kN), length (m) and velocity (m/s) of every muscle; forward
    velocity. Reward: the forward velocity of the centre of mass (m/s), split by its sign. The
    episode ends when the head is lower than 0.9 m, the pelvis lower than 0.6 m, or the root pitched
    by more than 0.8 rad.
    """

    def __init__(self, config: OstrichRunConfig = OstrichRunConfig()):
        super().__init__(config, porting.load("ostrich"), EPISODE_LENGTH, PHYSICS_STEPS)
        model = self.body.source_model()
        limits = RESET_SHARE * model.jnt_range[ROOT:].astype(np.float32)
        self._low, self._high = limits.T
        self._head, self._root, *self._feet = (
            self.body.body_index(name) for name in ("head", "ostrich", "r_pes", "l_pes")
        )
        self._pelvis_in_root = model.geom("pelvis").pos.astype(np.float32)
        self._pitch = self.body.qpos_index("root_rot_y")

    @property
    def observation_sizes(self) -> dict[str, int]:
        nq, nv, nu = self.body.nq, self.body.nv, self.body.nu
        return {
            "heights": 4,
            "qpos": nq - 1,
            "qvel": nv,
            "activation": nu,
            "muscle_force": nu,
            "muscle_length": nu,
            "muscle_velocity": nu,
            "speed": 1,
        }

    def reset(self, rng: jax.Array) -> State:
        """Returns the bird upright and at rest, its joints somewhere near the middle."""
        joints = jax.random.uniform(rng, self._low.shape, minval=self._low, maxval=self._high)
        start = self.body.initial_state()
        physics = start._replace(qpos=jnp.concatenate([start.qpos[:ROOT], joints]))
        kinematics, muscles = self.body.kinematics(physics), self.body.muscles(physics)
        bird = OstrichState(physics, jnp.zeros((), jnp.int32))
        obs = self.observe(physics, kinematics, muscles)
        return self.started(bird, obs, ("forward", "backward"))

    def step(self, state: State, action: jax.Array) -> State:
        """Excites the muscles by `action` [120] in [0, 1] for 25 ms; less than 0 is 0."""
        old = cast(OstrichState, state.pipeline_state)
        physics, _ = self.body.advance(old.physics, jnp.clip(action, 0.0, 1.0), self.physics_steps)
        bird = OstrichState(physics, old.steps + 1)
        kinematics, muscles = self.body.kinematics(physics), self.body.muscles(physics)
        speed = kinematics.com_velocity[0]
        terms = {"forward": jnp.maximum(speed, 0.0), "backward": jnp.minimum(speed, 0.0)}
        obs = self.observe(physics, kinematics, muscles)
        return self.stepped(state, bird, obs, terms, self.is_over(physics, kinematics))

    def observe(self, physics: PhysicsState, kinematics: Kinematics, muscles: Muscles) -> jax.Array:
        """What the policy sees of a state, `[596]`."""
        height = kinematics.xpos[:, 2]
        heights = [height[self._head], self._pelvis_height(kinematics)]
        return self.observed(
            heights=jnp.stack([*heights, *(height[foot] for foot in self._feet)]),
            qpos=physics.qpos[1:],
            qvel=jnp.clip(physics.qvel, -CLIP, CLIP),
            activation=physics.act,
            muscle_force=jnp.clip(FORCE_SCALE * muscles.force, -CLIP, CLIP),
            muscle_length=muscles.length,
            muscle_velocity=jnp.clip(muscles.velocity, -CLIP, CLIP),
            speed=kinematics.com_velocity[:1],
        )

    def is_over(self, physics: PhysicsState, kinematics: Kinematics) -> jax.Array:
        """Whether the bird has fallen (`[]` bool)."""
        return (
            (kinematics.xpos[self._head, 2] < MIN_HEAD_HEIGHT)
            | (self._pelvis_height(kinematics) < MIN_PELVIS_HEIGHT)
            | (jnp.abs(physics.qpos[self._pitch]) > MAX_PITCH)
        )

    def _pelvis_height(self, kinematics: Kinematics) -> jax.Array:
        up = kinematics.xmat[self._root, 2]
        return kinematics.xpos[self._root, 2] + jnp.sum(up * self._pelvis_in_root)
