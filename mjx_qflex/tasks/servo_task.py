"""What tasks of bodies with servos share: start, step, a reward that is a product of factors."""

from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from brax.envs.base import Env, State

from mjx_qflex import porting
from mjx_qflex.porting import Kinematics, PhysicsState

RESET_NOISE = 0.01  # m, rad: half width of the uniform noise on every coordinate


class ServoState(NamedTuple):
    """All that evolves."""

    physics: PhysicsState
    steps: jax.Array  # [] int32, actions since reset


class ServoTask(Env):
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
        self.config = config
        self.body = porting.load(body)
        self.episode_length = episode_length
        self.control_dt = physics_steps * self.body.timestep
        self.compiler_options = self.body.compiler_options
        self._physics_steps = physics_steps
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

    @property
    def action_size(self) -> int:
        return self.body.nu

    @property
    def backend(self) -> str:
        return "mjx"

    def reset(self, rng: jax.Array) -> State:
        """Returns the start pose with a little noise on every coordinate, at rest."""
        noise = jax.random.uniform(rng, self.start.shape, minval=-RESET_NOISE, maxval=RESET_NOISE)
        qpos = self.start + noise
        for i in range(self.body.tree.num_free):
            at = slice(7 * i + 3, 7 * i + 7)
            qpos = qpos.at[at].set(qpos[at] / jnp.linalg.norm(qpos[at]))
        physics = self.body.initial_state()._replace(qpos=qpos)
        obs = self.observe(physics, self.body.kinematics(physics))
        zero = jnp.zeros(())
        metrics = {f"reward/{name}": zero for name in self.terms}
        metrics |= {f"factor/{name}": zero for name in self.factors}
        # brax annotates pipeline_state as a state of its own pipelines.
        start = cast(Any, ServoState(physics, jnp.zeros((), jnp.int32)))
        return State(start, obs, zero, zero, metrics, {"truncation": zero})

    def step(self, state: State, action: jax.Array) -> State:
        """Moves the servos' targets to `action` [A] in [-1, 1] of their ranges."""
        old = cast(ServoState, state.pipeline_state)
        ctrl = self.targets(action)
        physics, _ = self.body.advance(old.physics, ctrl, self._physics_steps)
        new = ServoState(physics, old.steps + 1)
        kinematics = self.body.kinematics(physics)
        factors = self.reward_factors(kinematics, self.body.servo_force(physics, ctrl))
        terms = self.reward_terms(factors)
        ended = self.is_over(physics, kinematics)
        timed_out = new.steps >= self.episode_length
        metrics = {f"reward/{name}": value for name, value in terms.items()}
        metrics |= {f"factor/{name}": value for name, value in factors.items()}
        return state.replace(
            pipeline_state=new,
            obs=self.observe(physics, kinematics),
            reward=sum(terms.values(), start=jnp.zeros(())),
            done=ended.astype(jnp.float32),
            metrics={**state.metrics, **metrics},
            info={**state.info, "truncation": (timed_out & ~ended).astype(jnp.float32)},
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

    def render_qpos(self, state: ServoState) -> tuple[np.ndarray, np.ndarray]:
        """Returns the source model's qpos, and an activation of 0 for each servo."""
        return self.body.source_qpos(state.physics.qpos), np.zeros(self.action_size)

    def source_model(self) -> mujoco.MjModel:
        return self.body.source_model()
