"""Operations on a batch of worlds: pytrees whose leaves share the leading axis `[N, ...]`."""

from typing import Any, Protocol

import jax
import jax.numpy as jnp
from brax.envs.base import State


class Task(Protocol):
    """What the training loop asks of an environment: brax's protocol, and the time limit."""

    episode_length: int  # control steps until the time-out

    @property
    def action_size(self) -> int: ...

    def reset(self, rng: jax.Array) -> State: ...

    def step(self, state: State, action: jax.Array) -> State: ...


def observation(state: State) -> jax.Array:
    """Returns the observation `[..., O]`; observations that are mappings are not supported."""
    if not isinstance(state.obs, jax.Array):
        raise TypeError("the environment's observation must be one array")
    return state.obs


def reset(env: Task, keys: jax.Array) -> State:
    """Resets `[N]` worlds with keys `[N, 2]`; no leaf is weakly typed."""
    return _strongly_typed(jax.vmap(env.reset)(keys))


def step(env: Task, state: State, action: jax.Array) -> State:
    """Steps `[N]` worlds with actions `[N, A]`; types are those of `reset`."""
    return _strongly_typed(jax.vmap(env.step)(state, action))


def select(mask: jax.Array, if_true: Any, if_false: Any) -> Any:
    """Chooses whole worlds: `if_true` where `mask` `[N]`, else `if_false`."""

    def choose(x, y):
        return jnp.where(mask.reshape(mask.shape + (1,) * (x.ndim - 1)), x, y)

    return jax.tree.map(choose, if_true, if_false)


def nonfinite(tree: Any, num_envs: int) -> jax.Array:
    """Returns bool `[N]`: worlds with a NaN or an infinity in any floating leaf of `tree`."""
    bad = jnp.zeros(num_envs, bool)
    for leaf in jax.tree.leaves(tree):
        if jnp.issubdtype(leaf.dtype, jnp.inexact):
            bad |= ~jnp.isfinite(leaf).reshape(num_envs, -1).all(axis=1)
    return bad


def _strongly_typed(tree: Any) -> Any:
    """Drops weak types: a scan carry that gains or loses one is traced twice (mujoco#2306)."""
    return jax.tree.map(lambda x: jax.lax.convert_element_type(x, jnp.asarray(x).dtype), tree)
