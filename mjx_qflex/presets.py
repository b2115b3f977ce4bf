"""What each preset makes of a task and an algorithm: sizes, settings, sets of options. Tables only.

`config.resolve` applies them, below explicit flags and `--set`.
"""

from typing import NamedTuple, TypeVar

from mjx_qflex import devices

Row = TypeVar("Row")


class Sizes(NamedTuple):
    """How large a run is. `steps_per_epoch` aims at 1 to 5 s on the device of the preset."""

    num_envs: int
    batch_size: int
    updates_per_step: int
    prefill: int  # transitions
    replay: int  # transitions
    width: int  # of every network's hidden layers
    steps_per_epoch: int
    total_steps: int  # transitions, prefill included
    evaluations: int = 20  # spread over the run
    eval_envs: int = 64


class OnPolicySizes(NamedTuple):
    """How large an on-policy run is, `OnPolicyConfig`'s fields; length and evaluations are
    those of runs with a replay."""

    num_envs: int
    unroll_length: int  # transitions
    batch_size: int  # unrolls
    num_minibatches: int
    num_updates_per_batch: int
    width: int  # of the policy's hidden layers
    steps_per_epoch: int
    total_steps: int = 0
    evaluations: int = 0
    eval_envs: int = 0


PAPER_SMALL = Sizes(80, 256, 1, 30_000, 1_000_000, 256, 50, 20_000_000)
PAPER_LARGE = Sizes(224, 256, 1, 30_000, 1_000_000, 1024, 50, 50_000_000)
PAPER_SIZES = {
    "*": PAPER_SMALL,
    "h1_balance": PAPER_SMALL._replace(num_envs=70),
    "h1_run": PAPER_SMALL._replace(num_envs=70, total_steps=5_000_000),
    "ms_human_dance": PAPER_LARGE,
    "ms_human_run": PAPER_LARGE,
    "ms_human_walk": PAPER_LARGE,
    "myo_hand_pen_twirl": PAPER_SMALL._replace(total_steps=5_000_000),
    "ostrich_run": PAPER_SMALL._replace(total_steps=10_000_000),
    "smpl_jump": PAPER_SMALL._replace(total_steps=5_000_000),
}

# SIZES[preset][task]; a task without a line of its own takes "*".
# fmt: off
SIZES: dict[str, dict[str, Sizes]] = {
    # columns:                  envs batch upd prefill  replay width steps     total evals
    "cpu": {
        "*":             Sizes(   64,  256,  1,  5_000,   200_000, 128,  50,    300_000, 10),
        "chain_reach":   Sizes(   64,  256,  2,  2_560,   200_000, 128, 100,    200_000, 10),
        "h1_balance":    Sizes(   64,  256,  1,  5_000,   200_000, 128,  50,    300_000,  4, 16),
        "h1_run":        Sizes(   64,  256,  1,  5_000,   200_000, 128,  50,    300_000,  4, 16),
        "ms_human_dance": Sizes(  32,  128,  3,  8_000,    30_000, 128,  10,     60_000,  4),
        "ms_human_run":  Sizes(   32,  128,  3,  8_000,    30_000, 128,  10,     60_000,  4),
        "ms_human_walk": Sizes(   32,  128,  3,  8_000,    30_000, 128,  10,     60_000,  4),
        "myo_hand_pen_twirl": Sizes(32, 128, 4,  5_000,   100_000, 128,  50,    100_000,  4),
        # The authors' sizes: in minutes these legs learn nothing, in half an hour to walk.
        "myo_leg_walk":  PAPER_SMALL._replace(total_steps=2_500_000, evaluations=10),
        "ostrich_run":   Sizes(   64,  256,  2,  5_000,    60_000, 128,  10,    100_000,  4, 16),
        "smpl_jump":     Sizes(   64,  256,  2,  5_000,    60_000, 128,  10,    100_000,  4, 32),
    },
    "gpu": {
        "*":             Sizes( 4096, 4096,  4, 100_000, 1_000_000, 256, 50, 50_000_000),
        "chain_reach":   Sizes( 4096, 4096,  4, 100_000, 1_000_000, 256, 100, 20_000_000),
        "ms_human_dance": Sizes(4096, 4096,  4, 100_000,   500_000, 1024, 16, 50_000_000),
        "ms_human_run":  Sizes( 4096, 4096,  4, 100_000,   500_000, 1024, 16, 50_000_000),
        "ms_human_walk": Sizes( 4096, 4096,  4, 100_000,   500_000, 1024, 16, 50_000_000),
    },
    "paper": PAPER_SIZES,
    "code": PAPER_SIZES,
}
# The same for algorithms without a replay.
PAPER_ON_POLICY = {
    # Stable-Baselines3's defaults with 4 worlds: 2,048 steps of each an iteration, minibatches of
    # 512 transitions, 10 passes. It shuffles transitions and estimates advantages over all 2,048
    # steps; brax does both by unrolls.
    "*":             OnPolicySizes(   4,  128,   4,  16,  10,    64, 2048),
}
ON_POLICY_SIZES: dict[str, dict[str, OnPolicySizes]] = {
    # columns:                     envs unroll batch mini passes width steps
    "cpu": {
        "*":             OnPolicySizes(  64,   20,   8,   8,   8,   128,   20),
        "chain_reach":   OnPolicySizes(  64,   20,   8,   8,   8,   128,  100),
    },
    # MuJoCo Playground's proportions: an iteration is one unroll of each world.
    "gpu": {
        "*":             OnPolicySizes(4096,   20, 128,  32,   4,   128,   20),
        "chain_reach":   OnPolicySizes(4096,   20, 128,  32,   4,   128,  100),
    },
    "paper": PAPER_ON_POLICY,
    "code": PAPER_ON_POLICY,
}
# fmt: on

