"""The replay ring: experience of all environments, in device memory, each observation once.

A vector step fills one row of `T`, `[num_envs, ...]`, which is one contiguous slab of memory; a
donated ring is therefore updated in place for the price of the slab. Rows are never rolled, and
indices stay pairs `(row, env)`: a flat index of a large ring would overflow int32.

What an action led to is the observation of the next row, unless its episode ended there: that one's
last observation, from before the reset, is kept apart, among the K that each environment has room
for. Should an environment end more often, the oldest rows are given up, all environments of them,
until what is left is complete. So a sample is always uniform over the newest rows, terminations and
time-outs among them in their true proportion, and the true next observation comes with each.

    obs    row 0 .. T-1       what the environments saw
           row T              where the newest row led to
           row T+1 .. T+K     last observations of episodes, of each environment those of its own

Every array has the environments' axis; only the two counters of vector steps are common to all.
"""

import bisect
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import chex
import jax
import jax.numpy as jnp
from flax import struct

from mjx_qflex.conditional import when
from mjx_qflex.errors import UserError
from mjx_qflex.sizes import ObsDtype
from mjx_qflex.types import Transition

GIB = 2**30

# Rejection rounds between the first candidate and the exact fallback. With a share p of invalid
# rows a round fails with probability p, so the fallback runs for a share p^9 of the samples: never,
# unless almost all of the ring is invalid.
CANDIDATE_ROUNDS = 8

# Ends of episodes that there is room for, as a share of all transitions: a body that falls at once
# is on the floor after 6 to 8 actions.
ENDING_SHARE = 1 / 5

# What remains for the programs themselves: environment states, learner, temporaries.
USABLE_SHARE = 0.9

# Of the free memory, where the capacity is chosen by it: a checkpoint takes a copy of the ring.
CHOSEN_SHARE = 0.4

# The age of an entry that was never written: older than any row.
NEVER = 2**31


@dataclass(frozen=True)
class Layout:
    """What decides the shapes of a ring.

    Attributes:
      transition: shape and dtype of one environment's transition, fields `[...]`.
      num_envs: N, the environments that are written side by side.
      capacity: transitions to hold; rounded up to whole vector steps.
      episode_length: steps until an episode's time-out; the fewer, the more ends to make room for.
      obs_dtype: in which observations are stored; samples are float32 again.
    """

    transition: Transition
    num_envs: int
    capacity: int
    episode_length: int
    obs_dtype: ObsDtype = "float32"

    @property
    def rows(self) -> int:
        """T, the vector steps that hold at least `capacity` transitions."""
        return num_rows(self.num_envs, self.capacity)

    @property
    def endings(self) -> int:
        """K, the last observations that each environment has room for: time-outs always fit."""
        return math.ceil(self.rows * max(ENDING_SHARE, 1 / self.episode_length))


class Replay(struct.PyTreeNode):
    """A ring of transitions.

    Attributes:
      obs: `[T + 1 + K, N, ...]`, see above; float32, or the bits of bfloat16 as uint16, since
        XLA:CPU computes in float32 whatever it does with bfloat16, and would copy the whole ring.
      action, reward, discount, extras: `[T, N, ...]`, each in the dtype it was given in.
      valid: bool `[T, N]`; False for rows not yet written and for the finite filler that stands in
        for an environment that went non-finite.
      ending: int32 `[T, N]`, where among the K the episode's last observation is, -1 where the
        episode went on.
      next_ending: int32 `[N]`, where the next one goes.
      ended_at: uint32 `[K, N]`, the vector step that each of the K is from.
      held: int32 `[N]`, how many of the newest rows each environment has complete, at most T.
      row: int32 `[]`, the row that the next vector step is written to.
      step: uint32 `[]`, vector steps so far, modulo 2^32; differences are all that counts.
    """

    obs: jax.Array
    action: jax.Array
    reward: jax.Array
    discount: jax.Array
    extras: Mapping[str, jax.Array]
    valid: jax.Array
    ending: jax.Array
    next_ending: jax.Array
    ended_at: jax.Array
    held: jax.Array
    row: jax.Array
    step: jax.Array

    @property
    def window(self) -> jax.Array:
        """int32 `[]`, how many of the newest rows are complete; samples come from these."""
        return self.held.min()


# Where the environments are in each field; None where a field is one for all environments.
ENV_AXES = cast(Any, Replay)(
    obs=1,
    action=1,
    reward=1,
    discount=1,
    extras=1,
    valid=1,
    ending=1,
    next_ending=0,
    ended_at=1,
    held=0,
    row=None,
    step=None,
)


def num_rows(num_envs: int, capacity: int) -> int:
    """Returns the vector steps that hold at least `capacity` transitions."""
    return math.ceil(capacity / num_envs)


