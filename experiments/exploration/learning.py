"""Learning curves of all algorithms as actuators multiply, from the sweep that trains them.

    python -m mjx_qflex.sweep experiments/exploration/learning.toml --jobs=2 --hours=15
    python experiments/exploration/learning.py

The study takes longer than one sitting. Whenever this runs, finished runs in the sweep's folder
join `learning.csv`, and what is there already stays, also without the folders of its runs.
"""

import argparse
import csv
import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from figures import HERE, canvas, num_seeds, save, write_csv
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter

from mjx_qflex.reports import comparison, statistics
from mjx_qflex.reports.page import COLOURS

ENDS = statistics.Estimate._fields  # value, low, high
NUMBERS = ("transitions", "return", "displacement", "idle")  # columns besides those of a `Key`


class Key(NamedTuple):
    """Which run: its places in the sweep's file, and its seed."""

    task: str  # kind and number of actuators, such as chain-700
    algorithm: str
    seed: int


class Curve(NamedTuple):
    """How a run went, and what doing nothing brings from the same starts, which its seed draws."""

    points: np.ndarray  # [P, 2] of transitions and return
    displacement: np.ndarray  # [P], root mean square of the ascent's in an action; NaN: not known
    idle: float

    @property
    def gain(self) -> np.ndarray:
        """Transitions, and the return minus that of doing nothing: without the starts' spread."""
        return self.points - np.array([0.0, self.idle])


Curves = dict[Key, Curve]


def kept(path: Path) -> Curves:
    """Reads the curves that are there already; none where there is no file."""
    found: dict[Key, list[tuple[float, ...]]] = {}
    if path.exists():
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                key = Key(row["task"], row["algorithm"], int(row["seed"]))
                found.setdefault(key, []).append(tuple(float(row[name]) for name in NUMBERS))
    columns = {key: np.array(rows).T for key, rows in found.items()}
    return {
        key: Curve(np.stack([at, value], axis=1), displacement, idle[0])
        for key, (at, value, displacement, idle) in columns.items()
    }


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
        logged = run.series("update/displacement")
        displacement = np.full(len(points), np.nan)
        if len(logged):
            displacement = np.interp(points[:, 0], *logged.T)
        idle = run.policies["idle"]["return_mean"]
        curves[Key(*folder.parts[-3:-1], run.seed)] = Curve(points, displacement, idle)
    return curves


def of_kinds(tasks: Iterable[str]) -> dict[str, list[str]]:
    """Returns tasks by their kind of body."""
    kinds: dict[str, list[str]] = {}
    for task in tasks:
        kinds.setdefault(task.split("-")[0], []).append(task)
    return kinds


def of_seeds(curves: Curves, task: str, algorithm: str) -> list[Curve]:
    """Returns the curves of one line, one a seed."""
    return [curve for key, curve in curves.items() if key[:2] == (task, algorithm)]


def at_the_end(lines: Iterable[np.ndarray]) -> np.ndarray:
    """Returns the last value of each seed's points `[P, 2]`: `[S]`."""
    return np.array([points[-1, 1] for points in lines])


def num_actuators(task: str) -> int:
    """Returns the number in a task's name."""
    return int(task.split("-")[1])


def names(curves: Iterable[Key], place: int) -> list[str]:
    """Returns the different tasks (place 0) or algorithms (place 1), shorter numbers first."""
    found = {key[place] for key in curves}
    return sorted(found, key=lambda name: (name.split("-")[0], len(name), name))


def table(curves: Curves) -> list[dict]:
    """Returns final gains with their intervals, and how each compares with Qflex."""
    rows = []
    for task, algorithm in itertools.product(names(curves, 0), names(curves, 1)):
        found = of_seeds(curves, task, algorithm)
        if not found:
            continue
        gains = at_the_end(curve.gain for curve in found)
        returns = at_the_end(curve.points for curve in found)
        qflex = at_the_end(curve.gain for curve in of_seeds(curves, task, "qflex"))
        row = {"task": task, "algorithm": algorithm, "seeds": len(found)}
        for name, numbers in (("gain", gains), ("return", returns)):
            estimate = statistics.over_seeds(numbers, "iqm")
            row |= {f"{name}_{end}": float(x) for end, x in estimate._asdict().items()}
        if len(qflex) and algorithm != "qflex":
            above = statistics.probability_of_improvement([qflex], [gains])
            row |= {f"qflex_above_{end}": x for end, x in above._asdict().items()}
        else:
            row |= dict.fromkeys((f"qflex_above_{end}" for end in ENDS), float("nan"))
        rows.append(row)
    return rows


def markdown(rows: Sequence[dict], quantity: str) -> list[str]:
    """Returns a quantity of `table` as lines of a Markdown table, algorithms over tasks.

    Cells tell their number of seeds where the task has cells of more.
    """
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    most = {task: max(row["seeds"] for row in rows if row["task"] == task) for task in tasks}
    cells: dict[str, dict[str, str]] = {}
    for row in rows:
        value, low, high = (row[f"{quantity}_{end}"] for end in ENDS)
        if np.isnan(value):
            continue
        notes = [] if np.isnan(low) else [f"{_short(low)}, {_short(high)}"]
        if row["seeds"] < most[row["task"]]:
            notes.append(num_seeds(row["seeds"]))
        cell = _short(value) + (f" ({'; '.join(notes)})" if notes else "")
        cells.setdefault(row["algorithm"], {})[row["task"]] = cell
    lines = [["", *tasks], ["---"] * (len(tasks) + 1), ["seeds", *(str(most[t]) for t in tasks)]]
    lines += [[name, *(found.get(task, "-") for task in tasks)] for name, found in cells.items()]
    return [f"| {' | '.join(line)} |" for line in lines]


