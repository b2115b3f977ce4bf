"""Qflex: exploration by a flow that a critic guides (arXiv 2601.19707).

Three networks learn from each batch, in the order of Algorithm 1:

1. Critics, an ensemble of two, as in CrossQ: without target networks (`_update_critics`).
2. A source policy, a Gaussian that climbs the critics' minimum (`_update_source`).
3. A velocity field. The source's actions are moved uphill on the critics by a few steps of gradient
   ascent (Eq. 11, `flow.ascend`), and the field learns to carry them there (`_update_velocity`).

Acting draws from the source and follows the field by Euler's method (`sample_flow`). Each of the
places where paper and official code differ is an option (`qflex_options`).
"""

import math
from collections.abc import Callable
from functools import partial, reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from mjx_qflex import flow, networks, parallel
from mjx_qflex.algos import common, crossq, gaussian
from mjx_qflex.algos.common import Temperature, TrainState, apply_gradients, for_inference
from mjx_qflex.algos.qflex_options import PRESETS, QflexConfig
from mjx_qflex.errors import UserError
from mjx_qflex.networks import MLP, InferenceMLP, Linear
from mjx_qflex.types import (
    Algorithm,
    EnvSpec,
    FlowParts,
    Metrics,
    Policy,
    Transition,
    stateless_policy,
)

__all__ = ["PRESETS", "QflexConfig", "QflexLearner", "make"]

LOG_STD_RANGE = (-20.0, 2.0)
SUPERIORITY_STATES = 32  # of a batch; sampling the flow for all would cost a fifth of an update


class QflexLearner(NamedTuple):
    """All that Qflex learns. The stale critics are the ones an update starts from: no copy."""

    critics: tuple[TrainState, ...]  # of (obs, action) -> value
    source: TrainState  # obs -> mean and log standard deviation of the Gaussian
    velocity: TrainState | None  # (obs, action, time) -> velocity of the action; None: no flow
    temperature: Temperature | None  # None without entropy


class Optimizers(NamedTuple):
    general: optax.GradientTransformation
    source: optax.GradientTransformation  # of the source policy's network
    temperature: optax.GradientTransformation  # where there is one, with Adam's usual decay


def make(config: QflexConfig, spec: EnvSpec, metric: jax.Array | None = None) -> Algorithm:
    """Builds Qflex for an environment.

    Args:
      config: options.
      spec: of the environment.
      metric: M of Eq. 11, which turns the critic's gradient: its diagonal [A], or in full [A, A];
        None is the identity.

    Raises:
      UserError: an option's value is refused.
    """
    common.check_options("qflex", config)
    size = spec.action_size
    if metric is not None and metric.shape not in ((size,), (size, size)):
        raise UserError(f"the metric has shape {metric.shape}; give ({size},) or ({size}, {size})")
    rate, source_rate = config.learning_rate, config.source_learning_rate
    source_rate = rate if source_rate is None else source_rate
    optimizers = Optimizers(
        general=common.adam(rate, config.beta1),
        source=common.adam(source_rate, config.beta1),
        temperature=common.adam(rate),
    )

    def update(learner: QflexLearner, batch: Transition, key: jax.Array):
        return _update(config, optimizers, metric, learner, batch, key)

    return Algorithm(
        init=partial(_init, config, optimizers, spec),
        policy=partial(_policy, config, size),
        update=update,
    )


def _init(
    config: QflexConfig, optimizers: Optimizers, spec: EnvSpec, key: jax.Array
) -> QflexLearner:
    """A fresh learner.

    A critic's random first gradient grows with the number of actuators and, with a gain of 1, is
    several times the true one where there are 700; source and flow follow it before the data
    could correct it. A small `output_gain` starts the critics flat, the flow at rest, and the
    source at actions near 0.
    """
    hidden = (config.width,) * config.depth
    everywhere = config.batch_norm == "everywhere"

    def network(key, inputs, output_bias, batch_norm, optimizer=optimizers.general) -> TrainState:
        sizes = (inputs, *hidden, len(output_bias))
        fresh = common.init_network(optimizer, key, sizes, batch_norm)
        *inner, last = fresh.params.layers
        last = Linear(config.output_gain * last.kernel, output_bias)
        return fresh._replace(params=fresh.params._replace(layers=(*inner, last)))

    keys = jax.random.split(key, 4)
    pair = spec.observation_size + spec.action_size
    rest = jnp.zeros(spec.action_size)
    velocity = network(keys[3], pair + 1, rest, everywhere) if config.euler_steps else None
    log_std = jnp.full(spec.action_size, math.log(config.initial_std))
    at_rest = jnp.concatenate([rest, log_std])
    temperature = None
    if config.entropy:
        temperature = common.init_temperature(optimizers.temperature, 1.0)
    return QflexLearner(
        critics=tuple(network(key, pair, jnp.zeros(1), True) for key in keys[:2]),
        source=network(keys[2], spec.observation_size, at_rest, everywhere, optimizers.source),
        velocity=velocity,
        temperature=temperature,
    )


