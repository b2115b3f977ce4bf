"""Make `human_dance.csv`, the reference of `ms_human_dance`, for myo_sim's MyoFullBody.

    python assets/motions/make_dance.py        (two minutes)

SYNTHETIC, drawn by hand. Within six seconds, and all on the right foot: the left leg unfolds to the
side for a balance of a second, both feet stand for a plie, and with the left foot drawn up to the
knee the body turns once about the ball of the right foot, heel raised, in 1.4 s.

The motion is made in a frame that turns with the dancer about that ball, in which the right foot
never moves; the turn is added last, so the pivot stays in its place to the solver's accuracy.
`foot_placement` keeps both feet where they stand, and the centre of mass above the right foot
whenever it stands alone.
"""

from collections.abc import Mapping

import foot_placement as feet
import mujoco
import numpy as np
from scipy.interpolate import CubicSpline, PchipInterpolator
from scipy.ndimage import gaussian_filter1d

from mjx_qflex.motions.kinematics import Skeleton

PERIOD = 6.0  # s
SAMPLES = 300
KNOTS = 75  # of the corrections
SOFTENING = 0.07  # s, by which the drawn curves are smoothed
TURN = (3.85, 5.25)  # s
BOTH_FEET = ((-0.5, 0.8), (2.95, 3.75))  # s, in which the left foot is on the floor, too
HEEL_LATER = 0.1  # s, by which the left heel comes down after the forefoot and leaves before it
RAISED_HEEL = 0.03  # m, of the turning foot
SIDE = 0.09  # m, from the right foot's middle to the body's
MASS_WEIGHT = (30.0, 30.0, 0.0)  # 1/m, on the place of the centre of mass
SIDES = ("r", "l")

HEAD = """\
A dance of 6 s on the right foot: a balance, a plie and a full turn to the left (make_dance.py).
SYNTHETIC: drawn by hand, bent until the feet stand on the floor."""

