"""Evaluation: first episodes only, shared starts, and the recorded episode of a video."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_envs import Counter, random_algorithm

from mjx_qflex.training import evaluation

KEY = jax.random.PRNGKey(5)
NUM_ENVS = 32


def start_labels(env, key, num_envs):
    """The labels of the environments that an evaluation with `key` starts from, by definition."""
    key_reset, _ = jax.random.split(key)
    keys = [jax.random.fold_in(key_reset, i) for i in range(num_envs)]
    return np.stack([env.reset(k).obs[0] for k in keys])


@pytest.fixture(scope="module")
def outcome():
    """A constant action 0.5 on environments that die, time out and break: (env, labels, result)."""
    env = Counter(poison_label=0.8, poison_time=1)
    evaluate = evaluation.make_evaluate(env, evaluation.constant_policy, NUM_ENVS)
    return env, start_labels(env, KEY, NUM_ENVS), evaluate(jnp.full(1, 0.5), KEY)


def test_only_the_first_episode_counts(outcome):
    _, label, result = outcome
    dies, breaks = label < 0.3, label > 0.8
    assert dies.any() and breaks.any() and (~dies & ~breaks).any()
    np.testing.assert_array_equal(result.terminated, dies)
    np.testing.assert_array_equal(result.nonfinite, breaks)
    # A broken environment ends in its second step, which counts with reward 0.
    length = np.where(dies, 3, np.where(breaks, 2, 5))
    np.testing.assert_array_equal(result.length, length)
    paid = np.where(breaks, 1, length)
    np.testing.assert_allclose(result.return_, 0.5 * paid + 0.1 * paid * (paid - 1) / 2, rtol=1e-5)
    np.testing.assert_allclose(result.metrics["reward/toy"] * length, result.return_, rtol=1e-5)


def test_starts_depend_on_the_key_and_the_world_alone(outcome):
    env, label, result = outcome
    fewer = evaluation.make_evaluate(env, evaluation.constant_policy, 8)
    np.testing.assert_array_equal(fewer(jnp.full(1, 0.5), KEY).return_, result.return_[:8])
    assert not np.array_equal(start_labels(env, jax.random.PRNGKey(6), NUM_ENVS), label)


def test_a_policy_is_paired_with_a_constant(outcome):
    env, _, result = outcome
    algorithm = random_algorithm(2, 1)
    learner = algorithm.init(KEY)
    policy = evaluation.make_evaluate(env, algorithm.policy, NUM_ENVS)
    played = policy(learner, KEY)
    # Lengths depend on the start alone, here: equal starts, equal lengths.
    np.testing.assert_array_equal(played.length, result.length)
    assert not np.allclose(played.return_, result.return_)


@pytest.mark.parametrize("seed", range(6))
def test_rollout_is_world_0_of_the_evaluation_trimmed(seed):
    env = Counter(death_label=0.4, poison_label=0.6)
    algorithm = random_algorithm(2, 1)
    policy = algorithm.policy
    learner, key = algorithm.init(KEY), jax.random.PRNGKey(seed)
    result = evaluation.make_evaluate(env, policy, 2)(learner, key)
    rollout = evaluation.record(evaluation.make_rollout(env, policy), learner, key)
    assert rollout.length == result.length[0] - result.nonfinite[0]
    value = rollout.pipeline_state.value
    assert value.shape == (rollout.length + 1, 2) and isinstance(value, np.ndarray)
    np.testing.assert_array_equal(value[:, 1], np.arange(rollout.length + 1))
    np.testing.assert_allclose(rollout.reward.sum(), result.return_[0], rtol=1e-5)
