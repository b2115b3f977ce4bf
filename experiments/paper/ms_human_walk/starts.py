"""What starting from the reference's activations buys before any learning.

    python experiments/paper/ms_human_walk/starts.py        # 3 minutes on one core

64 worlds start at evenly spaced phases, muscles at rest or with the activations fitted to their
phase. None of the policies looks at the state. Seconds until the task ends the episode.
"""

import feasibility
import jax
import jax.numpy as jnp
import numpy as np

from mjx_qflex import tasks
from mjx_qflex.motions import activations
from mjx_qflex.tasks.action_maps import excitation

WORLDS, ACTIONS = 64, 75
QUIET = 0.2  # standard deviation of an untrained policy's actions, presets cpu and gpu


def policies(table, period, control_dt):
    """Excitations `[A]` from (activations at the start, phase in s, key), by name."""

    def noisy(action_map):
        def policy(start, time, key):
            return excitation(QUIET * jax.random.normal(key, start.shape), action_map)

        return policy

    return {
        "idle (no excitation)": lambda start, time, key: 0.0 * start,
        "untrained, exponential map": noisy("exponential"),
        "untrained, linear map": noisy("linear"),
        "the start's activations held": lambda start, time, key: start,
        "fitted activations, by phase": lambda start, time, key: activations.at(
            table, (time + control_dt) / period
        ),
    }


def make_lifetimes(env, table, choices):
    """A compiled `lifetimes(policy, share)`: seconds `[WORLDS]` until the task's termination.

    `policy` counts `choices`; muscles start with `share` of the fitted activations.
    """
    period = env.reference.period

    def life(policy, share, offset, key):
        fitted = activations.at(table, offset / period)
        state = env.reset(key)
        physics = env.body.initial_state()._replace(
            qpos=env.reference.qpos(offset), qvel=env.reference.qvel(offset), act=share * fitted
        )
        walk = state.pipeline_state._replace(physics=physics, offset=offset)

        def once(carry, key):
            state, alive, count = carry
            time = offset + state.pipeline_state.physics.time
            found = jax.lax.switch(policy, choices, fitted, time, key)
            state = env.step(state, 2.0 * found - 1.0)
            alive = alive & (state.done == 0)
            return (state, alive, count + alive), None

        first = (state.replace(pipeline_state=walk), jnp.array(True), jnp.ones((), jnp.int32))
        return jax.lax.scan(once, first, jax.random.split(key, ACTIONS))[0][2]

    offsets = jnp.arange(WORLDS) / WORLDS * period
    keys = jax.random.split(jax.random.key(0), WORLDS)
    run = jax.jit(jax.vmap(life, in_axes=(None, None, 0, 0)), compiler_options=env.compiler_options)
    return lambda policy, share: np.asarray(run(policy, share, offsets, keys)) * env.control_dt


def main():
    env = tasks.make("ms_human_walk")
    table = activations.of_body(feasibility.MOTION, env.body)
    found = policies(table, env.reference.period, env.control_dt)
    lifetimes = make_lifetimes(env, table, tuple(found.values()))
    print(
        f"{'seconds upright, mean (least, most)':36} {'from rest':>20} {'from the reference':>20}"
    )
    for index, name in enumerate(found):
        seconds = [lifetimes(index, share) for share in (0.0, 1.0)]
        cells = [f"{s.mean():.2f} ({s.min():.2f}, {s.max():.2f})" for s in seconds]
        print(f"{name:36} {cells[0]:>20} {cells[1]:>20}", flush=True)


if __name__ == "__main__":
    main()
