"""The pages that a run leaves behind: learning_curve.png, summary.json and report.md."""

import json
import os
import platform
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mjx_qflex import files
from mjx_qflex.config import Config
from mjx_qflex.errors import UserError
from mjx_qflex.runner import assessment, guidance, metrics
from mjx_qflex.runner.metrics import duration, number
from mjx_qflex.runner.run_folder import REPORT_NAME
from mjx_qflex.runner.train import Finished

SUMMARY_NAME = "summary.json"
CURVE_NAME = "learning_curve.png"
PACKAGES = ("mjx_qflex", "jax", "mujoco", "mujoco-mjx", "brax")
# Summaries of runs on an accelerator, committed in the source checkout.
MEASUREMENTS = Path(__file__).resolve().parents[2] / "experiments" / "gpu"


def device_name(number: int | None = None) -> str:
    """Returns the devices that JAX computes on, in words; `number` of them, by default all."""
    device = jax.devices()[0]
    if device.platform == "cpu":
        return f"{os.cpu_count()} CPU cores ({platform.machine()}), no accelerator"
    number = number or len(jax.devices())
    return device.device_kind if number == 1 else f"{number} x {device.device_kind}"


def writer(command: str, say: Callable[[str], None]) -> Callable[[Finished], None]:
    """Returns what writes curve, summary and report of each run that `command` trained."""

    def write(run: Finished) -> None:
        config, folder = run.member.config, run.member.folder
        write_curve(folder, f"{config.task}, {config.algo}")
        write_summary(folder, config, command, run.sizes, run.compile_seconds)
        write_report(folder)
        say(f"done: {folder / REPORT_NAME}")

    return write


def refresh(folder: Path) -> None:
    """Brings the report up to date, where the run got so far as to have one."""
    if (folder / SUMMARY_NAME).exists():
        write_report(folder)


def write_summary(
    folder: Path, config: Config, command: str, sizes: dict[str, int], compile_seconds: float
) -> None:
    """Writes summary.json: what ran, where, how fast. Committed, it is a measurement.

    Args:
      folder: the run folder, with its metrics.csv.
      config: of the run.
      command: that the user typed.
      sizes: `observation_size` and `action_size` of the task; `seeds_at_once` and `devices` of the
        program.
      compile_seconds: of this process.
    """
    last = metrics.read_rows(folder)[-1]
    rates = _steady_rates(folder)
    summary = {
        "command": command,
        "task": config.task,
        "algo": config.algo,
        "preset": config.preset,
        "seed": config.seed,
        "device": device_name(sizes["devices"]),
        "versions": {name: version(name) for name in PACKAGES},
        "python": platform.python_version(),
        **sizes,
        "num_envs": config.loop.num_envs,
        "transitions": int(last["transitions"]),
        "updates": int(last["updates"]),
        "epochs": int(last["epoch"]),
        "training_seconds": last["seconds"],
        "compile_seconds": compile_seconds,
        "memory_gib": last["memory_gib"],
        **rates,
    }
    files.write(folder / SUMMARY_NAME, json.dumps(summary, indent=1) + "\n")


def _steady_rates(folder: Path) -> dict[str, float]:
    """Returns the median rates over the epochs."""
    rows = metrics.read_rows(folder)
    names = ("steps_per_second", "updates_per_second")
    return {name: float(np.median([row[name] for row in rows])) for name in names}


