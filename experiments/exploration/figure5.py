"""Figure 5: how Qflex depends on the steps N and step size eta of its ascent, and on the flow's dt.

    python experiments/exploration/figure5.py [--runs DIR ...]

Each of the three changes alone, or as the run folders given have it. Final returns over the values.
"""

from collections import Counter

import numpy as np
import study_runs as runs
from figures import FLOW, by_problem, canvas, save, say, write_csv

from mjx_qflex.reports.comparison import Group, RecordedRun

KEYS = {
    "algo.ascent_steps": "steps N of the ascent",
    "algo.ascent_step_size": r"step size $\eta$ of the ascent",
    "algo.euler_steps": "Euler steps 1/dt of the flow",
}
PUBLISHED = {"algo.ascent_steps": 20, "algo.ascent_step_size": 0.01, "algo.euler_steps": 20}
TRIED = {
    "algo.ascent_steps": (5, 80),
    "algo.ascent_step_size": (0.001, 0.1, 1.0),
    "algo.euler_steps": (5, 80),
}
CHANGED = [{}, *({key: value} for key, values in TRIED.items() for value in values)]
# Spelt out, for a preset may have values of its own.
VARIANTS = [
    ("qflex", [f"{key}={value}" for key, value in (PUBLISHED | changed).items()])
    for changed in CHANGED
]


def final_return(run: RecordedRun) -> float:
    return run.final("return")


def superiority(run: RecordedRun) -> float:
    return run.last("update/flow_superiority")


def along(groups: list[Group], key: str) -> list[Group]:
    """Returns the groups that differ in one of the three settings only, in its order.

    Where the folders hold a grid, it is the line through the most common values of the others.
    """
    usual = {
        other: Counter(item.settings[other] for item in groups).most_common(1)[0][0]
        for other in KEYS
        if other != key
    }
    line = [item for item in groups if all(item.settings[name] == usual[name] for name in usual)]
    return sorted(line, key=lambda item: item.settings[key])


def main(arguments: list[str] | None = None) -> None:
    parser = runs.parser(__doc__, ["chain_reach"], total_steps=60_000, seeds=2)
    flags = parser.parse_args(arguments)
    found = [
        item
        for item in runs.groups(runs.chosen(flags, VARIANTS))
        if set(KEYS) <= set(item.settings)
    ]
    problems = by_problem(found)
    rows = []
    figure, axes = canvas(11.5, 3.6 * len(problems), len(problems), len(KEYS), sharey="row")
    for line_of_axes, (problem, groups) in zip(axes, problems.items(), strict=True):
        for axis, key in zip(line_of_axes, KEYS, strict=True):
            groups_along = along(groups, key)
            rows += [_row(problem, key, item) for item in groups_along]
            _panel(axis, key, groups_along)
        line_of_axes[0].set_ylabel(f"{problem}\nfinal return (dots: seeds)")
    for row in rows:
        say(row)
    write_csv(rows, "figure5", flags.output)
    save(figure, "figure5", flags.output)


def _row(problem: str, key: str, item: Group) -> dict:
    estimate = item.estimate(final_return, "mean")
    return {
        "task": problem,
        "setting": key,
        "value": item.settings[key],
        "seeds": len(item.runs),
        **{f"return_{end}": float(value) for end, value in estimate._asdict().items()},
        "flow_superiority": float(item.estimate(superiority, "mean").value),
    }


def _panel(axis, key: str, groups: list[Group]) -> None:
    x = [item.settings[key] for item in groups]
    values = [item.values(final_return) for item in groups]
    axis.plot(x, [np.mean(found) for found in values], "-", color=FLOW)
    for place, found in zip(x, values, strict=True):
        axis.plot([place] * len(found), found, "o", color=FLOW, markersize=4)
    axis.axvline(PUBLISHED[key], color="black", linewidth=0.8, linestyle=":", label="published")
    axis.set_xscale("log")
    axis.set_xticks(x, [f"{place:g}" for place in x])
    axis.minorticks_off()
    axis.set_xlabel(KEYS[key])
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)


if __name__ == "__main__":
    main()
