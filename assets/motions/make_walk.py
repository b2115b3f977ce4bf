"""Make `human_walk.csv`, the reference gait of `ms_human_walk`, for myo_sim's MyoFullBody.

    python assets/motions/make_walk.py        (seconds)

Hips, knees, ankles and the pelvis start from `normative_gait.csv` (published; its head names the
table). Everything else is SYNTHETIC, drawn by hand as single harmonics in `synthetic_angles`:
the pelvis' rotation and path, trunk and arms; hip rotation and the foot's small joints start at 0.

`foot_placement` then bends the legs and the pelvis' path until, in stance, the heel and then the
forefoot rest on the floor. The left side is the right side half a cycle later, mirrored.
"""

import csv

import foot_placement as feet
import numpy as np

from mjx_qflex.motions.kinematics import Skeleton

SPEED = 1.25  # m/s
PERIOD = 1.14  # s
SAMPLES = 114  # a cycle
HARMONICS = 9  # of the corrections
SMOOTH = 3.0  # harmonics above this one are held down
MEAN_TILT = 11.6  # degrees of pelvis tilt that are this model's neutral pose

# Parts of the cycle in which the points of the foot bear on the floor.
HEEL_DOWN = (0.0, 0.34)
BALL_DOWN = (0.12, 0.46)
TIP_DOWN = (0.12, 0.60)
SWING = (0.68, 0.92)
CLEARANCE = 0.015  # m, of the whole foot in mid-swing

HEAD = """\
Walking at 1.25 m/s, one cycle from right contact to right contact (make_walk.py).
Hip flexion and adduction, knees, ankles, pelvis tilt and obliquity come from
normative_gait.csv, bent until the feet stay on the floor. The rest is SYNTHETIC."""


def normative(phase: np.ndarray) -> dict[str, np.ndarray]:
    """The published curves in radians at `phase [T]`, smoothed to six harmonics."""
    with (feet.HERE / "normative_gait.csv").open() as file:
        rows = list(csv.DictReader(line for line in file if not line.startswith("#")))
    curves = {}
    for name in rows[0]:
        if name != "percent":
            spectrum = np.fft.rfft([float(row[name]) for row in rows]) / len(rows)
            waves = np.exp(2j * np.pi * np.outer(phase, np.arange(1, 7)))
            values = spectrum[0].real + 2 * np.real(waves @ spectrum[1:7])
            curves[name] = np.deg2rad(values)
    return curves


def start(body: Skeleton, phase: np.ndarray) -> np.ndarray:
    """First guess `[T, nq]`: both legs, trunk and arms, the pelvis at its standing height."""
    qpos = np.tile(body.home, (len(phase), 1))
    for side, shift in (("r", 0.0), ("l", 0.5)):
        curves = normative(phase + shift)
        tilt = np.deg2rad(MEAN_TILT)
        angles = {
            "hip_flexion": curves["hip_flexion"] - tilt,
            "hip_adduction": curves["hip_adduction"],
            "knee_angle": curves["knee_flexion"],
            "ankle_angle": curves["ankle_dorsiflexion"],
        } | synthetic_arm(phase + shift)
        for name, values in angles.items():
            qpos[:, body.qpos_place(f"{name}_{side}")] = values
    yaw = np.deg2rad(4.0) * np.cos(2 * np.pi * phase)  # right side forward at its contact
    here, there = normative(phase), normative(phase + 0.5)
    roll = 0.5 * (here["pelvis_obliquity"] - there["pelvis_obliquity"])  # right side up
    pitch = 0.5 * (here["pelvis_tilt"] + there["pelvis_tilt"]) - np.deg2rad(MEAN_TILT)
    qpos[:, 3:7] = feet.pelvis_rotation(pitch, roll, yaw)
    # The trunk turns and leans against the pelvis, so that the shoulders counter-rotate.
    qpos[:, body.qpos_place("axial_rotation")] = -1.6 * yaw
    qpos[:, body.qpos_place("lat_bending")] = 0.8 * roll
    qpos[:, body.qpos_place("flex_extension")] = np.deg2rad(-2.0)
    qpos[:, 0] += 0.02 * np.sin(2 * np.pi * (phase - 0.05)) * -1  # over the standing (right) foot
    qpos[:, 1] += -SPEED * PERIOD * phase
    qpos[:, 2] += -0.075 - 0.015 * np.cos(4 * np.pi * (phase - 0.05))
    return qpos


def synthetic_arm(phase: np.ndarray) -> dict[str, np.ndarray]:
    """An arm that hangs and swings against its leg."""
    swing = -np.cos(2 * np.pi * (phase - 0.02))  # 1: fully forward, half a cycle after contact
    return {
        "elv_angle": np.full_like(phase, 1.1),  # plane of elevation: mostly forward
        "shoulder_elv": np.deg2rad(9.0 + 7.0 * swing),
        "shoulder_rot": np.full_like(phase, np.deg2rad(26.0)),  # inwards
        "elbow_flexion": np.deg2rad(23.0 + 6.0 * swing),
        "pro_sup": np.full_like(phase, np.deg2rad(25.0)),
    }


def placement(body: Skeleton, phase: np.ndarray) -> feet.Task:
    """The right foot's stance, and its clearance in mid-swing."""
    down = dict.fromkeys(feet.HEELS, HEEL_DOWN) | dict.fromkeys(feet.BALL, BALL_DOWN)
    down |= dict.fromkeys(feet.TIPS, TIP_DOWN)
    points = feet.soles(body, "r")
    floor = np.where(feet.window(phase, SWING), CLEARANCE, 0.0)
    return feet.Task(
        columns=feet.stride_columns(body, phase, HARMONICS, SMOOTH),
        points=points,
        contacts=[feet.Contact(i, feet.window(phase, span)) for i, span in down.items()],
        floor=np.tile(floor[:, None], (1, len(points.body))),
        mass_centre=np.zeros((len(phase), 3)),
        mass_weight=np.zeros((len(phase), 3)),
    )


def main() -> None:
    body = feet.skeleton()
    phase = np.arange(SAMPLES) / SAMPLES
    qpos = feet.Search(body, start(body, phase), placement(body, phase)).run()
    qpos = feet.mirror_left(body, qpos)
    last = qpos[0].copy()
    last[1] -= SPEED * PERIOD
    feet.write(feet.HERE / "human_walk.csv", body, qpos, last, PERIOD, HEAD)


if __name__ == "__main__":
    main()
