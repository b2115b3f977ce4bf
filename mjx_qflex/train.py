"""Trains a task: `python -m mjx_qflex.train --task=ms_human_walk`. See `--help`."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from mjx_qflex import __version__, bounds, commands
from mjx_qflex import flags as flags_of
from mjx_qflex.errors import UserError
from mjx_qflex.interrupt import Interrupt, Interrupted


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
    parser = flags_of.make_parser()
    flags = parser.parse(arguments)
    if flags.help:
        parser.epilog = flags_of.defaults_text(
            flags.task, flags.algo or flags_of.DEFAULT_ALGO, flags.preset
        )
        parser.print_help()
        return
    if not (flags.task or flags.start_from):
        raise UserError("no task given; add --task=NAME, for example --task=ms_human_walk")
    _check_numbers_of_seeds(flags.seed, flags.seeds, flags.seeds_at_once)
    what = f"{flags.task} with {flags.algo or flags_of.DEFAULT_ALGO}"
    if flags.start_from:  # which brings its own task and algorithm
        what = f"on from {flags.start_from}"
    commands.say(f"mjx_qflex {__version__}: training {what}; loading JAX ...")

    with commands.quiet_imports():
        from mjx_qflex.runner import hosts

        hosts.start(flags.coordinator, flags.num_processes, flags.process_id)
        resolved = flags_of.resolve(flags)
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
