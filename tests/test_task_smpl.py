"""The task of the SMPL body, term by term against NumPy on C MuJoCo's data."""

import functools
import runpy

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from random_states import STATES, batched, c_data, falls, random_states, worlds
from task_protocol import make

from mjx_qflex import resources


@functools.cache
def smpl_derived():
    env = make("smpl_jump")
    physics, action = random_states(env)

    def derive(physics, action):
        ctrl, kinematics = env.targets(action), env.body.kinematics(physics)
        factors = env.reward_factors(kinematics, env.body.servo_force(physics, ctrl))
        over = env.is_over(physics, kinematics)
        return factors, env.reward_terms(factors), over, env.observe(physics, kinematics)

    derived = worlds(batched(env, derive)(physics, action))
    return derived, [c_data(env, world) for world in worlds(physics)]


def test_smpl_reward_against_numpy():
    for (factors, terms, over, _), d in zip(*smpl_derived(), strict=True):
        head, pelvis = d.body("head").xpos[2], d.body("pelvis").xpos[2]
        up = d.body("spine3").xmat[8]
        outside = max(2.0 - head, head - 2.1, 0)
        expected = {
            "height": max(1 - 0.99 * outside / 2.0, 0),
            "speed": falls(d.body("pelvis").subtree_linvel[2], 5, 5),
            "upright": falls(up, 0.9, 1.9),
        }
        assert factors.keys() == expected.keys()
        for factor, value in expected.items():
            assert factors[factor] == pytest.approx(value, abs=1e-4), factor
        assert sum(terms.values()) == pytest.approx(np.prod(list(expected.values())), abs=1e-4)
        assert over == (head < 0.5 or pelvis < 0.2)


def test_smpl_observation_against_numpy():
    env = make("smpl_jump")
    derived, data = smpl_derived()
    for (*_, obs), d in zip(derived, data, strict=True):
        rotation = d.xmat[1:].reshape(-1, 3, 3)
        heading = np.arctan2(rotation[0, 1, 0], rotation[0, 0, 0])
        c, s = np.cos(heading), np.sin(heading)
        back = np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]])
        place = (d.xpos[2:] - d.xpos[1]) @ back.T
        local = np.einsum("ij,njk->nik", back, rotation)
        columns = np.concatenate([local[:, :, 0], local[:, :, 2]], axis=1)
        velocity = np.zeros((2, 24, 3))
        for i in range(24):
            both = np.zeros(6)
            mujoco.mj_objectVelocity(
                env.source_model(), d, mujoco.mjtObj.mjOBJ_XBODY, i + 1, both, 0
            )
            velocity[:, i] = both[3:], both[:3]
        parts = (d.xpos[1, 2:], place, columns, velocity @ back.T)
        expected = np.concatenate([np.ravel(part) for part in parts])
        assert obs.shape == (env.observation_size,) == (358,)
        np.testing.assert_allclose(obs, expected, atol=1e-4)


def test_smpl_falls_are_noticed():
    env = make("smpl_jump")
    heights = jnp.linspace(-0.9, 0.0, STATES)  # m, of the T-pose
    physics, _ = random_states(env)
    qpos = jnp.tile(env.start, (STATES, 1)).at[:, 2].add(heights)
    over = batched(env, lambda p: env.is_over(p, env.body.kinematics(p)))(
        physics._replace(qpos=qpos)
    )
    pelvis = env.start[2] + np.asarray(heights)
    np.testing.assert_array_equal(over, pelvis < 0.2)


def test_smpl_actions_are_shares_of_the_joints_ranges():
    model = make("smpl_jump").source_model()
    data = mujoco.MjData(model)
    for ctrl, column in ((-1.0, 0), (1.0, 1), (0.0, None)):
        ranges = model.jnt_range[1:]
        data.qpos[7:] = ranges.mean(axis=1) if column is None else ranges[:, column]
        data.ctrl[:] = ctrl
        mujoco.mj_forward(model, data)
        np.testing.assert_allclose(data.actuator_force, 0.0, atol=1.0)  # N m, of rounding


def test_smpl_body_stands_in_its_t_pose():
    env = make("smpl_jump")
    model = env.source_model()
    assert model.nbody == 25 and model.nu == 69
    assert model.body_mass.sum() == pytest.approx(75.0, abs=0.01)
    low, high = model.jnt_range[1:].T
    hold = jnp.asarray(-(low + high) / (high - low), jnp.float32)
    state = jax.jit(env.reset)(jax.random.PRNGKey(0))
    run = jax.jit(
        lambda state: jax.lax.scan(lambda s, _: (env.step(s, hold), s.obs[0]), state, length=45),
        compiler_options=env.compiler_options,
    )
    state, heights = run(state)
    assert not state.done
    np.testing.assert_allclose(heights[10:], env.start[2], atol=0.02)


def test_the_smpl_body_is_what_its_script_writes():
    folder = resources.data_folder("models") / "smpl_humanoid"
    script = runpy.run_path(str(folder / "make_humanoid.py"))
    assert script["document"]() == (folder / "smpl_humanoid.xml").read_text()
