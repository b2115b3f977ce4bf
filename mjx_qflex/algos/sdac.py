"""SDAC: soft diffusion actor-critic (Ma et al., arXiv 2502.00361).

A diffusion policy is fitted to exp(Q / alpha) without samples from it: around each noisy action,
candidate clean actions are weighted by their value, and the network learns the noise that leads
there (reverse sampling score matching). Acting draws many actions and keeps the best by the
critics. The numbers are those of the authors' code where the paper has none.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from mjx_qflex import diffusion, parallel
from mjx_qflex.algos import common
from mjx_qflex.algos.common import Temperature, TrainState
from mjx_qflex.diffusion import NoiseNet, Schedule
from mjx_qflex.networks import MLP, Activation
from mjx_qflex.types import Algorithm, EnvSpec, Transition, stateless_policy


@dataclasses.dataclass(frozen=True)
class SdacConfig:
    """Options of SDAC. The defaults are the authors' own setting."""

    width: int = 256  # units of each hidden layer of every network
    depth: int = 3  # hidden layers
    activation: Activation = "mish"  # of the critics
    learning_rate: float = 3e-4  # of critics and policy
    final_learning_rate: float = 3e-5  # of the policy; it falls linearly to it ...
    decay_begin: int = 25_000  # ... from this policy update on ...
    decay_updates: int = 50_000  # ... over so many
    gamma: float = 0.99  # discount per control step
    tau: float = 0.005  # share of the new parameters in the slow copies
    delay: int = 2  # critic updates to one of policy and slow copies
    reward_scale: float = 0.2  # factor on rewards before the critics see them
    value_scale: float = 5.0  # factor on values in the candidates' weights; undoes reward_scale
    diffusion_steps: int = 20
    schedule_scale: float = 0.8  # factor on the linear schedule of variances
    start_scale: float = 0.5  # standard deviation of the noise that sampling begins with
    particles: int = 32  # actions drawn, of which the best by the critics is taken
    reverse_samples: int = 64  # candidate clean actions to a noisy one
    noise_scale: float = 0.1  # standard deviation of noise on actions, in units of alpha
    initial_alpha: float = 5.0
    target_entropy: float = -0.9  # nats per actuator
    alpha_learning_rate: float = 7e-3
    alpha_period: int = 250  # updates to one of the temperature


PRESETS: dict[str, SdacConfig] = {
    "default": SdacConfig(),
    # What Qflex's authors ran: their launcher hands alpha the learning rate of the networks, so
    # that it hardly moves. The rest was read in the repository that theirs builds on.
    "qflex_paper": SdacConfig(alpha_learning_rate=3e-4),
}


class SdacLearner(NamedTuple):
    """All that SDAC learns."""

    critics: tuple[TrainState, ...]  # two of (obs, action) -> value
    actor: "Actor"
    temperature: Temperature
    count: jax.Array  # int32 [], updates so far


class Actor(NamedTuple):
    """What every `delay`-th update changes, and the loss that it reports until the next."""

    policy: TrainState  # of a NoiseNet
    slow_policy: NoiseNet  # the one that explores
    targets: tuple[MLP, ...]  # slow copies of the critics
    loss: jax.Array  # []


class Optimizers(NamedTuple):
    critic: optax.GradientTransformation
    policy: optax.GradientTransformation
    temperature: optax.GradientTransformation


def make(config: SdacConfig, spec: EnvSpec) -> Algorithm:
    """Builds SDAC for an environment.

    Raises:
      UserError: an option's value is refused.
    """
    common.check_options("sdac", config)
    schedule = diffusion.linear_schedule(config.diffusion_steps, config.schedule_scale)
    falling = common.falling_rate(
        config.learning_rate, config.final_learning_rate, config.decay_begin, config.decay_updates
    )
    optimizers = Optimizers(
        critic=common.adam(config.learning_rate),
        policy=common.adam(falling),
        temperature=common.adam(config.alpha_learning_rate),
    )

    def init(key: jax.Array) -> SdacLearner:
        return _init(config, optimizers, spec, key)

    def policy(learner: SdacLearner):
        """The slow policy; its mode adds no noise and uses the same draws always, of one key where
        Qflex's authors derive one from the observation."""

        def best(obs: jax.Array, key: jax.Array, draw: Callable) -> jax.Array:
            critics = common.critics_at(common.params_of(learner.critics), obs)
            predict = diffusion.at(learner.actor.slow_policy, obs)
            return _best_action(config, schedule, predict, critics, key, draw)

        def sample(obs: jax.Array, key: jax.Array) -> jax.Array:
            draw = common.normal((obs.shape[0], spec.action_size))
            draw_key, noise_key = jax.random.split(key)
            noise = _deviation(config, learner.temperature) * draw(noise_key)
            return best(obs, draw_key, draw) + noise

        def mode(obs: jax.Array) -> jax.Array:
            draw, key = common.fixed_normal((obs.shape[0], spec.action_size))
            return best(obs, jax.random.split(key)[0], draw)

        return stateless_policy(sample, mode)

    def update(learner: SdacLearner, batch: Transition, key: jax.Array):
        return _update(config, schedule, optimizers, learner, batch, key)

    return Algorithm(init, policy, update)


