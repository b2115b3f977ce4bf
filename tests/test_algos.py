"""What every algorithm of the registry owes the loop, whatever its paper."""

import dataclasses

import acting
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import references
import toy_envs

from mjx_qflex import algos, networks, tasks
from mjx_qflex.algos import common
from mjx_qflex.errors import UserError
from mjx_qflex.sizes import LoopConfig
from mjx_qflex.training import environments
from mjx_qflex.training.loop import make_loop
from mjx_qflex.types import EnvSpec

pytestmark = pytest.mark.usefixtures("quick_compilation")

OBS, ACT, BATCH = 5, 3, 16
# The others are brax's, and trained as tests/test_on_policy.py checks.
OFF_POLICY = [name for name, entry in algos.ALGOS.items() if not entry.on_policy]
# Small sizes of whichever of these options an algorithm has.
TINY = {
    "width": 8, "critic_width": None, "depth": 1, "ascent_steps": 2, "euler_steps": 2,
    "diffusion_steps": 3, "particles": 2, "reverse_samples": 4, "entropy_samples": 20,
    "entropy_states": 2,
}  # fmt: skip


def configured(name, preset="default", **options):
    config = algos.entry(name).presets[preset]
    return dataclasses.replace(config, **{k: v for k, v in options.items() if hasattr(config, k)})


def random_batch(seed):
    return references.random_batch(seed, OBS, ACT, BATCH)


def assert_equal(first, second):
    jax.tree.map(np.testing.assert_array_equal, first, second)


def counted(function, calls):
    """Returns the function; each time Python runs it, that is, traces it, `calls` grows."""

    def traced(*arguments):
        calls.append(None)
        return function(*arguments)

    return traced


@pytest.mark.parametrize("name", OFF_POLICY)
def test_update_and_act(name):
    algorithm = algos.make(name, configured(name, **TINY), EnvSpec(OBS, ACT))
    init, traces = jax.jit(algorithm.init), []
    update = jax.jit(counted(algorithm.update, traces), donate_argnums=0)

    def trained():
        learner = init(jax.random.key(0))
        for seed in range(3):
            learner, metrics = update(learner, random_batch(seed), jax.random.key(seed))
            assert all(value.shape == () and np.isfinite(value) for value in metrics.values())
        return learner, metrics

    learner, metrics = trained()
    assert len(traces) == 1
    assert {"critic_loss", "policy_loss", "q_mean", "q_scale"} <= set(metrics)
    assert_equal((learner, metrics), trained())
    # Every weight matrix moved, and nothing broke.
    before = init(jax.random.key(0))
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(learner), strict=True):
        assert np.isfinite(new).all()
        assert new.ndim < 2 or not np.array_equal(old, new)
    check_acting(algorithm, learner)


def check_acting(algorithm, learner):
    """Exploring draws; evaluating is a function of the observation."""
    act = acting.jitted(algorithm)
    obs = jnp.concatenate([jnp.ones((2, OBS)), -jnp.ones((2, OBS))])

    def action(mode, seed):
        key = jax.random.key(seed) if mode == "explore" else None
        action, state, _ = act(learner, obs, key)
        assert action.shape == (4, ACT) and np.isfinite(action).all()
        assert_equal(state, algorithm.policy(learner).init(4))
        return np.asarray(action)

    explored = action("explore", 0)
    np.testing.assert_array_equal(explored, action("explore", 0))
    assert not np.array_equal(explored, action("explore", 1))
    assert not np.array_equal(explored[0], explored[1])  # environments draw each for themselves
    evaluated = action("eval", 0)
    np.testing.assert_array_equal(evaluated, action("eval", 1))
    np.testing.assert_allclose(evaluated[0], evaluated[1], atol=1e-6)
    assert not np.allclose(evaluated[0], evaluated[2])  # the observation matters


@pytest.mark.parametrize("name", sorted(set(algos.ALGOS) - set(OFF_POLICY)))
@pytest.mark.parametrize("preset", ["default", "qflex_paper"])
def test_on_policy_acting(name, preset):
    agent = algos.make(name, configured(name, preset, **TINY), EnvSpec(OBS, ACT))
    with jax.numpy_rank_promotion("allow"):  # brax relies on it
        check_acting(agent, agent.init(jax.random.key(0)))