# Acting: the source's draw, carried along the flow.


def _policy(config: QflexConfig, action_size: int, learner: QflexLearner) -> Policy:
    """The flow from the source; its mode starts from one fixed draw, or from the source's mean."""

    def act(obs: jax.Array, noise: jax.Array) -> jax.Array:
        start, _ = sample_source(config, for_inference(learner.source), obs, noise)
        action = sample_flow(config, learner.velocity, obs, start)
        return jnp.clip(action, -1.0, 1.0) if config.clip_stored_action else action

    def mode_noise(obs: jax.Array) -> jax.Array:
        shape = (obs.shape[0], action_size)
        draw, key = common.fixed_normal(shape)
        return jnp.zeros(shape) if config.eval_noise == "mean" else draw(key)

    def parts(obs: jax.Array) -> FlowParts:
        source, velocity = for_inference(learner.source), learner.velocity
        return FlowParts(
            start=lambda noise: sample_source(config, source, obs, noise)[0],
            mode_noise=mode_noise(obs),
            velocity=None if velocity is None else _field(for_inference(velocity), obs),
            value=common.min_q(common.critics_at(learner.critics, obs)),
        )

    return stateless_policy(
        sample=lambda obs, key: act(obs, jax.random.normal(key, (obs.shape[0], action_size))),
        mode=lambda obs: act(obs, mode_noise(obs)),
        parts=parts,
    )


def sample_source(config: QflexConfig, source: InferenceMLP, obs, noise):
    """Returns the source's actions [B, A] and their log densities [B] at observations [B, O]."""
    return _squashed(config, *_gaussian(networks.apply(source, obs)), noise)


