"""Broad muscles divided into parallel compartments, on a MuJoCo specification.

A compartment is a muscle of its own: it carries an equal share of its parent's peak force, and its
path is the parent's path moved sideways, across the muscle's breadth. The compartments of one
muscle lie symmetric about the parent's path, so that equal activation of all of them reproduces
the parent's joint torque to first order, while each has its own length and moment arms.

How broad a muscle is, and in which direction it broadens, is data (`read_fans`); which muscles are
divided, and how often, follows from it (`allocate`).
"""

import csv
import heapq
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import mujoco
import numpy as np

from mjx_qflex.errors import UserError
from mjx_qflex.lookup import unknown_name
from mjx_qflex.physics import audit

MAX_COMPARTMENTS = 16  # of one muscle; finer slices of one path no longer differ measurably

_COPIED_TENDON_FIELDS = ("group", "width", "rgba", "material")
_COPIED_ACTUATOR_FIELDS = (
    "actdim",
    "actearly",
    "actlimited",
    "actrange",
    "biasprm",
    "biastype",
    "cranklength",
    "ctrllimited",
    "ctrlrange",
    "dynprm",
    "dyntype",
    "forcelimited",
    "gainprm",
    "gaintype",
    "gear",
    "group",
    "trntype",
)


class Fan(NamedTuple):
    """Over which breadth a muscle's compartments are spread, and where to."""

    width: float  # m
    direction: tuple[float, float, float]  # unit vector, world frame, model at its neutral pose


def read_fans(path: Path) -> dict[str, Fan]:
    """Read the table `muscle,width_mm,x,y,z` (other columns are ignored), by muscle.

    Raises:
      UserError: the file is not there, or is no such table.
    """
    try:
        with path.open(newline="") as file:
            return {
                row["muscle"]: Fan(
                    float(row["width_mm"]) * 1e-3,
                    (float(row["x"]), float(row["y"]), float(row["z"])),
                )
                for row in csv.DictReader(file)
            }
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read as a table muscle,width_mm,x,y,z ({type(error).__name__}: "
            f"{error}); [actuators] fans names it"
        ) from error


def allocate(widths: Sequence[float], count: int) -> list[int]:
    """Number of compartments `[len(widths)]` of each muscle, `count` in all.

    One compartment after the other goes to the muscle with the widest compartments; of two equally
    wide muscles, the earlier one is served first.

    Raises:
      UserError: `count` is below the number of muscles or above `MAX_COMPARTMENTS` times it.
    """
    low, high = len(widths), MAX_COMPARTMENTS * len(widths)
    if not low <= count <= high:
        raise UserError(
            f"{count} actuators cannot be made of {low} muscles; give a number from {low} to {high}"
        )
    parts = [1] * low
    queue = [(-width, index) for index, width in enumerate(widths)]
    heapq.heapify(queue)
    for _ in range(count - low):
        _, index = heapq.heappop(queue)
        parts[index] += 1
        if parts[index] < MAX_COMPARTMENTS:
            heapq.heappush(queue, (-widths[index] / parts[index], index))
    return parts


def lateral_offsets(width: float, parts: int) -> np.ndarray:
    """Offsets `[parts]` (m) of parallel strips across `width`.

    Up to four are the middle lines of equal strips. More keep within the middle lines of four: a
    strip at the very edge slips off its muscle's wrap, and then pulls in another direction.
    """
    outermost = width * min(0.5 - 0.5 / parts, 0.375)
    return np.linspace(-outermost, outermost, parts)


def divide(
    spec: mujoco.MjSpec, num_actuators: int, fans: Mapping[str, Fan], drop: Sequence[str] = ()
) -> mujoco.MjSpec:
    """Leave out the muscles `drop` and divide the others, until there are `num_actuators`.

    `spec` is edited in place and returned; `divide_into` tells how the compartments are made.

    Raises:
      UserError: an impossible `num_actuators`, a `drop` that is no muscle of the model, or a
        muscle without an entry in `fans`.
    """
    drop_muscles(spec, drop)
    names = [muscle.name for muscle in spec.actuators]
    missing = [name for name in names if name not in fans]
    if missing:
        raise UserError(f"no compartment width for {missing[0]}; add it to the body's fan table")
    parts = allocate([fans[name].width for name in names], num_actuators)
    return divide_into(spec, dict(zip(names, parts, strict=True)), fans)


def divide_into(
    spec: mujoco.MjSpec, parts: Mapping[str, int], fans: Mapping[str, Fan]
) -> mujoco.MjSpec:
    """Divide each muscle of `spec`, in place, into its number of `parts`.

    Compartments of muscle `m` are named `m#1`, `m#2`, ...; an undivided muscle keeps its name.
    Every `lengthrange` is shifted so that at the neutral pose the compartment's normalised length
    is its parent's.

    Raises:
      UserError: a muscle that no path through sites moves cannot be divided, or the model has
        something that compartments would lose (`audit.check`).
    """
    model = spec.copy().compile()
    audit.check(model)
    data = neutral_data(model)
    tendons = {tendon.name: tendon for tendon in spec.tendons}
    children: dict[str, str] = {}
    parent_length = {}
    for muscle in list(spec.actuators):
        count = parts[muscle.name]
        if count == 1:
            continue
        tendon = tendons.get(muscle.target)
        if tendon is None or any(w.type == mujoco.mjtWrap.mjWRAP_JOINT for w in tendon.path):
            raise UserError(f"cannot divide {muscle.name}: its path goes through no sites")
        fan = fans[muscle.name]
        parent_length[muscle.name] = data.ten_length[model.tendon(muscle.target).id]
        for index, offset in enumerate(lateral_offsets(fan.width, count), start=1):
            name = f"{muscle.name}#{index}"
            shift = offset * np.asarray(fan.direction)
            _add_shifted_tendon(spec, tendon, name, shift, model, data)
            _add_actuator(spec, muscle, name, share=1.0 / count)
            children[name] = muscle.name
        spec.delete(muscle)
        spec.delete(tendon)
    shift_length_ranges(spec, children, parent_length)
    return spec


