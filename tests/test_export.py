"""The training program of every task lowers for accelerators, seen on a machine without one."""

from dataclasses import replace

import jax
import pytest
from conftest import absent_sources_skip
from toy_envs import Counter, random_algorithm

from mjx_qflex import presets, tasks
from mjx_qflex.algos.qflex import QflexConfig
from mjx_qflex.runner import driver
from mjx_qflex.sizes import LoopConfig
from mjx_qflex.training.loop import make_loop

PLATFORMS = ("cuda", "tpu")
SIZES = LoopConfig(
    num_envs=2, batch_size=4, prefill_transitions=4, replay_capacity=16, steps_per_epoch=2,
    reset_pool=2, eval_envs=1, matmul_precision="bfloat16",
)  # fmt: skip


def exported(loop):
    """The text of the epoch's program for all `PLATFORMS`; what cannot be lowered raises."""
    epoch = loop.programs["epoch"].export(PLATFORMS, loop.shapes().device)
    assert epoch.platforms == PLATFORMS
    return epoch.mlir_module()


@pytest.mark.parametrize("name", tasks.TASKS)
def test_an_epoch_lowers_for_accelerators(name):
    config = presets.resolve(name, "qflex", "paper")
    config = replace(config, loop=SIZES, algo_config=QflexConfig(width=8, depth=1))
    with absent_sources_skip():
        env, algorithm = driver.build(config)
    text = exported(make_loop(env, algorithm, SIZES))
    assert "lapack" not in text and "xla_cpu" not in text  # what only a CPU can call
    # What asks for no precision gets that of the networks, and elsewhere a GPU's ten bits.
    products = [line for line in text.splitlines() if "stablehlo.dot_general" in line]
    exact = [line for line in products if "precision = [HIGHEST, HIGHEST]" in line]
    coarse = [line for line in products if line.count("xbf16>") == 2]
    assert len(exact) + len(coarse) == len(products)
    assert coarse


def test_what_reaches_for_the_host_is_seen():
    class HostBound(Counter):
        def _next(self, toy, action):
            time = jax.pure_callback(lambda x: x, toy.time, toy.time, vmap_method="broadcast_all")
            return super()._next(toy.replace(time=time), action)

    loop = make_loop(HostBound(), random_algorithm(2, 1), SIZES)
    with pytest.raises(NotImplementedError, match="callback"):
        exported(loop)
