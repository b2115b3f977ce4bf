"""A run from the host's side once it has made a checkpoint: evaluated again, filmed, guided."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from mjx_qflex import __version__, algos
from mjx_qflex import config as configs
from mjx_qflex.algos import qgf
from mjx_qflex.interrupt import Interrupt, Say
from mjx_qflex.runner import (
    assessment,
    checkpoint,
    driver,
    guidance,
    inputs,
    metrics,
    policies,
    run_folder,
)
from mjx_qflex.runner.assessment import TimedTask
from mjx_qflex.training.precision import with_matmul_precision
from mjx_qflex.types import Algorithm, Learner


class Trained(NamedTuple):
    """What a run's newest checkpoint holds, ready to act."""

    env: TimedTask
    algorithm: Algorithm
    learner: Learner
    transitions: int  # that the learner has seen


def evaluate(
    folder: Path, episodes: int, seed: int | None, video: bool, interrupt: Interrupt, say: Say
) -> None:
    """Evaluates the newest checkpoint of the run in `folder`, and writes what it finds there.

    Args:
      folder: of a run that has made a checkpoint.
      episodes: of each policy.
      seed: of the reset states; None is the run's own.
      video: whether to film the trained policy.
      interrupt: tells when to stop.
      say: takes each line of words.

    Raises:
      UserError: no run, no checkpoint, or a folder that is not writable.
    """
    run_folder.check_writable(folder)
    trained = restore(folder, interrupt, say)
    seed = configs.load(folder).seed if seed is None else seed
    _assess(trained, folder, episodes, seed, assessment.BASELINES, video, interrupt, say)
    say(f"written: {folder / assessment.FILE_NAME}")


def evaluate_policy(
    name: str,
    output: Path,
    episodes: int,
    seed: int | None,
    video: bool,
    interrupt: Interrupt,
    say: Say,
) -> None:
    """Evaluates a policy that ships, or one in a folder, without any run.

    Args:
      name: of a shipped policy, or a folder.
      output: folder of what it finds: evaluation.json and the video; made where missing.
      episodes: to play.
      seed: of the reset states; None is that of the policy's run.
      video: whether to film.
      interrupt: tells when to stop.
      say: takes each line of words.

    Raises:
      UserError: no such policy, a damaged one, or a folder that is not writable.
    """
    policy = policies.read(policies.find(name))
    run_folder.check_writable(output)
    for key in ("command", "commit", "transitions"):
        say(f"{key}: {policy.card.get(key, 'not known')}")
    env, algorithm = interrupt.attempt(driver.build, policy.config)
    learner = policies.learner_of(policy, algorithm)
    trained = Trained(env, algorithm, learner, policy.card.get("transitions", 0))
    seed = policy.config.seed if seed is None else seed
    output.mkdir(parents=True, exist_ok=True)
    _assess(trained, output, episodes, seed, (), video, interrupt, say)
    say(f"written: {output / assessment.FILE_NAME}")


def export_policy(
    folder: Path, output: Path, card: dict[str, str], interrupt: Interrupt, say: Say
) -> None:
    """Writes the newest checkpoint of the run in `folder` as a policy of its own.

    Args:
      folder: of a run that has made a checkpoint.
      output: the policy's folder; made where missing.
      card: what the policy's card says besides its command, budget and machine.
      interrupt: tells when to stop.
      say: takes each line of words.

    Raises:
      UserError: no run, no checkpoint, or a folder that is not writable.
    """
    config = configs.load(folder)
    env, algorithm, learner, transitions = restore(folder, interrupt, say)
    run_folder.check_writable(output)
    say("playing an episode, out of which observations are recorded ...")
    programs = assessment.make_programs(env, algorithm, policies.EXAMPLES)
    key = assessment.evaluation_key(config.seed)
    observations = interrupt.attempt(_observations, env, programs, learner, key)
    last = metrics.read_rows(folder)[-1]
    trained = {
        "task": config.task,
        "algo": config.algo,
        "transitions": transitions,
        "updates": checkpoint.read_about(run_folder.newest_checkpoint(folder)).counters["updates"],
        "training_seconds": last["seconds"],
        "version": __version__,
    }
    policies.write(output, config, algorithm, learner, observations, trained | card)
    say(f"written: {output}")


