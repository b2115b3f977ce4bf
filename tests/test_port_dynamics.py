"""The ported step against C MuJoCo: kinematics, inertia, forces, contacts, limits, motion."""

import dataclasses

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from mjx_qflex import porting
from mjx_qflex.errors import UserError
from mjx_qflex.physics import dynamics, solver, tree
from mjx_qflex.porting import parity, recipe


@pytest.fixture(scope="module")
def legs():
    return porting.load("myo_legs")


@pytest.fixture(scope="module")
def states(legs):
    rng = np.random.default_rng(0)
    found = []
    for state in parity.random_states(legs, rng, 3, spread=0.4):
        turn = rng.normal(size=4)
        qpos = state.qpos.at[3:7].set(turn / np.linalg.norm(turn))
        found.append(state._replace(qpos=qpos.at[:3].add(rng.normal(size=3))))
    return found


def source_data(body, state):
    data = mujoco.MjData(body.source)
    parity.set_source_state(body, data, state)
    mujoco.mj_forward(body.source, data)
    return data


def coupling_matrix(body, joints):
    """G `[source nv, nv]` in the source's dof order, and the drift (dG/dt) r'."""
    matrix = np.zeros((body.source.nv, body.nv))
    matrix[body.tree.source_qvel_address] = np.asarray(joints.slope)[:, None] * body.tree.reduce
    drift = np.zeros(body.source.nv)
    drift[body.tree.source_qvel_address] = joints.drift
    return matrix, drift


def relative(actual, desired):
    return np.abs(np.asarray(actual) - desired).max() / np.abs(desired).max()


def test_independent_coordinates_satisfy_every_coupling(legs, states):
    for state in states:
        data = source_data(legs, state)
        assert np.abs(data.efc_pos[: legs.source.neq]).max() < 1e-6
    assert (legs.nq, legs.nv) == (21, 20)


def test_poses_and_centre_of_mass(legs, states):
    kinematics = jax.jit(legs.kinematics, compiler_options=legs.compiler_options)
    for state in states:
        data, mine = source_data(legs, state), kinematics(state)
        np.testing.assert_allclose(mine.xpos, data.xpos, atol=3e-6)
        np.testing.assert_allclose(mine.xmat.reshape(-1, 9), data.xmat, atol=3e-6)
        np.testing.assert_allclose(mine.com, data.subtree_com[0], atol=3e-6)
        mujoco.mj_subtreeVel(legs.source, data)
        np.testing.assert_allclose(mine.com_velocity, data.subtree_linvel[0], atol=1e-5)


def test_inertia_and_forces_are_the_projected_ones(legs, states):
    body_tree = legs.tree

    @jax.jit
    def terms(state):
        joints = dynamics.joint_state(body_tree, state.qpos, state.qvel)
        world = dynamics.poses(body_tree, state.qpos, joints.position)
        move = dynamics.motion(body_tree, world, joints.velocity)
        return (
            joints,
            dynamics.mass_matrix(body_tree, move, joints.slope),
            dynamics.bias_force(body_tree, move, joints),
            dynamics.passive_force(body_tree, joints),
        )

    for state in states:
        data = source_data(legs, state)
        joints, mass, bias, passive = terms(state)
        g, drift = coupling_matrix(legs, joints)
        full = np.zeros((legs.source.nv, legs.source.nv))
        mujoco.mj_fullM(legs.source, data, full)
        assert relative(mass, g.T @ full @ g) < 1e-5
        assert relative(bias, g.T @ (data.qfrc_bias + full @ drift)) < 1e-5
        assert relative(passive, g.T @ data.qfrc_passive) < 1e-5


@pytest.mark.parametrize("size", [1, 2, solver.MAX_WRITTEN_OUT, solver.MAX_WRITTEN_OUT + 1])
def test_factors_of_every_size_solve(size):
    rng = np.random.default_rng(size)
    root = rng.normal(size=(size, size))
    matrix, vector = root @ root.T + np.eye(size), rng.normal(size=size)
    lower = solver.factor(jnp.asarray(matrix, jnp.float32))
    np.testing.assert_allclose(np.tril(lower), np.linalg.cholesky(matrix), rtol=1e-4, atol=1e-5)
    solution = solver.solve_factored(lower, jnp.asarray(vector, jnp.float32))
    np.testing.assert_allclose(solution, np.linalg.solve(matrix, vector), rtol=1e-3, atol=1e-5)


def test_free_motion_follows_c_mujoco(legs):
    starts = parity.random_states(legs, np.random.default_rng(0), 3)
    assert parity.motion_error(legs, actuated=False, starts=starts) < 0.01
    assert parity.motion_error(legs, actuated=True, starts=starts) < 0.05


def with_solver_steps(body, steps):
    recipe = dataclasses.replace(body.recipe, iterations=steps, ls_iterations=steps)
    return dataclasses.replace(body, recipe=recipe)


