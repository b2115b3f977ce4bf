"""Results as one picture."""

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from mjx_qflex.benchmarking import cases
from mjx_qflex.benchmarking.comparisons import KINDS
from mjx_qflex.reports.page import COLOURS, line_styles


def draw(results: dict[str, Any], path: Path) -> None:
    """Draws speeds and shares of cases, or ratios of comparisons, as a PNG."""
    if results["cases"]:
        height = max(4.0, 1.0 + 0.35 * len(results["cases"]))
        figure = Figure(figsize=(13.0, height), dpi=110, layout="constrained")
        FigureCanvasAgg(figure)
        left, right = figure.subplots(1, 2)
        _speeds(left, results["cases"])
        _shares(right, results["cases"])
    else:
        count = sum(len(one["ratios"]) for one in results["comparisons"])
        figure = Figure(figsize=(13.0, 2.0 + 0.5 * count), dpi=110, layout="constrained")
        FigureCanvasAgg(figure)
        _ratios(figure.subplots(), results["comparisons"])
    figure.savefig(path)


def _speeds(axes: Axes, found: list[dict[str, Any]]) -> None:
    styles = line_styles((case["task"], case["algo"]) for case in found)
    for (task, algo), style in styles.items():
        same = [case for case in found if (case["task"], case["algo"]) == (task, algo)]
        same.sort(key=lambda case: case["num_envs"])
        x = [case["num_envs"] for case in same]
        rates = [case["transitions_per_s"] for case in same]
        middle = [rate["median"] for rate in rates]
        spread = [
            [rate["median"] - rate["low"] for rate in rates],
            [rate["high"] - rate["median"] for rate in rates],
        ]
        axes.errorbar(
            x,
            middle,
            spread,
            marker="o",
            color=style.colour,
            linestyle=style.line,
            capsize=3,
            label=f"{task}, {algo}",
        )
    axes.set(xscale="log", yscale="log", xlabel="environments", ylabel="transitions/s, training")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def _shares(axes: Axes, found: list[dict[str, Any]]) -> None:
    labels = [case["name"] for case in found]
    left = [0.0] * len(found)
    for name, colour in zip(cases.SHARES, COLOURS, strict=False):
        widths = [case["shares"][name] for case in found]
        axes.barh(labels, widths, left=left, color=colour, label=name)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.invert_yaxis()
    axes.set(xlabel="share of the training step", xlim=(0.0, 1.0))
    axes.legend(fontsize=8, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0))


def _ratios(axes: Axes, found: list[dict[str, Any]]) -> None:
    labels, colours = [], dict(zip(KINDS, COLOURS, strict=False))
    for one in found:
        for peer, quantities in one["ratios"].items():
            for quantity, ratio in quantities.items():
                if quantity == "updates/s":
                    continue
                cores = f", {one['cores']} core{'s' * (one['cores'] > 1)}" if one["cores"] else ""
                label = f"{one['task']}, {one['num_envs']} envs{cores}: {peer}, {quantity}"
                reach = [
                    [ratio["median"] - ratio["low"]], [ratio["high"] - ratio["median"]]
                ]  # fmt: skip
                labels.append(label)
                axes.errorbar(
                    [ratio["median"]], [len(labels) - 1], xerr=reach, fmt="o", capsize=3,
                    color=colours[one["kind"]],
                )  # fmt: skip
    axes.axvline(1.0, color="black", linewidth=1)
    axes.set_yticks(range(len(labels)), labels, fontsize=8)
    axes.invert_yaxis()
    axes.set(xscale="log", xlabel="our rate over the peer's (right of 1: ours is faster)")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.3, axis="x")
