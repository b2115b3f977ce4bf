"""A whole run of the benchmark: cases or comparisons, with where and when they were measured."""

import argparse
import datetime
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mjx_qflex import files, tasks
from mjx_qflex.benchmarking import (
    cases,
    comparisons,
    machine,
    page,
    plots,
    replays,
    roofline,
    sides,
)
from mjx_qflex.benchmarking.timing import Budget
from mjx_qflex.config import Config
from mjx_qflex.errors import UserError
from mjx_qflex.tasks.body_task import BodyTask

Say = Callable[[str], None]


def measure(
    flags: argparse.Namespace, configs: Sequence[Config], command: str, say: Say
) -> page.Results:
    """Returns the results of all `configs`, as JSON values.

    Raises:
      UserError: something cannot be measured; nothing is then.
    """
    kinds = [] if flags.compare is None else flags.compare or list(comparisons.KINDS)
    bodies = _check(configs, kinds)
    budget, watch = Budget(flags.seconds, flags.repeats), machine.QuietWatch()
    found: page.Results = {
        "command": command,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": machine.describe(),
        "budget": dict(budget._asdict()),
        "peaks": None,
        "cases": [],
        "comparisons": [],
    }
    for line in machine.load_warnings(watch.load, machine.cores()):
        say(f"warning: {line}")
    if not kinds:
        kind = found["machine"]["device"]
        found["peaks"] = roofline.describe(kind, flags.peak_tflops, budget)
    environment_seconds: dict = {}
    for config in configs:
        if kinds:
            found["comparisons"] += _compare(flags, config, kinds, bodies[config.task], budget, say)
        else:
            case = cases.Case(config, flags.batch_size, budget, say, environment_seconds)
            found["cases"].append(case.measure())
    found["quiet"] = watch.summary()
    return found


def _check(configs: Sequence[Config], kinds: Sequence[str]) -> dict[str, bool]:
    """Returns for each task whether it simulates a body.

    Raises:
      UserError: something that was asked for cannot be measured.
    """
    if "flashbax" in kinds:
        replays.import_flashbax()
    bodies: dict[str, bool] = {}
    for config in configs:
        cases.check(config)
        if config.task not in bodies:
            env = tasks.from_config(config.task, config.task_config)
            bodies[config.task] = isinstance(env, BodyTask)
        for kind in kinds:
            group = comparisons.KINDS[kind]
            if not bodies[config.task] and len(group.needs_body) == len(group.peers):
                raise UserError(
                    f"--compare {kind}: {config.task} simulates no body; name other peers "
                    "(--compare brax flashbax), or another task"
                )
            if kind == "brax" and config.algo != "sac":
                raise UserError(f"--compare brax: brax has no {config.algo}; give --algo=sac")
    return bodies


def _compare(
    flags: argparse.Namespace,
    config: Config,
    kinds: Sequence[str],
    has_body: bool,
    budget: Budget,
    say: Say,
) -> list[dict[str, Any]]:
    found = []
    for kind in kinds:
        for cores in flags.cores or [None]:
            where = f" on {cores} cores" if cores else ""
            say(f"{config.task} {config.algo} {config.replay_loop.num_envs}: against {kind}{where}")
            spec = sides.Spec(
                side="",
                task=config.task,
                algo=config.algo,
                preset=config.preset,
                num_envs=config.replay_loop.num_envs,
                sets=tuple(flags.set),
                cores=cores,
            )
            found.append(
                comparisons.measure(kind, spec, config, has_body, budget, flags.limit, say)
            )
    return found


def keep(found: page.Results, folder: Path | None) -> str:
    """Writes results into `folder`, if there is one; returns them as tables.

    Raises:
      UserError: the folder cannot be written.
    """
    text = page.as_markdown(found)
    if folder:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            files.write(folder / page.FILE_NAME, json.dumps(found, indent=1) + "\n")
            files.write(folder / "results.md", text)
            page.write_csv(found, folder / "results.csv")
            with files.beside(folder / "plot.png") as temporary:
                plots.draw(found, temporary)
        except OSError as error:
            raise UserError(f"cannot write {folder}: {error.strerror}") from error
    return text
