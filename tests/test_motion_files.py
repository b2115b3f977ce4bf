"""A user's own motions: BVH, ASF and AMC read, retargeted, closed; and the command.

All files are written here; none is anybody's recording.
"""

import functools

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from mjx_qflex import motions
from mjx_qflex.errors import UserError
from mjx_qflex.motions import __main__ as command
from mjx_qflex.motions import library, recordings, retarget
from mjx_qflex.resources import data_folder

RUN = data_folder("assets") / "motions" / "human_run.csv"
BVH_NAMES = {
    "hip": "UpLeg", "knee": "Leg", "ankle": "Foot", "toe": "ToeBase", "shoulder": "Arm",
    "elbow": "ForeArm", "wrist": "Hand",
}  # fmt: skip


@functools.cache
def human():
    return library.human("ms_human")


@functools.cache
def recorded_run():
    """Joint centres of the body in its own run, by name `[T, 3]`, and the file's columns."""
    columns = motions.read_columns(RUN)
    return library._recording_of(human(), columns), columns


def to_y_up(places):
    return np.stack([places[:, 0], places[:, 2], -places[:, 1]], axis=1)


def write_bvh(path, centres, rate, scale=1.0):
    """All joints hang from the hips, placed by channels of their own: a legal, if odd, file."""
    lines = ["HIERARCHY", "ROOT Hips", "{", "OFFSET 0 0 0"]
    lines += ["CHANNELS 6 Xposition Yposition Zposition Zrotation Yrotation Xrotation"]
    columns = [np.zeros((len(centres["hip_r"]), 6))]
    for name, places in centres.items():
        part, _, side = name.rpartition("_")
        called = {"r": "Right", "l": "Left"}[side] + BVH_NAMES[part]
        lines += [f"JOINT mixamorig:{called}", "{", "OFFSET 0 1 0"]
        lines += ["CHANNELS 3 Xposition Yposition Zposition", "End Site", "{", "OFFSET 0 1 0"]
        lines += ["}", "}"]
        columns.append(scale * to_y_up(places))
    table = np.concatenate(columns, axis=1)
    lines += ["}", "MOTION", f"Frames: {len(table)}", f"Frame Time: {1 / rate:.6f}"]
    lines += [" ".join(f"{x:.5f}" for x in row) for row in table]
    path.write_text("\n".join(lines) + "\n")


def test_bvh_rotations_multiply_in_the_order_of_the_channels(tmp_path):
    """A chain whose knee turns: worked out with SciPy's Euler angles."""
    angles = {"Hips": (30, -40, 50), "RightUpLeg": (-20, 70, 10)}
    words, values, offset = [], [], "0 -2 1"
    for side in ("Right", "Left"):
        joints = ["JOINT {} { OFFSET 1 2 3 CHANNELS 3 Zrotation Xrotation Yrotation"]
        words += [joints[0].replace("{}", f"{side}UpLeg")]
        words += [f"JOINT {side}Leg {{ OFFSET {offset} CHANNELS 3 Zrotation Xrotation Yrotation"]
        words += ["End Site { OFFSET 0 0 0 } } }"]
        for part in ("Foot", "ToeBase", "Arm", "ForeArm", "Hand"):
            words += [f"JOINT {side}{part} {{ OFFSET 0 1 0 CHANNELS 1 Xrotation"]
            words += ["End Site { OFFSET 0 0 0 } }"]
        values += [*angles.get(f"{side}UpLeg", (0, 0, 0)), 0, 0, 0, *[0] * 5]
    root = "ROOT Hips { OFFSET 0 0 0 CHANNELS 6 Xposition Yposition Zposition Zrotation Xrotation "
    numbers = " ".join(map(str, [10, 20, 30, *angles["Hips"], *values]))
    text = f"HIERARCHY {root} Yrotation {' '.join(words)} }}\nMOTION\nFrames: 2\nFrame Time: 0.02\n"
    path = tmp_path / "chain.bvh"
    path.write_text(text + f"{numbers}\n{numbers}\n")
    found = recordings.read(path, up="y")
    assert found.rate == pytest.approx(50.0)
    root, hip = (Rotation.from_euler("ZXY", angles[n], degrees=True) for n in angles)
    place = np.array([10, 20, 30]) + root.apply([1, 2, 3])
    knee = place + (root * hip).apply([0, -2, 1])
    for name, (x, y, z) in (("hip_r", place), ("knee_r", knee)):
        np.testing.assert_allclose(found.centres[name][1], [x, -z, y], atol=1e-5)
    plain = np.array([10, 20, 30]) + root.apply([1, 0, 4])
    np.testing.assert_allclose(found.centres["knee_l"][0], plain[[0, 2, 1]] * [1, -1, 1], atol=1e-5)


