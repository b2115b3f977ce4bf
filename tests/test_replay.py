"""The replay ring against one that stores every next observation, and what may be drawn from it."""

from dataclasses import replace
from functools import partial
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mjx_qflex import devices
from mjx_qflex.errors import UserError
from mjx_qflex.training import replay as ring
from mjx_qflex.types import Transition

NUM_ENVS = 3
SPEC = Transition(
    obs=jax.ShapeDtypeStruct((2,), jnp.float32),
    action=jax.ShapeDtypeStruct((1,), jnp.bfloat16),
    reward=jax.ShapeDtypeStruct((), jnp.float32),
    discount=jax.ShapeDtypeStruct((), jnp.float32),
    next_obs=jax.ShapeDtypeStruct((2,), jnp.float32),
    extras={"note": jax.ShapeDtypeStruct((3,), jnp.float32)},
)

add = jax.jit(ring.add, donate_argnums=0)
sample = jax.jit(ring.sample, static_argnums=2)
read = jax.jit(ring._read)


def layout(rows, num_envs=NUM_ENVS, episode_length=1, **changes):
    """Rings of `rows` vector steps; by default there is room for all of them to end."""
    return ring.Layout(SPEC, num_envs, rows * num_envs, episode_length, **changes)


class Environments:
    """Environments whose observations tell apart their every moment, as the loop writes them."""

    def __init__(self, num_envs=NUM_ENVS, seed=0):
        self.rng, self.time = np.random.default_rng(seed), 0
        self.obs = self.rng.normal(size=(num_envs, 2)).astype(np.float32)

    def step(self, ended, valid):
        """Returns the transition `[N, ...]` of a step that ends environments and breaks others."""
        ended = ended | ~valid
        next_obs = self.rng.normal(size=self.obs.shape).astype(np.float32)
        fresh = self.rng.normal(size=self.obs.shape).astype(np.float32)
        stamp = np.arange(len(ended), dtype=np.float32) + 100.0 * self.time
        filler = np.float32(0.0)
        transition = Transition(
            obs=self.obs,
            action=np.where(valid, stamp % 7, filler)[:, None].astype(jnp.bfloat16),
            reward=np.where(valid, stamp, filler),
            discount=np.where(valid & ~ended, np.float32(1.0), filler),
            next_obs=np.where(valid[:, None], next_obs, filler),
            extras={"note": np.where(valid, stamp, filler)[:, None] * np.float32([1, 2, 3])},
        )
        self.obs = np.where(ended[:, None], fresh, next_obs)
        self.time += 1
        return transition, ended


class StoredTwice:
    """The plain ring in NumPy: every field of every transition, and the mask."""

    def __init__(self, rows, num_envs=NUM_ENVS):
        leaves = jax.tree.leaves(SPEC)
        self.data = [np.zeros((rows, num_envs, *x.shape), x.dtype) for x in leaves]
        self.valid = np.zeros((rows, num_envs), bool)
        self.steps = 0

    def add(self, transition, valid):
        row = self.steps % len(self.valid)
        for field, slab in zip(self.data, jax.tree.leaves(transition), strict=True):
            field[row] = slab
        self.valid[row] = valid
        self.steps += 1

    def newest(self, number):
        """Returns the rows of the newest `number` vector steps."""
        return np.arange(self.steps - number, self.steps) % len(self.valid)


def filled(rows, steps, endings, breaks=0.0, num_envs=NUM_ENVS, seed=0, **options):
    """Both rings after `steps`, of which each ends an environment with probability `endings`."""
    environments, rng = Environments(num_envs, seed), np.random.default_rng(seed + 1)
    replay = ring.init(layout(rows, num_envs, **options))
    twice = StoredTwice(rows, num_envs)
    for _ in range(steps):
        valid = rng.random(num_envs) >= breaks
        transition, ended = environments.step(rng.random(num_envs) < endings, valid)
        replay = add(replay, transition, ended, valid)
        twice.add(transition, valid)
    return replay, twice


