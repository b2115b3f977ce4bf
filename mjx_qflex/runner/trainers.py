"""What runs epochs: the scan of an algorithm with a replay, or brax for one without.

A trainer has a `loop`. It says what it will train (`describe`), starts a run (`start`) or makes
ready for one that goes on (`ready`), and trains to the end (`epochs`), calling
`on_epoch(before, after, metrics, seconds)` after each epoch.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Protocol, cast

import jax
import numpy as np

from mjx_qflex.config import Config
from mjx_qflex.interrupt import Interrupt, Say
from mjx_qflex.runner import assessment, hosts
from mjx_qflex.runner.assessment import TimedTask
from mjx_qflex.runner.metrics import GIB, duration
from mjx_qflex.sizes import LoopConfig, OnPolicyConfig
from mjx_qflex.training import on_policy
from mjx_qflex.training.compiled import Loop
from mjx_qflex.training.on_policy import OnPolicyState
from mjx_qflex.training.program import Program
from mjx_qflex.training.replay import num_bytes
from mjx_qflex.training.state import RunState, key_shape, with_learner
from mjx_qflex.types import Algorithm, Learner

Measured = Mapping[str, np.ndarray]  # [S] for each metric
OnEpoch = Callable[[RunState, RunState, Measured, float], None]


class Trainer(Protocol):
    """See the top of this file."""

    loop: Loop

    def describe(self, several: bool) -> Sequence[str]: ...

    def start(self, seeds: Sequence[int], learner: Learner | None) -> RunState: ...

    def ready(self, run: RunState) -> None: ...

    def epochs(self, run: RunState, on_epoch: OnEpoch) -> RunState: ...


class ReplayTrainer:
    """Trains seeds by a loop's phases."""

    def __init__(self, config: Config, loop: Loop, interrupt: Interrupt, say: Say):
        self.config, self.loop, self.interrupt, self.say = config, loop, interrupt, say
        self.phases = loop.phases(config.total_steps)
        # What processes compute together none of them may leave.
        self.attempt = interrupt.complete if hosts.several() else interrupt.attempt

    def describe(self, several: bool) -> Sequence[str]:
        """Returns in words how large a run is, one of several seeds or alone."""
        config = self.config.loop
        assert isinstance(config, LoopConfig)
        return (
            f"{config.num_envs:,} environments, batches of {config.batch_size:,}, "
            f"{config.updates_per_step / config.num_envs:.3g} updates a transition",
            f"the replay takes {self.loop.replay_bytes / GIB:.2f} GiB for "
            f"{config.replay_capacity:,} transitions, the whole state "
            f"{self.loop.state_bytes / GIB:.2f} GiB{' for each seed' if several else ''}",
        )

    def start(self, seeds: Sequence[int], learner: Learner | None) -> RunState:
        """Returns a run whose replay is filled; it begins with `learner`, None is a fresh one."""
        device = self.loop.shapes().device
        compile_program(self.loop, "init", self.attempt, self.say, key_shape(self.loop.num_seeds))
        for phase in self.phases:
            compile_program(self.loop, phase.program, self.attempt, self.say, device)
        began, config = time.perf_counter(), self.config.loop
        assert isinstance(config, LoopConfig)
        self.say(
            f"filling the replay with {config.prefill_transitions:,} transitions "
            f"({config.prefill_actions} actions)"
        )

        def fill() -> RunState:
            run = self.loop.init(self.loop.key(seeds))
            if learner is not None:
                run = with_learner(run, learner)
            run = self.loop.prefill(run)
            jax.block_until_ready(run.device)
            return run

        run = self.attempt(fill)
        self.say(f"filled in {duration(time.perf_counter() - began)}; training begins")
        return run

    def ready(self, run: RunState) -> None:
        """Compiles what a run that goes on from `run` takes."""
        for phase in self.phases:
            if not phase.is_done(run):
                device = self.loop.shapes().device
                compile_program(self.loop, phase.program, self.attempt, self.say, device)

    def epochs(self, run: RunState, on_epoch: OnEpoch) -> RunState:
        for phase in self.phases:
            while not phase.is_done(run):
                before, began = run, time.perf_counter()

                def epoch(phase=phase, run=run) -> tuple[RunState, Any]:
                    after, measured = self.loop.advance(phase, run)
                    return after, jax.device_get(measured)  # waits for the device

                run, measured = self.interrupt.complete(epoch)
                seconds = time.perf_counter() - began
                of_seeds = {name: np.atleast_1d(value) for name, value in measured.items()}
                on_epoch(before, run, of_seeds, seconds)
        return run


