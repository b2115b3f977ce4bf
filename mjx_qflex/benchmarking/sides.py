"""What a worker process measures: one side of a comparison, round after round.

Each side compiles and warms up, reports that it is ready, and then answers every round with rates.
"""

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mjx_qflex import presets
from mjx_qflex.algos.sac import SacConfig
from mjx_qflex.benchmarking import brax_sac, machine, parts, replays, source_physics
from mjx_qflex.benchmarking.channel import Channel, Ended
from mjx_qflex.benchmarking.host_loop import CEnvironments, HostLoop
from mjx_qflex.benchmarking.timing import Repeated, calibrated
from mjx_qflex.config import Config
from mjx_qflex.errors import UserError
from mjx_qflex.runner import driver
from mjx_qflex.runner.metrics import GIB
from mjx_qflex.training import environments
from mjx_qflex.training.collect import replay_layout
from mjx_qflex.training.loop import make_loop
from mjx_qflex.training.program import stepping_options
from mjx_qflex.types import Algorithm

TRANSITIONS, UPDATES, PHYSICS = "transitions/s", "updates/s", "physics steps/s"
ADDED, SAMPLED = "added transitions/s", "sampled transitions/s"
RAW_STEPS = 2  # vector steps of an epoch on raw MJX, which takes seconds for each
PREFILL_STEPS = 2  # vector steps in the ring before updates begin, on all sides alike


@dataclass(frozen=True)
class Spec:
    """One side of a comparison.

    Attributes:
      side: name in `SIDES`.
      task, algo, preset, num_envs, sets: as of `config.resolve`.
      seconds: of a round, about.
      cores: that the process may use; None is all.
    """

    side: str
    task: str
    algo: str
    preset: str | None = None
    num_envs: int | None = None
    sets: tuple[str, ...] = ()
    seconds: float = 1.0
    cores: int | None = None

    @staticmethod
    def from_json(values: dict[str, Any]) -> "Spec":
        return Spec(**{**values, "sets": tuple(values["sets"])})

    def as_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def config(self) -> Config:
        """Returns the config, with a short prefill, that all sides of this spec share."""
        config = presets.resolve(
            self.task, self.algo, self.preset, num_envs=self.num_envs, sets=self.sets
        )
        prefill = PREFILL_STEPS * config.replay_loop.num_envs
        return replace(config, loop=replace(config.replay_loop, prefill_transitions=prefill))


def build(config: Config) -> tuple[Any, Algorithm]:
    """Builds the environment and the algorithm, one with a replay."""
    env, algorithm = driver.build(config)
    assert isinstance(algorithm, Algorithm), "the command has refused others"
    return env, algorithm


def serve(spec: Spec, channel: Channel) -> None:
    """Measures until the comparison ends."""
    machine.restart_peak_memory()
    try:
        SIDES[spec.side](spec, channel)
    except Ended:
        return


def _report(channel: Channel, seconds: float, **amounts: float) -> None:
    """Reports a round: amounts a second."""
    channel.report(
        rates={name: amount / seconds for name, amount in amounts.items()},
        peak_memory_gib=machine.peak_memory() / GIB,
    )


# Training.


def ours(spec: Spec, channel: Channel) -> None:
    """Our loop."""
    config = spec.config()
    env, algorithm = build(config)
    loop = make_loop(env, algorithm, config.replay_loop)
    state = [loop.prefill(loop.init(loop.key([0])))]

    def seconds(number: int) -> float:
        start = time.perf_counter()
        for _ in range(number):
            state[0], _ = loop.epoch(state[0])
        jax.block_until_ready(state[0].device)
        return time.perf_counter() - start

    number = calibrated(seconds, spec.seconds)
    channel.report(compile_seconds=sum(loop.compile_seconds().values()))
    while True:
        before = state[0]
        taken = seconds(number)
        transitions, updates = (
            getattr(state[0], name) - getattr(before, name) for name in ("transitions", "updates")
        )
        _report(channel, taken, **{TRANSITIONS: transitions, UPDATES: updates})


def brax(spec: Spec, channel: Channel, raw: str | None = None) -> None:
    """brax's SAC on the ported task, or on raw MJX ("own" or "same" contacts and iterations)."""
    config = spec.config()
    if config.algo != "sac":
        raise UserError("brax has SAC only; give --algo=sac")
    env, loop = build(config)[0], config.replay_loop
    if raw:
        body_env = source_physics.body_task(env, config.task)
        env = source_physics.on_raw_mjx(body_env, reduced=raw == "same")
        loop = replace(loop, steps_per_epoch=RAW_STEPS)
    warm = []

    def on_epoch(epoch: brax_sac.Epoch) -> None:
        if not warm:
            warm.append(epoch)
            channel.report(compile_seconds=compiled[0])
        else:
            amounts = {TRANSITIONS: epoch.transitions, UPDATES: epoch.updates}
            _report(channel, epoch.seconds, **amounts)

    compiled: list[float] = []
    options = config.algo_config
    assert isinstance(options, SacConfig)
    brax_sac.train(env, options, loop, config.seed, compiled.append, on_epoch)


