"""Make `human_walk.csv`, the reference gait of `ms_human_walk`, for myo_sim's MyoFullBody.

    python assets/motions/make_walk.py        (about a minute)

Hips, knees, ankles and the pelvis start from `normative_gait.csv` (published; its head names the
table). Everything else is SYNTHETIC, drawn by hand as single harmonics in `synthetic_angles`:
the pelvis' rotation and path, trunk and arms; hip rotation and the foot's small joints start at 0.

Angles measured on other people do not put this body's feet on the floor. So a Gauss-Newton search
over Fourier coefficients bends the leg angles and the pelvis' path as little as possible until, in
stance, the heel and then the forefoot rest where they touched down, and no part of the foot is
below the floor. The left side is the right side half a cycle later, mirrored.
"""

import csv
from pathlib import Path
from typing import NamedTuple

import mujoco
import myo_sim
import numpy as np

from mjx_qflex.porting.compartments import satisfy_couplings

HERE = Path(__file__).parent
SPEED = 1.25  # m/s
PERIOD = 1.14  # s
SAMPLES = 114  # a cycle
HARMONICS = 9  # of the corrections
SMOOTH = 3.0  # harmonics above this one are held down
MEAN_TILT = 11.6  # degrees of pelvis tilt that are this model's neutral pose

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
LEG_COST = np.array([1.0, 2.0, 3.0, 1.0, 1.0, 3.0, 0.3])
ROOT_COST = np.array([6.0, 6.0, 3.0])  # x (sideways), y (along), z (up)
HEEL_GEOMS = ("foot_col1_r", "foot_col3_r")  # capsules; their rear ends are the heel
TOE_GEOMS = ("bofoot_col1_r", "bofoot_col2_r")  # capsules across the toes
# Parts of the cycle in which the points of the foot bear on the floor.
HEEL_DOWN = (0.0, 0.34)
BALL_DOWN = (0.12, 0.46)
TIP_DOWN = (0.12, 0.60)
SWING = (0.68, 0.92)
CLEARANCE = 0.015  # m, of the whole foot in mid-swing


def normative(phase: np.ndarray) -> dict[str, np.ndarray]:
    """The published curves in radians at `phase [T]`, smoothed to six harmonics."""
    with (HERE / "normative_gait.csv").open() as file:
        rows = list(csv.DictReader(line for line in file if not line.startswith("#")))
    curves = {}
    for name in rows[0]:
        if name != "percent":
            spectrum = np.fft.rfft([float(row[name]) for row in rows]) / len(rows)
            waves = np.exp(2j * np.pi * np.outer(phase, np.arange(1, 7)))
            values = spectrum[0].real + 2 * np.real(waves @ spectrum[1:7])
            curves[name] = np.deg2rad(values)
    return curves


def start(model: mujoco.MjModel, phase: np.ndarray) -> np.ndarray:
    """First guess `[T, nq]`: both legs, trunk and arms, the pelvis at its standing height."""
    qpos = np.tile(model.qpos0, (len(phase), 1))
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
            qpos[:, address(model, f"{name}_{side}")] = values
    yaw = np.deg2rad(4.0) * np.cos(2 * np.pi * phase)  # right side forward at its contact
    here, there = normative(phase), normative(phase + 0.5)
    roll = 0.5 * (here["pelvis_obliquity"] - there["pelvis_obliquity"])  # right side up
    pitch = 0.5 * (here["pelvis_tilt"] + there["pelvis_tilt"]) - np.deg2rad(MEAN_TILT)
    qpos[:, 3:7] = pelvis_rotation(pitch, roll, yaw)
    # The trunk turns and leans against the pelvis, so that the shoulders counter-rotate.
    qpos[:, address(model, "axial_rotation")] = -1.6 * yaw
    qpos[:, address(model, "lat_bending")] = 0.8 * roll
    qpos[:, address(model, "flex_extension")] = np.deg2rad(-2.0)
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


def address(model: mujoco.MjModel, joint: str) -> int:
    return model.joint(joint).qposadr[0]


def foot_points(model: mujoco.MjModel, data: mujoco.MjData, qpos: np.ndarray) -> np.ndarray:
    """Lowest points `[8, 3]` of both ends of the right foot's capsules: heel ends first."""
    data.qpos[:] = satisfy_couplings(model, qpos)
    mujoco.mj_kinematics(model, data)
    rear, front = [], []
    for name in HEEL_GEOMS + TOE_GEOMS:
        geom = data.geom(name)
        radius, half = model.geom(name).size[:2]
        axis = geom.xmat.reshape(3, 3)[:, 2] * half
        down = np.array([0.0, 0.0, radius])
        rear.append(geom.xpos - axis - down)
        front.append(geom.xpos + axis - down)
    return np.array(rear + front)


