"""Fits polynomial muscle paths to C MuJoCo's tendon lengths and moment arms.

Poses are drawn over the fitting range of the independent joints with all couplings satisfied.
Lengths and moment arms are fitted together by least squares, and a muscle's degree is raised until
both hold their tolerance on poses that the fit never saw.
"""

import dataclasses
import math
from collections.abc import Sequence

import mujoco
import numpy as np

from mjx_qflex.errors import UserError
from mjx_qflex.lookup import unknown_name
from mjx_qflex.physics.paths import (
    PathGroup,
    exponents,
    length_and_arm_coefficients,
    monomial_derivatives,
)
from mjx_qflex.physics.tree import Tree, source_positions


@dataclasses.dataclass(frozen=True)
class PathTolerance:
    """What a compiled path must hold on unseen poses of its range.

    A muscle's moment arm about a joint may be wrong by `moment_arm` (RMS) relative to its own RMS
    moment arm there, or to an equal share of the joint's total torque if that is more: the torque
    of random activations then stays within about `moment_arm` as well.
    """

    length: float = 0.4e-3  # m, RMS; so that any unseen poses keep 0.5 mm
    moment_arm: float = 0.045  # relative
    max_degree: int = 8
    max_terms: int = 800
    num_poses: int = 6000
    num_test_poses: int = 2000
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class PathSamples:
    """Lengths and moment arms of the muscles at S poses in C MuJoCo."""

    q: np.ndarray  # [S, R] independent scalar joints
    length: np.ndarray  # [S, A] m
    pair_muscle: np.ndarray  # [P] the (muscle, joint) pairs with a moment arm
    pair_joint: np.ndarray  # [P]
    arm: np.ndarray  # [S, P] dL/dq, m/rad or 1


@dataclasses.dataclass(frozen=True)
class PathFit:
    """Compiled paths with each muscle's errors on unseen poses."""

    groups: tuple[PathGroup, ...]
    length_rms: np.ndarray  # [A] m
    arm_excess: np.ndarray  # [A] worst moment-arm error over its tolerance; > 1 fails
    failed: tuple[int, ...]  # muscles that meet no tolerance at any degree

    def refuse_failures(self, names: Sequence[str], tolerance: PathTolerance) -> None:
        """Raises UserError that names the muscle which is furthest from its tolerance, if any is.

        `names [A]` are those of the actuators.
        """
        if not self.failed:
            return
        missed = np.maximum(self.length_rms / tolerance.length, self.arm_excess)[list(self.failed)]
        worst = self.failed[int(np.argmax(missed))]
        others = len(self.failed) - 1
        raise UserError(
            f"no polynomial follows the path of {names[worst]}"
            + (f" ({others} more like it)" if others else "")
            + f": length off by {1e3 * self.length_rms[worst]:.2g} mm of "
            f"{1e3 * tolerance.length:.2g} allowed, moment arm by {self.arm_excess[worst]:.2g} "
            "times what is allowed; list such muscles in [paths] exact, narrow [ranges], or say "
            "exact = true"
        )


def _muscle_arms(
    model: mujoco.MjModel, data: mujoco.MjData, tree: Tree, slope: np.ndarray
) -> np.ndarray:
    """Returns moment arms `[A, R]` about the independent scalar joints at `data`'s pose."""
    dense = np.zeros((model.nu, model.nv))
    mujoco.mju_sparse2dense(
        dense, data.actuator_moment, data.moment_rownnz, data.moment_rowadr, data.moment_colind
    )
    scalar = 6 * tree.num_free
    joints = dense[:, tree.source_qvel_address[scalar:]]
    return (joints * slope) @ tree.reduce[scalar:, scalar:]


def sample(model: mujoco.MjModel, tree: Tree, q: np.ndarray) -> PathSamples:
    """Evaluates C MuJoCo's actuators at the poses `q [S, R]` (free joints at the reference pose).

    Lengths and moment arms are the actuators' own, whatever they pull on, gear included.
    """
    data = mujoco.MjData(model)
    positions, slopes = source_positions(tree, q)
    addresses = tree.source_qpos_address[7 * tree.num_free :]
    length = np.empty((len(q), model.nu))
    arms = np.empty((len(q), model.nu, q.shape[1]), np.float32)
    for s in range(len(q)):
        data.qpos[addresses] = positions[s]
        mujoco.mj_kinematics(model, data)
        mujoco.mj_comPos(model, data)
        mujoco.mj_tendon(model, data)
        mujoco.mj_transmission(model, data)
        length[s] = data.actuator_length
        arms[s] = _muscle_arms(model, data, tree, slopes[s])
    pair_muscle, pair_joint = np.nonzero(np.abs(arms).max(axis=0) > 1e-6)
    return PathSamples(q, length, pair_muscle, pair_joint, arms[:, pair_muscle, pair_joint])


def fit(
    train: PathSamples,
    test: PathSamples,
    ranges: np.ndarray,
    peak_force: np.ndarray,
    tolerance: PathTolerance,
    muscles: np.ndarray,
) -> PathFit:
    """Fits `muscles`; `ranges [R, 2]` bounds the poses, `peak_force [A]` weighs torques."""
    num = train.length.shape[1]
    pairs = {
        (int(muscle), int(joint))
        for samples in (train, test)
        for muscle, joint in zip(samples.pair_muscle, samples.pair_joint, strict=True)
    }
    spanned: dict[int, list[int]] = {muscle: [] for muscle in range(num)}
    for muscle, joint in sorted(pairs):
        spanned[muscle].append(joint)
    allowed = _allowed_arm_error(test, peak_force, ranges.shape[0], tolerance.moment_arm)

    by_joints: dict[tuple[int, ...], list[int]] = {}
    for muscle in muscles:
        by_joints.setdefault(tuple(spanned[muscle]), []).append(muscle)
    groups, failed = [], []
    length_rms, arm_excess = np.zeros(num), np.zeros(num)
    for joints, members in sorted(by_joints.items()):
        members = np.array(members)
        # Muscles that share their joints share one degree, the highest that any of them needs.
        for degree in _degrees(len(joints), tolerance):
            group = _fit_group(train, members, np.array(joints, int), ranges, degree)
            rms, excess = _errors(test, group, allowed)
            good = (rms <= tolerance.length) & (excess <= 1)
            if good.all():
                break
        groups.append(group)
        length_rms[members], arm_excess[members] = rms, excess
        failed += members[np.logical_not(good)].tolist()
    return PathFit(tuple(groups), length_rms, arm_excess, tuple(sorted(failed)))


