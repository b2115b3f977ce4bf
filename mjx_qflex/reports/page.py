"""Run folders as one HTML page that needs nothing else: curves, tables, differences, videos."""

import base64
import functools
import html
import io
import itertools
import math
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from mjx_qflex import files
from mjx_qflex.reports import comparison
from mjx_qflex.reports.comparison import Group, Run
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
UNFOLDED_ROWS = 12  # of a table of settings; a longer one waits for a click
EMBEDDED_BYTES = 4 * 2**20  # of a video; larger ones are linked

STYLE = """
:root { color-scheme: light dark; --ink: #1d2126; --faint: #667; --paper: #fff; --line: #d5d9df;
  --band: #f4f6f8; --warn: #9a4b00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e7eb; --faint: #9aa3ae; --paper: #15181c;
  --line: #383e46; --band: #1d2127; --warn: #ffb366; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 76rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; margin: 0.4rem 0; } h2 { font-size: 1.2rem; margin: 2.2rem 0 0.4rem; }
details { margin: 1.2rem 0; } summary { font-weight: 600; cursor: pointer; margin-bottom: 0.3rem; }
p { max-width: 48rem; } .faint { color: var(--faint); font-size: 0.9rem; }
.notes { color: var(--warn); } .notes li { overflow-wrap: anywhere; }
.curves { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr));
  gap: 0.8rem; }
.curves svg { width: 100%; height: auto; max-width: 38rem; }
figure { margin: 0; } figcaption { font-size: 0.95rem; font-weight: 600; }
.legend { display: flex; flex-wrap: wrap; gap: 0.2rem 1.2rem; margin: 0.4rem 0; padding: 0;
  list-style: none; }
.swatch { display: inline-block; width: 1.5rem; margin-right: 0.4rem; vertical-align: middle; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: 0.92rem; }
th, td { padding: 0.3rem 0.8rem; text-align: right; border-bottom: 1px solid var(--line);
  white-space: nowrap; font-variant-numeric: tabular-nums; }
th { background: var(--band); font-weight: 600; }
th:first-child, td:first-child { text-align: left; }
.videos { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 18rem), 1fr));
  gap: 1rem; } video { width: 100%; border-radius: 4px; background: #000; }
"""


def write(runs: list[Run], groups: list[Group], output: Path, x: str, statistic: str) -> None:
    """Writes the page on `runs`, whole or not at all.

    Args:
      runs: as `comparison.read_run` reads them.
      groups: of these runs, as `comparison.group` makes them.
      output: the HTML file; videos too large to embed are linked relative to it.
      x: name in `X_AXES`.
      statistic: name in `statistics.STATISTICS`.
    """
    files.write(output, render(runs, groups, output.parent, x, statistic))


def render(runs: list[Run], groups: list[Group], folder: Path, x: str, statistic: str) -> str:
    """Returns the page as text; `folder` is where it will lie."""
    styles = line_styles(item.name for item in groups)
    problems: dict[str, list[Group]] = {}
    for item in groups:
        problems.setdefault(item.problem, []).append(item)
    tasks = dict.fromkeys(comparison.task_name(item.runs[0]) for item in groups)
    title = f"{_count(len(runs), 'run')} of {', '.join(tasks)}"
    folder_names = comparison.folder_names(runs)
    parts = [
        f"<h1>{_escape(title)}</h1>",
        _explanation(statistic),
        _notes(comparison.notes(runs, groups)),
        *(_problem(name, found, styles, x, statistic) for name, found in problems.items()),
        _overall(problems),
        _between_problems(problems),
        _each_run(groups, folder_names),
        _videos(groups, folder_names, folder),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8"/>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>\n'
        f"<title>{_escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(part for part in parts if part)
        + "\n</body>\n</html>\n"
    )


def _escape(value: Any) -> str:
    return html.escape(str(value))


def _count(of: int, what: str) -> str:
    return f"{of} {what}" if of == 1 else f"{of} {what}s"


