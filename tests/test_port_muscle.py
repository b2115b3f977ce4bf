"""Muscle force and activation against C MuJoCo."""

import jax.numpy as jnp
import mujoco
import numpy as np

from mjx_qflex import porting
from mjx_qflex.physics import muscle
from mjx_qflex.porting import parity


def test_force_equals_c_mujoco_for_the_same_length_velocity_and_activation():
    assert parity.force_error(porting.load("myo_legs")) < 1e-5


def test_activation_follows_c_mujoco():
    body = porting.load("arm")
    rng, data = np.random.default_rng(0), mujoco.MjData(body.source)
    for _ in range(20):
        act, ctrl = rng.uniform(size=body.nu), rng.uniform(-0.2, 1.2, size=body.nu)
        data.act[:], data.ctrl[:] = act, ctrl
        mujoco.mj_forward(body.source, data)
        mine = muscle.activation_rate(body.muscle_constants, jnp.asarray(ctrl), jnp.asarray(act))
        np.testing.assert_allclose(mine, data.act_dot, rtol=2e-5, atol=1e-4)


def test_smoothed_time_constants_follow_c_mujoco():
    model = porting.load("arm").source_model().__copy__()
    model.actuator_dynprm[:, 2] = 0.6
    constants = muscle.MuscleConstants.from_model(model)
    data = mujoco.MjData(model)
    data.act[:], data.ctrl[:] = 0.4, np.linspace(0, 1, model.nu)
    mujoco.mj_forward(model, data)
    mine = muscle.activation_rate(
        constants, jnp.asarray(data.ctrl, jnp.float32), jnp.asarray(data.act, jnp.float32)
    )
    np.testing.assert_allclose(mine, data.act_dot, rtol=2e-5, atol=1e-4)