# When each row of `foot_points` is on the floor; the other rows never bear.
DOWN = {0: HEEL_DOWN, 1: HEEL_DOWN, 2: BALL_DOWN, 3: BALL_DOWN, 7: BALL_DOWN, 6: TIP_DOWN}


def basis(phase: np.ndarray) -> np.ndarray:
    """Fourier basis `[T, 1 + 2 HARMONICS]`."""
    k = 2 * np.pi * np.outer(phase, np.arange(1, HARMONICS + 1))
    return np.hstack([np.ones((len(phase), 1)), np.cos(k), np.sin(k)])


def harmonic_numbers() -> np.ndarray:
    """Which harmonic each column of `basis` is `[1 + 2 HARMONICS]`."""
    return np.concatenate([[0], np.arange(1, HARMONICS + 1), np.arange(1, HARMONICS + 1)])


def root_basis(phase: np.ndarray) -> list[np.ndarray]:
    """Bases of the pelvis' path: x changes sign after half a cycle, y and z repeat."""
    full = basis(phase)
    k = harmonic_numbers()
    odd, even = full[:, k % 2 == 1], full[:, k % 2 == 0]
    return [odd, even[:, 1:], even]


def window(phase: np.ndarray, span: tuple[float, float]) -> np.ndarray:
    return ((phase >= span[0]) & (phase <= span[1])).astype(float)


class Parameters(NamedTuple):
    """How the unknowns are laid out: Fourier coefficients by column of qpos, then anchors."""

    columns: list[int]  # of qpos: the right leg's joints, then x, y, z of the pelvis
    bases: list[np.ndarray]  # [T, coefficients] of each column
    edges: np.ndarray  # where each column's coefficients begin
    cost: np.ndarray  # of bending each column
    anchors: np.ndarray  # [len(DOWN), 2] unknowns that hold where a bearing point rests
    ridge: np.ndarray  # [unknowns]

    def bend(self, x: np.ndarray, qpos: np.ndarray) -> np.ndarray:
        bent = qpos.copy()
        for basis_, column, first, last in self.pieces():
            bent[:, column] += basis_ @ x[first:last]
        return bent

    def pieces(self):
        return zip(self.bases, self.columns, self.edges, self.edges[1:], strict=False)

    def chain(self, slope: np.ndarray, t: int) -> np.ndarray:
        """Slopes by the columns `[..., columns]` at sample t as slopes by the unknowns."""
        result = np.zeros((*slope.shape[:-1], len(self.ridge)))
        for c, (basis_, _, first, last) in enumerate(self.pieces()):
            result[..., first:last] = slope[..., c, None] * basis_[t]
        return result


def parameters(model: mujoco.MjModel, phase: np.ndarray) -> Parameters:
    bases = [basis(phase)] * len(LEG) + root_basis(phase)
    edges = np.cumsum([0] + [b.shape[1] for b in bases])
    anchors = edges[-1] + np.arange(2 * len(DOWN)).reshape(-1, 2)
    cost = np.concatenate([LEG_COST, ROOT_COST])
    ridge = np.full(anchors[-1, -1] + 1, 1e-3)
    ripple = (harmonic_numbers() / SMOOTH) ** 4  # joints should not ripple
    for c in range(len(LEG)):
        ridge[edges[c] : edges[c + 1]] += 0.5 * len(phase) * cost[c] ** 2 * ripple
    columns = [address(model, f"{name}_r") for name in LEG] + [0, 1, 2]
    return Parameters(columns, bases, edges, cost, anchors, ridge)


def solve(model: mujoco.MjModel, qpos: np.ndarray, phase: np.ndarray) -> np.ndarray:
    """Bend the right leg and the pelvis' path by Gauss-Newton; returns the new `[T, nq]`."""
    data = mujoco.MjData(model)
    unknowns = parameters(model, phase)
    x = np.zeros(len(unknowns.ridge))
    points = np.array([foot_points(model, data, q) for q in qpos])
    for row, (point, span) in enumerate(DOWN.items()):
        x[unknowns.anchors[row]] = points[window(phase, span) > 0, point, :2].mean(0)
    for iteration in range(25):
        moved = unknowns.bend(x, qpos)
        rows, residuals = [], []
        for t in range(len(phase)):
            value, slope = foot_slopes(model, data, moved[t], unknowns.columns)
            _contact_rows(
                phase[t], value, unknowns.chain(slope, t), unknowns.anchors, x, rows, residuals
            )
            _prior_rows(model, moved[t], qpos[t], unknowns, t, rows, residuals)
        a, r = np.concatenate(rows), np.concatenate(residuals)
        step = np.linalg.solve(a.T @ a + np.diag(unknowns.ridge), a.T @ r + unknowns.ridge * x)
        x = x - step
        if iteration % 6 == 0 or np.linalg.norm(step) < 1e-4:
            print(f"iteration {iteration}: cost {r @ r:.4f}, step {np.linalg.norm(step):.1e}")
        if np.linalg.norm(step) < 1e-4:
            break
    return unknowns.bend(x, qpos)


