"""Sampler, ascent and loss against small NumPy loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mjx_qflex import flow


@pytest.mark.parametrize("grid", ["right", "left"])
def test_euler_steps_one_by_one(grid):
    start = np.array([[0.0, 1.0], [-0.5, 2.0]], np.float32)
    num_steps = 4

    def velocity(action, time):
        return 10.0 * time * action + time - 3.0

    expected = start.copy()
    for index in range(num_steps):
        time = (index + (grid == "right")) / num_steps
        expected = expected + np.clip(velocity(expected, time), -num_steps, num_steps) / num_steps
    result = flow.euler_sample(velocity, jnp.asarray(start), num_steps, grid)
    np.testing.assert_allclose(result, expected, rtol=1e-5)


def test_euler_golden_values():
    """Velocity `time` alone: the grids bracket the integral 1/2 by half a step."""
    for grid, expected in (("right", 0.525), ("left", 0.475)):
        result = flow.euler_sample(lambda a, time: time + 0.0 * a, jnp.zeros((1, 3)), 20, grid)
        np.testing.assert_allclose(result, expected, atol=1e-6)


def quadratic(center, curvature):
    return lambda action: -0.5 * jnp.sum(curvature * jnp.square(action - center), axis=-1)


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("metric", [None, "diagonal", "full"])
def test_ascent_equals_numpy(clip, metric):
    rng = np.random.default_rng(0)
    start = rng.uniform(-1, 1, (5, 3)).astype(np.float32)
    center, curvature = np.array([[2.0, -3.0, 0.1]]), np.array([[1.0, 4.0, 900.0]])
    matrix = {
        None: np.eye(3),
        "diagonal": np.diag([1.0, 0.5, 2.0]),
        "full": np.array([[1.0, 0.3, 0.0], [0.2, 0.5, 0.0], [0.0, 0.1, 2.0]]),
    }[metric]
    expected = start.astype(np.float64)
    for _ in range(7):
        direction = (curvature * (center - expected)) @ matrix.T
        norm = np.linalg.norm(direction, axis=-1, keepdims=True)
        expected = expected + np.minimum(0.05, 2 * np.sqrt(3) / (norm + 1e-6)) * direction
        if clip:
            expected = np.clip(expected, -1, 1)
    argument = {None: None, "diagonal": np.diag(matrix), "full": matrix}[metric]
    result = flow.ascend(
        quadratic(jnp.asarray(center, jnp.float32), jnp.asarray(curvature, jnp.float32)),
        jnp.asarray(start),
        7,
        0.05,
        clip,
        None if argument is None else jnp.asarray(argument, jnp.float32),
    )
    np.testing.assert_allclose(result, expected, rtol=1e-3, atol=1e-4)


def test_a_step_is_never_longer_than_the_box():
    start = jnp.zeros((1, 4))
    end = flow.ascend(lambda action: 1e8 * jnp.sum(action, axis=-1), start, 1, 0.01, False)
    np.testing.assert_allclose(jnp.linalg.norm(end), 4.0, rtol=1e-5)


def test_no_gradient_flows_through_the_ascent():
    def moved(start):
        return flow.ascend(quadratic(1.0, 1.0), start, 2, 0.1, False).sum()

    assert float(jnp.abs(jax.grad(moved)(jnp.zeros((2, 3)))).max()) == 0


def test_flow_matching_loss_is_zero_for_the_straight_paths():
    start, end = jax.random.normal(jax.random.key(0), (2, 6, 3))
    time = jnp.linspace(0, 1, 6)[:, None]
    seen = []

    def velocity(action, time):
        seen.append((action, time))
        return end - start, "aux"

    loss, aux = flow.flow_matching_loss(velocity, start, end, time)
    assert float(loss) == 0 and aux == "aux"
    np.testing.assert_allclose(seen[0][0], (1 - time) * start + time * end, rtol=1e-6)
    offset, _ = flow.flow_matching_loss(lambda a, t: (end - start + 2.0, None), start, end, time)
    np.testing.assert_allclose(offset, 4.0, rtol=1e-6)
