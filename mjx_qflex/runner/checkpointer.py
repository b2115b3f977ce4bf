"""When a run is saved, and that of every seed."""

import time
from collections.abc import Sequence

from mjx_qflex.interrupt import Interrupt, Say
from mjx_qflex.runner import hosts
from mjx_qflex.runner.metrics import GIB
from mjx_qflex.runner.run_folder import Member
from mjx_qflex.training.compiled import Loop
from mjx_qflex.training.state import RunState

# A checkpoint is written when it costs at most this share of the time since the last one.
CHECKPOINT_SHARE = 0.05
CHECKPOINT_SECONDS = 30.0  # and not more often than this


class Checkpointer:
    """Writes and reads the checkpoints of seeds that train together."""

    def __init__(self, members: Sequence[Member], loop: Loop, interrupt: Interrupt, say: Say):
        self.members, self.loop, self.interrupt, self.say = members, loop, interrupt, say
        self._saved: tuple[int, int] | None = None  # transitions and updates of the newest
        self._last_save, self._save_seconds = time.monotonic(), 0.0

    def exists(self) -> bool:
        return self.members[0].transitions() is not None

    def restore(self) -> RunState:
        """Returns what the newest checkpoints hold."""
        shapes = self.loop.member_shapes()
        run = self.loop.join(member.restore(shapes) for member in self.members)
        self._saved = run.transitions, run.updates
        return run

    def save_if_due(self, run: RunState, last: bool) -> None:
        """Saves where enough time has passed, after the first epoch, and at the end."""
        wait = max(CHECKPOINT_SECONDS, self._save_seconds / CHECKPOINT_SHARE)
        due = time.monotonic() - self._last_save >= wait
        (due,) = hosts.largest(due or last or run.epochs == 1)
        if due:
            self.save(run)

    def save(self, run: RunState) -> None:
        """Writes a checkpoint of where each seed stands, unless there is one."""
        stands = run.transitions, run.updates
        if stands == self._saved:
            return

        def save(index: int):
            return self.members[index].save(self.loop.member(run, index))

        saved = [self.interrupt.complete(save, index) for index in range(len(self.members))]
        num_bytes = sum(one.num_bytes for one in saved)
        self._saved = stands
        self._last_save, self._save_seconds = time.monotonic(), sum(one.seconds for one in saved)
        self.say(
            f"checkpoint at {run.transitions:,} transitions: "
            f"{num_bytes / GIB:.2f} GiB in {self._save_seconds:.1f} s"
        )
