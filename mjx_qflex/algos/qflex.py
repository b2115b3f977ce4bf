"""Qflex: exploration by a flow that a critic guides (arXiv 2601.19707).

Three learners share each batch. Twin critics are trained as in CrossQ, without target networks. A
Gaussian source policy climbs their minimum. A velocity field learns to carry the source's actions
to where a few steps of gradient ascent on the critics would bring them, and acting follows that
field. The paper and its official code (github.com/LNSGroup/Qflex) differ in a dozen places; each
has a switch in `QflexConfig`, and `PRESETS` holds both settings.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from mjx_qflex import flow, networks
from mjx_qflex.algos import common, crossq
from mjx_qflex.algos.common import Network, Optimizer, Temperature, descend, folded
from mjx_qflex.errors import UserError
from mjx_qflex.networks import MLP, Folded, Linear
from mjx_qflex.types import Algorithm, Metrics, Mode, PolicyParts, Transition

LOG_STD_RANGE = (-20.0, 2.0)
SUPERIORITY_STATES = 32  # of a batch; sampling the flow for all would cost a fifth of an update


@dataclasses.dataclass(frozen=True)
class QflexConfig:
    """Options of Qflex. The defaults are `PRESETS["default"]`."""

    width: int = 256  # units of each hidden layer of every network (paper: 1024 for 700 muscles)
    depth: int = 3  # hidden layers
    learning_rate: float = 3e-4
    source_learning_rate: float | None = None  # of the source policy; None: as the others
    beta1: float = 0.5  # Adam's decay of the mean gradient
    gamma: float = 0.99  # discount per control step
    reward_scale: float = 1.0  # factor on rewards in the critics' target
    initial_std: float = 1.0  # of the source before any update, ahead of the squashing
    output_gain: float = 1.0  # factor on every network's initial output kernel; see _init
    ascent_steps: int = 20  # N, steps of gradient ascent on the critic
    ascent_step_size: float = 0.01  # eta, factor on the critic's gradient
    # Of the flow when acting; one lasts dt = 1 / euler_steps. 0: no flow, the source alone acts.
    euler_steps: int = 20
    flow_states: Literal["next", "current"] = "next"  # observations that the flow is trained on
    # Share of each batch that the flow is trained on; its ascent is most of an update.
    flow_share: float = 1.0
    bootstrap: Literal["source", "flow"] = "source"  # next action in the critic's target
    clip_target: bool = False  # project the ascent's iterates to the box of valid actions
    clip_stored_action: bool = False  # clip the flow's actions before they are stored
    tanh_source: bool = True  # squash the Gaussian source by tanh, else clip its draws
    entropy: bool = False  # soft values and a learned temperature, as in SAC and CrossQ
    target_entropy: float = -1.0  # nats per actuator, where `entropy` is on
    euler_grid: flow.EulerGrid = "right"  # end of an Euler step that its velocity is taken at
    gradient: Literal["min", "mean"] = "min"  # of the two critics, for policy and ascent
    stale_critic: bool = True  # policy and ascent see the critics from before this update
    renorm_warmup: int = 10  # training calls before batch norm becomes batch renorm
    eval_noise: Literal["fixed", "mean"] = "fixed"  # evaluation: one fixed draw, or none
    batch_norm: Literal["everywhere", "critic"] = "everywhere"  # networks that have it


_CODE = QflexConfig(
    # What commit 0be8acf of the official code does (relax/algorithm/flow_exp.py,
    # relax/network/{flow,blocks}.py, relax/utils/flow_matching.py); with equal weights, batches and
    # draws 30 updates agree to 3e-7, but for two details of batch normalisation. Theirs starts
    # running variances at 0, ours at 1, which the first acting step and update alone can see. And
    # after the warm-up theirs divides by sqrt(var / r^2 + eps), as CrossQ's authors do, where ours
    # is Ioffe's formula, r / sqrt(var + eps).
    flow_states="next",  # the ascent and the flow loss use next_obs
    bootstrap="source",  # the source network in evaluation mode gives the next action
    clip_target=False,  # bounds are made, but only logged
    clip_stored_action=False,  # the environment's wrapper clips, the buffer keeps what came
    tanh_source=True,  # evaluate_reference returns tanh of the draw
    entropy=False,  # log-probabilities are computed, but enter no loss
    euler_grid="right",  # times 0.05, 0.10, ..., 1.00
    gradient="min",  # pointwise minimum of both critics
    stale_critic=True,  # a "target" copy with rate 1, refreshed at the end of an update
    renorm_warmup=10,  # warmup_th of the BatchRenorm block
    eval_noise="fixed",  # one key for all steps of an evaluation
    batch_norm="everywhere",  # critics, source and velocity field
)
_PAPER = QflexConfig(
    # Where the text is silent, the code's setting stands.
    flow_states="current",  # Algorithm 1 builds the flow on the sampled states
    bootstrap="flow",  # the next action is drawn from the policy, which is the flow
    clip_target=True,  # the ascent keeps actions valid
    clip_stored_action=True,  # the policy's actions lie in the action space
    tanh_source=False,  # the source is a Gaussian; clipped, since its actions are to be valid
    entropy=False,  # no entropy term in the losses
    euler_grid="left",  # the explicit Euler method; the text names no other grid
    gradient="min",  # clipped double Q, as in the code
    stale_critic=False,  # no target network
    renorm_warmup=10,  # not stated
    eval_noise="fixed",  # not stated
    batch_norm="critic",  # batch normalisation within the Q-network
)
PRESETS: dict[str, QflexConfig] = {
    # The setting of the code: on chain_reach and arm_reach it learns better than the paper's, and
    # no single switch beats it by more than the noise (experiments/qflex_switches).
    "default": QflexConfig(),
    "code": _CODE,
    "paper": _PAPER,
}


class QflexLearner(NamedTuple):
    """All that Qflex learns. The stale critics are the ones an update starts from: no copy."""

    critics: tuple[Network, ...]  # two of (obs, action) -> value
    source: Network  # obs -> mean and log standard deviation of the Gaussian
    velocity: Network | None  # (obs, action, time) -> velocity of the action; None without flow
    temperature: Temperature | None  # None without entropy


class Optimizers(NamedTuple):
    general: Optimizer
    source: Optimizer  # of the source policy's network
    temperature: Optimizer  # where there is one, with Adam's usual decay as in CrossQ


def make(
    config: QflexConfig,
    observation_size: int,
    action_size: int,
    axis_name: str | None = None,
    metric: jax.Array | None = None,
) -> Algorithm:
    """Builds Qflex for observations [O] and actions [A] in [-1, 1].

    Args:
      config: options.
      observation_size: O.
      action_size: A.
      axis_name: of the devices that share each batch; None is one device.
      metric: M of Eq. 11, which turns the critic's gradient: its diagonal [A], or in full [A, A];
        None is the identity.

    Raises:
      UserError: an option's value is refused.
    """
    common.check_options("qflex", config)
    if metric is not None and metric.shape not in ((action_size,), (action_size,) * 2):
        raise UserError(
            f"the metric has shape {metric.shape}; give ({action_size},) or "
            f"({action_size}, {action_size})"
        )
    rate, source_rate = config.learning_rate, config.source_learning_rate
    source_rate = rate if source_rate is None else source_rate
    optimizers = Optimizers(
        general=common.adam(rate, axis_name, config.beta1),
        source=common.adam(source_rate, axis_name, config.beta1),
        temperature=common.adam(rate, axis_name),
    )

    def init(key: jax.Array) -> QflexLearner:
        return _init(config, optimizers, observation_size, action_size, key)

    def act(learner, obs, carry, key, mode: Mode):
        return _act(config, action_size, learner, obs, key, mode), carry

    def update(learner: QflexLearner, batch: Transition, key: jax.Array):
        return _update(config, optimizers, metric, learner, batch, key)

    return Algorithm(init, lambda num_envs: (), act, update, axis_name)


def _init(config, optimizers: Optimizers, observation_size, action_size, key) -> QflexLearner:
    """A fresh learner.

    A critic's random first gradient grows with the number of actuators and, with a gain of 1, is
    several times the true one where there are 700; source and flow follow it before the data
    could correct it. A small `output_gain` starts the critics flat, the flow at rest, and the
    source at actions near 0.
    """
    hidden = (config.width,) * config.depth
    everywhere = config.batch_norm == "everywhere"

    def network(key, inputs, output_bias, batch_norm, optimizer=optimizers.general) -> Network:
        sizes = (inputs, *hidden, len(output_bias))
        fresh = common.init_network(optimizer, key, sizes, batch_norm)
        *inner, last = fresh.params.layers
        last = Linear(config.output_gain * last.kernel, output_bias)
        return fresh._replace(params=fresh.params._replace(layers=(*inner, last)))

    keys = jax.random.split(key, 4)
    pair = observation_size + action_size
    rest = jnp.zeros(action_size)
    velocity = network(keys[3], pair + 1, rest, everywhere) if config.euler_steps else None
    gaussian_at_rest = jnp.concatenate([rest, jnp.full(action_size, math.log(config.initial_std))])
    temperature = None
    if config.entropy:
        temperature = common.init_temperature(optimizers.temperature, 1.0)
    return QflexLearner(
        critics=tuple(network(key, pair, jnp.zeros(1), True) for key in keys[:2]),
        source=network(keys[2], observation_size, gaussian_at_rest, everywhere, optimizers.source),
        velocity=velocity,
        temperature=temperature,
    )


def _act(config, action_size, learner: QflexLearner, obs, key, mode: Mode) -> jax.Array:
    """Samples the flow at observations [N, O]; returns actions [N, A]."""
    shape = (obs.shape[0], action_size)
    noise = _eval_noise(config, shape) if mode == "eval" else jax.random.normal(key, shape)
    start, _ = sample_source(config, folded(learner.source), obs, noise)
    action = sample_flow(config, learner.velocity, obs, start)
    return jnp.clip(action, -1.0, 1.0) if config.clip_stored_action else action


def _eval_noise(config, shape) -> jax.Array:
    """Returns the source's noise [N, A] in evaluation."""
    draw, key = common.fixed_normal(shape)
    return jnp.zeros(shape) if config.eval_noise == "mean" else draw(key)


