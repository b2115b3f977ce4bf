"""C MuJoCo's view of a task's state, for values that are computed apart from the port."""

import mujoco
import numpy as np


def source_data(env, physics):
    """mjData of the source model at the ported state; velocities through the couplings."""
    model = env.source_model()
    data = mujoco.MjData(model)
    qpos, qvel = np.asarray(physics.qpos, float), np.asarray(physics.qvel, float)
    free = len(qpos) - len(qvel)  # free joints: each has one position more than velocities
    moved = []
    for step in (-1e-5, 1e-5):
        q = qpos.copy()
        for i in range(free):
            q[7 * i : 7 * i + 3] += step * qvel[6 * i : 6 * i + 3]
            mujoco.mju_quatIntegrate(q[7 * i + 3 : 7 * i + 7], qvel[6 * i + 3 : 6 * i + 6], step)
        q[7 * free :] += step * qvel[6 * free :]
        moved.append(env.body.source_qpos(q))
    velocity = np.zeros(model.nv)
    mujoco.mj_differentiatePos(model, velocity, 2e-5, *moved)
    data.qpos[:] = env.body.source_qpos(qpos)
    data.qvel[:] = velocity
    data.act[:] = physics.act
    mujoco.mj_fwdPosition(model, data)
    mujoco.mj_fwdVelocity(model, data)
    mujoco.mj_fwdActuation(model, data)
    mujoco.mj_subtreeVel(model, data)
    return data