def neutral_data(model: mujoco.MjModel) -> mujoco.MjData:
    """Kinematics and tendon lengths of the reference pose, its joint couplings satisfied."""
    data = mujoco.MjData(model)
    data.qpos[:] = satisfy_couplings(model, model.qpos0)
    forward_paths(model, data)
    return data


def forward_paths(model: mujoco.MjModel, data: mujoco.MjData) -> None:
    """Bring body poses, tendon lengths and moment arms up to date with `data.qpos`."""
    mujoco.mj_kinematics(model, data)
    mujoco.mj_comPos(model, data)
    mujoco.mj_tendon(model, data)


def satisfy_couplings(model: mujoco.MjModel, qpos: np.ndarray) -> np.ndarray:
    """`qpos [nq]` with every coupled joint set from its driver; chains are followed."""
    qpos = np.array(qpos, dtype=float)
    couplings = [
        index
        for index in range(model.neq)
        if model.eq_type[index] == mujoco.mjtEq.mjEQ_JOINT and model.eq_active0[index]
    ]
    for _ in range(len(couplings)):
        before = qpos.copy()
        for index in couplings:
            adr = model.jnt_qposadr[model.eq_obj1id[index]]
            x = 0.0
            if model.eq_obj2id[index] >= 0:
                driver = model.jnt_qposadr[model.eq_obj2id[index]]
                x = qpos[driver] - model.qpos0[driver]
            qpos[adr] = model.qpos0[adr] + np.polyval(model.eq_data[index, 4::-1], x)
        if np.array_equal(before, qpos):
            break
    return qpos


def drop_muscles(spec: mujoco.MjSpec, drop: Sequence[str]) -> None:
    """Delete the muscles named, with the tendons that no other muscle pulls on.

    Raises:
      UserError: a name that is no muscle of the model.
    """
    muscles = {muscle.name: muscle for muscle in spec.actuators}
    for name in drop:
        if name not in muscles:
            raise unknown_name("muscle in [actuators] drop", name, muscles)
        target = muscles.pop(name).target
        spec.delete(spec.actuator(name))
        if target not in {muscle.target for muscle in muscles.values()}:
            for tendon in [tendon for tendon in spec.tendons if tendon.name == target]:
                spec.delete(tendon)


def copy_tendon(
    spec: mujoco.MjSpec, parent: Any, name: str, place: Callable[[int, Any], Any | None]
) -> None:
    """Add `parent`'s path as tendon `name`.

    `place(number, site)` returns the site to go through instead of path point `number`, or None to
    leave the point out; wraps stay as they are.
    """
    child = spec.add_tendon(name=name)
    for field in _COPIED_TENDON_FIELDS:
        setattr(child, field, getattr(parent, field))
    for number, wrap in enumerate(parent.path):
        if wrap.type == mujoco.mjtWrap.mjWRAP_PULLEY:
            child.wrap_pulley(wrap.divisor)
        elif wrap.type == mujoco.mjtWrap.mjWRAP_SITE:
            site = place(number, wrap.target)
            if site is not None:
                child.wrap_site(site.name)
        else:
            side = wrap.sidesite.name if wrap.sidesite else ""
            child.wrap_geom(wrap.target.name, side)


def _add_shifted_tendon(
    spec: mujoco.MjSpec,
    parent: Any,
    name: str,
    shift: np.ndarray,
    model: mujoco.MjModel,
    data: mujoco.MjData,
) -> None:
    """Add `parent`'s path, all of its sites moved by `shift [3]` (m, world frame)."""

    def place(number: int, site: Any) -> Any:
        return _add_site(site, f"{name}_{number}", shift, model, data) if np.any(shift) else site

    copy_tendon(spec, parent, f"{name}_tendon", place)


def _add_site(
    parent: Any, name: str, shift: np.ndarray, model: mujoco.MjModel, data: mujoco.MjData
) -> Any:
    rotation = data.xmat[model.body(parent.parent.name).id].reshape(3, 3)
    return parent.parent.add_site(
        name=name,
        pos=parent.pos + rotation.T @ shift,
        size=parent.size,
        group=parent.group,
        rgba=parent.rgba,
    )


def _add_actuator(spec: mujoco.MjSpec, parent: Any, name: str, share: float) -> None:
    child = spec.add_actuator(name=name)
    for field in _COPIED_ACTUATOR_FIELDS:
        setattr(child, field, getattr(parent, field))
    child.target = f"{name}_tendon"
    child.lengthrange = parent.lengthrange
    child.forcerange = share * np.asarray(parent.forcerange)
    for parameters in (child.gainprm, child.biasprm):
        parameters[2] *= share  # peak force of MuJoCo's muscle


def shift_length_ranges(
    spec: mujoco.MjSpec, children: Mapping[str, str], parent_length: Mapping[str, float]
) -> None:
    """Give each of the muscles `children` its parent's normalised length at the neutral pose.

    `parent_length` (m) is the parents' path length there, `children` maps names to parents' names.
    """
    model = spec.copy().compile()
    data = neutral_data(model)
    for muscle in spec.actuators:
        if muscle.name in children:
            length = data.ten_length[model.tendon(muscle.target).id]
            shift = length - parent_length[children[muscle.name]]
            muscle.lengthrange = np.asarray(muscle.lengthrange) + shift
