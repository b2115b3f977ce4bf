"""The replay ring: experience of all environments, in device memory.

The ring has shape `[T, num_envs, ...]`. A vector step fills one row, `[num_envs, ...]`, which is
one contiguous slab of memory; a donated ring is therefore updated in place for the price of the
slab. Rows are never rolled, and indices stay pairs `(row, env)`: a flat index of a large ring
would overflow int32.
"""

import math
import os
from functools import partial
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import struct

from mjx_qflex.conditional import when
from mjx_qflex.errors import UserError
from mjx_qflex.types import Transition

GIB = 2**30

# Rejection rounds before the exact fallback. With a share p of invalid rows a round fails with
# probability p, so the fallback runs for a share p^8 of the samples: never, unless almost all
# of the ring is invalid.
CANDIDATE_ROUNDS = 8

# What remains for the programs themselves: environment states, learner, temporaries.
USABLE_SHARE = 0.9


class Replay(struct.PyTreeNode):
    """A ring of transitions.

    Attributes:
      data: fields `[T, N, ...]`, each in the dtype it was given in.
      valid: bool `[T, N]`; False for rows not yet written and for the finite filler that stands in
        for a world that went non-finite.
      row: int32 `[]`, the row that the next vector step is written to.
      filled: int32 `[]`, how many rows have been written, at most T.
    """

    data: Transition
    valid: jax.Array
    row: jax.Array
    filled: jax.Array


def num_rows(num_envs: int, capacity: int) -> int:
    """Returns T, the vector steps that hold at least `capacity` transitions."""
    return math.ceil(capacity / num_envs)


def init(spec: Transition, num_envs: int, capacity: int) -> Replay:
    """Returns an empty ring.

    Args:
      spec: the shape and dtype of one environment's transition, fields `[...]`.
      num_envs: N, the environments that are written side by side.
      capacity: transitions to hold; rounded up to whole vector steps.
    """
    rows = num_rows(num_envs, capacity)
    return Replay(
        data=jax.tree.map(lambda x: jnp.zeros((rows, num_envs, *x.shape), x.dtype), spec),
        valid=jnp.zeros((rows, num_envs), bool),
        row=jnp.zeros((), jnp.int32),
        filled=jnp.zeros((), jnp.int32),
    )


def add(replay: Replay, transition: Transition, valid: jax.Array) -> Replay:
    """Writes one vector step over the oldest row.

    Args:
      replay: the ring; donate it to the enclosing jit, or the whole ring is copied.
      transition: fields `[N, ...]`, finite also where invalid.
      valid: bool `[N]`, False where the row is filler.
    """
    rows = replay.valid.shape[0]
    chex.assert_trees_all_equal_dtypes(replay.data, transition)

    def write(field, slab):
        return jax.lax.dynamic_update_slice_in_dim(field, slab[None], replay.row, axis=0)

    return Replay(
        data=jax.tree.map(write, replay.data, transition),
        valid=write(replay.valid, valid),
        row=(replay.row + 1) % rows,
        filled=jnp.minimum(replay.filled + 1, rows),
    )


