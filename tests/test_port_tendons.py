"""Exact muscle paths against C MuJoCo: straight pieces, spheres, cylinders, inside wraps."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from conftest import load_body

from mjx_qflex import porting, resources
from mjx_qflex.errors import UserError
from mjx_qflex.physics import dynamics, tendons, tree
from mjx_qflex.porting import fitting, parity

BODIES = ["myo_legs", "ms_human", "myo_full_body", "ms_human_700", "ostrich"]


@functools.cache
def exact(name):
    """The body with all of its paths exact, whatever its recipe says."""
    body = load_body(name)
    paths = tendons.from_model(body.source, body.tree, range(body.nu))
    return dataclasses.replace(body, path_groups=(), tendons=paths)


def samples(body, num, seed):
    """C MuJoCo's tendons over the full range of all joints."""
    q = fitting.random_poses(fitting.joint_ranges(body.tree, {}), num, seed)
    return fitting.sample(body.source, body.tree, q)


@pytest.mark.parametrize("name", BODIES)
def test_lengths_and_arms_over_the_full_range(name):
    body = exact(name)
    found = samples(body, 100, seed=11)
    arms = np.zeros((len(found.q), body.nu, found.q.shape[1]))
    arms[:, found.pair_muscle, found.pair_joint] = found.arm
    home, rng = body.initial_state(), np.random.default_rng(0)
    qdot = rng.normal(size=found.q.shape)

    def muscles(q, qdot):
        free = jnp.ones(6 * body.tree.num_free)  # the root's motion must not matter
        qpos = jnp.concatenate([home.qpos[: 7 * body.tree.num_free], q])
        state = home._replace(qpos=qpos, qvel=jnp.concatenate([free, qdot]))
        return body.muscles(state)

    evaluate = jax.jit(jax.vmap(muscles), compiler_options=body.compiler_options)
    result = evaluate(found.q.astype(np.float32), qdot.astype(np.float32))
    velocity = np.einsum("sar,sr->sa", arms, qdot)
    # Single poses lie where a path jumps from one way around its wrap to the other: there rounding
    # decides which of them it takes.
    for mine, expected in ((result.length, found.length), (result.velocity, velocity)):
        assert (np.abs(mine - expected) > 2e-5).mean() < 1e-4
        assert np.median(np.abs(mine - expected)) < 1e-6
    assert not result.outside.any()


@pytest.mark.parametrize("name", ["myo_legs", "ostrich"])
def test_joint_forces_are_those_of_c_mujoco(name):
    body = exact(name)
    data, rng = mujoco.MjData(body.source), np.random.default_rng(3)
    force = jax.jit(lambda state: body._actuator_force(state, state.act, body._place_nodes(state)))
    for state in parity.random_states(body, rng, 10):
        parity.set_source_state(body, data, state)
        mujoco.mj_forward(body.source, data)
        joints = data.qfrc_actuator[body.tree.source_qvel_address]
        placed = body._place_nodes(state)
        expected = (joints * np.asarray(placed.joints.slope)) @ body.tree.reduce
        np.testing.assert_allclose(
            force(state), expected, atol=2e-5 * np.abs(expected).max(), rtol=2e-4
        )


def test_exact_paths_move_the_body_as_c_mujoco_does():
    """Polynomials, which this body once had, were 1.4% off after the same motion."""
    assert parity.motion_error(exact("myo_legs"), actuated=True) < 1e-3


def test_compiled_and_exact_paths_stand_side_by_side():
    body, reference = load_body("arm"), exact("arm")
    some = [1, 4]
    groups = tuple(
        dataclasses.replace(
            group,
            muscles=group.muscles[keep],
            coefficients=group.coefficients[keep],
        )
        for group in body.path_groups
        if (keep := ~np.isin(group.muscles, some)).any()
    )
    mixed = dataclasses.replace(
        body,
        path_groups=groups,
        tendons=tendons.from_model(body.source, body.tree, some),
    )
    state = parity.random_states(body, np.random.default_rng(1), 1)[0]
    expected, compiled, found = (b.muscles(state) for b in (reference, body, mixed))
    for actuator in range(body.nu):
        one = expected if actuator in some else compiled
        assert float(found.length[actuator]) == pytest.approx(float(one.length[actuator]), abs=2e-6)
    forces = [b._actuator_force(state, state.act, b._place_nodes(state)) for b in (mixed, body)]
    np.testing.assert_allclose(*forces, atol=0.05 * np.abs(forces[1]).max())