# Degrees by time in s. Between the keys the curves rise or fall; equal neighbours hold.
RIGHT_LEG = {
    "hip_flexion": {0.0: 6, 1.0: 4, 2.6: 4, 3.45: 24, 3.95: 6, 5.1: 6, 5.6: 18},
    "knee_angle": {0.0: 10, 1.0: 6, 2.6: 6, 3.45: 44, 3.95: 8, 5.1: 8, 5.6: 32},
    "ankle_angle": {0.0: 4, 1.0: 2, 2.6: 2, 3.45: 20, 3.95: -8, 5.1: -8, 5.6: 14},
}
LEFT_LEG = {
    "hip_flexion": {
        0.0: 6, 0.7: 8, 1.15: 62, 1.6: 38, 2.3: 38, 2.8: 8, 3.45: 24, 3.7: 14, 4.1: 60, 5.0: 60,
        5.45: 20, 5.7: 16,
    },
    "hip_adduction": {
        0.0: 0, 0.7: -2, 1.15: -26, 1.6: -42, 2.3: -42, 2.8: -6, 3.4: -3, 3.7: -4, 4.1: -30,
        5.0: -30, 5.4: -5,
    },
    "hip_rotation": {
        0.0: 0, 0.7: 0, 1.15: -20, 2.3: -20, 2.8: 0, 3.7: 0, 4.1: -22, 5.0: -22, 5.4: 0,
    },
    "knee_angle": {
        0.0: 10, 0.6: 14, 1.15: 95, 1.65: 12, 2.3: 12, 2.8: 14, 3.45: 44, 3.7: 24, 4.1: 100,
        5.0: 100, 5.4: 34, 5.7: 28,
    },
    "ankle_angle": {
        0.0: 4, 0.6: 2, 1.0: -22, 2.5: -24, 2.85: 0, 3.45: 20, 3.7: 4, 4.0: -20, 5.1: -20, 5.5: 6,
    },
}  # fmt: skip
# Plane of elevation (90: forward), elevation, inward rotation, elbow.
RIGHT_ARM = {
    "elv_angle": {0.0: 50, 0.6: 50, 1.5: 25, 2.4: 25, 3.4: 80, 5.1: 80, 5.5: 35},
    "shoulder_elv": {0.0: 14, 0.6: 20, 1.5: 62, 2.4: 62, 3.4: 46, 4.0: 44, 5.1: 44, 5.5: 50},
    "shoulder_rot": {0.0: 20, 1.5: 0, 2.4: 0, 3.4: 42, 5.1: 45, 5.5: 10},
    "elbow_flexion": {0.0: 22, 0.6: 25, 1.5: 14, 2.4: 14, 3.4: 62, 4.1: 75, 5.1: 75, 5.5: 25},
}
LEFT_ARM = {
    "elv_angle": {0.0: 50, 0.6: 50, 1.5: 25, 3.7: 25, 4.1: 80, 5.1: 80, 5.5: 35},
    "shoulder_elv": {0.0: 14, 0.6: 20, 1.5: 62, 3.7: 58, 4.1: 44, 5.1: 44, 5.5: 50},
    "shoulder_rot": {0.0: 20, 1.5: 0, 3.7: 0, 4.1: 45, 5.1: 45, 5.5: 10},
    "elbow_flexion": {0.0: 22, 0.6: 25, 1.5: 14, 3.7: 18, 4.1: 75, 5.1: 75, 5.5: 25},
}
FOREARM = {"pro_sup": {0.0: 20}}
# Pelvis: forward tilt, right side up, right side forward.
PITCH = {0.0: 0, 3.45: 6, 4.0: 0, 5.6: 4}
ROLL = {0.0: 0, 0.7: 0, 1.5: -9, 2.3: -9, 2.9: 0, 3.8: 0, 4.1: -4, 5.0: -4, 5.4: 0}
YAW = {0.0: 0, 2.9: 0, 3.5: -10, 4.0: 6, 5.0: 3, 5.4: 0}
# Metres: height of the pelvis against standing; centre of mass from the pivot, right is negative.
HEIGHT = {0.0: -0.01, 1.2: -0.005, 2.4: -0.005, 3.45: -0.06, 4.0: 0.01, 5.1: 0.01, 5.6: -0.035}
SIDEWAYS = {0.0: SIDE, 0.2: SIDE, 0.75: 0.0, 2.9: 0.0, 3.3: 0.07, 3.5: 0.06, 3.8: 0.0, 5.3: 0.0}
BACK = {0.0: 0.06, 2.9: 0.06, 3.5: 0.05, 3.85: 0.02, 5.2: 0.02, 5.6: 0.05}


def drawn(time: np.ndarray, keys: Mapping[float, float]) -> np.ndarray:
    """A periodic curve `[T]` through `keys` that does not overshoot, with soft corners."""
    at, values = np.array(list(keys)), np.array(list(keys.values()), float)
    laps = np.concatenate([at + lap * PERIOD for lap in (-2, -1, 0, 1, 2)])
    curve = PchipInterpolator(laps, np.tile(values, 5))(time)
    return gaussian_filter1d(curve, SOFTENING * SAMPLES / PERIOD, mode="wrap")


def start(body: Skeleton, time: np.ndarray) -> np.ndarray:
    """First guess `[T, nq]` in the turning frame: the pivot at the origin, facing -y."""
    qpos = np.tile(body.home, (len(time), 1))
    qpos[:, :2] -= ball(body)
    for side, curves in (("r", RIGHT_LEG | RIGHT_ARM), ("l", LEFT_LEG | LEFT_ARM)):
        for name, keys in (curves | FOREARM).items():
            qpos[:, body.qpos_place(f"{name}_{side}")] = np.deg2rad(drawn(time, keys))
    pitch, roll, yaw = (np.deg2rad(drawn(time, keys)) for keys in (PITCH, ROLL, YAW))
    qpos[:, 3:7] = feet.pelvis_rotation(pitch, roll, yaw)
    qpos[:, body.qpos_place("lat_bending")] = 0.8 * roll
    qpos[:, body.qpos_place("axial_rotation")] = -0.8 * yaw
    qpos[:, body.qpos_place("flex_extension")] = -0.5 * pitch
    qpos[:, 0] += drawn(time, SIDEWAYS) - SIDE
    qpos[:, 2] += drawn(time, HEIGHT)
    return qpos


def ball(body: Skeleton) -> np.ndarray:
    """Where the ball of the right foot is `[2]` when the body stands at home."""
    body.move(body.home)
    return body.positions(feet.soles(body, "r"))[list(feet.BALL), :2].mean(axis=0)


