"""Which of Qflex's switches help? Code, paper, and each difference alone, on small tasks.

    python experiments/qflex_switches/compare.py --task=chain_reach --num=8
    python experiments/qflex_switches/compare.py --plot

Every variant gets the same environment steps, updates and seeds. One row a seed and evaluation goes
to results.csv; a seed that is there in full is not run again, so the same command goes on where it
was stopped.
"""

import argparse
import csv
import dataclasses
import statistics
import sys
import time
from collections import defaultdict
from pathlib import Path

import jax
import matplotlib

from mjx_qflex import tasks
from mjx_qflex.algos import qflex
from mjx_qflex.sizes import LoopConfig
from mjx_qflex.training import environments
from mjx_qflex.training.loop import make_loop

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results.csv"
COLUMNS = ("task", "variant", "seed", "epoch", "transitions", "updates", "return", "seconds")
NUM_OPTION = {"chain_reach": "num_joints", "arm_reach": "num_actuators"}
CODE = qflex.PRESETS["code"]
CHANGES = {
    "flow_states": "current",
    "bootstrap": "flow",
    "clip_target": True,
    "clip_stored_action": True,
    "tanh_source": False,
    "entropy": True,
    "euler_grid": "left",
    "gradient": "mean",
    "stale_critic": False,
    "renorm_warmup": 100_000,
    "eval_noise": "mean",
    "batch_norm": "critic",
}
VARIANTS = {
    "code": CODE,
    "paper": qflex.PRESETS["paper"],
    **{f"{key}={new}": dataclasses.replace(CODE, **{key: new}) for key, new in CHANGES.items()},
}


def read_rows() -> list[dict]:
    """Returns the finished rows of results.csv, as strings."""
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


def run_variant(label: str, variant: str, args: argparse.Namespace, env) -> None:
    """Trains and evaluates the missing seeds of one variant; the seeds share one compilation."""
    done = {row["seed"] for row in read_rows() if (row["task"], row["variant"]) == (label, variant)}
    seeds = [seed for seed in range(args.seeds) if str(seed) not in done]
    if not seeds:
        return
    config = dataclasses.replace(VARIANTS[variant], width=args.width)
    algorithm = qflex.make(config, environments.spec(env))
    sizes = LoopConfig(
        num_envs=64,
        batch_size=args.batch,
        updates_per_step=1,
        prefill_transitions=6400,
        replay_capacity=args.epochs * 64 * args.steps_per_epoch + 6400,
        steps_per_epoch=args.steps_per_epoch,
        reset_pool=256,
        eval_envs=256,
    )
    loop = make_loop(env, algorithm, sizes)
    for seed in seeds:
        begin = time.perf_counter()
        run = loop.prefill(loop.init(jax.random.PRNGKey(seed)))
        rows = []
        for epoch in range(args.epochs):
            run, _ = loop.epoch(run)
            result = loop.evaluate(run.learner, jax.random.PRNGKey(10_000 + seed))
            values = (label, variant, seed, epoch + 1, run.transitions, run.updates)
            score = float(result.return_.mean())
            seconds = round(time.perf_counter() - begin, 1)
            rows.append(dict(zip(COLUMNS, (*values, round(score, 4), seconds), strict=True)))
        append_rows(rows)
        print(f"{label} {variant} seed {seed}: {rows[-1]['return']} in {seconds} s", flush=True)


def score_table(label: str) -> list[tuple[str, float, float, list[float]]]:
    """Returns (variant, mean, standard error, per seed), best first.

    A seed's score is its mean return over the second half of training.
    """
    curves = defaultdict(lambda: defaultdict(list))
    for row in read_rows():
        if row["task"] == label:
            curves[row["variant"]][row["seed"]].append(float(row["return"]))
    table = []
    for variant, seeds in curves.items():
        scores = [statistics.fmean(curve[len(curve) // 2 :]) for curve in seeds.values()]
        error = statistics.stdev(scores) / len(scores) ** 0.5 if len(scores) > 1 else float("nan")
        table.append((variant, statistics.fmean(scores), error, scores))
    return sorted(table, key=lambda entry: -entry[1])


def plot() -> None:
    """Prints the scores of each task and draws them to results.png."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    labels = sorted({row["task"] for row in read_rows()})
    figure, axes = pyplot.subplots(
        1, len(labels), figsize=(6 * len(labels), 5), layout="constrained", squeeze=False
    )
    for axis, label in zip(axes[0], labels, strict=True):
        table = score_table(label)
        print(f"\n{label}\n| variant | score | standard error | seeds |\n|---|---|---|---|")
        for variant, mean, error, scores in table:
            print(f"| {variant} | {mean:.2f} | {error:.2f} | {len(scores)} |")
        names = [entry[0] for entry in table][::-1]
        axis.barh(names, [entry[1] for entry in table][::-1], color="lightsteelblue")
        for height, entry in enumerate(table[::-1]):
            axis.plot(entry[3], [height] * len(entry[3]), "k.", markersize=4)
        axis.set_title(label)
        axis.set_xlabel("return, mean over the second half of training (dots: seeds)")
    figure.savefig(FOLDER / "results.png", dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", choices=sorted(NUM_OPTION))
    parser.add_argument("--num", type=int, default=8, help="joints or actuators")
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--steps_per_epoch", type=int, default=300)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--plot", action="store_true", help="only print and draw the results")
    args = parser.parse_args()
    if args.task is not None and not args.plot:
        print("command: python", " ".join(sys.argv), flush=True)
        env = tasks.make(args.task, **{NUM_OPTION[args.task]: args.num})
        for variant in args.variants:
            run_variant(f"{args.task}_{args.num}", variant, args, env)
    plot()


if __name__ == "__main__":
    main()
