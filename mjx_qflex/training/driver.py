"""One training run from the host's side: start or resume, epochs, checkpoints, the last report.

The host sees epoch boundaries only. Everything in between is `loop.py`.
"""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np

from mjx_qflex import algos, tasks
from mjx_qflex import config as configs
from mjx_qflex.config import Config
from mjx_qflex.training import assessment, checkpoint, metrics, reporting, run_folder
from mjx_qflex.training.assessment import TimedTask
from mjx_qflex.training.interrupt import Interrupt, Interrupted
from mjx_qflex.training.loop import Loop, RunState, make_loop
from mjx_qflex.training.metrics import GIB, duration
from mjx_qflex.types import Algorithm

MAX_EPOCH_SECONDS = 12.0  # how long a Ctrl-C may wait
AIMED_EPOCH_SECONDS = 5.0  # of epochs that are shortened
LINE_SECONDS = 5.0  # between progress lines; a fast device has several epochs a second
# A checkpoint is written when it costs at most this share of the time since the last one.
CHECKPOINT_SHARE = 0.05
CHECKPOINT_SECONDS = 30.0  # and not more often than this

Say = Callable[[str], None]


def train(
    asked: Config, folder: Path, command: str, interrupt: Interrupt, say: Say, video: bool = True
) -> None:
    """Trains, or goes on with, the run in `folder` until it is done or the user stops it.

    Args:
      asked: what the command resolved to.
      folder: the run folder; made where missing.
      command: that the user typed, for the report.
      interrupt: tells when to stop.
      say: takes each line of words.
      video: whether to film the trained policy.

    Raises:
      UserError: the folder is not writable or holds another run, or memory or disk do not suffice.
      Interrupted: the user stopped it; what was trained is saved.
    """
    run_folder.check_writable(folder)
    config = run_folder.settle(asked, folder)
    if run_folder.is_finished(config, folder):
        say(
            f"{folder} is finished ({config.total_steps:,} transitions): see "
            f"{folder / reporting.REPORT_NAME}; a larger --total_steps goes on from there"
        )
        return
    say(f"building the task {config.task}")
    env, algorithm = interrupt.attempt(build, config)
    run = _Run(config, folder, env, algorithm, interrupt, say)
    run.check_room()
    folder.mkdir(parents=True, exist_ok=True)
    configs.save(config, folder)
    run.begin()
    run.train()
    run.finish(command, video)


def build(config: Config) -> tuple[TimedTask, Algorithm]:
    """Builds the environment and the algorithm of a run."""
    env = cast(TimedTask, tasks.from_config(config.task, config.task_config))
    return env, algos.make(config.algo, config.algo_config, env.observation_size, env.action_size)


