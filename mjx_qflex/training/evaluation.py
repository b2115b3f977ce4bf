"""Evaluation: whole episodes of many environments side by side, and one recorded for a video."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from brax.envs.base import State
from flax import struct

from mjx_qflex.training import environments
from mjx_qflex.training.environments import Task
from mjx_qflex.training.program import Program, stepping_options
from mjx_qflex.types import ActingState, Algorithm, Policy, stateless_policy

PolicyOf = Callable[[Any], Policy]  # parameters, such as a learner -> policy


def constant_policy(action: jax.Array) -> Policy:
    """Returns the policy that always takes the one action `[A]`.

    With -1 throughout it is zero excitation of a muscle-driven body.
    """

    def act(obs: jax.Array) -> jax.Array:
        return jnp.broadcast_to(action[None], (obs.shape[0], *action.shape))

    return stateless_policy(lambda obs, key: act(obs), act)


class EvalResult(struct.PyTreeNode):
    """The first episode of each of E environments.

    Attributes:
      return_: `[E]`, undiscounted.
      length: int32 `[E]`, control steps.
      terminated: bool `[E]`, False where the episode ended by time-out.
      nonfinite: bool `[E]`, the environment went non-finite; that step counts with reward 0.
      metrics: each environment metric (reward terms among them), mean over the episode, `[E]`.
    """

    return_: jax.Array
    length: jax.Array
    terminated: jax.Array
    nonfinite: jax.Array
    metrics: dict[str, jax.Array]


class Rollout(NamedTuple):
    """One recorded episode of L control steps, on the host.

    `pipeline_state` has leaves `[L + 1, ...]`, from the reset to the last finite state, and `obs`
    is `[L + 1, O]`; `reward` is `[L]`.
    """

    pipeline_state: Any
    obs: Any
    reward: Any
    length: int


class _Episodes(struct.PyTreeNode):
    """Episodes under way: what an evaluation carries from step to step."""

    state: State  # [E, ...]
    acting: ActingState
    alive: jax.Array  # bool [E], the first episode still runs
    result: EvalResult  # sums so far


def make_evaluate(env: Task, policy: PolicyOf, num_envs: int) -> Program:
    """Returns the program `evaluate(params, key) -> EvalResult` over `num_envs` environments.

    Environment i starts from a reset key that depends on `key` and i alone, so policies evaluated
    with one key share their starts and their returns can be compared in pairs. It stops when every
    environment's first episode is over, at the latest after `env.episode_length` steps.
    """

    def evaluate(params: Any, key: jax.Array) -> EvalResult:
        start = _start(env, policy(params), key, num_envs)

        def running(loop):
            time, episodes = loop
            return episodes.alive.any() & (time < env.episode_length)

        def advance(loop):
            time, episodes = loop
            return time + 1, _advance(env, policy(params), episodes)

        _, episodes = jax.lax.while_loop(running, advance, (jnp.zeros((), jnp.int32), start))
        result = episodes.result
        steps = jnp.maximum(result.length, 1)
        return result.replace(metrics={k: v / steps for k, v in result.metrics.items()})

    return Program(evaluate, (), stepping_options(env))


def make_programs(env: Task, algorithm: Algorithm, num_envs: int) -> dict[str, Program]:
    """Returns all programs of evaluation by name; `evaluate` and its like take `num_envs`
    environments.

    `evaluate(learner, key)`, `evaluate_constant(action [A], key)`, and `rollout` for `record`.
    """
    return {
        "evaluate": make_evaluate(env, algorithm.policy, num_envs),
        "evaluate_constant": make_evaluate(env, constant_policy, num_envs),
        "rollout": make_rollout(env, algorithm.policy),
    }


def make_rollout(env: Task, policy: PolicyOf) -> Program:
    """Returns the program of `record`: `[episode_length]` steps of one environment, and a mask."""

    def rollout(params: Any, key: jax.Array):
        start = _start(env, policy(params), key, 1)

        def advance(episodes: _Episodes, _):
            after = _advance(env, policy(params), episodes)
            seen = (after.state.pipeline_state, after.state.obs)
            recorded = (seen, after.state.reward, episodes.alive)
            return after, jax.tree.map(lambda x: x[0], recorded)

        end, recorded = jax.lax.scan(advance, start, length=env.episode_length)
        first = jax.tree.map(lambda x: x[0], (start.state.pipeline_state, start.state.obs))
        return first, recorded, end.result.nonfinite[0]

    return Program(rollout, (), stepping_options(env))


def record(rollout: Program, params: Any, key: jax.Array) -> Rollout:
    """Plays environment 0 of the evaluation with that key, and trims it at the episode's end."""
    first, recorded, nonfinite = jax.device_get(rollout(params, key))
    seen, reward, alive = recorded
    length = int(alive.sum()) - int(nonfinite)
    states, obs = jax.tree.map(
        lambda x, xs: np.concatenate([np.asarray(x)[None], xs[:length]]), first, seen
    )
    return Rollout(states, obs, reward[:length], length)


def _start(env: Task, policy: Policy, key: jax.Array, num_envs: int) -> _Episodes:
    key_reset, _ = jax.random.split(key)
    # fold_in, unlike split, gives environment i the same key whatever num_envs is.
    keys = jax.vmap(lambda i: jax.random.fold_in(key_reset, i))(jnp.arange(num_envs))
    state = environments.reset(env, keys)
    return _Episodes(
        state=state,
        acting=policy.init(num_envs),
        alive=jnp.ones(num_envs, bool),
        result=EvalResult(
            return_=jnp.zeros(num_envs),
            length=jnp.zeros(num_envs, jnp.int32),
            terminated=jnp.zeros(num_envs, bool),
            nonfinite=jnp.zeros(num_envs, bool),
            metrics={name: jnp.zeros(num_envs) for name in state.metrics},
        ),
    )


def _advance(env: Task, policy: Policy, episodes: _Episodes) -> _Episodes:
    """Steps every environment once; only those still alive count."""
    (num_envs,) = episodes.alive.shape
    acted = policy.mode(environments.observation(episodes.state), episodes.acting)
    state = environments.step(env, episodes.state, acted.action)
    bad = environments.nonfinite((acted.action, state), num_envs) & episodes.alive
    counted = episodes.alive & ~bad
    terminated = counted & (state.done > 0)
    timed_out = counted & (state.info["truncation"] > 0)
    result = episodes.result
    return _Episodes(
        state=state,
        acting=acted.state,
        alive=counted & ~terminated & ~timed_out,
        result=EvalResult(
            return_=result.return_ + jnp.where(counted, state.reward, 0.0),
            length=result.length + episodes.alive,
            terminated=result.terminated | terminated,
            nonfinite=result.nonfinite | bad,
            metrics={
                name: total + jnp.where(counted, state.metrics[name], 0.0)
                for name, total in result.metrics.items()
            },
        ),
    )
