"""What a recipe adds to its source or replaces in it: own bodies and floor, servos, capsules."""

import math
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import mujoco
import numpy as np

from mjx_qflex.errors import UserError
from mjx_qflex.lookup import check_keys, unknown_name
from mjx_qflex.porting import sources, values

_JOINT_TRANSMISSIONS = (mujoco.mjtTrn.mjTRN_JOINT, mujoco.mjtTrn.mjTRN_JOINTINPARENT)
FIRST_HIDDEN_GROUP = 3  # of geoms, in MuJoCo's default view


class Servo(NamedTuple):
    """A position servo on a joint: force = kp (ctrl - q) - kv qdot, clipped to +-limit."""

    kp: float  # N m / rad
    kv: float  # N m s / rad
    limit: float  # N m


_SERVO_VALUES = {"kp": values.not_negative, "kv": values.not_negative, "limit": values.positive}


def read_servos(path: object, table: Mapping[str, Mapping]) -> dict[str, Servo]:
    """Reads a recipe's `[actuators.position]`, by pattern of joint names.

    Raises:
      UserError: an entry with other keys than `kp`, `kv` and `limit`, without one of them, or with
        values that they cannot have.
    """
    servos = {}
    for pattern, content in table.items():
        where = f'[actuators.position] "{pattern}" in {path}'
        check_keys(where, content, Servo._fields, needed=Servo._fields)
        values.require(where, content, _SERVO_VALUES)
        servos[pattern] = Servo(**{key: float(content[key]) for key in Servo._fields})
    return servos


def delete_actuators(spec: mujoco.MjSpec) -> None:
    """Deletes all actuators; what they pulled on stays."""
    for actuator in list(spec.actuators):
        spec.delete(actuator)


def delete_keyframes(spec: mujoco.MjSpec) -> None:
    """Deletes all keyframes: a port starts elsewhere, and with other joints they do not fit."""
    for key in list(spec.keys):
        spec.delete(key)


def lock(spec: mujoco.MjSpec, names: Iterable[str]) -> None:
    """Holds the joints `names` at the reference pose: they leave, and what reads them.

    A joint that one of them drives is held where the coupling then has it.

    Raises:
      UserError: no such joint, or an actuator or a tendon pulls on it.
    """
    for name in names:
        joint = spec.joint(name)
        if joint is None:
            known = [joint.name for joint in spec.joints if joint.name]
            raise unknown_name("joint of [joints] lock", name, known)
        for actuator in spec.actuators:
            if actuator.target == name and actuator.trntype in _JOINT_TRANSMISSIONS:
                raise UserError(
                    f"joint {name!r} cannot be locked: actuator {actuator.name!r} drives it; name "
                    "that in [actuators] drop"
                )
        for tendon in spec.tendons:
            for wrap in tendon.path:
                if wrap.type == mujoco.mjtWrap.mjWRAP_JOINT and wrap.target.name == name:
                    raise UserError(
                        f"joint {name!r} cannot be locked: tendon {tendon.name!r} goes over it"
                    )
        _forget_couplings(spec, name)
        for sensor in list(spec.sensors):
            if sensor.objtype == mujoco.mjtObj.mjOBJ_JOINT and sensor.objname == name:
                spec.delete(sensor)
        spec.delete(joint)


def _forget_couplings(spec: mujoco.MjSpec, joint: str) -> None:
    for equality in list(spec.equalities):
        if equality.type != mujoco.mjtEq.mjEQ_JOINT:
            continue
        if equality.name1 == joint:
            spec.delete(equality)
        elif equality.name2 == joint:
            equality.name2 = ""


