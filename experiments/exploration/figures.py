"""What the figures of this folder share: tables and pictures on disk, and the chain's known value.

The chain is that of `chain_reach`: unit length, A equal links, joint i turned by 0.5 / A rad times
action i. Its value is known: minus the distance from tip to target after one step.
"""

import csv
import io
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter
from PIL import Image

from mjx_qflex.reports import comparison
from mjx_qflex.reports.comparison import Group
from mjx_qflex.reports.page import COLOURS, LineStyle
from mjx_qflex.reports.statistics import Estimate
from mjx_qflex.tasks.chain_reach import tip_position, turn_joints

HERE = Path(__file__).parent
BEND = np.pi  # rad, of all joints of a bent chain together: half a circle
FLOW, GAUSSIAN = COLOURS[0], COLOURS[1]  # the same in every figure


def bent(num_joints: int) -> jax.Array:
    """Returns the joint angles [A] of a chain that is bent evenly, half around (rad)."""
    return jnp.full(num_joints, BEND / num_joints)


def tips(angles: jax.Array, actions: jax.Array) -> jax.Array:
    """Returns the tip [B, 2] after one step of actions [B, A] from joint angles [A]."""
    return jax.vmap(lambda action: tip_position(turn_joints(angles, action)))(actions)


def chain_value(angles: jax.Array, targets: jax.Array, actions: jax.Array) -> jax.Array:
    """Returns minus the distances [B] to targets [B, 2] after actions [B, A], in chain lengths."""
    return -jnp.linalg.norm(targets - tips(angles, actions), axis=-1)


def canvas(width: float, height: float, rows: int, columns: int, **options: Any):
    """Returns a figure (inches) and its axes [rows, columns]."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def save(figure: Figure, name: str, folder: Path) -> None:
    """Writes a picture; a palette keeps it small."""
    path = folder / f"{name}.png"
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=90)
    Image.open(drawn).convert("RGB").quantize(256).save(path, optimize=True)
    print(f"written: {path} ({path.stat().st_size / 1000:.0f} kB)", flush=True)


def write_csv(rows: Sequence[dict[str, Any]], name: str, folder: Path) -> None:
    """Writes rows of equal keys, floats with six digits, into a folder that need not exist yet."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({key: _text(value) for key, value in row.items()})
    print(f"written: {path} ({len(rows)} rows)", flush=True)


def say(row: dict[str, Any]) -> None:
    """Prints a row in one line."""
    print(", ".join(f"{key} {_text(value, 4)}" for key, value in row.items()), flush=True)


def _text(value: Any, digits: int = 6) -> Any:
    return f"{value:.{digits}g}" if isinstance(value, float | np.floating) else value


def num_seeds(number: int) -> str:
    """Returns a number of seeds in words."""
    return f"{number} seed" + "s" * (number != 1)


def curves(
    axis: Axes, groups: Sequence[Group], quantity: str, styles: dict[str, LineStyle], statistic: str
) -> list[dict[str, Any]]:
    """Draws a quantity of groups over transitions: their statistic, its interval, each seed.

    Returns:
      The statistic and its interval as rows of a table.
    """
    rows = []
    for item in groups:
        x, estimate, lines = comparison.curve(item, quantity, "transitions", statistic)
        colour, line_style = styles[item.name]
        plot = partial(axis.plot, color=colour, linestyle=line_style)
        for line in lines:
            plot(*line.T, linewidth=0.6, alpha=0.5)
        label = f"{item.name} ({num_seeds(len(lines))})"
        plot(x, estimate.value, linewidth=2, label=label)
        axis.fill_between(x, estimate.low, estimate.high, color=colour, alpha=0.2, linewidth=0)
        which = {"task": item.problem, "name": item.name, "seeds": len(lines)}
        rows += [
            which | {"transitions": int(at)} | Estimate(*ends)._asdict()
            for at, *ends in zip(x, *estimate, strict=True)
        ]
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    axis.set_xlabel("transitions")
    axis.grid(alpha=0.3)
    return rows


def by_problem(groups: Iterable[Group]) -> dict[str, list[Group]]:
    """Returns groups by what they were trained on."""
    problems: dict[str, list[Group]] = {}
    for item in groups:
        problems.setdefault(item.problem, []).append(item)
    return problems


def log_slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Returns the slope of log y over log x by least squares."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])
