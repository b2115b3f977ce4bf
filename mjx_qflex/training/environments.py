"""Operations on a batch of environments: pytrees whose leaves share the leading axis `[N, ...]`."""

from typing import Any, NamedTuple, Protocol

import chex
import jax
import jax.numpy as jnp
from brax.envs.base import State

from mjx_qflex.training.aggregate import mean_where
from mjx_qflex.types import EnvSpec, Metrics


class Task(Protocol):
    """What the training loop asks of an environment: brax's protocol, and the time limit."""

    episode_length: int  # control steps until the time-out

    @property
    def action_size(self) -> int: ...

    def reset(self, rng: jax.Array) -> State: ...

    def step(self, state: State, action: jax.Array) -> State: ...


def spec(env: Any) -> EnvSpec:
    """Returns what an algorithm is told of an environment.

    Parts of the observation and groups of muscles are told where the environment names them, as
    attributes `observation_parts` and `muscle_groups`.
    """
    return EnvSpec(
        observation_size=env.observation_size,
        action_size=env.action_size,
        observation=getattr(env, "observation_parts", {}),
        muscle_groups=getattr(env, "muscle_groups", ()),
    )


def reset_shapes(env: Task) -> State:
    """Returns one environment's reset state as `ShapeDtypeStruct`s; traces, and runs nothing."""
    return jax.eval_shape(env.reset, jax.eval_shape(lambda: jax.random.PRNGKey(0)))


def observation(state: State) -> jax.Array:
    """Returns the observation `[..., O]`; observations that are mappings are not supported."""
    if not isinstance(state.obs, jax.Array | jax.ShapeDtypeStruct):
        raise TypeError("the environment's observation must be one array")
    return state.obs


def reset(env: Task, keys: jax.Array) -> State:
    """Resets `[N]` environments with keys `[N, 2]`; no leaf is weakly typed."""
    return _strongly_typed(jax.vmap(env.reset)(keys))


def step(env: Task, state: State, action: jax.Array) -> State:
    """Steps `[N]` environments with actions `[N, A]`; types are those of `reset`."""
    return _strongly_typed(jax.vmap(env.step)(state, action))


class Outcome(NamedTuple):
    """What a step led to in N environments, none of which has restarted yet; masks are `[N]`."""

    state: State  # [N, ...]
    bad: jax.Array  # the action or the state is not finite; such an environment ends too
    terminated: jax.Array
    timed_out: jax.Array

    @property
    def ended(self) -> jax.Array:
        return self.terminated | self.timed_out | self.bad

    @property
    def reward(self) -> jax.Array:
        """`[N]`, 0 in bad environments."""
        return jnp.where(self.bad, 0.0, self.state.reward)


def advance(env: Task, before: State, action: jax.Array) -> Outcome:
    """Steps `[N]` environments with actions `[N, A]`, and tells how each stands."""
    (num_envs,) = before.done.shape
    state = step(env, before, action)
    chex.assert_trees_all_equal_shapes_and_dtypes(before, state)
    bad = nonfinite((observation(before), action, state), num_envs)
    terminated = (state.done > 0) & ~bad
    timed_out = (state.info["truncation"] > 0) & ~terminated & ~bad
    return Outcome(state, bad, terminated, timed_out)


def step_metrics(outcome: Outcome, episode_return: jax.Array, episode_length: jax.Array) -> Metrics:
    """Returns the metrics of a step, for `aggregate.reduce_metrics`.

    Args:
      outcome: of the step.
      episode_return: `[N]`, of the episodes that run or just ended, this step included.
      episode_length: `[N]`, likewise.
    """
    state, bad, ended = outcome.state, outcome.bad, outcome.ended
    return {
        "nonfinite_environments": bad.sum(),
        "episode/count": ended.sum(),
        "episode/terminations": outcome.terminated.sum(),
        "episode/timeouts": outcome.timed_out.sum(),
        "episode/return": jnp.where(ended, episode_return, 0.0).sum(),
        "episode/length": jnp.where(ended, episode_length, 0).sum(),
        "reward": mean_where(~bad, state.reward),
    } | {f"env/{name}": mean_where(~bad, value) for name, value in state.metrics.items()}


def restart(outcome: Outcome, pool: State, key: jax.Array) -> State:
    """Returns the environments, those that ended each at a state drawn from `pool` `[P, ...]`."""
    choice = jax.random.randint(key, outcome.ended.shape, 0, pool.done.shape[0])
    fresh = jax.tree.map(lambda x: x[choice], pool)
    return select(outcome.ended, fresh, outcome.state)


def select(mask: jax.Array, if_true: Any, if_false: Any) -> Any:
    """Chooses whole environments: `if_true` where `mask` `[N]`, else `if_false`."""

    def choose(x, y):
        return jnp.where(mask.reshape(mask.shape + (1,) * (x.ndim - 1)), x, y)

    return jax.tree.map(choose, if_true, if_false)


def nonfinite(tree: Any, num_envs: int) -> jax.Array:
    """Returns bool `[N]`: environments with a NaN or an infinity in any floating leaf of `tree`."""
    bad = jnp.zeros(num_envs, bool)
    for leaf in jax.tree.leaves(tree):
        if jnp.issubdtype(leaf.dtype, jnp.inexact):
            bad |= ~jnp.isfinite(leaf).reshape(num_envs, -1).all(axis=1)
    return bad


def _strongly_typed(tree: Any) -> Any:
    """Drops weak types: a scan carry that gains or loses one is traced twice (mujoco#2306)."""
    return jax.tree.map(lambda x: jax.lax.convert_element_type(x, jnp.asarray(x).dtype), tree)