@pytest.mark.parametrize("name", OFF_POLICY)
def test_trains_in_the_loop_with_one_trace(name):
    env = tasks.make("chain_reach", num_joints=3)
    config = configured(name, **TINY)
    algorithm = algos.make(name, config, environments.spec(env))
    sizes = LoopConfig(
        num_envs=4, batch_size=8, prefill_transitions=40, replay_capacity=200,
        steps_per_epoch=25, reset_pool=4, eval_envs=4,
    )  # fmt: skip
    traces = []
    algorithm = algorithm._replace(update=counted(algorithm.update, traces))
    loop = make_loop(env, algorithm, sizes)
    run = loop.prefill(loop.init(jax.random.PRNGKey(0)))
    for _ in range(2):
        run, metrics = loop.epoch(run)
    assert len(traces) == 1
    assert all(np.isfinite(value) for value in metrics.values())
    assert metrics["nonfinite_environments"] == 0 and run.updates == 50


PROBE = LoopConfig(
    num_envs=16, batch_size=64, updates_per_step=1, prefill_transitions=2_000,
    replay_capacity=50_000, steps_per_epoch=1_000, reset_pool=64, eval_envs=32,
)  # fmt: skip
# Options that suit a thousand updates; those not named here are the defaults.
FAST = {
    "width": 32, "critic_width": None, "depth": 2, "learning_rate": 2e-3, "policy_tau": 0.02,
    "diffusion_steps": 5, "particles": 4, "reverse_samples": 8, "alpha_period": 50,
    "alpha_learning_rate": 0.1, "target_entropy": -2.0, "gradient_scale": 1.0,
    "entropy_samples": 50, "entropy_states": 4,
}  # fmt: skip


# Qflex goes through all probes in test_probes.py.
@pytest.mark.parametrize("name", sorted(set(OFF_POLICY) - {"qflex"}))
def test_learns_the_value_of_actions_and_takes_the_best(name):
    """One step with reward -(a - 0.5 s)^2: the value is the reward, the best action 0.5 s."""
    env = toy_envs.ActionReward()
    config = configured(name, **FAST)
    loop = make_loop(env, algos.make(name, config, environments.spec(env)), PROBE)
    run, _ = loop.epoch(loop.prefill(loop.init(jax.random.PRNGKey(0))))

    obs, action = np.repeat([-1.0, 1.0], 5), np.tile([-0.8, -0.4, 0.0, 0.4, 0.8], 2)
    inputs = jnp.asarray(np.stack([obs, action], axis=1), jnp.float32)
    activation = getattr(config, "activation", "relu")
    values = [
        networks.apply(common.for_inference(critic), inputs, activation)
        for critic in run.learner.critics
    ]
    values = np.stack(values)[:, :, 0] / getattr(config, "reward_scale", 1.0)
    expected = np.broadcast_to(-np.square(action - 0.5 * obs), (2, 10))
    np.testing.assert_allclose(values, expected, atol=0.25)
    # Doing nothing returns -0.25, random actions -0.58.
    trained = loop.evaluate(run.learner, jax.random.PRNGKey(1)).return_.mean()
    assert trained > -0.06


@pytest.mark.parametrize("name", algos.ALGOS)
def test_refused_options(name):
    refused = (
        ("width", 0), ("log_std_range", (2.0, -20.0)), ("activation", "selu"), ("tau", 1.5),
        ("gamma", float("nan")), ("critic_width", 0), ("decay_updates", 0), ("reward_scale", 0.0),
        ("source_learning_rate", 0.0), ("entropy_samples", 0), ("schedule_scale", -1.0),
        ("gae_lambda", 1.5), ("max_grad_norm", 0.0), ("distribution", "beta"),
    )  # fmt: skip
    for option, value in refused:
        config = configured(name, **{option: value})
        if hasattr(config, option):
            with pytest.raises(UserError, match=option):
                algos.make(name, config, EnvSpec(OBS, ACT))