ASF = """# a stick man
:version 1.10
:units
  mass 1.0
  length 0.5
  angle deg
:root
  order TX TY TZ RX RY RZ
  axis XYZ
  position 0 0 0
  orientation 0 0 0
:bonedata
{bones}
:hierarchy
  begin
    root {roots}
{children}
  end
"""
CHAINS = (("hipjoint", "femur", "tibia", "foot"), ("clavicle", "humerus", "radius"))


def write_acclaim(folder, femur, frames):
    """A skeleton of unit bones along -y; the right femur has `axis` angles and turns of its own."""
    bones, children, roots = [], [], []
    for side in "rl":
        for chain in CHAINS:
            names = [side + part for part in chain]
            roots.append(names[0])
            children += [f"    {a} {b}" for a, b in zip(names, names[1:], strict=False)]
            for name in names:
                axis, dof = (femur, "dof rx ry rz") if name == "rfemur" else ("0 0 0", "")
                bones.append(
                    f"  begin\n id 1\n name {name}\n direction 0 -1 0\n length 2\n"
                    f"  axis {axis} XYZ\n  {dof}\n  end"
                )
    text = ASF.format(bones="\n".join(bones), roots=" ".join(roots), children="\n".join(children))
    (folder / "07.asf").write_text(text)
    lines = ["#!OML:ASF", ":FULLY-SPECIFIED", ":DEGREES"]
    for number, (root, turn) in enumerate(frames, start=1):
        lines += [str(number), f"root {' '.join(map(str, root))}", f"rfemur {turn}"]
    (folder / "07_01.amc").write_text("\n".join(lines) + "\n")
    return folder / "07_01.amc"


def test_acclaim_bones_turn_about_their_own_axes(tmp_path):
    path = write_acclaim(tmp_path, "10 20 30", [((1, 2, 3, 15, 25, 35), "40 50 60")] * 2)
    found = recordings.read(path, up="y")
    assert found.rate == 120.0
    # Turns are about fixed axes: x first, then y, then z.
    root = Rotation.from_euler("xyz", [15, 25, 35], degrees=True)
    own = Rotation.from_euler("xyz", [10, 20, 30], degrees=True)
    turn = own * Rotation.from_euler("xyz", [40, 50, 60], degrees=True) * own.inv()
    hip = np.array([1, 2, 3]) + root.apply([0, -2, 0])
    knee = hip + (root * turn).apply([0, -2, 0])
    ankle = knee + (root * turn).apply([0, -2, 0])
    for name, (x, y, z) in (("hip_r", hip), ("knee_r", knee), ("ankle_r", ankle)):
        np.testing.assert_allclose(found.centres[name][0], [x, -z, y], atol=1e-6, err_msg=name)
    assert recordings.read(path, rate=60.0, up="y").rate == 60.0


def test_broken_and_incomplete_files_are_refused(tmp_path):
    path = write_acclaim(tmp_path, "0 0 0", [((0, 0, 0, 0, 0, 0), "0 0 0")] * 2)
    (tmp_path / "07.asf").rename(tmp_path / "other.asf")
    assert recordings.read(path, up="y").rate == 120.0  # the only skeleton there
    (tmp_path / "other.asf").unlink()
    with pytest.raises(UserError, match="07.asf"):
        recordings.read(path)
    bvh = tmp_path / "x.bvh"
    for text in (
        "",
        "HIERARCHY\nROOT Hips { OFFSET 0 0",
        "MOTION\nFrames: 1\nFrame Time: 0.1\n1\n",
    ):
        bvh.write_text(text)
        with pytest.raises(UserError, match=r"x\.bvh"):
            recordings.read(bvh)
    recording, _ = recorded_run()
    centres = {name: x for name, x in recording.centres.items() if name != "elbow_l"}
    write_bvh(bvh, centres, 100.0)
    with pytest.raises(UserError, match="elbow_l"):
        recordings.read(bvh)
    with pytest.raises(UserError, match="no motion file"):
        recordings.read(tmp_path / "none.bvh")


