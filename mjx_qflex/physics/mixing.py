"""How hard, how slippery and how early two geoms touch, by MuJoCo's rules.

A `<pair>` says it itself; of other geoms the one with the higher priority counts, else a mix; and
`<flag override="enable"/>` sets it for all contacts.
"""

from typing import NamedTuple

import mujoco
import numpy as np

from mjx_qflex.errors import UserError

LEAST_FRICTION = 0.01  # rows get stiff as its inverse square, too stiff for single precision
_OVERRIDE = int(mujoco.mjtEnableBit.mjENBL_OVERRIDE)


class Touch(NamedTuple):
    """Parameters of one contact."""

    friction: float  # along both tangents
    margin: float  # m
    solref: np.ndarray  # [2]
    solimp: np.ndarray  # [5]


class _Mixed(NamedTuple):
    """The same before it is known that a port can have it."""

    condim: int
    friction: np.ndarray  # [2]
    margin: float
    gap: float
    solref: np.ndarray
    solimp: np.ndarray


def touch(model: mujoco.MjModel, a: int, b: int) -> Touch:
    """Returns how the geoms `a` and `b` touch.

    Raises:
      UserError: they do so in a way that a ported contact cannot.
    """
    pair = _explicit_pair(model, a, b)
    mixed = _mix(model, a, b) if pair is None else _of_pair(model, pair)
    names = f"geoms {model.geom(a).name!r} and {model.geom(b).name!r}"
    what = _not_covered(model, a, b, pair, mixed)
    if what:
        raise UserError(f"{names} meet with {what}, which a ported contact cannot have")
    friction, margin, solref, solimp = mixed.friction[0], mixed.margin, mixed.solref, mixed.solimp
    if model.opt.enableflags & _OVERRIDE:
        option = model.opt
        friction, margin = option.o_friction[0], option.o_margin
        solref, solimp = option.o_solref.copy(), option.o_solimp.copy()
    return Touch(friction, margin, solref, solimp)


def _explicit_pair(model: mujoco.MjModel, a: int, b: int) -> int | None:
    for pair in range(model.npair):
        if {int(model.pair_geom1[pair]), int(model.pair_geom2[pair])} == {a, b}:
            return pair
    return None


def _of_pair(model: mujoco.MjModel, pair: int) -> _Mixed:
    return _Mixed(
        int(model.pair_dim[pair]),
        model.pair_friction[pair, :2],
        model.pair_margin[pair],
        model.pair_gap[pair],
        model.pair_solref[pair],
        model.pair_solimp[pair],
    )


def _mix(model: mujoco.MjModel, a: int, b: int) -> _Mixed:
    margin, gap = (values[a] + values[b] for values in (model.geom_margin, model.geom_gap))
    higher = model.geom_priority[a] - model.geom_priority[b]
    if higher:
        g = a if higher > 0 else b
        condim, friction = model.geom_condim[g], model.geom_friction[g, 0]
        solref, solimp = model.geom_solref[g], model.geom_solimp[g]
    else:
        weight_a, weight_b = model.geom_solmix[a], model.geom_solmix[b]
        share = weight_a / (weight_a + weight_b) if weight_a + weight_b > 0 else 0.5
        refs = model.geom_solref[[a, b]]
        # Direct stiffness and damping, which are negative, do not mix: the stronger counts.
        positive = (refs[:, 0] > 0).all()
        solref = np.array([share, 1 - share]) @ refs if positive else refs.min(axis=0)
        solimp = share * model.geom_solimp[a] + (1 - share) * model.geom_solimp[b]
        friction = max(model.geom_friction[a, 0], model.geom_friction[b, 0])
        condim = model.geom_condim[[a, b]].max()
    return _Mixed(int(condim), np.array([friction, friction]), margin, gap, solref, solimp)


def _not_covered(
    model: mujoco.MjModel, a: int, b: int, pair: int | None, mixed: _Mixed
) -> str | None:
    """What of a contact a port does not cover, None if it covers all."""
    friction = mixed.friction
    if model.opt.enableflags & _OVERRIDE:
        friction = model.opt.o_friction[:2]
    adhesion = model.geom_adhesion[[a, b]].any() if pair is None else model.pair_adhesion[pair]
    checks = {
        f"condim {mixed.condim} (3 it must be)": mixed.condim != 3,
        "a gap": mixed.gap != 0,
        f"friction of {friction[0]:g} (from {LEAST_FRICTION:g} on)": friction[0] < LEAST_FRICTION,
        "different friction along two directions": friction[0] != friction[1],
        "a surface velocity": model.geom_surfacevel[[a, b]].any(),
        "adhesion": adhesion != 0,
        "solreffriction": pair is not None and model.pair_solreffriction[pair].any(),
        "an elliptic friction cone": model.opt.cone != mujoco.mjtCone.mjCONE_PYRAMIDAL,
        "the noslip solver": model.opt.noslip_iterations > 0,
    }
    return next((what for what, present in checks.items() if present), None)
