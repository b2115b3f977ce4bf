"""Retargets recorded joint centres to a body: inverse kinematics, frame by frame.

Directions come from the recording, lengths from the body: each limb of the target points where the
recorded one points and is as long as the body's. Its way and height scale with the length of the
legs. The body's independent joints then follow by damped least squares within the joints' limits,
couplings satisfied, soles above the floor.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.interpolate import CubicSpline
from scipy.signal import butter, sosfiltfilt

from mjx_qflex.errors import UserError
from mjx_qflex.motions.anatomy import Anatomy
from mjx_qflex.motions.kinematics import Points, Skeleton
from mjx_qflex.motions.recordings import Recording
from mjx_qflex.physics.tree import HINGE, SLIDE

RATE = 100.0  # frames/s of what comes out
BLEND = 0.25  # of the period, before its end, in which it is led back to its start
FLOOR_WEIGHT = 40.0  # of a sole's depth below the floor, against 1 of a joint centre's distance
STAY = 0.03  # m/rad; holds what the recording does not tell near the frame before
HOME = 0.005  # m/rad; and lets it drift to the neutral pose
# m/rad; hips and shoulders do not tell how far the pelvis tilts and how far the spine bends against
# it, so a straight spine decides.
SPINE = 0.1
ITERATIONS = 60  # of the first frame; the others follow it closely
MIN_FRAMES = 10
MARGIN = 1e-3  # rad or m, within which a joint is at its limit
_LIMBS = (("hip", "knee"), ("knee", "ankle"), ("ankle", "toe"))
_ARMS = (("shoulder", "elbow"), ("elbow", "wrist"))
_SIDES = ("r", "l")


class Loss(NamedTuple):
    """How far the body stays from the recording."""

    rms: dict[str, float]  # m, by joint centre
    worst: dict[str, float]  # m
    at_limit: dict[str, float]  # share of frames, of each joint that is at a limit at all
    deepest: float  # m, of a sole below the floor
    closing: float  # m, by which the last frame was from the first one, worst joint centre
    scale: float  # metres of the body's way per unit of the recording's

    def lines(self) -> list[str]:
        """The loss in words."""
        total = np.sqrt(np.mean(np.square(list(self.rms.values()))))
        return [
            "joint centre   RMS    worst  (cm from the recording, scaled to the body's limbs)",
            *(f"{n:12} {100 * self.rms[n]:6.1f} {100 * self.worst[n]:8.1f}" for n in self.rms),
            f"{'all':12} {100 * total:6.1f} {100 * max(self.worst.values()):8.1f}",
            *_common_lines(self.at_limit, self.deepest, self.closing),
            f"scale of the way: {self.scale:.4g} m a unit",
        ]


class AngleLoss(NamedTuple):
    """How far the body stays from joint angles that were made for it."""

    rms: dict[str, tuple[float, str]]  # of each joint, with its unit
    at_limit: dict[str, float]  # as in `Loss`
    deepest: float  # m, as in `Loss`
    closing: float  # m, as in `Loss`

    def lines(self) -> list[str]:
        """The loss in words."""
        width = max(map(len, self.rms))
        return [
            f"{'joint':{width}}  RMS from the file",
            *(f"{name:{width}} {rms:6.2f} {unit}" for name, (rms, unit) in self.rms.items()),
            *_common_lines(self.at_limit, self.deepest, self.closing),
        ]


def _common_lines(at_limit: dict[str, float], deepest: float, closing: float) -> list[str]:
    limits = ", ".join(f"{name} {share:.0%}" for name, share in at_limit.items())
    return [
        f"at a limit in some frames: {limits or 'no joint'}",
        f"deepest sole: {100 * deepest:.1f} cm below the floor",
        f"its last frame was {100 * closing:.1f} cm from its first one; blended",
    ]


def retarget(
    recording: Recording, body: Skeleton, names: Anatomy, soles: Sequence[str]
) -> tuple[dict[str, np.ndarray], Loss]:
    """Returns one period of `recording` as columns of a motion file, and what was lost.

    Args:
      recording: joint centres; its first and last frame are the ends of the period.
      body: the body to move.
      names: what the body calls its parts.
      soles: capsules that may touch the floor.
    """
    targets, scale = limb_targets(recording, body, names)
    duration = (len(targets) - 1) / recording.rate
    count = round(duration * RATE)
    spline = CubicSpline(np.arange(len(targets)) / recording.rate, targets)
    targets = spline(np.linspace(0.0, duration, count + 1))
    drift = np.zeros(3)
    drift[:2] = (targets[-1] - targets[0]).mean(axis=0)[:2]
    gap = targets[-1] - drift - targets[0]
    targets = closed(targets, drift)
    points = body.origins(list(names.centre_bodies().values()))
    floor = body.capsule_ends(soles)
    targets[..., 2] += _floor_offset(body, targets, points, floor)
    spine = body.joints_between(names.pelvis, names.chest)
    qpos = follow(body, targets, points, floor, np.where(spine, SPINE, HOME))
    qpos = smooth_period(body, qpos, _travel(body, qpos, drift, names))
    loss = _loss(body, list(names.centre_bodies()), qpos, targets, points, floor)
    loss = loss._replace(closing=float(np.linalg.norm(gap, axis=-1).max()), scale=scale)
    time = np.linspace(0.0, duration, count + 1)
    return {"time": time} | {name: qpos[:, i] for name, i in body.columns().items()}, loss


def close_angles(
    name: str,
    columns: dict[str, np.ndarray],
    body: Skeleton,
    names: Anatomy,
    soles: Sequence[str],
) -> tuple[dict[str, np.ndarray], AngleLoss]:
    """Joint angles that somebody made for this very body, closed to one period and smoothed.

    Returns columns of a motion file, and what was lost.

    Raises:
      UserError: a joint has no column.
    """
    places = body.columns()
    missing = [column for column in places if column not in columns]
    if missing:
        raise UserError(f"motion {name} has no column for {missing[0]}; add one")
    rows = np.stack([columns[column] for column in places], axis=1)
    duration = columns["time"][-1] - columns["time"][0]
    count = round(duration * RATE)
    time = np.linspace(0.0, duration, count + 1)
    given = CubicSpline(columns["time"] - columns["time"][0], rows)(time)
    points = body.origins([names.pelvis, *names.centre_bodies().values()])
    ends = []
    for q in (given[0], given[-1]):
        body.move(q)
        ends.append(body.positions(points))
    moved = ends[1] - ends[0]
    drift = moved[0] * [1.0, 1.0, 0.0]
    qpos = smooth_period(body, given, _travel(body, given, drift, names))
    loss = AngleLoss(
        rms=_joint_rms(body, qpos, given),
        at_limit=_at_limit(body, qpos),
        deepest=_deepest(body, qpos, body.capsule_ends(soles)),
        closing=float(np.linalg.norm(moved - drift, axis=1).max()),
    )
    return {"time": time} | {name: qpos[:, i] for name, i in places.items()}, loss


def limb_targets(recording: Recording, body: Skeleton, names: Anatomy) -> tuple[np.ndarray, float]:
    """Where the body's joint centres should be `[T, P, 3]`, and the scale of the way."""
    source = dict(recording.centres)
    body.move(body.home)
    bodies = names.centre_bodies()
    home = dict(zip(bodies, body.positions(body.origins(list(bodies.values()))), strict=True))

    def length(at, first: str, second: str) -> np.ndarray:
        return np.linalg.norm(at[second] - at[first], axis=-1)

    def leg(at) -> float:
        pairs = [(f"{a}_{s}", f"{b}_{s}") for a, b in _LIMBS[:2] for s in _SIDES]
        return float(np.mean([length(at, *pair).mean() for pair in pairs]))

    scale = leg(home) / leg(source)
    turn = _turn_to(names.forward, source, scale)
    source = {name: scale * places @ turn.T for name, places in source.items()}
    target: dict[str, np.ndarray] = {}

    def point_to(start: np.ndarray, first, second, long) -> np.ndarray:
        along = second - first
        return start + long * along / np.linalg.norm(along, axis=-1, keepdims=True)

    def middle(at, part: str):
        return 0.5 * (at[f"{part}_r"] + at[f"{part}_l"])

    hips, shoulders = middle(source, "hip"), middle(source, "shoulder")
    hips = hips - hips[0] * [1.0, 1.0, 0.0] + middle(home, "hip") * [1.0, 1.0, 0.0]
    trunk = np.linalg.norm(middle(home, "shoulder") - middle(home, "hip"))
    chest = point_to(hips, middle(source, "hip"), shoulders, trunk)
    for part, centre in (("hip", hips), ("shoulder", chest)):
        half = 0.5 * length(home, f"{part}_r", f"{part}_l")
        for side in _SIDES:
            name = f"{part}_{side}"
            target[name] = point_to(centre, middle(source, part), source[name], half)
    for first, second in _LIMBS + _ARMS:
        for side in _SIDES:
            a, b = f"{first}_{side}", f"{second}_{side}"
            target[b] = point_to(target[a], source[a], source[b], length(home, a, b))
    return np.stack([target[name] for name in bodies], axis=1), scale


