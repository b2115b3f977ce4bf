"""The report of a ported body: measured, as a page, and as one line of the table of all bodies."""

import json
import os
import platform
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mjx_qflex.errors import UserError
from mjx_qflex.physics.body import PortedBody
from mjx_qflex.porting import changes, given, parity, speed

COUPLINGS = "largest displacement if couplings were deleted (m)"
OFF, ON = (f"100 steps of free motion, actuators {state}" for state in ("off", "on"))
SHOWN_JOINTS = 10  # those furthest from the file as given; the JSON has all
MEASURED_AT = ("mujoco", "mujoco-mjx", "jax")


def measure(
    body: PortedBody,
    raw_limit_s: float,
    batches: Sequence[int],
    raw_batches: Sequence[int],
    with_speed: bool,
    tolerance: float = given.TOLERANCE,
) -> dict[str, Any]:
    """Returns the report of `body` as plain numbers; speeds at each of `batches` environments.

    `tolerance` is of the motion against the file as given, relative to the distance moved.
    """
    couplings = body.source.nv > body.nv
    report: dict[str, Any] = {
        "body": body.name,
        "actuators": body.nu,
        "coordinates": f"{body.nv} independent of {body.source.nv}",
        "paths": parity.path_report(body) if body.num_muscles else {},
        "force, worst relative error": parity.force_error(body),
        OFF: parity.motion_error(body, actuated=False),
        ON: parity.motion_error(body, actuated=True),
        COUPLINGS: changes.coupling_change(body) if couplings else None,
        "motion": given.compare(body),
        "50 steps with contacts": parity.contact_change(body) if body.contacts else None,
        "ranges": parity.range_table(body),
        "repairs": changes.repair_changes(body),
    }
    report["tolerance"] = tolerance
    report["shortcomings"] = given.shortcomings(report, tolerance)
    if with_speed:
        report["speed"] = speed.compare(body, raw_limit_s, batches, raw_batches)
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
        if isinstance(value, float) and title != "tolerance":
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
    if "motion" in report:  # reports of before have none
        lines += ["", *_motion_lines(report["motion"]), "", verdict(report)]
    return "\n".join(lines) + "\n"


def verdict(report: dict[str, Any]) -> str:
    """The last line of a report: whether it is within its tolerance, and if not, why."""
    percent = f"{100 * report['tolerance']:.3g}%"
    if not report["shortcomings"]:
        return f"Within tolerance: {percent} of the motion of {given.GIVEN}."
    return f"Not within tolerance ({percent}): {'; '.join(report['shortcomings'])}."


def _motion_lines(motion: dict[str, Any]) -> list[str]:
    titles = (given.GIVEN, given.STIFF, given.CUT)
    lines = [
        f"| {given.STEPS} steps under full excitations, against C MuJoCo | {' | '.join(titles)} |",
        "|---" * (1 + len(titles)) + "|",
        _row("all joints", (f"{100 * motion[title]['relative']:.3g}%" for title in titles)),
    ]
    for joint, _ in given.worst_joints(motion[given.GIVEN], SHOWN_JOINTS):
        errors = [motion[title]["joints"][joint] for title in titles]
        lines.append(_row(joint, (f"{wrong:.2g} of {moved:.2g}" for wrong, moved in errors)))
    return lines


def _row(title: str, cells: Iterable[str]) -> str:
    return f"| {title} | {' | '.join(cells)} |"


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
    results = report["speed"]
    port = speed.best(results["port"])
    lines = ["| physics steps/s | environments: steps/s | port is faster by |", "|---|---|---|"]
    for title in ("port", *speed.RAW):
        cells = []
        for environments, measurement in results[title].items():
            cell = measurement.get("failed") or f"{measurement['steps/s']:,.0f}"
            finite = "" if measurement.get("finite", True) else " (not finite)"
            cells.append(f"{environments}: {cell}{finite}")
        top = speed.best(results[title])
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


def table(folder: Path) -> str:
    """Returns one line for each report (`<body>.json`) in `folder`, as a Markdown table.

    Raises:
      UserError: the folder holds no report, or one without all numbers.
    """
    rows = []
    for path in sorted(folder.glob("*.json")):
        try:
            rows.append(_table_row(json.loads(path.read_text())))
        except (KeyError, ValueError) as error:
            raise UserError(
                f"{path} lacks {error}: measure again, with --speed and this version"
            ) from error
    if not rows:
        raise UserError(f"no reports in {folder}; write some with --body=NAME --output={folder}")
    titles = list(rows[0])
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(row.values())} |" for row in rows)]) + "\n"


def _table_row(report: dict[str, Any]) -> dict[str, str]:
    paths, speeds = report["paths"], report["speed"]
    fitted, muscles = paths.get("over the range", {}), bool(paths)
    exact = paths.get("muscles left exact", [])
    port = speed.best(speeds["port"])

    def ratio(rate: float) -> str:
        return f"{port / rate:.2g}x" if rate else "-"

    def percent(value: float) -> str:
        return f"{100 * value:.2g}%"

    median, worst = (
        percent(fitted[f"joint torque, relative RMS, {which} joint"]) if muscles else "-"
        for which in ("median", "worst")
    )
    length = "length RMS, worst muscle (mm)"
    return {
        "body": f"`{report['body']}`",
        "actuators": str(report["actuators"]),
        "move nothing": str(len(paths.get("muscles that move no joint", []))) if muscles else "-",
        "coordinates": report["coordinates"].replace(" independent", ""),
        "exact paths": (exact if isinstance(exact, str) else str(len(exact))) if muscles else "-",
        "worst length RMS (mm)": f"{fitted[length]:.2g}" if muscles else "-",
        "joint torque, median": median,
        "worst": worst,
        "actuator force": f"{report['force, worst relative error']:.0e}",
        "free motion, off": percent(report[OFF]),
        "on": percent(report[ON]),
        "steps/s": f"{port:,.0f}",
        "to raw MJX": ratio(speed.best(speeds[speed.OWN])),
        "same contacts, iterations": ratio(speed.best(speeds[speed.SAME])),
        "to C, one core": ratio(speeds["C MuJoCo"][0]["steps/s"]),
        "all cores": ratio(speeds["C MuJoCo"][-1]["steps/s"]),
        "compile": f"{max(m['compile s'] for m in speeds['port'].values()):.0f} s",
    }
