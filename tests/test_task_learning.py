"""Every task can be learned from: a short run stays finite, and the critic fits what it sees."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import compiling_quickly
from task_protocol import make, rollout

from mjx_qflex import algos, networks, presets, tasks
from mjx_qflex.algos import common, qflex
from mjx_qflex.sizes import LoopConfig
from mjx_qflex.training import environments
from mjx_qflex.training.loop import make_loop
from mjx_qflex.types import Transition

# Their loops compile in seconds; all other tasks take longer than a default test may.
QUICK = {"arm_reach", "chain_reach", "myo_hand_pen_twirl", "myo_leg_walk"}
SHORT = (
    "loop.num_envs=4", "loop.batch_size=16", "loop.prefill_transitions=0",
    "loop.replay_capacity=400", "loop.steps_per_epoch=10", "loop.reset_pool=4",
    "loop.eval_envs=4", "loop.updates_per_step=1", "algo.width=16", "algo.depth=1",
    "algo.ascent_steps=2", "algo.euler_steps=2",
)  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in sorted(tasks.TASKS)],
)
def test_a_short_run_of_the_preset_is_finite(name):
    env = make(name)
    config = presets.resolve(name, preset="cpu", sets=SHORT)
    assert type(env.config) is type(config.task_config)
    algorithm = algos.make("qflex", config.algo_config, environments.spec(env))
    loop = make_loop(env, algorithm, config.loop)
    with compiling_quickly():
        run = loop.init(jax.random.PRNGKey(0))
        for _ in range(2):
            run, metrics = loop.epoch(run)
            assert metrics["nonfinite_environments"] == 0
            for key, value in metrics.items():  # nothing is known of episodes if none has ended
                assert np.isfinite(value) or key.startswith("episode/"), key
    assert run.updates == 20


@pytest.mark.parametrize("name", sorted(tasks.TASKS))
def test_the_critic_fits_a_fixed_batch_with_frozen_targets(name):
    """The mean squared error falls by half; targets come from the critics before any update."""
    env = make(name)
    batch = transitions(name)
    config = dataclasses.replace(
        qflex.PRESETS["default"],
        width=32, depth=1, ascent_steps=1, euler_steps=1, learning_rate=3e-3,
    )  # fmt: skip
    algorithm = qflex.make(config, environments.spec(env))
    losses = []
    with compiling_quickly():
        learner, update = jax.jit(algorithm.init)(jax.random.key(0)), jax.jit(algorithm.update)
        target = batch.reward + config.gamma * batch.discount * values(learner, batch)
        scale = 1 / jnp.sqrt(jnp.mean(jnp.square(target)))
        frozen = batch._replace(reward=scale * target, discount=jnp.zeros_like(target))
        for key in jax.random.split(jax.random.key(1), 60):
            learner, metrics = update(learner, frozen, key)
            losses.append(float(metrics["critic_loss"]))
    assert np.isfinite(losses).all()
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])


def transitions(name):
    """Transitions `[STEPS * WORLDS]` of random actions."""
    first, _, (obs, reward, done, _, _), action = rollout(name)
    before = jnp.concatenate([first.obs[None], obs[:-1]])
    batch = Transition(before, jnp.clip(action, -1, 1), reward, 1.0 - done, obs)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch)


def values(learner, batch):
    """The lower of both critics' values `[B]` of the next observations, all actuators at 0."""
    inputs = jnp.concatenate([batch.next_obs, jnp.zeros_like(batch.action)], axis=1)
    return jnp.min(
        jnp.stack([networks.apply(common.for_inference(c), inputs)[:, 0] for c in learner.critics]),
        axis=0,
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["arm_reach", "chain_reach"])
def test_reaching_returns_more_than_random_actions(name):
    env = make(name)
    config = dataclasses.replace(qflex.PRESETS["default"], width=64)
    sizes = LoopConfig(
        num_envs=64, batch_size=128, prefill_transitions=6_400, replay_capacity=100_000,
        steps_per_epoch=500, reset_pool=64, eval_envs=128,
    )  # fmt: skip
    loop = make_loop(env, qflex.make(config, environments.spec(env)), sizes)
    run = loop.prefill(loop.init(jax.random.PRNGKey(0)))
    for _ in range(2):
        run, _ = loop.epoch(run)
    trained = np.asarray(loop.evaluate(run.learner, jax.random.PRNGKey(1)).return_)
    random = random_returns(env, 128)
    error = np.sqrt(trained.var() / len(trained) + random.var() / len(random))
    assert trained.mean() > random.mean() + 3 * error


def random_returns(env, episodes):
    def episode(key):
        reset_key, key = jax.random.split(key)

        def step(state, key):
            action = jax.random.uniform(key, (env.action_size,), minval=-1.0)
            state = env.step(state, action)
            return state, state.reward

        keys = jax.random.split(key, env.episode_length)
        return jax.lax.scan(step, env.reset(reset_key), keys)[1].sum()

    run = jax.jit(jax.vmap(episode), compiler_options=env.compiler_options)
    return np.asarray(run(jax.random.split(jax.random.key(2), episodes)))