def _turn_to(forward: tuple[float, float], source, scale: float) -> np.ndarray:
    """Turn `[3, 3]` about the vertical that brings the recording's way, or face, to `forward`."""
    hips = 0.5 * (source["hip_r"] + source["hip_l"])
    along = (hips[-1] - hips[0])[:2]
    if scale * np.linalg.norm(along) < 0.5:  # m; it stays in its place
        left = (source["hip_l"] - source["hip_r"])[0, :2]
        along = np.array([left[1], -left[0]])
    angle = np.arctan2(forward[1], forward[0]) - np.arctan2(along[1], along[0])
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])


def closed(values: np.ndarray, drift: np.ndarray) -> np.ndarray:
    """`values [T + 1, ...]` led so that the last is the first, plus `drift`."""
    count = len(values) - 1
    part = np.clip((np.arange(count + 1) / count - 1.0 + BLEND) / BLEND, 0.0, 1.0)
    weight = (part**3 * (10 - 15 * part + 6 * part**2)).reshape(-1, *[1] * (values.ndim - 1))
    return values - weight * (values[-1] - drift - values[0])


def _floor_offset(body: Skeleton, targets: np.ndarray, points: Points, floor: Points) -> float:
    """What lifts the recording so that its lowest ankle and toe are as high as the body's stand."""
    body.move(body.home)
    ground = body.positions(floor)[:, 2].min()
    feet = np.array([body.model.body(b).name.startswith(("talus", "toes")) for b in points.body])
    stand = body.positions(points)[feet, 2] - ground
    return float(-np.percentile((targets[:, feet, 2] - stand).min(axis=1), 5))


