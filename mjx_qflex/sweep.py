"""Runs what a TOML file combines: `python -m mjx_qflex.sweep FILE.toml`. See `--help`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mjx_qflex import commands
from mjx_qflex.commands import number_flag, say, whole_number_flag
from mjx_qflex.errors import UserError
from mjx_qflex.interrupt import Interrupt

EPILOG = """\
The file, here with all that it may hold:

  logdir = "runs/exploration"     # default: runs/<name of the file>
  seeds = 5                       # 0 to 4; or a list (default: 1)
  video = false                   # do not film (default: true)
  preset = "cpu"                  # has no default here. For all runs, as are task, algo, body,
  set = ["loop.batch_size=256"]   # num_envs, total_steps and set: train's flags

  [[tasks]]                       # three tables, each optional, whose product is run; a line may
  name = "chain-10"               # hold those flags, too, and overrides the top and the tables
  task = "chain_reach"            # before. Its name, of folders, is its task or algo by default.
  set = ["task.num_joints=10"]

  [[algorithms]]
  name = "qflex-40"
  algo = "qflex"
  set = ["algo.ascent_steps=40"]

  [[settings]]
  name = "wide"
  set = ["algo.width=512"]

  [cluster]                       # for --cluster: parameters of submitit
  slurm_partition = "gpu"

A run is `python -m mjx_qflex.train` in <logdir>/<task>/<algorithm>/<setting>/s<seed>; what it says
is in log-s<seed>.txt beside it. The first task comes first, there seed by seed over the algorithms
and settings. The same command goes on: finished runs are left alone, interrupted ones resume,
failed ones are tried again, last. On several machines that share the folder, the same command
divides the runs between them. Ctrl-C stops the runs in progress with a checkpoint each.
"""


def make_parser() -> commands.FlagParser:
    """Returns the parser of this command's flags."""
    parser = commands.FlagParser(
        prog="python -m mjx_qflex.sweep",
        description="Train every combination that a TOML file names. The same command resumes.",
        epilog=EPILOG,
    )
    add = parser.add_argument
    add("file", nargs="?", type=Path, metavar="FILE", help="of the sweep (no default)")
    add("--jobs", type=whole_number_flag, metavar="K", help="runs side by side (default: 1)")
    add("--hours", type=number_flag, metavar="H", help="begin no run after H hours (default: none)")
    add(
        "--worker",
        type=worker_flag,
        default=(1, 1),
        metavar="I/K",
        help="only every K-th run, from the I-th on (default: 1/1)",
    )
    instead = parser.add_mutually_exclusive_group()
    add = instead.add_argument
    add("--status", action="store_true", help="only show what is finished, running, ...")
    add(
        "--print",
        action="store_true",
        help="only print the launch commands of --jobs workers, for any scheduler (default: as "
        "many as runs; those without work are left out)",
    )
    add(
        "--cluster",
        choices=("slurm", "local"),
        help="submit each run as a job through submitit (mjx_qflex[sweep]), at most --jobs at once "
        "(default: run them here)",
    )
    return parser


def worker_flag(text: str) -> tuple[int, int]:
    """Reads which of how many workers this is, as argparse's `type`."""
    first, slash, of = text.partition("/")
    if not (slash and first.isdecimal() and of.isdecimal() and 1 <= int(first) <= int(of)):
        raise argparse.ArgumentTypeError(f"{text!r} is no worker; give I/K such as 1/4 to 4/4")
    return int(first), int(of)


def check_flags(flags: argparse.Namespace) -> None:
    """Raises a `UserError` for flags that have no meaning alone or together."""
    if flags.file is None:
        raise UserError("no file given; add one, for example experiments/exploration/learning.toml")
    here = not (flags.status or flags.print or flags.cluster)
    if flags.hours is not None and not here:
        raise UserError("--hours is for runs on this machine; leave it out here")
    if flags.print and flags.worker != (1, 1):
        raise UserError("--print divides all runs between workers; leave --worker out")


def sweep(arguments: Sequence[str], interrupt: Interrupt) -> None:
    """Reads the flags and the file, and runs, submits, prints or shows."""
    parser = make_parser()
    flags = parser.parse(arguments)
    if flags.help:
        parser.print_help()
        return
    check_flags(flags)
    with commands.quiet_imports():
        from mjx_qflex.sweeps import cluster, jobs, sweep_file

        found = interrupt.attempt(sweep_file.read, flags.file)
    first, workers = flags.worker
    runs = found.runs[first - 1 :: workers]
    interrupt.attempt(sweep_file.check_folders, runs)
    if flags.print:
        print_workers(found.runs, flags)
        return
    if flags.cluster:
        number = cluster.submit(found, runs, flags.cluster, flags.jobs)
        say(f"submitted {number} of {len(runs)} runs; --status shows where they stand")
    here = not (flags.cluster or flags.status)
    if here:
        jobs.work(runs, flags.jobs or 1, flags.hours, interrupt, say)
    print("\n".join(jobs.table(runs)), flush=True)
    if here:
        jobs.require_success(runs)


def print_workers(runs: Sequence, flags: argparse.Namespace) -> None:
    """Prints the command of each worker that has a run to do; nothing else, for schedulers."""
    from mjx_qflex.sweeps import jobs

    workers = min(flags.jobs or len(runs), len(runs))
    for worker in range(workers):
        if any(jobs.state_of(run) != "finished" for run in runs[worker::workers]):
            arguments = [str(flags.file), f"--worker={worker + 1}/{workers}"]
            print(jobs.command_line("sweep", arguments))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    return commands.run(sweep, arguments)


if __name__ == "__main__":
    sys.exit(main())
