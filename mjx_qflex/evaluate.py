"""Evaluates and renders a run: `python -m mjx_qflex.evaluate --run=DIR`. See `--help`."""

import sys
from collections.abc import Sequence
from pathlib import Path

from mjx_qflex import __version__, commands
from mjx_qflex.commands import say, whole_number_flag
from mjx_qflex.errors import UserError
from mjx_qflex.training.interrupt import Interrupt


def make_parser() -> commands.FlagParser:
    """Returns the parser of this command's flags."""
    parser = commands.FlagParser(
        prog="python -m mjx_qflex.evaluate",
        description="Evaluate the newest checkpoint of a run against an untrained policy and an "
        "idle one, on the same reset seeds; film it; bring report.md up to date.",
    )
    add = parser.add_argument
    add("--run", type=Path, help="run folder (no default)")
    add("--episodes", type=whole_number_flag, default=64, help="of each policy (default: 64)")
    add("--seed", type=whole_number_flag, help="of the reset states (default: the run's)")
    add("--no-video", action="store_true", help="do not film (default: film)")
    return parser


def evaluate(arguments: Sequence[str], interrupt: Interrupt) -> None:
    """Reads the flags and evaluates."""
    parser = make_parser()
    flags = parser.parse(arguments)
    if flags.help:
        parser.print_help()
        return
    if flags.run is None:
        raise UserError("no run given; add --run=DIR, for example --run=runs/chain_reach-qflex-s0")
    if flags.episodes < 2:
        raise UserError(f"--episodes is {flags.episodes}; an interval needs 2 or more")
    say(f"mjx_qflex {__version__}: evaluating {flags.run}; loading JAX ...")

    with commands.quiet_imports():
        from mjx_qflex.training import driver

    driver.evaluate(flags.run, flags.episodes, flags.seed, not flags.no_video, interrupt, say)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    return commands.run(evaluate, arguments)


if __name__ == "__main__":
    sys.exit(main())
