"""Run folders as one HTML page that needs nothing else: curves, tables, differences, videos."""

import base64
import functools
import io
import itertools
import math
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import matplotlib
import pandas as pd
from markupsafe import Markup, escape
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from mjx_qflex import files
from mjx_qflex.reports import comparison, templates
from mjx_qflex.reports.comparison import Group, RecordedRun
from mjx_qflex.reports.statistics import Estimate
from mjx_qflex.runner.metrics import duration, number

INK = "#010203"  # stands for the text's colour, which the reader's light or dark mode decides
COLOURS = (
    "#2a7de1", "#e0662b", "#2f9e63", "#b455c9", "#c9a013",
    "#d8435f", "#1aa3b5", "#8a7258", "#7f8c2a", "#7a7f8a",
)  # fmt: skip
LINES = ("solid", "dashed", "dotted")
QUANTITIES = {
    "evaluation/return": "return, evaluation",
    "episode/return": "return, training episodes",
    "episode/length": "length of training episodes (steps)",
}
X_AXES = {"transitions": "transitions", "seconds": "seconds of training"}
STATISTIC_NAMES = {"mean": "mean", "iqm": "interquartile mean"}
EMBEDDED_BYTES = 4 * 2**20  # of a video; larger ones are linked


def write(
    runs: list[RecordedRun], groups: list[Group], output: Path, x: str, statistic: str
) -> None:
    """Writes the page on `runs`, whole or not at all.

    Args:
      runs: as `comparison.read_run` reads them.
      groups: of these runs, as `comparison.group` makes them.
      output: the HTML file; videos too large to embed are linked relative to it.
      x: name in `X_AXES`.
      statistic: name in `statistics.STATISTICS`.
    """
    files.write(output, render(runs, groups, output.parent, x, statistic))


def render(
    runs: list[RecordedRun], groups: list[Group], folder: Path, x: str, statistic: str
) -> str:
    """Returns the page as text; `folder` is where it will lie."""
    styles = line_styles(item.name for item in groups)
    problems: dict[str, list[Group]] = {}
    for item in groups:
        problems.setdefault(item.problem, []).append(item)
    tasks = dict.fromkeys(comparison.task_name(item.runs[0]) for item in groups)
    names = comparison.folder_names(runs)
    members = [(names[run.folder], item.name, run) for item in groups for run in item.runs]
    return templates.render(
        "comparison.html",
        title=f"{templates.count(len(runs), 'run')} of {', '.join(tasks)}",
        statistic=STATISTIC_NAMES[statistic],
        notes=comparison.notes(runs, groups),
        styles=styles,
        problems=[
            {
                "name": name,
                "groups": found,
                "curves": {
                    caption: draw(found, styles, quantity, x, statistic)
                    for quantity, caption in QUANTITIES.items()
                },
                "results": pd.DataFrame([_result(item, statistic) for item in found]),
                "improvements": _improvements({item.name: [item] for item in found}),
                "differences": _differences(found, [item.name for item in found]),
            }
            for name, found in problems.items()
        ],
        improvements_overall=_overall(problems),
        differences_between=_between(problems),
        each_run=pd.DataFrame([_row(*member) for member in members]),
        videos=[_video(*member, folder) for member in members if member[-1].video],
    )


class LineStyle(NamedTuple):
    """How a line is drawn, as CSS and matplotlib both understand it."""

    colour: str
    line: str


def line_styles(names: Iterable[Any]) -> dict[Any, LineStyle]:
    """Returns a style for each name, of which the first 30 differ: colours first, then lines."""
    styles = [LineStyle(colour, line) for line in LINES for colour in COLOURS]
    return dict(zip(dict.fromkeys(names), itertools.cycle(styles), strict=False))


def draw(
    groups: list[Group], styles: dict[str, LineStyle], quantity: str, x: str, statistic: str
) -> str:
    """Returns the learning curves of groups as an SVG element, "" where there is no point."""
    figure = Figure(figsize=(5.2, 3.3), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.subplots()
    for item in groups:
        places, estimate, lines = comparison.curve(item, quantity, x, statistic)
        style = styles[item.name]
        marker = "." if lines and max(map(len, lines)) <= 30 else ""
        plot = functools.partial(axes.plot, marker=marker, color=style.colour, linestyle=style.line)
        several = len(lines) > 1
        width, alpha = (0.7, 0.45) if several else (1.2, 1.0)
        for line in lines:
            plot(*line.T, linewidth=width, alpha=alpha)
        if several:
            plot(places, estimate.value, linewidth=2)
            axes.fill_between(
                places, estimate.low, estimate.high, color=style.colour, alpha=0.2, linewidth=0
            )
    if not axes.lines:
        return ""
    axes.set_xlabel(X_AXES[x], color=INK)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.tick_params(colors=INK)
    axes.grid(color=INK, alpha=0.15, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)
    identity = "-".join([groups[0].problem, quantity])
    return _svg(figure, re.sub(r"\W+", "-", identity), f"{QUANTITIES[quantity]} over {x}")


def _svg(figure: Figure, prefix: str, label: str) -> Markup:
    """Returns a figure as an element of a page: ids of its own, the page's colour and fonts."""
    file = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": prefix}):
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    text = file.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    text = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font: \1 system-ui, sans-serif", text)
    text = re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{prefix}-", text)
    return Markup(text.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1))


