"""The task of the ostrich, term by term against NumPy on C MuJoCo's data."""

import functools

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from random_states import STATES, batched, c_data, random_states, worlds
from task_protocol import make


@functools.cache
def ostrich_derived():
    env = make("ostrich_run")
    physics, _ = random_states(env)
    # The root anywhere, so that every reason to end an episode is among the states.
    root = np.random.default_rng(1).uniform(-1.0, 1.0, (STATES, 6)) * [3, 3, 0.7, 0.3, 1.2, 3]
    physics = physics._replace(qpos=physics.qpos.at[:, :6].set(root))

    def derive(physics):
        kinematics, muscles = env.body.kinematics(physics), env.body.muscles(physics)
        return env.observe(physics, kinematics, muscles), env.is_over(physics, kinematics)

    derived = worlds(batched(env, derive)(physics))
    return derived, [c_data(env, world) for world in worlds(physics)]


def test_ostrich_observation_and_end_against_numpy():
    reasons = np.zeros(3, int)
    for (obs, over), d in zip(*ostrich_derived(), strict=True):
        head, pelvis = d.body("head").xpos[2], d.geom("pelvis").xpos[2]
        feet = [d.body("r_pes").xpos[2], d.body("l_pes").xpos[2]]
        parts = {
            "heights": [head, pelvis, *feet],
            "qpos": d.qpos[1:],
            "qvel": np.clip(d.qvel, -100, 100),
            "act": d.act,
            "force": np.clip(d.actuator_force / 1000, -100, 100),
            "length": d.actuator_length,
            "velocity": np.clip(d.actuator_velocity, -100, 100),
            "forward": d.sensor("torso_subtreelinvel").data[:1],
        }
        assert obs.shape == (596,)
        edges = np.cumsum([len(part) for part in parts.values()])
        for (name, part), seen in zip(parts.items(), np.split(obs, edges[:-1]), strict=True):
            np.testing.assert_allclose(seen, part, atol=1e-4, rtol=1e-4, err_msg=name)
        why = [head < 0.9, pelvis < 0.6, abs(d.qpos[4]) > 0.8]
        assert over == any(why)
        reasons += why
    assert reasons.all()


def test_ostrich_reward_is_the_forward_velocity_and_rest_is_all_below_zero():
    env = make("ostrich_run")
    reset, step = (
        jax.jit(jax.vmap(f), compiler_options=env.compiler_options) for f in (env.reset, env.step)
    )
    start = reset(jax.random.split(jax.random.PRNGKey(2), STATES))
    model = env.source_model()
    joints = np.asarray(start.pipeline_state.physics.qpos)[:, 6:]
    low, high = model.jnt_range[6:].T / 5
    assert (joints >= low - 1e-6).all() and (joints <= high + 1e-6).all()
    assert (joints.std(axis=0) > 0.1 * (high - low)).all()
    excited = jax.random.uniform(jax.random.PRNGKey(3), (STATES, 120), minval=-1.0)
    moved = step(step(start, excited), excited)
    for world, reward in zip(worlds(moved.pipeline_state.physics), moved.reward, strict=True):
        forward = c_data(env, world).sensor("torso_subtreelinvel").data[0]
        assert reward == pytest.approx(forward, abs=1e-4)
    resting, lower = (step(start, jnp.full((STATES, 120), a)) for a in (0.0, -0.7))
    np.testing.assert_array_equal(resting.obs, lower.obs)
    assert np.abs(moved.obs - resting.obs).max() > 1e-2


def test_before_an_episode_of_the_ostrich_ends_only_the_recipes_geoms_reach_the_floor():
    """Poses anywhere in the joints' ranges, lowered until the first of those geoms touches."""
    env = make("ostrich_run")
    model, rng = env.source_model(), np.random.default_rng(6)
    data, low, high = mujoco.MjData(model), *model.jnt_range[6:].T
    allowed = [model.geom(name).id for name in env.body.recipe.with_floor]
    floor, alive, first = model.geom("floor").id, 0, set()
    for _ in range(2000):
        turn = rng.uniform(-1.0, 1.0, 3) * [0.5, 0.8, 3.0]
        data.qpos[:] = [0.0, 0.0, 0.0, *turn, *rng.uniform(low, high)]
        mujoco.mj_kinematics(model, data)
        steep = np.abs(data.geom_xmat[allowed, 8])
        extent = model.geom_size[allowed, 0] + steep * model.geom_size[allowed, 1]  # of a capsule
        heights = data.geom_xpos[allowed, 2] - extent
        data.qpos[2] -= heights.min()
        mujoco.mj_kinematics(model, data)
        if data.body("head").xpos[2] < 0.9 or data.geom("pelvis").xpos[2] < 0.6:
            continue
        mujoco.mj_comPos(model, data)
        mujoco.mj_collision(model, data)
        alive += 1
        first.add(model.geom(allowed[heights.argmin()]).name)
        touching = {geom for pair in data.contact.geom if floor in pair for geom in pair}
        assert touching <= {floor, *allowed}
    assert alive > 500
    assert {"r_tarsometatarsus", "l_tarsometatarsus"} & first
