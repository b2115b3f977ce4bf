"""Figure 8: Qflex with and without its flow, and CrossQ, from which its critics come.

    python experiments/exploration/figure8.py [--runs DIR ...]

Without flow (`algo.euler_steps=0`) the Gaussian source acts alone; critics and source learn by the
same equations. Learning curves, final returns and the probability that one ends above the other.
"""

import study_runs as runs
from figures import by_problem, canvas, curves, save, say, write_csv

from mjx_qflex.reports import comparison
from mjx_qflex.reports.page import line_styles

VARIANTS = (("qflex", ()), ("qflex", ("algo.euler_steps=0",)), ("crossq", ()))


def final_return(run: comparison.RecordedRun) -> float:
    return run.final("return")


def main(arguments: list[str] | None = None) -> None:
    parser = runs.parser(__doc__, ["chain_reach", "arm_reach"], total_steps=60_000, seeds=2)
    flags = parser.parse_args(arguments)
    problems = by_problem(runs.groups(runs.chosen(flags, VARIANTS)))
    styles = line_styles(item.name for found in problems.values() for item in found)
    rows = []
    for problem, found in problems.items():
        for item in found:
            estimate = item.estimate(final_return, "iqm")
            row = {"task": problem, "name": item.name, "seeds": len(item.runs)}
            row |= {f"return_{end}": float(value) for end, value in estimate._asdict().items()}
            better = comparison.improvement([item], [found[0]])
            row |= {f"above_first_{end}": value for end, value in better._asdict().items()}
            rows.append(row)
            say(row)
    write_csv(rows, "figure8", flags.output)
    drawn = []
    figure, (axes,) = canvas(5.2 * len(problems), 4.2, 1, len(problems))
    for axis, (problem, found) in zip(axes, problems.items(), strict=True):
        drawn += curves(axis, found, "episode/return", styles, "iqm")
        axis.set_title(problem)
        axis.legend(fontsize=8)
    write_csv(drawn, "figure8_curves", flags.output)
    axes[0].set_ylabel("return of training episodes\n(interquartile mean of seeds, 95% interval)")
    save(figure, "figure8", flags.output)


if __name__ == "__main__":
    main()
