"""`code`: the paper's sizes, with the settings of its official code."""

from dataclasses import replace

from mjx_qflex.config import Config
from mjx_qflex.presets.paper import published


def code(task: str, algo: str) -> Config:
    """Returns the preset, which has the code's reward of the walk, too."""
    config = published("code", task, algo)
    if task == "ms_human_walk":
        config = replace(config, task_config=replace(config.task_config, reward_set="code"))
    return config
