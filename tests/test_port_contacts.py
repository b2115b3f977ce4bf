"""Contacts between moving bodies, and servos, against C MuJoCo."""

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from mjx_qflex import porting
from mjx_qflex.errors import UserError
from mjx_qflex.physics import contacts
from mjx_qflex.porting import parity

RECIPE = """
[source]
file = "model.xml"
[contacts]
pairs = [{pairs}]
[actuators]
count = {count}
[solver]
timestep = 0.002
iterations = 20
ls_iterations = 20
"""

SURFACES = {
    "sphere": 'type="sphere" size=".3"',
    "capsule": 'type="capsule" size=".2 .4" euler="20 70 0"',
    "box": 'type="box" size=".5 .4 .2"',
}
MOVERS = {"sphere": 'type="sphere" size=".1"', "capsule": 'type="capsule" size=".08 .15"'}


def ported(folder, xml, pairs, count=0):
    quoted = ", ".join(f'["{a}", "{b}"]' for a, b in pairs)
    (folder / "model.xml").write_text(xml)
    (folder / "recipe.toml").write_text(RECIPE.format(pairs=quoted, count=count))
    return porting.load(str(folder))


def two_bodies(mover, surface):
    return f"""
<mujoco>
  <worldbody>
    <body name="surface"><freejoint name="below"/>
      <geom name="surface" {SURFACES[surface]} mass="3"/></body>
    <body name="mover" pos="0 0 1"><freejoint name="above"/>
      <geom name="mover" {MOVERS[mover]} mass="1" friction=".6"/></body>
  </worldbody>
</mujoco>"""


def touching(model, rng):
    """A state in which the mover has just sunk into the surface, in any orientation of both."""
    data = mujoco.MjData(model)
    while True:
        data.qpos[3:7], data.qpos[10:14] = rng.normal(size=(2, 4))
        data.qpos[:3], data.qpos[7:10] = 0, rng.uniform(-0.6, 0.6, size=3)
        data.qvel[:] = 0.5 * rng.normal(size=12)
        mujoco.mj_normalizeQuat(model, data.qpos)
        mujoco.mj_forward(model, data)
        if data.ncon and -0.04 < data.contact.dist.min() < -0.002:
            return data


@pytest.mark.parametrize("surface", list(SURFACES))
@pytest.mark.parametrize("mover", list(MOVERS))
def test_two_moving_bodies_push_each_other_as_in_c_mujoco(tmp_path, mover, surface):
    body = ported(tmp_path, two_bodies(mover, surface), [("surface", "mover")])
    model, rng = body.source, np.random.default_rng(5)
    step = jax.jit(body.step)
    compared = 0
    while compared < 8:
        data = touching(model, rng)
        if mover == "capsule" and (surface == "box" or data.ncon > 1):
            # Over an edge or a face MuJoCo has rules of its own: only where an end touches a face.
            local = data.contact.pos - data.geom("surface").xpos
            local = np.abs(local @ data.geom("surface").xmat.reshape(3, 3))
            beyond = (local > model.geom("surface").size - 0.01).sum(axis=1)
            if data.ncon > 1 or beyond[0] != 1 or not on_an_end(data):
                continue
        state = body.initial_state()._replace(
            qpos=jnp.asarray(data.qpos, jnp.float32), qvel=jnp.asarray(data.qvel, jnp.float32)
        )
        _, acceleration = step(state, jnp.zeros(0))
        scale = np.abs(data.qacc).max()
        np.testing.assert_allclose(acceleration, data.qacc, atol=5e-3 * scale)
        compared += 1


def on_an_end(data):
    """Whether the contact is at the round end of the moving capsule."""
    geom = data.geom("mover")
    local = geom.xmat.reshape(3, 3).T @ (data.contact.pos[0] - geom.xpos)
    return abs(local[2]) > 0.15


def test_a_sphere_inside_a_box_leaves_through_the_nearest_face(tmp_path):
    body = ported(tmp_path, two_bodies("sphere", "box"), [("surface", "mover")])
    for place, direction in (([0.45, 0, 0], [1, 0, 0]), ([0, -0.1, -0.15], [0, 0, -1])):
        qpos = jnp.array([0, 0, 0, 1, 0, 0, 0, *place, 1, 0, 0, 0], jnp.float32)
        state = body.initial_state()._replace(qpos=qpos)
        _, acceleration = body.step(state, jnp.zeros(0))
        away = np.asarray(acceleration[6:9]) + [0, 0, 9.81]
        np.testing.assert_allclose(away / np.linalg.norm(away), direction, atol=0.1)


