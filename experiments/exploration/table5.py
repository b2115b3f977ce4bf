"""Table 5: seconds per action and per update of every algorithm, over the number of actuators.

    python experiments/exploration/table5.py

Acting and updating are compiled apart from any task, on random observations and batches, with a
preset's options for `chain_reach`; compile time is a column of its own. On a GPU, for example

    python experiments/exploration/table5.py --preset=gpu --worlds=4096 --batch=4096 \\
        --set algo.width=1024
"""

import argparse
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from figures import HERE, canvas, save, say, write_csv

from mjx_qflex import algos, presets
from mjx_qflex.reports import reporting
from mjx_qflex.reports.page import COLOURS
from mjx_qflex.training.program import Program
from mjx_qflex.types import EnvSpec, Transition

COUNTS = (10, 80, 700)
EXTRA_OBSERVATIONS = 4  # of chain_reach, besides one for each joint
BUDGET_S = 1.0  # of one timing
CALLS = 12  # of a round


def seconds_per_call(call: Callable[[Any], Any], state: Any) -> float:
    """Returns seconds of `state = call(state)`: the median over rounds of several calls.

    Some algorithms do part of their work at every second or third update, so a round is a multiple
    of 6 in a row; what they do more rarely yet is done in the first call, which is not timed.
    """
    state = jax.block_until_ready(call(state))
    rounds, begin = [], time.perf_counter()
    while len(rounds) < 3 or time.perf_counter() - begin < BUDGET_S:
        start = time.perf_counter()
        for _ in range(CALLS):
            state = call(state)
        jax.block_until_ready(state)
        rounds.append((time.perf_counter() - start) / CALLS)
    return float(np.median(rounds))


def measure(name: str, num_actuators: int, flags: argparse.Namespace) -> dict:
    """Returns a row: one algorithm with one number of actuators."""
    worlds, batch = flags.worlds, flags.batch
    config = presets.resolve("chain_reach", name, flags.preset, sets=flags.set)
    num_obs = num_actuators + EXTRA_OBSERVATIONS
    algorithm = algos.make(name, config.algo_config, EnvSpec(num_obs, num_actuators))
    learner = jax.jit(algorithm.init)(jax.random.key(0))
    keys = jax.random.split(jax.random.key(1), 3)
    obs = jax.random.normal(keys[0], (batch, num_obs))
    transitions = Transition(
        obs=obs,
        action=jax.random.uniform(keys[1], (batch, num_actuators), minval=-1.0),
        reward=jax.random.normal(keys[2], (batch,)),
        discount=jnp.ones(batch),
        next_obs=obs,
    )

    def act(learner, obs, key):
        policy = algorithm.policy(learner)
        return policy.sample(obs, policy.init(obs.shape[0]), key).action

    row: dict = {"algorithm": name, "actuators": num_actuators}
    for what, number in (("one", 1), ("all", worlds)):
        program = Program(act)
        states = jax.random.normal(keys[0], (number, num_obs))
        seconds = seconds_per_call(partial(_acted, program, learner, keys[1]), states)
        row[f"act_{what}_ms"] = 1e3 * seconds
        row[f"act_{what}_compile_s"] = program.compile_seconds
    row |= {"update_ms": math.nan, "update_compile_s": math.nan}
    if not algos.entry(name).on_policy:  # PPO has no update from a batch of the replay
        program = Program(algorithm.update)
        seconds = seconds_per_call(lambda x: program(x, transitions, keys[2])[0], learner)
        row |= {"update_ms": 1e3 * seconds, "update_compile_s": program.compile_seconds}
    return row | {"worlds": worlds, "batch": batch}


def _acted(program: Program, learner: Any, key: jax.Array, obs: jax.Array) -> jax.Array:
    """Acts once at observations [N, O], and returns them for the next time."""
    jax.block_until_ready(program(learner, obs, key))
    return obs


def draw(rows: list[dict], folder: Path) -> None:
    titles = {
        "act_one_ms": "one action",
        "act_all_ms": f"actions of {rows[0]['worlds']} worlds at once",
        "update_ms": f"one update, batch of {rows[0]['batch']}",
    }
    figure, (axes,) = canvas(13.0, 4.0, 1, 3)
    names = list(dict.fromkeys(row["algorithm"] for row in rows))
    for axis, (key, title) in zip(axes, titles.items(), strict=True):
        for name, colour in zip(names, COLOURS, strict=False):
            found = [row for row in rows if row["algorithm"] == name]
            x, y = [row["actuators"] for row in found], [row[key] for row in found]
            axis.loglog(x, y, "o-", color=colour, label=name)
        axis.set(title=title, xlabel="actuators A", ylabel="time (ms, median)")
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    save(figure, "table5", folder)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--algos", nargs="+", default=sorted(algos.ALGOS))
    add("--counts", type=int, nargs="+", default=COUNTS, help="actuators")
    add("--preset", default="cpu", help="of the algorithms' options (default: cpu)")
    add("--worlds", type=int, default=64)
    add("--batch", type=int, default=256)
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="such as algo.width=1024")
    add("--output", type=Path, default=HERE, help="folder of CSV and picture")
    flags = parser.parse_args(arguments)
    print(f"on {reporting.device_name()}", flush=True)
    rows = []
    for name in flags.algos:
        for num_actuators in flags.counts:
            rows.append(measure(name, num_actuators, flags))
            say(rows[-1])
    write_csv(rows, "table5", flags.output)
    draw(rows, flags.output)


if __name__ == "__main__":
    main()
