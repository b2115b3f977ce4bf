"""`paper`: the Qflex paper's sizes and settings, as its text has them."""

from dataclasses import replace

from mjx_qflex import algos
from mjx_qflex.config import Config
from mjx_qflex.presets import common
from mjx_qflex.sizes import LoopConfig, OnPolicyConfig


def paper(task: str, algo: str) -> Config:
    """Returns the preset."""
    return published("paper", task, algo)


def published(preset: str, task: str, algo: str) -> Config:
    """Returns the paper's sizes with the options of `preset`, "paper" or "code".

    Baselines have one set of options for both, what Qflex's authors ran.
    """
    own = preset in algos.entry(algo).presets
    return common.new(
        preset,
        task,
        algo,
        loop(task),
        # Stable-Baselines3's defaults with 4 environments: 2,048 steps of each an iteration,
        # minibatches of 512 transitions, 10 passes. It shuffles transitions and estimates
        # advantages over all 2,048 steps; brax does both by unrolls.
        OnPolicyConfig(
            num_envs=4,
            unroll_length=128,
            batch_size=4,
            num_minibatches=16,
            num_updates_per_batch=10,
            steps_per_epoch=2048,
        ),
        width=1024 if task in common.HUMAN_TASKS else 256,
        on_policy_width=64,
        total_steps=total_steps(task),
        evaluations=20,
        options=preset if own else "qflex_paper",
    )


def loop(task: str) -> LoopConfig:
    """Returns the paper's sizes of training on a task."""
    sizes = LoopConfig(
        num_envs=80,
        batch_size=256,
        updates_per_step=1,
        prefill_transitions=30_000,
        replay_capacity=1_000_000,
        steps_per_epoch=50,
        reset_pool=80,
    )
    if task in common.H1_TASKS:
        return replace(sizes, num_envs=70, reset_pool=70)
    if task in common.HUMAN_TASKS:
        return replace(sizes, num_envs=224, reset_pool=224)
    return sizes


def total_steps(task: str) -> int:
    """Returns the transitions that the paper trains a task for."""
    if task in common.HUMAN_TASKS:
        return 50_000_000
    if task in ("h1_run", "myo_hand_pen_twirl", "smpl_jump"):
        return 5_000_000
    return 10_000_000 if task == "ostrich_run" else 20_000_000
