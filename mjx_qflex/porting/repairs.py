"""Muscle paths of a source model that are wrong, put right on its MuJoCo specification.

A repair leaves points out of one muscle's path. Porting and parity see the repaired model alone;
`changes.repair_changes` says how far it is from the model as it came.
"""

from collections.abc import Mapping
from typing import NamedTuple

import mujoco

from mjx_qflex.errors import UserError
from mjx_qflex.lookup import check_keys
from mjx_qflex.physics import audit
from mjx_qflex.porting import compartments, values


class Repair(NamedTuple):
    """What is put right on one muscle's path, and why."""

    leave_out: tuple[str, ...]  # sites
    reason: str


def read(path: object, table: Mapping[str, Mapping]) -> dict[str, Repair]:
    """Reads a recipe's section `[repairs]`, by muscle; `path` is named in errors.

    Raises:
      UserError: a repair with other keys than `leave_out` and `reason`, or without one of them.
    """
    repairs = {}
    for muscle, content in table.items():
        where = f"[repairs.{muscle}] in {path}"
        check_keys(where, content, Repair._fields, needed=Repair._fields)
        values.require(where, content, {"leave_out": values.texts, "reason": values.text})
        repairs[muscle] = Repair(tuple(content["leave_out"]), content["reason"])
    return repairs


def apply(spec: mujoco.MjSpec, repairs: Mapping[str, Repair]) -> None:
    """Repairs `spec` in place; each muscle keeps its normalised length at the neutral pose.

    Raises:
      UserError: a muscle that the model does not have, a site that is not on its path, a path of
        which fewer than two sites would stay, or something that a new path would lose
        (`audit.check`).
    """
    if not repairs:
        return
    model = spec.copy().compile()
    audit.check(model)
    data = compartments.neutral_data(model)
    muscles = {muscle.name: muscle for muscle in spec.actuators}
    tendons = {tendon.name: tendon for tendon in spec.tendons}
    length = {}
    for name, repair in repairs.items():
        if name not in muscles:
            raise UserError(f"cannot repair {name}: the model has no such muscle")
        muscle = muscles[name]
        if muscle.target not in tendons:
            raise UserError(f"cannot repair {name}: it pulls on no tendon")
        tendon = tendons[muscle.target]
        on_path = {w.target.name for w in tendon.path if w.type == mujoco.mjtWrap.mjWRAP_SITE}
        for site in repair.leave_out:
            if site not in on_path:
                raise UserError(f"cannot repair {name}: its path has no site {site!r}")
        if len(on_path - set(repair.leave_out)) < 2:
            raise UserError(f"cannot repair {name}: its path needs two sites that stay")
        length[name] = data.ten_length[model.tendon(tendon.name).id]
        muscle.target = f"{tendon.name}_repaired"
        _leave_out(spec, tendon, muscle.target, repair.leave_out)
    compartments.shift_length_ranges(spec, {name: name for name in repairs}, length)


def _leave_out(spec: mujoco.MjSpec, tendon, name: str, sites: tuple[str, ...]) -> None:
    """Replaces `tendon` by one called `name` that does not go through `sites`."""
    compartments.copy_tendon(
        spec, tendon, name, lambda _, site: None if site.name in sites else site
    )
    spec.delete(tendon)
