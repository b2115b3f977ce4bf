"""Make `fans.csv`: how broad each muscle of this body is, and in which direction it broadens.

    python models/ms_human/make_fans.py        (about 4 minutes on two cores)

Paths are the model's own, without the recipe's repairs.

Breadth starts at the square root of the physiological cross-section, peak force / specific tension,
and at most `max_width` and `max_width_of_length` of the muscle's path. Then, on random poses over
all joint ranges, the muscle is split into two strips along each of seven directions: six across
its neutral line of pull and the axis of the first cylinder that it wraps. A split counts where the
two strips together keep the muscle's torque on every joint; where none does, the breadth shrinks.
Of the splits that count, the one whose strips differ most in moment arm is taken. Left muscles
mirror right ones (x -> -x). At last every muscle is split into sixteen strips, and where an outer
strip slips off its wrap, so that the torque is not kept, the breadth shrinks until it is.
"""

import csv
import tomllib
from pathlib import Path
from typing import NamedTuple

import mujoco
import myo_sim
import numpy as np

from mjx_qflex.porting import compartments
from mjx_qflex.porting.compartments import Fan

HERE = Path(__file__).parent
POSES = 200
SCALES = (1.0, 0.5, 0.25)
TOLERANCE = 0.008  # torque error of one muscle; leaves room for errors that add up over muscles
FINE = 16  # strips of the last check, whose outer ones lie further out than two strips do
HALF_STRIP = 1 / np.sqrt(3)  # two strips at +-HALF_STRIP have the spread of many over the breadth


class Paths(NamedTuple):
    """Forces and moment arms of muscles over poses, at rest, on the independent joints."""

    passive: np.ndarray  # [P, M] N, without activation
    active: np.ndarray  # [P, M] N, what full activation adds
    arms: np.ndarray  # [P, M, J] m


def load() -> tuple[mujoco.MjSpec, dict]:
    recipe = tomllib.loads((HERE / "recipe.toml").read_text())
    return myo_sim.load_spec(recipe["source"]["model"]), recipe


def independent_joints(model: mujoco.MjModel, locked: set[str]) -> list[int]:
    coupled = set(model.eq_obj1id[model.eq_type == mujoco.mjtEq.mjEQ_JOINT].tolist())
    return [
        j
        for j in range(model.njnt)
        if model.jnt_type[j] != mujoco.mjtJoint.mjJNT_FREE
        and j not in coupled
        and model.joint(j).name not in locked
    ]


def random_poses(model: mujoco.MjModel, joints: list[int], count: int, seed: int) -> np.ndarray:
    """Poses `[count, nq]`, independent joints uniform over their limits, couplings satisfied."""
    rng = np.random.default_rng(seed)
    qpos = np.tile(model.qpos0, (count, 1))
    for j in joints:
        qpos[:, model.jnt_qposadr[j]] = rng.uniform(*model.jnt_range[j], size=count)
    return np.stack([compartments.satisfy_couplings(model, q) for q in qpos])


def coupling_jacobian(model: mujoco.MjModel, qpos: np.ndarray, joints: list[int]) -> np.ndarray:
    """d(velocities) / d(independent velocities) `[nv, J]` by central differences."""
    jacobian = np.zeros((model.nv, len(joints)))
    for column, j in enumerate(joints):
        moved = []
        for step in (1e-5, -1e-5):
            q = qpos.copy()
            q[model.jnt_qposadr[j]] += step
            moved.append(compartments.satisfy_couplings(model, q))
        velocity = np.zeros(model.nv)
        mujoco.mj_differentiatePos(model, velocity, 2e-5, moved[1], moved[0])
        jacobian[:, column] = velocity
    return jacobian


