"""What a run leaves of its epochs: rows of metrics, and lines of words."""

import time
from collections.abc import Mapping, Sequence

import numpy as np

from mjx_qflex.config import Config
from mjx_qflex.interrupt import Say
from mjx_qflex.runner import hosts, metrics
from mjx_qflex.runner.metrics import GIB, duration
from mjx_qflex.runner.run_folder import Member
from mjx_qflex.sizes import LoopConfig
from mjx_qflex.training.replay import num_rows
from mjx_qflex.training.state import RunState

LONG_EPOCH_SECONDS = 12.0  # from here on it is said how long a Ctrl-C waits
LINE_SECONDS = 5.0  # between progress lines; a fast device has several epochs a second


class RunLog:
    """The logs of seeds that train together, each in its run folder."""

    def __init__(self, members: Sequence[Member], say: Say):
        self.members, self.say = members, say
        self.seconds = np.zeros(len(members))  # of training, all processes of each run together
        self._logs: list[metrics.MetricsLog] = []
        self._last_line = -np.inf
        self._noted: set[str] = set()

    @property
    def config(self) -> Config:
        """The config of the first seed: apart from the seed, that of all."""
        return self.members[0].config

    def open(self, run: RunState) -> None:
        """Opens the logs of a run that stands at `run`; rows past it are dropped.

        All rows are past a prefill: it is written before the first epoch.
        """
        if not hosts.is_first():
            return
        self._logs = [
            metrics.MetricsLog(member.folder, run.transitions if run.epochs else 0, run.updates)
            for member in self.members
        ]
        for index, member in enumerate(self.members):
            rows = metrics.read_rows(member.folder)
            self.seconds[index] = rows[-1].get("seconds", 0.0) if rows else 0.0

    def close(self) -> None:
        """Closes what is open; who stops on the way out may ask again."""
        while self._logs:
            self._logs.pop().close()

    def rows(
        self, before: RunState, run: RunState, measured: Mapping[str, np.ndarray], seconds: float
    ) -> list[metrics.Row]:
        """Returns each seed's row of the epoch that led from `before` to `run`.

        `measured` has an array `[S]` for each metric.
        """
        self.seconds += seconds
        transitions = run.transitions - before.transitions
        updates = run.updates - before.updates
        common = {
            "steps_per_second": transitions / seconds,
            "updates_per_second": updates / seconds,
            "updates_per_transition": updates / transitions if transitions else np.nan,
            "memory_gib": metrics.used_memory() / GIB,
        }
        return [
            {
                "epoch": run.epochs,
                "transitions": run.transitions,
                "updates": run.updates,
                "seconds": float(self.seconds[index]),
                **common,
                **{name: float(values[index]) for name, values in measured.items()},
            }
            for index in range(len(self.members))
        ]

    def write(self, rows: Sequence[metrics.Row]) -> None:
        for log, row in zip(self._logs, rows, strict=hosts.is_first()):
            log.write(row)

    def progress(self, rows: Sequence[metrics.Row], seconds_left: float, last: bool) -> None:
        """Says how far it is, not more often than every few seconds."""
        now = time.monotonic()
        if last or now - self._last_line >= LINE_SECONDS:
            line = metrics.progress_line(
                metrics.mean_row(rows), self.config.total_steps, seconds_left
            )
            seeds = len(self.members)
            self.say(line if seeds == 1 else f"mean of {seeds} seeds: {line}")
            self._last_line = now

    def note(self, run: RunState, rows: Sequence[metrics.Row]) -> None:
        """Says once what a user would want to know of an epoch."""
        loop = self.config.loop
        if isinstance(loop, LoopConfig):
            self._note_small_replay(loop, run, rows)
        self._note_broken_environments(rows)
        if run.epochs == 1 and isinstance(loop, LoopConfig):
            self._note_long_epochs(loop, rows[0]["seconds"])

    def _once(self, what: str) -> bool:
        first = what not in self._noted
        self._noted.add(what)
        return first

    def _note_small_replay(
        self, loop: LoopConfig, run: RunState, rows: Sequence[metrics.Row]
    ) -> None:
        """Says that the ring gave up rows, where it has fewer complete than were written."""
        complete = min(row["replay_transitions"] for row in rows)
        capacity = num_rows(loop.num_envs, loop.replay_capacity) * loop.num_envs
        if complete < min(capacity, run.transitions) and self._once("replay"):
            self.say(
                f"so many episodes end that the replay holds the newest {complete:,.0f} "
                "transitions only (replay_transitions in the metrics); a larger "
                "loop.replay_capacity holds more"
            )

    def _note_broken_environments(self, rows: Sequence[metrics.Row]) -> None:
        """Says that most environments break, in which nothing can be learnt."""
        number = self.config.loop.num_envs
        broken = max(row.get("nonfinite_environments", 0.0) for row in rows)
        if broken > number / 2 and self._once("broken"):
            self.say(
                f"the simulation went non-finite {broken:,.0f} times in this epoch of "
                f"{number:,} environments: what is learnt from the rest means little; "
                "check the task's settings, and its motion if it follows one"
            )

    def _note_long_epochs(self, loop: LoopConfig, seconds: float) -> None:
        """Says how to be heard sooner where an epoch takes so long that Ctrl-C has to wait."""
        steps = loop.steps_per_epoch
        if seconds > LONG_EPOCH_SECONDS and steps > 1:
            fewer = max(1, int(steps * LONG_EPOCH_SECONDS / 2 / seconds))
            self.say(
                f"an epoch of {steps} steps takes {duration(seconds)} here, and Ctrl-C waits for "
                f"its end; --set loop.steps_per_epoch={fewer} is heard sooner and trains alike"
            )