def host(spec: Spec, channel: Channel) -> None:
    """C MuJoCo in as many threads as there are cores, replay in host memory."""
    config = spec.config()
    env, algorithm = build(config)
    threads = machine.cores()
    loop = HostLoop(
        source_physics.body_task(env, config.task), algorithm, config.replay_loop, threads
    )

    def seconds(number: int) -> float:
        start = time.perf_counter()
        for _ in range(number):
            loop.epoch()
        return time.perf_counter() - start

    number = calibrated(seconds, spec.seconds)
    channel.report(compile_seconds=loop.compile_seconds, threads=threads)
    while True:
        transitions, updates, before = loop.transitions, loop.updates, dict(loop.seconds)
        taken = seconds(number)
        spent = {name: (s - before[name]) / taken for name, s in loop.seconds.items()}
        channel.report(
            rates={
                TRANSITIONS: (loop.transitions - transitions) / taken,
                UPDATES: (loop.updates - updates) / taken,
            },
            peak_memory_gib=machine.peak_memory() / GIB,
            shares={**spent, "rest": 1.0 - sum(spent.values())},
        )


# Physics.


def physics(spec: Spec, channel: Channel, raw: str | None = None) -> None:
    """The port's physics under random excitations, or raw MJX's."""
    config = spec.config()
    env = source_physics.body_task(build(config)[0], config.task)
    if raw:
        env = source_physics.on_raw_mjx(env, reduced=raw == "same")
    part = parts.physics(env, config.replay_loop.num_envs)
    repeated = Repeated(part.step, part.state, stepping_options(env))
    number = calibrated(repeated.seconds, spec.seconds)
    channel.report(compile_seconds=repeated.compile_seconds)
    amount = number * config.replay_loop.num_envs * env.physics_steps
    while True:
        _report(channel, repeated.seconds(number), **{PHYSICS: amount})


def physics_c(spec: Spec, channel: Channel) -> None:
    """C MuJoCo's `rollout` of the source model, on all cores."""
    config = spec.config()
    env = source_physics.body_task(build(config)[0], config.task)
    num_envs, threads = config.replay_loop.num_envs, machine.cores()
    started = CEnvironments(env, num_envs, threads)
    begin = source_physics.physics_of(parts.start(env, num_envs))
    qpos, qvel = jax.vmap(lambda one: source_physics.to_source(env.body, one))(begin)
    home = started.full_states(*(jax.device_get(x) for x in (qpos, qvel, begin.act)))
    ctrl = jax.device_get(jax.random.uniform(jax.random.PRNGKey(1), (8, num_envs, env.body.nu)))

    def seconds(number: int) -> float:
        start = time.perf_counter()
        for step in range(number):
            if step * env.control_dt % parts.FALL_S < env.control_dt:
                started.restart(np.arange(num_envs), home)
            started.advance(ctrl[step % len(ctrl)])
        return time.perf_counter() - start

    number = calibrated(seconds, spec.seconds)
    channel.report(compile_seconds=0.0, threads=threads)
    while True:
        _report(channel, seconds(number), **{PHYSICS: number * num_envs * env.physics_steps})


# Replay.


def replay(spec: Spec, channel: Channel, buffer: str) -> None:
    """One of `replays.BUFFERS`, full; draws the batches of a vector step's updates."""
    config = spec.config()
    env, loop = build(config)[0], config.replay_loop
    layout = replay_layout(env, loop, environments.reset_shapes(env))
    made = replays.BUFFERS[buffer](layout, (loop.updates_per_step, loop.batch_size))
    content = replays.fill(made, jax.jit(made.init)(), layout)
    drawing = Repeated(replays.sampling(made), replays.sampling_state(made, content), {})
    writing = Repeated(replays.adding(made, layout), (drawing.state[0], jnp.int32(0)), {})

    def added(number: int) -> float:
        """Adds, on the buffer that was drawn from; it is there once."""
        _, *others = drawing.state
        writing.state = (drawing.state[0], jnp.int32(0))
        seconds = writing.seconds(number)
        drawing.state = (writing.state[0], *others)
        return seconds

    draws = calibrated(drawing.seconds, spec.seconds / 2)
    adds = calibrated(added, spec.seconds / 2)
    channel.report(compile_seconds=drawing.compile_seconds + writing.compile_seconds)
    drawn = loop.updates_per_step * loop.batch_size
    while True:
        rates = {
            ADDED: adds * loop.num_envs / added(adds),
            SAMPLED: draws * drawn / drawing.seconds(draws),
        }
        channel.report(rates=rates, peak_memory_gib=machine.peak_memory() / GIB)


SIDES: dict[str, Callable[[Spec, Channel], None]] = {
    "ours": ours,
    "brax": brax,
    "brax_raw": lambda spec, channel: brax(spec, channel, "own"),
    "brax_raw_same": lambda spec, channel: brax(spec, channel, "same"),
    "host": host,
    "physics": physics,
    "raw": lambda spec, channel: physics(spec, channel, "own"),
    "raw_same": lambda spec, channel: physics(spec, channel, "same"),
    "c": physics_c,
    "replay": lambda spec, channel: replay(spec, channel, "ours"),
    "flashbax_items": lambda spec, channel: replay(spec, channel, "flashbax_items"),
    "flashbax_pairs": lambda spec, channel: replay(spec, channel, "flashbax_pairs"),
    "brax_queue": lambda spec, channel: replay(spec, channel, "brax_queue"),
}
