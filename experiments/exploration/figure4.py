"""Figure 4: how often the flow's action beats the source's that it started from.

    python experiments/exploration/figure4.py [--runs DIR ...]

The paper's ratio (Eq. 18) is the share of states at which the critics rate the flow's action
higher; every Qflex run logs it. The critics judge what they themselves have led, so the trained
policies are also played from the same starts with the flow and by the source alone.
"""

from pathlib import Path

import numpy as np
import study_runs as runs
from figures import by_problem, canvas, curves, save, say, write_csv

from mjx_qflex.reports.page import line_styles
from mjx_qflex.runner import assessment
from mjx_qflex.training import evaluation

RATIO = "update/flow_superiority"
TASKS = ("chain_reach", "chain_reach,task.num_joints=100", "arm_reach")


def played(folder: Path, episodes: int) -> assessment.Interval:
    """Returns what the flow adds to the return of a run's policy: mean and 95% interval."""
    config, trained = runs.restore(folder)
    policy = trained.algorithm.policy
    returns = []
    for learner in (trained.learner, runs.without_flow(trained.learner)):
        program = evaluation.make_evaluate(trained.env, policy, episodes)
        result = program(learner, assessment.evaluation_key(config.seed))
        returns.append(np.asarray(result.return_, np.float64))
    return assessment.paired_interval(returns[0] - returns[1])


def main(arguments: list[str] | None = None) -> None:
    parser = runs.parser(__doc__, TASKS, total_steps=60_000, seeds=2)
    parser.add_argument("--episodes", type=int, default=256, help="played with and without flow")
    flags = parser.parse_args(arguments)
    found = [
        item
        for item in runs.groups(runs.chosen(flags, [("qflex", ())]))
        if item.runs[0].series(RATIO).size
    ]
    rows = []
    for item in found:
        for run in item.runs:
            gain = played(run.folder, flags.episodes)
            late = run.series(RATIO)[-max(1, len(run.rows) // 4) :, 1]
            row = {"task": item.problem, "name": item.name, "seed": run.seed}
            row |= {"flow_superiority": late.mean(), "return": run.final("return")}
            rows.append(row | {f"flow_adds_{end}": value for end, value in gain._asdict().items()})
            say(rows[-1])
    write_csv(rows, "figure4", flags.output)
    figure, ((axis, bars),) = canvas(11.0, 4.2, 1, 2)
    problems, drawn = by_problem(found), []
    for problem, style in line_styles(problems).items():
        groups = problems[problem]
        same = dict.fromkeys((item.name for item in groups), style)
        drawn += curves(axis, groups, RATIO, same, "mean")
        axis.lines[-1].set_label(problem)
        mine = [row for row in rows if row["task"] == problem]
        for row in mine:
            bars.errorbar(
                row["flow_adds_mean"],
                f"{problem}, seed {row['seed']}",
                xerr=row["flow_adds_mean"] - row["flow_adds_low"],
                fmt="o",
                color=style.colour,
            )
    write_csv(drawn, "figure4_curves", flags.output)
    axis.axhline(0.5, color="black", linewidth=0.8, linestyle=":")
    axis.set_ylim(0, 1.02)
    axis.set_ylabel("share of states at which the critics\nprefer the flow's action (Eq. 18)")
    axis.legend(fontsize=8)
    bars.axvline(0.0, color="black", linewidth=0.8, linestyle=":")
    bars.set_xlabel(
        "return with flow minus source alone,\nsame starts (trained policy, 95% interval)"
    )
    bars.grid(alpha=0.3)
    save(figure, "figure4", flags.output)


if __name__ == "__main__":
    main()
