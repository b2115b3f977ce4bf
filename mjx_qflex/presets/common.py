"""What several presets share."""

from dataclasses import replace

from mjx_qflex import algos, tasks
from mjx_qflex.algos.qflex import QflexConfig
from mjx_qflex.config import Config
from mjx_qflex.sizes import LoopConfig, OnPolicyConfig

HUMAN_TASKS = ("ms_human_dance", "ms_human_run", "ms_human_walk")
H1_TASKS = ("h1_balance", "h1_run")


def new(
    preset: str,
    task: str,
    algo: str,
    loop: LoopConfig,
    on_policy: OnPolicyConfig,
    width: int,
    on_policy_width: int,
    total_steps: int,
    evaluations: int,
    options: str = "default",
) -> Config:
    """Returns the config of a task and an algorithm, every option but these at its default.

    Args:
      preset, task, algo: names.
      loop: sizes of an algorithm with a replay.
      on_policy: sizes of one without; it takes the number of episodes of an evaluation from `loop`.
      width, on_policy_width: of hidden layers, likewise.
      total_steps: transitions, prefill included.
      evaluations: spread over the run.
      options: name of the algorithm's set of options, where it has one of that name.
    """
    known = algos.entry(algo)
    chosen = known.presets.get(options, known.presets["default"])
    sizes = replace(on_policy, eval_envs=loop.eval_envs) if known.on_policy else loop
    return Config(
        task=task,
        algo=algo,
        preset=preset,
        seed=0,
        total_steps=total_steps,
        evaluations=evaluations,
        loop=sizes,
        algo_config=replace(chosen, width=on_policy_width if known.on_policy else width),
        task_config=tasks.config_class(task)(),
    )


def at_rest(config: Config) -> Config:
    """Returns the config of a human task that begins at rest.

    A body whose 700 muscles start half excited falls before it can learn anything. Here action 0
    is rest, and the untrained policy fills the replay (experiments/cpu_walk).
    """
    task_config = replace(config.task_config, action_map="exponential")
    return filled_by_policy(replace(config, task_config=task_config))


def filled_by_policy(config: Config) -> Config:
    """Returns the config whose replay the untrained policy fills, where there is a replay."""
    if not isinstance(config.loop, LoopConfig):
        return config
    return replace(config, loop=replace(config.loop, prefill_actions="policy"))


def quiet(config: Config) -> Config:
    """Returns the config of Qflex with quiet first actions and flat first critics.

    The source stays within the reach of what the critics have seen. The critic's gradient, and with
    it the ascent, shrinks with the rewards. Found on the walk of 700 muscles.
    """
    options = config.algo_config
    assert isinstance(options, QflexConfig)
    options = replace(
        options,
        initial_std=0.2,
        output_gain=0.05,
        source_learning_rate=1e-5,
        reward_scale=0.01,
        ascent_step_size=1.0,
    )
    return replace(config, algo_config=options)
