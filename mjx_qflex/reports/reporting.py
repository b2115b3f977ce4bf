"""The pages that a run leaves behind: learning_curve.png, summary.json and report.md."""

import json
import os
import platform
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jinja2
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mjx_qflex import files
from mjx_qflex.errors import UserError
from mjx_qflex.reports import templates
from mjx_qflex.runner import assessment, guidance, metrics
from mjx_qflex.runner.run_folder import REPORT_NAME
from mjx_qflex.runner.train import Finished

SUMMARY_NAME = "summary.json"
CURVE_NAME = "learning_curve.png"
PACKAGES = ("mjx_qflex", "jax", "mujoco", "mujoco-mjx", "brax")


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
        write_summary(run, command)
        write_report(folder)
        say(f"done: {folder / REPORT_NAME}")

    return write


def refresh(folder: Path) -> None:
    """Brings the report up to date, where the run got so far as to have one."""
    if (folder / SUMMARY_NAME).exists():
        write_report(folder)


def write_summary(run: Finished, command: str) -> None:
    """Writes summary.json: what `command` ran, where, how fast. Committed, it is a measurement."""
    config, folder = run.member.config, run.member.folder
    rows = metrics.read_rows(folder)
    last, rates = rows[-1], ("steps_per_second", "updates_per_second")
    summary = {
        "command": command,
        "task": config.task,
        "algo": config.algo,
        "preset": config.preset,
        "seed": config.seed,
        "device": device_name(run.sizes["devices"]),
        "versions": {name: version(name) for name in PACKAGES},
        "python": platform.python_version(),
        **run.sizes,
        "num_envs": config.loop.num_envs,
        "transitions": int(last["transitions"]),
        "updates": int(last["updates"]),
        "epochs": int(last["epoch"]),
        "training_seconds": last["seconds"],
        "compile_seconds": run.compile_seconds,
        "memory_gib": last["memory_gib"],
        **{name: float(np.median([row[name] for row in rows])) for name in rates},
    }
    files.write(folder / SUMMARY_NAME, json.dumps(summary, indent=1) + "\n")


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
    video_note = "not made; `python -m mjx_qflex.evaluate --run=DIR` makes it"
    try:
        text = templates.render(
            "run.md",
            summary=summary,
            result=result,
            policies=assessment.table(result),
            policy_name=assessment.policy_name,
            nonfinite=sum(policy["nonfinite"] for policy in result["policies"].values()),
            curve=CURVE_NAME,
            video=assessment.VIDEO_NAME,
            video_exists=(folder / assessment.VIDEO_NAME).exists(),
            video_note=result.get("video", video_note),
            guided=assessment.load(folder, guidance.FILE_NAME),
            guidance=guidance,
            metrics=metrics,
        )
    except (KeyError, TypeError, ValueError, AttributeError, jinja2.UndefinedError) as error:
        names = ", ".join((SUMMARY_NAME, assessment.FILE_NAME, guidance.FILE_NAME))
        raise UserError(
            f"one of {names} in {folder} is damaged ({error!r}); remove it, and repeat the command "
            "that made it"
        ) from error
    files.write(folder / REPORT_NAME, text)
