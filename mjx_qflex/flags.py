"""The flags of training, and the config that they ask for.

JAX is loaded once a config is wanted.
"""

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from mjx_qflex import commands
from mjx_qflex.commands import whole_number_flag
from mjx_qflex.errors import UserError

if TYPE_CHECKING:
    from mjx_qflex.config import Config

DEFAULT_ALGO = "qflex"


def make_parser() -> commands.FlagParser:
    """Returns the parser of this command's flags."""
    parser = commands.FlagParser(
        prog="python -m mjx_qflex.train",
        description="Train a task. The same command with the same --logdir resumes.",
    )
    add = parser.add_argument
    add("--task", help="what to train on, for example ms_human_walk (no default)")
    add("--body", help="on which body, of a task that has a choice (short for --set task.body=)")
    add("--algo", help="algorithm (default: qflex)")
    add("--preset", help="sizes and settings: cpu, gpu, paper or code (default: by the device)")
    add(
        "--from",
        dest="start_from",
        metavar="POLICY",
        help="go on from a policy that ships, its folder, or a run folder; settings are its own, "
        "but for flags and --set",
    )
    add("--seed", type=whole_number_flag, default=0, help="of everything random (default: 0)")
    add("--seeds", type=whole_number_flag, help="train so many: --seed, the next, ... (default: 1)")
    add(
        "--seeds_at_once",
        type=whole_number_flag,
        help="of them side by side in one program (default: as many as fit; on a CPU, 1)",
    )
    add(
        "--devices",
        type=whole_number_flag,
        help="that share the environments and each batch (default: all; of ppo, 1)",
    )
    add(
        "--coordinator",
        help="HOST:PORT of the first of several processes (default: by the cluster)",
    )
    add("--num_processes", type=whole_number_flag, help="of all that train together")
    add("--process_id", type=whole_number_flag, help="of this one, from 0 on")
    add("--num_envs", type=whole_number_flag, help="environments side by side (default: see below)")
    add("--total_steps", type=whole_number_flag, help="transitions (default: see below)")
    add(
        "--logdir",
        type=Path,
        help="run folder (default: runs/<task>-<algo>-s<seed>); with --seeds, holds one per seed",
    )
    add("--no-video", action="store_true", help="do not film at the end (default: film)")
    add(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="any other setting; repeatable. With --task, --help lists the keys and their values",
    )
    return parser


def defaults_text(task: str | None, algo: str, preset: str | None) -> str:
    """Returns the real defaults: of every setting of a task, or the sizes of all tasks."""
    with commands.quiet_imports():
        from mjx_qflex import presets, settings, tasks

    chosen = preset or presets.default_preset()
    if task:
        resolved = presets.resolve(task, algo, chosen)
        lines = [f"Settings of {task} with preset {chosen}, for --set:"]
        lines += [f"  {key}={settings.value_at(resolved, key)}" for key in settings.keys(resolved)]
        return "\n".join(lines)
    lines = [f"Sizes by preset and task; the preset here is {chosen}:"]
    lines.append(f"  {'preset':7}{'task':20}{'num_envs':>9}{'total_steps':>13}{'batch_size':>11}")
    for name, make in presets.PRESETS.items():
        for row in sorted(tasks.TASKS):
            config = make(row, algo)
            lines.append(
                f"  {name:7}{row:20}{config.loop.num_envs:>9,}{config.total_steps:>13,}"
                f"{config.loop.batch_size:>11,}"
            )
    return "\n".join(lines)


def _body_setting(task: str, body: str | None) -> list[str]:
    """Returns what --body says in the form of --set.

    Raises:
      UserError: the task runs on one body only, or there is no such task.
    """
    from mjx_qflex import tasks

    if body is None:
        return []
    if "body" not in {field.name for field in dataclasses.fields(tasks.config_class(task))}:
        raise UserError(f"--body={body}: {task} has no choice of bodies; leave --body out")
    return [f"task.body={body}"]


def resolve(flags: argparse.Namespace) -> "Config":
    """Returns the config that this command's flags, with a task among them, ask for.

    Raises:
      UserError: an unknown name, or a value of the wrong type.
    """

    from mjx_qflex import presets

    if flags.start_from:
        return _resolve_from(flags)
    return presets.resolve(
        flags.task,
        flags.algo or DEFAULT_ALGO,
        flags.preset,
        flags.seed,
        flags.num_envs,
        flags.total_steps,
        [*_body_setting(flags.task, flags.body), *flags.set],
    )


def _resolve_from(flags: argparse.Namespace) -> "Config":
    """Returns the config that goes on from another's learner.

    Raises:
      UserError: there is none of that name, or a flag says otherwise than its config.
    """
    from mjx_qflex import presets
    from mjx_qflex.runner import driver

    saved = driver.config_of(flags.start_from)
    for name in ("task", "algo", "preset"):
        asked = getattr(flags, name)
        if asked not in (None, getattr(saved, name)):
            raise UserError(
                f"--from={flags.start_from} has {name}={getattr(saved, name)}, and --{name} says "
                f"{asked}; leave --{name} out"
            )
    sets = [*_body_setting(saved.task, flags.body), *flags.set]
    return presets.resolve_from(
        saved, flags.start_from, flags.seed, flags.num_envs, flags.total_steps, sets
    )
