"""What recipes add to a source or replace in it."""

import mujoco
import numpy as np
import pytest

from mjx_qflex import porting
from mjx_qflex.errors import UserError
from mjx_qflex.porting import recipe

# Angles in degrees, MJCF's default.
SOURCE = """
<mujoco>
  <asset><mesh name="bone" vertex="0 0 0  .1 0 0  0 .02 0  0 0 .02"/></asset>
  <worldbody>
    <body name="trunk">
      <freejoint/>
      <geom size="0.1"/>
      <geom type="box" size="0.1 0.1 0.1"/>
      <geom type="capsule" size="0.02 0.1"/>
      <body name="thigh">
        <inertial pos="0 0 -0.1" mass="1" diaginertia="0.01 0.01 0.01"/>
        <joint name="hip" axis="0 1 0" range="-60 120"/>
        <geom name="thigh" type="mesh" mesh="bone"/>
        <body name="shin" pos="0 0 -0.2">
          <joint name="knee" axis="0 1 0"/>
          <geom name="shin" type="mesh" mesh="bone" pos="0 0 0.01"/>
        </body>
      </body>
    </body>
  </worldbody>
  <actuator><motor name="old" joint="knee"/></actuator>
</mujoco>
"""
FLOOR = '<mujoco><worldbody><geom name="floor" type="plane" size="1 1 1"/></worldbody></mujoco>'
RECIPE = """
[source]
file = "robot.xml"
[attach]
files = ["floor.xml"]
[contacts]
floor = "floor"
with_floor = ["trunk/1", "thigh"]
mesh_capsules = true
[actuators]
count = 1
[actuators.position]
"h*" = { kp = 20, kv = 3, limit = 4 }
[solver]
timestep = 0.002
iterations = 2
ls_iterations = 2
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "robot.xml").write_text(SOURCE)
    (tmp_path / "floor.xml").write_text(FLOOR)
    (tmp_path / "recipe.toml").write_text(RECIPE)
    return tmp_path


def test_servos_replace_the_sources_actuators(folder):
    model = recipe.source_model(recipe.read(str(folder)))
    assert [model.actuator(i).name for i in range(model.nu)] == ["hip"]
    np.testing.assert_allclose(model.actuator_ctrlrange, np.deg2rad([[-60, 120]]))
    data = mujoco.MjData(model)
    for ctrl, q, qdot, expected in ((0.3, 0.2, 0.1, 20 * 0.1 - 3 * 0.1), (2.0, -1.0, 0.0, 4.0)):
        data.ctrl[:], data.joint("hip").qpos[:], data.joint("hip").qvel[:] = ctrl, q, qdot
        mujoco.mj_forward(model, data)
        assert data.actuator_force[0] == pytest.approx(expected)


def test_ranges_of_joints_and_with_them_of_servos(folder):
    text = RECIPE + '[joints.range]\n"hi?" = [-0.5, 0.7]\n'
    (folder / "recipe.toml").write_text(text)
    model = recipe.source_model(recipe.read(str(folder)))
    np.testing.assert_allclose(model.joint("hip").range, [-0.5, 0.7])
    np.testing.assert_allclose(model.actuator_ctrlrange, [[-0.5, 0.7]])
    (folder / "recipe.toml").write_text(text.replace('"hi?"', '"hop"'))
    with pytest.raises(UserError, match="did you mean 'hip'"):
        recipe.source_spec(recipe.read(str(folder)))


def test_nameless_parts_get_names_and_the_floor_is_attached(folder):
    model = recipe.source_model(recipe.read(str(folder)))
    assert model.joint("trunk").type == mujoco.mjtJoint.mjJNT_FREE
    assert model.geom("trunk/0").type == mujoco.mjtGeom.mjGEOM_SPHERE
    assert model.geom("trunk/1").type == mujoco.mjtGeom.mjGEOM_CAPSULE
    assert model.geom("floor").bodyid == 0


def test_a_mesh_in_contact_becomes_a_capsule_only_where_the_recipe_says_so(folder):
    (folder / "recipe.toml").write_text(RECIPE.replace("mesh_capsules = true\n", ""))
    with pytest.raises(UserError, match="'thigh' .mesh.*mesh_capsules = true"):
        porting.load(str(folder))


def test_a_mesh_in_contact_becomes_the_capsule_that_mujoco_fits(folder):
    kind = mujoco.mjtGeom.mjGEOM_CAPSULE
    fitted = mujoco.MjModel.from_xml_string(
        SOURCE.replace('name="thigh" type="mesh"', 'name="thigh" type="capsule"')
    )
    model = recipe.source_model(recipe.read(str(folder)))
    assert model.geom("thigh").type == kind
    assert model.geom("shin").type == mujoco.mjtGeom.mjGEOM_MESH
    for field in ("size", "pos", "quat"):
        np.testing.assert_allclose(
            getattr(model.geom("thigh"), field), getattr(fitted.geom("thigh"), field)
        )


SERVO = '"h*" = { kp = 20, kv = 3, limit = 4 }'


@pytest.mark.parametrize(
    ("edit", "what"),
    [
        (("kp = 20", "kpp = 20"), "'kp'"),
        (("kp = 20, ", ""), "needs kp"),
        (('"h*"', '"hipp"'), "did you mean 'hip'"),
        (('"h*"', '"knee"'), "no limits"),
        ((SERVO, SERVO + SERVO.replace("h*", "\n*p").replace('"\n', '\n"')), "two servos"),
        (("floor.xml", "flor.xml"), "flor.xml is not there"),
        (('"thigh"]', '"shin"]'), "inertia"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(folder, edit, what):
    (folder / "recipe.toml").write_text(RECIPE.replace(*edit))
    with pytest.raises(UserError, match=what) as error:
        recipe.source_spec(recipe.read(str(folder)))
    assert "\n" not in str(error.value)


def test_a_damaged_attachment_is_refused(folder):
    (folder / "floor.xml").write_text("<mujoco>")
    with pytest.raises(UserError, match="not a model that MuJoCo reads"):
        recipe.source_spec(recipe.read(str(folder)))


def test_a_copy_without_its_visible_geoms_shows_the_others(folder):
    hidden = SOURCE.replace("<asset>", '<default><geom group="3"/></default><asset>', 1)
    (folder / "robot.xml").write_text(hidden)
    model = recipe.source_model(recipe.read(str(folder)))
    assert not model.geom_group.any()
    shown = hidden.replace('geom name="shin"', 'geom name="shin" group="2"')
    (folder / "robot.xml").write_text(shown)
    model = recipe.source_model(recipe.read(str(folder)))
    assert model.geom("thigh").group == 3 and model.geom("shin").group == 2