def test_feet_on_the_floor_follow_c_mujoco(legs):
    """Ten steps from touch-down, nothing else colliding and couplings stiff."""
    model = legs.source_model().__copy__()
    parity.stiffen_couplings(model)
    parity.keep_contacts(model, recipe.read("myo_legs"))
    body = with_solver_steps(legs, 20)
    state = body.initial_state()
    state = state._replace(
        qpos=state.qpos.at[2].set(0.943), qvel=state.qvel.at[:3].set(jnp.array([0.2, -0.3, -0.5]))
    )
    data = mujoco.MjData(model)
    parity.set_source_state(body, data, state)
    before = data.qpos.copy()
    for _ in range(10):
        mujoco.mj_step(model, data)
    assert data.ncon >= 4
    advance = jax.jit(
        lambda s: body.advance(s, jnp.zeros(body.nu), 10)[0],
        compiler_options=body.compiler_options,
    )
    after = body.source_qpos(advance(state).qpos)
    assert np.linalg.norm(after - data.qpos) < 0.02 * np.linalg.norm(data.qpos - before)
    # The floor did something: without it the body falls on.
    free = parity.without_contacts(body)
    fallen = jax.jit(lambda s: free.advance(s, jnp.zeros(free.nu), 10)[0])(state)
    assert advance(state).qvel[2] - fallen.qvel[2] > 0.1


def test_limits_push_back_as_in_c_mujoco():
    arm = porting.load("arm")
    state = arm.initial_state()._replace(qpos=jnp.array([1.85, -0.05]), qvel=jnp.array([1.0, -1.0]))
    data = mujoco.MjData(arm.source)
    parity.set_source_state(arm, data, state)
    for _ in range(20):
        mujoco.mj_step(arm.source, data)
    after = jax.jit(lambda s: arm.advance(s, jnp.zeros(arm.nu), 20)[0])(state)
    np.testing.assert_allclose(after.qpos, data.qpos, atol=2e-3)
    assert after.qvel[0] < 0 < after.qvel[1]


def test_the_same_physics_alone_and_in_a_batch(legs):
    states = parity.random_states(legs, np.random.default_rng(1), 4)
    batch = jax.tree.map(lambda *x: jnp.stack(x), *states)
    ctrl = jnp.full(legs.nu, 0.2)
    step = jax.jit(legs.step, compiler_options=legs.compiler_options)
    steps = jax.jit(jax.vmap(legs.step, in_axes=(0, None)), compiler_options=legs.compiler_options)
    together = steps(batch, ctrl)[0]
    for i, state in enumerate(states):
        np.testing.assert_allclose(together.qvel[i], step(state, ctrl)[0].qvel, atol=2e-4)


def test_a_chain_of_couplings_resolves_to_its_first_driver():
    model = mujoco.MjModel.from_xml_string("""
      <mujoco><compiler angle="radian"/><worldbody>
        <body><joint name="a" axis="0 0 1"/><geom size="0.1"/>
          <body pos="1 0 0"><joint name="b" axis="0 0 1"/><geom size="0.1"/>
            <body pos="1 0 0"><joint name="c" axis="0 0 1" ref="0.3"/><geom size="0.1"/></body>
      </body></body></worldbody><equality>
        <joint joint1="c" joint2="b" polycoef="0.1 2 0.5 0 0"/>
        <joint joint1="b" joint2="a" polycoef="0 -1 0.25 0 0"/>
      </equality></mujoco>""")
    chain = tree.build(model)
    assert chain.joint_names == ("a",)
    joints = dynamics.joint_state(chain, jnp.array([0.4]), jnp.array([2.0]))
    b = -0.4 + 0.25 * 0.4**2
    slope_b = -1 + 0.5 * 0.4
    c = 0.3 + 0.1 + 2 * b + 0.5 * b**2
    slope_c = (2 + b) * slope_b
    np.testing.assert_allclose(joints.position, [0.4, b, c], rtol=1e-6)
    np.testing.assert_allclose(joints.slope, [1, slope_b, slope_c], rtol=1e-6)
    curvature_c = slope_b**2 + (2 + b) * 0.5
    np.testing.assert_allclose(joints.drift, [0, 0.5 * 4, curvature_c * 4], rtol=1e-5)
    positions, slopes = tree.source_positions(chain, np.array([[0.4]]))
    np.testing.assert_allclose(positions[0], [0.4, b, c], rtol=1e-9)
    np.testing.assert_allclose(slopes[0], [1, slope_b, slope_c], rtol=1e-9)


@pytest.mark.parametrize(
    ("xml", "what"),
    [
        ('<body><joint type="ball"/><geom size="1"/></body>', "ball joints"),
        ('<body><joint frictionloss="1"/><geom size="1"/></body>', "dry friction"),
    ],
)
def test_what_a_port_cannot_do_is_refused(xml, what):
    model = mujoco.MjModel.from_xml_string(f"<mujoco><worldbody>{xml}</worldbody></mujoco>")
    with pytest.raises(UserError, match=what):
        tree.build(model)
