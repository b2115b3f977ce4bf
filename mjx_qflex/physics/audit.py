"""Refuses, by an element's name, what a model has and a ported body cannot have.

`fields` lists what is refused because it does not hold its default; the rest is here.
"""

import mujoco
import numpy as np

from mjx_qflex.errors import UserError
from mjx_qflex.physics import fields

TRIED_POSES = 1000  # of a tendon with limits
_OBJECTS = {"jnt": "joint", "dof": "joint"}  # by the prefix of a field, where they differ
_DISABLE, _TENDON = mujoco.mjtDisableBit, int(mujoco.mjtTrn.mjTRN_TENDON)
_BALL, _FREE = int(mujoco.mjtJoint.mjJNT_BALL), int(mujoco.mjtJoint.mjJNT_FREE)


def check(model: mujoco.MjModel) -> None:
    """Checks all that does not depend on which geoms a recipe lets touch.

    Raises:
      UserError: the model has something that a port would silently leave out, by its name.
    """
    _check_options(model)
    for field, rule in fields.DEFAULTS.items():
        _check_default(model, field, rule)
    if model.nflex:
        raise _refusal(_label(model, "flex", 0), "its own deformation")
    _check_joints(model)
    _check_equalities(model)
    _check_tendons(model)
    _check_groups(model)


def disabled(model: mujoco.MjModel, *bits: int) -> bool:
    """Whether the model's `<flag>` disables any of the features `bits`."""
    return any(model.opt.disableflags & int(bit) for bit in bits)


def limits_act(model: mujoco.MjModel) -> bool:
    """Whether joints and tendons are held within their limits."""
    return not disabled(model, _DISABLE.mjDSBL_LIMIT, _DISABLE.mjDSBL_CONSTRAINT)


def active_equalities(model: mujoco.MjModel) -> list[int]:
    """Returns the equality constraints that hold from the start."""
    if disabled(model, _DISABLE.mjDSBL_EQUALITY, _DISABLE.mjDSBL_CONSTRAINT):
        return []
    return np.flatnonzero(model.eq_active0).tolist()


def _refusal(who: str, what: str) -> UserError:
    return UserError(f"{who} has {what}, which a ported body cannot have; change the model")


def _label(model: mujoco.MjModel, kind: str, number: int | np.integer) -> str:
    name = mujoco.mj_id2name(model, getattr(mujoco.mjtObj, f"mjOBJ_{kind.upper()}"), int(number))
    return f"{kind} {name!r}" if name else f"{kind} number {number}, which has no name,"


def _any_of_each(values: np.ndarray) -> np.ndarray:
    """Whether any of each element's `values [n, ...]` is true, `[n]`."""
    return np.asarray(values.any(axis=tuple(range(1, values.ndim))))


def _check_default(model: mujoco.MjModel, field: str, rule: fields.Default) -> None:
    values = getattr(model, field)
    wrong = np.flatnonzero(_any_of_each(values != rule.value))
    if not len(wrong) or disabled(model, rule.unless):
        return
    prefix, number = field.split("_")[0], int(wrong[0])
    number = int(model.dof_jntid[number]) if prefix == "dof" else number
    raise _refusal(_label(model, _OBJECTS.get(prefix, prefix), number), rule.what)


def _check_options(model: mujoco.MjModel) -> None:
    for field, rule in fields.OPTION_DEFAULTS.items():
        if getattr(model.opt, field) != rule.value:
            raise _refusal("the model", f"{rule.what} (its option {field})")
    _check_flags(
        _DISABLE, model.opt.disableflags, fields.FLAGS_OBEYED + fields.FLAGS_WITHOUT_EFFECT
    )
    _check_flags(
        mujoco.mjtEnableBit,
        model.opt.enableflags,
        fields.ENABLED_OBEYED + fields.ENABLED_WITHOUT_EFFECT,
    )


def _check_flags(kind: type, flags: int, known: tuple[int, ...]) -> None:
    """Refuses bits of `flags`, of the enumeration `kind`, that are not `known`."""
    for name, bit in kind.__members__.items():
        prefix, _, flag = name.partition("_")
        if prefix in ("mjDSBL", "mjENBL") and flags & int(bit) and bit not in known:
            raise UserError(
                f"the model sets the flag {flag.lower()}, which a ported body cannot follow; "
                "leave it as MuJoCo has it by default"
            )


