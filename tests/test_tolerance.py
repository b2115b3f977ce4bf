"""The reward terms' tolerance against its published definition."""

import jax.numpy as jnp
import numpy as np
import pytest

from mjx_qflex.tasks.tolerance import tolerance


@pytest.mark.parametrize(
    ("options", "values"),
    [  # at x = -3, -1, 0, 1.5, 2, 4
        ({}, [0, 0, 1, 0, 0, 0]),
        ({"lower": -1.0, "upper": 2.0}, [0, 1, 1, 1, 1, 0]),
        ({"lower": 1.0, "upper": np.inf}, [0, 0, 0, 1, 1, 1]),
        (
            {"lower": 1.0, "upper": 2.0, "margin": 2.0},
            [10.0**-4, 10.0**-1, 10.0**-0.25, 1, 1, 10.0**-1],
        ),
        (
            {"lower": 1.0, "upper": 2.0, "margin": 4.0, "value_at_margin": 0.5},
            [0.5, 0.5**0.25, 0.5 ** (1 / 16), 1, 1, 0.5**0.25],
        ),
        (
            {"lower": 1.0, "upper": 2.0, "margin": 2.0, "sigmoid": "linear", "value_at_margin": 0},
            [0, 0, 0.5, 1, 1, 0],
        ),
        (
            {"lower": 1.0, "upper": 2.0, "margin": 2.0, "sigmoid": "linear"},
            [0, 0.1, 0.55, 1, 1, 0.1],
        ),
        (
            {"margin": 3.0, "sigmoid": "quadratic", "value_at_margin": 0},
            [0, 8 / 9, 1, 0.75, 5 / 9, 0],
        ),
    ],
)
def test_tolerance_against_its_published_definition(options, values):
    x = jnp.array([-3.0, -1.0, 0.0, 1.5, 2.0, 4.0])
    np.testing.assert_allclose(tolerance(x, **options), values, atol=1e-6)
