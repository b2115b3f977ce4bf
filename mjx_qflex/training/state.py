"""What a run is on the device, alone or as one of several seeds side by side."""

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
from brax.envs.base import State
from flax import struct

from mjx_qflex.training import replay as ring
from mjx_qflex.types import ActingState, Learner


class DeviceState(struct.PyTreeNode):
    """All of a run that lives on the device, donated to every program that advances it."""

    env_state: State  # [N, ...]
    pool: State  # [P, ...], reset states that ended environments restart from
    pool_age: jax.Array  # int32 [], steps that the pool has served
    acting: ActingState  # [N, ...]
    replay: ring.Replay  # [T, N, ...]
    learner: Learner
    key: jax.Array  # raw uint32 [2]
    episode_return: jax.Array  # [N], of the running episodes
    episode_length: jax.Array  # int32 [N]


_REPLAY_AXES = dict.fromkeys((field.name for field in fields(ring.Replay)), 0)
# Where `jax.vmap` finds the seeds of a population's state `[S, ...]`. All seeds write the same row
# of their rings at the same time, so its number is one for all: a row number of each seed would
# turn the write in place into a scatter. All draw their pools at the same time, too.
SEED_AXES = cast(Any, DeviceState)(
    env_state=0,
    pool=0,
    pool_age=None,
    acting=0,
    replay=cast(Any, ring.Replay)(**_REPLAY_AXES | {"row": None, "step": None}),
    learner=0,
    key=0,
    episode_return=0,
    episode_length=0,
)

# Where the environments are, which several devices share out; what has none is the same on all
# devices.
ENV_AXES = cast(Any, DeviceState)(
    env_state=0,
    pool=0,
    pool_age=None,
    acting=0,
    replay=ring.ENV_AXES,
    learner=None,
    key=None,
    episode_return=0,
    episode_length=0,
)


@dataclass(frozen=True)
class RunState:
    """A run: its device state, and counters that are Python ints so that they never overflow.

    Once it was passed to `prefill` or `epoch`, its arrays are donated: keep only what they return.
    A population is a run, too: its device state holds several seeds, its counters are of each.
    """

    device: DeviceState
    epochs: int = 0
    transitions: int = 0  # environment steps, prefill included
    updates: int = 0

    @property
    def learner(self) -> Learner:
        return self.device.learner


def key_shape(num_seeds: int | None = None) -> jax.ShapeDtypeStruct:
    """Returns the shape of one seed's key `[2]`, or of a population's `[S, 2]`."""
    one = jax.eval_shape(lambda: jax.random.PRNGKey(0))
    return one if num_seeds is None else one.update(shape=(num_seeds, *one.shape))


def with_learner(run: RunState, learner: Learner) -> RunState:
    """Returns a run, alone or of several seeds, that goes on from `learner`; arrays are copied."""

    def placed(own: jax.Array, new: jax.Array) -> jax.Array:
        return jax.device_put(jnp.array(jnp.broadcast_to(new, own.shape)), own.sharding)

    placed_learner = jax.tree.map(placed, run.learner, learner)
    return replace(run, device=run.device.replace(learner=placed_learner))


@jax.jit
def take(population: DeviceState, index: int) -> DeviceState:
    """Returns a copy of one seed's state."""
    return _map_seeds(lambda x: x[index], population)


def join(shapes: DeviceState, members: Iterable[RunState]) -> RunState:
    """Returns the population of `members`, which stand at the same counters.

    Each member is let go before the next is asked for: there is room for one besides them all.

    Args:
      shapes: the population's state as `ShapeDtypeStruct`s.
      members: at least one.
    """
    device = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    run = None
    for index, member in enumerate(members):
        device = _put(device, index, member.device)
        run = replace(member, device=device)
    assert run is not None, "a population has members"
    return run


@partial(jax.jit, donate_argnums=0)
def _put(population: DeviceState, index: jax.Array, member: DeviceState) -> DeviceState:
    """Writes one seed's state into its place."""
    update = partial(jax.lax.dynamic_update_index_in_dim, index=index, axis=0)
    return _map_seeds(update, population, member, common=lambda old, new: new)


def _map_seeds(function: Any, *states: DeviceState, common: Any = lambda leaf: leaf) -> DeviceState:
    """Maps `function` over the leaves that are each seed's, and `common` over those of all."""

    def at(axis: int | None, *parts: Any) -> Any:
        return jax.tree.map(common if axis is None else function, *parts)

    return jax.tree.map(at, SEED_AXES, *states, is_leaf=lambda axis: axis is None)
