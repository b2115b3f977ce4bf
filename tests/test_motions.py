"""The reference gait: periodic, symmetric, at its speed, within limits, feet on the floor."""

import jax
import jax.numpy as jnp
import mujoco
import myo_sim
import numpy as np
import pytest

from mjx_qflex import motions
from mjx_qflex.errors import UserError
from mjx_qflex.porting.compartments import satisfy_couplings
from mjx_qflex.resources import data_folder

WALK = data_folder("assets") / "motions" / "human_walk.csv"
FOOT = ("foot_col1", "foot_col3", "bofoot_col1", "bofoot_col2")  # the sole's capsules
LEG = ("hip_flexion", "hip_adduction", "hip_rotation", "knee_angle", "ankle_angle")


@pytest.fixture(scope="module")
def columns():
    return motions.read_columns(WALK)


@pytest.fixture(scope="module")
def joints(columns):
    return ["root", *(name for name in columns if not name.startswith(("root_", "time")))]


@pytest.fixture(scope="module")
def walk(joints):
    return motions.load(WALK, joints)


@pytest.fixture(scope="module")
def model():
    return myo_sim.load_spec("myofullbody").compile()


def source_poses(model, columns):
    """The file's rows as poses of the source model, couplings satisfied."""
    qpos = np.tile(model.qpos0, (len(columns["time"]), 1))
    for i, suffix in enumerate(motions.FREE_SUFFIXES):
        qpos[:, i] = columns["root" + suffix]
    for name, values in columns.items():
        if not name.startswith(("root_", "time")):
            qpos[:, model.joint(name).qposadr[0]] = values
    return np.stack([satisfy_couplings(model, q) for q in qpos])


def sole_points(model, poses, side):
    """Lowest points `[T, 8, 3]` of both ends of the capsules under one foot."""
    data = mujoco.MjData(model)
    points = np.zeros((len(poses), 8, 3))
    for t, qpos in enumerate(poses):
        data.qpos[:] = qpos
        mujoco.mj_kinematics(model, data)
        for i, name in enumerate(FOOT):
            geom, (radius, half, _) = data.geom(f"{name}_{side}"), model.geom(f"{name}_{side}").size
            along = geom.xmat.reshape(3, 3)[:, 2] * half
            points[t, 2 * i : 2 * i + 2] = geom.xpos - [0, 0, radius] + np.stack([along, -along])
    return points


@pytest.mark.parametrize(("side", "shift"), [("r", 0.0), ("l", 0.5)])
def test_foot_stays_on_the_floor_in_stance(model, columns, side, shift):
    phase = (columns["time"] / columns["time"][-1] + shift)[:-1] % 1.0
    points = sole_points(model, source_poses(model, columns), side)[:-1]
    order = np.argsort(phase)
    phase, points = phase[order], points[order]
    # The left stance begins half a cycle in, so the first rows end it, a stride further on.
    if shift:
        points[phase >= shift, :, 1] -= 1.25 * 1.14
    stance = points[phase <= 0.6]
    height = stance[..., 2].min(axis=1)
    assert np.abs(height).max() < 0.02
    assert points[..., 2].min() > -0.02  # nor does the swinging foot go through the floor
    for end in range(8):
        bears = stance[stance[:, end, 2] < 0.003, end, :2]
        if len(bears):
            assert np.ptp(bears, axis=0).max() < 0.03
    # Both the heel's end and the toes' do bear at some time.
    assert (stance[..., 2] < 0.003).any(axis=0).sum() >= 6


def test_foot_clears_the_floor_in_swing(model, columns):
    phase = columns["time"] / columns["time"][-1]
    points = sole_points(model, source_poses(model, columns), "r")
    swing = points[(phase > 0.68) & (phase < 0.92)]
    assert swing[..., 2].min() > 0.01


def test_joint_limits_are_respected(model, columns, joints):
    for name in joints[1:]:
        low, high = model.joint(name).range
        assert low <= columns[name].min() and columns[name].max() <= high, name


def test_left_is_right_half_a_cycle_later(columns):
    for name in (*LEG, "shoulder_elv", "elbow_flexion"):
        right, left = columns[f"{name}_r"][:-1], columns[f"{name}_l"][:-1]
        np.testing.assert_allclose(left, np.roll(right, len(right) // 2), atol=2e-6)


def test_period_and_speed(walk):
    assert float(walk.period) == pytest.approx(1.14)
    now, later = walk.qpos(jnp.float32(0.4)), walk.qpos(jnp.float32(0.4 + 2 * 1.14))
    moved = np.array(later - now)
    assert moved[1] == pytest.approx(-2 * 1.14 * 1.25, abs=1e-4)
    np.testing.assert_allclose(np.delete(moved, 1), 0.0, atol=1e-4)
    times = jnp.linspace(0.0, 1.14, 200, endpoint=False)
    mean = jax.vmap(walk.qvel)(times).mean(axis=0)
    assert float(mean[1]) == pytest.approx(-1.25, abs=1e-3)
    assert float(jnp.abs(mean[6:]).max()) < 2e-2


def test_lookup_returns_the_rows_of_the_file(walk, columns, joints):
    header = ["root" + suffix for suffix in motions.FREE_SUFFIXES] + joints[1:]
    rows = np.stack([columns[name] for name in header], axis=1)
    looked_up = jax.vmap(walk.qpos)(jnp.asarray(columns["time"], jnp.float32))
    np.testing.assert_allclose(looked_up[:-1], rows[:-1], atol=2e-5)


def test_velocity_is_the_derivative_of_position(model, walk):
    step = 2e-3
    body = mujoco.MjSpec()
    body.worldbody.add_body(name="b", mass=1, inertia=[1, 1, 1]).add_freejoint()
    free = body.compile()
    for time in (0.1, 0.55, 1.139, 1.3):
        before, after = (np.array(walk.qpos(jnp.float32(time + h)), float) for h in (-step, step))
        velocity = np.array(walk.qvel(jnp.float32(time)))
        root = np.zeros(6)
        mujoco.mj_differentiatePos(free, root, 2 * step, before[:7], after[:7])
        np.testing.assert_allclose(velocity[:6], root, atol=5e-3)
        np.testing.assert_allclose(velocity[6:], (after - before)[7:] / (2 * step), atol=2e-2)


def test_missing_joint_is_named(joints):
    with pytest.raises(UserError, match="tail"):
        motions.load(WALK, [*joints, "tail"])


def test_half_a_period_is_refused(tmp_path, joints):
    lines = WALK.read_text().splitlines(keepends=True)
    short = tmp_path / "short.csv"
    short.write_text("".join(lines[:60]))
    with pytest.raises(UserError, match="one period"):
        motions.load(short, joints)
