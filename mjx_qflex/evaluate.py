"""Evaluates and renders a run: `python -m mjx_qflex.evaluate --run=DIR`. See `--help`."""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mjx_qflex import __version__, commands
from mjx_qflex.commands import number_flag, say, whole_number_flag
from mjx_qflex.errors import UserError
from mjx_qflex.interrupt import Interrupt


def make_parser() -> commands.FlagParser:
    """Returns the parser of this command's flags."""
    parser = commands.FlagParser(
        prog="python -m mjx_qflex.evaluate",
        description="Evaluate the newest checkpoint of a run against an untrained policy and an "
        "idle one, on the same reset seeds; film it; bring report.md up to date. With "
        "--guidance: compare weights of test-time guidance instead, and do not film.",
    )
    add = parser.add_argument
    add("--run", type=Path, help="run folder (no default)")
    add(
        "--policy",
        help="instead of a run: a policy that ships, for example myo_leg_walk, or its folder",
    )
    add(
        "--output",
        type=Path,
        help="of --policy: folder of its evaluation and video (default: runs/policy-NAME)",
    )
    add("--episodes", type=whole_number_flag, default=64, help="of each policy (default: 64)")
    add("--seed", type=whole_number_flag, help="of the reset states (default: the run's)")
    add("--no-video", action="store_true", help="do not film (default: film)")
    add(
        "--guidance",
        type=number_flag,
        nargs="+",
        metavar="W",
        help="weights of the critics' gradient while acting, for example 0.01 0.1; 0 is always "
        "among them (runs of crossq, qflex, sac)",
    )
    add("--guidance_steps", type=whole_number_flag, help="Euler steps of it (default: 10)")
    add(
        "--guidance_grid",
        choices=("left", "right"),
        help="end of a step that the flow's velocity is taken at (default: left, as in the QGF "
        "paper; what Qflex trained with is algo.euler_grid)",
    )
    add(
        "--best_of",
        type=whole_number_flag,
        help="guided candidates, of which the critics choose one (default: 1)",
    )
    return parser


def evaluate(arguments: Sequence[str], interrupt: Interrupt) -> None:
    """Reads the flags and evaluates."""
    parser = make_parser()
    flags = parser.parse(arguments)
    if flags.help:
        parser.print_help()
        return
    _check_what(flags)
    options = guidance_options(flags)
    say(f"mjx_qflex {__version__}: evaluating {flags.run or flags.policy}; loading JAX ...")

    with commands.quiet_imports():
        from mjx_qflex.algos.qgf import QgfConfig
        from mjx_qflex.reports import reporting
        from mjx_qflex.runner import compilation_cache, revisit

    compilation_cache.enable(say)
    run, episodes, seed = flags.run, flags.episodes, flags.seed
    if flags.policy is not None:
        output = flags.output or Path("runs") / f"policy-{Path(flags.policy).name}"
        revisit.evaluate_policy(
            flags.policy, output, episodes, seed, not flags.no_video, interrupt, say
        )
        return
    if flags.guidance is None:
        revisit.evaluate(run, episodes, seed, not flags.no_video, interrupt, say)
    else:
        config = dataclasses.replace(QgfConfig(), **options)
        revisit.sweep_guidance(run, flags.guidance, config, episodes, seed, interrupt, say)
    reporting.refresh(run)


def _check_what(flags: argparse.Namespace) -> None:
    """Refuses flags that do not name one thing to evaluate.

    Raises:
      UserError: says what to give.
    """
    if flags.run is None and flags.policy is None:
        raise UserError(
            "no run given; add --run=DIR, for example --run=runs/chain_reach-qflex-s0, or "
            "--policy=NAME"
        )
    if flags.run is not None and flags.policy is not None:
        raise UserError("--run and --policy name two things; leave one of them out")
    if flags.policy is None and flags.output is not None:
        raise UserError("--output is of --policy; a run's evaluation goes into its folder")
    if flags.policy is not None and flags.guidance is not None:
        raise UserError("--guidance takes a run; add --run=DIR instead of --policy")


def guidance_options(flags: argparse.Namespace) -> dict[str, Any]:
    """Returns the options of `QgfConfig` that were given.

    Raises:
      UserError: there is no --guidance for it.
    """
    given = {}
    options = {
        "guidance_steps": "euler_steps",
        "guidance_grid": "euler_grid",
        "best_of": "best_of",
    }
    for flag, option in options.items():
        value = getattr(flags, flag)
        if value is None:
            continue
        if flags.guidance is None:
            raise UserError(
                f"--{flag} is of guidance; add --guidance W, for example --guidance 0.1"
            )
        given[option] = value
    return given


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    return commands.run(evaluate, arguments)


if __name__ == "__main__":
    sys.exit(main())
