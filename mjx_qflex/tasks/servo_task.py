"""What tasks of bodies with servos share: start, step, a reward that is a product of factors."""

from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from brax.envs.base import State

from mjx_qflex import porting
from mjx_qflex.physics.body import Kinematics, PhysicsState
from mjx_qflex.tasks.body_task import BodyTask

RESET_NOISE = 0.01  # m, rad: half width of the uniform noise on every coordinate


class ServoState(NamedTuple):
    """All that evolves."""

    physics: PhysicsState
    steps: jax.Array  # [] int32, actions since reset


class ServoTask(BodyTask):
    """A body whose actions are its servos' targets: -1 and 1 are the ends of their ranges.

    A task gives the names `terms` and `factors` of its reward and the methods that raise
    NotImplementedError here. Metrics hold both; the terms sum to the reward.
    """

    terms: tuple[str, ...]
    factors: tuple[str, ...]
    observation_size: int

    def __init__(
        self,
        config: Any,
        body: str,
        keyframe: np.ndarray | tuple[float, ...] | None,
        episode_length: int,
        physics_steps: int,
    ):
        """Loads `body`; `keyframe` is the source model's qpos at the start (None: qpos0)."""
        super().__init__(config, porting.load(body), episode_length, physics_steps)
        model = self.body.source_model()
        start = model.qpos0 if keyframe is None else np.array(keyframe)
        self.start = start[self.body.tree.source_qpos_address].astype(np.float32)
        self._low, self._high = model.actuator_ctrlrange.astype(np.float32).T
        self.idle_action = self._holding_action()

    def _holding_action(self) -> np.ndarray:
        """The action `[A]` under which no servo pulls at the start pose, as far as it can."""
        servos = self.body.servos
        joint = self.start[7 * self.body.tree.num_free :][servos.joint]
        target = -(servos.offset + servos.stiffness * servos.gear * joint) / servos.gain
        share = (target - self._low) / (self._high - self._low)
        return np.clip(2.0 * share - 1.0, -1.0, 1.0).astype(np.float32)

    def reset(self, rng: jax.Array) -> State:
        """Returns the start pose with a little noise on every coordinate, at rest."""
        noise = jax.random.uniform(rng, self.start.shape, minval=-RESET_NOISE, maxval=RESET_NOISE)
        qpos = self.start + noise
        for i in range(self.body.tree.num_free):
            at = slice(7 * i + 3, 7 * i + 7)
            qpos = qpos.at[at].set(qpos[at] / jnp.linalg.norm(qpos[at]))
        physics = self.body.initial_state()._replace(qpos=qpos)
        obs = self.observe(physics, self.body.kinematics(physics))
        start = ServoState(physics, jnp.zeros((), jnp.int32))
        factors = {f"factor/{name}": jnp.zeros(()) for name in self.factors}
        return self.started(start, obs, self.terms, **factors)

    def step(self, state: State, action: jax.Array) -> State:
        """Moves the servos' targets to `action` [A] in [-1, 1] of their ranges."""
        old = cast(ServoState, state.pipeline_state)
        ctrl = self.targets(action)
        physics, _ = self.body.advance(old.physics, ctrl, self.physics_steps)
        new = ServoState(physics, old.steps + 1)
        kinematics = self.body.kinematics(physics)
        factors = self.reward_factors(kinematics, self.body.servo_force(physics, ctrl))
        return self.stepped(
            state,
            new,
            self.observe(physics, kinematics),
            self.reward_terms(factors),
            self.is_over(physics, kinematics),
            **{f"factor/{name}": value for name, value in factors.items()},
        )

    def targets(self, action: jax.Array) -> jax.Array:
        """The servos' inputs `[A]` for an action."""
        share = 0.5 * (jnp.clip(action, -1.0, 1.0) + 1.0)
        return self._low + share * (self._high - self._low)

    def observe(self, physics: PhysicsState, kinematics: Kinematics) -> jax.Array:
        """What the policy sees of a state."""
        raise NotImplementedError

    def reward_factors(self, kinematics: Kinematics, force: jax.Array) -> dict[str, jax.Array]:
        """The factors of the reward, each `[]`, from poses and servo forces `[A]` (N m)."""
        raise NotImplementedError

    def reward_terms(self, factors: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """The product of the factors as a sum of terms, each `[]`."""
        raise NotImplementedError

    def is_over(self, physics: PhysicsState, kinematics: Kinematics) -> jax.Array:
        """Whether the body has failed (`[]` bool)."""
        raise NotImplementedError