def assert_holds(replay, twice, number):
    """Every transition of the newest `number` rows is, bit for bit, the one stored twice."""
    rows, envs = np.meshgrid(twice.newest(number), np.arange(twice.valid.shape[1]), indexing="ij")
    found = read(replay, rows, envs)
    np.testing.assert_array_equal(replay.valid, twice.valid)
    valid = twice.valid[rows, envs]
    leaves = jax.tree.leaves(found), twice.data, jax.tree.leaves(SPEC)
    for field, wanted, spec in zip(*leaves, strict=True):
        assert field.dtype == spec.dtype
        np.testing.assert_array_equal(np.asarray(field)[valid], wanted[rows, envs][valid])


@pytest.mark.parametrize("endings", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("steps", [1, 4, 5, 6, 11, 40])
def test_holds_what_a_ring_does_that_stores_next_observations(steps, endings):
    rows = 5
    replay, twice = filled(rows, steps, endings, breaks=0.2)
    assert (replay.row, replay.window) == (steps % rows, min(steps, rows))
    assert_holds(replay, twice, min(steps, rows))


def test_capacity_is_rounded_up_to_whole_vector_steps():
    replay = ring.init(ring.Layout(SPEC, NUM_ENVS, 4 * NUM_ENVS - 1, 1000))
    assert replay.reward.shape == (4, NUM_ENVS)
    assert replay.obs.shape == (4 + 1 + 1, NUM_ENVS, 2)  # a fifth of four, rounded up


def plain_sample(twice, key, shape):
    """The draw of a ring that holds all its rows and stores everything; rejection only."""
    first, again = jax.random.split(key)
    again, _ = jax.random.split(again)
    written = min(twice.steps, len(twice.valid))
    bits = [
        np.asarray(jax.random.bits(key, (2, rounds, *shape), jnp.uint32))
        for key, rounds in ((first, 1), (again, ring.CANDIDATE_ROUNDS))
    ]
    rows, envs = np.concatenate(bits, axis=1)
    rows, envs = rows % written, envs % twice.valid.shape[1]
    valid = twice.valid[rows, envs]
    assert valid.any(axis=0).all()
    pick = partial(np.take_along_axis, indices=valid.argmax(axis=0)[None], axis=0)
    drawn = [field[pick(rows)[0], pick(envs)[0]] for field in twice.data]
    return jax.tree.unflatten(jax.tree.structure(SPEC), drawn)


@pytest.mark.parametrize("steps", [3, 7, 8, 25])
def test_samples_are_bit_for_bit_those_of_a_ring_that_stores_next_observations(steps):
    replay, twice = filled(8, steps, endings=0.3, breaks=0.2)
    for seed in range(3):
        key = jax.random.PRNGKey(seed)
        drawn, wanted = sample(replay, key, (2, 40)), plain_sample(twice, key, (2, 40))
        assert drawn.obs.shape == (2, 40, 2) and drawn.reward.shape == (2, 40)
        jax.tree.map(np.testing.assert_array_equal, drawn, wanted)


def in_phase(step):
    return np.full(4, step % 5 == 4)


def after_each_other(step):
    return np.arange(4) == step % 4


@pytest.mark.parametrize("ends", [in_phase, after_each_other])
def test_time_outs_always_fit(ends):
    """Nothing is given up where all environments end every fifth step, or fourth, in any phase."""
    rows, environments, twice = 12, Environments(4), StoredTwice(12, 4)
    replay = ring.init(layout(rows, 4, episode_length=5 if ends is in_phase else 4))
    for step in range(60):
        transition, ended = environments.step(ends(step), np.ones(4, bool))
        replay = add(replay, transition, ended, np.ones(4, bool))
        twice.add(transition, True)
        assert replay.window == min(step + 1, rows)
    assert_holds(replay, twice, rows)


@pytest.mark.parametrize("endings", [0.3, 0.7, 1.0])
def test_more_ends_than_there_is_room_for_give_up_the_oldest_rows(endings):
    """What is left is complete and sampled uniformly; it is as much as there is room for."""
    rows, num_envs = 20, 3
    environments, twice = Environments(num_envs), StoredTwice(rows, num_envs)
    rng, replay = np.random.default_rng(0), ring.init(layout(rows, num_envs, episode_length=1000))
    room = replay.ended_at.shape[0]
    history = []
    for step in range(70):
        valid = rng.random(num_envs) > 0.1
        # Some time without any end, after which all of the ring is complete again.
        ending = (rng.random(num_envs) < endings) & (step // 25 != 1)
        transition, ended = environments.step(ending, valid)
        history.append(ended & valid)
        replay = add(replay, transition, ended, valid)
        twice.add(transition, valid)
        newest_first = np.cumsum(history[::-1], axis=0)[:rows]
        fits = (newest_first <= room).all(axis=1).sum()
        assert replay.window == fits
        assert_holds(replay, twice, int(replay.window))
        if step == 49:
            assert replay.window == rows
    if endings == 1.0:
        assert replay.window == room
    window = int(replay.window)
    assert window < rows
    stamps = sample(replay, jax.random.PRNGKey(1), (4_000,)).reward
    oldest, counts = 70 - window, np.zeros((window, num_envs))
    np.add.at(counts, (np.asarray(stamps).astype(int) // 100 - oldest, stamps.astype(int) % 100), 1)
    valid = twice.valid[twice.newest(window)]
    assert counts[~valid].sum() == 0
    mean = 4_000 / valid.sum()
    np.testing.assert_allclose(counts[valid], mean, atol=5 * np.sqrt(mean))


def test_the_count_of_vector_steps_may_overflow():
    replay = ring.init(layout(4, episode_length=1000))
    early = replay.replace(step=jnp.uint32(2**32 - 6), ended_at=replay.ended_at - jnp.uint32(6))
    environments, twice = Environments(), StoredTwice(4)
    for step in range(20):
        transition, ended = environments.step(np.arange(3) == step % 4, np.ones(3, bool))
        early = add(early, transition, ended, np.ones(3, bool))
        twice.add(transition, True)
        assert early.window == min(step + 1, 4)
        assert_holds(early, twice, min(step + 1, 4))


def test_half_the_bytes_of_observations_cost_a_rounding():
    whole, _ = filled(6, 15, endings=0.3)
    half, _ = filled(6, 15, endings=0.3, obs_dtype="bfloat16")
    assert half.obs.nbytes == whole.obs.nbytes / 2
    exact, rounded = (sample(x, jax.random.PRNGKey(0), (200,)) for x in (whole, half))
    np.testing.assert_array_equal(rounded.extras["note"], exact.extras["note"])
    for name in ("obs", "action", "reward", "discount", "next_obs"):
        field, wanted = getattr(rounded, name), getattr(exact, name)
        if name in ("obs", "next_obs"):
            wanted = wanted.astype(jnp.bfloat16).astype(jnp.float32)
        assert field.dtype == wanted.dtype
        np.testing.assert_array_equal(field, wanted)


@pytest.mark.parametrize("obs_dtype", get_args(ring.ObsDtype))
def test_adding_and_sampling_copy_no_ring(obs_dtype):
    """Whatever is not float32 some platforms compute in float32: all of it, at each step."""
    scalar, vector = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((), (50,)))
    spec = Transition(vector, vector, scalar, scalar, vector)
    held = jax.eval_shape(lambda: ring.init(ring.Layout(spec, 8, 80_000, 1000, obs_dtype)))
    step = jax.tree.map(lambda x: jax.ShapeDtypeStruct((8, *x.shape), x.dtype), spec)
    flags = jax.ShapeDtypeStruct((8,), bool)

    def add_and_sample(replay, transition, ended, valid):
        replay = ring.add(replay, transition, ended, valid)
        return replay, ring.sample(replay, jax.random.PRNGKey(0), (16,))

    compiled = jax.jit(add_and_sample, donate_argnums=0).lower(held, step, flags, flags).compile()
    memory = compiled.memory_analysis()
    assert memory.alias_size_in_bytes > 0.99 * ring.num_bytes(held) > 5 * 2**20
    assert memory.temp_size_in_bytes < 0.05 * ring.num_bytes(held)


def masked_ring(valid: np.ndarray, steps: int | None = None) -> ring.Replay:
    """A ring whose rows were all written (or the first `steps`), with this mask `[T, N]`."""
    rows, num_envs = valid.shape
    environments, replay = Environments(num_envs), ring.init(layout(rows, num_envs))
    for time in range(rows if steps is None else steps):
        transition, ended = environments.step(np.zeros(num_envs, bool), valid[time])
        replay = add(replay, transition, ended, valid[time])
    return replay


def masks():
    """Masks [T, N]: all valid, some, one row in ten, and a single transition in 2,000."""
    rng = np.random.default_rng(0)
    single = np.zeros((50, 40), bool)
    single[17, 23] = True
    scarce = np.zeros((50, 40), bool)
    scarce[::25, 1:6] = True
    return {
        "all": np.ones((8, 5), bool),
        "some": rng.random((8, 5)) < 0.7,
        "scarce": scarce,
        "single": single,
    }


@pytest.mark.parametrize("name", masks())
def test_draws_uniformly_over_valid_transitions_only(name):
    valid = masks()[name]
    replay = masked_ring(valid)
    draws = 20_000
    stamps = np.asarray(sample(replay, jax.random.PRNGKey(1), (draws,)).reward).astype(int)
    counts = np.zeros(valid.shape)
    np.add.at(counts, (stamps // 100, stamps % 100), 1)
    assert counts[~valid].sum() == 0
    expected = draws / valid.sum()
    # Five standard deviations of a binomial count.
    np.testing.assert_allclose(counts[valid], expected, atol=5 * np.sqrt(expected) + 1e-9)


def test_draws_from_written_rows_only():
    replay = masked_ring(np.ones((6, NUM_ENVS), bool), steps=2)
    reward = sample(replay, jax.random.PRNGKey(2), (500,)).reward
    assert set(np.asarray(reward // 100)) == {0.0, 1.0}


def test_without_valid_transition_the_sample_is_finite():
    replay = masked_ring(np.zeros((4, NUM_ENVS), bool))
    batch = sample(replay, jax.random.PRNGKey(3), (8,))
    assert all(bool(jnp.isfinite(field).all()) for field in jax.tree.leaves(batch))


def test_bytes_are_those_allocated():
    replay = ring.init(layout(300, episode_length=7))
    allocated = sum(leaf.nbytes for leaf in jax.tree.leaves(replay))
    assert ring.replay_bytes(layout(300, episode_length=7)) == allocated


def test_a_capacity_that_fits_is_the_largest_that_does():
    asked = layout(10_000, episode_length=7)
    free = ring.replay_bytes(asked)
    chosen = ring.fitting_capacity(asked, free)

    def share(capacity):
        return ring.replay_bytes(replace(asked, capacity=capacity)) / free

    assert share(chosen) <= ring.CHOSEN_SHARE < share(chosen + NUM_ENVS)
    # No more than is asked for, and never none.
    assert ring.fitting_capacity(asked, 100 * free) == asked.capacity
    with pytest.raises(UserError, match="GiB"):
        ring.fitting_capacity(asked, 60)
    with pytest.raises(UserError, match=r"loop\.replay_capacity"):
        ring.fitting_capacity(asked, None)


def test_refuses_what_does_not_fit():
    with pytest.raises(UserError, match=r"4\.00 GiB.*2\.00 GiB.*loop\.replay_capacity"):
        ring.check_fits(4 * ring.GIB, 2 * ring.GIB)
    ring.check_fits(ring.GIB, 2 * ring.GIB)
    ring.check_fits(4 * ring.GIB, None)


def test_free_memory_is_known_and_plausible():
    free = devices.free_bytes()
    assert free is not None and 2**20 < free < 2**50
