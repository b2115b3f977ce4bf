"""Denoising diffusion of actions, as pure functions (DDPM, Ho et al., arXiv 2006.11239).

Steps count from 0, the cleanest, to T - 1. A network predicts the noise that was mixed into an
action; `sample` starts from noise and removes it step by step.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mjx_qflex import networks
from mjx_qflex.networks import MLP, Activation

TIME_SIZE = 16  # numbers that tell a network the step
ACTIVATION: Activation = "mish"  # of every noise network, as all papers here have it
Clip = Literal["start", "iterate"]


class Schedule(NamedTuple):
    """How much noise each step adds, [T] each."""

    beta: np.ndarray  # variance that the step adds
    alpha_bar: np.ndarray  # share of the clean action's variance that is left after the step
    alpha_bar_before: np.ndarray  # the same before the step

    @property
    def num_steps(self) -> int:
        return len(self.beta)


def _schedule(beta: np.ndarray) -> Schedule:
    alpha_bar = np.cumprod(1.0 - beta)
    before = np.append(1.0, alpha_bar[:-1])
    return Schedule(*(x.astype(np.float32) for x in (beta, alpha_bar, before)))


def linear_schedule(num_steps: int, scale: float) -> Schedule:
    """Returns variances that rise linearly from 1e-4 to 0.999, times `scale`."""
    return _schedule(scale * np.linspace(1e-4, 0.999, num_steps))


def variance_preserving_schedule(num_steps: int) -> Schedule:
    """Returns the steps of the variance-preserving process whose rate rises from 0.1 to 10."""
    low, high = 0.1, 10.0
    step = np.arange(1, num_steps + 1)
    rate = low / num_steps + 0.5 * (high - low) * (2 * step - 1) / num_steps**2
    return _schedule(-np.expm1(-rate))


def noised(schedule: Schedule, action: jax.Array, noise: jax.Array, step: jax.Array) -> jax.Array:
    """Returns clean actions [B, A] as they are after `step` [B] with standard normal `noise`."""
    left = jnp.asarray(schedule.alpha_bar)[step][:, None]
    return jnp.sqrt(left) * action + jnp.sqrt(1.0 - left) * noise


def denoised(schedule: Schedule, action: jax.Array, noise: jax.Array, step: jax.Array) -> jax.Array:
    """Inverts `noised`: the clean actions [B, A] that `noise` would have led from to `action`."""
    left = jnp.asarray(schedule.alpha_bar)[step][:, None]
    return (action - jnp.sqrt(1.0 - left) * noise) / jnp.sqrt(left)


def sample(
    predict: Callable[[jax.Array, jax.Array], jax.Array],
    schedule: Schedule,
    key: jax.Array,
    draw: Callable[[jax.Array], jax.Array],
    start_scale: float,
    clip: Clip,
) -> jax.Array:
    """Returns actions [B, A], made from noise in T steps.

    Args:
      predict: maps actions [B, A] and steps [B] to predicted noise [B, A].
      schedule: of the noise.
      key: of the draws.
      draw: maps a key to standard normal numbers [B, A].
      start_scale: standard deviation of the noise to begin with.
      clip: "start" bounds the predicted clean action to [-1, 1] and draws with the variance of the
        posterior; "iterate" bounds the result of each step, and draws with the step's variance.
    """
    keys = jax.random.split(key, schedule.num_steps + 1)

    def advance(action: jax.Array, inputs) -> tuple[jax.Array, None]:
        key, index, beta, left, before = inputs
        step = jnp.full(action.shape[0], index)
        clean = denoised(schedule, action, predict(action, step), step)
        variance = beta
        if clip == "start":
            clean = jnp.clip(clean, -1.0, 1.0)
            variance = beta * (1.0 - before) / (1.0 - left)
        # Mean of the step before, given the clean action and this one (DDPM, Eq. 7).
        mean = beta * jnp.sqrt(before) * clean + (1.0 - before) * jnp.sqrt(1.0 - beta) * action
        action = mean / (1.0 - left)
        action = action + jnp.where(index > 0, jnp.sqrt(variance), 0.0) * draw(key)
        return (action if clip == "start" else jnp.clip(action, -1.0, 1.0)), None

    index = np.arange(schedule.num_steps, dtype=np.int32)
    steps = jax.tree.map(lambda x: jnp.asarray(x)[::-1], (index, *schedule))
    return jax.lax.scan(advance, start_scale * draw(keys[0]), (keys[1:], *steps))[0]


class NoiseNet(NamedTuple):
    """Parameters of a network of (obs, action, step) -> noise."""

    time: MLP  # of the step's embedding
    body: MLP


def init_noise_net(
    key: jax.Array, observation_size: int, action_size: int, width: int, depth: int
) -> NoiseNet:
    """Returns untrained parameters; the step's embedding has a hidden layer of its own."""
    time_key, key = jax.random.split(key)
    inputs = observation_size + action_size + TIME_SIZE
    sizes = (inputs, *(width,) * depth, action_size)
    return NoiseNet(
        time=networks.init_mlp(time_key, (TIME_SIZE, 2 * TIME_SIZE, TIME_SIZE), False)[0],
        body=networks.init_mlp(key, sizes, False)[0],
    )


def embedding(step: jax.Array) -> jax.Array:
    """Returns sines and cosines of steps [B] at wavelengths from 2 pi up, [B, TIME_SIZE]."""
    half = TIME_SIZE // 2
    angle = step[:, None] * (10_000.0 ** (-np.arange(half, dtype=np.float32) / half))[None]
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1) / TIME_SIZE**0.5


def at(net: NoiseNet, obs: jax.Array) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Returns the network as a function of actions [B, A] and steps [B], at observations [B, O].

    The share of the observation in the first layer is computed once.
    """
    body = networks.fix_inputs(networks.for_inference(net.body, ()), obs)
    time_net = networks.for_inference(net.time, ())

    def predict(action: jax.Array, step: jax.Array) -> jax.Array:
        time = networks.apply(time_net, embedding(step), ACTIVATION)
        return networks.apply(body, jnp.concatenate([action, time], axis=-1), ACTIVATION)

    return predict
