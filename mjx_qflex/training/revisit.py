"""A run from the host's side once it has made a checkpoint: evaluated again, filmed, guided."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, cast

import jax

from mjx_qflex import algos
from mjx_qflex import config as configs
from mjx_qflex.algos import qgf
from mjx_qflex.errors import UserError
from mjx_qflex.training import (
    assessment,
    checkpoint,
    driver,
    guidance,
    inputs,
    reporting,
    run_folder,
)
from mjx_qflex.training.assessment import TimedTask
from mjx_qflex.training.driver import Say
from mjx_qflex.training.interrupt import Interrupt
from mjx_qflex.training.precision import with_matmul_precision
from mjx_qflex.types import Agent, Algorithm, Learner


class Trained(NamedTuple):
    """What a run's newest checkpoint holds, ready to act."""

    env: TimedTask
    algorithm: Agent | Algorithm
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
    env, algorithm, learner, transitions = restore(folder, interrupt, say)
    config = configs.load(folder)
    seed = config.seed if seed is None else seed
    say(f"evaluating {episodes} episodes of each policy (compiling first) ...")
    programs = assessment.make_programs(env, algorithm, episodes)
    result = interrupt.attempt(assessment.assess, programs, env, algorithm, learner, seed)
    for line in assessment.table(result):
        say(line)
    result["transitions"] = transitions
    if video:
        say("rendering the video ...")
        path = folder / assessment.VIDEO_NAME
        result["video"] = interrupt.attempt(assessment.film, programs, env, learner, seed, path)
        say(f"video: {path} ({result['video']})")
    assessment.save(result, folder)
    _finish(folder, assessment.FILE_NAME, say)


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
    parts = algos.policy_parts(config.algo, config.algo_config)
    run_folder.check_writable(folder)
    env, algorithm, learner, transitions = restore(folder, interrupt, say)
    seed = config.seed if seed is None else seed
    algorithm = cast(Algorithm, algorithm)  # what can be guided learns from a replay
    guided = with_matmul_precision(
        qgf.guide(algorithm, parts, options), config.loop.matmul_precision
    )
    say(f"evaluating {episodes} episodes of each guidance weight (compiling first) ...")
    result = interrupt.attempt(
        guidance.sweep, env, algorithm, guided, learner, options, weights, episodes, seed
    )
    for line in guidance.table(result):
        say(line)
    result["transitions"] = transitions
    assessment.save(result, folder, guidance.FILE_NAME)
    _finish(folder, guidance.FILE_NAME, say)


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
    newest = checkpoint.newest(folder / run_folder.CHECKPOINTS)
    if newest is None:
        raise UserError(f"the run in {folder} has no checkpoint yet; train it first")
    say(f"building the task {config.task}")
    env, algorithm = interrupt.attempt(driver.build, inputs.kept(config, folder))
    key = jax.eval_shape(lambda: jax.random.PRNGKey(0))
    learner = checkpoint.restore_learner(newest, jax.eval_shape(algorithm.init, key))
    transitions = checkpoint.read_about(newest).counters["transitions"]
    return Trained(env, algorithm, learner, transitions)


def _finish(folder: Path, written: str, say: Say) -> None:
    """Brings the report up to date, where the run got so far as to have one."""
    if (folder / reporting.SUMMARY_NAME).exists():
        reporting.write_report(folder)
    say(f"written: {folder / written}")
