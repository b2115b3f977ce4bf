"""Bends a first guess of a motion until its feet stand on the floor; shared by the make_ scripts.

Angles measured on other people, or drawn by hand, do not put this body's feet on the floor. So a
least-squares search over smooth corrections bends leg angles and the pelvis' path as little as
possible until each point of the sole that bears rests where it touched down, no part of a foot is
below the floor, and the centre of mass is where it has to be.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import mujoco
import numpy as np
from scipy.interpolate import CubicSpline

from mjx_qflex.motions import anatomy, write_columns
from mjx_qflex.motions.kinematics import Points, Skeleton
from mjx_qflex.porting import recipe

HERE = Path(__file__).parent
BODY = "ms_human"
HEEL_GEOMS = ("foot_col1", "foot_col3")  # capsules; their rear ends are the heel
TOE_GEOMS = ("bofoot_col1", "bofoot_col2")  # capsules across the toes
# What `sole` numbers: heels, ends of the toes' capsules towards the big toe, ...
HEELS, BALL, TIPS = (0, 1), (2, 3, 7), (6,)

LEG = (
    "hip_flexion",
    "hip_adduction",
    "hip_rotation",
    "knee_angle",
    "ankle_angle",
    "subtalar_angle",
    "mtp_angle",
)
# What it costs to bend each angle (1/rad) and to move the pelvis off its path (1/m).
LEG_COST = (1.0, 2.0, 3.0, 1.0, 1.0, 3.0, 0.3)
ROOT_COST = (6.0, 6.0, 3.0)  # x (sideways), y (along), z (up)
LIMIT_MARGIN = 0.03  # rad


class Column(NamedTuple):
    """A coordinate that may be bent."""

    qpos: int  # its place
    dof: int
    basis: np.ndarray  # [T, n] of its correction
    ridge: np.ndarray  # [n] cost of each coefficient squared
    cost: float  # of bending it, 1/rad or 1/m


class Contact(NamedTuple):
    """A point of a sole that rests at `place`, or wherever the search puts it, when it is down."""

    point: int
    down: np.ndarray  # [T] bool
    place: np.ndarray | None = None  # [2] m


class Task(NamedTuple):
    """What the search has to reach."""

    columns: Sequence[Column]
    points: Points
    contacts: Sequence[Contact]
    floor: np.ndarray  # [T, P] m, that each point has to stay above
    mass_centre: np.ndarray  # [T, 3] m
    mass_weight: np.ndarray  # [T, 3] 1/m; 0 leaves it free


def skeleton() -> Skeleton:
    return Skeleton(recipe.source_model(recipe.read(BODY)))


def soles(body: Skeleton, sides: Sequence[str]) -> Points:
    """Lowest points `[8 len(sides)]` of both ends of each foot's capsules: heel ends first."""
    feet = [body.capsule_ends([f"{g}_{side}" for g in HEEL_GEOMS + TOE_GEOMS]) for side in sides]
    return Points(*(np.concatenate(parts) for parts in zip(*feet, strict=True)))


def window(phase: np.ndarray, span: tuple[float, float]) -> np.ndarray:
    return (phase >= span[0]) & (phase <= span[1])


