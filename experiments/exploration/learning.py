"""Learning curves of all algorithms as actuators multiply, from the sweep that trains them.

    python -m mjx_qflex.sweep experiments/exploration/learning.toml --jobs=2 --hours=15
    python experiments/exploration/learning.py

The study takes longer than one sitting. Whenever this runs, finished runs in the sweep's folder
join `learning.csv`, and what is there already stays, also without the folders of its runs.
"""

import argparse
import csv
import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from figures import HERE, canvas, save, say, write_csv
from matplotlib.ticker import EngFormatter

from mjx_qflex.training import comparison, statistics
from mjx_qflex.training.page import COLOURS

NAME = "learning"


class Key(NamedTuple):
    """Which run: its places in the sweep's file, and its seed."""

    task: str
    algorithm: str
    seed: int


Curves = dict[Key, np.ndarray]  # [points, 2] of transitions and return


def kept(path: Path) -> Curves:
    """Reads the curves that are there already; none where there is no file."""
    found: dict[Key, list[tuple[float, float]]] = {}
    if path.exists():
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                key = Key(row["task"], row["algorithm"], int(row["seed"]))
                found.setdefault(key, []).append((float(row["transitions"]), float(row["return"])))
    return {key: np.array(points) for key, points in found.items()}


def finished(logdir: Path) -> Curves:
    """Reads the runs `<logdir>/<task>/<algorithm>/s<seed>` that are finished.

    A curve's points are the evaluations along the way, and the final one in the last place.
    """
    curves: Curves = {}
    for folder in sorted(logdir.glob("*/*/s*/")):
        run = comparison.read_run(folder)
        if run.policy is None or run.seed is None:
            continue
        points = run.series("evaluation/return")
        end = (run.last("transitions"), run.final("return"))
        points = np.array([*points[points[:, 0] < end[0]], end])
        curves[Key(*folder.parts[-3:-1], run.seed)] = points
    return curves


def final_returns(curves: Curves, task: str, algorithm: str) -> np.ndarray:
    """Returns the last point's return of each seed `[S]`."""
    return np.array([c[-1, 1] for key, c in curves.items() if key[:2] == (task, algorithm)])


def names(curves: Iterable[Key], place: int) -> list[str]:
    """Returns the different tasks (place 0) or algorithms (place 1), shorter numbers first."""
    found = {key[place] for key in curves}
    return sorted(found, key=lambda name: (name.split("-")[0], len(name), name))


def table(curves: Curves) -> list[dict]:
    """Returns final returns with their intervals, and how each compares with Qflex."""
    rows = []
    for task, algorithm in itertools.product(names(curves, 0), names(curves, 1)):
        values, qflex = (final_returns(curves, task, name) for name in (algorithm, "qflex"))
        if not len(values):
            continue
        estimate = statistics.over_seeds(values, "iqm")
        row = {"task": task, "algorithm": algorithm, "seeds": len(values)}
        row |= {f"return_{end}": float(x) for end, x in estimate._asdict().items()}
        if len(qflex) and algorithm != "qflex":
            above = statistics.probability_of_improvement([qflex], [values])
            row |= {f"qflex_above_{end}": x for end, x in above._asdict().items()}
        else:
            row |= dict.fromkeys(
                ("qflex_above_value", "qflex_above_low", "qflex_above_high"), float("nan")
            )
        rows.append(row)
    return rows


def draw(curves: Curves, output: Path) -> None:
    """Draws the interquartile mean of seeds with its interval, one panel a task."""
    tasks, algorithms = names(curves, 0), names(curves, 1)
    colours = dict(zip(algorithms, itertools.cycle(COLOURS), strict=False))
    columns = min(3, len(tasks))
    figure, axes = canvas(
        4.6 * columns, 3.6 * -(-len(tasks) // columns), -(-len(tasks) // columns), columns
    )
    for axis in axes.flat[len(tasks) :]:
        axis.set_visible(False)
    for axis, task in zip(axes.flat, tasks, strict=False):
        for algorithm in algorithms:
            lines = [c for key, c in curves.items() if key[:2] == (task, algorithm)]
            if not lines:
                continue
            x, values = comparison.at_common_points(lines)
            estimate, colour = statistics.over_seeds(values, "iqm"), colours[algorithm]
            label = f"{algorithm} ({len(lines)})"
            axis.plot(x, estimate.value, color=colour, linewidth=1.8, label=label)
            axis.fill_between(x, estimate.low, estimate.high, color=colour, alpha=0.2, linewidth=0)
        axis.set_title(task)
        axis.set_xlabel("transitions")
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7, title="number of seeds in brackets", title_fontsize=7)
    for axis in axes[:, 0]:
        axis.set_ylabel("return of 64 episodes")
    save(figure, NAME, output)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--logdir", type=Path, default=Path("runs/exploration"))
    parser.add_argument("--output", type=Path, default=HERE, help="folder of CSV and picture")
    flags = parser.parse_args(arguments)
    curves = kept(flags.output / f"{NAME}.csv") | finished(flags.logdir)
    points = [
        {**key._asdict(), "transitions": int(at), "return": float(value)}
        for key, curve in sorted(curves.items())
        for at, value in curve
    ]
    write_csv(points, NAME, flags.output)
    rows = table(curves)
    for row in rows:
        say(row)
    write_csv(rows, f"{NAME}_final", flags.output)
    draw(curves, flags.output)


if __name__ == "__main__":
    main()