def _observations(env: TimedTask, programs: assessment.Programs, learner: Learner, key: jax.Array):
    """Returns `[16, O]` of an episode, equally far apart from its first to its last state."""
    rollout = programs.rollout(learner, key)
    chosen = np.linspace(0, rollout.length, policies.EXAMPLES).astype(int)
    return rollout.obs[chosen]


def _assess(
    trained: Trained,
    folder: Path,
    episodes: int,
    seed: int,
    baselines: Sequence[str],
    video: bool,
    interrupt: Interrupt,
    say: Say,
) -> None:
    """Evaluates and films a trained policy, says how it went and writes it into `folder`."""
    env, algorithm, learner, transitions = trained
    say(f"evaluating {episodes} episodes of each policy (compiling first) ...")
    programs = assessment.make_programs(env, algorithm, episodes)
    result = interrupt.attempt(
        assessment.assess, programs, env, algorithm, learner, seed, baselines
    )
    for line in (*assessment.table(result), assessment.reached(result)):
        say(line)
    result["transitions"] = transitions
    if video:
        say("rendering the video ...")
        path = folder / assessment.VIDEO_NAME
        result["video"] = interrupt.attempt(assessment.film, programs, env, learner, seed, path)
        say(f"video: {path} ({result['video']})")
    assessment.save(result, folder)


def sweep_guidance(
    folder: Path,
    weights: Sequence[float],
    options: qgf.QgfConfig,
    episodes: int,
    seed: int | None,
    interrupt: Interrupt,
    say: Say,
) -> None:
    """Evaluates the newest checkpoint with each guidance weight, and writes guidance.json there.

    Args:
      folder: of a run that has made a checkpoint.
      weights: of the guidance; 0 is added.
      options: how actions are guided; its weight is not used.
      episodes: of each weight.
      seed: of the reset states; None is the run's own.
      interrupt: tells when to stop.
      say: takes each line of words.

    Raises:
      UserError: no run, no checkpoint, a folder that is not writable, or an algorithm that cannot
        be guided.
    """
    config = configs.load(folder)
    algos.refuse_unguidable(config.algo)
    run_folder.check_writable(folder)
    env, algorithm, learner, transitions = restore(folder, interrupt, say)
    seed = config.seed if seed is None else seed
    guided = with_matmul_precision(qgf.guide(algorithm, options), config.loop.matmul_precision)
    say(f"evaluating {episodes} episodes of each guidance weight (compiling first) ...")
    result = interrupt.attempt(
        guidance.sweep, env, algorithm, guided, learner, options, weights, episodes, seed
    )
    for line in guidance.table(result):
        say(line)
    result["transitions"] = transitions
    assessment.save(result, folder, guidance.FILE_NAME)
    say(f"written: {folder / guidance.FILE_NAME}")


def restore(folder: Path, interrupt: Interrupt, say: Say) -> Trained:
    """Reads the newest checkpoint's learner, and builds what it acts in.

    Args:
      folder: of a run that has made a checkpoint.
      interrupt: tells when to stop.
      say: takes each line of words.

    Raises:
      UserError: no run, or no checkpoint.
    """
    config = configs.load(folder)
    newest = run_folder.newest_checkpoint(folder)
    say(f"building the task {config.task}")
    env, algorithm = interrupt.attempt(driver.build, inputs.kept(config, folder))
    key = jax.eval_shape(lambda: jax.random.PRNGKey(0))
    learner = checkpoint.restore_learner(newest, jax.eval_shape(algorithm.init, key))
    transitions = checkpoint.read_about(newest).counters["transitions"]
    return Trained(env, algorithm, learner, transitions)
