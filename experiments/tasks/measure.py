"""Compile time and control steps/s of every task at batch 1, 64 and 1,024.

    python experiments/tasks/measure.py            (writes results.csv and README.md's table)

One row a task and batch: seconds to trace and compile a scan of vmapped steps, and control steps/s
of it under random actions. The port's physics steps/s are in experiments/port.
"""

import argparse
import csv
import time
from pathlib import Path

import jax
import jax.numpy as jnp

from mjx_qflex import tasks
from mjx_qflex.errors import UserError

HERE = Path(__file__).parent
BATCHES = (1, 64, 1024)
BUDGET_S = 2.0  # of each timed run; the number of steps follows from a first short one


def measure(env, batch: int) -> dict[str, float]:
    """Returns compile seconds, control steps/s and seconds of simulated time per second."""
    options = env.compiler_options if jax.default_backend() == "cpu" else {}

    def run(state, key, num_steps):
        def step(carry):
            i, state, key = carry
            key, action_key = jax.random.split(key)
            action = jax.random.uniform(action_key, (batch, env.action_size), minval=-1.0)
            return i + 1, jax.vmap(env.step)(state, action), key

        return jax.lax.while_loop(lambda carry: carry[0] < num_steps, step, (0, state, key))[1]

    state = jax.jit(jax.vmap(env.reset), compiler_options=options)(
        jax.random.split(jax.random.PRNGKey(0), batch)
    )
    key = jax.random.PRNGKey(1)
    start = time.perf_counter()
    compiled = jax.jit(run, compiler_options=options).lower(state, key, 1).compile()
    compile_s = time.perf_counter() - start

    def timed(num_steps: int) -> float:
        start = time.perf_counter()
        jax.block_until_ready(compiled(state, key, jnp.int32(num_steps)))
        return time.perf_counter() - start

    timed(1)
    num_steps = max(2, int(BUDGET_S / 2 / timed(2) * 2))
    rate = batch * num_steps / min(timed(num_steps), timed(num_steps))
    return {
        "compile_s": round(compile_s, 1),
        "steps_per_s": round(rate, 1),
        "simulated_s_per_s": round(rate * env.control_dt, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", default=sorted(tasks.TASKS))
    parser.add_argument("--output", type=Path, default=HERE / "results.csv")
    arguments = parser.parse_args()
    rows = []
    for name in arguments.tasks:
        try:
            env = tasks.make(name)
        except UserError as error:
            print(f"skipped {name}: {error}", flush=True)
            continue
        for batch in BATCHES:
            sizes = {"observations": env.observation_size, "actions": env.action_size}
            rows.append({"task": name, **sizes, "batch": batch, **measure(env, batch)})
            print(rows[-1], flush=True)
    with arguments.output.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
