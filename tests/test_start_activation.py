"""Episodes of the walk that start with the muscles of the reference."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import load_body
from task_protocol import WORLDS, make, start

from mjx_qflex import motions, porting, tasks
from mjx_qflex.errors import UserError
from mjx_qflex.motions import activations
from mjx_qflex.tasks import ms_human

WALK = "ms_human_walk"


def started_with_muscles(monkeypatch):
    """The walk whose episodes start with fitted activations, on the body that others loaded."""
    body = make(WALK).body
    monkeypatch.setattr(ms_human.porting, "load", lambda *_, **__: body)
    env = tasks.make(WALK, start_activation="reference")
    reset = jax.jit(jax.vmap(env.reset), compiler_options=env.compiler_options)
    return env, reset(jax.random.split(jax.random.PRNGKey(0), WORLDS))


def test_only_the_muscles_at_the_reset_differ(monkeypatch):
    env, with_muscles = started_with_muscles(monkeypatch)
    resting = start(WALK)
    physics, before = with_muscles.pipeline_state.physics, resting.pipeline_state.physics
    np.testing.assert_array_equal(physics.qpos, before.qpos)
    np.testing.assert_array_equal(physics.qvel, before.qvel)
    assert not before.act.any()
    table = activations.of_body("human_walk", env.body)
    phase = with_muscles.pipeline_state.offset / env.reference.period
    expected = jax.vmap(activations.at, (None, 0))(table, phase)
    np.testing.assert_allclose(physics.act, expected, atol=1e-4)
    assert physics.act.min() >= 0.0 and physics.act.max() <= 1.0 and physics.act.mean() > 0.02
    np.testing.assert_allclose(
        with_muscles.metrics["total_activation"], physics.act.sum(axis=1), rtol=1e-5
    )
    assert step_program(env) == step_program(make(WALK))


def step_program(env):
    """What a step computes, without the addresses of what it calls."""
    state = jax.eval_shape(env.reset, jax.random.PRNGKey(0))
    program = jax.make_jaxpr(env.step)(state, jnp.zeros(env.action_size))
    return re.sub(r"0x[0-9a-f]+", "", str(program))


def test_fitted_activations_are_one_closed_period():
    body = make(WALK).body
    table = np.asarray(activations.of_body("human_walk", body))
    assert table.shape[1] == body.nu and len(table) > 20
    np.testing.assert_array_equal(table[0], table[-1])
    assert table.min() >= 0.0 and table.max() <= 1.0
    place = np.linspace(0.0, 1.0, len(table))[:-1]
    found = jax.vmap(activations.at, (None, 0))(jnp.asarray(table), jnp.asarray(place + 3.0))
    np.testing.assert_allclose(found, table[:-1], atol=2e-3)


def test_refused_without_fitted_activations(monkeypatch):
    body = load_body("myo_legs")
    with pytest.raises(UserError, match="no fitted activations for motion human_walk on myo_legs"):
        activations.of_body("human_walk", body)
    body = make(WALK).body
    with pytest.raises(UserError, match="human_run on ms_human with 700 actuators") as caught:
        activations.of_body("human_run", body)
    assert "\n" not in str(caught.value)
    monkeypatch.setattr(ms_human.porting, "load", lambda *_, **__: body)
    with pytest.raises(UserError, match="zero"):
        tasks.make("ms_human_run", start_activation="reference")
    with pytest.raises(UserError, match="did you mean 'reference'"):
        tasks.make(WALK, start_activation="referenc")


def test_fitted_activations_of_other_muscles_are_refused(monkeypatch, tmp_path):
    body = make(WALK).body
    monkeypatch.setattr(activations.resources, "data_folder", lambda _: tmp_path)
    (tmp_path / "motions").mkdir()
    path = tmp_path / "motions" / activations.file_name("human_walk", body.name, body.nu)
    names = np.array(body.actuator_names)[::-1]
    np.savez(path, activation=np.zeros((5, body.nu), np.float16), muscles=names)
    with pytest.raises(UserError, match="other muscles"):
        activations.of_body("human_walk", body)


def test_another_number_of_actuators_is_refused():
    body = porting.load("ms_human", num_actuators=388)
    assert "human_walk" in motions.names()
    with pytest.raises(UserError, match="388 actuators"):
        activations.of_body("human_walk", body)
