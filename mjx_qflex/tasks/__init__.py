"""The tasks by name. A task is a brax `Env` built from a frozen dataclass of options.

To add one: write a module with its config class and its task class, and add a line to `TASKS`.
"""

import dataclasses
import importlib
from typing import Any, NamedTuple

from brax.envs.base import Env

from mjx_qflex.lookup import unknown_name


class TaskEntry(NamedTuple):
    """Where a task lives; by name, so that looking one up imports no other."""

    module: str
    config_class: str
    task_class: str


TASKS: dict[str, TaskEntry] = {
    "arm_reach": TaskEntry("mjx_qflex.tasks.arm_reach", "ArmReachConfig", "ArmReach"),
    "chain_reach": TaskEntry("mjx_qflex.tasks.chain_reach", "ChainReachConfig", "ChainReach"),
    "h1_balance": TaskEntry("mjx_qflex.tasks.h1", "H1BalanceConfig", "H1Balance"),
    "h1_run": TaskEntry("mjx_qflex.tasks.h1", "H1RunConfig", "H1Run"),
    "ms_human_dance": TaskEntry("mjx_qflex.tasks.ms_human", "MsHumanDanceConfig", "MsHumanDance"),
    "ms_human_run": TaskEntry("mjx_qflex.tasks.ms_human", "MsHumanRunConfig", "MsHumanRun"),
    "ms_human_walk": TaskEntry("mjx_qflex.tasks.ms_human", "MsHumanWalkConfig", "MsHumanWalk"),
    "myo_hand_pen_twirl": TaskEntry(
        "mjx_qflex.tasks.myo_hand_pen_twirl", "MyoHandPenTwirlConfig", "MyoHandPenTwirl"
    ),
    "myo_leg_walk": TaskEntry("mjx_qflex.tasks.myo_leg_walk", "MyoLegWalkConfig", "MyoLegWalk"),
    "ostrich_run": TaskEntry("mjx_qflex.tasks.ostrich_run", "OstrichRunConfig", "OstrichRun"),
    "smpl_jump": TaskEntry("mjx_qflex.tasks.smpl_jump", "SmplJumpConfig", "SmplJump"),
}


def _entry(name: str) -> TaskEntry:
    if name not in TASKS:
        raise unknown_name("task", name, TASKS)
    return TASKS[name]


def config_class(name: str) -> type:
    """Returns the options dataclass of the task called `name`, without building the task.

    Raises:
      UserError: no task has that name.
    """
    entry = _entry(name)
    return getattr(importlib.import_module(entry.module), entry.config_class)


def from_config(name: str, config: Any) -> Env:
    """Builds the task called `name` from an instance of its `config_class`.

    Raises:
      UserError: no task has that name, or the task refuses an option's value.
    """
    entry = _entry(name)
    return getattr(importlib.import_module(entry.module), entry.task_class)(config)


def make(name: str, **options: Any) -> Env:
    """Builds the task called `name`; options that are not given keep their defaults.

    Raises:
      UserError: unknown task or option (the nearest is named), or a refused value.
    """
    options_class = config_class(name)
    known = [field.name for field in dataclasses.fields(options_class)]
    for option in options:
        if option not in known:
            raise unknown_name(f"option of task {name}", option, known)
    return from_config(name, options_class(**options))