# A body whose 700 muscles start half excited falls before it can learn anything. Here action 0 is
# rest, and the untrained policy fills the replay (experiments/cpu_walk).
AT_REST = ("task.action_map=exponential",)
PREFILL_BY_POLICY = ("loop.prefill_actions=policy",)

# Quiet first actions, flat first critics, and a source that stays within the reach of what the
# critics have seen. The critic's gradient, and with it the ascent, shrinks with the rewards.
QUIET_QFLEX = (
    "algo.initial_std=0.2",
    "algo.output_gain=0.05",
    "algo.source_learning_rate=1e-5",
    "algo.reward_scale=0.01",
    "algo.ascent_step_size=1.0",
)

# Minutes on two cores are few updates: besides, fast critics, a short horizon, and evaluation
# without noise.
MINUTES_QFLEX = (
    *QUIET_QFLEX,
    "algo.learning_rate=1e-3",
    "algo.gamma=0.95",
    "algo.eval_noise=mean",
)

# One body, so one set of settings; they were found on the walk (experiments/cpu_walk).
HUMAN_TASKS = ("ms_human_dance", "ms_human_run", "ms_human_walk")

# What a preset sets on a task with an algorithm ("*": any, "off_policy": any with a replay), in
# the form of --set.
SETTINGS: dict[tuple[str, str, str], tuple[str, ...]] = {
    ("cpu", "*", "crossq"): ("algo.critic_width=256",),  # the paper's 2,048 is for accelerators,
    ("cpu", "*", "dacer"): ("algo.entropy_states=32",),  # and so are so many samples
    # Playground's are for a hundred million transitions; found on chain_reach.
    ("cpu", "*", "ppo"): ("algo.learning_rate=1e-3", "algo.entropy_cost=1e-3"),
    ("cpu", "*", "sdac"): ("algo.particles=4", "algo.reverse_samples=16"),
    ("code", "ms_human_walk", "*"): ("task.reward_set=code",),
    **{(preset, task, "*"): AT_REST for preset in ("cpu", "gpu") for task in HUMAN_TASKS},
    **{
        (preset, task, "off_policy"): PREFILL_BY_POLICY
        for preset in ("cpu", "gpu")
        for task in HUMAN_TASKS
    },
    # Its action 0 is near rest as it is.
    ("cpu", "myo_hand_pen_twirl", "off_policy"): PREFILL_BY_POLICY,
    **{("gpu", task, "qflex"): QUIET_QFLEX for task in HUMAN_TASKS},
    **{("cpu", task, "qflex"): MINUTES_QFLEX for task in HUMAN_TASKS},
    # An episode is 50 actions, and what pays is rare: smaller steps, a source that learns too.
    ("cpu", "myo_hand_pen_twirl", "qflex"): (
        *MINUTES_QFLEX,
        "algo.learning_rate=3e-4",
        "algo.source_learning_rate=1e-4",
        "algo.reward_scale=0.05",
        "algo.ascent_step_size=0.1",
    ),
}

# The sets of algorithm options that a preset takes, the first that the algorithm has; else its
# default. Baselines have one set for Qflex's paper and code.
ALGO_OPTIONS = {"paper": ("paper", "qflex_paper"), "code": ("code", "qflex_paper")}


def default_preset(device: str | None = None) -> str:
    """Returns the preset for a platform: "cpu" without an accelerator, "gpu" with one.

    Raises:
      UserError: JAX finds none of the devices that it is told to use.
    """
    return "cpu" if (device or devices.backend()) == "cpu" else "gpu"


def sizes_of(preset: str, task: str, on_policy: bool = False) -> Sizes | OnPolicySizes:
    """Returns the tables' entry for a preset and a task."""
    sizes = _row(SIZES[preset], task)
    if not on_policy:
        return sizes
    return _row(ON_POLICY_SIZES[preset], task)._replace(
        total_steps=sizes.total_steps, evaluations=sizes.evaluations, eval_envs=sizes.eval_envs
    )


def _row(table: dict[str, Row], task: str) -> Row:
    return table.get(task, table["*"])


def settings_of(preset: str, task: str, algo: str, on_policy: bool = False) -> list[str]:
    """Returns the settings of a preset in the form of `--set`, the more special ones last."""
    kind = "on_policy" if on_policy else "off_policy"
    rows = ((preset, "*", algo), (preset, task, "*"), (preset, task, kind), (preset, task, algo))
    return [setting for row in rows for setting in SETTINGS.get(row, ())]