def test_retargeting_the_bodys_own_run_gives_it_back(tmp_path):
    """Turned, in centimetres, 20% larger, at another rate: the same joints come out."""
    recording, columns = recorded_run()
    turn = Rotation.from_euler("z", 40, degrees=True)
    centres = {name: turn.apply(places) for name, places in recording.centres.items()}
    path = tmp_path / "run.bvh"
    write_bvh(path, centres, recording.rate, scale=120.0)
    made, loss = library.retargeted(path, human())
    assert loss is not None
    assert max(loss.rms.values()) < 0.01 and max(loss.worst.values()) < 0.02
    assert loss.deepest < 0.01 and loss.closing < 0.005 and not loss.at_limit
    assert loss.scale == pytest.approx(1 / 120, rel=0.01)
    for joint in ("hip_flexion_r", "knee_angle_l", "ankle_angle_r", "elbow_flexion_l"):
        np.testing.assert_allclose(made[joint], columns[joint], atol=0.12, err_msg=joint)
    travel = made["root_y"][-1] - made["root_y"][0]
    assert travel == pytest.approx(-2.16, abs=0.02)  # straight ahead again
    assert made["root_x"][-1] - made["root_x"][0] == pytest.approx(0.0, abs=0.01)
    text = "\n".join(loss.lines())
    assert "RMS" in text and "knee_r" in text and "deepest sole" in text


def test_part_of_a_recording_becomes_a_period(tmp_path):
    """A piece that does not close is led back to its start, feet above the floor."""
    recording, _ = recorded_run()
    path = tmp_path / "run.bvh"
    write_bvh(path, recording.centres, recording.rate)
    made, loss = library.retargeted(path, human(), start=0.1, stop=0.6)
    assert loss is not None and loss.closing > 0.1
    assert loss.deepest < 0.02
    out = tmp_path / "piece.csv"
    motions.write_columns(out, made, "a piece")
    motion = motions.load(out, human().skeleton.joint_names)
    assert float(motion.period) == pytest.approx(0.5, abs=1e-3)
    ranges = zip(human().skeleton.low, human().skeleton.high, strict=True)
    for values, (low, high) in zip(np.array(motion.qpos_table)[:, 7:].T, ranges, strict=True):
        assert low - 0.01 <= values.min() and values.max() <= high + 0.01
    with pytest.raises(UserError, match="lasts 0.72 s"):
        library.retargeted(path, human(), start=5.0)


def test_a_full_turn_survives_retargeting():
    columns = motions.read_columns(RUN.with_name("human_dance.csv"))
    made, _ = retarget.retarget(
        library._recording_of(human(), columns), human().skeleton, human().parts, human().soles
    )
    start, end = (np.array([made[f"root_q{x}"][i] for x in "wxyz"]) for i in (0, -1))
    np.testing.assert_allclose(end, -start, atol=1e-6)


def test_joint_angles_that_do_not_close_are_closed(tmp_path):
    columns = motions.read_columns(RUN)
    path = tmp_path / "angles.csv"
    motions.write_columns(path, {name: x[:50] for name, x in columns.items()}, "half a stride")
    names = human().skeleton.joint_names
    with pytest.raises(UserError, match="not one period"):
        motions.load(path, names)
    made, loss = library.retargeted(path, human())
    assert isinstance(loss, retarget.AngleLoss)
    # Half a stride swaps the legs: far apart at the ends, and a quarter of the way blended.
    data = human().skeleton
    feet = data.origins(["pelvis", "toes_r", "toes_l", "talus_r", "talus_l"])
    rows = np.stack([columns[name] for name in data.columns()], axis=1)
    start, end = (data.positions(feet) for i in (0, 49) if data.move(rows[i]))
    gap = (end - start) - (end - start)[0] * [1.0, 1.0, 0.0]
    assert loss.closing == pytest.approx(np.linalg.norm(gap, axis=1).max(), abs=1e-3)
    away = np.rad2deg(made["knee_angle_r"] - columns["knee_angle_r"][:50])
    assert loss.rms["knee_angle_r"][0] == pytest.approx(np.sqrt(np.mean(away**2)), rel=1e-3)
    assert loss.rms["knee_angle_r"][1] == "degrees" and loss.rms["root (place)"][1] == "cm"
    assert loss.rms["root (place)"][0] < 5.0 and loss.rms["root (turn)"][0] < 10.0
    closed = tmp_path / "closed.csv"
    motions.write_columns(closed, made, "closed")
    assert float(motions.load(closed, names).drift[1]) == pytest.approx(-1.47, abs=0.02)


