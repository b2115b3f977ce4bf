"""The shipped motions: periodic, at their speed, within limits, feet on the floor."""

import functools
import importlib
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import mujoco
import myo_sim
import numpy as np
import pytest

from mjx_qflex import motions
from mjx_qflex.errors import UserError
from mjx_qflex.motions import library, reference
from mjx_qflex.porting import recipe
from mjx_qflex.porting.compartments import satisfy_couplings
from mjx_qflex.resources import data_folder

FOLDER = data_folder("assets") / "motions"
WALK = FOLDER / "human_walk.csv"
MOTIONS = ("human_walk", "human_run", "human_dance")
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


# --- all shipped motions -------------------------------------------------------------------------


@functools.cache
def played(name):
    """A motion's table of poses, way included, and where the soles `[K, 2, 8, 3]` and masses are.

    The table is five times as dense as the file: this looks between its rows, too.
    """
    body = library.human("ms_human")
    motion = motions.load(FOLDER / f"{name}.csv", body.skeleton.joint_names)
    part = np.linspace(0.0, 1.0, len(motion.qpos_table))[:, None]
    table = np.array(motion.qpos_table, float) + part * np.array(motion.drift)
    soles, centres = [], []
    for qpos in table:
        data = body.skeleton.move(qpos)
        soles.append([[end for end in ends(body.skeleton.model, data, side)] for side in "rl"])
        centres.append(data.subtree_com[0].copy())
    return body, motion, table, np.array(soles), np.array(centres)


def ends(model, data, side):
    """Lowest points of both ends of the capsules under one foot."""
    for name in FOOT:
        radius, half, _ = model.geom(f"{name}_{side}").size
        geom = data.geom(f"{name}_{side}")
        for sign in (1, -1):
            yield geom.xpos + sign * half * geom.xmat.reshape(3, 3)[:, 2] - [0, 0, radius]


@pytest.mark.parametrize("name", MOTIONS)
def test_no_part_of_a_foot_is_below_the_floor(name):
    _, _, _, soles, _ = played(name)
    assert soles[..., 2].min() > -0.005  # 2 cm are allowed


@pytest.mark.parametrize("name", MOTIONS)
def test_limits_and_fitted_ranges_are_respected(name):
    body, _, table, _, _ = played(name)
    ranges = recipe.read("ms_human").ranges
    skeleton = body.skeleton
    limits = zip(skeleton.joint_names[1:], skeleton.low, skeleton.high, strict=True)
    for joint, low, high in limits:
        fitted = ranges.get(joint, (low, high))
        values = table[:, skeleton.qpos_place(joint)]
        assert max(low, fitted[0]) <= values.min() and values.max() <= min(high, fitted[1]), joint


@pytest.mark.parametrize("name", MOTIONS)
def test_angular_velocity_turns_the_root(name):
    _, motion, _, _, _ = played(name)
    step = 2e-3
    for time in np.arange(0.013, float(motion.period), 0.11):
        before, after = (np.array(motion.qpos(jnp.float32(time + h)), float) for h in (-step, step))
        found = np.zeros(3)
        mujoco.mju_subQuat(found, after[3:7], before[3:7])
        now = np.array(motion.qvel(jnp.float32(time)))[3:6]
        np.testing.assert_allclose(now, found / (2 * step), atol=0.15)
        assert before[3:7] @ after[3:7] > 0.9  # no jump of sign


@pytest.mark.parametrize("name", MOTIONS)
def test_a_pose_is_itself_a_period_later(name):
    _, motion, _, _, _ = played(name)
    for time in (0.0, 0.31, 0.999 * float(motion.period)):
        now = np.array(motion.qpos(jnp.float32(time)))
        for laps in (-1, 1, 2):
            later = np.array(motion.qpos(jnp.float32(time + laps * float(motion.period))))
            flip = motion.closing[3] if laps % 2 else 1.0
            later[3:7] *= flip
            np.testing.assert_allclose(later - laps * np.array(motion.drift), now, atol=2e-3)


def test_run_flies_at_three_metres_a_second():
    _, motion, table, soles, centres = played("human_run")
    period = float(motion.period)
    assert (table[0, 1] - table[-1, 1]) / period == pytest.approx(3.0, abs=1e-4)
    lowest = soles[..., 2].min(axis=(1, 2))
    flying = lowest > 0.003
    assert 0.2 < flying.mean() < 0.4
    assert lowest.max() > 0.03
    for stance in soles[..., 2].min(axis=2).T < 0.003:  # of either foot
        assert 0.3 < stance.mean() < 0.4
    speed = np.gradient(centres, period / (len(table) - 1), axis=0)
    assert np.abs(speed[:, 1] + 3.0).max() < 0.2
    fall = np.gradient(speed[:, 2], period / (len(table) - 1))[1:-1]
    assert fall[flying[1:-1]].mean() == pytest.approx(-9.81, abs=1.5)
    assert 0.04 < np.ptp(centres[:, 2]) < 0.1


@pytest.mark.parametrize(("name", "foot"), [("human_run", 0), ("human_run", 1), ("human_dance", 1)])
def test_feet_do_not_slide(name, foot):
    """Each end of a sole's capsule stays where it is while it is on the floor."""
    soles = played(name)[3][:, foot]
    longest = 0.0
    for end in range(8):
        down = soles[:, end, 2] < 0.002
        for span in np.split(np.arange(len(down)), np.flatnonzero(np.diff(down)) + 1):
            if down[span[0]]:
                longest = max(longest, np.ptp(soles[span, end, :2], axis=0).max())
    assert 0.0 < longest < 0.015