class _Run:
    """A run in progress on the host."""

    def __init__(
        self,
        config: Config,
        folder: Path,
        env: TimedTask,
        algorithm: Algorithm,
        interrupt: Interrupt,
        say: Say,
    ):
        self.config, self.folder, self.env, self.algorithm = config, folder, env, algorithm
        self.interrupt, self.say = interrupt, say
        self.loop: Loop = make_loop(env, algorithm, config.loop)
        self.state: RunState | None = None
        self.saved_transitions = 0  # of the newest checkpoint
        self.seconds = 0.0  # of training, all processes of this run together
        self.last_save, self.save_seconds, self.last_line = time.monotonic(), 0.0, -np.inf

    def check_room(self) -> None:
        """Says what the run will take, before any of it is allocated; refuses too small a disk."""
        loop, say = self.config.loop, self.say
        say(
            f"{self.env.observation_size:,} observations, {self.env.action_size:,} actuators, "
            f"{loop.num_envs:,} worlds, batches of {loop.batch_size:,}, "
            f"{loop.updates_per_step / loop.num_envs:.3g} updates a transition"
        )
        say(
            f"the replay takes {self.loop.replay_bytes / GIB:.2f} GiB for "
            f"{loop.replay_capacity:,} transitions, the whole state "
            f"{self.loop.state_bytes / GIB:.2f} GiB"
        )
        checkpoint.check_disk(self.folder / run_folder.CHECKPOINTS, self.loop.state_bytes)

    def begin(self) -> None:
        """Restores the newest checkpoint or starts afresh; compiles what that takes."""
        resumes = checkpoint.newest(self.folder / run_folder.CHECKPOINTS) is not None
        if resumes:
            self._restore()
        else:
            self._compile("init", _key())
            self._compile("prefill", self.loop.shapes().device)
        if not resumes or self.run.transitions < self.config.total_steps:
            self._compile("epoch", self.loop.shapes().device)
        self.log = metrics.MetricsLog(self.folder, self.saved_transitions)
        rows = metrics.read_rows(self.folder)
        self.seconds = rows[-1]["seconds"] if rows else 0.0
        if not resumes:
            self._start()

    def _restore(self) -> None:
        self.state = self.interrupt.attempt(
            checkpoint.restore,
            self.folder / run_folder.CHECKPOINTS,
            self.loop.shapes(),
            run_folder.fingerprint(self.config),
        )
        self.saved_transitions = self.run.transitions
        self.say(f"resumed from {self.run.transitions:,} transitions")

    def _start(self) -> None:
        start = time.perf_counter()
        self.say(
            f"filling the replay with {self.config.loop.prefill_transitions:,} transitions "
            f"({self.config.loop.prefill_actions} actions)"
        )

        def prefill() -> RunState:
            state = self.loop.init(jax.random.PRNGKey(self.config.seed))
            state = self.loop.prefill(state)
            jax.block_until_ready(state.device)
            return state

        self.state = self.interrupt.attempt(prefill)
        seconds = time.perf_counter() - start
        self.say(f"filled in {duration(seconds)}; training begins")

    def _compile(self, name: str, *shapes: Any) -> None:
        self.say(f"compiling {name} ...")
        seconds = self.interrupt.attempt(self.loop.programs[name].compile, *shapes)
        self.say(f"compiled {name} in {duration(seconds)}")

    @property
    def run(self) -> RunState:
        assert self.state is not None, "begin() comes first"
        return self.state

    def train(self) -> None:
        """Runs epochs to the end, or to the request to stop."""
        first_epoch, started = self.run.epochs, time.monotonic()
        total = self.config.total_steps
        while self.run.transitions < total:
            before = self.run.transitions
            row = self._epoch()
            row |= self._evaluation(before)
            self.log.write(row)
            passed = (time.monotonic() - started) / (self.run.epochs - first_epoch)
            per_epoch = self.run.transitions - before
            self._progress(row, passed * max(0, total - self.run.transitions) / per_epoch)
            self._save_if_due()
            if self.interrupt.requested:
                self.stop()
            if self.run.epochs == 1:
                self._shorten_epochs(row["seconds"])
        self.log.close()

    def _epoch(self) -> metrics.Row:
        """Trains for an epoch; returns its row."""
        before, state = time.perf_counter(), self.run

        def epoch() -> tuple[RunState, dict[str, float]]:
            after, measured = self.loop.epoch(state)
            measured = jax.device_get(measured)  # waits for the device
            return after, {name: float(value) for name, value in measured.items()}

        self.state, measured = self.interrupt.complete(epoch)
        seconds = time.perf_counter() - before
        self.seconds += seconds
        loop = self.config.loop
        return {
            "epoch": self.run.epochs,
            "transitions": self.run.transitions,
            "updates": self.run.updates,
            "seconds": self.seconds,
            "steps_per_second": (self.run.transitions - state.transitions) / seconds,
            "updates_per_second": (self.run.updates - state.updates) / seconds,
            "updates_per_transition": loop.updates_per_step / loop.num_envs,
            "memory_gib": metrics.used_memory() / GIB,
            **measured,
        }

    def _evaluation(self, before: int) -> metrics.Row:
        """Evaluates where the epoch that began at `before` transitions passed a point for it."""
        share = self.config.evaluations / self.config.total_steps
        row = {"evaluation/return": np.nan, "evaluation/length": np.nan}
        if int(before * share) == int(self.run.transitions * share) or self.interrupt.requested:
            return row
        if self.loop.programs["evaluate"].compile_seconds is None:
            self.say("evaluating (the first time compiles it) ...")
        key = assessment.evaluation_key(self.config.seed)
        try:
            result = self.interrupt.attempt(
                lambda: jax.device_get(self.loop.evaluate(self.run.learner, key))
            )
        except Interrupted:
            return row  # the caller sees the request, and saves
        row = {
            "evaluation/return": float(result.return_.mean()),
            "evaluation/length": float(result.length.mean()),
        }
        self.say(
            f"evaluated {len(result.return_)} episodes: return "
            f"{metrics.number(row['evaluation/return'])}, length "
            f"{metrics.number(row['evaluation/length'])}"
        )
        return row

    def _progress(self, row: metrics.Row, seconds_left: float) -> None:
        done = self.run.transitions >= self.config.total_steps
        now = time.monotonic()
        if done or self.interrupt.requested or now - self.last_line >= LINE_SECONDS:
            self.say(metrics.progress_line(row, self.config.total_steps, seconds_left))
            self.last_line = now

    def _save_if_due(self) -> None:
        wait = max(CHECKPOINT_SECONDS, self.save_seconds / CHECKPOINT_SHARE)
        due = time.monotonic() - self.last_save >= wait
        done = self.run.transitions >= self.config.total_steps
        if due or done or self.run.epochs == 1 or self.interrupt.requested:
            self.save()

    def save(self) -> None:
        """Writes a checkpoint of where the run stands, unless there is one."""
        if self.state is None or self.state.transitions == self.saved_transitions:
            return
        saved = self.interrupt.complete(
            checkpoint.save,
            self.folder / run_folder.CHECKPOINTS,
            self.state,
            run_folder.fingerprint(self.config),
        )
        self.saved_transitions = self.state.transitions
        self.last_save, self.save_seconds = time.monotonic(), saved.seconds
        self.say(
            f"checkpoint at {self.saved_transitions:,} transitions: "
            f"{saved.num_bytes / GIB:.2f} GiB in {saved.seconds:.1f} s"
        )

    def stop(self) -> None:
        """Saves and leaves.

        Raises:
          Interrupted: always.
        """
        self.save()
        self.log.close()
        raise Interrupted

    def _shorten_epochs(self, seconds: float) -> None:
        """Makes epochs shorter where the first took so long that Ctrl-C would have to wait."""
        loop = self.config.loop
        if seconds <= MAX_EPOCH_SECONDS or loop.steps_per_epoch == 1:
            return
        steps = max(1, int(loop.steps_per_epoch * AIMED_EPOCH_SECONDS / seconds))
        self.say(
            f"an epoch of {loop.steps_per_epoch} steps takes {duration(seconds)} here; going on "
            f"with loop.steps_per_epoch={steps}"
        )
        self.config = dataclasses.replace(
            self.config, loop=dataclasses.replace(loop, steps_per_epoch=steps)
        )
        configs.save(self.config, self.folder)
        # By way of the checkpoint that the first epoch left: there is room for one replay only.
        self.state = None
        self.log.close()
        self.loop = make_loop(self.env, self.algorithm, self.config.loop)
        self.begin()

    def finish(self, command: str, video: bool) -> None:
        """Evaluates, renders and reports; an interrupted one is made up for by the same command."""
        self.say("evaluating the trained policy, an untrained one and an idle one ...")
        seed, folder, learner = self.config.seed, self.folder, self.run.learner
        result = self.interrupt.attempt(
            assessment.assess, self.loop, self.env, self.algorithm, learner, seed
        )
        for line in assessment.table(result):
            self.say(line)
        if video:
            self.say("rendering the video ...")
            path = folder / assessment.VIDEO_NAME
            result["video"] = self.interrupt.attempt(
                assessment.film, self.loop, self.env, learner, seed, path
            )
            self.say(f"video: {result['video']}")
        result["transitions"] = self.run.transitions
        assessment.save(result, folder)
        sizes = {
            "observation_size": self.env.observation_size,
            "action_size": self.env.action_size,
        }
        compiling = sum(self.loop.compile_seconds().values())
        reporting.write_curve(folder, f"{self.config.task}, {self.config.algo}")
        reporting.write_summary(folder, self.config, command, sizes, compiling)
        reporting.write_report(folder)
        self.say(f"done: {folder / reporting.REPORT_NAME}")


def _key() -> jax.ShapeDtypeStruct:
    return jax.eval_shape(lambda: jax.random.PRNGKey(0))