def policy_parts(config: QflexConfig, learner: QflexLearner, obs: jax.Array) -> PolicyParts:
    """Takes the policy apart at observations [N, O]; there are no target critics to value it."""
    source = folded(learner.source)
    shape = (obs.shape[0], learner.source.params.layers[-1].bias.size // 2)
    velocity = None if learner.velocity is None else _field(folded(learner.velocity), obs)
    return PolicyParts(
        start=lambda noise: sample_source(config, source, obs, noise)[0],
        eval_noise=_eval_noise(config, shape),
        velocity=velocity,
        value=common.min_value(common.bound(learner.critics, obs)),
    )


def sample_flow(config: QflexConfig, velocity: Network | None, obs, start) -> jax.Array:
    """Carries source actions `start` [B, A] along the velocity field at observations [B, O]."""
    if velocity is None:
        return start
    field = _field(folded(velocity), obs)
    return flow.euler_sample(field, start, config.euler_steps, config.euler_grid)


def _field(velocity: Folded, obs) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Returns the velocity [B, A] as a function of actions [B, A] and times [B, 1]."""
    bound = networks.bind(velocity, obs)
    return lambda action, time: networks.apply_folded(
        bound, jnp.concatenate([action, time], axis=-1)
    )


def gaussian(output: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Splits the source network's output [B, 2 A] into mean and log standard deviation [B, A]."""
    return common.gaussian(output, LOG_STD_RANGE)


def squash(config: QflexConfig, mean, log_std, noise) -> tuple[jax.Array, jax.Array]:
    """Returns the source's actions [B, A] for standard normal `noise`, and log densities [B]."""
    if config.tanh_source:
        return common.tanh_gaussian(mean, log_std, noise, correction=True)
    # Without a bound the mean runs away: the critic has seen no action outside the box.
    action = jnp.clip(mean + jnp.exp(log_std) * noise, -1.0, 1.0)
    return action, jnp.sum(common.normal_log_density(noise, log_std), axis=-1)


def sample_source(config: QflexConfig, source: Folded, obs, noise) -> tuple[jax.Array, jax.Array]:
    """Returns the source's actions [B, A] and their log densities [B] at observations [B, O]."""
    return squash(config, *gaussian(networks.apply_folded(source, obs)), noise)


def combined_value(config: QflexConfig, critics: tuple[Folded, ...], action) -> jax.Array:
    """Returns minimum or mean of the critics' values [B] of actions [B, A]; observations bound."""
    # One product after the other: twice as fast on XLA:CPU as both batched by vmap.
    first, second = (networks.apply_folded(critic, action)[:, 0] for critic in critics)
    return jnp.minimum(first, second) if config.gradient == "min" else 0.5 * (first + second)


def _update(config, optimizers: Optimizers, metric, learner: QflexLearner, batch: Transition, key):
    """One update: critics, source policy, flow, in this order; returns (learner, metrics)."""
    noise_key, time_key = jax.random.split(key)
    # One draw serves bootstrap, source loss and flow, as in the official code.
    noise = jax.random.normal(noise_key, batch.action.shape)
    critics, critic_metrics = _update_critics(config, optimizers.general, learner, batch, noise)
    guides = tuple(
        networks.fold(old.params if config.stale_critic else new.params, new.moments)
        for old, new in zip(learner.critics, critics, strict=True)
    )
    source, temperature, source_metrics = _update_source(
        config, optimizers, learner, guides, batch.obs, noise
    )
    metrics = {**critic_metrics, **source_metrics}
    if learner.velocity is None:
        return QflexLearner(critics, source, None, temperature), metrics
    flow_obs = batch.next_obs if config.flow_states == "next" else batch.obs
    flow_batch = math.ceil(config.flow_share * noise.shape[0])
    time = jax.random.uniform(time_key, (flow_batch, 1))
    velocity, flow_metrics = _update_velocity(
        config,
        optimizers.general,
        metric,
        learner.velocity,
        folded(source),
        guides,
        flow_obs[:flow_batch],
        noise[:flow_batch],
        time,
    )
    learner = QflexLearner(critics, source, velocity, temperature)
    states = optimizers.general.share(SUPERIORITY_STATES)
    judged = _judge_flow(config, learner, guides, batch.obs[:states], noise[:states])
    return learner, {**metrics, **flow_metrics, **judged}


def _update_critics(config, optimizer, learner: QflexLearner, batch: Transition, noise):
    """CrossQ's critic step on the next actions of the source, or of the flow."""
    next_action, log_prob = sample_source(config, folded(learner.source), batch.next_obs, noise)
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


def _update_source(config, optimizers: Optimizers, learner: QflexLearner, guides, obs, noise):
    """The source policy climbs the critics at the batch's observations."""
    critics = tuple(networks.bind(guide, obs) for guide in guides)
    alpha = 0.0 if learner.temperature is None else jnp.exp(learner.temperature.log_alpha)

    def loss(params: MLP):
        output, moments = networks.apply_train(
            params,
            learner.source.moments,
            obs,
            config.renorm_warmup,
            axis_name=optimizers.source.axis_name,
        )
        mean, log_std = gaussian(output)
        action, log_prob = squash(config, mean, log_std, noise)
        value = combined_value(config, critics, action)
        return jnp.mean(alpha * log_prob - value), (moments, log_std, log_prob)

    (policy_loss, (moments, log_std, log_prob)), gradient = jax.value_and_grad(loss, has_aux=True)(
        learner.source.params
    )
    source = descend(optimizers.source, learner.source, gradient, moments)
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
    config, optimizer, metric, velocity: Network, source: Folded, guides, obs, noise, time
):
    """The velocity field learns to move the source's actions as the ascent moves them."""
    start, _ = sample_source(config, source, obs, noise)
    critics = tuple(networks.bind(guide, obs) for guide in guides)
    end = flow.ascend(
        lambda action: combined_value(config, critics, action),
        start,
        config.ascent_steps,
        config.ascent_step_size,
        config.clip_target,
        metric,
    )

    def loss(params: MLP):
        def slope(action, time):
            inputs = jnp.concatenate([obs, action, time], axis=-1)
            return networks.apply_train(
                params,
                velocity.moments,
                inputs,
                config.renorm_warmup,
                axis_name=optimizer.axis_name,
            )

        return flow.flow_matching_loss(slope, start, end, time)

    (flow_loss, moments), gradient = jax.value_and_grad(loss, has_aux=True)(velocity.params)
    metrics = {
        "flow_loss": flow_loss,
        # Root mean square over actuators of what the ascent moved.
        "displacement": jnp.mean(jnp.sqrt(jnp.mean(jnp.square(end - start), axis=-1))),
    }
    return descend(optimizer, velocity, gradient, moments), metrics


def _judge_flow(config, learner: QflexLearner, guides, obs, noise) -> Metrics:
    """Compares the flow's actions with those of the source that they start from (Eq. 18)."""
    start, _ = sample_source(config, folded(learner.source), obs, noise)
    action = sample_flow(config, learner.velocity, obs, start)
    critics = tuple(networks.bind(guide, obs) for guide in guides)
    better = combined_value(config, critics, action) > combined_value(config, critics, start)
    return {
        "flow_superiority": jnp.mean(better.astype(jnp.float32)),
        "clipped_fraction": jnp.mean((jnp.abs(action) > 1.0).astype(jnp.float32)),
    }