def test_boxes_cannot_meet(tmp_path):
    xml = two_bodies("sphere", "box").replace(MOVERS["sphere"], SURFACES["box"])
    with pytest.raises(UserError, match="sphere or a capsule"):
        ported(tmp_path, xml, [("surface", "mover")])
    with pytest.raises(UserError, match="wall"):
        ported(tmp_path, xml, [("surface", "wall")])


def test_no_contacts_are_no_rows(tmp_path):
    body = ported(tmp_path, two_bodies("sphere", "box"), [])
    assert body.contacts == ()
    _, acceleration = body.step(body.initial_state(), jnp.zeros(0))
    np.testing.assert_allclose(acceleration[jnp.array([2, 8])], -9.81, rtol=1e-5)
    assert contacts.build(body.source, body.tree, []) == ()


ARM = """
<mujoco>
  <worldbody>
    <body name="upper"><joint name="shoulder" axis="0 1 0" damping=".3"/>
      <geom name="upper" type="capsule" size=".03" fromto="0 0 0 .4 0 0" mass="2"/>
      <body name="lower" pos=".4 0 0"><joint name="elbow" axis="0 1 0" armature=".05"/>
        <geom name="lower" type="capsule" size=".03" fromto="0 0 0 .3 0 0" mass="1"/></body></body>
  </worldbody>
  <actuator>
    <position name="hold" joint="elbow" kp="60" kv="4" ctrlrange="-1 1" forcerange="-15 15"/>
    <motor name="turn" joint="shoulder" gear="8" ctrllimited="true" ctrlrange="-1 1"/>
  </actuator>
</mujoco>
"""


def test_servos_and_motors_are_those_of_c_mujoco(tmp_path):
    body = ported(tmp_path, ARM, [], count=2)
    assert (body.nu, body.num_muscles) == (2, 0) and body.initial_state().act.shape == (0,)
    data, rng = mujoco.MjData(body.source), np.random.default_rng(0)
    clipped = 0
    for _ in range(20):
        q, v, ctrl = rng.uniform(-1.5, 1.5, size=(3, 2))
        data.qpos[:], data.qvel[:], data.ctrl[:] = q, v, ctrl
        mujoco.mj_forward(body.source, data)
        state = body.initial_state()._replace(qpos=jnp.float32(q), qvel=jnp.float32(v))
        force = body.servo_force(state, jnp.float32(ctrl))
        np.testing.assert_allclose(force, data.actuator_force, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(
            body.step(state, jnp.float32(ctrl))[1], data.qacc, rtol=1e-3, atol=1e-2
        )
        clipped += abs(force[0]) == 15
    assert 0 < clipped < 20


def test_servos_follow_c_mujoco_for_a_hundred_steps(tmp_path):
    body = ported(tmp_path, ARM, [], count=2)
    state, data = body.initial_state(), mujoco.MjData(body.source)
    data.ctrl[:] = 0.7, -0.2
    for _ in range(100):
        mujoco.mj_step(body.source, data)
    state, _ = body.advance(state, jnp.float32(data.ctrl), 100)
    np.testing.assert_allclose(state.qpos, data.qpos, atol=1e-4)


def test_muscles_and_motors_do_not_mix(tmp_path):
    tendon = '<tendon><fixed name="t"><joint joint="elbow" coef="1"/></fixed></tendon>'
    muscle = '<muscle name="m" tendon="t" force="1" lengthrange="0 1"/></actuator>'
    xml = ARM.replace("</actuator>", muscle).replace("<actuator>", tendon + "<actuator>")
    with pytest.raises(UserError, match="one kind"):
        ported(tmp_path, xml, [], count=3)


def test_free_bodies_fall_together(tmp_path):
    """Several free bodies in one tree: as C MuJoCo, without contacts."""
    body = ported(tmp_path, two_bodies("capsule", "box"), [])
    starts = parity.random_states(body, np.random.default_rng(0), 4, speed=1.0)
    data = mujoco.MjData(body.source)
    model = body.source.__copy__()
    model.opt.disableflags |= int(mujoco.mjtDisableBit.mjDSBL_CONTACT)
    for start in starts:
        parity.set_source_state(body, data, start)
        for _ in range(100):
            mujoco.mj_step(model, data)
        after, _ = body.advance(start, jnp.zeros(0), 100)
        np.testing.assert_allclose(body.source_qpos(after.qpos), data.qpos, atol=2e-4)
