"""What the ring keeps beyond flashbax's flat buffer, and what writing it costs.

    python experiments/benchmark/ring_write.py

One vector step, each write alone in a program of its own, arrays as the preset `cpu` has them.
"""

import jax
import jax.numpy as jnp

from mjx_qflex import presets
from mjx_qflex.benchmarking import replays
from mjx_qflex.benchmarking.timing import Budget, Repeated
from mjx_qflex.runner import driver
from mjx_qflex.training import replay as ring
from mjx_qflex.training.collect import replay_layout

BUDGET = Budget(seconds=0.3, repeats=7)
TASKS = ("arm_reach", "ms_human_walk")


def newest(replay, obs, number):
    """Writes where the newest row led to."""
    rows = replay.valid.shape[0]
    slab = (obs + number)[None]
    return replay.replace(obs=jax.lax.dynamic_update_slice_in_dim(replay.obs, slab, rows, 0))


def last_observations(replay, obs, number):
    """Writes the last observations of the worlds whose episode ended."""
    rows, num_envs = replay.valid.shape
    ended = replays.ended(num_envs, number)
    place = jnp.where(ended, rows + 1 + replay.next_ending, replay.obs.shape[0])
    written = replay.obs.at[place, jnp.arange(num_envs)].set(
        obs + number, mode="drop", unique_indices=True
    )
    following = (replay.next_ending + ended) % replay.ended_at.shape[0]
    return replay.replace(obs=written, next_ending=following)


def their_age(replay, obs, number):
    """Reads and writes which vector step each last observation is from."""
    worlds = jnp.arange(obs.shape[0])
    ended = replays.ended(obs.shape[0], number)
    old = replay.ended_at[replay.next_ending, worlds]
    new = jnp.where(ended, replay.step, old)
    return replay.replace(
        ended_at=replay.ended_at.at[replay.next_ending, worlds].set(new, unique_indices=True),
        next_ending=(replay.next_ending + ended) % replay.ended_at.shape[0],
        step=replay.step + 1,
    )


def repeated(write, obs):
    """Returns the step to repeat on (ring, number) that writes alone."""
    return lambda state: (write(state[0], obs, state[1]), state[1] + 1)


def main() -> None:
    for task in TASKS:
        config = presets.resolve(task, "sac", "cpu")
        env, _ = driver.build(config)
        start = jax.eval_shape(env.reset, jax.random.PRNGKey(0))
        layout = replay_layout(env, config.loop, start)
        buffer = replays.ours(layout, (config.loop.batch_size,))
        obs = jnp.ones((layout.num_envs, env.observation_size))
        steps = {"all of add": replays.adding(buffer, layout)}
        for write in (newest, last_observations, their_age):
            steps[write.__name__.replace("_", " ")] = repeated(write, obs)
        for name, step in steps.items():
            content = replays.fill(buffer, ring.init(layout), layout)
            taken = Repeated(step, (content, jnp.int32(0)), {}).measure(BUDGET)
            median, low, high = (f"{1e6 * seconds:.2f}" for seconds in taken[:3])
            print(f"{task}, {layout.num_envs} worlds, {name}: {median} us ({low} to {high})")


if __name__ == "__main__":
    main()
