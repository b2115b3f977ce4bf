"""On-policy training: brax's PPO (`brax.training.agents.ppo.train`) on the environments of a task.

brax collects and learns; this file gives it environments that restart as those of `loop.py` do, and
takes from it, epoch by epoch, what it has learnt and what the episodes were like.
"""

import contextlib
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from brax.envs.base import Env, State
from brax.training.agents.ppo import train as brax_ppo
from flax import struct

from mjx_qflex.algos import ppo
from mjx_qflex.algos.ppo import PpoConfig, PpoLearner
from mjx_qflex.sizes import OnPolicyConfig
from mjx_qflex.training import environments
from mjx_qflex.training.aggregate import reduce_totals
from mjx_qflex.training.environments import Task
from mjx_qflex.training.program import Program, stepping_options
from mjx_qflex.types import Metrics

CLOCKS = ("training/sps", "training/walltime")  # among brax's metrics; the driver has its own


class OnPolicyState(struct.PyTreeNode):
    """What a checkpoint holds; brax hands out neither environments nor its optimiser's state."""

    learner: PpoLearner


class _Running(NamedTuple):
    """All that evolves in the worlds between two of brax's steps."""

    env_state: State  # [N, ...]
    pool: State  # [N, ...], states from which ended environments restart
    key: jax.Array  # raw uint32 [2]
    episode_return: jax.Array  # [N], of the running episodes
    episode_length: jax.Array  # int32 [N]
    totals: Metrics  # of `environments.step_metrics` over this epoch
    steps: jax.Array  # int32 [], of this epoch


class BraxEnvironments(Env):
    """N environments as one brax environment whose environments restart.

    It stands in for brax's own wrappers. Those know of no time-out but their own, and let an
    environment restart at its very first state for ever, or else all environments at once between
    epochs, in mid-episode (brax's `num_resets_per_eval`). Here environments restart from a pool of
    N reset states
    that is renewed with each epoch: brax draws by epochs, too.

    Every ending sets `done`. A time-out also sets `time_out`, for which brax's PPO adds to the
    reward the discounted value, as it stood when the data were made, of the state before: the one
    after is gone. (Its other way, `truncation`, drops the step and bootstraps from that state's
    value, which nothing then trains; where episodes are as short as an unroll, values run away
    within ten updates.) A environment that went non-finite is dropped, with reward 0.
    """

    def __init__(
        self,
        env: Task,
        epoch_steps: int,
        report: Callable[[Metrics], None],
        reward_scale: float = 1.0,
    ):
        """Wraps one environment; `report` gets the metrics of each epoch, on the host.

        Rewards are scaled here, since brax would scale the value of a time-out with them.
        """
        self.env, self.epoch_steps, self.report = env, epoch_steps, report
        self.reward_scale = reward_scale

    @property
    def observation_size(self) -> int:
        return cast(Any, self.env).observation_size

    @property
    def action_size(self) -> int:
        return self.env.action_size

    @property
    def backend(self) -> str:
        return cast(Any, self.env).backend

    def reset(self, rng: jax.Array) -> State:
        """Resets `[N]` environments with keys `[N, 2]`."""
        (num_envs, _) = rng.shape
        keys = jax.vmap(jax.random.split)(rng)
        env_state = environments.reset(self.env, keys[:, 0])
        key, pool = self._pool(keys[0, 1], num_envs)
        none, zero = jnp.zeros(num_envs, bool), jnp.zeros(num_envs)
        outcome = environments.Outcome(env_state, none, none, none)
        length = jnp.zeros(num_envs, jnp.int32)
        metrics = environments.step_metrics(outcome, zero, length)
        totals = jax.tree.map(jnp.zeros_like, metrics)
        running = _Running(env_state, pool, key, zero, length, totals, jnp.zeros((), jnp.int32))
        return _brax_state(running, zero, outcome)

    def step(self, state: State, action: jax.Array) -> State:
        """Steps the environments with actions `[N, A]`, and restarts those that ended."""
        running = cast(_Running, state.pipeline_state)
        key, key_reset = jax.random.split(running.key)
        outcome = environments.advance(self.env, running.env_state, action)
        episode_return = running.episode_return + outcome.reward
        episode_length = running.episode_length + 1
        metrics = environments.step_metrics(outcome, episode_return, episode_length)
        running = _Running(
            env_state=environments.restart(outcome, running.pool, key_reset),
            pool=running.pool,
            key=key,
            episode_return=jnp.where(outcome.ended, 0.0, episode_return),
            episode_length=jnp.where(outcome.ended, 0, episode_length),
            totals=jax.tree.map(jnp.add, running.totals, metrics),
            steps=running.steps + 1,
        )
        running = jax.lax.cond(
            running.steps == self.epoch_steps, self._end_epoch, lambda x: x, running
        )
        return _brax_state(running, self.reward_scale * outcome.reward, outcome)

    def _end_epoch(self, running: _Running) -> _Running:
        """Ends an epoch: its metrics go to the host, the pool is renewed."""
        jax.debug.callback(self.report, reduce_totals(running.totals, self.epoch_steps))
        key, pool = self._pool(running.key, running.pool.done.shape[0])
        totals = jax.tree.map(jnp.zeros_like, running.totals)
        return running._replace(
            pool=pool, key=key, totals=totals, steps=jnp.zeros_like(running.steps)
        )

    def _pool(self, key: jax.Array, size: int) -> tuple[jax.Array, State]:
        key, key_pool = jax.random.split(key)
        return key, environments.reset(self.env, jax.random.split(key_pool, size))


