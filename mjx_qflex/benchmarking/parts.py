"""The parts of a training step as steps to repeat: physics, task, restarts, acting, updating.

The ring's parts are in `replays`, which has them for other libraries' buffers, too.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from brax.envs.base import State

from mjx_qflex.benchmarking import source_physics
from mjx_qflex.tasks.body_task import BodyTask
from mjx_qflex.training import environments
from mjx_qflex.training.environments import Task
from mjx_qflex.types import Algorithm, Transition

FALL_S = (
    1.0  # after so much simulated time environments start again: episodes of a new policy are short
)


class Part(NamedTuple):
    """A step to repeat, and the state that it begins with (it is given away)."""

    step: Callable[[Any], Any]
    state: Any


def start(env: Task, num_envs: int) -> State:
    """Returns `[N]` reset environments."""
    return jax.jit(lambda key: environments.reset(env, jax.random.split(key, num_envs)))(
        jax.random.PRNGKey(0)
    )


def physics(env: BodyTask, num_envs: int) -> Part:
    """The physics steps of one action in N environments, under random excitations."""
    begin = source_physics.physics_of(start(env, num_envs))

    def step(state: Any) -> Any:
        now, begin, key, count = state
        key, draw = jax.random.split(key)
        ctrl = jax.random.uniform(draw, (num_envs, env.body.nu))
        now = jax.vmap(lambda s, u: env.body.advance(s, u, env.physics_steps)[0])(now, ctrl)
        again = (count + 1) * env.control_dt > FALL_S
        now = jax.tree.map(lambda x, y: jnp.where(again, x, y), begin, now)
        return now, begin, key, jnp.where(again, 0, count + 1)

    return Part(step, (jax.tree.map(jnp.copy, begin), begin, jax.random.PRNGKey(1), jnp.int32(0)))


def environment(env: Task, num_envs: int) -> Part:
    """A control step of N environments under random actions, restarts of ended ones included."""
    pool = start(env, num_envs)

    def step(state: Any) -> Any:
        now, pool, key = state
        key, draw, restart = jax.random.split(key, 3)
        action = jax.random.uniform(draw, (num_envs, env.action_size), minval=-1.0)
        outcome = environments.advance(env, now, action)
        return environments.restart(outcome, pool, restart), pool, key

    return Part(step, (jax.tree.map(jnp.copy, pool), pool, jax.random.PRNGKey(1)))


def restarting(env: Task, num_envs: int) -> Part:
    """The restart of N environments of which one in sixteen ended."""
    pool = start(env, num_envs)

    def step(state: Any) -> Any:
        now, pool, key = state
        key, draw, restart = jax.random.split(key, 3)
        ended = jax.random.bernoulli(draw, 1 / 16, (num_envs,))
        outcome = environments.Outcome(now, ended, ended, ended)
        return environments.restart(outcome, pool, restart), pool, key

    return Part(step, (jax.tree.map(jnp.copy, pool), pool, jax.random.PRNGKey(1)))


def pool(env: Task, size: int) -> Part:
    """The reset of a whole pool."""

    def step(state: Any) -> Any:
        _, key = state
        key, draw = jax.random.split(key)
        return environments.reset(env, jax.random.split(draw, size)), key

    return Part(step, (start(env, size), jax.random.PRNGKey(1)))


def acting(algorithm: Algorithm, learner: Any, obs: jax.Array, action_size: int) -> Part:
    """Exploring actions at observations `[N, O]`.

    One number of the observations follows the actions, so that no part of acting stays the same.
    """
    (num_envs, _) = obs.shape

    def step(state: Any) -> Any:
        learner, obs, acting, key, _ = state
        key, draw = jax.random.split(key)
        acted = algorithm.policy(learner).sample(obs, acting, draw)
        return learner, obs.at[0, 0].set(acted.action[0, 0]), acted.state, key, acted.action

    action = jnp.zeros((num_envs, action_size))
    acting = algorithm.policy(learner).init(num_envs)
    return Part(step, (learner, obs, acting, jax.random.PRNGKey(1), action))


def updating(algorithm: Algorithm, learner: Any, batch: Transition) -> Part:
    """An update on a batch `[B, ...]`."""

    def step(state: Any) -> Any:
        learner, batch, key = state
        key, draw = jax.random.split(key)
        return algorithm.update(learner, batch, draw)[0], batch, key

    return Part(step, (learner, batch, jax.random.PRNGKey(1)))
