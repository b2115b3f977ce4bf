"""Trains a task: `python -m mjx_qflex.train --task=ms_human_walk`. See `--help`."""

import argparse
import dataclasses
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mjx_qflex import __version__, bounds, commands
from mjx_qflex.commands import whole_number_flag
from mjx_qflex.errors import UserError
from mjx_qflex.interrupt import Interrupt, Interrupted

if TYPE_CHECKING:  # JAX is loaded once the command has spoken
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
        help="that share the worlds and each batch (default: all; of ppo, 1)",
    )
    add(
        "--coordinator",
        help="HOST:PORT of the first of several processes (default: by the cluster)",
    )
    add("--num_processes", type=whole_number_flag, help="of all that train together")
    add("--process_id", type=whole_number_flag, help="of this one, from 0 on")
    add("--num_envs", type=whole_number_flag, help="worlds side by side (default: see below)")
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
        from mjx_qflex import algos, config, presets

    chosen = preset or presets.default_preset()
    if task:
        resolved = config.resolve(task, algo, chosen)
        lines = [f"Settings of {task} with preset {chosen}, for --set:"]
        lines += [f"  {key}={config.value_at(resolved, key)}" for key in config.keys(resolved)]
        return "\n".join(lines)
    lines = [f"Sizes by preset and task (* is any other task); the preset here is {chosen}:"]
    lines.append(f"  {'preset':7}{'task':16}{'num_envs':>9}{'total_steps':>13}{'batch_size':>11}")
    on_policy = algos.entry(algo).on_policy
    for name, table in presets.SIZES.items():
        for row in table:
            sizes = presets.sizes_of(name, row, on_policy)
            lines.append(
                f"  {name:7}{row:16}{sizes.num_envs:>9,}{sizes.total_steps:>13,}"
                f"{sizes.batch_size:>11,}"
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
    from mjx_qflex import config

    if flags.start_from:
        return _resolve_from(flags)
    return config.resolve(
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
    from mjx_qflex import config
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
    return config.resolve_from(
        saved, flags.start_from, flags.seed, flags.num_envs, flags.total_steps, sets
    )


def _run_folders(name: str, first: int, seeds: int | None, logdir: Path | None) -> dict[int, Path]:
    """Returns the run folder of each seed from `first` on; `seeds` is None without --seeds."""
    if seeds is None and logdir:
        return {first: logdir}
    parent, prefix = (logdir, "") if logdir else (Path("runs"), f"{name}-")
    return {seed: parent / f"{prefix}s{seed}" for seed in range(first, first + (seeds or 1))}


def _check_numbers_of_seeds(first: int, seeds: int | None, at_once: int | None) -> None:
    """Refuses impossible numbers.

    Raises:
      UserError: the last seed is none, or some at once where one was asked for.
    """
    if seeds is not None:
        bounds.check_value(f"the last of --seeds={seeds}", first + seeds - 1, "seed")
    if at_once is not None and seeds is None:
        raise UserError(f"--seeds_at_once={at_once} needs several seeds; add --seeds=NUMBER")


def train(arguments: Sequence[str], interrupt: Interrupt) -> None:
    """Reads the flags and trains."""
    parser = make_parser()
    flags = parser.parse(arguments)
    if flags.help:
        parser.epilog = defaults_text(flags.task, flags.algo or DEFAULT_ALGO, flags.preset)
        parser.print_help()
        return
    if not (flags.task or flags.start_from):
        raise UserError("no task given; add --task=NAME, for example --task=ms_human_walk")
    _check_numbers_of_seeds(flags.seed, flags.seeds, flags.seeds_at_once)
    what = f"{flags.task} with {flags.algo or DEFAULT_ALGO}"
    if flags.start_from:  # which brings its own task and algorithm
        what = f"on from {flags.start_from}"
    commands.say(f"mjx_qflex {__version__}: training {what}; loading JAX ...")

    with commands.quiet_imports():
        from mjx_qflex.runner import hosts

        hosts.start(flags.coordinator, flags.num_processes, flags.process_id)
        resolved = resolve(flags)
        from mjx_qflex.reports import reporting
        from mjx_qflex.runner import compilation_cache, driver

    say = commands.say if hosts.is_first() else commands.silent
    chosen = "as asked" if flags.preset else "chosen for this device"
    say(f"device: {reporting.device_name(flags.devices)}; preset {resolved.preset} ({chosen})")
    name = f"{resolved.task}-{resolved.algo}" + ("-from" if resolved.start_from else "")
    folders = _run_folders(name, resolved.seed, flags.seeds, flags.logdir)
    where = " ... ".join(str(folders[seed]) for seed in sorted({min(folders), max(folders)}))
    say(f"run folder: {where}; Ctrl-C saves and stops, the same command goes on")
    command = shlex.join(["python", "-m", "mjx_qflex.train", *arguments])
    compilation_cache.enable(say)
    try:
        driver.train_seeds(
            resolved,
            folders,
            reporting.writer(command, say),
            interrupt,
            say,
            video=not flags.no_video,
            at_once=flags.seeds_at_once,
            devices=flags.devices,
        )
    except Interrupted:
        interrupt.complete(hosts.leave)
        raise
    interrupt.complete(hosts.leave)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    return commands.run(train, arguments)


if __name__ == "__main__":
    sys.exit(main())