def evaluate(model: mujoco.MjModel, poses: np.ndarray, jacobians: np.ndarray) -> Paths:
    """Forces and moment arms of every actuator, in the model's order, over the poses."""
    data = mujoco.MjData(model)
    tendon = model.actuator_trnid[:, 0]
    dense = np.zeros((model.ntendon, model.nv))
    passive, active, arms = [], [], []
    for qpos, jacobian in zip(poses, jacobians, strict=True):
        data.qpos[:] = qpos
        compartments.forward_paths(model, data)
        mujoco.mj_transmission(model, data)
        forces = []
        for activation in (0.0, 1.0):
            data.act[:] = activation
            mujoco.mj_fwdActuation(model, data)
            forces.append(data.actuator_force.copy())
        mujoco.mju_sparse2dense(
            dense, data.ten_J.ravel(), model.ten_J_rownnz, model.ten_J_rowadr, model.ten_J_colind
        )
        passive.append(forces[0])
        active.append(forces[1] - forces[0])
        arms.append(dense[tendon] @ jacobian)
    return Paths(np.array(passive), np.array(active), np.array(arms))


def anatomical_widths(spec: mujoco.MjSpec, model: mujoco.MjModel, table: dict) -> dict[str, float]:
    """Breadth (m) of each muscle from its physiological cross-section, capped."""
    data = compartments.neutral_data(model)
    widths = {}
    for muscle in spec.actuators:
        cross_section = muscle.gainprm[2] / table["specific_tension"] * 1e-4  # N / (N/cm^2) -> m^2
        length = data.ten_length[model.tendon(muscle.target).id]
        widths[muscle.name] = min(
            np.sqrt(cross_section), table["max_width"], table["max_width_of_length"] * length
        )
    return widths


def directions(spec: mujoco.MjSpec, model: mujoco.MjModel) -> dict[str, np.ndarray]:
    """Candidate directions `[7, 3]` of each muscle: world frame, neutral pose."""
    data = compartments.neutral_data(model)
    tendons = {tendon.name: tendon for tendon in spec.tendons}
    candidates = {}
    for muscle in spec.actuators:
        path = list(tendons[muscle.target].path)
        pull = data.site(path[-1].target.name).xpos - data.site(path[0].target.name).xpos
        pull = pull / np.linalg.norm(pull)
        first = np.cross(pull, np.eye(3)[np.argmin(np.abs(pull))])
        first = first / np.linalg.norm(first)
        second = np.cross(pull, first)
        angles = np.arange(6) * np.pi / 6
        across = np.outer(np.cos(angles), first) + np.outer(np.sin(angles), second)
        axes = [
            data.geom(wrap.target.name).xmat.reshape(3, 3)[:, 2]
            for wrap in path
            if wrap.type == mujoco.mjtWrap.mjWRAP_CYLINDER
        ]
        candidates[muscle.name] = np.vstack([across, axes[0] if axes else across[0]])
    return candidates


def split(parts: int, drop: list[str], fans: dict[str, Fan], poses, jacobians) -> Paths:
    """`evaluate`, every muscle divided into `parts` strips: axis 1 is `[M, parts]` flattened."""
    spec, _ = load()
    for muscle in [muscle for muscle in spec.actuators if muscle.name in drop]:
        spec.delete(muscle)
    compartments.divide_into(spec, dict.fromkeys(fans, parts), fans)
    order = [f"{name}#{strip}" for name in fans for strip in range(1, parts + 1)]
    model = spec.compile()
    paths = evaluate(model, poses, jacobians)
    index = [model.actuator(name).id for name in order]
    return select(paths, index)


def select(paths: Paths, muscles: np.ndarray | list[int]) -> Paths:
    return Paths(*(array[:, muscles] for array in paths))


def rms(x: np.ndarray, axis: int = 0) -> np.ndarray:
    return np.sqrt(np.mean(np.square(x), axis=axis))


def torque_errors(parent: Paths, strips: Paths) -> np.ndarray:
    """Largest torque error over joints `[M]`, in parts of what the muscle does there.

    Active and passive force are held to it separately: their errors have opposite signs, and would
    cancel at one activation only.
    """
    own = rms((parent.active + parent.passive)[..., None] * parent.arms)  # [M, J]
    total = np.sqrt(np.sum(own**2, axis=0))  # [J]
    scale = np.sqrt(own**2 + total**2 / np.sum(own > 0.01 * total, axis=0))
    errors = []
    for force, strip_force in zip(parent[:2], strips[:2], strict=True):
        torque = force[..., None] * parent.arms
        pieces = (strip_force[..., None] * strips.arms).reshape(
            *torque.shape[:2], -1, torque.shape[-1]
        )
        errors.append(np.max(rms(pieces.sum(axis=2) - torque) / scale, axis=1))
    return np.maximum(*errors)