def _gaussian(output: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Splits the source network's output [B, 2 A] into mean and log standard deviation [B, A]."""
    return gaussian.mean_and_log_std(output, LOG_STD_RANGE)


def _squashed(config: QflexConfig, mean, log_std, noise) -> tuple[jax.Array, jax.Array]:
    """Returns the source's actions [B, A] for standard normal `noise`, and log densities [B]."""
    if config.tanh_source:
        return gaussian.tanh_gaussian(mean, log_std, noise, correction=True)
    # Without a bound the mean runs away: the critic has seen no action outside the box.
    action = jnp.clip(mean + jnp.exp(log_std) * noise, -1.0, 1.0)
    return action, jnp.sum(gaussian.normal_log_density(noise, log_std), axis=-1)


def sample_flow(config: QflexConfig, velocity: TrainState | None, obs, start) -> jax.Array:
    """Carries source actions `start` [B, A] along the velocity field at observations [B, O]."""
    if velocity is None:
        return start
    field = _field(for_inference(velocity), obs)
    return flow.euler_sample(field, start, config.euler_steps, config.euler_grid)


def _field(velocity: InferenceMLP, obs) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Returns the velocity [B, A] as a function of actions [B, A] and times [B, 1]."""
    at_obs = networks.fix_inputs(velocity, obs)
    return lambda action, time: networks.apply(at_obs, jnp.concatenate([action, time], axis=-1))


# Learning: Algorithm 1.


def _update(config, optimizers: Optimizers, metric, learner: QflexLearner, batch: Transition, key):
    """One update: critics, source policy, flow, in this order; returns (learner, metrics)."""
    noise_key, time_key = jax.random.split(key)
    # One draw serves bootstrap, source loss and flow, as in the official code.
    noise = jax.random.normal(noise_key, batch.action.shape)
    critics, metrics = _update_critics(config, optimizers.general, learner, batch, noise)
    trusted = crossq.trusted_critics(config.stale_critic, learner.critics, critics)
    source, temperature, source_metrics = _update_source(
        config, optimizers, learner, trusted, batch.obs, noise
    )
    metrics |= source_metrics
    if learner.velocity is None:
        return QflexLearner(critics, source, None, temperature), metrics
    flow_obs = batch.next_obs if config.flow_states == "next" else batch.obs
    number = math.ceil(config.flow_share * noise.shape[0])
    velocity, flow_metrics = _update_velocity(
        config,
        optimizers.general,
        metric,
        learner.velocity,
        for_inference(source),
        trusted,
        flow_obs[:number],
        noise[:number],
        time=jax.random.uniform(time_key, (number, 1)),
    )
    learner = QflexLearner(critics, source, velocity, temperature)
    states = parallel.share(SUPERIORITY_STATES)
    gained = _flow_metrics(config, learner, trusted, batch.obs[:states], noise[:states])
    return learner, metrics | flow_metrics | gained


def _update_critics(config, optimizer, learner: QflexLearner, batch: Transition, noise):
    """CrossQ's critic step on the next actions of the source, or of the flow."""
    source = for_inference(learner.source)
    next_action, log_prob = sample_source(config, source, batch.next_obs, noise)
    if config.bootstrap == "flow":
        next_action = sample_flow(config, learner.velocity, batch.next_obs, next_action)
        if config.clip_stored_action:
            next_action = jnp.clip(next_action, -1.0, 1.0)
    bonus = None
    if learner.temperature is not None:
        bonus = -jnp.exp(learner.temperature.log_alpha) * log_prob
    batch = batch._replace(reward=config.reward_scale * batch.reward)
    return crossq.update_critics(
        optimizer, learner.critics, batch, next_action, bonus, config.gamma, config.renorm_warmup
    )


def combined_value(config: QflexConfig, critics: tuple[InferenceMLP, ...], action) -> jax.Array:
    """Returns minimum or mean of the values [B] of actions [B, A]; observations are fixed."""
    # One product after the other: twice as fast on XLA:CPU as all batched by vmap.
    values = [networks.apply(critic, action)[:, 0] for critic in critics]
    if config.gradient == "min":
        return reduce(jnp.minimum, values)
    return reduce(jnp.add, values) / len(values)


def _value_at(config: QflexConfig, critics: tuple[InferenceMLP, ...], obs) -> Callable:
    """Returns the value [B] as a function of actions [B, A], at observations [B, O]."""
    at_obs = tuple(networks.fix_inputs(critic, obs) for critic in critics)
    return partial(combined_value, config, at_obs)


def _update_source(config, optimizers: Optimizers, learner: QflexLearner, critics, obs, noise):
    """The source policy climbs the critics at the batch's observations."""
    value = _value_at(config, critics, obs)
    alpha = 0.0 if learner.temperature is None else jnp.exp(learner.temperature.log_alpha)

    def loss(params: MLP):
        output, batch_stats = networks.apply_train(
            params, learner.source.batch_stats, obs, config.renorm_warmup
        )
        mean, log_std = _gaussian(output)
        action, log_prob = _squashed(config, mean, log_std, noise)
        return jnp.mean(alpha * log_prob - value(action)), (batch_stats, log_std, log_prob)

    (policy_loss, aux), gradient = jax.value_and_grad(loss, has_aux=True)(learner.source.params)
    batch_stats, log_std, log_prob = aux
    source = apply_gradients(optimizers.source, learner.source, gradient, batch_stats)
    metrics: Metrics = {
        "policy_loss": policy_loss,
        # Of the Gaussian before the squashing, in nats per actuator.
        "source_entropy": jnp.mean(log_std) + 0.5 * math.log(2.0 * math.pi * math.e),
    }
    temperature = learner.temperature
    if temperature is not None:
        excess = -jnp.mean(log_prob) - config.target_entropy * noise.shape[-1]
        temperature = common.adapt_temperature(optimizers.temperature, temperature, excess)
        metrics["temperature"] = jnp.exp(temperature.log_alpha)
    return source, temperature, metrics


def _update_velocity(
    config, optimizer, metric, velocity: TrainState, source: InferenceMLP, critics, obs, noise, time
):
    """The velocity field learns to move the source's actions as the ascent moves them."""
    start, _ = sample_source(config, source, obs, noise)
    end = flow.ascend(
        _value_at(config, critics, obs),
        start,
        config.ascent_steps,
        config.ascent_step_size,
        config.clip_target,
        metric,
    )

    def loss(params: MLP):
        def slope(action, time):
            inputs = jnp.concatenate([obs, action, time], axis=-1)
            return networks.apply_train(params, velocity.batch_stats, inputs, config.renorm_warmup)

        return flow.flow_matching_loss(slope, start, end, time)

    (flow_loss, batch_stats), gradient = jax.value_and_grad(loss, has_aux=True)(velocity.params)
    metrics = {
        "flow_loss": flow_loss,
        # Root mean square over actuators of what the ascent moved.
        "displacement": jnp.mean(jnp.sqrt(jnp.mean(jnp.square(end - start), axis=-1))),
    }
    return apply_gradients(optimizer, velocity, gradient, batch_stats), metrics


def _flow_metrics(config, learner: QflexLearner, critics, obs, noise) -> Metrics:
    """Compares the flow's actions with those of the source that they start from (Eq. 18)."""
    start, _ = sample_source(config, for_inference(learner.source), obs, noise)
    action = sample_flow(config, learner.velocity, obs, start)
    value = _value_at(config, critics, obs)
    better = value(action) > value(start)
    return {
        "flow_superiority": jnp.mean(better.astype(jnp.float32)),
        "clipped_fraction": jnp.mean((jnp.abs(action) > 1.0).astype(jnp.float32)),
    }
