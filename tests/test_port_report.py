"""The report's verdict against the file as given, and reports of before."""

import json

import pytest
from test_port_given import BALLS, FLOOR, load

from mjx_qflex import port, resources
from mjx_qflex.porting import given
from mjx_qflex.reports import body

REPORTS = resources.package_folder().parent / "experiments" / "port"


@pytest.fixture
def balls(tmp_path, quick_compilation):
    """A function that reports on three balls on a floor, with some of their contacts ported."""

    def run(sections, capsys, *flags):
        folder = tmp_path / "balls"
        load(folder, BALLS.replace("{pair}", ""), sections)
        code = port.main([f"--body={folder}", "--no-speed", f"--output={tmp_path}", *flags])
        return code, capsys.readouterr().out, json.loads((tmp_path / "balls.json").read_text())

    return run


def test_a_port_of_all_contacts_is_within_tolerance(balls, capsys):
    """Of a body without actuators and without a scalar joint, too."""
    code, page, found = balls(FLOOR, capsys)
    assert code == 0 and found["shortcomings"] == []
    assert page.splitlines()[-1].startswith("Within tolerance: 5%")
    assert found["motion"][given.GIVEN]["relative"] < 1e-4
    wrong, moved = found["motion"][given.GIVEN]["joints"]["root"]
    assert wrong < 1e-4 * moved


def test_a_contact_left_out_is_not_and_the_last_line_says_why(balls, capsys):
    """The port agrees with the model cut as it is itself, and that does not count."""
    code, page, found = balls(FLOOR.replace('"a", ', ""), capsys)
    assert code == 1
    assert "Not within tolerance (5%)" in page.splitlines()[-1] and "root" in page.splitlines()[-1]
    assert found["motion"][given.GIVEN]["relative"] > 0.1
    assert found["motion"][given.CUT]["relative"] < 1e-3
    code, page, _ = balls(FLOOR.replace('"a", ', ""), capsys, "--tolerance=5")
    assert code == 0 and page.splitlines()[-1].startswith("Within tolerance: 500%")


def test_every_shortcoming_is_named_and_what_is_no_number_is_one():
    joints = {"hip": [0.2, 0.4], "knee": [0.1, 2.0]}
    motion = {t: {"relative": 0.5, "joints": joints} for t in (given.GIVEN, given.STIFF, given.CUT)}
    found = {"force, worst relative error": float("nan"), "paths": {}, "motion": motion}
    force, moved = given.shortcomings(found, 0.05)
    assert "forces" in force and "50%" in moved and "'hip'" in moved
    found["paths"] = {"over the range": {"joint torque, relative RMS, worst joint": 0.2}}
    assert "20%" in given.shortcomings(found, 0.05)[1]


def test_reports_of_before_can_still_be_read():
    assert len(body.table(REPORTS).splitlines()) >= 12
    page = body.as_markdown(json.loads((REPORTS / "myo_legs.json").read_text()))
    assert "50 steps with contacts" in page and "tolerance" not in page