WRAPS = """
<mujoco>
  <worldbody>
    <site name="origin" pos="0 {depth} .3"/>
    <body name="arm">
      <joint name="turn" axis="1 0 0" range="-1.2 1.2" limited="true"/>
      <joint name="swing" axis="0 0 1" range="-.6 .6" limited="true"/>
      <inertial pos="0 0 -.1" mass="1" diaginertia=".01 .01 .01"/>
      <geom name="obstacle" type="{kind}" size=".05 .1" euler="0 90 0" {mass}/>
      <site name="side" pos="0 {side} 0"/>
      <site name="insertion" pos="0.01 {depth} -.3"/>
    </body>
  </worldbody>
  <tendon>
    <spatial name="path">
      <site site="origin"/><geom geom="obstacle" {sidesite}/><site site="insertion"/>{pulley}
    </spatial>
  </tendon>
  <actuator><muscle name="muscle" tendon="path" force="100" lengthrange=".4 .8"/></actuator>
</mujoco>
"""


def wrapping(kind="cylinder", depth=".02", side=".06", sided=True, pulley=""):
    xml = WRAPS.format(
        kind=kind,
        depth=depth,
        side=side,
        sidesite='sidesite="side"' if sided else "",
        pulley=pulley,
        mass='mass="0"',
    )
    return mujoco.MjModel.from_xml_string(xml)


@pytest.mark.parametrize("kind", ["cylinder", "sphere"])
@pytest.mark.parametrize(
    ("side", "sided"), [(".06", True), ("-.06", True), (".06", False), (".01", True)]
)
def test_every_way_around_an_obstacle(kind, side, sided):
    """On one side, on the other, the shorter way, and held inside (the last)."""
    model = wrapping(kind, side=side, sided=sided)
    body_tree = tree.build(model)
    path = tendons.from_model(model, body_tree, [0])
    assert path.wraps[0].inside == (side == ".01") and path.wraps[0].round == (kind == "sphere")
    data = mujoco.MjData(model)
    wrapped = 0
    for turn in np.linspace(-1.2, 1.2, 25):
        for swing in (-0.5, 0.0, 0.3):
            data.qpos[:] = turn, swing
            mujoco.mj_forward(model, data)
            wrapped += int(data.ten_wrapnum[0] > 2)
            q = jnp.asarray(data.qpos, jnp.float32)
            world = dynamics.poses(body_tree, q, q)
            length = tendons.evaluate(path, world, world.position[:, 0]).length
            assert float(length[0]) == pytest.approx(data.ten_length[0], abs=2e-6)
    assert wrapped > 10


def test_a_branch_behind_a_pulley_counts_by_its_divisor():
    branch = '<pulley divisor="2"/><site site="side"/><geom geom="obstacle"/><site site="origin"/>'
    model = wrapping(pulley=branch)
    model.actuator_gear[:, 0] = 1.5
    body_tree = tree.build(model)
    path = tendons.from_model(model, body_tree, [0])
    data, rng = mujoco.MjData(model), np.random.default_rng(0)
    for q in rng.uniform(-0.6, 0.6, size=(10, 2)):
        data.qpos[:], data.qvel[:] = q, rng.normal(size=2)
        mujoco.mj_forward(model, data)
        joints = dynamics.joint_state(body_tree, jnp.float32(q), jnp.float32(data.qvel))
        world = dynamics.poses(body_tree, jnp.float32(q), joints.position)
        move = dynamics.motion(body_tree, world, joints.velocity)
        state = tendons.evaluate(path, world, move.origin)
        assert float(state.length[0]) == pytest.approx(data.actuator_length[0], abs=3e-6)
        rate = tendons.velocity(path, state, move.velocity)
        assert float(rate[0]) == pytest.approx(data.actuator_velocity[0], abs=2e-5)
        wrenches = tendons.node_wrenches(path, state, jnp.ones(1), body_tree.num_nodes)
        force = dynamics.wrench_force(body_tree, move, joints.slope, wrenches)
        np.testing.assert_allclose(force, data.actuator_moment, atol=1e-5)


def test_a_muscle_that_is_not_there_is_refused(tmp_path):
    for file in ("recipe.toml", "arm.xml"):
        text = (resources.data_folder("models") / "arm" / file).read_text()
        (tmp_path / file).write_text(text.replace("exact = false", 'exact = ["biseps"]'))
    with pytest.raises(UserError, match="biseps"):
        porting.load(str(tmp_path))
