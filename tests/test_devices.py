"""One run on several devices, and what a user may ask of them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mjx_qflex.errors import UserError
from mjx_qflex.sizes import LoopConfig
from mjx_qflex.training import sharding

HERE = Path(__file__).parent


def test_on_eight_devices():
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        # On a busy machine a device waits long for the others.
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8 "
        "--xla_cpu_collective_call_terminate_timeout_seconds=600",
    }
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", HERE / "on_eight_devices.py"],
        env=environment,
        cwd=HERE.parent,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert run.returncode == 0, run.stdout + run.stderr


SIZES = LoopConfig(
    num_envs=24, batch_size=36, reset_pool=72, prefill_transitions=100, replay_capacity=1_000
)


def test_the_part_of_one_device():
    part = sharding.share(SIZES, 12)
    assert (part.num_envs, part.batch_size, part.reset_pool) == (2, 3, 6)
    # As many rows as on one device: 5 of the prefill, 42 of the ring.
    assert (part.prefill_transitions, part.replay_capacity) == (9, 84)


@pytest.mark.parametrize(
    ("number", "wrong"),
    [(5, "num_envs=24.*5 devices; give 25, or --devices=4"), (8, "batch_size=36.*give 40.*=6")],
)
def test_sizes_that_devices_cannot_share(number, wrong):
    with pytest.raises(UserError, match=wrong):
        sharding.share(SIZES, number)


@pytest.mark.parametrize("number", [0, 2])
def test_devices_that_are_not_there(number):
    with pytest.raises(UserError, match=f"--devices={number}: there are 1; give 1 to 1"):
        sharding.make_mesh(number)
    assert sharding.make_mesh() is sharding.make_mesh(1) is None
