"""Writes a run as a policy of its own: `python -m mjx_qflex.export --run=DIR --output=DIR`.

The result is evaluated by `python -m mjx_qflex.evaluate --policy=FOLDER`, and training goes on
from it with `python -m mjx_qflex.train --from=FOLDER`.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from mjx_qflex import __version__, commands
from mjx_qflex.commands import say
from mjx_qflex.errors import UserError
from mjx_qflex.interrupt import Interrupt


def make_parser() -> commands.FlagParser:
    """Returns the parser of this command's flags."""
    parser = commands.FlagParser(
        prog="python -m mjx_qflex.export",
        description="Write the newest checkpoint of a run as a policy: plain arrays, their sizes, "
        "a card, and 16 observations with the actions that it takes there.",
    )
    add = parser.add_argument
    add("--run", type=Path, help="run folder (no default)")
    add("--output", type=Path, help="the policy's folder (no default)")
    add(
        "--card",
        metavar="KEY=TEXT",
        action="append",
        default=[],
        help="a line of the card, such as commit=, machine=, licence=; repeatable",
    )
    return parser


def export(arguments: Sequence[str], interrupt: Interrupt) -> None:
    """Reads the flags and writes the policy."""
    parser = make_parser()
    flags = parser.parse(arguments)
    if flags.help:
        parser.print_help()
        return
    for name, example in (("run", "runs/chain_reach-qflex-s0"), ("output", "my_policy")):
        if getattr(flags, name) is None:
            raise UserError(f"no {name} given; add --{name}=DIR, for example --{name}={example}")
    card = {}
    for text in flags.card:
        key, equals, value = text.partition("=")
        if not (key and equals):
            raise UserError(f"--card {text!r} has no '='; write --card KEY=TEXT")
        card[key] = value
    say(f"mjx_qflex {__version__}: exporting {flags.run}; loading JAX ...")

    with commands.quiet_imports():
        from mjx_qflex.runner import revisit

    revisit.export_policy(flags.run, flags.output, card, interrupt, say)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    return commands.run(export, arguments)


if __name__ == "__main__":
    sys.exit(main())
