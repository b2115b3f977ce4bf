"""Every body of the library against C MuJoCo; a new recipe is picked up by itself."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import load_body

from mjx_qflex.porting import parity, recipe

BODIES = recipe.body_names()


@pytest.mark.parametrize("name", BODIES)
def test_actuator_forces_are_c_mujocos(name):
    assert parity.force_error(load_body(name), num_states=10) < 3e-5


@pytest.mark.parametrize("name", BODIES)
def test_free_motion_follows_c_mujoco(name):
    """100 steps under random constant controls.

    Compiled paths are some percent off, and C MuJoCo's couplings give way a little under muscles.
    """
    body = load_body(name)
    starts = parity.random_states(body, np.random.default_rng(2), 4)
    limit = 0.05 if body.path_groups or body.source.nv > body.nv else 5e-3
    assert parity.motion_error(body, actuated=True, starts=starts) < limit


@functools.cache
def fallen(name, solver_steps):
    """Four random starts, 100 steps later; None: the recipe's own solver steps."""
    body = load_body(name)
    if solver_steps:
        more = dataclasses.replace(body.recipe, iterations=solver_steps, ls_iterations=solver_steps)
        body = dataclasses.replace(body, recipe=more)
    starts = parity.random_states(body, np.random.default_rng(4), 4)
    starts = jax.tree.map(lambda *leaves: jnp.stack(leaves), *starts)
    advance = jax.jit(
        jax.vmap(lambda state: body.advance(state, jnp.full(body.nu, 0.1), 100)[0].qpos),
        compiler_options=body.compiler_options,
    )
    return starts.qpos, advance(starts)


@pytest.mark.parametrize("name", BODIES)
def test_the_recipes_solver_steps_suffice(name):
    """A fall from random states, and the same with a solver that always converges."""
    start, end = fallen(name, None)
    _, converged = fallen(name, 12)
    moved = jnp.linalg.norm(converged - start, axis=1)
    wrong = jnp.linalg.norm(end - converged, axis=1) / moved
    assert jnp.median(wrong) < 0.01, wrong
