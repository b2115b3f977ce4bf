"""Measures speed: `python -m mjx_qflex.benchmark --task=ms_human_walk`. See `--help`."""

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mjx_qflex import commands, devices, files
from mjx_qflex.commands import number_flag, say, whole_number_flag
from mjx_qflex.errors import UserError
from mjx_qflex.interrupt import Interrupt
from mjx_qflex.lookup import unknown_name

if TYPE_CHECKING:  # JAX is loaded once the command has spoken
    import argparse

    from mjx_qflex.config import Config

COMPARED = ("brax", "host", "flashbax", "raw")


def make_parser() -> commands.FlagParser:
    """Returns the parser of this command's flags."""
    parser = commands.FlagParser(
        prog="python -m mjx_qflex.benchmark",
        description="Measure how fast tasks step and algorithms train here, part by part; or, with "
        "--compare, against other ways to do the same on this machine.",
    )
    add = parser.add_argument
    add("--task", nargs="+", metavar="TASK", help="one or more tasks (no default)")
    add("--algo", nargs="+", default=["qflex"], help="algorithms (default: qflex)")
    add(
        "--num_envs",
        nargs="+",
        type=whole_number_flag,
        help="environments (default: those of the preset)",
    )
    add(
        "--batch_size",
        nargs="+",
        type=whole_number_flag,
        default=[],
        help="of updates timed besides the preset's own (default: none)",
    )
    add("--preset", help="sizes and settings (default: by the device)")
    add("--set", metavar="KEY=VALUE", action="append", default=[], help="as of train; repeatable")
    add("--seconds", type=number_flag, default=1.0, help="of each round (default: 1)")
    add("--repeats", type=whole_number_flag, default=5, help="rounds (default: 5)")
    add(
        "--compare",
        nargs="*",
        metavar="PEER",
        help=f"take turns with: {', '.join(COMPARED)} (default, if none is named: all)",
    )
    add(
        "--cores",
        nargs="+",
        type=whole_number_flag,
        help="of the compared processes, each number in turn (default: all)",
    )
    add("--limit", type=number_flag, default=300.0, help="s that a peer may take (default: 300)")
    add(
        "--peak_tflops",
        type=number_flag,
        help="of this device, for the roofline (default: datasheet's)",
    )
    add("--output", type=Path, help="folder for JSON, CSV, table and plot (default: none is kept)")
    add("--table", type=Path, metavar="FOLDER", help="print what is kept in FOLDER, and no more")
    return parser


def check(flags: "argparse.Namespace") -> None:
    """Refuses flags that make no sense.

    Raises:
      UserError: an unknown peer, or cores that are not there or not asked for.
    """
    for peer in flags.compare or []:
        if peer not in COMPARED:
            raise unknown_name("peer to --compare", peer, COMPARED)
    here = len(os.sched_getaffinity(0))
    for number in flags.cores or []:
        if number > here:
            raise UserError(f"--cores={number}: there are {here} here; give at most that many")
    if flags.cores and flags.compare is None:
        raise UserError("--cores is for --compare; use taskset to measure on fewer cores")


def benchmark(arguments: Sequence[str], interrupt: Interrupt) -> None:
    """Reads the flags and measures."""
    parser = make_parser()
    flags = parser.parse(arguments)
    if flags.help:
        parser.print_help()
        return
    if flags.table:
        with commands.quiet_imports():
            from mjx_qflex.benchmarking import page
        print(page.tables(flags.table))
        return
    if not flags.task:
        raise UserError("no task given; add --task=NAME, for example --task=ms_human_walk")
    check(flags)
    if flags.output:
        files.check_output_folder(flags.output)
    if flags.compare is not None:  # the device's memory is for the compared processes
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    say("loading JAX ...")
    with commands.quiet_imports():
        from mjx_qflex.benchmarking import results
    devices.backend()  # refuses devices that are not there
    command = shlex.join(["python", "-m", "mjx_qflex.benchmark", *arguments])
    found = interrupt.attempt(results.measure, flags, resolve(flags), command, say)
    print("\n" + interrupt.attempt(results.keep, found, flags.output))
    if flags.output:
        say(f"written: {flags.output}")


def resolve(flags: "argparse.Namespace") -> "list[Config]":
    """Returns the config of every combination that the flags ask for.

    Raises:
      UserError: an unknown name, or a value that is refused.
    """
    from mjx_qflex import presets

    return [
        presets.resolve(task, algo, flags.preset, num_envs=num_envs, sets=flags.set)
        for task in flags.task
        for algo in flags.algo
        for num_envs in flags.num_envs or [None]
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    return commands.run(benchmark, arguments)


if __name__ == "__main__":
    sys.exit(main())
