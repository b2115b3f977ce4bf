"""On-policy training from the host's side: `run.Run`, with brax in charge between the epochs."""

import math
import time
from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import jax
import numpy as np

from mjx_qflex.runner import assessment
from mjx_qflex.runner.assessment import TimedTask
from mjx_qflex.runner.run import Run
from mjx_qflex.sizes import OnPolicyConfig
from mjx_qflex.training import on_policy
from mjx_qflex.training.compiled import Loop
from mjx_qflex.training.on_policy import OnPolicyState
from mjx_qflex.training.program import Program
from mjx_qflex.training.replay import num_bytes
from mjx_qflex.training.state import RunState, key_shape
from mjx_qflex.types import Algorithm


class OnPolicyRun(Run):
    """One seed in training with brax's PPO, on the host.

    Its checkpoints hold what brax hands out: networks and observation statistics. A resumed run
    goes on from them with new worlds and Adam's moments at zero, so that it does not repeat bit for
    bit what the run would have been without the stop.
    """

    @staticmethod
    def make_loop(env: TimedTask, agent: Any, config: Any, num_seeds: int | None = None) -> Loop:
        """Returns a loop that starts and evaluates; its epochs are brax's own (`train`)."""
        assert num_seeds is None, "brax trains one seed at a time"
        start = Program(partial(_start, agent))
        tests = assessment.make_programs(env, agent, config.eval_envs)

        return Loop(
            config=config,
            programs={"init": start, **tests.programs},
            replay_bytes=0,
            state_bytes=num_bytes(start.shapes(key_shape())),
        )

    @staticmethod
    def describe(config: OnPolicyConfig, loop: Loop, num_seeds: int) -> Sequence[str]:
        """Returns how large the run is, in words; it needs little room."""
        return (
            f"{config.num_envs:,} worlds, iterations of {config.iteration_steps:,} steps with "
            f"{config.num_updates_per_batch * config.num_minibatches:,} updates of "
            f"{config.batch_size * config.unroll_length:,} transitions",
        )

    def begin(self) -> None:
        """Restores the newest checkpoint or starts afresh."""
        if self.members[0].transitions() is None:
            self._compile("init", key_shape())
            self.state = self.loop.init(self.loop.key([self.config.seed]))
        else:
            self._restore()
            self.say("worlds and Adam's moments start afresh: brax's PPO hands out neither")
        self._open_logs()

    def train(self) -> None:
        """Runs epochs to the end, or to the request to stop."""
        loop, seed = self.config.loop, self.config.seed
        missing = self.config.total_steps - self.run.transitions
        # Going on must not repeat the random numbers of the beginning.
        key = jax.random.fold_in(jax.random.PRNGKey(seed), self.run.transitions)
        train = partial(
            on_policy.train,
            env=self.env,
            options=self.config.algo_config,
            config=loop,
            learner=self.run.learner,
            epochs=math.ceil(missing / loop.epoch_transitions),
            seed=int(jax.random.randint(key, (), 0, 2**31 - 1)),
            compile_program=self._compile_program,
            on_epoch=self._on_epoch,
        )
        self._start_clock()
        try:
            if missing > 0:
                self.interrupt.complete(train)
        finally:
            self._close_logs()

    def _compile_program(self, name: str, program: Program, *arguments: Any) -> None:
        self.loop.programs[name] = program
        self._compile(name, *arguments)
        self._start_clock()

    def _start_clock(self) -> None:
        super()._start_clock()
        self.epoch_began = time.perf_counter()

    def _on_epoch(self, learner: Any, measured: dict[str, float]) -> None:
        seconds = time.perf_counter() - self.epoch_began
        before, loop = self.run, self.config.loop
        self.state = RunState(
            cast(Any, OnPolicyState(learner)),
            before.epochs + 1,
            before.transitions + loop.epoch_transitions,
            before.updates + loop.epoch_updates,
        )
        of_seed = {name: np.array([value]) for name, value in measured.items()}
        self._after_epoch(before, self._rows(before, seconds, of_seed))
        self.epoch_began = time.perf_counter()


def _start(agent: Algorithm, key: jax.Array) -> OnPolicyState:
    return OnPolicyState(agent.init(key))