class BraxTrainer:
    """Trains one seed with brax's PPO, which is in charge between the epochs.

    Its checkpoints hold what brax hands out: networks and observation statistics. A resumed run
    goes on from them with new environments and Adam's moments at zero, so that it does not repeat
    bit for bit what the run would have been without the stop.
    """

    def __init__(self, config: Config, env: TimedTask, loop: Loop, interrupt: Interrupt, say: Say):
        self.config, self.env, self.loop = config, env, loop
        self.interrupt, self.say = interrupt, say

    def describe(self, several: bool) -> Sequence[str]:
        """Returns how large the run is, in words; it needs little room."""
        config = self.config.loop
        assert isinstance(config, OnPolicyConfig)
        return (
            f"{config.num_envs:,} environments, iterations of {config.iteration_steps:,} steps "
            f"with {config.num_updates_per_batch * config.num_minibatches:,} updates of "
            f"{config.batch_size * config.unroll_length:,} transitions",
        )

    def start(self, seeds: Sequence[int], learner: Learner | None) -> RunState:
        assert learner is None, "brax's PPO begins with networks of its own"
        compile_program(self.loop, "init", self.interrupt.attempt, self.say, key_shape())
        return self.loop.init(self.loop.key(seeds))

    def ready(self, run: RunState) -> None:
        self.say("environments and Adam's moments start afresh: brax's PPO hands out neither")

    def epochs(self, run: RunState, on_epoch: OnEpoch) -> RunState:
        config, seed = self.config.loop, self.config.seed
        assert isinstance(config, OnPolicyConfig)
        missing = self.config.total_steps - run.transitions
        if missing <= 0:
            return run
        began = time.perf_counter()

        def compile_one(name: str, program: Program, *arguments: Any) -> None:
            nonlocal began
            self.loop.programs[name] = program
            compile_program(self.loop, name, self.interrupt.attempt, self.say, *arguments)
            began = time.perf_counter()

        def after_epoch(learner: Any, measured: dict[str, float]) -> None:
            nonlocal began, run
            seconds, before = time.perf_counter() - began, run
            run = replace(
                run,
                device=cast(Any, OnPolicyState(learner)),
                epochs=run.epochs + 1,
                transitions=run.transitions + config.epoch_transitions,
                updates=run.updates + config.epoch_updates,
            )
            of_seed = {name: np.array([value]) for name, value in measured.items()}
            on_epoch(before, run, of_seed, seconds)
            began = time.perf_counter()

        # Going on must not repeat the random numbers of the beginning.
        key = jax.random.fold_in(jax.random.PRNGKey(seed), run.transitions)
        self.interrupt.complete(
            partial(
                on_policy.train,
                env=self.env,
                options=cast(Any, self.config.algo_config),
                config=config,
                learner=run.learner,
                epochs=math.ceil(missing / config.epoch_transitions),
                seed=int(jax.random.randint(key, (), 0, 2**31 - 1)),
                compile_program=compile_one,
                on_epoch=after_epoch,
            )
        )
        return run


def brax_loop(env: TimedTask, algorithm: Algorithm, config: OnPolicyConfig) -> Loop:
    """Returns a loop that starts and evaluates; its epochs are brax's own (`BraxTrainer`)."""

    def start(key: jax.Array) -> OnPolicyState:
        return OnPolicyState(algorithm.init(key))

    program = Program(start)
    tests = assessment.make_programs(env, algorithm, config.eval_envs)
    return Loop(
        config=cast(Any, config),
        programs={"init": program, **tests.programs},
        replay_bytes=0,
        state_bytes=num_bytes(program.shapes(key_shape())),
    )


def compile_program(loop: Loop, name: str, attempt: Callable, say: Say, *shapes: Any) -> None:
    """Compiles a program of the loop, and says so; nothing where an earlier seed did."""
    program = loop.programs[name]
    if program.compile_seconds is None:
        say(f"compiling {name} ...")
        seconds = attempt(program.compile, *shapes)
        say(f"compiled {name} in {duration(seconds)}")
