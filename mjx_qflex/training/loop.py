"""Simulator, replay and learner in one jitted scan.

    init ──► prefill ──► epoch ──► epoch ──► …          (the host only ever sees epoch boundaries)
                           └─ lax.scan over steps_per_epoch of
                              act → step every world → write the ring → reset ended worlds
                              → updates_per_step × (sample → update)

The numbers a run produces depend on its configuration and seed alone, never on how fast the
machine was. An epoch is only a way to look: nothing that is drawn depends on where one ends, so
that two epochs of five steps leave what one of ten leaves, bit for bit.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, cast

import chex
import jax
import jax.numpy as jnp
from brax.envs.base import State
from jax.sharding import Mesh

from mjx_qflex import devices, parallel
from mjx_qflex.conditional import when
from mjx_qflex.runner.program_store import ProgramStore
from mjx_qflex.sizes import LoopConfig
from mjx_qflex.training import environments, evaluation, sharding
from mjx_qflex.training import replay as ring
from mjx_qflex.training.aggregate import reduce_metrics
from mjx_qflex.training.compiled import Loop
from mjx_qflex.training.environments import Task
from mjx_qflex.training.program import Program, stepping_options
from mjx_qflex.training.state import (
    SEED_AXES,
    WORLD_AXES,
    DeviceState,
    RunState,
    key_shape,
)
from mjx_qflex.types import Algorithm, Carry, Learner, Metrics, Transition


def make_loop(
    env: Task,
    algorithm: Algorithm,
    config: LoopConfig,
    num_seeds: int | None = None,
    mesh: Mesh | None = None,
    store: ProgramStore | None = None,
) -> Loop:
    """Builds the training functions of one environment and one algorithm.

    The ring's size is checked against the device's free memory here, before anything is allocated.

    Args:
      env: one environment.
      algorithm: made for its sizes, and for the mesh's axis where there is one.
      config: sizes of each seed's run.
      num_seeds: S, runs in a population; None is one run.
      mesh: devices that share one run; None is one device.
      store: where compiled programs of this environment and algorithm are kept; None is nowhere.

    Raises:
      UserError: the replay or the state does not fit on the device, or the devices cannot share the
        sizes.
    """
    programs = {
        **_training_programs(env, algorithm, config, num_seeds, mesh),
        **evaluation.make_programs(env, algorithm, config.eval_envs),
    }
    if store is not None:
        for name, one in programs.items():
            one.store = store.of(name, config, num_seeds)
    shapes = programs["init"].shapes(key_shape(num_seeds))
    replay_bytes, state_bytes = ring.num_bytes(shapes.replay), ring.num_bytes(shapes)
    free = devices.free_bytes()
    ring.check_fits(sharding.bytes_of_each(mesh, replay_bytes), free)
    whole = sharding.bytes_of_each(mesh, state_bytes)
    ring.check_fits(whole, free, "the run's state", "loop.num_envs, algo.width or algo.depth")
    prefill_steps = _prefill_steps(config)

    def init(key: jax.Array) -> RunState:
        return RunState(programs["init"](key))

    def prefill(run: RunState) -> RunState:
        if prefill_steps == 0:
            return run
        transitions = run.transitions + prefill_steps * config.num_envs
        device, _ = programs["prefill"](run.device)
        return replace(run, device=device, transitions=transitions)

    def epoch(run: RunState) -> tuple[RunState, Metrics]:
        device, metrics = programs["epoch"](run.device)
        return RunState(
            device=device,
            epochs=run.epochs + 1,
            transitions=run.transitions + config.steps_per_epoch * config.num_envs,
            updates=run.updates + config.steps_per_epoch * config.updates_per_step,
        ), metrics

    return Loop(
        init=init,
        prefill=prefill,
        epoch=epoch,
        evaluate=programs["evaluate"],
        evaluate_constant=programs["evaluate_constant"],
        rollout=partial(evaluation.record, programs["rollout"]),
        programs=programs,
        replay_bytes=replay_bytes,
        state_bytes=state_bytes,
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
    """Returns `init(key)`, and `prefill` and `epoch` of a device state, which they donate."""
    if (algorithm.axis_name is None) != (mesh is None) or (mesh and num_seeds is not None):
        raise ValueError("a mesh takes an algorithm made for its axis, and one seed")
    options = stepping_options(env)
    part = config if mesh is None else sharding.share(config, mesh.size)
    state, common = (SEED_AXES, 0) if mesh is None else (WORLD_AXES, None)

    def program(function: Callable, takes: Any, gives: Any, donate: tuple[int, ...] = ()):
        function = partial(function, env, algorithm, part)
        if mesh is not None:
            return sharding.program(mesh, function, takes, gives, donate, options)
        if num_seeds is not None:
            function = jax.vmap(function, in_axes=(takes,), out_axes=gives)
        return Program(function, donate, options)

    return {
        "init": program(_init, common, state),
        "prefill": program(_prefill, state, (state, common), donate=(0,)),
        "epoch": program(_epoch, state, (state, common), donate=(0,)),
    }


def transition_spec(env: Task, reset_state: State) -> Transition:
    """Returns shape and dtype of one environment's transition.

    Args:
      env: one environment.
      reset_state: of any number of worlds `[..., N]`; its shapes are all that counts.
    """
    seen = environments.observation(reset_state)
    obs = jax.ShapeDtypeStruct(seen.shape[reset_state.done.ndim :], seen.dtype)
    action, scalar = (jax.ShapeDtypeStruct(x, jnp.float32) for x in ((env.action_size,), ()))
    return Transition(*cast(Any, (obs, action, scalar, scalar, obs)))


def replay_layout(env: Task, config: LoopConfig, reset_state: State) -> ring.Layout:
    """Returns what decides the shapes of a run's ring; its capacity is settled.

    Args:
      env: one environment.
      config: sizes of the run.
      reset_state: as of `transition_spec`.
    """
    assert config.replay_capacity > 0, "the capacity is settled before the ring is laid out"
    return ring.Layout(
        transition_spec(env, reset_state),
        config.num_envs,
        config.replay_capacity,
        env.episode_length,
        config.replay_obs_dtype,
    )


def _init(env: Task, algorithm: Algorithm, config: LoopConfig, key: jax.Array) -> DeviceState:
    key, key_learner, key_reset, key_pool = jax.random.split(key, 4)
    num_envs = config.num_envs
    keys = (
        parallel.split(key_reset, num_envs, algorithm.axis_name),
        parallel.split(key_pool, config.reset_pool, algorithm.axis_name),
    )
    # Worlds and pool in one call: a reset is traced and compiled once.
    states = environments.reset(env, jnp.concatenate(keys))
    env_state = jax.tree.map(lambda x: x[:num_envs], states)
    return DeviceState(
        env_state=env_state,
        pool=jax.tree.map(lambda x: x[num_envs:], states),
        pool_age=jnp.zeros((), jnp.int32),
        carry=algorithm.init_carry(num_envs),
        replay=ring.init(replay_layout(env, config, env_state)),
        learner=algorithm.init(key_learner),
        key=key,
        episode_return=jnp.zeros(num_envs),
        episode_length=jnp.zeros(num_envs, jnp.int32),
    )


def _prefill(
    env: Task, algorithm: Algorithm, config: LoopConfig, device: DeviceState
) -> tuple[DeviceState, Metrics]:
    """Fills the ring with transitions of uniform actions or the initial policy; learns nothing."""

    def step(device: DeviceState, _):
        device, (key_act, key_step) = draw_keys(algorithm, device, 2)
        if config.prefill_actions == "policy":
            obs = environments.observation(device.env_state)
            action, carry = algorithm.act(device.learner, obs, device.carry, key_act, "explore")
        else:
            shape, carry = (config.num_envs, env.action_size), device.carry
            action = jax.random.uniform(key_act, shape, minval=-1.0, maxval=1.0)
        device, _ = collect(env, algorithm, config, device, action, carry, key_step)
        return device, None

    return jax.lax.scan(step, device, length=_prefill_steps(config))[0], {}


def _epoch(
    env: Task, algorithm: Algorithm, config: LoopConfig, device: DeviceState
) -> tuple[DeviceState, Metrics]:
    """Trains for `steps_per_epoch` vector steps; returns metrics over all of them."""
    step = partial(train_step, env, algorithm, config)
    device, rows = jax.lax.scan(
        lambda device, _: step(device), device, length=config.steps_per_epoch
    )
    metrics = reduce_metrics(rows, algorithm.axis_name)
    complete = parallel.total(device.replay.window * config.num_envs, algorithm.axis_name)
    return device, metrics | {"replay_transitions": complete}


def draw_keys(
    algorithm: Algorithm, device: DeviceState, number: int
) -> tuple[DeviceState, jax.Array]:
    """Returns the state with its next key, and `[number, 2]` keys of this step on this device."""
    key, key_step = jax.random.split(device.key)
    key_step = parallel.own(key_step, algorithm.axis_name)
    return device.replace(key=key), jax.random.split(key_step, number)


def train_step(
    env: Task, algorithm: Algorithm, config: LoopConfig, device: DeviceState
) -> tuple[DeviceState, Metrics]:
    """Acts, steps every world, writes the ring, resets ended worlds and updates the learner."""
    device, (key_act, key_step, key_learn) = draw_keys(algorithm, device, 3)
    action, carry = algorithm.act(
        device.learner, environments.observation(device.env_state), device.carry, key_act, "explore"
    )
    chex.assert_shape(action, (config.num_envs, env.action_size))
    device, metrics = collect(env, algorithm, config, device, action, carry, key_step)
    learner, update_metrics = _learn(algorithm, config, device, key_learn)
    return device.replace(learner=learner), metrics | update_metrics


def _learn(
    algorithm: Algorithm, config: LoopConfig, device: DeviceState, key: jax.Array
) -> tuple[Learner, Metrics]:
    """Runs `updates_per_step` updates; returns their metrics averaged."""
    num_updates = config.updates_per_step
    if num_updates == 0:
        return device.learner, {}
    key_sample, key_update = jax.random.split(key)
    # One gather for all updates: the ring does not change between them, and stays out of the
    # inner scan.
    batches = ring.sample(device.replay, key_sample, (num_updates, config.batch_size))

    def update(learner, inputs):
        batch, key = inputs
        return algorithm.update(learner, batch, key)

    learner, metrics = jax.lax.scan(
        update, device.learner, (batches, jax.random.split(key_update, num_updates))
    )
    return learner, {f"update/{name}": value.mean() for name, value in metrics.items()}


def collect(
    env: Task,
    algorithm: Algorithm,
    config: LoopConfig,
    device: DeviceState,
    action: jax.Array,
    carry: Carry,
    key: jax.Array,
) -> tuple[DeviceState, Metrics]:
    """Steps every world once, writes the ring and restarts the worlds whose episode ended.

    The ring receives the next observation from before the reset, and discount 0 on termination
    only. A world with a non-finite action, observation, reward or state leaf is ended with reward
    0, and leaves zeros marked invalid in the ring; all but what it saw before, to which the step
    before led.

    Args:
      env: one environment; vmapped here.
      algorithm: gives the acting state of a fresh episode.
      config: sizes of the run.
      device: the run before the step.
      action: `[N, A]`.
      carry: `[N, ...]`, the acting state after choosing `action`.
      key: draws the reset states, and which of them an ended world takes.
    """
    key_pool, key_choice = jax.random.split(key)
    device = refresh_pool(env, config, device, key_pool)
    obs = environments.observation(device.env_state)
    outcome = environments.advance(env, device.env_state, action)
    next_obs = environments.observation(outcome.state)
    transition = Transition(obs, action, outcome.state.reward, 1.0 - outcome.terminated, next_obs)
    transition = environments.select(
        outcome.bad, jax.tree.map(jnp.zeros_like, transition), transition
    )
    transition = transition._replace(obs=jnp.where(jnp.isfinite(obs), obs, 0.0))
    episode_return = device.episode_return + transition.reward
    episode_length = device.episode_length + 1
    metrics = environments.step_metrics(outcome, episode_return, episode_length)
    device = device.replace(
        env_state=environments.restart(outcome, device.pool, key_choice),
        carry=environments.select(outcome.ended, algorithm.init_carry(config.num_envs), carry),
        replay=ring.add(device.replay, transition, outcome.ended, ~outcome.bad),
        episode_return=jnp.where(outcome.ended, 0.0, episode_return),
        episode_length=jnp.where(outcome.ended, 0, episode_length),
    )
    return device, metrics


def refresh_pool(env: Task, config: LoopConfig, device: DeviceState, key: jax.Array) -> DeviceState:
    """Draws the `[P, ...]` reset states anew where they have served `reset_pool_steps` steps.

    A full reset of every world at every step would cost as much as stepping it. The pool costs P
    resets now and then, and each step one gather and one select of the environment state; no start
    is favoured for long.
    """
    due = device.pool_age == config.reset_pool_steps

    def draw(_: State) -> State:
        return environments.reset(env, jax.random.split(key, config.reset_pool))

    age = jnp.where(due, 0, device.pool_age) + 1
    return device.replace(pool=when(due, draw, device.pool), pool_age=age)


def _prefill_steps(config: LoopConfig) -> int:
    return ring.num_rows(config.num_envs, config.prefill_transitions)
