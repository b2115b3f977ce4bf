"""Make `human_run.csv`, the reference of `ms_human_run`, for myo_sim's MyoFullBody.

    python assets/motions/make_run.py        (seconds)

SYNTHETIC: every curve is drawn by hand through a few angles, with peaks about where reviews of
running put them (Novacheck, Gait & Posture 7, 1998): 45 degrees of knee flexion in stance and 95 in
swing, 20 of ankle dorsiflexion in mid-stance, 25 of plantarflexion at toe-off. Stance takes 35% of
a stride of 0.72 s; between the stances both feet are in the air. The centre of mass then falls
freely, and in stance the floor's push is half a sine wave: that gives its height. It moves on
evenly.

`foot_placement` bends the legs and the pelvis' path until the foot lands on its heel, rolls over
the forefoot and leaves from the toes. The left side is the right side half a cycle later, mirrored.
"""

import foot_placement as feet
import numpy as np

from mjx_qflex.motions.kinematics import Skeleton

SPEED = 3.0  # m/s
PERIOD = 0.72  # s, two steps
SAMPLES = 72  # a cycle
HARMONICS = 9  # of the corrections
SMOOTH = 4.0  # harmonics above this one are held down
STANCE = 0.35  # of the cycle
GRAVITY = 9.81
# Parts of the cycle in which the points of the foot bear on the floor.
HEEL_DOWN = (0.0, 0.15)
BALL_DOWN = (0.06, 0.27)
TIP_DOWN = (0.06, STANCE)
IN_THE_AIR = (0.39, 0.97)
CLEARANCE = 0.012  # m
MASS_WEIGHT = (0.0, 30.0, 60.0)  # 1/m, on the path of the centre of mass

HEAD = """\
Running at 3 m/s, one cycle from right contact to right contact (make_run.py).
SYNTHETIC: drawn by hand, bent until the feet stand on the floor in stance."""

LEG_CURVES = {
    "hip_flexion": {
        0.0: 34, 0.1: 28, 0.22: 8, 0.35: -16, 0.42: -18, 0.55: 8, 0.7: 42, 0.82: 50, 0.92: 42,
    },
    "hip_adduction": {0.0: 1, 0.12: 7, 0.3: 1, 0.5: -4, 0.8: -2},
    "knee_angle": {
        0.0: 15, 0.06: 27, 0.14: 43, 0.25: 32, 0.35: 17, 0.45: 45, 0.58: 90, 0.66: 96, 0.78: 72,
        0.9: 26, 0.96: 14,
    },
    "ankle_angle": {0.0: 4, 0.07: 3, 0.18: 20, 0.27: 8, 0.36: -24, 0.44: -18, 0.6: 0, 0.8: 4},
}  # fmt: skip


def start(body: Skeleton, phase: np.ndarray) -> np.ndarray:
    """First guess `[T, nq]`: both legs, trunk and arms, the pelvis on its way."""
    qpos = np.tile(body.home, (len(phase), 1))
    for side, shift in (("r", 0.0), ("l", 0.5)):
        here = phase + shift
        curves = {name: feet.through(here, keys) for name, keys in LEG_CURVES.items()}
        for name, values in (curves | arm(here)).items():
            qpos[:, body.qpos_place(f"{name}_{side}")] = values
    yaw = np.deg2rad(6.0) * np.cos(2 * np.pi * phase)  # right side forward at its contact
    roll = np.deg2rad(3.0) * np.sin(2 * np.pi * (phase - 0.45))  # the free side drops
    pitch = np.deg2rad(6.0 + 2.0 * np.cos(4 * np.pi * (phase - 0.4)))
    qpos[:, 3:7] = feet.pelvis_rotation(pitch, roll, yaw)
    qpos[:, body.qpos_place("axial_rotation")] = -2.2 * yaw
    qpos[:, body.qpos_place("lat_bending")] = 0.8 * roll
    qpos[:, body.qpos_place("flex_extension")] = np.deg2rad(-5.0)
    qpos[:, 0] -= 0.008 * np.sin(2 * np.pi * (phase + 0.05))  # over the standing (right) foot
    qpos[:, 1] += -SPEED * PERIOD * phase
    qpos[:, 2] += -0.085 + bounce(phase)
    return qpos


def arm(phase: np.ndarray) -> dict[str, np.ndarray]:
    """A bent arm that swings against its leg."""
    swing = -np.cos(2 * np.pi * (phase - 0.02))  # 1: fully forward, half a cycle after contact
    return {
        "elv_angle": np.deg2rad(50.0 + 25.0 * swing),  # plane of elevation: sideways to forward
        "shoulder_elv": np.deg2rad(22.0 + 12.0 * swing),
        "shoulder_rot": np.deg2rad(20.0 + 15.0 * swing),  # inwards
        "elbow_flexion": np.deg2rad(88.0 + 12.0 * swing),
        "pro_sup": np.full_like(phase, np.deg2rad(10.0)),
    }


def bounce(phase: np.ndarray) -> np.ndarray:
    """Height `[T]` (m) of the centre of mass about its mean: half-sine push, then free fall."""
    step, stance = PERIOD / 2.0, STANCE * PERIOD
    push = GRAVITY * step * np.pi / (2.0 * stance)  # its peak by body mass: carries all the weight
    wave = stance / np.pi
    landing = -GRAVITY * (step - stance) / 2.0

    def height(time: np.ndarray) -> np.ndarray:
        down = np.minimum(time, stance)
        fall = landing * time - GRAVITY * time**2 / 2.0
        pushed = push * wave * (down - wave * np.sin(down / wave))
        return fall + pushed + 2.0 * push * wave * (time - down)

    whole = np.linspace(0.0, step, 1000, endpoint=False)
    return height(phase * PERIOD % step) - height(whole).mean()


def placement(body: Skeleton, phase: np.ndarray, guess: np.ndarray) -> feet.Task:
    """The right foot's stance, the air below it elsewhere, and the path of the centre of mass."""
    down = dict.fromkeys(feet.HEELS, HEEL_DOWN) | dict.fromkeys(feet.BALL, BALL_DOWN)
    down |= dict.fromkeys(feet.TIPS, TIP_DOWN)
    points = feet.soles(body, "r")
    floor = np.where(feet.window(phase, IN_THE_AIR), CLEARANCE, 0.0)
    centre = np.array([body.move(q).subtree_com[0].copy() for q in guess])
    travelled = SPEED * PERIOD * phase
    centre[:, 1] = np.mean(centre[:, 1] + travelled) - travelled
    centre[:, 2] = np.mean(centre[:, 2]) + bounce(phase)
    return feet.Task(
        columns=feet.stride_columns(body, phase, HARMONICS, SMOOTH),
        points=points,
        contacts=[feet.Contact(i, feet.window(phase, span)) for i, span in down.items()],
        floor=np.tile(floor[:, None], (1, len(points.body))),
        mass_centre=centre,
        mass_weight=np.tile(MASS_WEIGHT, (len(phase), 1)),
    )


def main() -> None:
    body = feet.skeleton()
    phase = np.arange(SAMPLES) / SAMPLES
    guess = start(body, phase)
    qpos = feet.Search(body, guess, placement(body, phase, guess)).run()
    qpos = feet.mirror_left(body, qpos)
    last = qpos[0].copy()
    last[1] -= SPEED * PERIOD
    feet.write(feet.HERE / "human_run.csv", body, qpos, last, PERIOD, HEAD)


if __name__ == "__main__":
    main()
