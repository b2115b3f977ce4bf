"""What a port's and a recipe's changes to a model do: couplings eliminated, paths repaired."""

import dataclasses
from typing import Any

import mujoco
import numpy as np

from mjx_qflex.physics.body import PortedBody
from mjx_qflex.physics.tree import Tree, source_positions
from mjx_qflex.porting import fitting, recipe


def coupling_change(body: PortedBody, num_poses: int = 60, seed: int = 0) -> float:
    """Largest displacement (m) of any body if all couplings were deleted instead of eliminated."""
    ranges = fitting.joint_ranges(body.tree, {})
    q = np.random.default_rng(seed).uniform(ranges[:, 0], ranges[:, 1], (num_poses, len(ranges)))
    positions, _ = source_positions(body.tree, q)
    place = body.tree.source_qpos_address[7 * body.tree.num_free :]
    dependent = np.setdiff1d(np.arange(len(place)), body.tree.coupling.independent)
    data, worst = mujoco.MjData(body.source), 0.0
    for position in positions:
        with_coupling = position.copy()
        position[dependent] = body.tree.joint_home[dependent]
        bodies = []
        for value in (with_coupling, position):
            data.qpos[place] = value
            mujoco.mj_kinematics(body.source, data)
            bodies.append(data.xpos.copy())
        worst = max(worst, float(np.linalg.norm(bodies[0] - bodies[1], axis=1).max()))
    return worst


def repair_changes(body: PortedBody, num_poses: int = 500, seed: int = 0) -> list[dict[str, Any]]:
    """What each repair of the recipe changes over the fitted range, against the untouched model.

    Lengths are compared from the neutral pose on, where a repair keeps the normalised length.
    """
    instructions, tree = body.recipe, body.tree
    if not instructions.repairs:
        return []
    untouched = recipe.source_model(dataclasses.replace(instructions, repairs={}), body.nu)
    ranges = fitting.joint_ranges(tree, instructions.ranges)
    neutral = tree.joint_home[tree.coupling.independent]
    q = np.concatenate([neutral[None], fitting.random_poses(ranges, num_poses, seed)])
    before, after = (fitting.sample(model, tree, q) for model in (untouched, body.source))
    rows = []
    for name, repair in instructions.repairs.items():
        parts = [i for i, n in enumerate(body.actuator_names) if n.split("#")[0] == name]
        change = (after.length - before.length)[:, parts]
        change = 1e3 * (change[1:] - change[0])
        rows.append(
            {
                "muscle": name,
                "left out": list(repair.leave_out),
                "reason": repair.reason,
                "length change, RMS (mm)": float(np.sqrt(np.mean(change**2))),
                "length change, largest (mm)": float(np.abs(change).max()),
                "moment arms, RMS (mm)": _arms_before_and_after(tree, before, after, parts),
            }
        )
    return rows


def _arms_before_and_after(
    tree: Tree, before: fitting.PathSamples, after: fitting.PathSamples, parts: list[int]
) -> dict[str, list[float]]:
    """RMS moment arms (mm) about each joint, of the compartment with the largest: before, after."""
    names, rows = tree.joint_names[tree.num_free :], {}
    for column, samples in enumerate((before, after)):
        for pair in np.flatnonzero(np.isin(samples.pair_muscle, parts)):
            row = rows.setdefault(names[samples.pair_joint[pair]], [0.0, 0.0])
            row[column] = max(row[column], 1e3 * float(np.sqrt(np.mean(samples.arm[:, pair] ** 2))))
    return rows
