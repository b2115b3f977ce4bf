"""A port equals C MuJoCo on the file as given, or is refused in one line that names the element."""

import dataclasses

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from mjx_qflex import porting
from mjx_qflex.errors import UserError
from mjx_qflex.physics import fields
from mjx_qflex.porting import parity

ARM = """
<mujoco>
  <compiler angle="radian"/>
  <option/>
  <default>
    <joint axis="0 1 0" damping=".2" armature=".01"/>
    <geom type="capsule" size=".03" contype="0" conaffinity="0"/>
  </default>
  <worldbody>
    <site name="t_front" pos=".06 0 1"/>
    <site name="t_back" pos="-.06 0 1"/>
    <body name="upper" pos="0 0 1.2">
      <joint name="shoulder" limited="true" range="-1.5 1.5"/>
      <geom fromto="0 0 0 0 0 -.4" mass="2"/>
      <site name="u_front" pos=".05 0 -.15"/>
      <site name="u_back" pos="-.05 0 -.15"/>
      <site name="e_front" pos=".05 0 -.3"/>
      <body name="lower" pos="0 0 -.4">
        <joint name="elbow" limited="true" range="-.3 1.5"/>
        <geom fromto="0 0 0 0 0 -.4" mass="1"/>
        <site name="l_front" pos=".05 0 -.1"/>
      </body>
    </body>
  </worldbody>
  <tendon>
    <spatial name="sf"><site site="t_front"/><site site="u_front"/></spatial>
    <spatial name="sb"><site site="t_back"/><site site="u_back"/></spatial>
    <spatial name="ef"><site site="e_front"/><site site="l_front"/></spatial>
  </tendon>
  <actuator>
    <muscle name="sf" tendon="sf" force="300" lengthrange=".05 .35"/>
    <muscle name="sb" tendon="sb" force="200" lengthrange=".05 .35"/>
    <muscle name="ef" tendon="ef" force="100" lengthrange=".1 .3"/>
  </actuator>
</mujoco>
"""
RECIPE = """
[source]
file = "model.xml"
{sections}
[actuators]
count = {count}
[solver]
timestep = 0.002
iterations = 20
ls_iterations = 20
"""
EF = '<muscle name="ef" tendon="ef" force="100" lengthrange=".1 .3"/>'
ON_JOINT = '<muscle name="ef" joint="elbow" force="100" lengthrange="-1.5 1.5" {}/>'
FIXED = (
    '<fixed name="both"><joint joint="shoulder" coef=".03"/><joint joint="elbow" coef="-.05"/>'
    "</fixed>"
)
ON_FIXED = '<muscle name="ef" tendon="both" force="900" lengthrange="-.1 .1" gear="2"/>'
GENERAL = (
    '<general name="ef" {} dyntype="muscle" gaintype="muscle" biastype="muscle" dynprm=".01 .04 0" '
    'gainprm=".75 1.05 100 200 .5 1.6 1.5 1.3 1.2" biasprm=".75 1.05 100 200 .5 1.6 1.5 1.3 1.2" '
    'lengthrange=".1 .3"/>'
)
ELBOW = '<joint name="elbow" limited="true" range="-.3 1.5"/>'
MOTOR = '<actuator><position name="ef" joint="elbow" kp="20" gear="2" {}/></actuator>'
SHOULDER = '<joint name="shoulder" limited="true" range="-1.5 1.5"/>'


def edited(*edits):
    """The arm after replacing texts in it, each of which must be there."""
    xml = ARM
    for old, new in edits:
        assert old in xml
        xml = xml.replace(old, new)
    return xml


def muscle(attributes):
    return (EF, EF.replace("/>", f" {attributes}/>"))


def elbow(attributes):
    return (ELBOW, ELBOW.replace("/>", f" {attributes}/>"))


def option(attributes="", inside=""):
    return ("<option/>", f"<option {attributes}>{inside}</option>")


def flag(attributes):
    return option(inside=f"<flag {attributes}/>")


