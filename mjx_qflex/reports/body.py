"""The report of a ported body as a page, and as one line of the table of all bodies."""

import json
from pathlib import Path
from typing import Any

import pandas as pd

from mjx_qflex.errors import UserError
from mjx_qflex.porting import given, speed
from mjx_qflex.porting.report import OFF, ON
from mjx_qflex.reports import templates

SHOWN_JOINTS = 10  # those furthest from the file as given; the JSON has all
MODELS = (given.GIVEN, given.STIFF, given.CUT)


def as_markdown(report: dict[str, Any]) -> str:
    """Returns a report (`porting.report.measure`) as a page of tables."""
    narrowed = [row for row in report["ranges"] or [] if row["fitted"] != row["limits"]]
    return templates.render(
        "body.md",
        report=report,
        figures=_figures(report),
        narrowed=narrowed,
        speeds=_speeds(report["speed"]) if "speed" in report else None,
        motion=_motion(report["motion"]) if "motion" in report else None,  # older ones have none
        verdict=verdict(report) if "motion" in report else None,
    )


def verdict(report: dict[str, Any]) -> str:
    """Returns the last line of a report: whether it is within its tolerance, and if not, why."""
    percent = f"{100 * report['tolerance']:.3g}%"
    if not report["shortcomings"]:
        return f"Within tolerance: {percent} of the motion of {given.GIVEN}."
    return f"Not within tolerance ({percent}): {'; '.join(report['shortcomings'])}."


def _figures(report: dict[str, Any]) -> pd.DataFrame:
    figures = {**report["paths"], **{k: v for k, v in report.items() if isinstance(v, float)}}
    figures.pop("tolerance", None)
    figures["50 steps with contacts"] = report["50 steps with contacts"] or {}
    rows = [
        (f"{title}: {name}" if name else title, _number(value))
        for title, found in figures.items()
        for name, value in (found.items() if isinstance(found, dict) else [("", found)])
    ]
    return pd.DataFrame(rows, columns=["against C MuJoCo", ""])


def _number(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _motion(motion: dict[str, Any]) -> pd.DataFrame:
    rows = [["all joints", *(f"{100 * motion[title]['relative']:.3g}%" for title in MODELS)]]
    for joint, _ in given.worst_joints(motion[given.GIVEN], SHOWN_JOINTS):
        errors = [motion[title]["joints"][joint] for title in MODELS]
        rows.append([joint, *(f"{wrong:.2g} of {moved:.2g}" for wrong, moved in errors)])
    title = f"{given.STEPS} steps under full excitations, against C MuJoCo"
    return pd.DataFrame(rows, columns=[title, *MODELS])


def _speeds(results: dict[str, Any]) -> pd.DataFrame:
    port, rows = speed.best(results["port"]), []
    for title in ("port", *speed.RAW):
        cells = []
        for number, found in results[title].items():
            finite = "" if found.get("finite", True) else " (not finite)"
            cells.append(
                f"{number}: {found.get('failed') or format(found['steps/s'], ',.0f')}{finite}"
            )
        top = speed.best(results[title])
        rows.append((title, "; ".join(cells), f"{port / top:.2g}x" if top else "-"))
    for found in results["C MuJoCo"]:
        title = f"C MuJoCo, {templates.count(found['threads'], 'thread')}"
        rows.append((title, f"{found['steps/s']:,.0f}", f"{port / found['steps/s']:.2f}x"))
    columns = ["physics steps/s", "environments: steps/s", "port is faster by"]
    return pd.DataFrame(rows, columns=columns)


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
    return templates.render("bodies.md", bodies=pd.DataFrame(rows))


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
