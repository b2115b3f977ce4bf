"""Equations in plain NumPy (float64) that tests hold the algorithms to, and batches to do so on."""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special

from mjx_qflex.types import Transition


def random_batch(seed, observation_size, action_size, batch_size):
    """Transitions of uniform actions, of which three in ten end an episode."""
    keys = jax.random.split(jax.random.key(seed), 5)
    return Transition(
        obs=jax.random.normal(keys[0], (batch_size, observation_size)),
        action=jax.random.uniform(keys[1], (batch_size, action_size), minval=-1.0),
        reward=jax.random.normal(keys[2], (batch_size,)),
        discount=jax.random.bernoulli(keys[3], 0.7, (batch_size,)).astype(jnp.float32),
        next_obs=jax.random.normal(keys[4], (batch_size, observation_size)),
    )


def as_numpy(tree):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


def gelu(x):
    """The exact one, x times the normal distribution function, not its approximation by tanh."""
    return 0.5 * x * (1 + scipy.special.erf(x / np.sqrt(2)))


def mish(x):
    return x * np.tanh(np.log1p(np.exp(x)))


ACTIVATIONS = {"relu": lambda x: np.maximum(x, 0), "gelu": gelu, "mish": mish}


def mlp(params, x, activation):
    """An MLP without normalisation."""
    for index, layer in enumerate(params.layers):
        x = ACTIVATIONS[activation](x) if index else x
        x = x @ layer.kernel + layer.bias
    return x


def noise_net(params, obs, action, step):
    """(obs, action, step) -> noise; sines and cosines of 8 frequencies from 1 to 1e-3.5 enter."""
    frequency = 10_000.0 ** (-np.arange(8) / 8)
    angle = np.full(len(action), step)[:, None] * frequency
    time = np.concatenate([np.sin(angle), np.cos(angle)], 1) / 4
    time = mlp(params.time, time, "mish")
    return mlp(params.body, np.concatenate([obs, action, time], 1), "mish")


def linear_betas(steps, scale):
    return scale * np.array([1e-4 + (0.999 - 1e-4) * i / (steps - 1) for i in range(steps)])


def vp_betas(steps):
    """The rate b(u) = 0.1 + 9.9 u integrated over each of the equal parts of [0, 1]."""

    def integral(u):
        return 0.1 * u + 9.9 * u**2 / 2

    edges = np.arange(steps + 1) / steps
    return 1 - np.exp(-(integral(edges[1:]) - integral(edges[:-1])))


def denoise(net, obs, betas, key, shape, start_scale, clip):
    """DDPM's reverse process; the draws are those of the library, in its order."""
    bars = np.cumprod(1 - betas)
    keys = jax.random.split(key, len(betas) + 1)
    action = start_scale * normal(keys[0], shape)
    for index, key in zip(reversed(range(len(betas))), keys[1:], strict=True):
        beta, bar = betas[index], bars[index]
        before = bars[index - 1] if index else 1.0
        predicted = noise_net(net, obs, action, index)
        if clip == "start":
            clean = (action - np.sqrt(1 - bar) * predicted) / np.sqrt(bar)
            clean = np.clip(clean, -1, 1)
            mean = np.sqrt(before) * beta / (1 - bar) * clean
            mean = mean + np.sqrt(1 - beta) * (1 - before) / (1 - bar) * action
            spread = np.sqrt(beta * (1 - before) / (1 - bar))
        else:
            mean = (action - beta / np.sqrt(1 - bar) * predicted) / np.sqrt(1 - beta)
            spread = np.sqrt(beta)
        action = mean + (spread * normal(key, shape) if index else 0.0)
        action = np.clip(action, -1, 1) if clip == "iterate" else action
    return action


def normal(key, shape):
    return np.asarray(jax.random.normal(key, shape), np.float64)


def critic(params, obs, action, activation):
    return mlp(params, np.concatenate([obs, action], 1), activation)


def min_q(critics, obs, action, activation):
    return np.min([critic(params, obs, action, activation)[:, 0] for params in critics], axis=0)


def action_gradient(value, action):
    """Central differences of values [B] by actions [B, A]."""
    gradient = np.zeros_like(action)
    for index in range(action.shape[1]):
        offset = 1e-6 * np.eye(action.shape[1])[index]
        gradient[:, index] = (value(action + offset) - value(action - offset)) / 2e-6
    return gradient


def best_of(number, draw, value, key):
    keys = jax.random.split(key, number)
    actions = np.stack([draw(key) for key in keys])
    best = np.argmax([value(action) for action in actions], axis=0)
    return actions[best, np.arange(actions.shape[1])]


def tanh_gaussian(config, output, noise):
    """Action and log density; the density counts the squashing where the config says so."""
    mean, log_std = np.split(output, 2, axis=1)
    std = np.exp(np.clip(log_std, *config.log_std_range))
    before = mean + std * noise
    log_prob = np.log(np.exp(-0.5 * noise**2) / (std * np.sqrt(2 * np.pi)))
    if config.tanh_correction:
        log_prob = log_prob - np.log(1 - np.tanh(before) ** 2)
    return np.tanh(before), log_prob.sum(1)


def check_adam(before, after, loss, learning_rate, beta1=0.9):
    """Some entries of each leaf moved as Adam moves them on the numerical gradient of `loss`.

    Args:
      before: the trained network before the step.
      after: the same after it.
      loss: of parameters in float64.
    """
    old, new = as_numpy(before.opt_state[0]), as_numpy(after.opt_state[0])
    count = int(np.max(old.count)) + 1
    leaves, structure = jax.tree.flatten(as_numpy(before.params))
    trees = map(jax.tree.leaves, (old.mu, old.nu, new.mu, as_numpy(after.params)))
    for index, (leaf, mu, nu, new_mu, moved) in enumerate(zip(leaves, *trees, strict=True)):
        largest = np.abs(new_mu - beta1 * mu).max() / (1 - beta1)
        for entry in {0, int(np.argmax(np.abs(new_mu - beta1 * mu)))}:
            values = []
            for sign in (1, -1):
                changed = leaf.copy()
                changed.reshape(-1)[entry] += sign * 1e-6
                changed = [*leaves[:index], changed, *leaves[index + 1 :]]
                values.append(loss(structure.unflatten(changed)))
            gradient = (values[0] - values[1]) / 2e-6
            # What went into Adam's averages, and what came out of them.
            given = (new_mu.flat[entry] - beta1 * mu.flat[entry]) / (1 - beta1)
            np.testing.assert_allclose(given, gradient, rtol=5e-3, atol=2e-3 * largest + 1e-7)
            mean = (beta1 * mu.flat[entry] + (1 - beta1) * gradient) / (1 - beta1**count)
            second = (0.999 * nu.flat[entry] + 0.001 * gradient**2) / (1 - 0.999**count)
            step = (leaf.flat[entry] - moved.flat[entry]) / learning_rate
            np.testing.assert_allclose(step, mean / (np.sqrt(second) + 1e-8), rtol=2e-2, atol=2e-3)
