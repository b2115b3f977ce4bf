"""Settings that every test shares."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most of the suite's time is XLA's; without its MLIR emitters it compiles three times as fast.
os.environ["XLA_FLAGS"] = " ".join(
    [os.environ.get("XLA_FLAGS", ""), "--xla_cpu_use_fusion_emitters=false"]
)
# Compiled programs are kept only for the commands that tests start, in a temporary folder.
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"

import contextlib
import functools
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache
from tiny_runs import TINY, finish

from mjx_qflex import porting, resources
from mjx_qflex.errors import UserError

ROOT = Path(__file__).resolve().parents[1]

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


@contextlib.contextmanager
def compiling_once(folder, **options):
    """Keeps compiled programs in `folder`, for those that are made anew; with `options` of JAX."""
    options |= {
        "jax_enable_compilation_cache": True,
        "jax_compilation_cache_dir": str(folder),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    before = {name: jax.config.values[name] for name in options}
    for name, value in options.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@contextlib.contextmanager
def compiling_quickly():
    """For programs that are small and run for a moment, so that compiling them takes longest."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture
def quick_compilation():
    """Compiles a whole test's programs quickly."""
    with compiling_quickly():
        yield


def jax_for_others(folder):
    """brax, raw MJX and flashbax rely on rank promotion; tests' programs take longest to compile.

    `folder` keeps what was compiled.
    """
    return compiling_once(
        folder, jax_numpy_rank_promotion="allow", jax_disable_most_optimizations=True
    )


@functools.cache
def load_body(name, num_actuators=None):
    """A ported body, loaded once; skips the test where its source is absent."""
    with absent_sources_skip():
        return porting.load(name, num_actuators)


@pytest.fixture(scope="session")
def environment(tmp_path_factory):
    """The variables of commands, with one compilation cache for all of them."""
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_COMPILATION_CACHE": "true",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("compiled")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }


@pytest.fixture(scope="session")
def command(environment):
    """Starts a command as a user would."""

    def start(module, *flags):
        return subprocess.Popen(
            [sys.executable, "-m", f"mjx_qflex.{module}", *map(str, flags)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )

    return start


@pytest.fixture(scope="session")
def trained(command, tmp_path_factory):
    """A finished tiny run: its folder and what it printed."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    process = command("train", *TINY, f"--logdir={folder}")
    code, out, err = finish(process)
    assert (code, err) == (0, ""), out + err
    return folder, out
