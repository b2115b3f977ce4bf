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
from mjx_qflex.algos.common import Network, TanhGaussian, Temperature
from mjx_qflex.networks import MLP, Activation
from mjx_qflex.types import Algorithm, Mode, PolicyParts, Transition


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

    critics: tuple[Network, ...]  # two of (obs, action) -> value
    targets: tuple[MLP, ...]  # their slow copies
    policy: Network  # obs -> mean and log standard deviation before tanh
    temperature: Temperature


def make(
    config: SacConfig, observation_size: int, action_size: int, axis_name: str | None = None
) -> Algorithm:
    """Builds SAC for observations [O] and actions [A] in [-1, 1], over `axis_name`'s devices.

    Raises:
      UserError: an option's value is refused.
    """
    common.check_options("sac", config)
    optimizer = common.adam(config.learning_rate, axis_name)
    hidden = (config.width,) * config.depth

    def init(key: jax.Array) -> SacLearner:
        critic_key, policy_key = jax.random.split(key)
        sizes = (observation_size + action_size, *hidden, 1)
        critics = common.init_critics(optimizer, critic_key, sizes)
        sizes = (observation_size, *hidden, 2 * action_size)
        return SacLearner(
            critics=critics,
            targets=common.copied(tuple(critic.params for critic in critics)),
            policy=common.init_network(optimizer, policy_key, sizes),
            temperature=common.init_temperature(optimizer, config.initial_alpha),
        )

    def act(learner: SacLearner, obs, carry, key, mode: Mode):
        return _gaussian(config).act(learner.policy, obs, key, mode), carry

    def update(learner: SacLearner, batch: Transition, key: jax.Array):
        return _update(config, optimizer, learner, batch, key)

    return Algorithm(init, lambda num_envs: (), act, update, axis_name)


def policy_parts(config: SacConfig, learner: SacLearner, obs: jax.Array) -> PolicyParts:
    """Takes the policy apart at observations [N, O]; its value is that of the target critics."""
    value = common.min_value(common.at(learner.targets, obs), config.activation)
    return _gaussian(config).parts(learner.policy, obs, value)


def _gaussian(config: SacConfig) -> TanhGaussian:
    return TanhGaussian(config.log_std_range, config.tanh_correction, config.activation)


def _update(config: SacConfig, optimizer, learner: SacLearner, batch: Transition, key):
    """One update: critics, policy, temperature, targets, in this order."""
    next_key, key = jax.random.split(key)
    alpha = jnp.exp(learner.temperature.log_alpha)

    # Eq. 5: the target holds the entropy of the next action.
    noise = jax.random.normal(next_key, batch.action.shape)
    next_action, log_prob = _gaussian(config).sample(learner.policy, batch.next_obs, noise)
    targets = common.at(learner.targets, batch.next_obs)
    next_value = common.min_value(targets, config.activation)(next_action)
    soft_value = next_value - alpha * log_prob
    target = config.reward_scale * batch.reward + config.gamma * batch.discount * soft_value
    critics, metrics = common.td_step(optimizer, learner.critics, batch, target, config.activation)

    # Eq. 9, on the critics just updated.
    noise = jax.random.normal(key, batch.action.shape)
    guides = common.at(tuple(critic.params for critic in critics), batch.obs)
    policy, policy_loss, entropy = common.climb(
        optimizer,
        learner.policy,
        lambda output: _gaussian(config).head(output, noise),
        common.min_value(guides, config.activation),
        alpha,
        batch.obs,
        config.activation,
    )

    # Eq. 18.
    excess = (entropy - config.target_entropy) * batch.action.shape[-1]
    temperature = common.adapt_temperature(optimizer, learner.temperature, excess)
    params = tuple(critic.params for critic in critics)
    learner = SacLearner(
        critics=critics,
        targets=common.averaged(config.tau, params, learner.targets),
        policy=policy,
        temperature=temperature,
    )
    return learner, metrics | {
        "policy_loss": policy_loss,
        "policy_entropy": entropy,
        "temperature": jnp.exp(temperature.log_alpha),
    }
