"""Seeds in training side by side, from the host's side: one program, and a run folder each.

One seed is the usual case. Several share a loop over a population, and their epochs; what each
leaves behind is what it would have left alone.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from mjx_qflex.config import Config
from mjx_qflex.interrupt import Interrupt, Interrupted
from mjx_qflex.reports import reporting
from mjx_qflex.runner import assessment, hosts, metrics
from mjx_qflex.runner.assessment import TimedTask
from mjx_qflex.runner.metrics import GIB, duration
from mjx_qflex.runner.run_folder import Member
from mjx_qflex.sizes import LoopConfig
from mjx_qflex.training.compiled import Loop
from mjx_qflex.training.loop import make_loop
from mjx_qflex.training.replay import num_rows
from mjx_qflex.training.state import RunState, key_shape, with_learner
from mjx_qflex.types import Algorithm, Learner

LONG_EPOCH_SECONDS = 12.0  # from here on it is said how long a Ctrl-C waits
LINE_SECONDS = 5.0  # between progress lines; a fast device has several epochs a second
# A checkpoint is written when it costs at most this share of the time since the last one.
CHECKPOINT_SHARE = 0.05
CHECKPOINT_SECONDS = 30.0  # and not more often than this

Say = Callable[[str], None]
Loops = Callable[[LoopConfig, int | None], Loop]  # sizes, number of seeds -> loop; cached


class Run:
    """Seeds in training on the host; as it stands, of an algorithm that learns from a replay."""

    make_loop = staticmethod(make_loop)

    @staticmethod
    def describe(config: LoopConfig, loop: Loop, num_seeds: int) -> Sequence[str]:
        """Returns in words how large a run is; `loop` is that of one seed."""
        return (
            f"{config.num_envs:,} worlds, batches of {config.batch_size:,}, "
            f"{config.updates_per_step / config.num_envs:.3g} updates a transition",
            f"the replay takes {loop.replay_bytes / GIB:.2f} GiB for "
            f"{config.replay_capacity:,} transitions, the whole state "
            f"{loop.state_bytes / GIB:.2f} GiB{' for each seed' if num_seeds > 1 else ''}",
        )

    def __init__(
        self,
        members: Sequence[Member],
        env: TimedTask,
        algorithm: Algorithm,
        loops: Loops,
        interrupt: Interrupt,
        say: Say,
        start: Learner | None = None,
    ):
        """Prepares to train `members`, whose configs differ in the seed and which stand together.

        `loops` gives the loop of `env` and `algorithm` for a config and a number of seeds, None for
        one seed alone; `start` is the learner to begin with, None is a fresh one.
        """
        self.start = start
        self.members, self.env, self.algorithm, self.loops = members, env, algorithm, loops
        self.interrupt, self.say = interrupt, say
        # What processes compute together none of them may leave.
        self.attempt = interrupt.complete if hosts.several() else interrupt.attempt
        self.num_seeds = len(members)
        self.loop = self._make_loop()
        self.state: RunState | None = None
        self.logs: list[metrics.MetricsLog] = []
        self.saved_transitions = 0  # of the newest checkpoint
        self.evaluated_transitions = 0.0  # where the newest evaluation was
        self.seconds = np.zeros(len(members))  # of training, all processes of each run together
        self.last_save, self.save_seconds, self.last_line = time.monotonic(), 0.0, -np.inf
        self.noted_small_replay = self.noted_broken_worlds = False

    def _make_loop(self) -> Loop:
        return self.loops(self.config.loop, self.num_seeds if self.num_seeds > 1 else None)

    @property
    def config(self) -> Config:
        """The config of the first seed: apart from the seed, that of all."""
        return self.members[0].config

    @property
    def run(self) -> RunState:
        assert self.state is not None, "begin() comes first"
        return self.state

    def begin(self) -> None:
        """Restores the newest checkpoints or starts afresh; compiles what that takes."""
        resumes = self.members[0].transitions() is not None
        if resumes:
            self._restore()
        else:
            self._compile("init", key_shape(self.loop.num_seeds))
            self._compile("prefill", self.loop.shapes().device)
        if not resumes or self.run.transitions < self.config.total_steps:
            self._compile("epoch", self.loop.shapes().device)
        self._open_logs()
        if not resumes:
            self._start()

    def save_configs(self) -> None:
        """Writes the config of each seed into its run folder."""
        if hosts.is_first():
            for member in self.members:
                member.save_config()

    def _open_logs(self) -> None:
        if hosts.is_first():
            self.logs = [
                metrics.MetricsLog(member.folder, self.saved_transitions) for member in self.members
            ]
            for index, member in enumerate(self.members):
                rows = metrics.read_rows(member.folder)
                self.seconds[index] = rows[-1].get("seconds", 0.0) if rows else 0.0
                evaluated = [
                    row["transitions"]
                    for row in rows
                    if not np.isnan(row.get("evaluation/return", np.nan))
                ]
                self.evaluated_transitions = max(evaluated, default=0.0)
        (self.evaluated_transitions,) = hosts.largest(self.evaluated_transitions)

    def _restore(self) -> None:
        def restore() -> RunState:
            shapes = self.loop.member_shapes()
            return self.loop.join(member.restore(shapes) for member in self.members)

        self.state = self.attempt(restore)
        self.saved_transitions = self.run.transitions
        self.say(f"resumed from {self.run.transitions:,} transitions")

    def _start(self) -> None:
        start = time.perf_counter()
        self.say(
            f"filling the replay with {self.config.loop.prefill_transitions:,} transitions "
            f"({self.config.loop.prefill_actions} actions)"
        )

        def prefill() -> RunState:
            seeds = [member.config.seed for member in self.members]
            state = self.loop.init(self.loop.key(seeds))
            if self.start is not None:
                state = with_learner(state, self.start)
            state = self.loop.prefill(state)
            jax.block_until_ready(state.device)
            return state

        self.state = self.attempt(prefill)
        seconds = time.perf_counter() - start
        self.say(f"filled in {duration(seconds)}; training begins")

    def _compile(self, name: str, *shapes: Any) -> None:
        program = self.loop.programs[name]
        if program.compile_seconds is not None:
            return  # for an earlier seed
        self.say(f"compiling {name} ...")
        seconds = self.attempt(program.compile, *shapes)
        self.say(f"compiled {name} in {duration(seconds)}")

    def train(self) -> None:
        """Runs epochs to the end, or to the request to stop."""
        self._start_clock()
        while self.run.transitions < self.config.total_steps:
            before, rows = self.run, self._epoch()
            self._note_broken_worlds(rows)
            self._after_epoch(before, rows)
            if self.run.epochs == 1:
                self._note_long_epochs(rows[0]["seconds"])
        self._close_logs()

    def _start_clock(self) -> None:
        self.first_epoch, self.started = self.run.epochs, time.monotonic()

    def _after_epoch(self, before: RunState, rows: Sequence[metrics.Row]) -> None:
        """Evaluates, writes and says how it went; stops where that was asked for."""
        evaluated = self._evaluation()
        rows = [row | more for row, more in zip(rows, evaluated, strict=True)]
        for log, row in zip(self.logs, rows, strict=hosts.is_first()):
            log.write(row)
        passed = (time.monotonic() - self.started) / (self.run.epochs - self.first_epoch)
        missing = max(0, self.config.total_steps - self.run.transitions)
        self._progress(rows, passed * missing / (self.run.transitions - before.transitions))
        (due,) = hosts.largest(self._is_save_due())
        if due:
            self.save()
        (stop,) = hosts.largest(self.interrupt.requested)
        if stop:
            self.stop()

    def _epoch(self) -> list[metrics.Row]:
        """Trains for an epoch; returns each seed's row."""
        before, state = time.perf_counter(), self.run

        def epoch() -> tuple[RunState, dict[str, np.ndarray]]:
            after, measured = self.loop.epoch(state)
            measured = jax.device_get(measured)  # waits for the device
            return after, {name: np.atleast_1d(value) for name, value in measured.items()}

        self.state, measured = self.interrupt.complete(epoch)
        seconds = time.perf_counter() - before
        self._note_small_replay(int(measured["replay_transitions"].min()))
        return self._rows(state, seconds, measured)

    def _note_small_replay(self, complete: int) -> None:
        """Says once that the ring gave up rows, where it has only `complete` transitions."""
        loop = self.config.loop
        capacity = num_rows(loop.num_envs, loop.replay_capacity) * loop.num_envs
        if complete < min(capacity, self.run.transitions) and not self.noted_small_replay:
            self.noted_small_replay = True
            self.say(
                f"so many episodes end that the replay holds the newest {complete:,} transitions "
                "only (replay_transitions in the metrics); a larger loop.replay_capacity holds more"
            )

    def _note_broken_worlds(self, rows: Sequence[metrics.Row]) -> None:
        """Says once that most worlds break, in which nothing can be learnt."""
        broken = max(row.get("nonfinite_environments", 0.0) for row in rows)
        if broken > self.config.loop.num_envs / 2 and not self.noted_broken_worlds:
            self.noted_broken_worlds = True
            self.say(
                f"the simulation went non-finite {broken:,.0f} times in this epoch of "
                f"{self.config.loop.num_envs:,} worlds: what is learnt from the rest means little; "
                "check the task's settings, and its motion if it follows one"
            )

    def _note_long_epochs(self, seconds: float) -> None:
        """Says how to be heard sooner where an epoch takes so long that Ctrl-C has to wait."""
        steps = self.config.loop.steps_per_epoch
        if seconds > LONG_EPOCH_SECONDS and steps > 1:
            fewer = max(1, int(steps * LONG_EPOCH_SECONDS / 2 / seconds))
            self.say(
                f"an epoch of {steps} steps takes {duration(seconds)} here, and Ctrl-C waits for "
                f"its end; --set loop.steps_per_epoch={fewer} is heard sooner and trains alike"
            )

    def _rows(
        self, before: RunState, seconds: float, measured: Mapping[str, np.ndarray]
    ) -> list[metrics.Row]:
        """Returns each seed's row of the epoch that began at `before` and took `seconds`.

        `measured` has an array `[S]` for each metric.
        """
        self.seconds += seconds
        transitions = self.run.transitions - before.transitions
        updates = self.run.updates - before.updates
        common = {
            "steps_per_second": transitions / seconds,
            "updates_per_second": updates / seconds,
            "updates_per_transition": updates / transitions,
            "memory_gib": metrics.used_memory() / GIB,
        }
        return [
            {
                "epoch": self.run.epochs,
                "transitions": self.run.transitions,
                "updates": self.run.updates,
                "seconds": float(self.seconds[index]),
                **common,
                **{name: float(values[index]) for name, values in measured.items()},
            }
            for index in range(self.num_seeds)
        ]

    def _evaluation(self) -> list[metrics.Row]:
        """Evaluates where a point for it has passed since the last time.

        What a request to stop leaves out, the resumed run makes up for after its first epoch.
        """
        share = self.config.evaluations / self.config.total_steps
        points = int(self.evaluated_transitions * share), int(self.run.transitions * share)
        rows = [{"evaluation/return": np.nan, "evaluation/length": np.nan} for _ in self.members]
        if points[0] == points[1] or self.interrupt.requested:
            return rows
        if self.loop.programs["evaluate"].compile_seconds is None:
            self.say("evaluating (the first time compiles it) ...")
        try:
            results = [self._evaluate(index) for index in range(self.num_seeds)]
        except Interrupted:
            return rows  # the caller sees the request, and saves
        self.evaluated_transitions = self.run.transitions
        rows = [
            {
                "evaluation/return": float(result.return_.mean()),
                "evaluation/length": float(result.length.mean()),
            }
            for result in results
        ]
        mean, of_each = metrics.mean_row(rows), " of each seed" if self.num_seeds > 1 else ""
        self.say(
            f"evaluated {len(results[0].return_)} episodes{of_each}: return "
            f"{metrics.number(mean['evaluation/return'])}, length "
            f"{metrics.number(mean['evaluation/length'])}"
        )
        return rows

    def _evaluate(self, index: int) -> Any:
        """Evaluates a seed as it would be alone; returns its `EvalResult` on the host."""
        key = assessment.evaluation_key(self.members[index].config.seed)

        def evaluate():
            return jax.device_get(self.loop.evaluate(self.loop.learner(self.run, index), key))

        return self.interrupt.attempt(evaluate)

    def _progress(self, rows: Sequence[metrics.Row], seconds_left: float) -> None:
        done = self.run.transitions >= self.config.total_steps
        now = time.monotonic()
        if done or self.interrupt.requested or now - self.last_line >= LINE_SECONDS:
            line = metrics.progress_line(
                metrics.mean_row(rows), self.config.total_steps, seconds_left
            )
            self.say(line if self.num_seeds == 1 else f"mean of {self.num_seeds} seeds: {line}")
            self.last_line = now

    def _is_save_due(self) -> bool:
        wait = max(CHECKPOINT_SECONDS, self.save_seconds / CHECKPOINT_SHARE)
        due = time.monotonic() - self.last_save >= wait
        done = self.run.transitions >= self.config.total_steps
        return due or done or self.run.epochs == 1

    def save(self) -> None:
        """Writes a checkpoint of where each seed stands, unless there is one."""
        if self.state is None or self.state.transitions == self.saved_transitions:
            return
        state = self.state

        def save(index: int):
            return self.members[index].save(self.loop.member(state, index))

        saved = [self.interrupt.complete(save, index) for index in range(self.num_seeds)]
        num_bytes = sum(one.num_bytes for one in saved)
        self.saved_transitions = state.transitions
        self.last_save, self.save_seconds = time.monotonic(), sum(one.seconds for one in saved)
        self.say(
            f"checkpoint at {self.saved_transitions:,} transitions: "
            f"{num_bytes / GIB:.2f} GiB in {self.save_seconds:.1f} s"
        )

    def stop(self) -> None:
        """Saves and leaves.

        Raises:
          Interrupted: always.
        """
        self.save()
        self._close_logs()
        raise Interrupted

    def _close_logs(self) -> None:
        """Closes what is open; who stops on the way out may ask again."""
        while self.logs:
            self.logs.pop().close()

    def finish(self, command: str, video: bool) -> None:
        """Evaluates, renders and reports; an interrupted one is made up for by the same command."""
        if not hosts.is_first():
            return
        for index, member in enumerate(self.members):
            self._finish_member(member, self.loop.learner(self.run, index), command, video)

    def _finish_member(self, member: Member, learner: Any, command: str, video: bool) -> None:
        name = f"seed {member.config.seed}: " if self.num_seeds > 1 else ""
        self.say(f"{name}evaluating the trained policy, an untrained one and an idle one ...")
        seed, folder = member.config.seed, member.folder
        result = self.interrupt.attempt(
            assessment.assess, self.loop, self.env, self.algorithm, learner, seed
        )
        for line in (*assessment.table(result), assessment.reached(result)):
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
            "seeds_at_once": self.num_seeds,
            "devices": 1 if self.loop.mesh is None else self.loop.mesh.size,
        }
        compiling = sum(self.loop.compile_seconds().values())
        reporting.write_curve(folder, f"{self.config.task}, {self.config.algo}")
        reporting.write_summary(folder, member.config, command, sizes, compiling)
        reporting.write_report(folder)
        self.say(f"done: {folder / reporting.REPORT_NAME}")
