"""`gpu`: thousands of environments on one accelerator."""

from mjx_qflex.config import Config
from mjx_qflex.presets import common
from mjx_qflex.sizes import LoopConfig, OnPolicyConfig


def gpu(task: str, algo: str) -> Config:
    """Returns the preset; `steps_per_epoch` aims at 1 to 5 s."""
    human = task in common.HUMAN_TASKS
    chain = task == "chain_reach"
    loop = LoopConfig(
        num_envs=4096,
        batch_size=4096,
        updates_per_step=4,
        prefill_transitions=100_000,
        replay_capacity=500_000 if human else 1_000_000,
        steps_per_epoch=16 if human else 100 if chain else 50,
        reset_pool=4096,
    )
    # MuJoCo Playground's proportions: an iteration is one unroll of each environment.
    on_policy = OnPolicyConfig(
        num_envs=4096,
        unroll_length=20,
        batch_size=128,
        num_minibatches=32,
        num_updates_per_batch=4,
        steps_per_epoch=100 if chain else 20,
    )
    config = common.new(
        "gpu",
        task,
        algo,
        loop,
        on_policy,
        width=1024 if human else 256,
        on_policy_width=128,
        total_steps=20_000_000 if chain else 50_000_000,
        evaluations=20,
    )
    if human:
        config = common.at_rest(config)
    if human and algo == "qflex":
        config = common.quiet(config)
    return config
