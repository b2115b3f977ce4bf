"""`python -m mjx_qflex.port --body=NAME`: the parity and speed report of a ported body.

With `--write` the fitted paths are also stored beside the recipe, to ship with the library.
`--fetch NAME` gets the model of a body that no Python package ships.
"""

import argparse
import json
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mjx_qflex.errors import UserError

COUPLINGS = "largest displacement if couplings were deleted (m)"
MEASURED_AT = ("mujoco", "mujoco-mjx", "jax")


def main(argv: list[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    try:
        if arguments.fetch:
            print(fetch_model(arguments.fetch))
            return 0
        report = make_report(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(as_markdown(report))
    if arguments.output:
        folder = Path(arguments.output)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{report['body']}.json").write_text(json.dumps(report, indent=1) + "\n")
        (folder / f"{report['body']}.md").write_text(as_markdown(report))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m mjx_qflex.port",
        description="Compare a ported body with C MuJoCo's simulation of the unported model.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    job = parser.add_mutually_exclusive_group(required=True)
    job.add_argument("--body", help="name of a body, or a folder with recipe.toml")
    job.add_argument("--fetch", metavar="BODY", help="get this body's model, and nothing else")
    parser.add_argument("--num_actuators", type=int, help="None: as many as the recipe says")
    parser.add_argument("--speed", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument(
        "--raw_limit", type=float, default=240.0, help="seconds a raw MJX run may take"
    )
    parser.add_argument(
        "--batches", type=int, nargs="+", default=[8, 16, 32, 64], help="worlds side by side"
    )
    parser.add_argument(
        "--raw_batches", type=int, nargs="+", default=[8, 32], help="the same for raw MJX"
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
    used = fetch.locate(instructions.name, instructions.folder, source)
    if used != path:
        lines.append(f"{used} serves instead")
    return "\n".join(lines)


def make_report(arguments: argparse.Namespace) -> dict[str, Any]:
    from mjx_qflex.porting import library, parity, speed

    if arguments.write:
        library.ship_paths(arguments.body)
    body = library.load(arguments.body, arguments.num_actuators)
    couplings = body.source.nv > body.nv
    report: dict[str, Any] = {
        "body": body.name,
        "actuators": body.nu,
        "coordinates": f"{body.nv} independent of {body.source.nv}",
        "paths": parity.path_report(body) if body.num_muscles else {},
        "force, worst relative error": parity.force_error(body),
        "100 steps of free motion, actuators off": parity.motion_error(body, actuated=False),
        "100 steps of free motion, actuators on": parity.motion_error(body, actuated=True),
        COUPLINGS: parity.coupling_change(body) if couplings else None,
        "50 steps with contacts": parity.contact_change(body) if body.contacts else None,
        "ranges": parity.range_table(body),
        "repairs": parity.repair_changes(body),
    }
    if arguments.speed:
        report["speed"] = speed.compare(
            body, arguments.raw_limit, arguments.batches, arguments.raw_batches
        )
        report["machine"] = f"{platform.machine()}, {os.cpu_count()} cores"
        report["versions"] = {name: version(name) for name in MEASURED_AT}
    return report


def as_markdown(report: dict[str, Any]) -> str:
    """The report as a page of tables."""
    lines = [f"# {report['body']}: {report['actuators']} actuators", ""]
    lines += [f"{report['coordinates']} coordinates.", "", "| against C MuJoCo | |", "|---|---|"]
    for title, value in report["paths"].items():
        if isinstance(value, dict):
            lines += [f"| {title}: {name} | {_number(x)} |" for name, x in value.items()]
        else:
            lines.append(f"| {title} | {_number(value)} |")
    for title, value in report.items():
        if isinstance(value, float):
            lines.append(f"| {title} | {_number(value)} |")
    for title, value in (report["50 steps with contacts"] or {}).items():
        lines.append(f"| 50 steps with contacts: {title} | {_number(value)} |")
    if report["ranges"]:
        narrowed = [row for row in report["ranges"] if row["fitted"] != row["limits"]]
        lines += ["", "Fitted ranges narrower than the joint's limits:", ""]
        lines += [f"- {r['joint']}: {r['fitted']} of {r['limits']}" for r in narrowed] or ["- none"]
    if report["repairs"]:
        lines += ["", "Muscle paths repaired in the source, and what that changes there:", ""]
        lines += [_repair_line(row) for row in report["repairs"]]
    if "speed" in report:
        lines += ["", *_speed_lines(report)]
    return "\n".join(lines) + "\n"


def _repair_line(row: dict[str, Any]) -> str:
    arms = ", ".join(
        f"{joint} {before:.1f} to {after:.1f}"
        for joint, (before, after) in row["moment arms, RMS (mm)"].items()
    )
    return (
        f"- {row['muscle']} without {', '.join(row['left out'])}. {row['reason']} Its length, "
        f"measured from the neutral pose, changes by {row['length change, RMS (mm)']:.1f} mm (RMS; "
        f"at most {row['length change, largest (mm)']:.1f} mm), its moment arms (RMS, mm): {arms}."
    )


def _number(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _speed_lines(report: dict[str, Any]) -> list[str]:
    from mjx_qflex.porting.speed import RAW, best

    results = report["speed"]
    port = best(results["port"])
    lines = ["| physics steps/s | worlds: steps/s | port is faster by |", "|---|---|---|"]
    for title in ("port", *RAW):
        cells = []
        for worlds, measurement in results[title].items():
            cell = measurement.get("failed") or f"{measurement['steps/s']:,.0f}"
            finite = "" if measurement.get("finite", True) else " (not finite)"
            cells.append(f"{worlds}: {cell}{finite}")
        top = best(results[title])
        ratio = f"{port / top:.2g}x" if top else "-"
        lines.append(f"| {title} | {'; '.join(cells)} | {ratio} |")
    for reference in results["C MuJoCo"]:
        threads, rate = reference["threads"], reference["steps/s"]
        ratio = f"{port / rate:.2f}x"
        lines.append(f"| C MuJoCo, {_plural(threads, 'thread')} | {rate:,.0f} | {ratio} |")
    versions = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    compile_s = max(m["compile s"] for m in results["port"].values())
    return [*lines, "", f"{report['machine']}; {versions}; the port compiles in {compile_s:.0f} s."]


def _plural(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("s" if number != 1 else "")


if __name__ == "__main__":
    sys.exit(main())
