"""`python -m mjx_qflex.port --body=NAME`: the parity and speed report of a ported body.

The report ends with a line that says whether the port is within tolerance; where it is not, the
command exits with status 1, and with 2 where the body cannot be ported. With `--write` the fitted
paths are also stored beside the recipe, to ship with the library. `--fetch NAME` gets the model of
a body that no Python package ships; `--table FOLDER` prints the reports in a folder as one table.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from mjx_qflex import commands, files
from mjx_qflex.errors import UserError
from mjx_qflex.interrupt import Interrupt


def port(arguments: Sequence[str], interrupt: Interrupt) -> int:
    """Reads the flags and does one job; returns the exit status."""
    parser = _parser()
    flags = parser.parse(arguments)
    if flags.help:
        parser.print_help()
        return 0
    if not (flags.body or flags.fetch or flags.table):
        raise UserError("nothing to do; give --body=NAME, --fetch=BODY or --table=FOLDER")
    with commands.quiet_imports():
        from mjx_qflex.porting import report  # noqa: F401
    if flags.fetch:
        print(interrupt.attempt(fetch_model, flags.fetch))
        return 0
    if flags.table:
        print(make_table(Path(flags.table)))
        return 0
    page, within = interrupt.attempt(make_report, flags)
    print(page, end="")
    return 0 if within else 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    return commands.run(port, arguments)


def _parser() -> commands.FlagParser:
    parser = commands.FlagParser(
        prog="python -m mjx_qflex.port",
        description="Compare a ported body with C MuJoCo's simulation of the unported model.",
    )
    job = parser.add_mutually_exclusive_group()
    job.add_argument("--body", help="name of a body, or a folder with recipe.toml")
    job.add_argument("--fetch", metavar="BODY", help="get this body's model, and nothing else")
    job.add_argument("--table", metavar="FOLDER", help="print the reports in FOLDER as one table")
    parser.add_argument(
        "--num_actuators", type=int, help="of the body (default: as many as its recipe says)"
    )
    parser.add_argument(
        "--speed", action=argparse.BooleanOptionalAction, default=True, help="measure speed, too"
    )
    parser.add_argument(
        "--raw_limit",
        type=float,
        default=240.0,
        help="seconds a raw MJX run may take (default: 240)",
    )
    parser.add_argument(
        "--batches",
        type=int,
        nargs="+",
        default=[8, 16, 32, 64],
        help="environments side by side (default: 8 16 32 64)",
    )
    parser.add_argument(
        "--raw_batches",
        type=int,
        nargs="+",
        default=[8, 32],
        help="the same for raw MJX (default: 8 32)",
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        default=0.05,
        help="how far, of the distance moved, the motion may be from that of the file as given "
        "(default: 0.05)",
    )
    parser.add_argument("--output", help="folder for the report as JSON and Markdown")
    parser.add_argument("--write", action="store_true", help="store fitted paths beside the recipe")
    return parser


def fetch_model(name: str) -> str:
    """Fetches the model of body `name`; returns where it lies, whence it came and its licence.

    Raises:
      UserError: unknown body, nothing to fetch, no network, or files that the recipe does not pin.
    """
    from mjx_qflex.porting import fetch, recipe

    instructions = recipe.read(name)
    source = instructions.source
    path = fetch.fetch(instructions.name, source)
    lines = [f"{path}: {source['repository']} at {source['revision']}, {source['licence']}"]
    used = fetch.locate(instructions.name, instructions.source_folder, source)
    if used != path:
        lines.append(f"{used} serves instead")
    return "\n".join(lines)


def make_table(folder: Path) -> str:
    """Returns the reports in `folder` as one table.

    Raises:
      UserError: there is none.
    """
    from mjx_qflex.reports import body

    return body.table(folder)


def make_report(arguments: argparse.Namespace) -> tuple[str, bool]:
    """Measures a body, and writes its report where the arguments say so.

    Returns it as Markdown, and whether it is within tolerance.

    Raises:
      UserError: the body cannot be loaded.
    """
    from mjx_qflex.porting import library, report
    from mjx_qflex.reports import body

    if arguments.output:
        files.check_output_folder(Path(arguments.output))
    if arguments.write:
        library.ship_paths(arguments.body)
    found = report.measure(
        library.load(arguments.body, arguments.num_actuators),
        arguments.raw_limit,
        arguments.batches,
        arguments.raw_batches,
        arguments.speed,
        arguments.tolerance,
    )
    page = body.as_markdown(found)
    if arguments.output:
        folder = Path(arguments.output)
        files.write(folder / f"{found['body']}.json", json.dumps(found, indent=1) + "\n")
        files.write(folder / f"{found['body']}.md", page)
    return page, not found["shortcomings"]


if __name__ == "__main__":
    sys.exit(main())
