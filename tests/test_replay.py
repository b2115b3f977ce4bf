"""The replay ring against a plain NumPy ring, and what may be drawn from it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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
)

add = jax.jit(ring.add, donate_argnums=0)
sample = jax.jit(ring.sample, static_argnums=2)


def vector_step(time: int, num_envs: int = NUM_ENVS) -> Transition:
    """A vector step whose fields all tell which step and world they belong to."""
    stamp = jnp.arange(num_envs, dtype=jnp.float32) + 100.0 * time
    pair = jnp.stack([stamp, -stamp], axis=1)
    return Transition(pair, (stamp[:, None] % 7).astype(jnp.bfloat16), stamp, stamp % 2, pair + 0.5)


def filled_ring(valid: np.ndarray, steps: int | None = None) -> ring.Replay:
    """A ring whose rows were all written (or the first `steps`), with this mask `[T, N]`."""
    rows, num_envs = valid.shape
    replay = ring.init(SPEC, num_envs, rows * num_envs)
    for time in range(rows if steps is None else steps):
        replay = add(replay, vector_step(time, num_envs), jnp.asarray(valid[time]))
    return replay


@pytest.mark.parametrize("steps", [0, 3, 4, 5, 11])
def test_matches_numpy_ring(steps):
    rows = 4
    replay = ring.init(SPEC, NUM_ENVS, capacity=rows * NUM_ENVS - 1)
    expected = [np.zeros((rows, NUM_ENVS, *x.shape), x.dtype) for x in SPEC]
    expected_valid = np.zeros((rows, NUM_ENVS), bool)
    for time in range(steps):
        valid = np.arange(NUM_ENVS) != time % 5
        for field, slab in zip(expected, vector_step(time), strict=True):
            field[time % rows] = slab
        expected_valid[time % rows] = valid
        replay = add(replay, vector_step(time), jnp.asarray(valid))
    for field, wanted, spec in zip(replay.data, expected, SPEC, strict=True):
        assert field.dtype == spec.dtype
        np.testing.assert_array_equal(field, wanted)
    np.testing.assert_array_equal(replay.valid, expected_valid)
    assert (replay.row, replay.filled) == (steps % rows, min(steps, rows))


def test_fields_of_a_sample_belong_together():
    replay = filled_ring(np.ones((5, NUM_ENVS), bool))
    batch = sample(replay, jax.random.PRNGKey(0), (2, 64))
    assert batch.obs.shape == (2, 64, 2) and batch.reward.shape == (2, 64)
    np.testing.assert_array_equal(batch.obs[..., 0], batch.reward)
    np.testing.assert_array_equal(batch.next_obs, batch.obs + 0.5)
    np.testing.assert_array_equal(batch.discount, batch.reward % 2)


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
    replay = filled_ring(valid)
    draws = 20_000
    stamps = np.asarray(sample(replay, jax.random.PRNGKey(1), (draws,)).reward).astype(int)
    counts = np.zeros(valid.shape)
    np.add.at(counts, (stamps // 100, stamps % 100), 1)
    assert counts[~valid].sum() == 0
    expected = draws / valid.sum()
    # Five standard deviations of a binomial count.
    np.testing.assert_allclose(counts[valid], expected, atol=5 * np.sqrt(expected) + 1e-9)


def test_draws_from_written_rows_only():
    replay = filled_ring(np.ones((6, NUM_ENVS), bool), steps=2)
    reward = sample(replay, jax.random.PRNGKey(2), (500,)).reward
    assert set(np.asarray(reward // 100)) == {0.0, 1.0}


def test_without_valid_transition_the_sample_is_finite():
    replay = filled_ring(np.zeros((4, NUM_ENVS), bool))
    batch = sample(replay, jax.random.PRNGKey(3), (8,))
    assert all(bool(jnp.isfinite(field).all()) for field in batch)


def test_bytes_are_those_allocated():
    replay = ring.init(SPEC, NUM_ENVS, 1000)
    allocated = sum(leaf.nbytes for leaf in jax.tree.leaves(replay))
    assert ring.replay_bytes(SPEC, NUM_ENVS, 1000) == allocated


def test_refuses_what_does_not_fit():
    with pytest.raises(UserError, match=r"4\.00 GiB.*2\.00 GiB.*loop\.replay_capacity"):
        ring.check_fits(4 * ring.GIB, 2 * ring.GIB)
    ring.check_fits(ring.GIB, 2 * ring.GIB)
    ring.check_fits(4 * ring.GIB, None)


def test_free_memory_is_known_and_plausible():
    free = ring.free_device_bytes()
    assert free is not None and 2**20 < free < 2**50
