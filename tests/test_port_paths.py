"""Compiled muscle paths: exactness, tolerances, extrapolation, shipping and caching."""

import shutil
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mjx_qflex import porting, resources
from mjx_qflex.physics import paths
from mjx_qflex.porting import fitting, library, parity, recipe

SHIPPED = [path.parent.name for path in sorted(resources.data_folder("models").glob("*/paths.npz"))]


def test_monomials_and_their_derivatives():
    x = np.random.default_rng(0).uniform(-1, 1, size=3)
    values = paths.monomials(jnp.asarray(x, jnp.float32), 4)
    exponents = paths.exponents(3, 4)
    assert len(values) == 35 == len({tuple(e) for e in exponents})
    np.testing.assert_allclose(values, np.prod(x**exponents, axis=1), rtol=1e-6, atol=1e-7)
    gradient = jax.jacobian(lambda y: paths.monomials(y, 4))(jnp.asarray(x))
    np.testing.assert_allclose(
        gradient.T, paths.monomial_derivatives(3, 4) @ values, rtol=1e-5, atol=1e-6
    )


@pytest.fixture
def one_path():
    """L(q) = 1 + q0^2 q1 over q0 in [-1, 1] and q1 in [0, 2]."""
    exponents = paths.exponents(2, 3)
    coefficients = np.zeros((1, len(exponents)))
    for power, factor in (((0, 0), 1.0), ((2, 0), 1.0), ((2, 1), 1.0)):  # x1 = q1 - 1
        coefficients[0, exponents.tolist().index(list(power))] = factor
    return paths.PathGroup(
        np.array([0]), np.array([0, 1]), np.array([0.0, 1.0]), np.ones(2), 3, coefficients
    )


def test_a_path_continues_linearly_outside_its_range(one_path):
    """20% beyond each limit: L(c) + R(c) (q - c), and the moment arms of c."""
    for q in ([1.4, 0.5], [-1.4, 0.5], [0.3, 2.4], [0.3, -0.4], [1.4, 2.4]):
        q = np.array(q)
        c = np.clip(q, [-1, 0], [1, 2])
        arms = np.array([2 * c[0] * c[1], c[0] ** 2])
        state = paths.evaluate((one_path,), jnp.asarray(q, jnp.float32))
        np.testing.assert_allclose(
            state.length[0], 1 + c[0] ** 2 * c[1] + arms @ (q - c), rtol=1e-6
        )
        np.testing.assert_allclose(state.arms[0][:, 0], arms, rtol=1e-5, atol=1e-6)
        assert bool(state.outside[0])
    assert not bool(paths.evaluate((one_path,), jnp.array([0.9, 1.9])).outside[0])


def test_velocity_and_joint_force_are_the_moment_arms_work(one_path):
    q, qdot, pull = jnp.array([0.5, 1.5]), jnp.array([2.0, -1.0]), jnp.array([-10.0])
    state = paths.evaluate((one_path,), q)
    arms = np.array([2 * 0.5 * 1.5, 0.25])
    np.testing.assert_allclose(paths.velocity((one_path,), state, qdot), [arms @ qdot], rtol=1e-6)
    np.testing.assert_allclose(
        paths.joint_force((one_path,), state, pull, 2), -10 * arms, rtol=1e-6
    )


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_paths_belong_to_recipe_and_source(name):
    instructions = recipe.read(name)
    source = recipe.source_model(instructions)
    key = library._content_key(instructions, source)
    start = time.perf_counter()
    groups = library.read_paths(instructions.folder / "paths.npz", key)
    assert groups is not None, f"stale; run: python -m mjx_qflex.port --body={name} --write"
    assert time.perf_counter() - start < 2
    assert sorted(np.concatenate([g.muscles for g in groups])) == list(range(source.nu))


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_paths_hold_their_tolerances_on_unseen_poses(name):
    body = porting.load(name)
    ranges = fitting.joint_ranges(body.tree, recipe.read(name).ranges)
    q = fitting.random_poses(ranges, 1500, seed=77)
    errors = parity.path_errors(body, fitting.sample(body.source, body.tree, q))
    torque = errors.torque_relative[~np.isnan(errors.torque_relative)]
    assert errors.length_rms.max() < 0.5e-3
    assert np.median(torque) < 0.02
    assert torque.max() < 0.05


@pytest.mark.parametrize("name", SHIPPED)
def test_fitted_ranges_contain_the_limits_or_are_narrowed_by_name(name):
    instructions = recipe.read(name)
    body = porting.load(name)
    assert set(instructions.ranges) <= set(body.joint_names)


def test_another_number_of_actuators_is_fitted_once_and_cached(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(resources.CACHE_VARIABLE, str(tmp_path))
    first = porting.load("arm", 12)
    assert "compiling the 12 muscle paths" in capsys.readouterr().err
    start = time.perf_counter()
    second = porting.load("arm", 12)
    assert time.perf_counter() - start < 2
    assert capsys.readouterr().err == ""
    for a, b in zip(first.path_groups, second.path_groups, strict=True):
        np.testing.assert_allclose(a.coefficients, b.coefficients, rtol=1e-6, atol=1e-9)
    (cached,) = (tmp_path / "fits").glob("*.npz")
    cached.write_bytes(cached.read_bytes()[:100])
    porting.load("arm", 12)
    assert "compiling" in capsys.readouterr().err


def test_an_edited_recipe_does_not_take_the_shipped_paths(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(resources.CACHE_VARIABLE, str(tmp_path / "cache"))
    folder = tmp_path / "my_arm"
    shutil.copytree(resources.data_folder("models") / "arm", folder)
    text = (folder / "recipe.toml").read_text()
    (folder / "recipe.toml").write_text(text.replace("elbow = [-0.2, 2.6]", "elbow = [0.0, 2.0]"))
    body = porting.load(str(folder))
    assert "compiling" in capsys.readouterr().err
    assert any(np.isclose(g.half_range, 1.0).any() for g in body.path_groups)


def test_muscles_of_divided_arms_share_the_parents_torque():
    """All parts of a muscle pull as one: the same joint torque at equal activation."""
    one, many = porting.load("arm"), porting.load("arm", 60)
    q = fitting.random_poses(fitting.joint_ranges(one.tree, {}), 20, seed=3)
    for pose in jnp.asarray(q, jnp.float32):
        torque = []
        for body in (one, many):
            state = body.initial_state()._replace(qpos=pose, act=jnp.full(body.nu, 0.5))
            torque.append(body._actuator_force(state, state.act, body._place_nodes(state)))
        np.testing.assert_allclose(torque[0], torque[1], rtol=1e-3, atol=1e-2)
