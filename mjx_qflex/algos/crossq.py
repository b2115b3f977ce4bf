"""CrossQ: SAC without target networks, thanks to batch normalisation (arXiv 1902.05605, ICLR 2024).

The critics see (obs, action) and (next obs, next action) in one batch, so that both halves share
their statistics; that makes slow copies of the critics unnecessary.
"""

import dataclasses
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from mjx_qflex import networks, parallel
from mjx_qflex.algos import common
from mjx_qflex.algos.common import Temperature, TrainState
from mjx_qflex.algos.gaussian import TanhGaussian
from mjx_qflex.networks import MLP, InferenceMLP
from mjx_qflex.types import Algorithm, EnvSpec, Metrics, Transition


@dataclasses.dataclass(frozen=True)
class CrossqConfig:
    """Options of CrossQ. The defaults are the paper's.

    The epsilon of batch renormalisation is 1e-5 here, as Qflex has it (table 2); the paper's code
    has 1e-3.
    """

    width: int = 256  # units of each hidden layer of the policy
    critic_width: int | None = 2048  # of the critics'; None is `width`
    depth: int = 2  # hidden layers
    learning_rate: float = 1e-3  # of critics, policy and temperature
    beta1: float = 0.5  # Adam's decay of the mean gradient, of critics and policy; temperature: 0.9
    gamma: float = 0.99  # discount per control step
    reward_scale: float = 1.0  # factor on rewards before the critics see them
    policy_delay: int = 3  # critic updates to one of policy and temperature, with the last of them
    initial_alpha: float = 1.0
    target_entropy: float = -1.0  # nats per actuator
    tanh_correction: bool = True  # the policy's density counts how tanh squeezes volumes
    log_std_range: tuple[float, float] = (-20.0, 2.0)
    renorm_warmup: int = 100_000  # training calls before batch norm becomes batch renorm
    stale_critic: bool = False  # the policy sees the critics from before this update


PRESETS: dict[str, CrossqConfig] = {
    "default": CrossqConfig(),
    # What Qflex's authors ran (relax/algorithm/crossq.py of the official code).
    "qflex_paper": CrossqConfig(
        critic_width=None,
        depth=3,
        learning_rate=3e-4,
        policy_delay=1,
        tanh_correction=False,
        renorm_warmup=10,  # of the batch renormalisation that all their networks share
        stale_critic=True,
    ),
}


class CrossqLearner(NamedTuple):
    """All that CrossQ learns."""

    critics: tuple[TrainState, ...]  # two of (obs, action) -> value
    actor: "Actor"
    count: jax.Array  # int32 [], updates so far


class Actor(NamedTuple):
    """What every `policy_delay`-th update changes, and what it reports until the next."""

    policy: TrainState  # obs -> mean and log standard deviation before tanh
    temperature: Temperature
    loss: jax.Array  # []
    entropy: jax.Array  # [] nats per actuator


def make(config: CrossqConfig, spec: EnvSpec) -> Algorithm:
    """Builds CrossQ for an environment.

    Raises:
      UserError: an option's value is refused.
    """
    common.check_options("crossq", config)
    optimizer = common.adam(config.learning_rate, config.beta1)
    temperature_optimizer = common.adam(config.learning_rate)

    def init(key: jax.Array) -> CrossqLearner:
        critic_key, policy_key = jax.random.split(key)
        wide = (config.critic_width or config.width,) * config.depth
        sizes = (spec.observation_size, *(config.width,) * config.depth, 2 * spec.action_size)
        pair = spec.observation_size + spec.action_size
        return CrossqLearner(
            critics=common.init_critics(optimizer, critic_key, (pair, *wide, 1), batch_norm=True),
            actor=Actor(
                policy=common.init_network(optimizer, policy_key, sizes, batch_norm=True),
                temperature=common.init_temperature(temperature_optimizer, config.initial_alpha),
                loss=jnp.zeros(()),
                entropy=jnp.zeros(()),
            ),
            count=jnp.zeros((), jnp.int32),
        )

    def policy(learner: CrossqLearner):
        """A Gaussian; there are no target critics to judge its actions."""

        def value(obs: jax.Array):
            return common.min_q(common.critics_at(learner.critics, obs))

        return _gaussian(config).policy(learner.actor.policy, value)

    def update(learner: CrossqLearner, batch: Transition, key: jax.Array):
        return _update(config, optimizer, temperature_optimizer, learner, batch, key)

    return Algorithm(init, policy, update)