def foot_slopes(
    model: mujoco.MjModel, data: mujoco.MjData, qpos: np.ndarray, columns: list[int]
) -> tuple[np.ndarray, np.ndarray]:
    """`foot_points [8, 3]` and their slopes `[8, 3, columns]`; the last three columns are xyz."""
    value = foot_points(model, data, qpos)
    slope = np.zeros((*value.shape, len(columns)))
    for c, column in enumerate(columns[:-3]):
        moved = qpos.copy()
        moved[column] += 1e-5
        slope[..., c] = (foot_points(model, data, moved) - value) / 1e-5
    slope[..., -3:] = np.eye(3)
    return value, slope


def _prior_rows(model, bent, qpos, unknowns: Parameters, t, rows, residuals) -> None:
    """Append the cost of bending, and what lies within 0.03 rad of a joint's limit."""
    prior = unknowns.chain(np.diag(unknowns.cost), t)
    rows.append(prior)
    residuals.append(unknowns.cost * (bent - qpos)[unknowns.columns])
    for c, name in enumerate(LEG):
        low, high = model.joint(f"{name}_r").range
        angle = bent[unknowns.columns[c]]
        beyond = angle - np.clip(angle, low + 0.03, high - 0.03)
        if beyond:
            rows.append(30.0 * prior[c : c + 1] / unknowns.cost[c])
            residuals.append([30.0 * beyond])


def _contact_rows(phase, value, chain, anchors, x, rows, residuals) -> None:
    """Append what the foot's points miss: floor and anchor in stance, clearance in swing."""
    weight = np.array([60.0, 60.0, 80.0])
    for row, (point, span) in enumerate(DOWN.items()):
        if window(phase, span):
            slope, miss = chain[point].copy(), value[point].copy()
            slope[[0, 1], anchors[row]] -= 1.0
            miss[:2] -= x[anchors[row]]
            rows.append(weight[:, None] * slope)
            residuals.append(weight * miss)
    floor = CLEARANCE if window(phase, SWING) else 0.0
    for point in np.nonzero(value[:, 2] < floor)[0]:
        rows.append(60.0 * chain[point, 2:3])
        residuals.append([60.0 * (value[point, 2] - floor)])


def mirror_left(model: mujoco.MjModel, qpos: np.ndarray) -> np.ndarray:
    """Give the left leg what the right leg does half a cycle later."""
    for name in LEG:
        right, left = address(model, f"{name}_r"), address(model, f"{name}_l")
        qpos[:, left] = np.roll(qpos[:, right], SAMPLES // 2)
    return qpos


def write(model: mujoco.MjModel, qpos: np.ndarray) -> None:
    """One cycle, both ends: the last row is the first, one stride further on."""
    coupled = set(model.eq_obj1id[model.eq_type == mujoco.mjtEq.mjEQ_JOINT].tolist())
    joints = [
        model.joint(j).name
        for j in range(1, model.njnt)
        if j not in coupled and not is_finger(model.joint(j).name)
    ]
    last = qpos[:1].copy()
    last[:, 1] -= SPEED * PERIOD
    columns = list(range(7)) + [address(model, name) for name in joints]
    root = [f"root_{part}" for part in ("x", "y", "z", "qw", "qx", "qy", "qz")]
    table = np.concatenate([qpos, last])[:, columns]
    with (HERE / "human_walk.csv").open("w", newline="") as file:
        file.write(
            "# Walking at 1.25 m/s, one cycle from right contact to right contact (make_walk.py).\n"
            "# Hip flexion and adduction, knees, ankles, pelvis tilt and obliquity come from\n"
            "# normative_gait.csv, bent until the feet stay on the floor. The rest is SYNTHETIC.\n"
        )
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["time", *root, *joints])
        for index, row in enumerate(table):
            writer.writerow([f"{index * PERIOD / SAMPLES:.4f}", *(f"{v:.6f}" for v in row)])


def is_finger(joint: str) -> bool:
    return joint.startswith(("cmc_", "mp_", "ip_", "mcp", "pm", "md"))


def main() -> None:
    model = myo_sim.load_spec("myofullbody").compile()
    phase = np.arange(SAMPLES) / SAMPLES
    qpos = solve(model, start(model, phase), phase)
    write(model, mirror_left(model, qpos))


if __name__ == "__main__":
    main()