def motor(attributes=""):
    first, last = ARM.index("<actuator>"), ARM.index("</actuator>") + len("</actuator>")
    return (ARM[first:last], MOTOR.format(attributes))


def after(closing, text):
    return (closing, closing + text)


def load(folder, xml, sections=""):
    folder.mkdir(exist_ok=True)
    (folder / "model.xml").write_text(xml)
    spec = xml.partition("<actuator>")[2]
    count = sum(spec.count(f"<{kind} ") for kind in ("muscle", "position", "motor", "general"))
    (folder / "recipe.toml").write_text(RECIPE.format(sections=sections, count=count))
    return porting.load(str(folder))


def difference(body, model, ctrl, num_steps, speed=0.0):
    """Largest difference of the joints after steps under constant controls; C moves far more."""
    data = mujoco.MjData(model)
    start = body.initial_state()
    start = start._replace(qvel=start.qvel + speed)
    parity.set_source_state(body, data, start)
    data.ctrl[:] = ctrl
    before = data.qpos.copy()
    for _ in range(num_steps):
        mujoco.mj_step(model, data)
    end, _ = jax.jit(lambda s: body.advance(s, jnp.full(body.nu, ctrl), num_steps))(start)
    assert np.abs(data.qpos - before).max() > 0.02
    return np.abs(body.source_qpos(end.qpos) - data.qpos).max()


