"""Repairs of the source's muscle paths: what leaves, what stays, what is refused; ms_human's."""

import dataclasses

import mujoco
import numpy as np
import pytest

from mjx_qflex import motions, porting, resources
from mjx_qflex.errors import UserError
from mjx_qflex.porting import changes, compartments, parity, recipe, repairs

BENT = """
<mujoco><worldbody>
  <site name="origin" pos="0 0 0"/>
  <body><joint name="j" axis="0 1 0"/><geom name="ball" size="0.02" pos="0.1 0 0"/>
    <site name="detour" pos="0.1 0 0.3"/><site name="end" pos="0.4 0 0"/></body>
</worldbody>
<tendon><spatial name="t"><site site="origin"/><site site="detour"/><geom geom="ball"/>
  <site site="end"/></spatial></tendon>
<actuator><muscle name="m" tendon="t" lengthrange="0.5 1.5"/></actuator></mujoco>"""


def test_a_point_leaves_the_path_and_the_rest_stays():
    spec = mujoco.MjSpec.from_string(BENT)
    repairs.apply(spec, {"m": repairs.Repair(("detour",), "it is a detour")})
    model = spec.compile()
    assert model.ntendon == 1
    assert [model.site(i).name for i in model.wrap_objid[[0, 2]]] == ["origin", "end"]
    assert model.geom(model.wrap_objid[1]).name == "ball"
    # The muscle keeps its normalised length at the neutral pose: its range moves with the path.
    before = mujoco.MjSpec.from_string(BENT).compile()
    lengths = [compartments.neutral_data(m).ten_length[0] for m in (before, model)]
    assert lengths[0] - lengths[1] > 0.2  # m
    moved = model.actuator("m").lengthrange - before.actuator("m").lengthrange
    np.testing.assert_allclose(moved, lengths[1] - lengths[0], atol=1e-9)


@pytest.mark.parametrize(
    ("table", "what"),
    [
        ({"biceps": {"leave_out": ["detour"], "reason": "r"}}, "biceps"),
        ({"m": {"leave_out": ["knee"], "reason": "r"}}, "knee"),
        ({"m": {"leave_out": ["detour"]}}, "reason"),
        ({"m": {"leaveout": ["detour"], "reason": "r"}}, "leave_out"),
        ({"m": {"leave_out": "detour", "reason": "r"}}, "list of names"),
        ({"m": {"leave_out": ["detour", "end"], "reason": "r"}}, "two sites"),
    ],
)
def test_an_impossible_repair_is_refused(table, what):
    with pytest.raises(UserError, match=what):
        repairs.apply(mujoco.MjSpec.from_string(BENT), repairs.read("recipe.toml", table))


@pytest.fixture(scope="module")
def human():
    return porting.load("ms_human")


def test_the_report_says_what_the_repair_changes(human):
    right, left = changes.repair_changes(human, num_poses=60)
    assert (right["muscle"], left["muscle"]) == ("TRIlong", "TRIlong_l")
    for row in (right, left):
        before, after = row["moment arms, RMS (mm)"][f"shoulder_rot_{row['left out'][0][-1]}"]
        assert before > 30 and after < 10
        assert row["length change, largest (mm)"] > row["length change, RMS (mm)"] > 1
    for joint, (before, after) in right["moment arms, RMS (mm)"].items():
        if joint.startswith("elbow"):
            assert before == pytest.approx(after)


def test_the_repaired_path_does_not_fold(human):
    """Its arm about the humerus changes slowly over the joint's range; the untouched one flips."""
    instructions = recipe.read("ms_human")
    untouched = recipe.source_model(dataclasses.replace(instructions, repairs={}))
    turn = np.linspace(-1.5, 2.0, 100)
    largest = {}
    for title, model in (("untouched", untouched), ("repaired", human.source)):
        data, tendon = mujoco.MjData(model), model.actuator("TRIlong").trnid[0]
        qpos, length = compartments.satisfy_couplings(model, model.qpos0), []
        for value in turn:
            qpos[model.joint("shoulder_rot_r").qposadr] = value
            data.qpos[:] = compartments.satisfy_couplings(model, qpos)
            compartments.forward_paths(model, data)
            length.append(data.ten_length[tendon])
        arm = np.gradient(length, turn)
        largest[title] = np.abs(np.diff(arm)).max()
    assert largest["untouched"] > 10e-3  # m within 2 degrees
    assert largest["repaired"] < 1e-3


def test_free_motion_with_muscles_follows_c_mujoco(human):
    """From random poses near the neutral one, and from the gait that the body learns to follow."""
    starts = parity.random_states(human, np.random.default_rng(0), 2)
    gait = motions.load(
        resources.data_folder("assets") / "motions" / "human_walk.csv", human.joint_names
    )
    for time in (0.0, 0.4 * float(gait.period)):
        starts.append(human.initial_state()._replace(qpos=gait.qpos(time), qvel=gait.qvel(time)))
    assert parity.motion_error(human, actuated=True, starts=starts) < 0.05
