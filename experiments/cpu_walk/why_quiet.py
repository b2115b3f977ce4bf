"""Why `ms_human_walk` starts near rest on a CPU: two measurements, 64 worlds from the same starts.

    python experiments/cpu_walk/why_quiet.py tone      # returns of constant excitation patterns
    python experiments/cpu_walk/why_quiet.py critic    # where a critic's gradient leads

`tone` tries one excitation for all muscles, then improves a pattern by a plain evolution strategy.
`critic` trains critics alone on transitions of the untrained policy, and follows their gradient.
"""

import argparse
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from mjx_qflex import networks, presets, tasks
from mjx_qflex.algos import common, gaussian, qflex
from mjx_qflex.training import environments, replay
from mjx_qflex.training import loop as training

WORLDS = 64
ACTIONS = 30  # no episode lasts longer here
STEP_OF_STD = (0.5, 1.0, 2.0)


def episode_returns(env, act, start):
    """Returns of the worlds' first episodes [N]; `act` maps observations [N, O] to actions."""

    def step(carry, _):
        state, alive, total = carry
        state = jax.vmap(env.step)(state, act(state.obs))
        return (state, alive * (1.0 - state.done), total + alive * state.reward), None

    ones = jnp.ones(start.done.shape)
    return jax.lax.scan(step, (start, ones, 0.0 * ones), length=ACTIONS)[0][2]


def report(name, returns, idle):
    difference = np.asarray(returns) - idle
    error = 1.96 * difference.std() / len(difference) ** 0.5
    print(
        f"{name:38} {np.mean(returns):7.1f}   {difference.mean():+7.1f} ± {error:.1f}", flush=True
    )


def tone(env, start):
    def returns_of(excitation, start):  # [N, A]
        return episode_returns(env, lambda obs: 2.0 * excitation - 1.0, start)

    returns_of = jax.jit(returns_of, compiler_options=env.compiler_options)

    def everywhere(excitation):
        return jnp.broadcast_to(jnp.asarray(excitation), (WORLDS, env.action_size))

    idle = np.asarray(returns_of(everywhere(0.0), start))
    for level in (0.0, 0.01, 0.02, 0.04, 0.5):
        report(f"all muscles at {level:.0%}", returns_of(everywhere(level), start), idle)
    rng = np.random.default_rng(0)
    log_pattern = np.full(env.action_size, np.log(0.015))
    others = starts(env, seed=1)  # the pattern is judged on starts that it did not evolve on
    idle = np.asarray(returns_of(everywhere(0.0), others))
    for generation in range(4):
        slopes = []
        for half in np.tile(np.arange(WORLDS).reshape(2, -1), (4, 1)):
            noise = rng.standard_normal((WORLDS // 2, env.action_size))
            pairs = np.exp(log_pattern + 0.7 * np.concatenate([noise, -noise])).clip(max=1.0)
            both = jax.tree.map(lambda x, half=half: jnp.concatenate([x[half], x[half]]), start)
            up, down = np.split(np.asarray(returns_of(jnp.float32(pairs), both)), 2)
            slopes.append((up - down) @ noise)
        slope = np.mean(slopes, axis=0)
        log_pattern = log_pattern + 0.35 * slope / np.sqrt(np.mean(slope**2))
        pattern = everywhere(jnp.float32(np.exp(log_pattern).clip(max=1.0)))
        episodes = (generation + 1) * 8 * WORLDS
        report(f"evolved in {episodes} episodes", returns_of(pattern, others), idle)


def critic(env, start):
    chosen = presets.resolve("ms_human_walk", preset="cpu")
    options = replace(chosen.loop, prefill_transitions=16_000)
    untrained = make_algorithm(env, chosen.algo_config)
    loop = training.make_loop(env, untrained, options)
    run = loop.prefill(loop.init(jax.random.PRNGKey(0)))
    source = common.for_inference(run.learner.source)

    def returns_along(critics, step):
        def act(obs):
            mean, log_std = gaussian.mean_and_log_std(
                networks.apply(source, obs), qflex.LOG_STD_RANGE
            )
            action = jnp.tanh(mean)
            bound = tuple(networks.fix_inputs(each, obs) for each in critics)
            value = partial(qflex.combined_value, chosen.algo_config, bound)
            slope = jax.grad(lambda action: jnp.sum(value(action)))(action)
            slope = slope / jnp.sqrt(jnp.mean(slope**2, axis=-1, keepdims=True))
            return action + step * jnp.exp(log_std) * slope

        return episode_returns(env, act, start)

    returns_along = jax.jit(returns_along, compiler_options=env.compiler_options)
    still = jax.jit(
        lambda start: episode_returns(env, lambda obs: -jnp.ones((WORLDS, env.action_size)), start),
        compiler_options=env.compiler_options,
    )
    idle = np.asarray(still(start))
    for gain in (1.0, chosen.algo_config.output_gain):
        settings = replace(chosen.algo_config, output_gain=gain)
        learner = make_algorithm(env, settings).init(jax.random.PRNGKey(1))
        learner = learner._replace(source=run.learner.source)
        train = jax.jit(partial(train_critics, settings, options.batch_size))
        for updates in (250, 500, 1000):
            while (done := int(learner.critics[0].opt_state[0].count)) < updates:
                learner = train(learner, run.device.replay, jax.random.key(done))
            critics = tuple(
                networks.for_inference(each.params, each.batch_stats) for each in learner.critics
            )
            for step in STEP_OF_STD:
                name = f"gain {gain}, {updates} updates, {step} std"
                report(name, returns_along(critics, step), idle)


def make_algorithm(env, settings):
    return qflex.make(settings, environments.spec(env))


def train_critics(settings, batch_size, learner, ring, key, updates=250):
    optimizer = common.adam(settings.learning_rate, b1=settings.beta1)

    def update(learner, key):
        sample_key, noise_key = jax.random.split(key)
        batch = jax.tree.map(lambda x: x[0], replay.sample(ring, sample_key, (1, batch_size)))
        noise = jax.random.normal(noise_key, batch.action.shape)
        critics, _ = qflex._update_critics(settings, optimizer, learner, batch, noise)
        return learner._replace(critics=critics), None

    return jax.lax.scan(update, learner, jax.random.split(key, updates))[0]


def starts(env, seed):
    return jax.jit(jax.vmap(env.reset))(jax.random.split(jax.random.key(seed), WORLDS))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("part", choices=("tone", "critic"))
    part = parser.parse_args().part
    env = tasks.make("ms_human_walk", action_map="linear" if part == "tone" else "exponential")
    print(f"{'':38} {'return':>7}   against idle, 95%")
    {"tone": tone, "critic": critic}[part](env, starts(env, seed=0))


if __name__ == "__main__":
    main()