def _check_joints(model: mujoco.MjModel) -> None:
    if not model.njnt:
        raise UserError("the model has no joints; a body to port needs some that move")
    for joint in range(model.njnt):
        kind = model.jnt_type[joint]
        if kind == _BALL:
            raise UserError(
                f"{_label(model, 'joint', joint)} is one of the ball joints, which a ported body "
                "cannot have; make it three hinges"
            )
        if kind != _FREE:
            continue
        if model.body_parentid[model.jnt_bodyid[joint]]:
            raise UserError(f"{_label(model, 'joint', joint)} is free below the top level")
        springs = model.jnt_stiffness[joint], *model.jnt_stiffnesspoly[joint]
        if any(springs) and not disabled(model, _DISABLE.mjDSBL_SPRING):
            raise UserError(
                f"{_label(model, 'joint', joint)} is free and has a spring, which a ported body "
                'cannot have; give it stiffness="0" (a default may reach it)'
            )


def _check_equalities(model: mujoco.MjModel) -> None:
    for equality in active_equalities(model):
        kind = mujoco.mjtEq(int(model.eq_type[equality]))
        if kind != mujoco.mjtEq.mjEQ_JOINT:
            raise _refusal(
                _label(model, "equality", equality).replace("equality", "equality constraint"),
                f"the type {kind.name.removeprefix('mjEQ_').lower()}",
            )


def _check_tendons(model: mujoco.MjModel) -> None:
    if limits_act(model):
        for tendon in np.flatnonzero(model.tendon_limited):
            if not _never_reached(model, int(tendon)):
                raise _refusal(_label(model, "tendon", tendon), "limits of its length")
    pulling = np.flatnonzero(model.actuator_trntype == _TENDON)
    for part in ("armature", "damping", "dampingpoly"):
        for actuator in pulling[_any_of_each(getattr(model, f"actuator_{part}")[pulling] != 0)]:
            what = part.removesuffix("poly")
            raise _refusal(_label(model, "actuator", actuator), f"{what} on a tendon")
    pulled = model.actuator_trnid[pulling, 0]
    for tendon in pulled[model.tendon_actfrclimited[pulled].astype(bool)]:
        raise _refusal(
            _label(model, "tendon", tendon), "a range of actuator force (give the muscle its own)"
        )


def _never_reached(model: mujoco.MjModel, tendon: int) -> bool:
    """Whether a tendon stays well within its limits wherever its joints may be, or cannot move.

    Poses are drawn over the joints' limits, half of them at the very ends; the lengths found, and
    half of their spread on either side, must be within the tendon's limits. No length is negative.
    """
    start = model.ten_J_rowadr[tendon]
    dofs = model.ten_J_colind[start : start + model.ten_J_rownnz[tendon]]
    joints = np.unique(model.dof_jntid[dofs])
    if not len(joints):
        return True
    if not model.jnt_limited[joints].all():
        return False
    rng, data, lengths = np.random.default_rng(0), mujoco.MjData(model), []
    low, high = model.jnt_range[joints].T
    for pose in range(TRIED_POSES):
        along = rng.uniform(size=len(joints))
        along = np.round(along) if pose % 2 else along
        data.qpos[model.jnt_qposadr[joints]] = low + along * (high - low)
        mujoco.mj_kinematics(model, data)
        mujoco.mj_comPos(model, data)
        mujoco.mj_tendon(model, data)
        lengths.append(data.ten_length[tendon])
    shortest, longest = min(lengths), max(lengths)
    beyond = 0.5 * (longest - shortest) + model.tendon_margin[tendon]
    spatial = model.wrap_type[model.tendon_adr[tendon]] != mujoco.mjtWrap.mjWRAP_JOINT
    least, most = model.tendon_range[tendon]
    never_short = spatial and least + model.tendon_margin[tendon] <= 0
    return bool((never_short or least < shortest - beyond) and longest + beyond < most)


def _check_groups(model: mujoco.MjModel) -> None:
    for actuator, group in enumerate(model.actuator_group):
        if 0 <= group < 31 and model.opt.disableactuator >> int(group) & 1:
            raise UserError(
                f"{_label(model, 'actuator', actuator)} is in group {group}, which the option "
                "actuatorgroupdisable switches off; take the one or the other out of the model"
            )
