"""Motions that cannot be meant: which way is up, units, limits, numbers that are none.

All files are written here; none is anybody's recording.
"""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from test_motion_files import RUN, human, recorded_run, write_acclaim, write_bvh

from mjx_qflex import motions
from mjx_qflex.errors import UserError
from mjx_qflex.motions import __main__ as command
from mjx_qflex.motions import library, recordings

TO_Z_UP = Rotation.from_euler("x", 90, degrees=True)


def written(path, columns):
    motions.write_columns(path, columns, "changed")
    return path


@pytest.fixture
def bvh(tmp_path):
    """The body's own run as a file with y up."""
    recording, _ = recorded_run()
    path = tmp_path / "run.bvh"
    write_bvh(path, recording.centres, recording.rate)
    return path


def test_the_axis_that_is_up_is_found(tmp_path, bvh):
    """The same run with z up in its file: the same recording, and none lies on its face."""
    own, _ = recorded_run()
    turned = {name: TO_Z_UP.apply(places) for name, places in own.centres.items()}
    other = tmp_path / "z_up.bvh"
    write_bvh(other, turned, own.rate)
    for path, up in ((bvh, "y"), (other, "z")):
        found = recordings.read(path)
        assert recordings.read(path, up=up).centres.keys() == found.centres.keys()
        for name, places in own.centres.items():
            np.testing.assert_allclose(found.centres[name], places, atol=1e-4)
            np.testing.assert_allclose(
                recordings.read(path, up=up).centres[name], places, atol=1e-4
            )


def test_a_body_that_does_not_stand_needs_the_axis(tmp_path):
    own, _ = recorded_run()
    turn = Rotation.from_euler("y", 90, degrees=True)
    path = tmp_path / "lies.bvh"
    write_bvh(path, {name: turn.apply(x) for name, x in own.centres.items()}, own.rate)
    with pytest.raises(UserError, match="--up=y or --up=z"):
        recordings.read(path)
    found = recordings.read(path, up="y").centres
    np.testing.assert_allclose(found["hip_r"], turn.apply(own.centres["hip_r"]), atol=1e-4)


