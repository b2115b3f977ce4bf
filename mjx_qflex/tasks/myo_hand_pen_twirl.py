"""Turning a pen in the hand, after MyoSuite's myoHandPenTwirlRandom-v0.

Departures from the original, on purpose:
* The pen is ours: a capsule of 14 cm, 1 cm and 15 g, where the original has a cylinder of 13 cm,
  3 cm and 138 g. It lies where it came to rest across the palm, 19 degrees from level, where the
  original's starts above the hand at 17 degrees. The place to hold it at is its own start.
* Contacts are those of the pen with the capsules of palm, fingers, thumb and forearm, sliding
  friction only (condim 3); the original adds torsional friction and the finger nails.
* The pen moves by a free joint. Its observed velocity is linear in the world and angular in its own
  frame; the original observes the rates of three slides and three hinges in a row.
* Observation and reward belong to the new state.
* Actions are clipped to [-1, 1] ahead of the sigmoid.

Sources: MyoHub/myosuite (Apache-2.0), myobase/pen_v0.py, v2.12.1.
"""

from dataclasses import dataclass
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
from brax.envs.base import State

from mjx_qflex import porting
from mjx_qflex.physics.body import PhysicsState
from mjx_qflex.tasks import action_maps
from mjx_qflex.tasks.action_maps import ActionMap
from mjx_qflex.tasks.body_task import BodyTask
from mjx_qflex.tasks.options import TaskConfig

EPISODE_LENGTH = 50  # actions: 0.5 s
PHYSICS_STEPS = 5  # of one action
PALM_UP = -1.5  # rad, of the forearm's pronation
MAX_TILT = 1.0  # rad, of the target about x and about y
DROPPED = 0.075  # m from its place
ALIGNED, WELL_ALIGNED = 0.9, 0.95  # cosines of pen and target
WEIGHTS = {"distance": -1.0, "alignment": 1.0, "activation": -5.0, "dropped": -5.0, "bonus": 10.0}


@dataclass(frozen=True)
class MyoHandPenTwirlConfig(TaskConfig):
    """Options of `myo_hand_pen_twirl`: how actions become excitations (`action_maps`)."""

    action_map: ActionMap = "sigmoid"


class PenState(NamedTuple):
    """All that evolves."""

    physics: PhysicsState
    target: jax.Array  # [3] unit vector that the pen is to point along
    steps: jax.Array  # [] int32, actions since reset


class MyoHandPenTwirl(BodyTask):
    """Turn a pen that lies on the open hand to a drawn direction within half a second.

    Actions in [-1, 1] are excitations. Observation [83]: the hand's 23 joints; position (m) and
    velocity times 10 ms of the pen; its direction and the target's; how far it is from its place,
    and its direction from the target's; activation of every muscle. It is over when the pen is
    7.5 cm from its place.
    """

    def __init__(self, config: MyoHandPenTwirlConfig = MyoHandPenTwirlConfig()):
        action_maps.check("myo_hand_pen_twirl", config.action_map)
        super().__init__(config, porting.load("myo_hand_pen"), EPISODE_LENGTH, PHYSICS_STEPS)
        rest = self.body.initial_state()
        palm_up = rest.qpos.at[self.body.qpos_index("pro_sup_r")].set(PALM_UP)
        self._start = rest._replace(qpos=palm_up)
        self._place = rest.qpos[:3]

    @property
    def observation_sizes(self) -> dict[str, int]:
        return {
            "qpos": self.body.nq - 7,
            "pen": 3,
            "pen_velocity": 6,
            "direction": 3,
            "target": 3,
            "miss": 3,
            "turn": 3,
            "activation": self.body.nu,
        }

    def reset(self, rng: jax.Array) -> State:
        """Returns the open hand, palm up, the pen at rest on it, with a new target."""
        tilt = jax.random.uniform(rng, (2,), minval=-MAX_TILT, maxval=MAX_TILT)
        pen = PenState(self._start, target_direction(tilt), jnp.zeros((), jnp.int32))
        outside = self.body.muscles(self._start).outside
        return self.started(
            pen, self._observe(pen), WEIGHTS, solved=jnp.zeros(()), outside_range=outside
        )

    def step(self, state: State, action: jax.Array) -> State:
        """Excites the muscles by `action` [A] in [-1, 1] for 10 ms."""
        old = cast(PenState, state.pipeline_state)
        ctrl = action_maps.excitation(action, self.config.action_map)
        physics, _ = self.body.advance(old.physics, ctrl, self.physics_steps)
        pen = PenState(physics, old.target, old.steps + 1)
        dropped = self.is_dropped(physics)
        solved = ~dropped & (jnp.sum(pen_direction(physics) * pen.target) > WELL_ALIGNED)
        return self.stepped(
            state,
            pen,
            self._observe(pen),
            self.reward_terms(pen),
            dropped,
            solved=solved.astype(jnp.float32),
            outside_range=self.body.muscles(physics).outside,
        )

    def reward_terms(self, pen: PenState) -> dict[str, jax.Array]:
        """The weighted terms, each `[]`; they sum to the reward."""
        physics = pen.physics
        cosine = jnp.sum(pen_direction(physics) * pen.target)
        dropped = self.is_dropped(physics)
        bonus = (cosine > ALIGNED).astype(jnp.float32) + 5 * (cosine > WELL_ALIGNED)
        terms = {
            "distance": jnp.linalg.norm(physics.qpos[:3] - self._place),
            "alignment": cosine,
            "activation": jnp.linalg.norm(physics.act) / self.body.nu,
            "dropped": dropped.astype(jnp.float32),
            "bonus": jnp.where(dropped, 0.0, bonus),
        }
        return {name: WEIGHTS[name] * value for name, value in terms.items()}

    def is_dropped(self, physics: PhysicsState) -> jax.Array:
        """Whether the pen has left its place (`[]` bool)."""
        return jnp.linalg.norm(physics.qpos[:3] - self._place) > DROPPED

    def _observe(self, pen: PenState) -> jax.Array:
        physics = pen.physics
        place, direction = physics.qpos[:3], pen_direction(physics)
        return self.observed(
            qpos=physics.qpos[7:],
            pen=place,
            pen_velocity=physics.qvel[:6] * self.control_dt,
            direction=direction,
            target=pen.target,
            miss=place - self._place,
            turn=direction - pen.target,
            activation=physics.act,
        )


def pen_direction(physics: PhysicsState) -> jax.Array:
    """Unit vector `[3]` along the pen in the world, the z axis of its free joint's frame."""
    w, x, y, z = physics.qpos[3:7]
    return jnp.stack([2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y)])


def target_direction(tilt: jax.Array) -> jax.Array:
    """Unit vector `[3]`: the vertical turned about y by `tilt[1]`, then about x by `tilt[0]`."""
    (sin_x, sin_y), (cos_x, cos_y) = jnp.sin(tilt), jnp.cos(tilt)
    return jnp.stack([sin_y, -sin_x * cos_y, cos_x * cos_y])
