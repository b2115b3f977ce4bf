"""The report of a ported body as numbers; `reports.body` makes a page and a table of it."""

import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from mjx_qflex.physics.body import PortedBody
from mjx_qflex.porting import changes, given, parity, speed

COUPLINGS = "largest displacement if couplings were deleted (m)"
OFF, ON = (f"100 steps of free motion, actuators {state}" for state in ("off", "on"))
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
