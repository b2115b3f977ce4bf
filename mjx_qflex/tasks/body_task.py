"""What all tasks of ported bodies share: the environment protocol around a body."""

import itertools
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, Protocol, cast

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from brax.envs.base import Env, State

from mjx_qflex.physics.body import PhysicsState, PortedBody


class BodyState(Protocol):
    """What the pipeline state of such a task has at least."""

    @property
    def physics(self) -> PhysicsState: ...
    @property
    def steps(self) -> jax.Array:
        """Actions since the reset, `[]` int32."""
        ...


class BodyTask(Env):
    """A brax environment around one ported body.

    A task gives `observation_sizes`, `reset` and `step`, and makes their results with `observed`,
    `started` and `stepped`. Doing nothing is no excitation of any muscle, unless a task sets
    `idle_action`.
    """

    # Parts of the observation by name, in order. Muscles' own are called muscle_length (m),
    # muscle_velocity (m/s), muscle_force (scaled) and activation, `[A]` each.
    observation_sizes: Mapping[str, int] = MappingProxyType({})

    def __init__(self, config: Any, body: PortedBody, episode_length: int, physics_steps: int):
        """Sets what the protocol asks for; an action takes `physics_steps` of `body`."""
        self.config = config
        self.body = body
        self.episode_length = episode_length
        self.physics_steps = physics_steps
        self.control_dt = physics_steps * body.timestep
        self.compiler_options = body.compiler_options
        self.idle_action = np.full(self.action_size, -1.0, np.float32)

    @property
    def observation_size(self) -> int:
        return sum(self.observation_sizes.values())

    @property
    def observation_parts(self) -> dict[str, slice]:
        """Where each part of the observation is."""
        ends = itertools.accumulate(self.observation_sizes.values())
        return {
            name: slice(end - size, end)
            for (name, size), end in zip(self.observation_sizes.items(), ends, strict=True)
        }

    def observed(self, **parts: jax.Array) -> jax.Array:
        """Returns the observation `[O]` of its parts, given in their order."""
        sizes = {name: part.size for name, part in parts.items()}
        assert [*sizes.items()] == [*self.observation_sizes.items()], (
            sizes,
            self.observation_sizes,
        )
        return jnp.concatenate([*parts.values()])

    @property
    def action_size(self) -> int:
        return self.body.nu

    @property
    def backend(self) -> str:
        return "mjx"

    def started(
        self, state: BodyState, obs: jax.Array, terms: Iterable[str], **metrics: jax.Array
    ) -> State:
        """The result of a reset; `terms` names those of the reward, for `stepped` to fill."""
        zero = jnp.zeros(())
        rewards = {f"reward/{name}": zero for name in terms}
        # brax annotates pipeline_state as a state of its own pipelines.
        return State(
            cast(Any, state), obs, zero, zero, {**rewards, **metrics}, {"truncation": zero}
        )

    def stepped(
        self,
        before: State,
        state: BodyState,
        obs: jax.Array,
        terms: dict[str, jax.Array],
        ended: jax.Array | bool = False,
        **metrics: jax.Array,
    ) -> State:
        """The result of a step: `terms` sum to the reward, `ended` terminates, else time may be up.

        Each term is a metric `reward/<name>`; other `metrics` are taken as they are called.
        """
        ended = jnp.asarray(ended)
        rewards = {f"reward/{name}": value for name, value in terms.items()}
        return before.replace(
            pipeline_state=state,
            obs=obs,
            reward=sum(terms.values(), start=jnp.zeros(())),
            done=ended.astype(jnp.float32),
            metrics={**before.metrics, **rewards, **metrics},
            info={
                **before.info,
                "truncation": (self.timed_out(state) & ~ended).astype(jnp.float32),
            },
        )

    def timed_out(self, state: BodyState) -> jax.Array:
        """Whether the episode has had all of its actions (`[]` bool)."""
        return state.steps >= self.episode_length

    def render_qpos(self, state: BodyState) -> tuple[np.ndarray, np.ndarray]:
        """Returns the source model's qpos, and the activation of each actuator (servos have 0)."""
        act = np.asarray(state.physics.act)
        return self.body.source_qpos(state.physics.qpos), act if len(act) else np.zeros(
            self.body.nu
        )

    def source_model(self) -> mujoco.MjModel:
        return self.body.source_model()