def _result(item: Group, statistic: str) -> dict[str, Any]:
    """Returns a group's row of the table of results."""

    def over(of: str, take: str = "median") -> float:
        return float(item.estimate(lambda run: getattr(run, take)(of), statistic).value)

    def final(quantity: str) -> str:
        return interval_text(item.estimate(lambda run: run.final(quantity), statistic))

    seconds = over("seconds", "last")
    return {
        "final result": item.name,
        "seeds": len({run.seed for run in item.runs}),
        "return [95%]": final("return"),
        "length [95%], steps": final("length"),
        "steps/s": number(over("steps_per_second")),
        "updates/s": number(over("updates_per_second")),
        "transitions": _range([run.last("transitions") for run in item.runs]),
        "training time": duration(seconds) if math.isfinite(seconds) else "-",
    }


def _improvements(groups: dict[str, list[Group]]) -> pd.DataFrame | None:
    """Returns a table of each against each; `groups` by name, one a problem in the same order."""
    if len(groups) < 2:
        return None
    cells = {
        other: [
            comparison.ABSENT if other == name else interval_text(comparison.improvement(mine, x))
            for name, mine in groups.items()
        ]
        for other, x in groups.items()
    }
    return pd.DataFrame({"probability [95%]": list(groups), **cells})


def _overall(problems: dict[str, list[Group]]) -> pd.DataFrame | None:
    """Returns the same over all problems, of the names that are in each of them."""
    if len(problems) < 2:
        return None
    by_name = [{item.name: item for item in found} for found in problems.values()]
    common = [name for name in by_name[0] if all(name in found for found in by_name)]
    return _improvements({name: [found[name] for found in by_name] for name in common})


def interval_text(estimate: Estimate) -> str:
    """Returns "452 [430, 471]", without brackets where no interval is known."""
    value, low, high = map(float, estimate)
    if math.isnan(low):
        return number(value)
    return f"{number(value)} [{number(low)}, {number(high)}]"


def _range(values: list[float]) -> str:
    known = sorted({value for value in values if math.isfinite(value)})
    return (
        " to ".join(f"{value:,.0f}" for value in dict.fromkeys((known[0], known[-1])))
        if known
        else "-"
    )


def _differences(groups: Sequence[Group], names: list[str]) -> pd.DataFrame:
    table = comparison.differences([item.runs[0] for item in groups], names)
    return table.rename_axis("setting").reset_index()


def _between(problems: dict[str, list[Group]]) -> pd.DataFrame:
    """Returns what differs from problem to problem, and in none of them from group to group."""
    table = _differences([found[0] for found in problems.values()], list(problems))
    within = [
        _differences(found, [item.name for item in found]).setting for found in problems.values()
    ]
    return table.loc[~table.setting.isin(pd.concat(within))]


def _row(folder: str, group: str, run: RecordedRun) -> dict[str, Any]:
    """Returns a run's row of the table of all runs."""
    return {
        "run": folder,
        "group": group,
        "seed": comparison.ABSENT if run.seed is None else run.seed,
        "return": number(run.final("return")),
        "length, steps": number(run.final("length")),
        "measured in": _source(run),
        "transitions": _range([run.last("transitions")]),
        "device": run.device or comparison.ABSENT,
    }


def _source(run: RecordedRun) -> str:
    """Returns where a run's final numbers come from."""
    if run.policy is not None:
        episodes = run.policy.get("returns", ())
        return f"{templates.count(len(episodes), 'episode')} at the end" if episodes else "the end"
    evaluated = math.isfinite(run.last("evaluation/return"))
    return "the last evaluation" if evaluated else "the last training episodes"


def _video(name: str, group: str, run: RecordedRun, folder: Path) -> dict[str, Any]:
    """Returns a run's video for the page: its data, or a link to it where it is large."""
    path = run.video
    assert path is not None
    found = {"caption": f"{group}, {name}", "path": path, "data": ""}
    if path.stat().st_size > EMBEDDED_BYTES:
        return found | {"link": quote(Path(os.path.relpath(path, folder)).as_posix())}
    return found | {"data": base64.b64encode(path.read_bytes()).decode()}