def _explanation(statistic: str) -> str:
    return (
        '<p class="faint">Runs that differ only in their seed form a group. Thick lines and tables '
        f"show the {STATISTIC_NAMES[statistic]} over its seeds, bands and brackets its 95% "
        "bootstrap interval, thin lines single seeds. With fewer than some ten seeds such an "
        "interval is narrower than it claims to be; one seed has none.</p>"
    )


def _notes(lines: list[str]) -> str:
    items = "".join(f"<li>{_escape(line)}</li>" for line in lines)
    return f'<ul class="notes">{items}</ul>' if items else ""


class LineStyle(NamedTuple):
    """How a line is drawn, as CSS and matplotlib both understand it."""

    colour: str
    line: str


def line_styles(names: Iterable[Any]) -> dict[Any, LineStyle]:
    """Returns a style for each name, of which the first 30 differ: colours first, then lines."""
    styles = [LineStyle(colour, line) for line in LINES for colour in COLOURS]
    return dict(zip(dict.fromkeys(names), itertools.cycle(styles), strict=False))


def _problem(
    name: str, groups: list[Group], styles: dict[str, LineStyle], x: str, statistic: str
) -> str:
    key = "".join(
        f'<li><span class="swatch" style="border-top: 0.25rem {style.line} {style.colour}">'
        f"</span>{_escape(item.name)} ({_count(len(item.runs), 'seed')})</li>"
        for item in groups
        for style in [styles[item.name]]
    )
    figures = []
    for quantity, caption in QUANTITIES.items():
        drawing = draw(groups, styles, quantity, x, statistic)
        if drawing:
            caption = f"{caption[0].upper()}{caption[1:]}"
            figures.append(f"<figure><figcaption>{caption}</figcaption>{drawing}</figure>")
    return "\n".join(
        [
            f"<h2>{_escape(name)}</h2>",
            f'<ul class="legend">{key}</ul>',
            f'<div class="curves">{"".join(figures)}</div>',
            _results(groups, statistic),
            _improvements(name, {item.name: [item] for item in groups}),
            _differences(groups),
        ]
    )


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


def _svg(figure: Figure, prefix: str, label: str) -> str:
    """Returns a figure as an element of a page: ids of its own, the page's colour and fonts."""
    file = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": prefix}):
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    text = file.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    text = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font: \1 system-ui, sans-serif", text)
    text = re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{prefix}-", text)
    return text.replace("<svg", f'<svg role="img" aria-label="{_escape(label)}"', 1)