def test_dance_pivots_about_the_ball_of_the_foot():
    _, motion, table, soles, _ = played("human_dance")
    heading = np.unwrap(2 * np.arctan2(table[:, 6], table[:, 3]))
    assert heading[-1] - heading[0] == pytest.approx(2 * np.pi, abs=1e-4)
    assert motion.closing[3] == -1.0 and motion.closing[0] == 1.0
    forefoot = soles[:, 0, 5:, :2]
    assert np.linalg.norm(forefoot.mean(axis=1), axis=1).max() < 0.003
    # So no end slides but along its circle.
    assert np.ptp(np.linalg.norm(forefoot, axis=2), axis=0).max() < 0.003


def test_dance_balances_on_one_leg():
    _, motion, table, soles, centres = played("human_dance")
    time = np.linspace(0.0, float(motion.period), len(table))
    lowest = soles[..., 2].min(axis=2)
    assert lowest[:, 0].max() < 0.005  # the right foot never leaves the floor
    aloft = lowest[:, 1] > 0.05
    assert aloft[(time > 1.1) & (time < 2.4)].all() and aloft[(time > 4.1) & (time < 5.1)].all()
    balance = (time > 1.6) & (time < 2.3)
    assert lowest[balance, 1].min() > 0.25
    foot = soles[balance, 0, :, :2]
    inside = (centres[balance, None, :2] > foot.min(1, keepdims=True)) & (
        centres[balance, None, :2] < foot.max(1, keepdims=True)
    )
    assert inside.all()  # within the foot's box, so it need not fall


@pytest.mark.parametrize(
    "name", ["human_walk", "human_run", pytest.param("human_dance", marks=pytest.mark.slow)]
)
def test_scripts_make_the_files(name, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    script = importlib.import_module(name.replace("human", "make"))
    monkeypatch.setattr(script.feet, "HERE", tmp_path)
    (tmp_path / "normative_gait.csv").write_bytes((FOLDER / "normative_gait.csv").read_bytes())
    script.main()
    made, shipped = (motions.read_columns(f / f"{name}.csv") for f in (tmp_path, FOLDER))
    assert made.keys() == shipped.keys()
    for column, values in shipped.items():
        np.testing.assert_allclose(made[column], values, atol=5e-3, err_msg=column)


# --- files --------------------------------------------------------------------------------------


TURNTABLE = """
<mujoco><worldbody><body name="pelvis">
  <joint name="x" type="slide" axis="1 0 0"/>
  <joint name="turn" axis="0 0 1"/>
  <joint name="bend" axis="0 1 0"/>
  <geom size="0.1"/>
  <body name="hand" pos="0.4 0.1 0"><geom size="0.1"/></body>
</body></worldbody></mujoco>
"""


def test_landmarks_follow_a_scalar_root_that_turns_and_travels():
    model = mujoco.MjModel.from_xml_string(TURNTABLE)
    body = SimpleNamespace(source_model=lambda: model, source_qpos=np.array)
    part = np.linspace(0.0, 1.0, 101)
    wave = np.sin(2 * np.pi * part)
    columns = {"time": 2 * part, "x": 3 * part + 0.1 * wave, "turn": 2 * np.pi * part}
    columns["bend"] = 0.5 * wave
    motion = reference.from_columns("spin", columns, ["x", "turn", "bend"], ["x", "turn"])
    found = motions.landmarks(motion, body, ("pelvis", "hand"))
    data = mujoco.MjData(model)
    for time in np.random.default_rng(0).uniform(-3.0, 7.0, 20):
        data.qpos[:] = motion.qpos(jnp.float32(time))
        mujoco.mj_kinematics(model, data)
        np.testing.assert_allclose(found.positions(jnp.float32(time)), data.xpos[1:], atol=2e-4)


def test_missing_joint_is_named(joints):
    with pytest.raises(UserError, match="tail"):
        motions.load(WALK, [*joints, "tail"])


def test_half_a_period_is_refused(tmp_path, joints):
    lines = WALK.read_text().splitlines(keepends=True)
    short = tmp_path / "short.csv"
    short.write_text("".join(lines[:60]))
    with pytest.raises(UserError, match="one period"):
        motions.load(short, joints)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no rows"),
        ("# empty\n", "no rows"),
        ("time,hip\n", "no rows"),
        ("hip,knee\n0,0\n1,1\n", "time"),
        ("time,hip\n0,0\n1,a\n", "numbers"),
        ("time,hip\n0,0\n1\n", "numbers"),
        ("time,hip,knee\n0,0\n1,1\n", "gaps"),
        ("time,hip\n0,0\n1,nan\n", "gaps"),
        ("time,hip\n1,0\n0,0\n", "time"),
    ],
)
def test_files_that_are_no_table_are_refused_in_a_line(text, words, tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=rf"mine\.csv .*{words}") as refusal:
        motions.read_columns(path)
    assert "\n" not in str(refusal.value)


def test_uneven_steps_are_refused(tmp_path, joints, columns):
    late = tmp_path / "late.csv"
    time = columns["time"].copy()
    time[50:] += 0.5
    motions.write_columns(late, columns | {"time": time}, "late")
    with pytest.raises(UserError, match="even steps"):
        motions.load(late, joints)


def test_written_columns_are_read_back(tmp_path, columns):
    path = tmp_path / "same.csv"
    motions.write_columns(path, columns, "where it comes from\nand how")
    assert path.read_text().startswith("# where it comes from\n# and how\ntime,")
    for name, values in motions.read_columns(path).items():
        np.testing.assert_allclose(values, columns[name], atol=1e-6)
