"""What came out of a run: the trained policy against two that learnt nothing, and a clip of it.

All three start from the same reset seeds, so returns are compared in pairs: the spread that the
starts bring cancels.
"""

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from mjx_qflex import files
from mjx_qflex.training import evaluation
from mjx_qflex.training.environments import Task
from mjx_qflex.training.program import Program
from mjx_qflex.types import Algorithm, Learner
from mjx_qflex.video import rendering

FILE_NAME = "evaluation.json"
VIDEO_NAME = "video.mp4"
CLIP_SECONDS = 5.0
CLIP_EPISODES = 8
BASELINES = ("untrained", "idle")
Assessment = dict[str, Any]  # as written to evaluation.json


class TimedTask(Task, Protocol):
    """What a whole run asks of a task, besides what the loop does."""

    control_dt: float  # s, of a control step

    @property
    def observation_size(self) -> int: ...


class Programs(NamedTuple):
    """What an assessment runs; `Loop` has fields of the same names and serves too."""

    evaluate: Callable[[Learner, jax.Array], evaluation.EvalResult]
    evaluate_constant: Callable[[jax.Array, jax.Array], evaluation.EvalResult]
    rollout: Callable[[Learner, jax.Array], evaluation.Rollout]
    programs: dict[str, Program]  # by name


class Interval(NamedTuple):
    """A mean and the 95% confidence interval around it."""

    mean: float
    low: float
    high: float


def make_programs(env: TimedTask, algorithm: Algorithm, episodes: int) -> Programs:
    """Returns programs that evaluate `episodes` environments side by side."""
    programs = evaluation.make_programs(env, algorithm, episodes)
    return Programs(
        evaluate=programs["evaluate"],
        evaluate_constant=programs["evaluate_constant"],
        rollout=partial(evaluation.record, programs["rollout"]),
        programs=programs,
    )


def evaluation_key(seed: int) -> jax.Array:
    """Returns the key that evaluations of a seed share; training never uses it."""
    return jax.random.fold_in(jax.random.PRNGKey(seed), 1)


def idle_action(env: TimedTask) -> jax.Array:
    """Returns the action `[A]` that does nothing: the task's `idle_action`, else zeros.

    It is -1 throughout for muscle-driven bodies: no excitation. For bodies with servos it holds the
    start pose.
    """
    return jnp.asarray(getattr(env, "idle_action", np.zeros(env.action_size)), jnp.float32)


def paired_interval(differences: np.ndarray) -> Interval:
    """Returns mean and 95% interval of paired differences `[E]` by Student's t."""
    number, mean = len(differences), float(np.mean(differences))
    if number < 2:
        return Interval(mean, float("-inf"), float("inf"))
    error = float(np.std(differences, ddof=1)) / number**0.5
    margin = float(stats.t.ppf(0.975, number - 1)) * error
    return Interval(mean, mean - margin, mean + margin)


def assess(
    programs: Any,
    env: TimedTask,
    algorithm: Algorithm,
    learner: Learner,
    seed: int,
    baselines: Sequence[str] = BASELINES,
) -> Assessment:
    """Evaluates the trained learner, an untrained one and idleness on the same reset seeds.

    Training never sees these starts: their key is the evaluation's own.

    Args:
      programs: `Programs`, or a `Loop`.
      env: the task.
      algorithm: makes the untrained learner.
      learner: the trained one.
      seed: of the reset states and of the untrained learner.
      baselines: which of the two others to evaluate.
    """
    key = evaluation_key(seed)
    idle = idle_action(env)
    results = {"trained": programs.evaluate(learner, key)}
    if "untrained" in baselines:
        untrained = jax.jit(algorithm.init)(jax.random.PRNGKey(seed))
        results["untrained"] = programs.evaluate(untrained, key)
    if "idle" in baselines:
        results["idle"] = programs.evaluate_constant(idle, key)
    results = {name: jax.device_get(result) for name, result in results.items()}
    returns = {name: np.asarray(result.return_, np.float64) for name, result in results.items()}
    return {
        "seed": seed,
        "episodes": len(returns["trained"]),
        "idle_action": _common_value(idle),
        "control_dt": float(env.control_dt),
        "policies": {name: summary(result, env.episode_length) for name, result in results.items()},
        "trained_minus": {
            name: paired_interval(returns["trained"] - returns[name])._asdict()
            for name in baselines
        },
    }


def _common_value(action: jax.Array) -> float | None:
    """Returns the one value of all entries of `action` `[A]`; None where they differ."""
    return float(action[0]) if bool(jnp.all(action == action[0])) else None