def add_servos(spec: mujoco.MjSpec, servos: Mapping[str, Servo]) -> None:
    """Adds servos on the joints whose names match the patterns `servos`.

    A servo has its joint's name, and the joint's range as the range of its target; servos come in
    the order of the joints.

    Raises:
      UserError: a pattern without a joint, a joint that two patterns match, or one without limits.
    """
    unused = set(servos)
    for joint in spec.joints:
        matching = [pattern for pattern in servos if fnmatchcase(joint.name, pattern)]
        if len(matching) > 1:
            raise UserError(f"joint {joint.name!r} matches two servos: {' and '.join(matching)}")
        if not matching:
            continue
        if not joint.range[0] < joint.range[1]:
            raise UserError(f"joint {joint.name!r} has no limits; a servo needs them")
        servo = servos[matching[0]]
        actuator = spec.add_actuator(name=joint.name, target=joint.name)
        actuator.trntype = mujoco.mjtTrn.mjTRN_JOINT
        actuator.set_to_position(kp=servo.kp, kv=servo.kv)
        actuator.forcelimited = actuator.ctrllimited = mujoco.mjtLimited.mjLIMITED_TRUE
        actuator.forcerange = (-servo.limit, servo.limit)
        actuator.ctrlrange = joint.range * _unit(spec, joint)
        unused.discard(matching[0])
    if unused:
        raise unknown_name("joint of a servo", min(unused), [joint.name for joint in spec.joints])


def set_ranges(spec: mujoco.MjSpec, ranges: Mapping[str, tuple[float, float]]) -> None:
    """Gives the joints whose names match a pattern of `ranges` its limits (rad or m).

    Raises:
      UserError: a pattern without a joint.
    """
    names = [joint.name for joint in spec.joints]
    for pattern, limits in ranges.items():
        if not any(fnmatchcase(name, pattern) for name in names):
            raise unknown_name("joint of [joints.range]", pattern, names)
        for joint in spec.joints:
            if fnmatchcase(joint.name, pattern):
                joint.range = np.array(limits) / _unit(spec, joint)


def _unit(spec: mujoco.MjSpec, joint: Any) -> float:
    """What one unit of a joint's range is in rad or m: sources may count in degrees."""
    in_degrees = spec.compiler.degree and joint.type == mujoco.mjtJoint.mjJNT_HINGE
    return math.pi / 180 if in_degrees else 1.0


def name_parts(spec: mujoco.MjSpec) -> None:
    """Gives names to what a recipe or a task may need to name, where the source gives none.

    A free joint gets its body's name; spheres and capsules of body `b` become `b/0`, `b/1`, ...
    Parts of bodies without a name stay without one.
    """
    round_types = (mujoco.mjtGeom.mjGEOM_SPHERE, mujoco.mjtGeom.mjGEOM_CAPSULE)
    for body in spec.bodies:
        for joint in body.joints:
            if joint.type == mujoco.mjtJoint.mjJNT_FREE and not joint.name:
                joint.name = body.name
        for i, geom in enumerate(g for g in body.geoms if g.type in round_types):
            if body.name and not geom.name:
                geom.name = f"{body.name}/{i}"


def attach(spec: mujoco.MjSpec, files: Iterable[Path]) -> None:
    """Attaches the worldbody of each MJCF file to the environment of `spec`, names as they are.

    Raises:
      UserError: a file that is not there or that MuJoCo does not read.
    """
    for path in files:
        if not path.is_file():
            raise UserError(f"{path} is not there; the recipe attaches it")
        child = sources.read(path)
        delete_keyframes(child)
        spec.attach(child, frame=spec.worldbody.add_frame(), prefix="")


def fit_capsules(spec: mujoco.MjSpec, names: Iterable[str]) -> None:
    """Makes capsules of those of the geoms `names` that are meshes; MuJoCo fits each to its mesh.

    Raises:
      UserError: the mass of a body would change, since the source does not state its inertia.
    """
    for name in names:
        geom = spec.geom(name)
        if geom is None or geom.type != mujoco.mjtGeom.mjGEOM_MESH:
            continue
        if not geom.parent.explicitinertial:
            raise UserError(f"mesh {name!r} gives its body the inertia, so it cannot be a capsule")
        geom.type = mujoco.mjtGeom.mjGEOM_CAPSULE


def show_hidden(spec: mujoco.MjSpec) -> None:
    """Shows all geoms of moving bodies where only groups that renderers hide have any.

    That is so in copies of a model without its meshes: what is left serves collisions.
    """
    geoms = [geom for geom in spec.geoms if geom.parent != spec.worldbody]
    if all(geom.group >= FIRST_HIDDEN_GROUP for geom in geoms):
        for geom in geoms:
            geom.group = 0
