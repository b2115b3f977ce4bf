"""chain_reach against its definition, written out in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mjx_qflex import tasks
from mjx_qflex.errors import UserError
from mjx_qflex.tasks.chain_reach import tip_position


@pytest.mark.parametrize("num_joints", [1, 3, 700])
def test_rollout_equals_numpy_chain(num_joints):
    env = tasks.make("chain_reach", num_joints=num_joints)
    state = jax.jit(env.reset)(jax.random.key(3))
    step = jax.jit(env.step)
    target = np.asarray(state.pipeline_state.target)
    angles = np.zeros(num_joints)
    rng = np.random.default_rng(0)
    for index in range(20):
        action = rng.uniform(-1.5, 1.5, num_joints).astype(np.float32)
        state = step(state, action)
        angles = angles + 0.5 / num_joints * np.clip(action, -1, 1)
        headings = np.cumsum(angles)
        tip = np.array([np.cos(headings).mean(), np.sin(headings).mean()])
        distance = np.linalg.norm(target - tip)
        np.testing.assert_allclose(state.reward, -distance + (distance < 0.05), atol=1e-5)
        expected = np.concatenate([angles * np.sqrt(num_joints), target, target - tip])
        np.testing.assert_allclose(state.obs, expected, atol=1e-5)
        np.testing.assert_allclose(state.reward, sum(state.metrics.values()), atol=1e-6)
        assert state.done == 0
        assert state.info["truncation"] == (index == 19)


def test_reward_bonus_within_five_hundredths():
    env = tasks.make("chain_reach", num_joints=4)
    state = env.reset(jax.random.key(0))
    for offset, bonus in ((0.04, 1.0), (0.06, 0.0)):
        target = jnp.array([1.0 - offset, 0.0])
        placed = state.replace(pipeline_state=state.pipeline_state._replace(target=target))
        reward = env.step(placed, jnp.zeros(4)).reward
        np.testing.assert_allclose(reward, -offset + bonus, atol=1e-6)


def test_targets_fill_the_ring_evenly():
    env = tasks.make("chain_reach", num_joints=2)
    states = jax.vmap(env.reset)(jax.random.split(jax.random.key(1), 4000))
    targets = np.asarray(states.pipeline_state.target)
    squared = (targets**2).sum(-1)
    assert 0.1 <= squared.min() < 0.102 and 0.797 < squared.max() <= 0.8
    assert abs(squared.mean() - 0.45) < 0.01
    assert np.abs(targets.mean(0)).max() < 0.03


def test_straight_chain_has_unit_length():
    np.testing.assert_allclose(tip_position(jnp.zeros(700)), [1.0, 0.0], atol=1e-6)


def test_brax_training_wrapper_restarts_the_episode():
    from brax.envs.wrappers import training

    env = training.wrap(tasks.make("chain_reach", num_joints=3), episode_length=20)
    # brax reads the batch from the raw key's shape.
    state = jax.jit(env.reset)(jax.random.split(jax.random.PRNGKey(0), 2))
    step = jax.jit(env.step)
    for _ in range(20):
        state = step(state, jnp.ones((2, 3)))
    assert state.done.tolist() == [1, 1] and state.info["truncation"].tolist() == [1, 1]
    assert state.pipeline_state.steps.tolist() == [0, 0]
    assert float(jnp.abs(state.pipeline_state.angles).max()) == 0


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("chain_reech", {}, "did you mean 'chain_reach'"),
        ("chain_reach", {"num_joint": 4}, "did you mean 'num_joints'"),
        ("chain_reach", {"num_joints": 0}, "1 or more"),
    ],
)
def test_mistakes_name_what_would_be_right(name, options, message):
    with pytest.raises(UserError, match=message):
        tasks.make(name, **options)


def test_config_class_builds_nothing():
    assert tasks.config_class("chain_reach")().num_joints == 8