def spread(strips: Paths) -> np.ndarray:
    """By how much (m) the two strips of each muscle differ in moment arm `[M]`."""
    pairs = strips.arms.reshape(strips.arms.shape[0], -1, 2, strips.arms.shape[-1])
    return np.sqrt(np.mean(np.sum((pairs[:, :, 0] - pairs[:, :, 1]) ** 2, axis=-1), axis=0))


def choose(names, widths, candidates, drop, parent: Paths, poses, jacobians) -> dict[str, Fan]:
    """The direction and breadth of each muscle, by the rule in this file's docstring."""
    best = {name: (-1.0, Fan(0.0, (1.0, 0.0, 0.0))) for name in names}
    for which in range(7):
        width = dict.fromkeys(names, 0.0)
        difference = dict.fromkeys(names, 0.0)
        for scale in SCALES:
            # Strips of `divide` lie at a quarter of the width on either side.
            fans = {
                name: Fan(2 * HALF_STRIP * scale * widths[name], tuple(candidates[name][which]))
                for name in names
            }
            strips = split(2, drop, fans, poses, jacobians)
            for name, error, differ in zip(
                names, torque_errors(parent, strips), spread(strips), strict=True
            ):
                shrink = min(1.0, np.sqrt(TOLERANCE / max(error, 1e-12)))
                usable = shrink == 1.0 or scale == SCALES[-1]
                if width[name] == 0.0 and usable:
                    width[name] = shrink * scale * widths[name]
                    difference[name] = shrink * differ
        for name in names:
            if difference[name] > best[name][0]:
                best[name] = (difference[name], Fan(width[name], tuple(candidates[name][which])))
        print(f"direction {which + 1} of 7 done", flush=True)
    return {name: fan for name, (_, fan) in best.items()}


def settle(fans: dict[str, Fan], drop, parent: Paths, poses, jacobians) -> dict[str, Fan]:
    """Narrow the muscles whose torque many strips do not keep."""
    for _ in range(8):
        errors = torque_errors(parent, split(FINE, drop, fans, poses, jacobians))
        too_wide = [name for name, e in zip(fans, errors, strict=True) if e > TOLERANCE]
        print(f"{len(too_wide)} muscles too wide for {FINE} strips", flush=True)
        if not too_wide:
            break
        fans = fans | {name: fans[name]._replace(width=0.7 * fans[name].width) for name in too_wide}
    return fans


def mirror(fans: dict[str, Fan]) -> dict[str, Fan]:
    """Give a right and its left muscle one breadth and mirrored directions."""
    fans = dict(fans)
    for left in [name for name in fans if name.endswith("_l")]:
        stem = left.removesuffix("_l")
        right = f"{stem}_r" if f"{stem}_r" in fans else stem
        x, y, z = fans[right].direction
        width = round(min(fans[left].width, fans[right].width), 4)
        fans[right] = Fan(width, (x, y, z))
        fans[left] = Fan(width, (-x, y, z))
    return fans


def main() -> None:
    spec, recipe = load()
    table = recipe["actuators"]
    drop = table["drop"]
    model = spec.compile()
    joints = independent_joints(model, set(recipe["joints"]["lock"]))
    poses = random_poses(model, joints, POSES, seed=0)
    jacobians = np.stack([coupling_jacobian(model, q, joints) for q in poses])
    kept = np.array([a.name not in drop for a in spec.actuators])
    names = [a.name for a, keep in zip(spec.actuators, kept, strict=True) if keep]
    parent = select(evaluate(model, poses, jacobians), kept)

    widths = anatomical_widths(spec, model, table)
    candidates = directions(spec, model)
    fans = choose(names, widths, candidates, drop, parent, poses, jacobians)
    fans = mirror(settle(fans, drop, parent, poses, jacobians))
    with (HERE / "fans.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["muscle", "anatomical_width_mm", "width_mm", "x", "y", "z"])
        for name, fan in fans.items():
            numbers = (widths[name] * 1e3, fan.width * 1e3)
            writer.writerow(
                [name, *(f"{v:.1f}" for v in numbers), *(f"{v:.4f}" for v in fan.direction)]
            )


if __name__ == "__main__":
    main()
