"""SAC: soft actor-critic with a learned temperature (Haarnoja et al., arXiv 1812.05905).

Twin critics with Polyak-averaged targets learn soft values; a tanh-squashed Gaussian climbs their
minimum plus its entropy; the temperature keeps that entropy at a target.
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mjx_qflex.algos import common
from mjx_qflex.algos.common import Temperature, TrainState
from mjx_qflex.algos.gaussian import TanhGaussian
from mjx_qflex.networks import MLP, Activation
from mjx_qflex.types import Algorithm, EnvSpec, Transition


@dataclasses.dataclass(frozen=True)
class SacConfig:
    """Options of SAC. The defaults are the paper's (appendix D)."""

    width: int = 256  # units of each hidden layer of every network
    depth: int = 2  # hidden layers
    activation: Activation = "relu"
    learning_rate: float = 3e-4  # of critics, policy and temperature
    gamma: float = 0.99  # discount per control step
    tau: float = 0.005  # share of the new critics in the targets, at each update
    reward_scale: float = 1.0  # factor on rewards before the critics see them
    initial_alpha: float = 1.0  # not in the paper; 1 in the authors' code
    target_entropy: float = -1.0  # nats per actuator
    tanh_correction: bool = True  # the policy's density counts how tanh squeezes volumes
    log_std_range: tuple[float, float] = (-20.0, 2.0)  # not in the paper; so in its code


PRESETS: dict[str, SacConfig] = {
    "default": SacConfig(),
    # What Qflex's authors ran (relax/algorithm/sac.py of the official code, on the networks of the
    # repository that it builds on; that the two agree there is assumed).
    "qflex_paper": SacConfig(
        depth=3,
        activation="gelu",
        reward_scale=0.2,
        initial_alpha=math.e,  # the logarithm starts at 1
        tanh_correction=False,
        log_std_range=(-20.0, 0.5),
    ),
}


class SacLearner(NamedTuple):
    """All that SAC learns."""

    critics: tuple[TrainState, ...]  # two of (obs, action) -> value
    targets: tuple[MLP, ...]  # their slow copies
    policy: TrainState  # obs -> mean and log standard deviation before tanh
    temperature: Temperature


def make(config: SacConfig, spec: EnvSpec) -> Algorithm:
    """Builds SAC for an environment.

    Raises:
      UserError: an option's value is refused.
    """
    common.check_options("sac", config)
    optimizer = common.adam(config.learning_rate)
    hidden = (config.width,) * config.depth

    def init(key: jax.Array) -> SacLearner:
        critic_key, policy_key = jax.random.split(key)
        sizes = (spec.observation_size + spec.action_size, *hidden, 1)
        critics = common.init_critics(optimizer, critic_key, sizes)
        sizes = (spec.observation_size, *hidden, 2 * spec.action_size)
        return SacLearner(
            critics=critics,
            targets=common.copied(common.params_of(critics)),
            policy=common.init_network(optimizer, policy_key, sizes),
            temperature=common.init_temperature(optimizer, config.initial_alpha),
        )

    def policy(learner: SacLearner):
        """A Gaussian; what judges its actions are the target critics."""

        def value(obs: jax.Array):
            return common.min_q(common.critics_at(learner.targets, obs), config.activation)

        return _gaussian(config).policy(learner.policy, value)

    def update(learner: SacLearner, batch: Transition, key: jax.Array):
        return _update(config, optimizer, learner, batch, key)

    return Algorithm(init, policy, update)


def _gaussian(config: SacConfig) -> TanhGaussian:
    return TanhGaussian(config.log_std_range, config.tanh_correction, config.activation)


def _update(config: SacConfig, optimizer, learner: SacLearner, batch: Transition, key):
    """One update: critics, policy, temperature, targets, in this order."""
    next_key, key = jax.random.split(key)
    alpha = jnp.exp(learner.temperature.log_alpha)

    # Eq. 5: the target holds the entropy of the next action.
    noise = jax.random.normal(next_key, batch.action.shape)
    next_action, log_prob = _gaussian(config).sample(learner.policy, batch.next_obs, noise)
    targets = common.critics_at(learner.targets, batch.next_obs)
    next_value = common.min_q(targets, config.activation)(next_action)
    soft_value = next_value - alpha * log_prob
    target = config.reward_scale * batch.reward + config.gamma * batch.discount * soft_value
    critics, metrics = common.td_step(optimizer, learner.critics, batch, target, config.activation)

    # Eq. 9, on the critics just updated.
    noise = jax.random.normal(key, batch.action.shape)
    new_critics = common.critics_at(critics, batch.obs)
    policy, policy_loss, entropy = common.soft_policy_step(
        optimizer,
        learner.policy,
        lambda output: _gaussian(config).head(output, noise),
        common.min_q(new_critics, config.activation),
        alpha,
        batch.obs,
        config.activation,
    )

    # Eq. 18.
    excess = (entropy - config.target_entropy) * batch.action.shape[-1]
    temperature = common.adapt_temperature(optimizer, learner.temperature, excess)
    learner = SacLearner(
        critics=critics,
        targets=common.polyak(config.tau, common.params_of(critics), learner.targets),
        policy=policy,
        temperature=temperature,
    )
    return learner, metrics | {
        "policy_loss": policy_loss,
        "policy_entropy": entropy,
        "temperature": jnp.exp(temperature.log_alpha),
    }
