"""When a run is evaluated on the way, and how its seeds fare."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from mjx_qflex.config import Config
from mjx_qflex.interrupt import Interrupt, Interrupted, Say
from mjx_qflex.runner import assessment, hosts, metrics
from mjx_qflex.runner.run_folder import Member
from mjx_qflex.sizes import LoopConfig
from mjx_qflex.training.compiled import Loop
from mjx_qflex.training.state import RunState


class Evaluator:
    """Evaluates seeds that train together, each as it would be alone.

    The `evaluations` of a run are spread over its transitions; over its updates, where it learns
    some of them offline.
    """

    def __init__(self, members: Sequence[Member], loop: Loop, interrupt: Interrupt, say: Say):
        self.members, self.loop, self.interrupt, self.say = members, loop, interrupt, say
        self._done = 0.0  # share of the run at which the newest evaluation was

    @property
    def config(self) -> Config:
        return self.members[0].config

    def resume(self) -> None:
        """Finds in the logs where the newest evaluation was."""
        if hosts.is_first():
            shares = [
                self._share(row["transitions"], row.get("updates", 0.0))
                for member in self.members
                for row in metrics.read_rows(member.folder)
                if not np.isnan(row.get("evaluation/return", np.nan))
            ]
            self._done = max(shares, default=0.0)
        (self._done,) = hosts.largest(self._done)

    def _share(self, transitions: float, updates: float) -> float:
        """Returns how much of the run is done."""
        total, loop = self.config.total_steps, self.config.loop
        if not (isinstance(loop, LoopConfig) and loop.offline_updates):
            return transitions / total
        phases = {phase.name: phase for phase in self.loop.phases(total)}
        online = phases["online"]
        steps = (online.transitions - phases["offline"].transitions) / online.transitions_each
        return updates / (phases["offline"].updates + steps * online.updates_each)

    def if_due(self, run: RunState) -> list[metrics.Row]:
        """Evaluates where a point for it has passed; returns columns for each seed's row.

        What a request to stop leaves out, the resumed run makes up for after its first epoch.
        """
        share, number = self._share(run.transitions, run.updates), self.config.evaluations
        rows = [{"evaluation/return": np.nan, "evaluation/length": np.nan} for _ in self.members]
        passed = int(self._done * number) < int(share * number)
        if not passed or self.interrupt.requested:
            return rows
        if self.loop.programs["evaluate"].compile_seconds is None:
            self.say("evaluating (the first time compiles it) ...")
        try:
            results = [self._evaluate(run, index) for index in range(len(self.members))]
        except Interrupted:
            return rows  # the caller sees the request, and saves
        self._done = share
        rows = [
            {
                "evaluation/return": float(result.return_.mean()),
                "evaluation/length": float(result.length.mean()),
            }
            for result in results
        ]
        mean, of_each = metrics.mean_row(rows), " of each seed" if len(rows) > 1 else ""
        self.say(
            f"evaluated {len(results[0].return_)} episodes{of_each}: return "
            f"{metrics.number(mean['evaluation/return'])}, length "
            f"{metrics.number(mean['evaluation/length'])}"
        )
        return rows

    def _evaluate(self, run: RunState, index: int) -> Any:
        """Evaluates a seed; returns its `EvalResult` on the host."""
        key = assessment.evaluation_key(self.members[index].config.seed)

        def evaluate():
            return jax.device_get(self.loop.evaluate(self.loop.learner(run, index), key))

        return self.interrupt.attempt(evaluate)