def init(layout: Layout) -> Replay:
    """Returns an empty ring."""
    rows, endings, num_envs = layout.rows, layout.endings, layout.num_envs
    spec = layout.transition

    def zeros(field: jax.Array) -> jax.Array:
        return jnp.zeros((rows, num_envs, *field.shape), field.dtype)

    return Replay(
        obs=_stored(jnp.zeros((rows + 1 + endings, num_envs, *spec.obs.shape), layout.obs_dtype)),
        action=zeros(spec.action),
        reward=zeros(spec.reward),
        discount=zeros(spec.discount),
        extras=jax.tree.map(zeros, spec.extras),
        valid=jnp.zeros((rows, num_envs), bool),
        ending=jnp.full((rows, num_envs), -1, jnp.int32),
        next_ending=jnp.zeros(num_envs, jnp.int32),
        ended_at=jnp.full((endings, num_envs), NEVER, jnp.uint32),
        held=jnp.zeros(num_envs, jnp.int32),
        row=jnp.zeros((), jnp.int32),
        step=jnp.zeros((), jnp.uint32),
    )


def add(replay: Replay, transition: Transition, ended: jax.Array, valid: jax.Array) -> Replay:
    """Writes one vector step over the oldest row.

    Args:
      replay: the ring; donate it to the enclosing jit, or the whole ring is copied.
      transition: fields `[N, ...]`, finite also where invalid. `obs` is the `next_obs` of the
        vector step before, in environments that did not end there; so it is also where invalid.
      ended: bool `[N]`, where the next vector step does not begin at `next_obs`.
      valid: bool `[N]`, False where the rest of the transition is filler.
    """
    rows, num_envs = replay.valid.shape
    chex.assert_shape((ended, valid), (num_envs,))
    chex.assert_trees_all_equal_dtypes(
        (replay.action, replay.extras), (transition.action, dict(transition.extras))
    )

    def write(field: jax.Array, slab: jax.Array, row: Any = replay.row) -> jax.Array:
        return jax.lax.dynamic_update_slice_in_dim(field, slab[None], row, axis=0)

    (endings, _), kept = replay.ended_at.shape, ended & valid
    environments = jnp.arange(num_envs)
    half = replay.obs.dtype == jnp.uint16
    seen, led_to = (
        _stored(x.astype(jnp.bfloat16 if half else replay.obs.dtype))
        for x in (transition.obs, transition.next_obs)
    )
    obs = write(replay.obs, seen)
    obs = write(obs, led_to, rows)
    place = jnp.where(kept, rows + 1 + replay.next_ending, obs.shape[0])  # the last is nowhere
    obs = obs.at[place, environments].set(led_to, mode="drop", unique_indices=True)
    # What is overwritten completed a row, which goes, and with it all rows before.
    overwritten = replay.ended_at[replay.next_ending, environments]
    age = replay.step - overwritten
    left = jnp.minimum(age, rows).astype(jnp.int32)
    held = jnp.minimum(replay.held + 1, rows)
    return Replay(
        obs=obs,
        action=write(replay.action, transition.action),
        reward=write(replay.reward, transition.reward),
        discount=write(replay.discount, transition.discount),
        extras=jax.tree.map(write, replay.extras, transition.extras),
        valid=write(replay.valid, valid),
        ending=write(replay.ending, jnp.where(kept, replay.next_ending, -1)),
        next_ending=(replay.next_ending + kept) % endings,
        # What goes on writes back what it read. Were that write left out, XLA could not tell
        # that it follows the reading, and would copy the whole array.
        ended_at=replay.ended_at.at[replay.next_ending, environments].set(
            jnp.where(kept, replay.step, overwritten), unique_indices=True
        ),
        held=jnp.where(kept, jnp.minimum(held, left), held),
        row=(replay.row + 1) % rows,
        step=replay.step + 1,
    )


def sample(replay: Replay, key: jax.Array, shape: tuple[int, ...]) -> Transition:
    """Draws transitions uniformly, with replacement, over the valid ones of the window.

    Each draw takes the first valid one of some uniform candidates among the window's rows, which is
    rejection sampling and so uniform over the valid transitions. Almost always the first candidate
    is it; `CANDIDATE_ROUNDS` more are made only where one is not, for random numbers are most of
    what a small batch costs. Where all of a draw's candidates are invalid, another draw counts the
    valid transitions and inverts their cumulative count: also uniform, exact, and unable to return
    an invalid transition while a valid one exists. It reads the whole mask (not the data), and runs
    only when it is needed. A ring without any valid transition returns its finite filler.

    Args:
      replay: the ring, with at least one row written.
      key: random key.
      shape: leading shape of the batch, such as `(B,)` or `(U, B)`.

    Returns:
      Transitions with fields `[*shape, ...]`, observations as float32.
    """
    key, key_again = jax.random.split(key)
    drawn = _candidates(replay, key, shape)
    missing = ~replay.valid[drawn]
    row, env = when(missing.any(), partial(_draw_again, replay, key_again, missing), drawn)
    return _read(replay, row, env)


