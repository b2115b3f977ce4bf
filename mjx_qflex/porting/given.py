"""A port's motion beside that of the file as given, under full excitations.

C MuJoCo simulates the source with its own soft couplings, limits and contacts. Two more models say
where a difference comes from: one with stiff couplings, and one which besides has the recipe's
contacts alone. All three start from the same states, on the floor where there is one.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from mjx_qflex.physics.body import PhysicsState, PortedBody
from mjx_qflex.porting import parity, recipe

STEPS, STARTS = 50, 8
GIVEN, STIFF, CUT = "the file as given", "with stiff couplings", "and the recipe's contacts alone"
TOLERANCE = 0.05  # of the distance moved
FORCE_TOLERANCE = 1e-4  # relative, of actuator forces at the same lengths and velocities


def compare(body: PortedBody, seed: int = 0) -> dict[str, dict[str, Any]]:
    """Returns how far the port is from each of the three models after `STEPS` steps.

    Of each: `relative`, the difference of all joints over the distance that they moved, and
    `joints`, the RMS difference and the RMS motion of each joint (rad or m; of a free joint, and of
    all of its coordinates together).
    """
    given = recipe.as_given(body.recipe, body.nu)
    stiff = given.__copy__()
    parity.stiffen_couplings(stiff)
    cut = stiff.__copy__()
    parity.keep_contacts(cut, body.recipe)
    rng = np.random.default_rng(seed)
    starts = [parity.on_the_floor(body, s) for s in parity.random_states(body, rng, STARTS)]
    controls = [full_control(body, rng) for _ in starts]
    advance = jax.jit(
        lambda state, ctrl: body.advance(state, ctrl, STEPS)[0].qpos,
        compiler_options=body.compiler_options,
    )
    ends = [
        body.source_qpos(advance(start, jnp.asarray(ctrl, jnp.float32)))
        for start, ctrl in zip(starts, controls, strict=True)
    ]
    models = {GIVEN: given, STIFF: stiff, CUT: cut}
    return {t: _against(body, model, starts, controls, ends) for t, model in models.items()}


def full_control(body: PortedBody, rng: np.random.Generator) -> np.ndarray:
    """Draws controls `[nu]`: excitations in [0, 1], or targets over the range of a servo."""
    if body.num_muscles:
        return rng.uniform(size=body.nu)
    low, high = body.servos.control_range.T
    bounded = np.isfinite(low) & np.isfinite(high)
    return rng.uniform(np.where(bounded, low, -1.0), np.where(bounded, high, 1.0))


def _against(
    body: PortedBody,
    model: mujoco.MjModel,
    starts: Sequence[PhysicsState],
    controls: Sequence[np.ndarray],
    ends: Sequence[np.ndarray],
) -> dict[str, Any]:
    data, wrong, moved = mujoco.MjData(model), [], []
    for start, ctrl, end in zip(starts, controls, ends, strict=True):
        parity.set_source_state(body, data, start)
        data.ctrl[:] = ctrl
        before = data.qpos.copy()
        for _ in range(STEPS):
            mujoco.mj_step(model, data)
        wrong.append(_difference(model, data.qpos, end))
        moved.append(_difference(model, before, data.qpos))
    wrong, moved = np.array(wrong), np.array(moved)
    return {
        "relative": parity.relative(wrong, moved),
        "joints": {
            model.joint(j).name: [
                float(np.sqrt(np.mean(np.sum(x[:, model.dof_jntid == j] ** 2, axis=1))))
                for x in (wrong, moved)
            ]
            for j in range(model.njnt)
        },
    }


def _difference(model: mujoco.MjModel, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """How the joints must move `[nv]` to get from one qpos to another."""
    result = np.zeros(model.nv)
    mujoco.mj_differentiatePos(model, result, 1.0, first, second)
    return result


def shortcomings(report: dict[str, Any], tolerance: float) -> list[str]:
    """Returns why a report (`report.measure`) is not within `tolerance`; nothing where it is."""
    found = []
    force = report["force, worst relative error"]
    if not force <= FORCE_TOLERANCE:
        found.append(f"actuator forces are off by {force:.1e} of {FORCE_TOLERANCE:.0e}")
    torque = (
        report["paths"]
        .get("over the range", {})
        .get("joint torque, relative RMS, worst joint", 0.0)
    )
    if not torque <= tolerance:
        found.append(f"muscle paths turn a joint with a torque that is {100 * torque:.2g}% off")
    motion = report["motion"]
    given, stiff, cut = (motion[title]["relative"] for title in (GIVEN, STIFF, CUT))
    if not given <= tolerance:
        joint, (wrong, moved) = worst_joints(motion[GIVEN], 1)[0]
        found.append(
            f"motion is {100 * given:.2g}% off {GIVEN} ({100 * stiff:.2g}% {STIFF}, "
            f"{100 * cut:.2g}% {CUT}); furthest is {joint!r}, by {wrong:.2g} of {moved:.2g}"
        )
    return found


def worst_joints(motion: dict[str, Any], num: int) -> list[tuple[str, list[float]]]:
    """The joints of one model in `compare` that are furthest from it."""
    return sorted(motion["joints"].items(), key=lambda item: -np.nan_to_num(item[1][0], nan=9e9))[
        :num
    ]