def _degrees(num_joints: int, tolerance: PathTolerance) -> list[int]:
    if num_joints == 0:
        return [0]
    return [
        degree
        for degree in range(2, tolerance.max_degree + 1)
        if degree == 2 or _num_terms(num_joints, degree) <= tolerance.max_terms
    ]


def _num_terms(num_joints: int, degree: int) -> int:
    return math.comb(num_joints + degree, degree)


def _monomials(x: np.ndarray, degree: int) -> np.ndarray:
    """All monomials `[T, S]` of `x [k, S]` in float64, in the order of `paths.exponents`."""
    powers = exponents(len(x), degree)
    result = np.ones((len(powers), x.shape[1]))
    for variable, power in zip(x, powers.T, strict=True):
        result *= (variable ** np.arange(degree + 1)[:, None])[power]
    return result


def _fit_group(
    samples: PathSamples, muscles: np.ndarray, joints: np.ndarray, ranges: np.ndarray, degree: int
) -> PathGroup:
    low, high = ranges[joints].T
    center, half = 0.5 * (low + high), 0.5 * (high - low)
    x = (samples.q[:, joints] - center).T / half[:, None]
    basis = _monomials(x, degree)
    rows, targets = [basis.T], [samples.length[:, muscles]]
    for j, derivative in enumerate(monomial_derivatives(len(joints), degree)):
        rows.append((derivative @ basis).T)
        targets.append(half[j] * _arms(samples, muscles, joints[j]))
    a, b = np.concatenate(rows), np.concatenate(targets)
    gram = a.T @ a
    scale = 1 / np.sqrt(np.diag(gram))
    solution = np.linalg.lstsq(
        gram * scale[:, None] * scale, scale[:, None] * (a.T @ b), rcond=1e-13
    )
    coefficients = (scale[:, None] * solution[0]).T
    return PathGroup(muscles, joints, center, half, degree, coefficients)


def _arms(samples: PathSamples, muscles: np.ndarray, joint: int) -> np.ndarray:
    """Moment arms `[S, M]` of the muscles about one joint, 0 where there is none."""
    result = np.zeros((len(samples.q), len(muscles)))
    for column, muscle in enumerate(muscles):
        place = np.flatnonzero((samples.pair_muscle == muscle) & (samples.pair_joint == joint))
        if len(place):
            result[:, column] = samples.arm[:, place[0]]
    return result


def _allowed_arm_error(
    samples: PathSamples, peak_force: np.ndarray, num_joints: int, relative: float
) -> np.ndarray:
    """Returns the RMS moment-arm error `[A, R]` that each muscle may make about each joint."""
    size = np.zeros((len(peak_force), num_joints))
    size[samples.pair_muscle, samples.pair_joint] = np.sqrt(np.mean(samples.arm**2, axis=0))
    torque = np.sqrt(np.sum((peak_force[:, None] * size) ** 2, axis=0))
    crowd = np.maximum(1, np.sum(size > 0, axis=0))
    share = torque / np.sqrt(crowd) / np.maximum(peak_force[:, None], 1e-9)
    return relative * np.maximum(size, share)


def _errors(
    samples: PathSamples, group: PathGroup, allowed: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Length RMS `[M]` in m and worst moment-arm RMS over what is allowed `[M]`."""
    x = (samples.q[:, group.joints] - group.center).T / group.half_range[:, None]
    basis = _monomials(x, group.degree)
    length, *arms = (factors @ basis for factors in length_and_arm_coefficients(group))
    rms = np.sqrt(np.mean((length.T - samples.length[:, group.muscles]) ** 2, axis=0))
    excess = np.zeros(len(group.muscles))
    for j, arm in enumerate(arms):
        error = arm.T - _arms(samples, group.muscles, group.joints[j])
        limit = np.maximum(allowed[group.muscles, group.joints[j]], 1e-12)
        excess = np.maximum(excess, np.sqrt(np.mean(error**2, axis=0)) / limit)
    return rms, excess


def joint_ranges(tree: Tree, narrowed: dict[str, tuple[float, float]]) -> np.ndarray:
    """Returns fitting ranges `[R, 2]` of the independent scalar joints: limits, or the narrower.

    Raises:
      UserError: `narrowed` names a joint that is none of these.
    """
    first = 6 * tree.num_free
    ranges = np.tile([-np.pi, np.pi], (tree.nv - first, 1))
    ranges[tree.limit_dof - first] = tree.limit_range
    names = list(tree.joint_names[tree.num_free :])
    for name, limits in narrowed.items():
        if name not in names:
            raise unknown_name("independent joint of [ranges]", name, names)
        ranges[names.index(name)] = limits
    return ranges


def random_poses(ranges: np.ndarray, num: int, seed: int) -> np.ndarray:
    """Draws `num` poses `[num, R]` uniformly over `ranges [R, 2]`."""
    return np.random.default_rng(seed).uniform(ranges[:, 0], ranges[:, 1], (num, len(ranges)))