def _brax_state(running: _Running, reward: jax.Array, outcome: environments.Outcome) -> State:
    """Returns environments `[N]` in brax's form, with the entries of `info` that its PPO reads."""
    done = outcome.ended.astype(jnp.float32)
    info = {
        "time_out": outcome.timed_out.astype(jnp.float32),
        "truncation": outcome.bad.astype(jnp.float32),
        "episode_done": done,
        "episode_metrics": {},
    }
    obs = environments.observation(running.env_state)
    return State(cast(Any, running), obs, reward, done, {}, info)


def train(
    env: Task,
    options: PpoConfig,
    config: OnPolicyConfig,
    learner: PpoLearner,
    epochs: int,
    seed: int,
    compile_program: Callable[..., None],
    on_epoch: Callable[[PpoLearner, dict[str, float]], None],
) -> None:
    """Trains for `epochs` epochs, on one device.

    Args:
      env: one environment.
      options: of the algorithm.
      config: sizes.
      learner: to begin with.
      epochs: 1 or more.
      seed: of environments, exploration and the order of the data.
      compile_program: `(name, program, *arguments)`; compiles what brax is about to run.
      on_epoch: gets the learner and the metrics after each epoch. What it raises ends training.
    """
    episodes: dict[str, float] = {}

    def keep(step: int, make_policy: Any, params: Any) -> None:
        nonlocal learner
        learner = PpoLearner(*params)

    def report(metrics: Metrics) -> None:
        episodes.update({name: float(value) for name, value in metrics.items()})

    def progress(_: int, metrics: Mapping[str, Any]) -> None:
        jax.effects_barrier()  # waits for `report`
        updates = {name: value for name, value in metrics.items() if name not in CLOCKS}
        updates = {name.replace("training/", "update/"): float(x) for name, x in updates.items()}
        on_epoch(learner, episodes | updates)

    def pmap(function: Callable[..., Any], axis_name: str, donate_argnums=()):
        jit = partial(jax.pmap, axis_name=axis_name)
        program = Program(function, donate_argnums, stepping_options(env), jit)

        def call(*arguments: Any) -> Any:
            if program.compiled is None:
                compile_program(function.__name__, program, *arguments)
            return program(*arguments)

        return call

    with jax_for_brax(pmap):
        brax_ppo.train(
            BraxEnvironments(env, config.epoch_steps, report, options.reward_scale),
            num_timesteps=epochs * config.epoch_transitions,
            max_devices_per_host=1,
            wrap_env=False,
            num_envs=config.num_envs,
            episode_length=env.episode_length,
            learning_rate=options.learning_rate,
            entropy_cost=options.entropy_cost,
            discounting=options.gamma,
            unroll_length=config.unroll_length,
            batch_size=config.batch_size,
            num_minibatches=config.num_minibatches,
            num_updates_per_batch=config.num_updates_per_batch,
            normalize_observations=options.normalize_observations,
            bootstrap_on_timeout=True,
            clipping_epsilon=options.clipping_epsilon,
            gae_lambda=options.gae_lambda,
            max_grad_norm=options.max_grad_norm,
            vf_loss_coefficient=options.value_coefficient,
            network_factory=ppo.network_factory(options),
            seed=seed,
            num_evals=epochs + 1,  # brax's epochs lie between its evaluations; we have our own
            run_evals=False,
            num_eval_envs=1,
            restore_params=learner,
            policy_params_fn=keep,
            progress_fn=progress,
        )


@contextlib.contextmanager
def jax_for_brax(pmap: Callable[..., Any], module: Any = brax_ppo) -> Iterator[None]:
    """A context in which brax's `module`, and nobody else, has a `jax` with two own functions.

    brax 0.14.2 calls `jax.device_put_replicated`, which jax 0.10 has retired. And its programs take
    the place of `jax.pmap`'s, to be compiled with the task's compiler options, apart from running,
    and so that a request to stop is heard meanwhile.
    """

    class Jax(types.ModuleType):
        def __getattr__(self, name: str) -> Any:
            return getattr(jax, name)

    def device_put_replicated(tree: Any, devices: Sequence[Any]) -> Any:
        return jax.tree.map(lambda x: jnp.stack([x] * len(devices)), tree)

    stand_in = cast(Any, Jax("jax"))
    stand_in.pmap, stand_in.device_put_replicated = pmap, device_put_replicated
    module.jax = stand_in
    try:
        yield
    finally:
        module.jax = jax