WITH_FRICTION = elbow('frictionloss="1"')
COUPLED = after("</tendon>", '<equality><joint joint1="elbow" joint2="shoulder"/></equality>')
WELD = '<equality><weld body1="upper" body2="lower" active="{}"/></equality>'
MOCAP = '<body mocap="true"><geom type="sphere" size=".1"/></body>'
FOLLOWED = {
    "nothing": [],
    "muscle on a joint": [(EF, ON_JOINT.format(""))],
    "muscle on a joint, gear": [(EF, ON_JOINT.format('gear="-.5"'))],
    "muscle on a joint in its parent": [(EF, GENERAL.format('jointinparent="elbow"'))],
    "muscle on a fixed tendon": [(EF, ON_FIXED), ("</tendon>", FIXED + "</tendon>")],
    "gear": [muscle('gear="1.3"')],
    "forcerange": [muscle('forcerange="-5 0"')],
    "ctrlrange": [muscle('ctrlrange="0 .1"')],
    "actrange": [(EF, GENERAL.format('tendon="ef" actlimited="true" actrange="0 .1"'))],
    "actearly": [(EF, GENERAL.format('tendon="ef" actearly="true"'))],
    "actuatorfrcrange of a joint": [elbow('actuatorfrcrange="-2 2"')],
    "damping with three coefficients": [elbow('damping=".05 .5 .2"')],
    "stiffness with three coefficients": [elbow('stiffness="2 3 5" springref=".3"')],
    "motor": [motor()],
    "motor with armature": [motor('armature=".05"')],
    "motor with damping": [motor('damping=".1 .2"')],
    "motor that limits its joint": [motor(), elbow('actuatorfrcrange="-.5 .5"')],
    "gravity off": [flag('gravity="disable"')],
    "limits off": [flag('limit="disable"')],
    "constraints off": [flag('constraint="disable"')],
    "dampers off": [flag('damper="disable"')],
    "springs off": [flag('spring="disable"'), elbow('stiffness="9"')],
    "explicit damping": [flag('eulerdamp="disable"'), elbow('damping="3"')],
    "controls not clamped": [flag('clampctrl="disable"'), muscle('ctrlrange="0 .1"')],
    "a mocap body": [("<worldbody>", "<worldbody>" + MOCAP)],
}  # fmt: skip
HARMLESS = {
    "contacts off": [flag('contact="disable"')],
    "friction off": [flag('frictionloss="disable"'), WITH_FRICTION],
    "couplings off": [flag('equality="disable"'), COUPLED],
    "an inactive weld": [after("</tendon>", WELD.format("false"))],
    "an inactive coupling": [COUPLED, ('"shoulder"/></eq', '"shoulder" active="false"/></eq')],
    "an elliptic cone without contacts": [option('cone="elliptic"')],
    "the collision of old": [option('collision="predefined"')],
    "limits of a tendon that nothing moves": [
        ("</tendon>", '<spatial range="0 1" limited="true"><site site="t_front"/>'
         '<site site="t_back"/></spatial></tendon>'),
    ],
    "limits of a tendon that its joints never reach": [
        ("</tendon>", FIXED.replace("<fixed", '<fixed range="-9 9" limited="true"') + "</tendon>"),
    ],
    "an unused tendon's actuatorfrcrange": [
        ("</tendon>", FIXED.replace("<fixed", '<fixed actuatorfrcrange="-9 9"') + "</tendon>"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("what", list(FOLLOWED))
def test_what_is_followed_equals_c_mujoco(tmp_path, quick_compilation, what):
    xml = edited(*FOLLOWED[what])
    body = load(tmp_path / "arm", xml)
    assert difference(body, mujoco.MjModel.from_xml_string(xml), 0.6, 150, speed=0.5) < 5e-6


@pytest.mark.parametrize("what", list(HARMLESS))
def test_what_does_not_matter_leaves_the_port_as_it_is(tmp_path, what):
    body, plain = (load(tmp_path / n, edited(*e)) for n, e in (("a", HARMLESS[what]), ("b", [])))
    for part in ("tree", "muscle_constants", "tendons", "linear"):
        one, other = (dataclasses.asdict(getattr(b, part)) for b in (body, plain))
        jax.tree.map(np.testing.assert_array_equal, one, other)


LOCKED = """
  <equality><joint joint1="elbow" joint2="wrist" polycoef=".2 1 0 0 0"/></equality>
  <sensor><jointpos joint="wrist"/></sensor>
  <keyframe><key qpos="1 2 3"/></keyframe>
"""
WRIST = (
    '<site name="l_front" pos=".05 0 -.1"/><body><joint name="wrist"/><geom size=".02 .1"/></body>'
)


def test_a_locked_joint_takes_what_reads_it_along(tmp_path, quick_compilation):
    """Keyframes, sensors, and its coupling: what it drives is held where it then stands."""
    xml = edited(('<site name="l_front" pos=".05 0 -.1"/>', WRIST), after("</actuator>", LOCKED))
    body = load(tmp_path / "arm", xml, '[joints]\nlock = ["wrist"]')
    assert body.joint_names == ("shoulder",)
    assert body.source_qpos(body.initial_state().qpos)[1] == pytest.approx(0.2)
    driven = xml.replace('joint1="elbow" joint2="wrist"', 'joint1="wrist" joint2="elbow"')
    body = load(tmp_path / "driven", driven, '[joints]\nlock = ["wrist"]')
    assert body.joint_names == ("shoulder", "elbow") and body.source.neq == 0


def general(**types):
    """The muscle `ef` of the types given, and of a muscle's where none is."""
    xml = GENERAL.format('tendon="ef"')
    for name, value in types.items():
        xml = xml.replace(f'{name}="muscle"', f'{name}="{value}"')
    return (EF, xml)


BALL = '<body name="free"><joint name="b" type="ball"/><geom type="sphere" size=".1"/></body>'
ROOT = '<body><joint name="root" type="free" {}/><geom type="sphere" size=".1"/></body>'
FLEX = (
    '<worldbody><flexcomp name="cloth" type="grid" count="3 3 1" spacing=".1 .1 .1" dim="2" '
    'mass="1" radius=".01"><edge equality="true"/></flexcomp>'
)
HELD = '<equality><joint joint1="elbow"/><joint joint1="shoulder"/></equality>'
REFUSED = {
    "a muscle on a site": ([(EF, GENERAL.format('site="l_front"'))], "actuator 'ef'"),
    "a muscle on a slider-crank": (
        [(EF, GENERAL.format('cranksite="l_front" slidersite="e_front" cranklength=".3"'))],
        "actuator 'ef'"),
    "a muscle that filters": ([general(dyntype="filter")], "'ef'.*dyntype"),
    "a muscle without activation": ([general(dyntype="none")], "'ef'.*dyntype"),
    "a muscle with an affine bias": ([general(biastype="affine")], "'ef'.*biastype"),
    "a muscle on a free joint": (
        [("<worldbody>", "<worldbody>" + ROOT.format("")),
         (EF, ON_JOINT.format("").replace("elbow", "root"))], "muscle 'ef'"),
    "a motor that filters": (
        [motor(), ("<position", '<general dyntype="filter"'), ('kp="20"', "")], "'ef'"),
    "a delay": ([muscle('delay=".01" nsample="9"')], "'ef' has a delay"),
    "armature on a tendon's actuator": ([muscle('armature=".1"')], "'ef' has armature"),
    "a group switched off": ([option('actuatorgroupdisable="2"'), muscle('group="2"')], "'ef'"),
    "tendon armature": ([('<spatial name="ef">', '<spatial name="ef" armature="1">')], "'ef'"),
    "a tendon's spring": ([('<spatial name="ef">', '<spatial name="ef" stiffness="1">')], "'ef'"),
    "a tendon's damping": ([('<spatial name="ef">', '<spatial name="ef" damping="1">')], "'ef'"),
    "a tendon's limits": (
        [('<spatial name="ef">', '<spatial name="ef" range="0 .2" limited="true">')], "'ef'"),
    "actuatorfrcrange of a tendon": (
        [('<spatial name="ef">', '<spatial name="ef" actuatorfrcrange="-1 1">')], "'ef'"),
    "actuatorfrcrange of a coupled joint": (
        [COUPLED, elbow('actuatorfrcrange="-1 1"')], "'elbow'"),
    "friction": ([WITH_FRICTION], "'elbow' has dry friction"),
    "gravity compensation": ([('name="lower"', 'name="lower" gravcomp="1"')], "body 'lower'"),
    "a ball": ([("<worldbody>", "<worldbody>" + BALL)], "joint 'b' is one of the ball joints"),
    "a spring of the root": (
        [("<worldbody>", "<worldbody>" + ROOT.format('stiffness="5"'))], "'root'.*spring"),
    "an active weld": ([after("</tendon>", WELD.format("true"))], "weld"),
    "a fluid": ([option('density="1"')], "density"),
    "an integrator": ([option('integrator="RK4"')], "integrator"),
    "actuation off": ([flag('actuation="disable"')], "actuation"),
    "refsafe off": ([flag('refsafe="disable"')], "refsafe"),
    "sleep": ([flag('sleep="enable"')], "sleep"),
    "a flex": ([("<worldbody>", FLEX), ('damping=".2"', "")], "flex 'cloth'"),
    "every joint coupled": ([after("</tendon>", HELD)], "every joint is coupled"),
    "no joints": ([(ELBOW, ""), (SHOULDER, "")], "no joints"),
}  # fmt: skip


@pytest.mark.parametrize("what", list(REFUSED))
def test_what_a_port_cannot_have_is_refused_by_name(tmp_path, what):
    edits, named = REFUSED[what]
    with pytest.raises(UserError, match=named) as error:
        load(tmp_path / "arm", edited(*edits))
    assert "\n" not in str(error.value)


def test_the_list_of_fields_is_mujocos_own():
    model = mujoco.MjSpec().compile()
    for found, own in zip(fields.treatments(), (model, model.opt), strict=True):
        names = {n for n in dir(own) if not n.startswith("_") and not callable(getattr(own, n))}
        assert names == set(found), names ^ set(found)


def test_every_flag_has_been_thought_of():
    """Those that are neither obeyed nor without effect are refused, and named here."""
    refused = {
        "mjDSBL_ACTUATION",
        "mjDSBL_REFSAFE",
        "mjENBL_SLEEP",
        "mjENBL_DIAGEXACT",
        "mjENBL_IPC",
    }
    for kind, known in (
        (mujoco.mjtDisableBit, fields.FLAGS_OBEYED + fields.FLAGS_WITHOUT_EFFECT),
        (mujoco.mjtEnableBit, fields.ENABLED_OBEYED + fields.ENABLED_WITHOUT_EFFECT),
    ):
        bits = {n for n, bit in kind.__members__.items() if "_" in n and bit not in known}
        assert bits == {name for name in refused if name in kind.__members__}


BALLS = """
<mujoco>
  <option/>
  <worldbody>
    <geom name="floor" type="plane" size="5 5 .1" euler="0 9 0"/>
    <body name="tripod" pos="0 0 .105">
      <freejoint name="root"/>
      <geom name="a" size=".1" pos="-.15 0 0" mass="1"/>
      <geom name="b" size=".1" pos=".15 .1 0" mass="1"/>
      <geom name="c" size=".1" pos=".15 -.1 0" mass="1"/>
    </body>
  </worldbody>
  <contact>{pair}</contact>
</mujoco>
"""
FLOOR = '[contacts]\nfloor = "floor"\nwith_floor = ["a", "b", "c"]'
TOUCHING = {
    "nothing": [],
    "override": [option(
        'o_solref=".1 1" o_friction=".05 .05 .005 .0001 .0001" o_margin=".01"',
        '<flag override="enable"/>')],
    "impratio": [option('impratio="5"')],
    "little friction": [('size="5 5 .1"', 'size="5 5 .1" friction=".01" priority="1"')],
    "priority": [('name="a"', 'name="a" friction=".1" priority="1" solref=".05 1"')],
    "pair": [("{pair}", '<pair geom1="a" geom2="floor" friction=".1 .1 .005 .0001 .0001" '
              'solref=".1 1" margin=".005"/>')],
}  # fmt: skip


@pytest.mark.parametrize("what", list(TOUCHING))
def test_touch_is_c_mujocos(tmp_path, quick_compilation, what):
    xml = BALLS
    for edit in TOUCHING[what]:
        xml = xml.replace(*edit)
    xml = xml.replace("{pair}", "")
    body = load(tmp_path / "balls", xml, FLOOR)
    assert difference(body, mujoco.MjModel.from_xml_string(xml), 0.0, 200) < 2e-5


CANNOT_TOUCH = {
    "no friction": (
        [('size="5 5 .1"', 'size="5 5 .1" friction="0" priority="1"')], "'a'.*friction of 0"),
    "gap": ([('name="a"', 'name="a" gap=".01" margin=".01"')], "'a'.*a gap"),
    "condim": ([('name="a"', 'name="a" condim="4"')], "'a'.*condim 4"),
    "surface velocity": ([('name="a"', 'name="a" surfacevel="1 0 0 0 0 0"')], "'a'.*velocity"),
    "adhesion": ([('name="a"', 'name="a" adhesion="1"')], "'a'.*adhesion"),
    "elliptic": ([option('cone="elliptic"')], "elliptic"),
    "noslip": ([option('noslip_iterations="5"')], "noslip"),
    "contacts off": ([flag('contact="disable"')], "disables contacts"),
    "two frictions": ([("{pair}", '<pair geom1="a" geom2="floor" friction=".1 .2"/>')], "'a'.*two"),
    "a frictionless pair": ([("{pair}", '<pair geom1="a" geom2="floor" condim="1"/>')], "condim 1"),
}  # fmt: skip


@pytest.mark.parametrize("what", list(CANNOT_TOUCH))
def test_touch_that_a_port_cannot_have_is_refused(tmp_path, what):
    edits, named = CANNOT_TOUCH[what]
    xml = BALLS
    for edit in edits:
        assert edit[0] in xml
        xml = xml.replace(*edit)
    with pytest.raises(UserError, match=named) as error:
        load(tmp_path / "balls", xml.replace("{pair}", ""), FLOOR)
    assert "\n" not in str(error.value)
