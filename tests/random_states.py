"""Random states of a task's body, and C MuJoCo's data of them, for rewards and observations."""

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

STATES = 24


def random_states(env, seed=0, height=0.3, tilt=0.6):
    """Random poses about the task's start, joints anywhere in their ranges, and velocities."""
    rng = np.random.default_rng(seed)
    body, model = env.body, env.source_model()
    qpos = np.tile(
        np.asarray(env.reset(jax.random.PRNGKey(0)).pipeline_state.physics.qpos), (STATES, 1)
    )
    for i in range(body.tree.num_free):
        qpos[:, 7 * i : 7 * i + 3] += rng.uniform(-height, height, (STATES, 3))
        turn = qpos[:, 7 * i + 3 : 7 * i + 7] + rng.uniform(-tilt, tilt, (STATES, 4))
        qpos[:, 7 * i + 3 : 7 * i + 7] = turn / np.linalg.norm(turn, axis=1, keepdims=True)
    for name in body.joint_names[body.tree.num_free :]:
        low, high = model.joint(name).range if model.joint(name).range.any() else (-0.3, 0.3)
        qpos[:, body.qpos_index(name)] = rng.uniform(low, high, STATES)
    qvel = rng.normal(size=(STATES, body.nv))
    act = rng.uniform(size=(STATES, np.size(body.initial_state().act)))
    physics = body.initial_state()._replace(
        qpos=jnp.asarray(qpos, jnp.float32),
        qvel=jnp.asarray(qvel, jnp.float32),
        act=jnp.asarray(act, jnp.float32),
        time=jnp.zeros(STATES),
    )
    return physics, rng.uniform(-1.2, 1.2, (STATES, env.action_size)).astype(np.float32)


def c_data(env, physics, ctrl=None):
    """C MuJoCo's data at the ported state `physics` (of one world) under `ctrl`."""
    model, tree = env.source_model(), env.body.tree
    data = mujoco.MjData(model)
    data.qpos[:] = env.body.source_qpos(physics.qpos)
    data.qvel[tree.source_qvel_address] = physics.qvel
    if np.size(physics.act):
        data.act[:] = physics.act
    if ctrl is not None:
        data.ctrl[:] = ctrl
    mujoco.mj_forward(model, data)
    mujoco.mj_subtreeVel(model, data)
    return data


def worlds(tree):
    return [jax.tree.map(lambda x, i=i: np.asarray(x[i]), tree) for i in range(STATES)]


def batched(env, function):
    return jax.jit(jax.vmap(function), compiler_options=env.compiler_options)


def falls(x, bound, margin):
    """A linear tolerance towards larger values, 0 at the margin."""
    return np.clip(1 - (bound - x) / margin, 0, 1)