def _init(config: SdacConfig, optimizers: Optimizers, spec: EnvSpec, key: jax.Array):
    critic_key, policy_key = jax.random.split(key)
    sizes = (spec.observation_size + spec.action_size, *(config.width,) * config.depth, 1)
    critics = common.init_critics(optimizers.critic, critic_key, sizes)
    net = diffusion.init_noise_net(
        policy_key, spec.observation_size, spec.action_size, config.width, config.depth
    )
    return SdacLearner(
        critics=critics,
        actor=Actor(
            policy=common.train_state(optimizers.policy, net),
            slow_policy=common.copied(net),
            targets=common.copied(common.params_of(critics)),
            loss=jnp.zeros(()),
        ),
        temperature=common.init_temperature(optimizers.temperature, config.initial_alpha),
        count=jnp.zeros((), jnp.int32),
    )


def _deviation(config: SdacConfig, temperature: Temperature) -> jax.Array:
    """Returns the standard deviation [] of the noise on actions."""
    return config.noise_scale * jnp.exp(temperature.log_alpha)


def _best_action(config: SdacConfig, schedule: Schedule, predict, critics, key, draw):
    """Draws `particles` actions for each observation; returns those of highest value [B, A]."""

    def particle(key):
        return diffusion.sample(predict, schedule, key, draw, config.start_scale, "start")

    value = common.min_q(critics, config.activation)
    return common.best_of(config.particles, particle, value, key)


def _update(
    config: SdacConfig,
    schedule: Schedule,
    optimizers: Optimizers,
    learner: SdacLearner,
    batch: Transition,
    key: jax.Array,
):
    """One update: critics; policy and slow copies, and temperature, where it is their turn.

    As in the authors' code, the policy sees the critics from before this update.
    """
    next_key, policy_key = jax.random.split(key)
    old = common.params_of(learner.critics)
    deviation = _deviation(config, learner.temperature)

    def behave(obs: jax.Array, key: jax.Array) -> jax.Array:
        draw_key, noise_key = jax.random.split(key)
        draw = common.normal(batch.action.shape)
        predict = diffusion.at(learner.actor.policy.params, obs)
        critics = common.critics_at(old, obs)
        action = _best_action(config, schedule, predict, critics, draw_key, draw)
        return action + deviation * draw(noise_key)

    next_action = behave(batch.next_obs, next_key)
    targets = common.critics_at(learner.actor.targets, batch.next_obs)
    next_value = common.min_q(targets, config.activation)(next_action)
    target = config.reward_scale * batch.reward + config.gamma * batch.discount * next_value
    critics, metrics = common.td_step(
        optimizers.critic, learner.critics, batch, target, config.activation
    )

    def advance(actor: Actor) -> Actor:
        action_key, key = jax.random.split(policy_key)
        alpha = jnp.exp(learner.temperature.log_alpha)
        action = behave(batch.obs, action_key)
        policy, loss = _update_policy(
            config, schedule, optimizers, actor.policy, old, alpha, batch.obs, action, key
        )
        return Actor(
            policy=policy,
            slow_policy=common.polyak(config.tau, policy.params, actor.slow_policy),
            targets=common.polyak(config.tau, common.params_of(critics), actor.targets),
            loss=parallel.mean(loss),
        )

    def cool(temperature: Temperature) -> Temperature:
        # Entropy of the noise on actions, a lower bound of the policy's own.
        scale = jnp.log(_deviation(config, temperature))
        entropy = scale + 0.5 * math.log(2.0 * math.pi * math.e)
        excess = (entropy - config.target_entropy) * batch.action.shape[-1]
        return common.adapt_temperature(optimizers.temperature, temperature, excess)

    actor = common.every(config.delay, learner.count, advance, learner.actor)
    temperature = common.every(config.alpha_period, learner.count, cool, learner.temperature)
    return SdacLearner(critics, actor, temperature, learner.count + 1), metrics | {
        "policy_loss": actor.loss,
        "temperature": jnp.exp(temperature.log_alpha),
    }


def _update_policy(
    config: SdacConfig,
    schedule: Schedule,
    optimizers: Optimizers,
    policy: TrainState,
    critics: tuple[MLP, ...],
    alpha: jax.Array,
    obs: jax.Array,
    action: jax.Array,
    key: jax.Array,
) -> tuple[TrainState, jax.Array]:
    """Reverse sampling score matching around noisy versions of `action` [B, A]."""
    step_key, noise_key, candidate_key = jax.random.split(key, 3)
    batch_size = action.shape[0]
    step = jax.random.randint(step_key, (batch_size,), 0, schedule.num_steps)
    noisy = diffusion.noised(schedule, action, jax.random.normal(noise_key, action.shape), step)
    shape = (config.reverse_samples, *action.shape)
    candidates = jax.random.normal(candidate_key, shape)  # of the noise [K, B, A]
    at_obs = common.critics_at(critics, obs)

    def value(noise: jax.Array) -> jax.Array:
        clean = jnp.clip(diffusion.denoised(schedule, noisy, noise, step), -1.0, 1.0)
        return common.min_q(at_obs, config.activation)(clean)

    weights = jax.nn.softmax(config.value_scale * jax.vmap(value)(candidates) / alpha, axis=0)

    def loss(net: NoiseNet) -> jax.Array:
        # The network sees the noisy action alone, so one prediction serves all candidates.
        predicted = diffusion.at(net, obs)(noisy, step)
        errors = jnp.mean(jnp.square(predicted[None] - candidates), axis=-1)
        # The authors' code takes the mean over the candidates too, whose weights sum to 1.
        return jnp.mean(weights * errors)

    policy_loss, gradient = jax.value_and_grad(loss)(policy.params)
    return common.apply_gradients(optimizers.policy, policy, gradient), policy_loss