def summary(result: evaluation.EvalResult, episode_length: int) -> dict[str, Any]:
    """Returns an evaluation on the host as it is saved: means, and each episode's return."""
    returns, lengths = np.asarray(result.return_, np.float64), np.asarray(result.length)
    return {
        "return_mean": float(returns.mean()),
        "return_std": float(returns.std()),
        "length_mean": float(lengths.mean()),
        "terminated": float(np.mean(result.terminated)),
        "nonfinite": int(np.sum(result.nonfinite)),
        # Some tasks call their time limit a termination, so the length tells.
        "reached_limit": int(
            np.sum((lengths >= episode_length) & np.logical_not(result.nonfinite))
        ),
        "metrics": {name: float(np.mean(value)) for name, value in result.metrics.items()},
        "returns": returns.tolist(),
        "lengths": lengths.tolist(),
    }


def film(programs: Any, env: TimedTask, learner: Learner, seed: int, path: Path) -> str:
    """Writes a clip of whole episodes, at least `CLIP_SECONDS` where they last; says how."""
    key = evaluation_key(seed)
    clips, frames = [], 0
    while frames * env.control_dt < CLIP_SECONDS and len(clips) < CLIP_EPISODES:
        rollout = programs.rollout(learner, jax.random.fold_in(key, len(clips)))
        clips.append(rollout.pipeline_state)
        frames += rollout.length
    states = jax.tree.map(lambda *leaves: np.concatenate(leaves), *clips)
    with files.beside(path) as temporary:
        video = rendering.make_video(temporary, env, states)
        if video.path is None:
            temporary.unlink()
    episodes = "1 episode" if len(clips) == 1 else f"{len(clips)} episodes, one after the other"
    return f"{episodes}; {video.note}"


def save(assessment: Assessment, folder: Path, name: str = FILE_NAME) -> None:
    """Writes evaluation.json, or the file called `name`, whole or not at all."""
    files.write(folder / name, json.dumps(assessment, indent=1) + "\n")


def load(folder: Path, name: str = FILE_NAME) -> Assessment | None:
    """Reads evaluation.json, or the file called `name`, None where the run has none.

    Raises:
      UserError: it is damaged.
    """
    path = folder / name
    if not path.exists():
        return None
    advice = "remove it, and python -m mjx_qflex.evaluate makes it anew"
    found = files.read_json(path, advice, policies=dict)
    try:
        if name == FILE_NAME:
            table(found)
            float(found["policies"]["trained"]["return_mean"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise files.damaged(path, files.reason(error), advice) from error
    return found


def table(assessment: Assessment) -> list[str]:
    """Returns the comparison as lines of a Markdown table, readable in a terminal too."""
    rows: list[tuple[str, ...]] = [
        ("policy", "return", "episode length", "trained minus it: return, 95% interval")
    ]
    for name, policy in assessment["policies"].items():
        interval = assessment["trained_minus"].get(name)
        label = policy_name(name, assessment["idle_action"])
        rows.append(row(label, policy, assessment["control_dt"], interval))
    return markdown(rows)


def reached(assessment: Assessment) -> str:
    """Returns in words how many episodes of the trained policy last to their end."""
    policy = assessment["policies"]["trained"]
    return f"{policy['reached_limit']} of {assessment['episodes']} episodes reach the time limit"


def row(
    label: str, policy: dict[str, Any], control_dt: float, interval: dict[str, float] | None
) -> tuple[str, ...]:
    """Returns the cells of a policy's `summary` with its interval: label, return, length, that."""
    seconds = policy["length_mean"] * control_dt
    return (
        label,
        f"{policy['return_mean']:.4g} ± {policy['return_std']:.3g}",
        f"{policy['length_mean']:.1f} steps ({seconds:.2f} s)",
        "" if interval is None else "{mean:+.4g} [{low:+.4g}, {high:+.4g}]".format(**interval),
    )


def markdown(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Returns the lines of a Markdown table whose first row is its head."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in rows]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return [lines[0], rule, *lines[1:]]


def policy_name(name: str, idle: float | None) -> str:
    """Returns what a reader calls a policy of the comparison; `idle` as in evaluation.json.

    Idle actions with different entries come from servos alone, whose targets are the start pose.
    """
    if name != "idle":
        return name
    if idle is None:
        return "idle: the start pose held"
    return "zero excitation" if idle == -1.0 else f"constant action {idle:g}"
