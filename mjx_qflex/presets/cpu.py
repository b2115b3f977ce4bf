"""`cpu`: minutes on two cores; enough to see learning, and on the legs to walk."""

from dataclasses import replace

from mjx_qflex.algos.crossq import CrossqConfig
from mjx_qflex.algos.dacer import DacerConfig
from mjx_qflex.algos.ppo import PpoConfig
from mjx_qflex.algos.qflex import QflexConfig
from mjx_qflex.algos.sdac import SdacConfig
from mjx_qflex.config import Config
from mjx_qflex.presets import common
from mjx_qflex.presets.paper import loop as paper_loop
from mjx_qflex.sizes import LoopConfig, OnPolicyConfig

FEW_STEPS_A_SECOND = (*common.HUMAN_TASKS, "ostrich_run", "smpl_jump")


def cpu(task: str, algo: str) -> Config:
    """Returns the preset; `steps_per_epoch` aims at 1 to 5 s."""
    config = common.new(
        "cpu",
        task,
        algo,
        loop(task),
        OnPolicyConfig(
            num_envs=64,
            unroll_length=20,
            batch_size=8,
            num_minibatches=8,
            num_updates_per_batch=8,
            steps_per_epoch=100 if task == "chain_reach" else 20,
        ),
        width=256 if task == "myo_leg_walk" else 128,
        on_policy_width=128,
        total_steps=total_steps(task),
        evaluations=10 if task in ("arm_reach", "chain_reach", "myo_leg_walk") else 4,
    )
    config = few_samples(config)
    if task in common.HUMAN_TASKS:
        config = common.at_rest(config)
    if task == "myo_hand_pen_twirl":  # its action 0 is near rest as it is
        config = common.filled_by_policy(config)
    if algo == "qflex" and task in (*common.HUMAN_TASKS, "myo_hand_pen_twirl"):
        config = in_minutes(config)
    return config


def loop(task: str) -> LoopConfig:
    """Returns the sizes of training on a task."""
    sizes = LoopConfig(
        num_envs=64,
        batch_size=256,
        updates_per_step=1,
        prefill_transitions=5_000,
        replay_capacity=200_000,
        steps_per_epoch=10 if task in FEW_STEPS_A_SECOND else 50,
        reset_pool=64,
        eval_envs=64,
    )
    if task == "chain_reach":
        return replace(sizes, updates_per_step=2, prefill_transitions=2_560, steps_per_epoch=100)
    if task in common.H1_TASKS:
        return replace(sizes, eval_envs=16)
    if task in common.HUMAN_TASKS:
        return replace(
            sizes,
            num_envs=32,
            batch_size=128,
            updates_per_step=3,
            prefill_transitions=8_000,
            replay_capacity=30_000,
            reset_pool=32,
        )
    if task == "myo_hand_pen_twirl":
        return replace(
            sizes,
            num_envs=32,
            batch_size=128,
            updates_per_step=4,
            replay_capacity=100_000,
            reset_pool=32,
        )
    if task == "myo_leg_walk":
        # The authors' sizes: in minutes these legs learn nothing, in half an hour to walk.
        return paper_loop(task)
    if task in ("ostrich_run", "smpl_jump"):
        episodes = 16 if task == "ostrich_run" else 32
        return replace(sizes, updates_per_step=2, replay_capacity=60_000, eval_envs=episodes)
    return sizes


def total_steps(task: str) -> int:
    """Returns the transitions of a run."""
    if task == "chain_reach":
        return 200_000
    if task in common.HUMAN_TASKS:
        return 60_000
    if task in ("myo_hand_pen_twirl", "ostrich_run", "smpl_jump"):
        return 100_000
    return 2_500_000 if task == "myo_leg_walk" else 300_000


def few_samples(config: Config) -> Config:
    """Returns the config with an algorithm's options that suit a CPU."""
    options = config.algo_config
    if isinstance(options, CrossqConfig):
        options = replace(options, critic_width=256)  # the paper's 2,048 is for accelerators,
    if isinstance(options, DacerConfig):
        options = replace(options, entropy_states=32)  # and so are so many samples
    if isinstance(options, SdacConfig):
        options = replace(options, particles=4, reverse_samples=16)
    if isinstance(options, PpoConfig):
        # Playground's are for a hundred million transitions; found on chain_reach.
        options = replace(options, learning_rate=1e-3, entropy_cost=1e-3)
    return replace(config, algo_config=options)


def in_minutes(config: Config) -> Config:
    """Returns the config of Qflex for few updates: fast critics, a short horizon, no noise."""
    options = common.quiet(config).algo_config
    assert isinstance(options, QflexConfig)
    options = replace(options, learning_rate=1e-3, gamma=0.95, eval_noise="mean")
    if config.task == "myo_hand_pen_twirl":
        # An episode is 50 actions, and what pays is rare: smaller steps, a source that learns too.
        options = replace(
            options,
            learning_rate=3e-4,
            source_learning_rate=1e-4,
            reward_scale=0.05,
            ascent_step_size=0.1,
        )
    return replace(config, algo_config=options)
