"""The functions of one training run, as the host calls them; `loop.make_loop` builds them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from mjx_qflex.sizes import LoopConfig
from mjx_qflex.training import evaluation, sharding
from mjx_qflex.training.program import Program
from mjx_qflex.training.replay import check_fits, num_rows
from mjx_qflex.training.state import ENV_AXES, RunState, join, key_shape, take
from mjx_qflex.types import Learner, Metrics


@dataclass(frozen=True)
class Phase:
    """A stretch of a run.

    Attributes:
      name: what it does: collects, learns, or both.
      transitions, updates: where the run stands at its end, at least.
      transitions_each, updates_each: what one call of its program adds.
    """

    name: Literal["prefill", "offline", "online"]
    transitions: int
    updates: int
    transitions_each: int
    updates_each: int

    @property
    def program(self) -> str:
        return "epoch" if self.name == "online" else self.name

    def is_done(self, run: RunState) -> bool:
        return run.transitions >= self.transitions and run.updates >= self.updates


class Loop(NamedTuple):
    """The functions of one training run; each is traced and compiled once, when first called.

    A loop over a population trains `num_seeds` runs side by side, S below, none of which sees the
    others: the same functions under `jax.vmap`. What it evaluates is one seed's learner.

    A loop over a mesh trains one run on several devices, each with its share of the environments
    and of every batch (`sharding`); evaluation, which is short, has the first device alone.
    """

    config: LoopConfig
    programs: dict[str, Program]
    replay_bytes: int  # of the rings
    state_bytes: int  # of the whole device state, rings included
    num_seeds: int | None = None  # None: one run, without a leading axis for it
    mesh: Mesh | None = None  # of the devices that share the run; None: one device

    def phases(self, total_transitions: int) -> tuple[Phase, ...]:
        """Returns what a run of so many transitions goes through, in order."""
        config = self.config
        filled = num_rows(config.num_envs, config.prefill_transitions) * config.num_envs
        updates_each = config.steps_per_epoch * config.updates_per_step
        transitions_each = config.steps_per_epoch * config.num_envs
        phases = (
            Phase("prefill", filled, 0, filled, 0),
            Phase("offline", filled, config.offline_updates, 0, updates_each),
            Phase("online", total_transitions, 0, transitions_each, updates_each),
        )
        return tuple(phase for phase in phases if phase.transitions_each or phase.updates)

    def advance(self, phase: Phase, run: RunState) -> tuple[RunState, Metrics]:
        """Calls a phase's program once. Metrics are device scalars, or `[S]`, under fixed keys.

        A call that learns is an epoch. What is in `run` is donated: keep only what this returns.
        """
        program = self.programs[phase.program]
        if phase.name == "offline":  # has the rows of the epochs that come, where it knows nothing
            _, names = self.programs["epoch"].shapes(self.shapes().device)
            unknown = {name: jnp.full(x.shape, jnp.nan) for name, x in names.items()}
            device, metrics = program(run.device)
            metrics = unknown | metrics
        else:
            device, metrics = program(run.device)
        return RunState(
            device=device,
            epochs=run.epochs + (phase.updates_each > 0 or phase.name == "online"),
            transitions=run.transitions + phase.transitions_each,
            updates=run.updates + phase.updates_each,
        ), metrics

    def check_fits(self, free: int | None) -> None:
        """Refuses a run that the `free` bytes of the device cannot hold; None: not known.

        Raises:
          UserError: the replay or the state does not fit.
        """
        check_fits(sharding.bytes_of_each(self.mesh, self.replay_bytes), free)
        whole = sharding.bytes_of_each(self.mesh, self.state_bytes)
        check_fits(whole, free, "the run's state", "loop.num_envs, algo.width or algo.depth")

    def init(self, key: jax.Array) -> RunState:
        """Returns a run that has done nothing yet; the key is what `key(seeds)` returns."""
        return RunState(self.programs["init"](key))

    def prefill(self, run: RunState) -> RunState:
        """Returns the run with the transitions that come before the first update."""
        for phase in self.phases(0):
            if phase.name == "prefill" and not phase.is_done(run):
                run, _ = self.advance(phase, run)
        return run

    def epoch(self, run: RunState) -> tuple[RunState, Metrics]:
        """Trains for an epoch online."""
        (online,) = (phase for phase in self.phases(0) if phase.name == "online")
        return self.advance(online, run)

    def evaluate(self, learner: Learner, key: jax.Array) -> evaluation.EvalResult:
        """Plays episodes in the policy's mode, on one device."""
        return self.programs["evaluate"](learner, key)

    def evaluate_constant(self, action: jax.Array, key: jax.Array) -> evaluation.EvalResult:
        """Plays the same environments under one fixed action [A]."""
        return self.programs["evaluate_constant"](action, key)

    def rollout(self, learner: Learner, key: jax.Array) -> evaluation.Rollout:
        """Records one episode."""
        return evaluation.record(self.programs["rollout"], learner, key)

    def key(self, seeds: Sequence[int]) -> jax.Array:
        """Returns the key `[2]` of the one seed, or those of a population `[S, 2]`."""
        keys = [jax.random.PRNGKey(seed) for seed in seeds]
        return keys[0] if self.num_seeds is None else jnp.stack(keys)

    def shapes(self) -> RunState:
        """Returns a run of `ShapeDtypeStruct`s, allocating nothing."""
        device = self.programs["init"].shapes(key_shape(self.num_seeds))
        if self.mesh is not None:
            device = sharding.placed(self.mesh, device, ENV_AXES)
        return RunState(device)

    def member_shapes(self) -> RunState:
        """Returns the `shapes` of one seed by itself; a checkpoint restores by them."""
        device = self.shapes().device
        return RunState(device if self.num_seeds is None else jax.eval_shape(take, device, 0))

    def member(self, run: RunState, index: int) -> RunState:
        """Returns one seed of `run` as a run by itself: of a population, a copy."""
        return run if self.num_seeds is None else replace(run, device=take(run.device, index))

    def learner(self, run: RunState, index: int) -> Learner:
        """Returns one seed's learner, on one device: of a population, a copy."""
        if self.mesh is not None:
            return sharding.on_first(run.learner)
        alone = self.num_seeds is None
        return run.learner if alone else jax.tree.map(lambda x: x[index], run.learner)

    def join(self, members: Iterable[RunState]) -> RunState:
        """Returns the run of `members`: the inverse of `member`."""
        return (
            next(iter(members)) if self.num_seeds is None else join(self.shapes().device, members)
        )

    def compile(self) -> dict[str, float]:
        """Compiles `init`, `prefill` and `epoch` ahead of time; returns seconds by name."""
        device = self.shapes().device
        self.programs["init"].compile(key_shape(self.num_seeds))
        self.programs["prefill"].compile(device)
        self.programs["epoch"].compile(device)
        return self.compile_seconds()

    def compile_seconds(self) -> dict[str, float]:
        """Returns the compile time of each program compiled so far."""
        return {
            name: program.compile_seconds
            for name, program in self.programs.items()
            if program.compile_seconds is not None
        }
