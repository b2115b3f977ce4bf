"""Settings that every test shares."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import functools

import jax
import pytest

from mjx_qflex import porting, resources
from mjx_qflex.errors import UserError

jax.config.update("jax_numpy_rank_promotion", "raise")


@functools.cache
def load_body(name, num_actuators=None):
    """A ported body, loaded once; skips the test where its source is in no package."""
    try:
        return porting.load(name, num_actuators)
    except UserError as error:
        if resources.MODELS_VARIABLE in str(error):
            pytest.skip(str(error))
        raise