def test_an_upright_body_comes_of_either_axis(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    own, _ = recorded_run()
    centres = {name: TO_Z_UP.apply(places) for name, places in own.centres.items()}
    write_bvh(tmp_path / "z.bvh", centres, own.rate)
    command.command(["--retarget=z.bvh"], None)
    assert "deepest sole: 0." in capsys.readouterr().out
    made = motions.read_columns(tmp_path / "z.csv")
    assert 0.7 < made["root_z"].mean() < 1.1


BROKEN = {
    "NaN": lambda text: text.replace("0.00000", "nan"),
    "infinite": lambda text: text.replace("0.00000", "inf", 1),
    "huge": lambda text: text.replace(" 0.0", " 1e308", 40),
    "frame time 0": lambda text: text.replace("Frame Time: 0.0", "Frame Time: 0.0000\n#"),
    "negative frame time": lambda text: text.replace("Frame Time: ", "Frame Time: -"),
    "frame time of an hour": lambda text: text.replace("Frame Time: ", "Frame Time: 3600"),
    "a channel of nothing": lambda text: text.replace("Xposition", "Qposition"),
    "no frames": lambda text: text[: text.index("Frame Time")],
    "fewer frames than it says": lambda text: text.replace("Frames: ", "Frames: 1"),
    "a number of many channels": lambda text: text.replace("CHANNELS 3", "CHANNELS 1000000"),
    "no brace": lambda text: text.replace("}", ""),
    "no numbers": lambda text: text.replace("0.", "a."),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_recording_takes_one_line(bvh, broken):
    bvh.write_text(BROKEN[broken](bvh.read_text()))
    with pytest.raises(UserError, match="run.bvh") as caught:
        library.retargeted(bvh, human())
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_joints_at_one_place_are_named(bvh):
    own, _ = recorded_run()
    write_bvh(bvh, {**own.centres, "knee_l": own.centres["hip_l"]}, own.rate)
    with pytest.raises(UserError, match="hip_l and knee_l at one place"):
        library.retargeted(bvh, human())


def test_names_in_other_letters_and_a_byte_order_mark_are_read(tmp_path, bvh):
    text = bvh.read_text().replace("ROOT Hips", "ROOT Hüfte")
    for data in (text.encode("latin-1"), text.encode("utf-8-sig")):
        bvh.write_bytes(data)
        assert recordings.read(bvh).rate == pytest.approx(recorded_run()[0].rate, rel=1e-3)
    path = tmp_path / "run.csv"
    for data in (RUN.read_bytes().decode(), "# Gehen für später\n" + RUN.read_bytes().decode()):
        for encoding in ("latin-1", "utf-8-sig"):
            path.write_bytes(data.encode(encoding))
            found = motions.read_columns(path)
            assert list(found) == list(motions.read_columns(RUN))


ACCLAIM = {
    "a bone that hangs from itself": lambda text: text.replace("rtibia rfoot", "rtibia rhipjoint"),
    "no order": lambda text: text.replace("order", "disorder"),
    "another channel": lambda text: text.replace("rx ry rz", "qx"),
    "no axis": lambda text: text.replace("XYZ", "ABC"),
    "no bones": lambda text: text.replace(":bonedata", ":nothing"),
    "no length": lambda text: text.replace("length 2", "length two"),
    "an unknown child": lambda text: text.replace("root rhipjoint", "root nobody"),
    "empty": lambda text: "",
}


@pytest.mark.parametrize("broken", ACCLAIM)
def test_a_broken_skeleton_takes_one_line(tmp_path, broken):
    path = write_acclaim(tmp_path, "0 0 0", [((0, 0, 0, 0, 0, 0), "0 0 0")] * 20)
    skeleton = path.with_name("07.asf")
    skeleton.write_text(ACCLAIM[broken](skeleton.read_text()))
    with pytest.raises(UserError, match="07_01.amc") as caught:
        recordings.read(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("rate", [0.0, -1.0, np.inf, np.nan, 1e9])
def test_an_impossible_rate_is_refused(bvh, rate):
    with pytest.raises(UserError, match="rate"):
        recordings.read(bvh, rate)


def degrees(columns):
    return {n: x if n.startswith(("root", "time")) else np.rad2deg(x) for n, x in columns.items()}


CHANGES = {
    "is it in degrees": degrees,
    "its time in": lambda columns: columns | {"time": 1000.0 * columns["time"]},
    "is its time in seconds": lambda columns: columns | {"time": 0.001 * columns["time"]},
    "the quaternion of root.*length 0": lambda columns: (
        columns | {f"root_q{x}": 0.0 * columns["time"] for x in "wxyz"}
    ),
    "length 2": lambda columns: (
        columns | {f"root_q{x}": 2.0 * columns[f"root_q{x}"] for x in "wxyz"}
    ),
    "in metres": lambda columns: columns | {"root_z": 100.0 * columns["root_z"]},
    "no column for knee_angle_r": lambda columns: {
        name: x for name, x in columns.items() if name != "knee_angle_r"
    },
}


@pytest.mark.parametrize("says", CHANGES)
def test_columns_that_cannot_be_meant_are_refused(tmp_path, says):
    columns = CHANGES[says](motions.read_columns(RUN))
    path = tmp_path / "mine.csv"
    with path.open("w") as file:  # with all digits, where `write_columns` rounds time
        file.write(",".join(columns) + "\n")
        rows = zip(*columns.values(), strict=True)
        file.writelines(",".join(f"{x:.9g}" for x in row) + "\n" for row in rows)
    for read in (library.of_human, library.retargeted):
        with pytest.raises(UserError, match=says) as caught:
            read(*((str(path), human()) if read is library.of_human else (path, human())))
        assert "\n" not in str(caught.value)


def test_one_joint_beyond_its_limit_is_refused_and_retargeting_moves_it_back(tmp_path):
    columns = motions.read_columns(RUN)
    path = written(tmp_path / "mine.csv", columns | {"knee_angle_r": columns["knee_angle_r"] + 2.0})
    with pytest.raises(UserError, match="knee_angle_r is .* and the joint goes from .* to"):
        library.of_human(str(path), human())
    made, _ = library.retargeted(path, human())
    library.of_human(str(written(tmp_path / "made.csv", made)), human())


@pytest.mark.parametrize(
    "data", [b"", b"\0\0\0", b"time,time\n0,0\n", b"a,b\n1\n", b"\xff\xfe" + bytes(range(256))]
)
def test_a_broken_table_takes_one_line(tmp_path, data):
    path = tmp_path / "mine.csv"
    path.write_bytes(data)
    with pytest.raises(UserError, match="mine.csv") as caught:
        library.of_human(str(path), human())
    assert "\n" not in str(caught.value)


def test_a_column_twice_is_refused(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("time,a,a\n0,1,1\n0.1,2,2\n")
    with pytest.raises(UserError, match="column a twice"):
        motions.read_columns(path)
