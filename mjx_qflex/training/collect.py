"""Collecting: act, step every environment, write the replay ring, restart what ended."""

from collections.abc import Mapping
from functools import partial
from typing import Any, cast

import chex
import jax
import jax.numpy as jnp
from brax.envs.base import State

from mjx_qflex import parallel
from mjx_qflex.conditional import when
from mjx_qflex.sizes import LoopConfig
from mjx_qflex.training import environments
from mjx_qflex.training import replay as ring
from mjx_qflex.training.environments import Task
from mjx_qflex.training.state import DeviceState
from mjx_qflex.types import Acted, Algorithm, Metrics, Transition

Extras = Mapping[str, Any]  # shape and dtype of what a policy gives along with one action


def act(algorithm: Algorithm, device: DeviceState, key: jax.Array) -> Acted:
    """Returns what the policy does in every environment, with its own noise."""
    obs = environments.observation(device.env_state)
    return algorithm.policy(device.learner).sample(obs, device.acting, key)


def act_uniformly(env: Task, algorithm: Algorithm, device: DeviceState, key: jax.Array) -> Acted:
    """Returns actions [N, A] drawn uniformly from [-1, 1], and extras of zeros."""
    action = jax.random.uniform(
        key, (device.episode_length.shape[0], env.action_size), minval=-1.0, maxval=1.0
    )
    shapes = jax.eval_shape(partial(act, algorithm), device, key).extras
    extras = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return Acted(action, device.acting, extras)


def collect(
    env: Task,
    algorithm: Algorithm,
    config: LoopConfig,
    device: DeviceState,
    acted: Acted,
    key: jax.Array,
) -> tuple[DeviceState, Metrics]:
    """Steps every environment once, writes the ring and restarts where an episode ended.

    The ring receives the next observation from before the reset, and discount 0 on termination
    only. An environment with a non-finite action, observation, reward or state leaf is ended with
    reward 0, and leaves zeros marked invalid in the ring; all but what it saw before, to which the
    step before led.

    Args:
      env: one environment; vmapped here.
      algorithm: gives the acting state of a fresh episode.
      config: sizes of the run.
      device: the run before the step.
      acted: actions `[N, A]`, the acting state after choosing them, and what is kept with them.
      key: draws the reset states, and which of them an ended environment takes.
    """
    chex.assert_shape(acted.action, (config.num_envs, env.action_size))
    key_pool, key_choice = jax.random.split(key)
    device = refresh_pool(env, config, device, key_pool)
    obs = environments.observation(device.env_state)
    outcome = environments.advance(env, device.env_state, acted.action)
    transition = Transition(
        obs=obs,
        action=acted.action,
        reward=outcome.state.reward,
        discount=1.0 - outcome.terminated,
        next_obs=environments.observation(outcome.state),
        extras=acted.extras,
    )
    filler = jax.tree.map(jnp.zeros_like, transition)
    transition = environments.select(outcome.bad, filler, transition)
    transition = transition._replace(obs=jnp.where(jnp.isfinite(obs), obs, 0.0))
    episode_return = device.episode_return + transition.reward
    episode_length = device.episode_length + 1
    metrics = environments.step_metrics(outcome, episode_return, episode_length)
    fresh = algorithm.policy(device.learner).init(config.num_envs)
    device = device.replace(
        env_state=environments.restart(outcome, device.pool, key_choice),
        acting=environments.select(outcome.ended, fresh, acted.state),
        replay=ring.add(device.replay, transition, outcome.ended, ~outcome.bad),
        episode_return=jnp.where(outcome.ended, 0.0, episode_return),
        episode_length=jnp.where(outcome.ended, 0, episode_length),
    )
    return device, metrics


def refresh_pool(env: Task, config: LoopConfig, device: DeviceState, key: jax.Array) -> DeviceState:
    """Draws the `[P, ...]` reset states anew where they have served `reset_pool_steps` steps.

    A full reset of every environment at every step would cost as much as stepping it. The pool
    costs P resets now and then, and each step one gather and one select of the environment state;
    no start is favoured for long.
    """
    due = device.pool_age == config.reset_pool_steps

    def draw(_: State) -> State:
        return environments.reset(env, jax.random.split(key, config.reset_pool))

    age = jnp.where(due, 0, device.pool_age) + 1
    return device.replace(pool=when(due, draw, device.pool), pool_age=age)


def initial_state(
    env: Task, algorithm: Algorithm, config: LoopConfig, key: jax.Array
) -> DeviceState:
    """Returns a run that has done nothing yet."""
    key, key_learner, key_reset, key_pool = jax.random.split(key, 4)
    num_envs = config.num_envs
    keys = (
        parallel.split(key_reset, num_envs),
        parallel.split(key_pool, config.reset_pool),
    )
    # Environments and pool in one call: a reset is traced and compiled once.
    states = environments.reset(env, jnp.concatenate(keys))
    env_state = jax.tree.map(lambda x: x[:num_envs], states)
    learner = algorithm.init(key_learner)
    extras = extras_spec(algorithm, env_state)
    return DeviceState(
        env_state=env_state,
        pool=jax.tree.map(lambda x: x[num_envs:], states),
        pool_age=jnp.zeros((), jnp.int32),
        acting=algorithm.policy(learner).init(num_envs),
        replay=ring.init(replay_layout(env, config, env_state, extras)),
        learner=learner,
        key=key,
        episode_return=jnp.zeros(num_envs),
        episode_length=jnp.zeros(num_envs, jnp.int32),
    )


def extras_spec(algorithm: Algorithm, reset_state: State) -> Extras:
    """Returns shape and dtype of what the policy gives along with one environment's action."""
    seen = environments.observation(reset_state)
    one = jax.ShapeDtypeStruct((1, seen.shape[-1]), seen.dtype)
    key = jax.eval_shape(lambda: jax.random.PRNGKey(0))

    def sample(obs: jax.Array, key: jax.Array):
        policy = algorithm.policy(algorithm.init(key))
        return policy.sample(obs, policy.init(1), key).extras

    shapes = jax.eval_shape(sample, one, key)
    return {name: jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for name, x in shapes.items()}


def transition_spec(env: Task, reset_state: State, extras: Extras | None = None) -> Transition:
    """Returns shape and dtype of one environment's transition.

    Args:
      env: one environment.
      reset_state: of any number of environments `[..., N]`; its shapes are all that counts.
      extras: as of `extras_spec`; None for none.
    """
    seen = environments.observation(reset_state)
    obs = jax.ShapeDtypeStruct(seen.shape[reset_state.done.ndim :], seen.dtype)
    action, scalar = (jax.ShapeDtypeStruct(x, jnp.float32) for x in ((env.action_size,), ()))
    return Transition(*cast(Any, (obs, action, scalar, scalar, obs, dict(extras or {}))))


def replay_layout(
    env: Task, config: LoopConfig, reset_state: State, extras: Extras | None = None
) -> ring.Layout:
    """Returns what decides the shapes of a run's ring; its capacity is settled.

    Args:
      env: one environment.
      config: sizes of the run.
      reset_state: as of `transition_spec`.
      extras: as of `extras_spec`; None for none.
    """
    assert config.replay_capacity > 0, "the capacity is settled before the ring is laid out"
    return ring.Layout(
        transition_spec(env, reset_state, extras),
        config.num_envs,
        config.replay_capacity,
        env.episode_length,
        config.replay_obs_dtype,
    )
