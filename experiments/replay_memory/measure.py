"""Does it change learning that the replay keeps each observation once, or in bfloat16?

    python experiments/replay_memory/measure.py --variants float32 bfloat16
    git worktree add /tmp/before 75bad1d
    PYTHONPATH=/tmp/before python experiments/replay_memory/measure.py --variants twice
    python experiments/replay_memory/measure.py --summary

`twice` is the ring of the commit named above, which stored the next observation of every
transition; the second and third commands run that version. One row an evaluation goes to
results.csv, with a digest of all that was learned so far: equal digests are equal learners, bit for
bit. A seed that is there in full is not run again.
"""

import argparse
import csv
import hashlib
import statistics
import time
from pathlib import Path

import jax

from mjx_qflex import presets
from mjx_qflex.runner import driver
from mjx_qflex.training import replay as ring
from mjx_qflex.training.loop import make_loop

RESULTS = Path(__file__).with_name("results.csv")
COLUMNS = ("algo", "variant", "seed", "transitions", "updates", "return", "learner", "cpu_seconds")
# The ring holds a quarter of the run, so that it is overwritten.
SETTINGS = (
    "algo.width=128", "algo.learning_rate=1e-3", "loop.batch_size=128", "loop.num_envs=64",
    "loop.updates_per_step=4", "loop.prefill_transitions=6400", "loop.replay_capacity=100000",
    "loop.steps_per_epoch=200", "loop.reset_pool=64", "loop.eval_envs=128",
)  # fmt: skip
EPOCHS = 30
# Both preset cpu's task with the most observations and one for a GPU.
SIZED = (("ms_human_walk", "cpu"), ("ms_human_walk", "gpu"), ("arm_reach", "cpu"))


def read_rows() -> list[dict]:
    """Returns the rows of results.csv, as strings."""
    if not RESULTS.exists():
        return []
    with RESULTS.open(newline="") as file:
        return list(csv.DictReader(file))


def append_rows(rows: list[dict]) -> None:
    """Adds one seed's rows in a single write, so that an interrupted seed leaves none."""
    new = not RESULTS.exists()
    with RESULTS.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if new:
            writer.writeheader()
        writer.writerows(rows)


def digest(tree: object) -> str:
    """Returns 16 hexadecimal digits that tell trees of arrays apart by any bit."""
    total = hashlib.sha256()
    for leaf in jax.tree.leaves(jax.device_get(tree)):
        total.update(leaf.tobytes())
    return total.hexdigest()[:16]


def train(algo: str, variant: str, seeds: list[int]) -> None:
    """Trains the seeds one after the other, with one compilation."""
    stored_once = hasattr(ring, "Layout")
    assert stored_once == (variant != "twice"), "see this file's docstring"
    kept = [f"loop.replay_obs_dtype={variant}"] if stored_once else []
    config = presets.resolve("arm_reach", algo, "cpu", sets=[*SETTINGS, *kept])
    loop = make_loop(*driver.build(config), config.loop)
    for seed in seeds:
        began, rows = time.process_time(), []
        run = loop.prefill(loop.init(jax.random.PRNGKey(seed)))
        for _ in range(EPOCHS):
            run, _ = loop.epoch(run)
            result = loop.evaluate(run.learner, jax.random.PRNGKey(10_000 + seed))
            score = f"{float(result.return_.mean()):.9g}"
            seconds = round(time.process_time() - began, 1)
            counts = (run.transitions, run.updates)
            values = (algo, variant, seed, *counts, score, digest(run.learner), seconds)
            rows.append(dict(zip(COLUMNS, values, strict=True)))
        append_rows(rows)
        print(f"{algo} {variant} seed {seed}: {rows[-1]['return']} in {seconds} CPU s", flush=True)


def summary() -> None:
    """Prints a line for each algorithm and variant, and the sizes of rings."""
    runs: dict[tuple[str, str], dict[str, list[dict]]] = {}
    for row in read_rows():
        runs.setdefault((row["algo"], row["variant"]), {}).setdefault(row["seed"], []).append(row)
    print("| algorithm | ring | last return, by seed | mean | learners as stored twice |")
    print("|---|---|---|---|---|")
    for (algo, variant), seeds in runs.items():
        twice = runs.get((algo, "twice"), {})
        pairs = [
            (row["learner"], other["learner"])
            for seed in seeds.keys() & twice.keys()
            for row, other in zip(seeds[seed], twice[seed], strict=True)
        ]
        same = f"{sum(x == y for x, y in pairs)} of {len(pairs)}"
        last = [float(rows[-1]["return"]) for rows in seeds.values()]
        each = ", ".join(f"{value:.3f}" for value in last)
        print(f"| {algo} | {variant} | {each} | {statistics.fmean(last):.3f} | {same} |")
    for task, preset in SIZED:
        size(task, preset)


def size(task: str, preset: str) -> None:
    """Prints what the ring of a preset takes, and what it would take with everything twice."""
    from mjx_qflex.training.collect import replay_layout

    sizes = []
    for dtype in ("float32", "bfloat16"):
        config = presets.resolve(task, preset=preset, sets=[f"loop.replay_obs_dtype={dtype}"])
        env, _ = driver.build(config)
        reset_state = jax.eval_shape(env.reset, jax.random.PRNGKey(0))
        layout = replay_layout(env, config.loop, reset_state)
        sizes.append(ring.replay_bytes(layout))
    # Before: the five fields and a mask of one byte.
    numbers = sum(field.size for field in layout.transition)
    before = layout.rows * layout.num_envs * (4 * numbers + 1) + 8
    mib = " ".join(f"{count / 2**20:,.1f} MiB ({count / before:.0%})" for count in sizes)
    print(f"{task}, preset {preset}: {before / 2**20:,.1f} MiB stored twice; once {mib}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--algo", default="sac")
    parser.add_argument("--variants", nargs="*", default=[])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--summary", action="store_true")
    flags = parser.parse_args()
    for variant in flags.variants:
        rows = read_rows()
        done = {
            row["seed"] for row in rows if (row["algo"], row["variant"]) == (flags.algo, variant)
        }
        train(flags.algo, variant, [seed for seed in range(flags.seeds) if str(seed) not in done])
    if flags.summary:
        summary()


if __name__ == "__main__":
    main()
