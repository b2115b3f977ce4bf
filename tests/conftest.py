"""Settings that every test shares."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import contextlib
import functools

import jax
import pytest

from mjx_qflex import porting, resources
from mjx_qflex.errors import UserError

jax.config.update("jax_numpy_rank_promotion", "raise")

pytest.register_assert_rewrite("task_protocol")


@contextlib.contextmanager
def absent_sources_skip():
    """Skips the test where a body's source is in no package and the user has not supplied it."""
    try:
        yield
    except UserError as error:
        if resources.MODELS_VARIABLE in str(error):
            pytest.skip(str(error))
        raise


@functools.cache
def load_body(name, num_actuators=None):
    """A ported body, loaded once; skips the test where its source is absent."""
    with absent_sources_skip():
        return porting.load(name, num_actuators)
