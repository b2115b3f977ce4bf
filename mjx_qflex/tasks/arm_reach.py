"""Reaching with a planar arm whose six muscles can be divided into hundreds of actuators.

Shoulder and elbow turn in the horizontal plane; each of two flexors and extensors of either joint,
and of the two muscles over both, may be split into k parallel ones of force share 1/k. So the body
stays the same while the action space grows from 6 to 696 dimensions.
"""

from dataclasses import dataclass
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from brax.envs.base import State

from mjx_qflex import porting
from mjx_qflex.physics.body import PhysicsState
from mjx_qflex.tasks.body_task import BodyTask
from mjx_qflex.tasks.options import TaskConfig

EPISODE_LENGTH = 60  # actions: 1.2 s
PHYSICS_STEPS = 10  # of one action
REACHED = 0.03  # m, the distance within which the hand counts as on the target
JOINTS = ("shoulder", "elbow")
HAND = (0.3, 0.0, 0.0)  # m, in the forearm's frame


@dataclass(frozen=True)
class ArmReachConfig(TaskConfig):
    """Options of `arm_reach`: the number of actuators, a multiple of 6 up to 696."""

    num_actuators: int = 6


class ArmState(NamedTuple):
    """All that evolves."""

    physics: PhysicsState
    target: jax.Array  # [2] m
    steps: jax.Array  # [] int32, actions since reset


class ArmReach(BodyTask):
    """Bring the hand of a resting arm to a target, wherever a uniformly drawn pose puts it.

    Actions in [-1, 1] are excitations from none to full. Observation [A + 8]: joint angles (rad),
    their velocities (rad/s), activations, target (m), target minus hand (m). Reward: minus the
    distance in metres, plus 1 within 3 cm. An episode starts in the middle of both joints' ranges
    and ends by time-out only.
    """

    terminates = False  # it only times out

    def __init__(self, config: ArmReachConfig = ArmReachConfig()):
        body = porting.load("arm", num_actuators=config.num_actuators)
        super().__init__(config, body, EPISODE_LENGTH, PHYSICS_STEPS)
        self._forearm = self.body.body_index("forearm")
        source = self.body.source_model()
        ranges = np.array([source.joint(name).range for name in JOINTS], np.float32)
        self._low, self._high = ranges.T

    @property
    def observation_sizes(self) -> dict[str, int]:
        return {"qpos": 2, "qvel": 2, "activation": self.body.nu, "target": 2, "miss": 2}

    def reset(self, rng: jax.Array) -> State:
        """Returns the arm at rest in the middle of its ranges, with a new target."""
        pose = jax.random.uniform(rng, (2,), minval=self._low, maxval=self._high)
        rest = self.body.initial_state()._replace(qpos=jnp.asarray(0.5 * (self._low + self._high)))
        arm = ArmState(rest, self.hand(rest._replace(qpos=pose)), jnp.zeros((), jnp.int32))
        outside = self.body.muscles(rest).outside
        return self.started(arm, self._observe(arm), ("distance", "reached"), outside_range=outside)

    def step(self, state: State, action: jax.Array) -> State:
        """Excites the muscles by `action` [A] in [-1, 1] for 20 ms."""
        old = cast(ArmState, state.pipeline_state)
        ctrl = 0.5 * (jnp.clip(action, -1.0, 1.0) + 1.0)
        physics, _ = self.body.advance(old.physics, ctrl, self.physics_steps)
        arm = ArmState(physics, old.target, old.steps + 1)
        distance = jnp.linalg.norm(arm.target - self.hand(physics))
        terms = {"distance": -distance, "reached": (distance < REACHED).astype(jnp.float32)}
        outside = self.body.muscles(physics).outside
        return self.stepped(state, arm, self._observe(arm), terms, outside_range=outside)

    def hand(self, physics: PhysicsState) -> jax.Array:
        """Position `[2]` of the hand in the horizontal plane (m)."""
        kinematics = self.body.kinematics(physics)
        turned = jnp.sum(kinematics.xmat[self._forearm] * jnp.array([HAND]), axis=1)
        return (kinematics.xpos[self._forearm] + turned)[:2]

    def _observe(self, arm: ArmState) -> jax.Array:
        physics = arm.physics
        miss = arm.target - self.hand(physics)
        return self.observed(
            qpos=physics.qpos,
            qvel=physics.qvel,
            activation=physics.act,
            target=arm.target,
            miss=miss,
        )
