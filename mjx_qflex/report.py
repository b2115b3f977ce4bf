"""Compares runs on one HTML page: `python -m mjx_qflex.report DIR…`. See `--help`."""

import sys
from collections.abc import Sequence
from pathlib import Path

from mjx_qflex import commands, files
from mjx_qflex.commands import say
from mjx_qflex.errors import UserError
from mjx_qflex.interrupt import Interrupt


def make_parser() -> commands.FlagParser:
    """Returns the parser of this command's flags."""
    parser = commands.FlagParser(
        prog="python -m mjx_qflex.report",
        description="Turn run folders into one HTML page that needs no other file: learning curves "
        "with 95% intervals over seeds, final results, differences of configuration, videos.",
    )
    add = parser.add_argument
    add("folders", nargs="*", type=Path, metavar="DIR", help="run folders (no default)")
    add("--output", type=Path, default=Path("report.html"), help="(default: report.html)")
    add(
        "--x",
        choices=("transitions", "seconds"),
        default="transitions",
        help="what curves run over: transitions, or seconds of training (default: transitions)",
    )
    add(
        "--statistic",
        choices=("mean", "iqm"),
        default="mean",
        help="over the seeds: mean, or interquartile mean (default: mean)",
    )
    return parser


def report(arguments: Sequence[str], interrupt: Interrupt) -> None:
    """Reads the flags and writes the page."""
    parser = make_parser()
    flags = parser.parse(arguments)
    if flags.help:
        parser.print_help()
        return
    if not flags.folders:
        raise UserError("no run folder given; add one or more, for example runs/*")
    files.check_output(flags.output)
    with commands.quiet_imports():
        from mjx_qflex.reports import comparison, page

    folders = {folder.resolve(): folder for folder in flags.folders}
    runs = [interrupt.attempt(comparison.read_run, folder) for folder in folders.values()]
    groups = comparison.group(runs)
    for line in comparison.notes(runs, groups):
        print(f"warning: {line}", file=sys.stderr)
    interrupt.attempt(page.write, runs, groups, flags.output, flags.x, flags.statistic)
    say(f"written: {flags.output} ({len(runs)} runs)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    return commands.run(report, arguments)


if __name__ == "__main__":
    sys.exit(main())