def _candidates(
    replay: Replay, key: jax.Array, shape: tuple[int, ...]
) -> tuple[jax.Array, jax.Array]:
    """Draws `(row, env)` uniformly over the window, valid or not.

    By remainders: uniform but for one part in 2^32 over the rows, at half the random numbers of
    `jax.random.randint`, which draws twice to be closer.
    """
    num_rows, num_envs = replay.valid.shape
    window = replay.window
    # While nothing was given up, rows are drawn by their place.
    oldest = jnp.where(window < num_rows, replay.row - window, 0)
    bits = jax.random.bits(key, (2, *shape), jnp.uint32)
    row = (bits[0] % jnp.maximum(window, 1).astype(jnp.uint32)).astype(jnp.int32)
    return (oldest + row) % num_rows, (bits[1] % jnp.uint32(num_envs)).astype(jnp.int32)


def _draw_again(
    replay: Replay, key: jax.Array, missing: jax.Array, drawn: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """Replaces the draws that are `missing`, bool `[...]`, by valid ones."""
    num_rows = replay.valid.shape[0]
    key, key_exact = jax.random.split(key)
    rows, envs = _candidates(replay, key, (CANDIDATE_ROUNDS, *missing.shape))
    is_valid = replay.valid[rows, envs]
    first = jnp.argmax(is_valid, axis=0)[None]
    again = tuple(jnp.take_along_axis(places, first, axis=0)[0] for places in (rows, envs))
    found = is_valid.any(axis=0)

    def replace_missing(drawn: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        in_window = (replay.row - 1 - jnp.arange(num_rows)) % num_rows < replay.window
        exact = _draw_exactly(replay.valid & in_window[:, None], key_exact, missing.shape)
        return jax.tree.map(partial(jnp.where, found), drawn, exact)

    again = when((missing & ~found).any(), replace_missing, again)
    return jax.tree.map(partial(jnp.where, missing), again, drawn)


def _read(replay: Replay, row: jax.Array, env: jax.Array) -> Transition:
    """Returns the transitions at `row` and `env`, `[...]` both."""
    num_rows = replay.valid.shape[0]
    ending = replay.ending[row, env]
    newest = row == (replay.row - 1) % num_rows
    went_on = jnp.where(newest, num_rows, (row + 1) % num_rows)
    next_row = jnp.where(ending < 0, went_on, num_rows + 1 + ending)
    return Transition(
        obs=_as_seen(replay.obs[row, env]),
        action=replay.action[row, env],
        reward=replay.reward[row, env],
        discount=replay.discount[row, env],
        next_obs=_as_seen(replay.obs[next_row, env]),
        extras=jax.tree.map(lambda x: x[row, env], replay.extras),
    )


def _stored(obs: jax.Array) -> jax.Array:
    """Returns observations as the ring keeps them, see `Replay.obs`."""
    half = obs.dtype == jnp.bfloat16
    return jax.lax.bitcast_convert_type(obs, jnp.uint16) if half else obs


def _as_seen(stored: jax.Array) -> jax.Array:
    """Returns what `_stored` made of observations as float32."""
    if stored.dtype == jnp.uint16:
        stored = jax.lax.bitcast_convert_type(stored, jnp.bfloat16)
    return stored.astype(jnp.float32)


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


def replay_bytes(layout: Layout) -> int:
    """Returns the bytes that `init` would allocate; allocates nothing."""
    return num_bytes(jax.eval_shape(lambda: init(layout)))


def fitting_capacity(layout: Layout, free: int | None) -> int:
    """Returns how many transitions a ring may hold by the memory that is free.

    Args:
      layout: of the ring; its `capacity`, in whole vector steps, is the most that is returned.
      free: bytes, of which `CHOSEN_SHARE` may go to the ring.

    Raises:
      UserError: the device does not tell what is free, or not even one vector step fits.
    """
    if free is None:
        raise UserError(
            "this device does not tell its free memory; give loop.replay_capacity a number"
        )

    def needed(rows: int) -> int:
        return replay_bytes(replace(layout, capacity=rows * layout.num_envs))

    rows = bisect.bisect_right(range(1, layout.rows + 1), CHOSEN_SHARE * free, key=needed)
    if rows == 0:
        check_fits(needed(1), int(CHOSEN_SHARE * free))
    return rows * layout.num_envs


def num_bytes(tree: Any) -> int:
    """Returns the bytes of all arrays of a tree, or of what its `ShapeDtypeStruct`s stand for."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def check_fits(
    needed: int,
    free: int | None,
    what: str = "the replay",
    keys: str = "loop.replay_capacity",
) -> None:
    """Refuses `what`, of `needed` bytes, where the `free` bytes of the device cannot hold it.

    Raises:
      UserError: it does not fit; the message names both sizes and the `keys` to lower.
    """
    if free is not None and needed > USABLE_SHARE * free:
        raise UserError(
            f"{what} needs {needed / GIB:.2f} GiB, but {free / GIB:.2f} GiB are free on the "
            f"device, of which {USABLE_SHARE:.0%} may go to it; lower {keys}"
        )
