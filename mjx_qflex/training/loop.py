"""Simulator, replay and learner in one jitted scan.

    init ──► prefill ──► epoch ──► epoch ──► …          (the host only ever sees epoch boundaries)
                           └─ lax.scan over steps_per_epoch of
                              collect: act → step every environment → write the ring → restart
                              learn:   updates_per_step × (sample → update)

A run is a list of phases: prefill (collect alone), offline (learn alone, where
`offline_updates` asks for it), online (both). `compiled.Loop` is what the host holds of them.

The numbers a run produces depend on its configuration and seed alone, never on how fast the
machine was. An epoch is only a way to look: nothing that is drawn depends on where one ends, so
that two epochs of five steps leave what one of ten leaves, bit for bit.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from jax.sharding import Mesh

from mjx_qflex import parallel
from mjx_qflex.sizes import LoopConfig
from mjx_qflex.training import evaluation, sharding
from mjx_qflex.training import replay as ring
from mjx_qflex.training.aggregate import reduce_metrics
from mjx_qflex.training.collect import act, act_uniformly, collect, initial_state
from mjx_qflex.training.compiled import Loop
from mjx_qflex.training.environments import Task
from mjx_qflex.training.learn import learn
from mjx_qflex.training.program import Program, stepping_options
from mjx_qflex.training.state import ENV_AXES, SEED_AXES, DeviceState, key_shape
from mjx_qflex.types import Algorithm, Metrics


def make_loop(
    env: Task,
    algorithm: Algorithm,
    config: LoopConfig,
    num_seeds: int | None = None,
    mesh: Mesh | None = None,
) -> Loop:
    """Builds the training functions of one environment and one algorithm.

    Args:
      env: one environment.
      algorithm: made for its sizes.
      config: sizes of each seed's run.
      num_seeds: S, runs in a population; None is one run.
      mesh: devices that share one run; None is one device.

    Raises:
      UserError: the devices cannot share the sizes.
    """
    programs = {
        **_training_programs(env, algorithm, config, num_seeds, mesh),
        **evaluation.make_programs(env, algorithm, config.eval_envs),
    }
    shapes = programs["init"].shapes(key_shape(num_seeds))
    return Loop(
        config=config,
        programs=programs,
        replay_bytes=ring.num_bytes(shapes.replay),
        state_bytes=ring.num_bytes(shapes),
        num_seeds=num_seeds,
        mesh=mesh,
    )


def _training_programs(
    env: Task,
    algorithm: Algorithm,
    config: LoopConfig,
    num_seeds: int | None,
    mesh: Mesh | None,
) -> dict[str, Program]:
    """Returns `init(key)`, and each phase's program of a device state, which it donates."""
    if mesh is not None and num_seeds is not None:
        raise ValueError("a mesh takes one seed")
    options = stepping_options(env)
    part = config if mesh is None else sharding.share(config, mesh.size)
    state, common = (SEED_AXES, 0) if mesh is None else (ENV_AXES, None)

    def program(function: Callable, takes: Any, gives: Any, donate: tuple[int, ...] = ()):
        function = partial(function, env, algorithm, part)
        if mesh is not None:
            return sharding.program(mesh, function, takes, gives, donate, options)
        if num_seeds is not None:
            function = jax.vmap(function, in_axes=(takes,), out_axes=gives)
        return Program(function, donate, options)

    phases = {"prefill": _prefill, "offline": _offline, "epoch": _epoch}
    return {"init": program(initial_state, common, state)} | {
        name: program(function, state, (state, common), donate=(0,))
        for name, function in phases.items()
    }


def _prefill(
    env: Task, algorithm: Algorithm, config: LoopConfig, device: DeviceState
) -> tuple[DeviceState, Metrics]:
    """Fills the ring with transitions of uniform actions or the initial policy; learns nothing."""

    def step(device: DeviceState, _):
        device, (key_act, key_step) = draw_keys(device, 2)
        if config.prefill_actions == "policy":
            acted = act(algorithm, device, key_act)
        else:
            acted = act_uniformly(env, algorithm, device, key_act)
        return collect(env, algorithm, config, device, acted, key_step)[0], None

    steps = ring.num_rows(config.num_envs, config.prefill_transitions)
    return jax.lax.scan(step, device, length=steps)[0], {}


def _offline(
    env: Task, algorithm: Algorithm, config: LoopConfig, device: DeviceState
) -> tuple[DeviceState, Metrics]:
    """Learns for as many updates as an epoch has from what the ring holds; steps nothing."""
    del env

    def step(device: DeviceState, _):
        device, (key,) = draw_keys(device, 1)
        return _learn(algorithm, config, device, key)

    device, rows = jax.lax.scan(step, device, length=config.steps_per_epoch)
    metrics = parallel.mean({name: x.mean() for name, x in rows.items()})
    return device, metrics | _complete(config, device)


def _epoch(
    env: Task, algorithm: Algorithm, config: LoopConfig, device: DeviceState
) -> tuple[DeviceState, Metrics]:
    """Trains for `steps_per_epoch` vector steps; returns metrics over all of them."""
    step = partial(train_step, env, algorithm, config)
    device, rows = jax.lax.scan(
        lambda device, _: step(device), device, length=config.steps_per_epoch
    )
    return device, reduce_metrics(rows) | _complete(config, device)


def _complete(config: LoopConfig, device: DeviceState) -> Metrics:
    """Returns how many transitions the ring has complete."""
    return {"replay_transitions": parallel.total(device.replay.window * config.num_envs)}


def train_step(
    env: Task, algorithm: Algorithm, config: LoopConfig, device: DeviceState
) -> tuple[DeviceState, Metrics]:
    """Collects one vector step, then learns."""
    device, (key_act, key_step, key_learn) = draw_keys(device, 3)
    acted = act(algorithm, device, key_act)
    device, metrics = collect(env, algorithm, config, device, acted, key_step)
    device, update_metrics = _learn(algorithm, config, device, key_learn)
    return device, metrics | update_metrics


def _learn(
    algorithm: Algorithm, config: LoopConfig, device: DeviceState, key: jax.Array
) -> tuple[DeviceState, Metrics]:
    """Runs `updates_per_step` updates from the ring."""
    sizes = config.updates_per_step, config.batch_size
    learner, metrics = learn(algorithm, ring.sample, device.replay, device.learner, key, *sizes)
    return device.replace(learner=learner), metrics


def draw_keys(device: DeviceState, number: int) -> tuple[DeviceState, jax.Array]:
    """Returns the state with its next key, and `[number, 2]` keys of this step on this device."""
    key, key_step = jax.random.split(device.key)
    key_step = parallel.fold_in_device(key_step)
    return device.replace(key=key), jax.random.split(key_step, number)