def sample(replay: Replay, key: jax.Array, shape: tuple[int, ...]) -> Transition:
    """Draws transitions uniformly, with replacement, over the valid ones.

    Each draw makes `CANDIDATE_ROUNDS` uniform candidates among the written rows and takes the first
    valid one, which is rejection sampling and so uniform over the valid transitions. Where all of a
    draw's candidates are invalid, a second draw counts the valid transitions and inverts their
    cumulative count: also uniform, exact, and unable to return an invalid transition while a valid
    one exists. It reads the whole mask (not the data), and runs only when it is needed. A ring
    without any valid transition returns its finite filler.

    Args:
      replay: the ring, with at least one row written.
      key: random key.
      shape: leading shape of the batch, such as `(B,)` or `(U, B)`.

    Returns:
      Transitions with fields `[*shape, ...]`.
    """
    key_row, key_env, key_exact = jax.random.split(key, 3)
    candidates = (CANDIDATE_ROUNDS, *shape)
    rows = jax.random.randint(key_row, candidates, 0, jnp.maximum(replay.filled, 1))
    envs = jax.random.randint(key_env, candidates, 0, replay.valid.shape[1])
    is_valid = replay.valid[rows, envs]
    first = jnp.argmax(is_valid, axis=0)[None]
    row = jnp.take_along_axis(rows, first, axis=0)[0]
    env = jnp.take_along_axis(envs, first, axis=0)[0]
    found = is_valid.any(axis=0)

    def replace_missing(drawn: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        exact = _draw_exactly(replay.valid, key_exact, shape)
        return jax.tree.map(partial(jnp.where, found), drawn, exact)

    row, env = when(~found.all(), replace_missing, (row, env))
    return jax.tree.map(lambda ring: ring[row, env], replay.data)


def _draw_exactly(
    valid: jax.Array, key: jax.Array, shape: tuple[int, ...]
) -> tuple[jax.Array, jax.Array]:
    """Draws `(row, env)` uniformly over the True entries of `valid` `[T, N]`, without rejection."""
    per_row = valid.sum(axis=1, dtype=jnp.int32)
    up_to_row = jnp.cumsum(per_row)
    rank = jax.random.randint(key, shape, 0, jnp.maximum(up_to_row[-1], 1))
    row = jnp.searchsorted(up_to_row, rank, side="right").clip(0, valid.shape[0] - 1)
    rank_in_row = rank - (up_to_row[row] - per_row[row])
    up_to_env = jnp.cumsum(valid[row], axis=-1, dtype=jnp.int32)
    env = jnp.argmax(up_to_env > rank_in_row[..., None], axis=-1)
    return row, env


def replay_bytes(spec: Transition, num_envs: int, capacity: int) -> int:
    """Returns the bytes that `init` would allocate for the same arguments; allocates nothing."""
    return num_bytes(jax.eval_shape(lambda: init(spec, num_envs, capacity)))


def num_bytes(tree: Any) -> int:
    """Returns the bytes of all arrays of a tree, or of what its `ShapeDtypeStruct`s stand for."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def check_fits(needed: int, free: int | None) -> None:
    """Refuses a ring of `needed` bytes that the `free` bytes of the device cannot hold.

    Raises:
      UserError: it does not fit; the message names both sizes and the key to lower.
    """
    if free is not None and needed > USABLE_SHARE * free:
        raise UserError(
            f"the replay needs {needed / GIB:.2f} GiB, but {free / GIB:.2f} GiB are free on the "
            f"device, of which {USABLE_SHARE:.0%} may go to it; lower loop.replay_capacity"
        )


def free_device_bytes() -> int | None:
    """Returns the bytes free on the default device, None where the platform does not tell."""
    device = jax.devices()[0]
    if device.platform == "cpu":
        return _free_host_bytes()
    stats = device.memory_stats() or {}
    if "bytes_limit" not in stats:
        return None
    return stats["bytes_limit"] - stats.get("bytes_in_use", 0)


def _free_host_bytes() -> int | None:
    """Returns the free memory of the host, or of its control group where that is less."""
    free = []
    available = _numbers(Path("/proc/meminfo")).get("MemAvailable:")
    if available is not None:
        free.append(available * 1024)
    elif "SC_AVPHYS_PAGES" in os.sysconf_names:
        free.append(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.exists() and limit.read_text().strip().isdigit():
        # Not memory.current: that counts the file cache, which gives way.
        used = _numbers(limit.with_name("memory.stat")).get("anon", 0)
        free.append(int(limit.read_text()) - used)
    return min(free, default=None)


def _numbers(path: Path) -> dict[str, int]:
    """Returns the lines "name number ..." of a file by name; none where there is no such file."""
    lines = path.read_text().splitlines() if path.exists() else []
    return {name: int(value) for name, value, *_ in map(str.split, lines)}
