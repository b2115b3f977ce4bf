"""One case: a task, an algorithm and a number of environments, measured part by part."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mjx_qflex import algos
from mjx_qflex.benchmarking import flops, machine, parts, replays
from mjx_qflex.benchmarking.parts import Part
from mjx_qflex.benchmarking.timing import (
    Budget,
    Repeated,
    Spread,
    calibrated,
    measure_calls,
    spread,
)
from mjx_qflex.config import Config
from mjx_qflex.errors import UserError
from mjx_qflex.runner import driver
from mjx_qflex.runner.metrics import GIB
from mjx_qflex.tasks.body_task import BodyTask
from mjx_qflex.training import environments
from mjx_qflex.training.collect import replay_layout, transition_spec
from mjx_qflex.training.compiled import Loop
from mjx_qflex.training.loop import make_loop
from mjx_qflex.training.program import Program, stepping_options
from mjx_qflex.training.state import RunState

SHARES = ("act", "physics", "task", "ring write", "reset", "sample", "update", "rest")
Say = Callable[[str], None]
Measured = dict[str, Any]


def check(config: Config) -> None:
    """Refuses what cannot be measured.

    Raises:
      UserError: the algorithm has no replay, or is not to learn.
    """
    if algos.entry(config.algo).on_policy:
        raise UserError(f"{config.algo} has no replay; give --algo one that has, such as sac")
    if config.replay_loop.updates_per_step == 0:
        raise UserError("loop.updates_per_step is 0; give 1 or more to measure training")
    if config.replay_loop.replay_capacity == 0:
        raise UserError("loop.replay_capacity=0 is for runs; give a number to measure")


@dataclass
class Case:
    """What is measured of one configuration; `world_seconds` remembers parts without a learner."""

    config: Config
    batch_sizes: Sequence[int]
    budget: Budget
    say: Say
    world_seconds: dict[Any, dict[str, tuple[Spread, float]]]

    def measure(self) -> Measured:
        """Returns all numbers of the case, as JSON values."""
        check(self.config)
        loop = self.config.replay_loop
        result = self._sizes()
        self.say(f"{result['name']}: training step")
        machine.restart_peak_memory()
        trained, run = self._train()
        result |= trained
        learner, content = run.learner, run.device.replay
        obs = jnp.copy(environments.observation(run.device.env_state))
        del run
        self.say(f"{result['name']}: its parts")
        seconds = dict(self._worlds())
        learn = self._learning(learner, obs)
        seconds |= learn | self._replay(content)
        updates = {batch: seconds[f"update {batch}"][0] for batch in self.batches}
        result["compile_seconds"] |= {name: compiled for name, (_, compiled) in seconds.items()}
        result["control_steps_per_s"] = seconds["environment"][0].rate(loop.num_envs).as_json()
        if "physics" in seconds:
            amount = loop.num_envs * self.env.physics_steps
            result["physics_steps_per_s"] = seconds["physics"][0].rate(amount).as_json()
        drawn = loop.updates_per_step * loop.batch_size
        result |= {
            "added_transitions_per_s": seconds["ring write"][0].rate(loop.num_envs).as_json(),
            "sampled_transitions_per_s": seconds["sample"][0].rate(drawn).as_json(),
            "updates_per_s": {str(b): each.rate(1).as_json() for b, each in updates.items()},
            "acting_latency_s": seconds["act one"][0].as_json(),
            "parts_s": self._parts(seconds),
        }
        whole = loop.num_envs / trained["transitions_per_s"]["median"]
        result |= shares(result["parts_s"], whole)
        result["flops"] = self._flops(learner)
        return result

    @cached_property
    def built(self) -> tuple[Any, Any]:
        return driver.build(self.config)

    @property
    def env(self) -> Any:
        return self.built[0]

    @property
    def algorithm(self) -> Any:
        return self.built[1]

    @property
    def batches(self) -> list[int]:
        return sorted({*self.batch_sizes, self.config.replay_loop.batch_size})

    def _sizes(self) -> Measured:
        config, loop = self.config, self.config.replay_loop
        return {
            "name": f"{config.task} {config.algo} {loop.num_envs}",
            "task": config.task,
            "algo": config.algo,
            "preset": config.preset,
            "num_envs": loop.num_envs,
            "batch_size": loop.batch_size,
            "updates_per_step": loop.updates_per_step,
            "updates_per_transition": loop.updates_per_step / loop.num_envs,
            "width": config.algo_config.width,
            "observation_size": self.env.observation_size,
            "action_size": self.env.action_size,
            "physics_steps": getattr(self.env, "physics_steps", None),
            "replay_capacity": loop.replay_capacity,
        }

    def _train(self) -> tuple[Measured, RunState]:
        """Measures epochs on a full ring; returns the numbers and the run."""
        config = self.config.replay_loop
        loop = make_loop(self.env, self.algorithm, config)
        loop.programs["epoch"].compile(loop.shapes().device)
        run = loop.init(loop.key([0]))
        layout = replay_layout(self.env, config, environments.reset_shapes(self.env))
        full = replays.fill(replays.ours(layout, (1,)), run.device.replay, layout)
        trained = [RunState(run.device.replace(replay=full))]
        times, seconds = [], partial(_seconds_of_epochs, loop, trained)
        number = calibrated(seconds, self.budget.seconds)
        for _ in range(self.budget.repeats):
            times.append(seconds(number) / (number * config.steps_per_epoch))
        step = spread(times)
        analysis = loop.programs["epoch"].compiled.memory_analysis()
        return {
            "transitions_per_s": step.rate(config.num_envs).as_json(),
            "trained_updates_per_s": step.rate(config.updates_per_step).as_json(),
            "compile_seconds": loop.compile_seconds(),
            "peak_memory_gib": machine.peak_memory() / GIB,
            "state_gib": loop.state_bytes / GIB,
            "replay_gib": loop.replay_bytes / GIB,
            "epoch_temporaries_gib": analysis.temp_size_in_bytes / GIB if analysis else None,
        }, trained[0]

    def _repeat(self, part: Part) -> tuple[Spread, float]:
        repeated = Repeated(part.step, part.state, stepping_options(self.env))
        return repeated.measure(self.budget), repeated.compile_seconds

    def _worlds(self) -> dict[str, tuple[Spread, float]]:
        """Measures what does not depend on the algorithm, once for each number of environments."""
        env, loop = self.env, self.config.replay_loop
        key = (self.config.task, self.config.task_config, loop.num_envs, loop.reset_pool)
        if key not in self.world_seconds:
            found = {
                "environment": self._repeat(parts.environment(env, loop.num_envs)),
                "restart": self._repeat(parts.restarting(env, loop.num_envs)),
                "pool": self._repeat(parts.pool(env, loop.reset_pool)),
            }
            if isinstance(env, BodyTask):
                found["physics"] = self._repeat(parts.physics(env, loop.num_envs))
            self.world_seconds[key] = found
        return self.world_seconds[key]

    def _learning(self, learner: Any, obs: jax.Array) -> dict[str, tuple[Spread, float]]:
        env, algorithm = self.env, self.algorithm
        copies = partial(jax.tree.map, jnp.copy)
        found = {
            "act": self._repeat(parts.acting(algorithm, copies(learner), obs, env.action_size))
        }
        spec = transition_spec(env, environments.reset_shapes(env))
        for batch in self.batches:
            drawn = replays.random_step(spec, batch, jax.random.PRNGKey(3))
            part = parts.updating(algorithm, copies(learner), drawn)
            found[f"update {batch}"] = self._repeat(part)

        def act(learner: Any, obs: jax.Array, key: jax.Array) -> jax.Array:
            policy = algorithm.policy(learner)
            return policy.mode(obs, policy.init(1)).action

        program, one = Program(act), np.zeros((1, env.observation_size), np.float32)
        key = jax.random.PRNGKey(0)
        compiled = program.compile(learner, one, key)
        latency = measure_calls(lambda: np.asarray(program(learner, one, key)), self.budget)
        return found | {"act one": (latency, compiled)}

    def _replay(self, content: Any) -> dict[str, tuple[Spread, float]]:
        """Measures the full ring, which is given away."""
        loop = self.config.replay_loop
        layout = replay_layout(self.env, loop, environments.reset_shapes(self.env))
        buffer = replays.ours(layout, (loop.updates_per_step, loop.batch_size))
        state = replays.sampling_state(buffer, content)
        drawing = Repeated(replays.sampling(buffer), state, {})
        sample = drawing.measure(self.budget)
        writing = Repeated(replays.adding(buffer, layout), (drawing.state[0], jnp.int32(0)), {})
        return {
            "sample": (sample, drawing.compile_seconds),
            "ring write": (writing.measure(self.budget), writing.compile_seconds),
        }

    def _parts(self, seconds: dict[str, tuple[Spread, float]]) -> dict[str, float]:
        """Returns what each part takes of a vector step, measured by itself."""
        loop = self.config.replay_loop
        median = {name: found.median for name, (found, _) in seconds.items()}
        physics = median.get("physics", 0.0)
        return {
            "act": median["act"],
            "physics": physics,
            "task": max(median["environment"] - physics - median["restart"], 0.0),
            "ring write": median["ring write"],
            "reset": median["restart"] + median["pool"] / loop.steps_per_epoch,
            "sample": median["sample"],
            "update": loop.updates_per_step * median[f"update {loop.batch_size}"],
        }

    def _flops(self, learner: Any) -> dict[str, dict[str, float]]:
        """Returns the operations of each part in a vector step, products and others."""
        env, algorithm, loop = self.env, self.algorithm, self.config.replay_loop
        key, spec = jax.random.PRNGKey(0), transition_spec(env, environments.reset_shapes(env))
        obs = jnp.zeros((loop.num_envs, env.observation_size))
        batch = replays.random_step(spec, loop.batch_size, key)

        def act(obs: jax.Array) -> Any:
            policy = algorithm.policy(learner)
            return policy.sample(obs, policy.init(len(obs)), key)

        update = flops.count(lambda batch: algorithm.update(learner, batch, key), batch)
        found = {"act": flops.count(act, obs), "update": update.times(loop.updates_per_step)}
        if isinstance(env, BodyTask):
            part = parts.physics(env, loop.num_envs)
            found["physics"] = flops.count(part.step, part.state)
        return {name: dict(number._asdict()) for name, number in found.items()}


def _seconds_of_epochs(loop: Loop, trained: list[RunState], number: int) -> float:
    """Trains `trained[0]` on for some epochs; returns the seconds that took."""
    start = time.perf_counter()
    for _ in range(number):
        trained[0], _ = loop.epoch(trained[0])
    jax.block_until_ready(trained[0].device)
    return time.perf_counter() - start


def shares(parts_s: dict[str, float], whole_s: float) -> Measured:
    """Returns each part's share of the training step; they sum to 1.

    Parts measured alone may come to more than the whole, which fuses and overlaps some of them;
    then `parts_over_step` exceeds 1, there is no rest, and shares are of the parts' sum.
    """
    total = sum(parts_s.values())
    rest = max(whole_s - total, 0.0)
    found = {**parts_s, "rest": rest}
    scale = sum(found.values())
    return {
        "shares": {name: found[name] / scale for name in SHARES},
        "parts_over_step": total / whole_s,
    }