class Search:
    """Least squares over the coefficients of all columns, and where each contact rests."""

    def __init__(self, body: Skeleton, guess: np.ndarray, task: Task):
        self.body, self.guess, self.task = body, guess, task
        sizes = [column.basis.shape[1] for column in task.columns]
        self.edges = np.cumsum([0, *sizes])
        self.anchors = self.edges[-1] + np.arange(2 * len(task.contacts)).reshape(-1, 2)
        self.ridge = np.concatenate(
            [*(column.ridge for column in task.columns), np.full(self.anchors.size, 1e-3)]
        )
        self.x = np.zeros(len(self.ridge))

    def run(self, iterations: int = 60) -> np.ndarray:
        """Returns the bent motion `[T, nq]`: Levenberg and Marquardt's way of taking the steps."""
        self._rest_where_the_guess_is_down()
        damping, best = 1e-4, self._normal_equations()
        for iteration in range(iterations):
            cost, matrix, vector = best
            before = self.x
            damped = matrix + damping * np.diag(np.diag(matrix))
            self.x = before - np.linalg.solve(damped, vector)
            found = self._normal_equations()
            if iteration % 6 == 0:
                print(f"iteration {iteration}: cost {cost:.4f} to {found[0]:.4f}", flush=True)
            if found[0] > cost:
                self.x, damping = before, 10.0 * damping
            else:
                best, damping = found, max(0.2 * damping, 1e-7)
                if cost - found[0] < 1e-6 * cost:
                    break
        return self.bent()

    def _normal_equations(self) -> tuple[float, np.ndarray, np.ndarray]:
        """Cost, its second derivatives (Gauss and Newton's) and half its first ones."""
        matrix, vector = np.diag(self.ridge), self.ridge * self.x
        cost, moved = float(self.x @ vector), self.bent()
        for t in range(len(moved)):
            slope, miss = self._rows(t, moved[t])
            matrix += slope.T @ slope
            vector += slope.T @ miss
            cost += float(miss @ miss)
        return cost, matrix, vector

    def bent(self) -> np.ndarray:
        moved = self.guess.copy()
        for column, first, last in self._pieces():
            moved[:, column.qpos] += column.basis @ self.x[first:last]
        return moved

    def _pieces(self):
        return zip(self.task.columns, self.edges, self.edges[1:], strict=False)

    def _rest_where_the_guess_is_down(self) -> None:
        places = []
        for q in self.guess:
            self.body.move(q)
            places.append(self.body.positions(self.task.points)[:, :2])
        for anchor, contact in zip(self.anchors, self.task.contacts, strict=True):
            self.x[anchor] = np.array(places)[contact.down, contact.point].mean(axis=0)

    def _rows(self, t: int, q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Slopes `[R, unknowns]` and misses `[R]` of all that frame `t` should fulfil."""
        task, body = self.task, self.body
        body.move(q)
        value, slope = body.positions(task.points), self._chain(body.slopes(task.points), t)
        rows, misses = [], []
        weight = np.array([60.0, 60.0, 80.0])
        for anchor, contact in zip(self.anchors, task.contacts, strict=True):
            if contact.down[t]:
                at, miss = slope[contact.point].copy(), value[contact.point].copy()
                if contact.place is None:
                    at[[0, 1], anchor] -= 1.0
                miss[:2] -= self.x[anchor] if contact.place is None else contact.place
                rows.append(weight[:, None] * at)
                misses.append(weight * miss)
        below = np.minimum(value[:, 2] - task.floor[t], 0.0)
        for point in np.flatnonzero(below):
            rows.append(60.0 * slope[point, 2:])
            misses.append(60.0 * below[point : point + 1])
        if task.mass_weight[t].any():
            centre, by_dof = body.centre_of_mass()
            rows.append(task.mass_weight[t, :, None] * self._chain(by_dof, t))
            misses.append(task.mass_weight[t] * (centre - task.mass_centre[t]))
        for column, first, last in self._pieces():
            self._keep(t, q, column, slice(first, last), rows, misses)
        return np.concatenate(rows), np.concatenate(misses)

    def _keep(self, t, q, column: Column, place: slice, rows, misses) -> None:
        """Appends the cost of bending, and what lies too near to the joint's limit."""
        row = np.zeros((1, len(self.x)))
        row[0, place] = column.basis[t]
        bend = q[column.qpos] - self.guess[t, column.qpos]
        rows.append(column.cost * row)
        misses.append([column.cost * bend])
        scalar = column.qpos - 7 * self.body.free
        if scalar >= 0:
            low, high = self.body.low[scalar], self.body.high[scalar]
            angle = q[column.qpos]
            beyond = angle - np.clip(angle, low + LIMIT_MARGIN, high - LIMIT_MARGIN)
            if beyond:
                rows.append(30.0 * row)
                misses.append([30.0 * beyond])

    def _chain(self, by_dof: np.ndarray, t: int) -> np.ndarray:
        """Slopes by the unknowns from slopes by the degrees of freedom `[..., nv]`."""
        result = np.zeros((*by_dof.shape[:-1], len(self.x)))
        for column, first, last in self._pieces():
            result[..., first:last] = by_dof[..., column.dof, None] * column.basis[t]
        return result


def fourier(phase: np.ndarray, harmonics: int) -> tuple[np.ndarray, np.ndarray]:
    """Fourier basis `[T, 1 + 2 harmonics]`, and which harmonic each column is."""
    numbers = np.arange(1, harmonics + 1)
    angle = 2 * np.pi * np.outer(phase, numbers)
    waves = np.hstack([np.ones((len(phase), 1)), np.cos(angle), np.sin(angle)])
    return waves, np.concatenate([[0], numbers, numbers])


def stride_columns(
    body: Skeleton, phase: np.ndarray, harmonics: int, smooth: float
) -> list[Column]:
    """The right leg and the pelvis' path of a symmetric gait; harmonics above `smooth` cost more.

    Half a cycle later the left does what the right does: x changes sign, y and z repeat.
    """
    waves, number = fourier(phase, harmonics)
    ripple = 0.5 * len(phase) * (number / smooth) ** 4
    columns = [
        Column(place, place - 1, waves, 1e-3 + ripple * cost**2, cost)
        for place, cost in zip(
            (body.qpos_place(f"{name}_r") for name in LEG), LEG_COST, strict=True
        )
    ]
    odd, even = number % 2 == 1, number % 2 == 0
    for place, (keep, cost) in enumerate(
        zip((odd, even & (number > 0), even), ROOT_COST, strict=True)
    ):
        columns.append(Column(place, place, waves[:, keep], np.full(keep.sum(), 1e-3), cost))
    return columns


def mirror_left(body: Skeleton, qpos: np.ndarray) -> np.ndarray:
    """Gives the left leg what the right leg does half a cycle later."""
    for name in LEG:
        right, left = body.qpos_place(f"{name}_r"), body.qpos_place(f"{name}_l")
        qpos[:, left] = np.roll(qpos[:, right], len(qpos) // 2)
    return qpos


def pelvis_rotation(pitch: np.ndarray, roll: np.ndarray, yaw: np.ndarray) -> np.ndarray:
    """Quaternions `[T, 4]`: forward tilt, right side up, right side forward (facing -y)."""
    axes = ((yaw, (0.0, 0.0, 1.0)), (roll, (0.0, 1.0, 0.0)), (pitch, (1.0, 0.0, 0.0)))
    quaternions = np.zeros((len(pitch), 4))
    for t in range(len(pitch)):
        total = np.array([1.0, 0.0, 0.0, 0.0])
        for angle, axis in axes:
            turn, product = np.zeros(4), np.zeros(4)
            mujoco.mju_axisAngle2Quat(turn, np.array(axis), angle[t])
            mujoco.mju_mulQuat(product, total, turn)
            total = product
        quaternions[t] = total
    return quaternions


def write(
    path: Path, body: Skeleton, qpos: np.ndarray, last: np.ndarray, period: float, head: str
) -> None:
    """Writes one period `qpos [T, nq]` and the row `last [nq]` that ends it, a `head` above it."""
    rows = np.concatenate([qpos, last[None]])
    fingers = anatomy.of(BODY).is_finger
    columns = {name: rows[:, i] for name, i in body.columns().items() if not fingers(name)}
    time = np.arange(len(rows)) * period / len(qpos)
    write_columns(path, {"time": time} | columns, head)


def through(phase: np.ndarray, keys: dict[float, float]) -> np.ndarray:
    """Radians `[T]` of a smooth periodic curve through `keys`, degrees by phase in [0, 1)."""
    at = [*keys, 1.0 + min(keys)]
    degrees = [*keys.values(), keys[min(keys)]]
    return np.deg2rad(CubicSpline(at, degrees, bc_type="periodic")(phase % 1.0))
