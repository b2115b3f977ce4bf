"""A sweep of the guidance weight (`algos.qgf`): what guiding a trained policy brings.

As in `assessment`, all weights start from the same reset seeds, and returns are compared in pairs.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mjx_qflex.algos.qgf import Guided, QgfConfig
from mjx_qflex.runner import assessment
from mjx_qflex.runner.assessment import TimedTask
from mjx_qflex.training import evaluation
from mjx_qflex.types import Algorithm, Learner

FILE_NAME = "guidance.json"
Sweep = dict[str, Any]  # as written to guidance.json


def sweep(
    env: TimedTask,
    algorithm: Algorithm,
    guided: Algorithm,
    learner: Learner,
    config: QgfConfig,
    weights: Sequence[float],
    episodes: int,
    seed: int,
) -> Sweep:
    """Evaluates a learner without guidance, and with each weight; 0 is always among them.

    Args:
      env: the task.
      algorithm: the one that trained.
      guided: the same with guidance (`qgf.guide`).
      learner: the trained one.
      config: what `guided` was made with, for the record; its weight is not used.
      weights: to try.
      episodes: of each weight.
      seed: of the reset states.
    """
    key = assessment.evaluation_key(seed)
    unguided = evaluation.make_evaluate(env, algorithm.policy, episodes)
    # One program for all weights: a weight is an argument of it.
    program = evaluation.make_evaluate(env, guided.policy, episodes)
    results = {"unguided": unguided(learner, key)}
    for weight in sorted({0.0, *weights}):
        results[str(weight)] = program(Guided(learner, jnp.asarray(weight, jnp.float32)), key)
    results = {name: jax.device_get(result) for name, result in results.items()}
    returns = {name: np.asarray(result.return_, np.float64) for name, result in results.items()}
    return {
        "seed": seed,
        "episodes": episodes,
        "control_dt": float(env.control_dt),
        "euler_steps": config.euler_steps,
        "euler_grid": config.euler_grid,
        "best_of": config.best_of,
        "policies": {
            name: assessment.summary(result, env.episode_length) for name, result in results.items()
        },
        "minus_weight_0": {
            name: assessment.paired_interval(values - returns["0.0"])._asdict()
            for name, values in returns.items()
            if name != "0.0"
        },
    }


def table(result: Sweep) -> list[str]:
    """Returns the sweep as lines of a Markdown table, readable in a terminal too."""
    rows: list[tuple[str, ...]] = [
        ("weight", "return", "episode length", "minus weight 0: return, 95% interval")
    ]
    for name, policy in result["policies"].items():
        interval = result["minus_weight_0"].get(name)
        rows.append(assessment.row(name, policy, result["control_dt"], interval))
    return assessment.markdown(rows)


def how(result: Sweep) -> str:
    """Returns what a reader of the table must know of how it was made."""
    chosen = "" if result["best_of"] == 1 else f", the best of {result['best_of']} candidates"
    return (
        f"The policy of {result['transitions']:,} transitions, moved uphill on its critics while "
        f"it acts (QGF): {result['euler_steps']} Euler steps, velocities at their "
        f"{result['euler_grid']} ends{chosen}. {result['episodes']} episodes of each weight from "
        f"the same reset seeds (evaluation seed {result['seed']}); mean ± standard deviation. "
        "`unguided` is the policy as it was trained, on its own steps. The best of many weights "
        "looks better here than it is: evaluate it again with another `--seed`."
    )