def write_curve(folder: Path, title: str) -> None:
    """Draws return and episode length over transitions from metrics.csv."""
    rows = metrics.read_rows(folder)
    figure = Figure(figsize=(7.0, 6.0), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    upper, lower = figure.subplots(2, 1, sharex=True)
    for axes, quantity in ((upper, "return"), (lower, "length")):
        _plot(axes, rows, f"episode/{quantity}", ".-", "training episodes (they explore)")
        _plot(axes, rows, f"evaluation/{quantity}", "o--", "evaluation")
        axes.grid(alpha=0.3)
    upper.set(title=title, ylabel="return of an episode")
    lower.set(xlabel="transitions", ylabel="length of an episode (control steps)")
    upper.legend()
    with files.beside(folder / CURVE_NAME) as temporary:
        figure.savefig(temporary)


def _plot(axes: Any, rows: list[metrics.Row], column: str, style: str, label: str) -> None:
    points = [(row["transitions"], row[column]) for row in rows if not np.isnan(row[column])]
    if points:
        axes.plot(*zip(*points, strict=True), style, label=label, markersize=4)


def write_report(folder: Path) -> None:
    """Writes report.md from the run folder's summary.json, evaluation.json and guidance.json.

    Raises:
      UserError: one of them is damaged.
    """
    advice = "remove it, and the command of the run makes it anew"
    summary = files.read_json(folder / SUMMARY_NAME, advice, task=str, algo=str)
    result = assessment.load(folder)
    assert result is not None, "an assessment is saved before its report"
    try:
        text = _report(folder, summary, result)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        names = ", ".join((SUMMARY_NAME, assessment.FILE_NAME, guidance.FILE_NAME))
        raise UserError(
            f"one of {names} in {folder} is damaged ({error!r}); remove it, and repeat the command "
            "that made it"
        ) from error
    files.write(folder / REPORT_NAME, text)


def _report(folder: Path, summary: dict[str, Any], result: assessment.Assessment) -> str:
    """Returns the text of report.md."""
    lines = [
        f"# {summary['task']} trained with {summary['algo']}",
        "",
        f"    {summary['command']}",
        "",
        *_what(summary),
        "",
        "## What came out",
        "",
        *_outcome(result),
        "",
        f"![learning curve]({CURVE_NAME})",
        "",
        f"Video: {_video(folder, result)}.",
        "",
        *_guided(folder),
        "## On a GPU",
        "",
        *_on_gpu(summary),
        "",
        "## Going on",
        "",
        "The same command resumes an unfinished run and leaves a finished one alone; with a larger "
        "`--total_steps` it goes on from here. `python -m mjx_qflex.evaluate --run=DIR` evaluates "
        "and renders again. All settings are in `config.json`, all numbers in `metrics.csv` and "
        f"`{metrics.TENSORBOARD_FOLDER}/`.",
    ]
    return "\n".join(lines) + "\n"


def _what(summary: dict[str, Any]) -> list[str]:
    packages = ", ".join(f"{name} {number}" for name, number in summary["versions"].items())
    return [
        f"Trained: a policy that sees {summary['observation_size']:,} numbers and drives "
        f"{summary['action_size']:,} actuators, in {summary['num_envs']:,} worlds side by side "
        f"(preset `{summary['preset']}`, seed {summary['seed']}).",
        "",
        f"For how long: {summary['transitions']:,} transitions and {summary['updates']:,} updates "
        f"in {duration(summary['training_seconds'])} of training "
        f"({summary['steps_per_second']:,.0f} steps/s, {summary['updates_per_second']:.3g} "
        f"updates/s, median over {summary['epochs']} epochs), and "
        f"{duration(summary['compile_seconds'])} of compiling.{_beside(summary)}",
        "",
        f"On: {summary['device']}; Python {summary['python']}, {packages}.",
    ]


def _beside(summary: dict[str, Any]) -> str:
    """Returns a sentence on the seeds that trained beside this one, empty where none did."""
    others = summary.get("seeds_at_once", 1) - 1
    if others == 0:
        return ""
    seeds = "1 other seed" if others == 1 else f"{others} other seeds"
    return f" It shared that time, and the memory, with {seeds} in one program."


def _outcome(result: assessment.Assessment) -> list[str]:
    lines = [
        f"{result['episodes']} episodes of each policy from the same reset seeds "
        f"(evaluation seed {result['seed']}); mean ± standard deviation.",
        "",
        *assessment.table(result),
        "",
    ]
    for name, text in result["trained_minus"].items():
        interval = assessment.Interval(**text)
        label = assessment.policy_name(name, result["idle_action"])
        if interval.low > 0:
            verdict = "is better than"
        elif interval.high < 0:
            verdict = "is worse than"
        else:
            verdict = "cannot be told apart from"
        lines.append(f"- The trained policy {verdict} the policy `{label}` in return.")
    nonfinite = sum(policy["nonfinite"] for policy in result["policies"].values())
    if nonfinite:
        lines.append(f"- {nonfinite} episodes ended because the simulation went non-finite.")
    return lines


def _video(folder: Path, result: assessment.Assessment) -> str:
    note = result.get("video", "not made; `python -m mjx_qflex.evaluate --run=DIR` makes it")
    name = assessment.VIDEO_NAME
    return f"[{name}]({name}) ({note})" if (folder / name).exists() else note


def _guided(folder: Path) -> list[str]:
    """Returns the section on test-time guidance, empty where the run was not swept."""
    sweep = assessment.load(folder, guidance.FILE_NAME)
    if sweep is None:
        return []
    return ["## Guided at test time", "", guidance.how(sweep), "", *guidance.table(sweep), ""]


def _on_gpu(summary: dict[str, Any]) -> list[str]:
    """Returns what a committed run on an accelerator measured, or that there is none."""
    path = MEASUREMENTS / f"{summary['task']}-{summary['algo']}" / SUMMARY_NAME
    if not path.exists():
        return [
            "Not measured: no run of this task and algorithm on an accelerator is committed. The "
            "same command chooses the preset `gpu` there."
        ]
    seen = json.loads(path.read_text())
    return [
        f"Measured on {seen['device']} (`{path.relative_to(MEASUREMENTS.parents[1])}`): "
        f"`{seen['command']}` made {seen['transitions']:,} transitions in "
        f"{duration(seen['training_seconds'])}, {number(seen['steps_per_second'])} steps/s and "
        f"{number(seen['updates_per_second'])} updates/s with {seen['num_envs']:,} worlds, using "
        f"{seen['memory_gib']:.1f} GiB; compiling took {duration(seen['compile_seconds'])}."
    ]
