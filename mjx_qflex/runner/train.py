"""Seeds in training side by side, from the host's side: one program, and a run folder each.

One seed is the usual case. Several share a loop over a population, and their epochs; what each
leaves behind is what it would have left alone. The host sees epoch boundaries only; what is between
them is `training.loop`.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from mjx_qflex.errors import UserError
from mjx_qflex.interrupt import Interrupt, Interrupted, Say
from mjx_qflex.runner import assessment, hosts
from mjx_qflex.runner.assessment import TimedTask
from mjx_qflex.runner.checkpointer import Checkpointer
from mjx_qflex.runner.evaluator import Evaluator
from mjx_qflex.runner.run_folder import Member
from mjx_qflex.runner.run_log import RunLog
from mjx_qflex.runner.trainers import Trainer
from mjx_qflex.training.state import RunState
from mjx_qflex.types import Algorithm, Learner


class Finished(NamedTuple):
    """A run that is trained and evaluated, for what is written about it.

    Attributes:
      member: config and folder.
      sizes: of the task's observation and action; `seeds_at_once` and `devices` of the program.
      compile_seconds: of this process.
    """

    member: Member
    sizes: dict[str, int]
    compile_seconds: float


def train(
    members: Sequence[Member],
    trainer: Trainer,
    log: RunLog,
    checkpointer: Checkpointer,
    evaluator: Evaluator,
    interrupt: Interrupt,
    say: Say,
    learner: Learner | None = None,
) -> RunState:
    """Trains seeds to the end; goes on from their checkpoints, where there are some.

    Args:
      members: one or more, whose configs differ in the seed, and which stand together.
      trainer: runs epochs.
      log: takes what they were like.
      checkpointer: saves and restores.
      evaluator: evaluates on the way.
      interrupt: tells when to stop.
      say: takes each line of words.
      learner: to begin with; None is a fresh one.

    Raises:
      Interrupted: the user stopped it; what was trained is saved.
    """
    for member in members if hosts.is_first() else ():
        member.save_config()
    if checkpointer.exists():
        attempt = interrupt.complete if hosts.several() else interrupt.attempt
        run = attempt(checkpointer.restore)
        say(f"resumed from {run.transitions:,} transitions")
        trainer.ready(run)
    else:
        run = trainer.start([member.config.seed for member in members], learner)
    log.open(run)
    evaluator.resume()
    total, first_epoch, started = members[0].config.total_steps, run.epochs, time.monotonic()

    def after_epoch(before: RunState, run: RunState, measured: Any, seconds: float) -> None:
        rows = log.rows(before, run, measured, seconds)
        log.note(run, rows)
        rows = [row | more for row, more in zip(rows, evaluator.if_due(run), strict=True)]
        log.write(rows)
        passed = (time.monotonic() - started) / (run.epochs - first_epoch)
        each = run.transitions - before.transitions
        missing = max(0, total - run.transitions)
        left, last = passed * missing / each if each else 0.0, missing == 0
        log.progress(rows, left, last or interrupt.requested)
        checkpointer.save_if_due(run, last)
        if hosts.largest(interrupt.requested)[0]:
            checkpointer.save(run)
            raise Interrupted

    try:
        run = trainer.epochs(run, after_epoch)
    except Interrupted:
        log.close()
        raise
    log.close()  # not after other errors: on a full disk closing fails once more
    return run


def finish(
    members: Sequence[Member],
    run: RunState,
    trainer: Trainer,
    env: TimedTask,
    algorithm: Algorithm,
    interrupt: Interrupt,
    say: Say,
    video: bool,
    on_finished: Callable[[Finished], None],
) -> None:
    """Evaluates and films what was trained; an interrupted one is made up for by the same command.

    `on_finished` takes each seed's run; it writes what is to be read about it.
    """
    if not hosts.is_first():
        return
    loop = trainer.loop
    for index, member in enumerate(members):
        name = f"seed {member.config.seed}: " if len(members) > 1 else ""
        say(f"{name}evaluating the trained policy, an untrained one and an idle one ...")
        learner, seed = loop.learner(run, index), member.config.seed
        result = interrupt.attempt(assessment.assess, loop, env, algorithm, learner, seed)
        for line in (*assessment.table(result), assessment.reached(result)):
            say(line)
        if video:
            say("rendering the video ...")
            path = member.folder / assessment.VIDEO_NAME
            try:
                result["video"] = interrupt.attempt(assessment.film, loop, env, learner, seed, path)
            except UserError as error:  # the run is trained all the same
                result["video"] = f"none: {error}"
            say(f"video: {result['video']}")
        result["transitions"] = run.transitions
        assessment.save(result, member.folder)
        sizes = {
            "observation_size": env.observation_size,
            "action_size": env.action_size,
            "seeds_at_once": len(members),
            "devices": 1 if loop.mesh is None else loop.mesh.size,
        }
        on_finished(Finished(member, sizes, sum(loop.compile_seconds().values())))
