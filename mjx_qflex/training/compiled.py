"""The functions of one training run, as the host calls them; `loop.make_loop` builds them."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from mjx_qflex.training import evaluation, sharding
from mjx_qflex.training.program import Program
from mjx_qflex.training.state import WORLD_AXES, RunState, join, key_shape, take
from mjx_qflex.types import Learner, Metrics


class Loop(NamedTuple):
    """The functions of one training run; each is traced and compiled once, when first called.

    A loop over a population trains `num_seeds` runs side by side, S below, none of which sees the
    others: the same functions under `jax.vmap`. What it evaluates is one seed's learner.

    A loop over a mesh trains one run on several devices, each with its share of the worlds and of
    every batch (`sharding`); evaluation, which is short, has the first device alone.

    * `init(key) -> run`; the key is what `key(seeds)` returns
    * `prefill(run) -> run`, transitions that come before the first update
    * `epoch(run) -> (run, metrics)`, metrics are device scalars, or `[S]`, under fixed keys
    * `evaluate(learner, key) -> EvalResult`, the algorithm in mode "eval", on one device
    * `evaluate_constant(action [A], key) -> EvalResult`, the same worlds under one fixed action
    * `rollout(learner, key) -> Rollout`, one recorded episode
    """

    init: Callable[[jax.Array], RunState]
    prefill: Callable[[RunState], RunState]
    epoch: Callable[[RunState], tuple[RunState, Metrics]]
    evaluate: Callable[[Learner, jax.Array], evaluation.EvalResult]
    evaluate_constant: Callable[[jax.Array, jax.Array], evaluation.EvalResult]
    rollout: Callable[[Learner, jax.Array], evaluation.Rollout]
    programs: dict[str, Program]
    replay_bytes: int  # of the rings
    state_bytes: int  # of the whole device state, rings included
    num_seeds: int | None = None  # None: one run, without a leading axis for it
    mesh: Mesh | None = None  # of the devices that share the run; None: one device

    def key(self, seeds: Sequence[int]) -> jax.Array:
        """Returns the key `[2]` of the one seed, or those of a population `[S, 2]`."""
        keys = [jax.random.PRNGKey(seed) for seed in seeds]
        return keys[0] if self.num_seeds is None else jnp.stack(keys)

    def shapes(self) -> RunState:
        """Returns a run of `ShapeDtypeStruct`s, allocating nothing."""
        device = self.programs["init"].shapes(key_shape(self.num_seeds))
        if self.mesh is not None:
            device = sharding.placed(self.mesh, device, WORLD_AXES)
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
