"""Qflex learns: measured against doing nothing and against following the true gradient."""

import dataclasses

import jax
import jax.numpy as jnp

from mjx_qflex import tasks
from mjx_qflex.algos import qflex
from mjx_qflex.sizes import LoopConfig
from mjx_qflex.tasks.chain_reach import TURN, tip_position
from mjx_qflex.training import environments
from mjx_qflex.training.loop import make_loop

EPISODES = 256


def gradient_controller(state):
    """Turns the joints along the true gradient, as fast as allowed, but not past the target."""
    chain = state.pipeline_state
    num_joints = chain.angles.size

    def half_squared_distance(angles):
        return 0.5 * jnp.sum(jnp.square(chain.target - tip_position(angles)))

    distance, gradient = jax.value_and_grad(half_squared_distance)(chain.angles)
    fastest = 1.0 / (jnp.max(jnp.abs(gradient)) + 1e-9)
    arriving = 2.0 * distance / (jnp.sum(jnp.square(gradient)) + 1e-9) * num_joints / TURN
    return -jnp.minimum(fastest, arriving) * gradient


def mean_return(env, policy):
    def episode(key):
        def step(state, _):
            state = env.step(state, policy(state))
            return state, state.reward

        return jax.lax.scan(step, env.reset(key), length=env.episode_length)[1].sum()

    return float(jax.jit(jax.vmap(episode))(jax.random.split(jax.random.key(1), EPISODES)).mean())


def test_qflex_closes_half_of_the_gap_to_the_true_gradient():
    env = tasks.make("chain_reach", num_joints=8)
    nothing = mean_return(env, lambda state: jnp.zeros(env.action_size))
    controller = mean_return(env, gradient_controller)
    assert controller > -3 > nothing  # a controller worth measuring against

    config = dataclasses.replace(qflex.PRESETS["default"], width=64)
    sizes = LoopConfig(
        num_envs=64,
        batch_size=128,
        prefill_transitions=6_400,
        replay_capacity=300_000,
        steps_per_epoch=1_000,
        reset_pool=1_024,
        eval_envs=EPISODES,
    )
    loop = make_loop(env, qflex.make(config, environments.spec(env)), sizes)
    run = loop.prefill(loop.init(jax.random.PRNGKey(0)))
    for _ in range(6):
        run, metrics = loop.epoch(run)
    learned = float(loop.evaluate(run.learner, jax.random.PRNGKey(1)).return_.mean())
    closed = (learned - nothing) / (controller - nothing)
    assert closed > 0.5, (nothing, learned, controller)
    assert 0.5 < metrics["update/flow_superiority"] <= 1.0