def _table(header: Iterable[Any], rows: Iterable[Iterable[Any]]) -> str:
    def line(cells: Iterable[Any], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{_escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    body = "".join(line(row, "td") for row in rows)
    head = line(header, "th")
    return f'<div class="scroll"><table><thead>{head}</thead><tbody>{body}</tbody></table></div>'


def _results(groups: list[Group], statistic: str) -> str:
    header = (
        "final result", "seeds", "return [95%]", "length [95%], steps", "steps/s", "updates/s",
        "transitions", "training time",
    )  # fmt: skip
    return _table(header, (_result(item, statistic) for item in groups))


def _result(item: Group, statistic: str) -> list[Any]:
    def over(of: Callable[[Run], float]) -> float:
        return float(item.estimate(of, statistic).value)

    seconds = over(lambda run: run.last("seconds"))
    return [
        item.name,
        len({run.seed for run in item.runs}),
        interval_text(item.estimate(lambda run: run.final("return"), statistic)),
        interval_text(item.estimate(lambda run: run.final("length"), statistic)),
        number(over(lambda run: run.median("steps_per_second"))),
        number(over(lambda run: run.median("updates_per_second"))),
        _range([run.last("transitions") for run in item.runs]),
        duration(seconds) if math.isfinite(seconds) else "-",
    ]


def _improvements(of: str, groups: dict[str, list[Group]]) -> str:
    """Returns a table of each against each; `groups` by name, one a problem in the same order."""
    if len(groups) < 2:
        return ""
    rows = (
        [
            name,
            *(
                comparison.ABSENT
                if other == name
                else interval_text(comparison.improvement(mine, theirs))
                for other, theirs in groups.items()
            ),
        ]
        for name, mine in groups.items()
    )
    return (
        "<details><summary>Probability that a run of the row ends above one of the column: "
        f"{_escape(of)}</summary>{_table(('probability [95%]', *groups), rows)}</details>"
    )


def _overall(problems: dict[str, list[Group]]) -> str:
    """Returns the same over all problems, of the names that are in each of them."""
    if len(problems) < 2:
        return ""
    by_name = [{item.name: item for item in found} for found in problems.values()]
    common = [name for name in by_name[0] if all(name in found for found in by_name)]
    groups = {name: [found[name] for found in by_name] for name in common}
    return _improvements(f"mean of {_count(len(problems), 'task')}", groups)


def interval_text(estimate: Estimate) -> str:
    """Returns "452 [430, 471]", without brackets where no interval is known."""
    value, low, high = map(float, estimate)
    if math.isnan(low):
        return number(value)
    return f"{number(value)} [{number(low)}, {number(high)}]"


def _range(values: list[float]) -> str:
    known = sorted({value for value in values if math.isfinite(value)})
    if not known:
        return "-"
    return f"{known[0]:,.0f}" if len(known) == 1 else f"{known[0]:,.0f} to {known[-1]:,.0f}"


def _differences(groups: list[Group]) -> str:
    table = comparison.differences(groups)
    return _settings_table(table, [item.name for item in groups])


def _between_problems(problems: dict[str, list[Group]]) -> str:
    """Returns what differs from problem to problem, and in none of them from group to group."""
    table = comparison.differences([found[0] for found in problems.values()])
    within = {key for found in problems.values() for key in comparison.differences(found)}
    table = {key: values for key, values in table.items() if key not in within}
    return _settings_table(table, list(problems))


def _settings_table(table: dict[str, list[Any]], names: list[str]) -> str:
    if not table:
        return ""
    rows = ([key, *map(comparison.text, values)] for key, values in table.items())
    state = ' open=""' if len(table) <= UNFOLDED_ROWS else ""
    return (
        f"<details{state}><summary>Where the configurations differ "
        f"({_count(len(table), 'setting')})</summary>{_table(('setting', *names), rows)}</details>"
    )


def _each_run(groups: list[Group], folder_names: dict[Path, str]) -> str:
    header = (
        "run", "group", "seed", "return", "length, steps", "measured in", "transitions", "device"
    )  # fmt: skip
    rows = (
        (
            folder_names[run.folder],
            item.name,
            comparison.ABSENT if run.seed is None else run.seed,
            number(run.final("return")),
            number(run.final("length")),
            _source(run),
            _range([run.last("transitions")]),
            run.device or comparison.ABSENT,
        )
        for item in groups
        for run in item.runs
    )
    return "<h2>Each run</h2>" + _table(header, rows)


def _source(run: Run) -> str:
    """Returns where a run's final numbers come from."""
    if run.policy is not None:
        episodes = run.policy.get("returns", ())
        return f"{_count(len(episodes), 'episode')} at the end" if episodes else "the end"
    evaluated = math.isfinite(run.last("evaluation/return"))
    return "the last evaluation" if evaluated else "the last training episodes"


def _videos(groups: list[Group], folder_names: dict[Path, str], folder: Path) -> str:
    figures = [
        f"<figure>{_video(run.video, folder)}<figcaption>{_escape(item.name)}, "
        f"{_escape(folder_names[run.folder])}</figcaption></figure>"
        for item in groups
        for run in item.runs
        if run.video is not None
    ]
    return f'<h2>Videos</h2><div class="videos">{"".join(figures)}</div>' if figures else ""


def _video(path: Path, folder: Path) -> str:
    if path.stat().st_size > EMBEDDED_BYTES:
        target = quote(Path(os.path.relpath(path, folder)).as_posix())
        return f'<a href="{target}">{_escape(path)}</a>'
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<video controls="" muted="" loop="" src="data:video/mp4;base64,{data}"></video>'