@pytest.mark.parametrize("body", ["myo_full_body", "ms_human_700"])
def test_other_bodies_run_as_well(body):
    try:
        other = library.human(body)
    except UserError as error:
        pytest.skip(str(error))
    motion = library.of_human("human_run", other)
    table = np.array(motion.qpos_table, float)
    part = np.linspace(0.0, 1.0, len(table))[:, None]
    table = table + part * np.array(motion.drift)
    soles = other.skeleton.capsule_ends(other.soles)
    lowest, pelvis = [], []
    for qpos in table:
        data = other.skeleton.move(qpos)
        lowest.append(other.skeleton.positions(soles)[:, 2].min())
        pelvis.append(data.body(other.parts.pelvis).xpos.copy())
    assert min(lowest) > -0.02
    assert 0.15 < np.mean(np.array(lowest) > 0.01) < 0.5  # it flies
    along = (pelvis[-1] - pelvis[0]) @ [*other.parts.forward, 0.0]
    assert along / float(motion.period) == pytest.approx(3.0, abs=0.05)
    assert np.min(pelvis, axis=0)[2] > 0.8 and np.max(pelvis, axis=0)[2] < 1.1


def test_a_file_without_time_is_refused(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("knee_angle_r\n0.0\n0.1\n")
    for read in (library.of_human, lambda name, body: library.retargeted(path, body)):
        with pytest.raises(UserError, match="time"):
            read(str(path), human())


def test_command_retargets_and_refuses(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recording, _ = recorded_run()
    write_bvh(tmp_path / "mine.bvh", recording.centres, recording.rate)
    command.command(["--retarget=mine.bvh"], None)
    out = capsys.readouterr().out
    assert "RMS" in out and "mine.csv: 73 rows, 0.72 s" in out
    motions.load(tmp_path / "mine.csv", human().skeleton.joint_names)
    command.command(["--retarget=mine.csv", "--output=again.csv"], None)
    out = capsys.readouterr().out
    for words in ("root (turn)", "knee_angle_r", "deepest sole", "from its first", "again.csv"):
        assert words in out
    for flags, words in (
        ([], "--show"),
        (["--show=run", "--retarget=mine.bvh"], "--show"),
        (["--show=jump", "--body=ms_human"], "human_run"),
        (["--retarget=none.bvh"], "none.bvh"),
        (["--retarget=none.csv", "--output=mine.csv"], "none.csv"),
        (["--retarget=mine.csv"], "would replace"),
        (["--retarget=mine.bvh", "--output=mine.mp4"], "csv"),
        (["--show=run", "--body=ostrich"], "ms_human"),
        (["--shwo=run"], "--show"),
    ):
        with pytest.raises(UserError, match=words):
            command.command(flags, None)


def test_command_shows_a_motion(tmp_path, monkeypatch):
    from videos import read_clip

    monkeypatch.setattr(command, "MIN_SECONDS", 0.3)
    monkeypatch.setattr(command, "FPS", 10.0)
    clip_path = tmp_path / "run.mp4"
    command.command(["--show=run", f"--output={clip_path}"], None)
    clip = read_clip(clip_path)
    assert clip.fps == 10.0 and len(clip.frames) == 7  # 0.72 s
    assert np.abs(np.asarray(clip.frames[0], float) - clip.frames[3]).max() > 50