def update_critics(
    optimizer: optax.GradientTransformation,
    critics: tuple[TrainState, ...],
    batch: Transition,
    next_action: jax.Array,
    next_bonus: jax.Array | None,
    gamma: float,
    warmup: int,
) -> tuple[tuple[TrainState, ...], Metrics]:
    """CrossQ's critic step: no target network, and both halves of the batch share statistics.

    Args:
      optimizer: of the critics.
      critics: with batch norm.
      batch: transitions; the reward is taken as it is.
      next_action: [B, A], at the next observations.
      next_bonus: [B], what the next value counts besides the critics, such as entropy; None is 0.
      gamma: discount.
      warmup: of batch renormalisation.

    Returns:
      The critics and metrics.
    """
    inputs = jnp.concatenate(
        [
            jnp.concatenate([batch.obs, batch.action], axis=-1),
            jnp.concatenate([batch.next_obs, next_action], axis=-1),
        ]
    )

    def loss(params: tuple[MLP, ...]):
        outputs = [
            networks.apply_train(param, critic.batch_stats, inputs, warmup)
            for param, critic in zip(params, critics, strict=True)
        ]
        values, next_values = jnp.split(jnp.stack([value[:, 0] for value, _ in outputs]), 2, axis=1)
        next_value = jnp.min(next_values, axis=0)
        if next_bonus is not None:
            next_value = next_value + next_bonus
        target = batch.reward + gamma * batch.discount * next_value
        errors = jnp.mean(jnp.square(values - jax.lax.stop_gradient(target)[None]), axis=1)
        return jnp.sum(errors), (errors, values, [batch_stats for _, batch_stats in outputs])

    gradients, (errors, values, batch_stats) = jax.grad(loss, has_aux=True)(
        common.params_of(critics)
    )
    step = partial(common.apply_gradients, optimizer)
    critics = tuple(map(step, critics, gradients, batch_stats))
    return critics, common.value_metrics(errors, values)


def trusted_critics(
    stale: bool, old: tuple[TrainState, ...], new: tuple[TrainState, ...]
) -> tuple[InferenceMLP, ...]:
    """Returns the critics that a policy is moved by: `new`, or with the parameters of `old`.

    Batch statistics are the new ones either way, as in the code of Qflex's authors.
    """
    return tuple(
        networks.for_inference(before.params if stale else after.params, after.batch_stats)
        for before, after in zip(old, new, strict=True)
    )


def _gaussian(config: CrossqConfig) -> TanhGaussian:
    return TanhGaussian(config.log_std_range, config.tanh_correction)


def _update(
    config: CrossqConfig,
    optimizer: optax.GradientTransformation,
    temperature_optimizer: optax.GradientTransformation,
    learner: CrossqLearner,
    batch: Transition,
    key: jax.Array,
):
    """One update: critics, then policy and temperature where it is their turn."""
    next_key, key = jax.random.split(key)
    noise = jax.random.normal(next_key, batch.action.shape)
    next_action, log_prob = _gaussian(config).sample(learner.actor.policy, batch.next_obs, noise)
    critics, metrics = update_critics(
        optimizer,
        learner.critics,
        batch._replace(reward=config.reward_scale * batch.reward),
        next_action,
        -jnp.exp(learner.actor.temperature.log_alpha) * log_prob,
        config.gamma,
        config.renorm_warmup,
    )
    trusted = trusted_critics(config.stale_critic, learner.critics, critics)

    def advance(actor: Actor) -> Actor:
        optimizers = optimizer, temperature_optimizer
        return _update_actor(config, *optimizers, actor, trusted, batch.obs, key)

    actor = common.every(config.policy_delay, learner.count + 1, advance, learner.actor)
    return CrossqLearner(critics, actor, learner.count + 1), metrics | {
        "policy_loss": actor.loss,
        "policy_entropy": actor.entropy,
        "temperature": jnp.exp(actor.temperature.log_alpha),
    }


def _update_actor(
    config: CrossqConfig,
    optimizer: optax.GradientTransformation,
    temperature_optimizer: optax.GradientTransformation,
    actor: Actor,
    trusted: tuple[InferenceMLP, ...],
    obs,
    key,
) -> Actor:
    """The policy climbs the critics' minimum plus its entropy; the temperature follows."""
    critics = tuple(networks.fix_inputs(critic, obs) for critic in trusted)
    action_size = actor.policy.params.layers[-1].bias.size // 2
    noise = jax.random.normal(key, (obs.shape[0], action_size))
    policy, loss, entropy = common.soft_policy_step(
        optimizer,
        actor.policy,
        lambda output: _gaussian(config).head(output, noise),
        common.min_q(critics),
        jnp.exp(actor.temperature.log_alpha),
        obs,
        "relu",
        config.renorm_warmup,
    )
    excess = (entropy - config.target_entropy) * action_size
    temperature = common.adapt_temperature(temperature_optimizer, actor.temperature, excess)
    return Actor(policy, temperature, *parallel.mean((loss, entropy)))