def _short(value: float) -> str:
    return f"{value:.1f}" if abs(value) >= 3 else f"{value:z.2f}"


def styles(curves: Curves) -> dict[str, dict[str, str]]:
    """Returns each algorithm's colour and line, the same in both pictures.

    Lines of one algorithm share a colour; the one with its own paper's or with tuned options is
    dashed.
    """
    plain = {name: name.removesuffix("-own").removesuffix("-tuned") for name in names(curves, 1)}
    colour = dict(zip(dict.fromkeys(plain.values()), COLOURS, strict=False))
    return {
        name: {"color": colour[of], "linestyle": "-" if name == of else "--"}
        for name, of in plain.items()
    }


def draw(curves: Curves) -> Figure:
    """Draws the interquartile mean of seeds with its interval, one panel a task."""
    kinds = of_kinds(names(curves, 0))
    columns = max(map(len, kinds.values()))
    figure, axes = canvas(4.6 * columns, 3.6 * len(kinds), len(kinds), columns)
    for row, tasks in zip(axes, kinds.values(), strict=True):
        row[0].set_ylabel("return minus that of doing nothing")
        for axis in row[len(tasks) :]:
            axis.set_visible(False)
        for axis, task in zip(row, tasks, strict=False):
            _draw_task(axis, curves, task)
    _add_legend(figure, curves)
    return figure


def _draw_task(axis: Axes, curves: Curves, task: str) -> None:
    """Draws one task's curves."""
    numbers = set()
    for algorithm, style in styles(curves).items():
        lines = [curve.gain for curve in of_seeds(curves, task, algorithm)]
        if not lines:
            continue
        numbers.add(len(lines))
        x, values = comparison.at_common_points(lines)
        estimate = statistics.over_seeds(values, "iqm")
        axis.plot(x, estimate.value, linewidth=1.8, **style)
        band = {"color": style["color"], "alpha": 0.15, "linewidth": 0}
        axis.fill_between(x, estimate.low, estimate.high, **band)
    axis.set_title(f"{task} (seeds: {' or '.join(map(str, sorted(numbers)))})")
    axis.set_xlabel("transitions")
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    axis.grid(alpha=0.3)


def _add_legend(figure: Figure, curves: Curves) -> None:
    """Names the algorithms' lines on the right of all panels."""
    lines = [Line2D([], [], label=name, **style) for name, style in styles(curves).items()]
    figure.legend(handles=lines, loc="outside right center", fontsize=9)


def draw_by_size(curves: Curves, rows: Sequence[dict]) -> Figure:
    """Draws what is gained in the end over the number of actuators, one panel a kind of body."""
    kinds = of_kinds(names(curves, 0))
    figure, axes = canvas(5.2 * len(kinds), 3.8, 1, len(kinds))
    for axis, (kind, tasks) in zip(axes.flat, kinds.items(), strict=True):
        for place, (algorithm, style) in enumerate(styles(curves).items()):
            line = [
                (num_actuators(row["task"]), *(row[f"gain_{end}"] for end in ENDS))
                for row in rows
                if row["task"] in tasks and row["algorithm"] == algorithm
            ]
            if not line:
                continue
            size, value, low, high = np.array(line).T
            size = size * 1.02 ** (place - 4)  # beside each other, or bars hide one another
            spread = np.nan_to_num([value - low, high - value])
            axis.errorbar(size, value, spread, marker="o", markersize=4, **style)
        axis.set_xscale("log")
        axis.set_xticks(sizes := [num_actuators(task) for task in tasks], map(str, sizes))
        axis.set_xticks([], minor=True)
        axis.set_title(kind)
        axis.set_xlabel("actuators")
        axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel("final return minus that of doing nothing")
    _add_legend(figure, curves)
    return figure


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--logdir", type=Path, default=Path("runs/exploration"))
    parser.add_argument("--output", type=Path, default=HERE, help="folder of CSV and picture")
    parser.add_argument("--name", default="learning", help="of the files, without their ending")
    flags = parser.parse_args(arguments)
    curves = kept(flags.output / f"{flags.name}.csv") | finished(flags.logdir)
    points = [
        key._asdict() | dict(zip(NUMBERS, (int(at), value, displacement, curve.idle), strict=True))
        for key, curve in sorted(curves.items())
        for (at, value), displacement in zip(curve.points, curve.displacement, strict=True)
    ]
    write_csv(points, flags.name, flags.output)
    rows = table(curves)
    for quantity, words in (("gain", "final gain"), ("qflex_above", "P(qflex gains more)")):
        print(f"\n{words}\n", *markdown(rows, quantity), sep="\n")
    write_csv(rows, f"{flags.name}_final", flags.output)
    if len(names(curves, 0)) > 1:
        save(draw(curves), flags.name, flags.output)
        save(draw_by_size(curves, rows), f"{flags.name}_by_size", flags.output)


if __name__ == "__main__":
    main()