def follow(
    body: Skeleton, targets: np.ndarray, points: Points, floor: Points, home: np.ndarray
) -> np.ndarray:
    """Poses `[T, nq]` whose `points` are at `targets [T, P, 3]` as nearly as they can be.

    `home` (m/rad) pulls each scalar joint to its neutral position.
    """
    q = body.home.copy()
    poses = np.zeros((len(targets), body.nq))
    for t, target in enumerate(targets):
        start = q
        for _ in range(ITERATIONS if t == 0 else 8):
            step = _step(body, q, start if t else q, target, points, floor, home)
            q = _within(body, body.integrate(q, step))
            if np.abs(step).max() < 1e-5:
                break
        poses[t] = q
    return poses


def _step(
    body: Skeleton, q: np.ndarray, near: np.ndarray, target: np.ndarray, points: Points,
    floor: Points, home: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """A Gauss-Newton step `[nv]`; joints that would leave their range stay where they are."""
    body.move(q)
    miss = (target - body.positions(points)).ravel()
    slope = body.slopes(points).reshape(len(miss), -1)
    below = np.minimum(body.positions(floor)[:, 2], 0.0)
    if below.any():
        deep = np.flatnonzero(below)
        lifted = Points(*(part[deep] for part in floor))
        miss = np.concatenate([miss, -FLOOR_WEIGHT * below[deep]])
        slope = np.concatenate([slope, FLOOR_WEIGHT * body.slopes(lifted)[:, 2]])
    scalars = slice(6 * body.free, None)
    ridge = np.full(body.nv, 1e-9)
    ridge[scalars] += STAY**2 + home**2
    vector = slope.T @ miss
    here, past = q[7 * body.free :], near[7 * body.free :]
    vector[scalars] += STAY**2 * (past - here)
    vector[scalars] += home**2 * (body.home[7 * body.free :] - here)
    matrix = slope.T @ slope + np.diag(ridge)
    free = np.ones(body.nv, bool)
    for _ in range(4):  # joints join those held at a limit until none pushes on
        step = np.zeros(body.nv)
        step[free] = np.linalg.solve(matrix[np.ix_(free, free)], vector[free])
        after = here + step[scalars]
        out = ((here >= body.high - 1e-9) & (after > body.high)) | (
            (here <= body.low + 1e-9) & (after < body.low)
        )
        if not (out & free[scalars]).any():
            break
        free[scalars] &= ~out
    return np.clip(step, -0.5, 0.5) if body.free == 0 else step


def _within(body: Skeleton, q: np.ndarray) -> np.ndarray:
    q = q.copy()
    q[7 * body.free :] = np.clip(q[7 * body.free :], body.low, body.high)
    return q


def _travel(body: Skeleton, qpos: np.ndarray, drift: np.ndarray, names: Anatomy) -> np.ndarray:
    """What a period adds to each coordinate `[nq]`: way, and whole turns of a scalar root."""
    result = np.zeros(body.nq)
    if body.free:
        result[:3] = drift
        return result
    turns = [body.qpos_place(n) for n in names.root if body.model.joint(n).type[0] == HINGE]
    result[turns] = 2 * np.pi * np.round((qpos[-1] - qpos[0])[turns] / (2 * np.pi))
    body.move(qpos[0])
    slope = body.slopes(body.origins([names.pelvis]))[0]
    slides = [body.qpos_place(n) for n in names.root if body.model.joint(n).type[0] == SLIDE]
    result[slides] = np.linalg.solve(slope[:, slides], drift)
    return result


def smooth_period(body: Skeleton, qpos: np.ndarray, drift: np.ndarray) -> np.ndarray:
    """Closes `qpos [T + 1, nq]`, and smooths it as the paper's code does its reference.

    That is a Butterworth filter of order 8 up to a fifth of the Nyquist frequency, forwards and
    backwards over three periods.
    """
    qpos = qpos.copy()
    sign = np.ones(body.nq)
    for i in range(body.free):
        turn = slice(7 * i + 3, 7 * i + 7)
        for t in range(1, len(qpos)):
            qpos[t, turn] *= 1.0 if qpos[t, turn] @ qpos[t - 1, turn] >= 0.0 else -1.0
        sign[turn] = 1.0 if qpos[-1, turn] @ qpos[0, turn] >= 0.0 else -1.0
    part = np.linspace(0.0, 1.0, len(qpos))[:, None]
    still = qpos - part * drift
    still = closed(still, (sign - 1.0) * still[0])[:-1]
    sections = np.asarray(butter(8, 0.2, output="sos"))
    laps = np.concatenate([sign * still, still, sign * still])
    still = sosfiltfilt(sections, laps, axis=0)[len(still) : 2 * len(still)]
    still = np.concatenate([still, sign * still[:1]])
    still[:, 7 * body.free :] = np.clip(still[:, 7 * body.free :], body.low, body.high)
    for i in range(body.free):
        turn = slice(7 * i + 3, 7 * i + 7)
        still[:, turn] /= np.linalg.norm(still[:, turn], axis=1, keepdims=True)
    return still + part * drift


def _loss(body, names, qpos, targets, points: Points, floor: Points) -> Loss:
    miss = []
    for q, target in zip(qpos, targets, strict=True):
        body.move(q)
        miss.append(np.linalg.norm(body.positions(points) - target, axis=1))
    return Loss(
        rms=dict(zip(names, np.sqrt(np.mean(np.square(miss), axis=0)), strict=True)),
        worst=dict(zip(names, np.max(miss, axis=0), strict=True)),
        at_limit=_at_limit(body, qpos),
        deepest=_deepest(body, qpos, floor),
        closing=0.0,
        scale=1.0,
    )


def _at_limit(body: Skeleton, qpos: np.ndarray) -> dict[str, float]:
    """Share of the frames of each joint that is at a limit at all."""
    scalar = qpos[:, 7 * body.free :]
    at = ((scalar >= body.high - MARGIN) | (scalar <= body.low + MARGIN)).mean(axis=0)
    joints = zip(body.joint_names[body.free :], at, strict=True)
    return {name: float(share) for name, share in joints if share}


def _deepest(body: Skeleton, qpos: np.ndarray, floor: Points) -> float:
    """Depth (m) of the deepest sole below the floor."""
    lowest = (body.positions(floor)[:, 2].min() for q in qpos if body.move(q))
    return max(0.0, -float(min(lowest)))


def _joint_rms(body: Skeleton, qpos: np.ndarray, given: np.ndarray) -> dict:
    """RMS over the frames of each joint's distance from `given [T, nq]`, and its unit."""
    miss = {}
    for i, name in enumerate(body.joint_names[: body.free]):
        place, turn = slice(7 * i, 7 * i + 3), slice(7 * i + 3, 7 * i + 7)
        way = np.linalg.norm(qpos[:, place] - given[:, place], axis=1)
        miss[f"{name} (place)"] = 100.0 * way, "cm"
        nearer = np.abs(np.sum(qpos[:, turn] * given[:, turn], axis=1))
        cosine = np.minimum(1.0, nearer / np.linalg.norm(given[:, turn], axis=1))
        miss[f"{name} (turn)"] = np.rad2deg(2.0 * np.arccos(cosine)), "degrees"
    for i, name in enumerate(body.joint_names[body.free :], start=7 * body.free):
        away = qpos[:, i] - given[:, i]
        hinged = body.model.joint(name).type[0] == HINGE
        miss[name] = (np.rad2deg(away), "degrees") if hinged else (100.0 * away, "cm")
    return {name: (float(np.sqrt(np.mean(x**2))), unit) for name, (x, unit) in miss.items()}