def placement(body: Skeleton, time: np.ndarray) -> feet.Task:
    """The right foot stands, the left one at times; the centre of mass is above what stands."""
    points = feet.soles(body, SIDES)
    left = len(points.body) // 2
    turning = (time > TURN[0]) & (time < TURN[1])
    forefoot, heel = (
        np.any([down(time, first + late, last - late) for first, last in BOTH_FEET], axis=0)
        for late in (0.0, HEEL_LATER)
    )
    pivot = ball(body)
    places = body.positions(points)[:, :2] - pivot
    contacts = [feet.Contact(point, ~turning, places[point]) for point in feet.HEELS]
    forefoot_ends = feet.BALL + feet.TIPS
    contacts += [feet.Contact(point, time >= 0.0, places[point]) for point in forefoot_ends]
    contacts += [feet.Contact(left + point, heel) for point in feet.HEELS]
    contacts += [feet.Contact(left + point, forefoot) for point in forefoot_ends]
    floor = np.zeros((len(time), len(points.body)))
    raised = np.clip(np.minimum(time - TURN[0], TURN[1] - time) / 0.25, 0.0, 1.0)
    floor[:, list(feet.HEELS)] = RAISED_HEEL * raised[:, None]
    floor[~down(time, *BOTH_FEET[0]) & ~down(time, *BOTH_FEET[1]), left:] = 0.005
    centre = np.stack([drawn(time, SIDEWAYS), drawn(time, BACK), 0.0 * time], axis=1)
    return feet.Task(
        columns=columns(body, time / PERIOD),
        points=points,
        contacts=contacts,
        floor=floor,
        mass_centre=centre,
        mass_weight=np.tile(MASS_WEIGHT, (len(time), 1)),
    )


def down(time: np.ndarray, first: float, last: float) -> np.ndarray:
    return (time - first) % PERIOD <= last - first


def columns(body: Skeleton, phase: np.ndarray) -> list[feet.Column]:
    """Both legs and the pelvis' path, bent by periodic cubic splines."""
    unit = np.eye(KNOTS)
    knots = np.arange(KNOTS + 1) / KNOTS
    basis = CubicSpline(knots, np.concatenate([unit, unit[:1]]), bc_type="periodic")(phase)
    names = [f"{name}_{side}" for side in SIDES for name in feet.LEG]
    places = [body.qpos_place(name) for name in names]
    costs = [*feet.LEG_COST * 2, 1.0, 1.0, 1.0]
    dofs = [*(place - 1 for place in places), 0, 1, 2]
    return [
        feet.Column(place, dof, basis, np.full(KNOTS, 0.1 * cost**2), cost)
        for place, dof, cost in zip([*places, 0, 1, 2], dofs, costs, strict=True)
    ]


def turned(qpos: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """`qpos [T, nq]` turned by `angle [T]` about the vertical through the origin."""
    result = qpos.copy()
    for row, by in zip(result, angle, strict=True):
        turn, product = np.array([np.cos(by / 2), 0.0, 0.0, np.sin(by / 2)]), np.zeros(4)
        place = np.zeros(3)
        mujoco.mju_rotVecQuat(place, row[:3], turn)
        mujoco.mju_mulQuat(product, turn, row[3:7])
        row[:3], row[3:7] = place, product
    return result


def heading(time: np.ndarray) -> np.ndarray:
    """Angle `[T]` (rad) of the turn: from rest to rest with the least jerk (Flash, Hogan 1985)."""
    part = np.clip((time - TURN[0]) / (TURN[1] - TURN[0]), 0.0, 1.0)
    return 2 * np.pi * part**3 * (10 - 15 * part + 6 * part**2)


def main() -> None:
    body = feet.skeleton()
    time = np.arange(SAMPLES) * PERIOD / SAMPLES
    qpos = feet.Search(body, start(body, time), placement(body, time)).run()
    last = turned(qpos[:1], np.array([2 * np.pi]))[0]
    qpos = turned(qpos, heading(time))
    feet.write(feet.HERE / "human_dance.csv", body, qpos, last, PERIOD, HEAD)


if __name__ == "__main__":
    main()
