"""The tasks of the robot H1, term by term against NumPy on C MuJoCo's data."""

import functools

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from random_states import STATES, batched, c_data, falls, random_states, worlds
from task_protocol import make

from mjx_qflex.porting import parity, recipe

H1_TASKS = ("h1_run", "h1_balance")


@functools.cache
def h1_derived(name):
    """All that the task derives from random states, and C MuJoCo's data of the same states."""
    env = make(name)
    physics, action = random_states(env)

    def derive(physics, action):
        ctrl = env.targets(action)
        kinematics = env.body.kinematics(physics)
        factors = env.reward_factors(kinematics, env.body.servo_force(physics, ctrl))
        terms, over = env.reward_terms(factors), env.is_over(physics, kinematics)
        return ctrl, factors, terms, over, env.robot_velocity(kinematics)

    derived = worlds(batched(env, derive)(physics, action))
    low, high = env.source_model().actuator_ctrlrange.T
    ctrl = low + (np.clip(action, -1, 1) + 1) / 2 * (high - low)
    data = [c_data(env, *pair) for pair in zip(worlds(physics), ctrl, strict=True)]
    return derived, data, ctrl


@pytest.mark.parametrize("name", H1_TASKS)
def test_h1_reward_against_numpy(name):
    derived, data, ctrls = h1_derived(name)
    head_height = 1.65 if name == "h1_run" else 1.65 + 0.37
    for (ctrl, factors, terms, _, velocity), d, expected_ctrl in zip(
        derived, data, ctrls, strict=True
    ):
        np.testing.assert_allclose(ctrl, expected_ctrl, atol=1e-5)
        np.testing.assert_allclose(velocity, d.body("pelvis").subtree_linvel, atol=1e-4)
        up = d.body("torso_link").xmat.reshape(3, 3)[:, 2]
        head = d.body("torso_link").xpos[2] + 0.7 * up[2]
        vx, vy, _ = d.body("pelvis").subtree_linvel
        small = np.mean(np.maximum(1 - (d.actuator_force / 10) ** 2, 0))
        expected = {
            "small_control": (4 + small) / 5,
            "standing": 0.1 ** (max(head_height - head, 0) / (1.65 / 4)) ** 2,
            "upright": falls(up[2], 0.9, 1.9),
        }
        if name == "h1_run":
            expected["speed"] = falls(vx, 5, 5)
            gain = (5 * expected["speed"] + 1) / 6
        else:
            expected["dont_move"] = gain = (0.1 ** (vx / 2) ** 2 + 0.1 ** (vy / 2) ** 2) / 2
        assert factors.keys() == expected.keys()
        for factor, value in expected.items():
            assert factors[factor] == pytest.approx(value, abs=1e-4), factor
        product = expected["small_control"] * expected["standing"] * expected["upright"] * gain
        assert sum(terms.values()) == pytest.approx(product, abs=1e-4)


@pytest.mark.parametrize("name", H1_TASKS)
def test_h1_observation_is_mujocos_state(name):
    env = make(name)
    physics, _ = random_states(env)
    observe = batched(env, lambda p: env.observe(p, env.body.kinematics(p)))
    obs = np.asarray(observe(physics))
    assert obs.shape[1] == {"h1_run": 51, "h1_balance": 64}[name]
    for row, world in zip(obs, worlds(physics), strict=True):
        data = c_data(env, world)
        np.testing.assert_allclose(row, [*data.qpos, *data.qvel], atol=1e-5)


def test_h1_run_ends_when_the_pelvis_is_low():
    env = make("h1_run")
    physics, _ = random_states(env)
    physics = physics._replace(qpos=physics.qpos.at[:, 2].set(jnp.linspace(0.1, 0.3, STATES)))
    over = batched(env, lambda p: env.is_over(p, env.body.kinematics(p)))(physics)
    np.testing.assert_array_equal(over, np.linspace(0.1, 0.3, STATES) < 0.2)


def test_h1_balance_ends_where_mujoco_finds_the_wrong_contacts():
    env = make("h1_balance")
    model = env.source_model()
    rng = np.random.default_rng(3)
    physics, _ = random_states(env, seed=4, height=0.05, tilt=0.15)
    # Feet just above the ball, beside the board or on the floor; pelvis always above 0.8 m.
    qpos = np.array(physics.qpos)
    qpos[:, 7 * 2 :] = np.array(env.start)[7 * 2 :] + rng.uniform(-0.2, 0.2, (STATES, 19))
    qpos[: STATES // 2, 2] = rng.uniform(0.9, 1.1, STATES // 2)
    qpos[: STATES // 2, 7:10] = [0.0, 0.0, 5.0]
    qpos[STATES // 2 :, 9] = rng.uniform(0.0, 0.3, STATES // 2)
    qpos[STATES // 2 :, 2] = 2.5
    physics = physics._replace(qpos=jnp.asarray(qpos))
    over = batched(env, lambda p: env.is_over(p, env.body.kinematics(p)))(physics)
    floor, ball, board = (model.geom(name).id for name in ("floor", "ball", "board"))
    round_types = (int(mujoco.mjtGeom.mjGEOM_SPHERE), int(mujoco.mjtGeom.mjGEOM_CAPSULE))
    expected = []
    for world in worlds(physics):
        data, wrong = c_data(env, world), False
        for pair in data.contact.geom:
            for surface, other in (pair, pair[::-1]):
                round_part = model.geom_type[other] in round_types
                wrong |= surface == floor and (other == board or round_part)
                wrong |= surface == ball and other != board and round_part
        expected.append(wrong or data.qpos[2] < 0.8)
    np.testing.assert_array_equal(over, expected)
    assert 4 < np.sum(expected) < STATES - 4


@pytest.mark.parametrize("name", H1_TASKS)
def test_h1_holds_its_keyframe_as_c_mujoco_does(name):
    """Ten actions of holding the start pose, with only the recipe's contacts."""
    env = make(name)
    model = env.source_model().__copy__()
    parity.keep_contacts(model, recipe.read(env.body.name))
    data = mujoco.MjData(model)
    state = env.reset(jax.random.PRNGKey(5))
    data.qpos[:] = env.body.source_qpos(state.pipeline_state.physics.qpos)
    data.ctrl[:] = [*(0.0, 0.0, -0.4, 0.8, -0.4) * 2, *[0.0] * 9]
    low, high = model.actuator_ctrlrange.T
    action = jnp.asarray(2 * (data.ctrl - low) / (high - low) - 1, jnp.float32)
    step = jax.jit(env.step, compiler_options=env.compiler_options)
    for _ in range(10):
        state = step(state, action)
        mujoco.mj_step(model, data, nstep=10)
    np.testing.assert_allclose(state.obs[: model.nq], data.qpos, atol=5e-3)
    assert not state.done
