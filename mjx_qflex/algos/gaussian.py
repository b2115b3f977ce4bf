"""Gaussian policies, squashed by tanh."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mjx_qflex import networks
from mjx_qflex.algos.common import TrainState, for_inference
from mjx_qflex.networks import Activation
from mjx_qflex.types import FlowParts, Policy, stateless_policy

LARGEST_TANH = 1.0 - 1e-6  # of an action whose density is asked for


def mean_and_log_std(
    output: jax.Array, log_std_range: tuple[float, float]
) -> tuple[jax.Array, jax.Array]:
    """Splits a policy's output [B, 2 A] into mean and log standard deviation [B, A]."""
    mean, log_std = jnp.split(output, 2, axis=-1)
    return mean, jnp.clip(log_std, *log_std_range)


def normal_log_density(noise: jax.Array, log_std: jax.Array) -> jax.Array:
    """Returns log densities [B, A] of the draws `mean + std * noise`."""
    return -0.5 * jnp.square(noise) - log_std - 0.5 * math.log(2.0 * math.pi)


def log_tanh_slope(x: jax.Array) -> jax.Array:
    """Returns log(1 - tanh(x)^2), in a form that stays finite for large x."""
    return 2.0 * (math.log(2.0) - x - jax.nn.softplus(-2.0 * x))


def tanh_gaussian(
    mean: jax.Array, log_std: jax.Array, noise: jax.Array, correction: bool
) -> tuple[jax.Array, jax.Array]:
    """Returns actions [B, A] for standard normal `noise`, and log densities [B].

    Without `correction` the density is the one before squashing by tanh, as if tanh did not
    change volumes; its entropy can then grow without bound.
    """
    log_prob = normal_log_density(noise, log_std)
    before = mean + jnp.exp(log_std) * noise
    if correction:
        log_prob = log_prob - log_tanh_slope(before)
    return jnp.tanh(before), jnp.sum(log_prob, axis=-1)


class TanhGaussian(NamedTuple):
    """A Gaussian policy squashed by tanh, of a network obs -> mean and log standard deviation."""

    log_std_range: tuple[float, float]
    correction: bool  # of the density, by how tanh squeezes volumes
    activation: Activation = "relu"  # of the network

    def head(self, output: jax.Array, noise: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns actions [B, A] and log densities [B] for outputs [B, 2 A] and normal `noise`."""
        return tanh_gaussian(*mean_and_log_std(output, self.log_std_range), noise, self.correction)

    def sample(self, network: TrainState, obs: jax.Array, noise: jax.Array):
        """Returns actions [B, A] and log densities [B] at observations [B, O]."""
        output = networks.apply(for_inference(network), obs, self.activation)
        return self.head(output, noise)

    def policy(self, network: TrainState, value: Callable[[jax.Array], Callable]) -> Policy:
        """Returns the policy; its mode is tanh of the mean.

        Args:
          network: obs [N, O] -> mean and log standard deviation [N, 2 A].
          value: obs [N, O] -> what judges actions: [N, A] -> [N].
        """
        action_size = network.params.layers[-1].bias.size // 2

        def sample(obs: jax.Array, key: jax.Array) -> jax.Array:
            noise = jax.random.normal(key, (obs.shape[0], action_size))
            return self.sample(network, obs, noise)[0]

        def mode(obs: jax.Array) -> jax.Array:
            return self.sample(network, obs, jnp.zeros((obs.shape[0], action_size)))[0]

        def log_prob(obs: jax.Array, action: jax.Array) -> jax.Array:
            output = networks.apply(for_inference(network), obs, self.activation)
            mean, log_std = mean_and_log_std(output, self.log_std_range)
            before = jnp.arctanh(jnp.clip(action, -LARGEST_TANH, LARGEST_TANH))
            noise = (before - mean) * jnp.exp(-log_std)
            return tanh_gaussian(mean, log_std, noise, correction=True)[1]

        def parts(obs: jax.Array) -> FlowParts:
            return FlowParts(
                start=lambda noise: self.sample(network, obs, noise)[0],
                mode_noise=jnp.zeros((obs.shape[0], action_size)),
                velocity=None,
                value=value(obs),
            )

        return stateless_policy(sample, mode, log_prob, parts)
