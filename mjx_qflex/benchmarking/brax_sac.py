"""brax's SAC (`brax.training.agents.sac.train`) at the sizes of one of our runs, epoch by epoch."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from brax import envs
from brax.envs.base import Env, State
from brax.training.agents.sac import networks as brax_networks
from brax.training.agents.sac import train as brax_sac

from mjx_qflex.algos.sac import SacConfig
from mjx_qflex.networks import ACTIVATIONS
from mjx_qflex.sizes import LoopConfig
from mjx_qflex.training.on_policy import jax_for_brax
from mjx_qflex.training.program import Program, stepping_options

EPOCHS = 100_000  # more than anybody waits for; `on_epoch` ends training


class Epoch(NamedTuple):
    """What one of brax's epochs took and did; no evaluation is in it."""

    seconds: float
    transitions: int
    updates: int  # as its learner's own counter says


class _Still(Env):
    """An environment in which nothing happens: what brax gets to evaluate."""

    def __init__(self, like: Env):
        self._like = like

    @property
    def observation_size(self) -> Any:
        return self._like.observation_size

    @property
    def action_size(self) -> int:
        return self._like.action_size

    @property
    def backend(self) -> str:
        return self._like.backend

    def reset(self, rng: jax.Array) -> State:
        zero = jnp.zeros(())
        return State(None, jnp.zeros(self.observation_size), zero, zero)

    def step(self, state: State, action: jax.Array) -> State:
        return state


class _Clock:
    """Times brax's epochs, which it makes by `jax.pmap`; arguments as of `train`."""

    def __init__(
        self,
        env: Env,
        config: LoopConfig,
        on_compiled: Callable[[float], None],
        on_epoch: Callable[[Epoch], None],
    ):
        self._options = stepping_options(env)
        self._transitions = config.steps_per_epoch * config.num_envs
        self._on_compiled, self._on_epoch = on_compiled, on_epoch
        self._seconds, self._now, self._before = 0.0, 0, 0  # of the newest epoch; updates

    def pmap(self, function: Callable[..., Any], axis_name: str | None = None, donate_argnums=()):
        """Stands in for `jax.pmap`."""
        jit = partial(jax.pmap, axis_name=axis_name)
        program = Program(function, donate_argnums, self._options, jit)
        return partial(self._epoch, program) if function.__name__ == "training_epoch" else program

    def _epoch(self, program: Program, *arguments: Any) -> Any:
        if program.compiled is None:
            self._on_compiled(program.compile(*arguments))
        start = time.perf_counter()
        results = jax.block_until_ready(program(*arguments))
        self._seconds = time.perf_counter() - start
        steps = results[0].gradient_steps
        self._now = (int(steps.hi[0]) << 32) + int(steps.lo[0])
        return results

    def progress(self, steps: int, _: Any) -> None:
        """Is told by brax of each epoch, and at first of none."""
        if steps:
            done, self._before = self._now - self._before, self._now
            self._on_epoch(Epoch(self._seconds, self._transitions, done))


def train(
    env: Any,
    options: SacConfig,
    config: LoopConfig,
    seed: int,
    on_compiled: Callable[[float], None],
    on_epoch: Callable[[Epoch], None],
) -> None:
    """Trains until `on_epoch` raises.

    Networks, batch, updates after each vector step, ring, prefill and environments are those of
    `config` and `options`; environments are wrapped by brax's own wrappers, which let an episode
    restart where it began. brax's evaluations look at environments in which nothing happens.

    Args:
      env: one environment.
      options: of our SAC.
      config: of our loop; an epoch is its `steps_per_epoch` vector steps.
      seed: of everything.
      on_compiled: gets the seconds that compiling the epoch took.
      on_epoch: is told of each epoch.
    """
    clock = _Clock(env, config, on_compiled, on_epoch)

    def wrap(one: Env, episode_length: int, **repeats: Any) -> Env:
        length = episode_length if isinstance(one, _Still) else env.episode_length
        return envs.training.wrap(one, episode_length=length, action_repeat=1)

    prefill_steps = -(-config.prefill_transitions // config.num_envs)
    with jax_for_brax(clock.pmap, cast(Any, brax_sac)):
        brax_sac.train(
            env,
            num_timesteps=(prefill_steps + EPOCHS * config.steps_per_epoch) * config.num_envs,
            episode_length=1,  # of the evaluation
            wrap_env_fn=cast(Any, wrap),
            num_envs=config.num_envs,
            num_eval_envs=1,
            learning_rate=options.learning_rate,
            discounting=options.gamma,
            seed=seed,
            batch_size=config.batch_size,
            num_evals=EPOCHS + 1,
            max_devices_per_host=1,
            reward_scaling=options.reward_scale,
            tau=options.tau,
            min_replay_size=config.prefill_transitions,
            max_replay_size=config.replay_capacity,
            grad_updates_per_step=config.updates_per_step,
            network_factory=network_factory(options),
            progress_fn=clock.progress,
            eval_env=_Still(env),
        )


def network_factory(options: SacConfig) -> Callable[..., Any]:
    """Returns the maker of brax's networks of the same sizes."""
    sizes: Sequence[int] = (options.width,) * options.depth
    return partial(
        brax_networks.make_sac_networks,
        hidden_layer_sizes=sizes,
        activation=ACTIVATIONS[options.activation],
    )
