"""QSM: Q-score matching (Psenka et al., arXiv 2312.11752, ICML 2024).

The score of the policy is matched to the critics' gradient with respect to actions, so that no
policy gradient goes through sampling. The paper's authors put that gradient in the place of the
noise that a diffusion model predicts; Qflex's authors train a score without time and sample it by
annealed Langevin dynamics. `sampler` chooses between them.
"""

import dataclasses
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mjx_qflex import diffusion, networks
from mjx_qflex.algos import common
from mjx_qflex.algos.common import Decay, TrainState
from mjx_qflex.diffusion import NoiseNet
from mjx_qflex.networks import MLP, Activation, InferenceMLP
from mjx_qflex.types import Algorithm, EnvSpec, Transition, stateless_policy


@dataclasses.dataclass(frozen=True)
class QsmConfig:
    """Options of QSM. The defaults are the paper's, as far as its text and code agree.

    The step's embedding is the one of all diffusion policies here; theirs has learned frequencies.
    """

    width: int = 512  # units of each hidden layer of every network
    depth: int = 2  # hidden layers
    activation: Activation = "relu"  # of the critics, and of a score without time
    learning_rate: float = 3e-4  # of critics and policy
    decay: Decay = "cosine"  # along which the policy's falls ...
    final_learning_rate: float = 0.0  # ... to this ...
    decay_begin: int = 0  # ... from this update on ...
    decay_updates: int = 2_000_000  # ... over so many
    # What each update begins with. "critics": the policy then sees the new ones, while the next
    # action still comes from the policy of before.
    first: Literal["policy", "critics"] = "policy"
    gamma: float = 0.99  # discount per control step
    tau: float = 0.005  # share of the new critics in the targets
    policy_tau: float = 0.001  # of the new policy in the one that acts (code; not in the text)
    reward_scale: float = 1.0  # factor on rewards before the critics see them
    sampler: Literal["diffusion", "langevin"] = "diffusion"
    diffusion_steps: int = 5  # or Langevin steps
    gradient_scale: float = 50.0  # M_q, factor on the critics' gradient (hard tasks: 120)
    action_noise: float = 0.1  # standard deviation, in exploration and in targets
    particles: int = 1  # actions drawn, of which the best by the critics is taken


PRESETS: dict[str, QsmConfig] = {
    "default": QsmConfig(),
    # What Qflex's authors ran, read in the repository that theirs builds on.
    "qflex_paper": QsmConfig(
        width=256,
        depth=3,
        decay="linear",
        final_learning_rate=3e-5,
        decay_begin=25_000,
        decay_updates=50_000,
        first="critics",
        policy_tau=1.0,
        sampler="langevin",
        diffusion_steps=20,
        gradient_scale=1.0,
        action_noise=0.0,
        particles=32,
    ),
}


class QsmLearner(NamedTuple):
    """All that QSM learns."""

    critics: tuple[TrainState, ...]  # two of (obs, action) -> value
    targets: tuple[MLP, ...]  # their slow copies
    policy: TrainState  # of a NoiseNet, or of an MLP (obs, action) -> score
    slow_policy: NoiseNet | MLP  # the one that acts


class Optimizers(NamedTuple):
    critic: optax.GradientTransformation
    policy: optax.GradientTransformation


def make(config: QsmConfig, spec: EnvSpec) -> Algorithm:
    """Builds QSM for an environment.

    Raises:
      UserError: an option's value is refused.
    """
    common.check_options("qsm", config)
    rate = common.falling_rate(
        config.learning_rate,
        config.final_learning_rate,
        config.decay_begin,
        config.decay_updates,
        config.decay,
    )
    optimizers = Optimizers(common.adam(config.learning_rate), common.adam(rate))

    def init(key: jax.Array) -> QsmLearner:
        return _init(config, optimizers, spec, key)

    def policy(learner: QsmLearner):
        """The slow policy; its mode uses the same draws always, and adds no noise."""
        critics, net = common.params_of(learner.critics), learner.slow_policy

        def sample(obs: jax.Array, key: jax.Array) -> jax.Array:
            draw = common.normal((obs.shape[0], spec.action_size))
            return _sample(config, net, critics, obs, key, draw, config.action_noise)

        def mode(obs: jax.Array) -> jax.Array:
            draw, key = common.fixed_normal((obs.shape[0], spec.action_size))
            return _sample(config, net, critics, obs, key, draw, 0.0)

        return stateless_policy(sample, mode)

    def update(learner: QsmLearner, batch: Transition, key: jax.Array):
        return _update(config, optimizers, learner, batch, key)

    return Algorithm(init, policy, update)


def _init(config: QsmConfig, optimizers: Optimizers, spec: EnvSpec, key: jax.Array):
    critic_key, policy_key = jax.random.split(key)
    hidden, inputs = (config.width,) * config.depth, spec.observation_size + spec.action_size
    critics = common.init_critics(optimizers.critic, critic_key, (inputs, *hidden, 1))
    if config.sampler == "diffusion":
        net = diffusion.init_noise_net(
            policy_key, spec.observation_size, spec.action_size, config.width, config.depth
        )
    else:
        net, _ = networks.init_mlp(policy_key, (inputs, *hidden, spec.action_size), False)
    return QsmLearner(
        critics=critics,
        targets=common.copied(common.params_of(critics)),
        policy=common.train_state(optimizers.policy, net),
        slow_policy=common.copied(net),
    )


def _score(config: QsmConfig, net: MLP, obs) -> Callable[[jax.Array], jax.Array]:
    """Returns the score without time as a function of actions [B, A], at observations [B, O]."""
    (score,) = common.critics_at((net,), obs)
    return lambda action: networks.apply(score, action, config.activation)


def _sample(config: QsmConfig, net, critics: tuple[MLP, ...], obs, key, draw, noise: float):
    """Returns the best of a few draws from the policy [B, A], with noise of that deviation."""
    draw_key, noise_key = jax.random.split(key)

    def particle(key: jax.Array) -> jax.Array:
        if config.sampler == "langevin":
            return langevin(_score(config, net, obs), key, draw, config.diffusion_steps)
        schedule = diffusion.variance_preserving_schedule(config.diffusion_steps)
        return diffusion.sample(diffusion.at(net, obs), schedule, key, draw, 1.0, "iterate")

    value = common.min_q(common.critics_at(critics, obs), config.activation)
    action = common.best_of(config.particles, particle, value, draw_key)
    return jnp.clip(action + noise * draw(noise_key), -1.0, 1.0)


def langevin(
    score: Callable[[jax.Array], jax.Array],
    key: jax.Array,
    draw: Callable[[jax.Array], jax.Array],
    num_steps: int,
) -> jax.Array:
    """Returns actions [B, A] in [-1, 1] by Langevin dynamics with steps that shrink from 1 to 0.

    Args:
      score: maps actions [B, A] to the gradient [B, A] of their log density.
      key: of the draws.
      draw: maps a key to standard normal numbers [B, A].
      num_steps: N; step k has size 1 - k / N.
    """
    keys = jax.random.split(key, num_steps + 1)
    sizes = 1.0 - jnp.arange(num_steps) / num_steps

    def advance(action: jax.Array, inputs) -> tuple[jax.Array, None]:
        key, size = inputs
        action = action + 0.5 * size * score(action) + jnp.sqrt(size) * draw(key)
        return jnp.clip(action, -1.0, 1.0), None

    return jax.lax.scan(advance, draw(keys[0]), (keys[1:], sizes))[0]


def _update(config: QsmConfig, optimizers: Optimizers, learner: QsmLearner, batch, key):
    """One update of policy and critics, in the order that `first` says, then of the slow copies."""
    next_key, policy_key = jax.random.split(key)
    old = common.params_of(learner.critics)

    def update_policy(critics: tuple[MLP, ...]):
        at_obs = common.critics_at(critics, batch.obs)
        policy, loss = _update_policy(config, optimizers, learner.policy, at_obs, batch, policy_key)
        return policy, common.polyak(config.policy_tau, policy.params, learner.slow_policy), loss

    def update_critics(slow_policy):
        next_action = _sample(
            config,
            slow_policy,
            old,
            batch.next_obs,
            next_key,
            common.normal(batch.action.shape),
            config.action_noise,
        )
        targets = common.critics_at(learner.targets, batch.next_obs)
        next_value = common.min_q(targets, config.activation)(next_action)
        target = config.reward_scale * batch.reward + config.gamma * batch.discount * next_value
        return common.td_step(optimizers.critic, learner.critics, batch, target, config.activation)

    if config.first == "policy":
        policy, slow_policy, policy_loss = update_policy(old)
        critics, metrics = update_critics(slow_policy)
    else:
        critics, metrics = update_critics(learner.slow_policy)
        policy, slow_policy, policy_loss = update_policy(common.params_of(critics))
    targets = common.polyak(config.tau, common.params_of(critics), learner.targets)
    learner = QsmLearner(critics, targets, policy, slow_policy)
    return learner, metrics | {"policy_loss": policy_loss}


def _update_policy(
    config: QsmConfig,
    optimizers: Optimizers,
    policy: TrainState,
    critics: tuple[InferenceMLP, ...],
    batch: Transition,
    key: jax.Array,
) -> tuple[TrainState, jax.Array]:
    """Matches the policy's output to the critics' gradient at the replayed actions.

    A diffusion policy does so at noisy actions, with the sign of noise, which points away from
    where to go, and with the mean of the critics; a score does so at the actions themselves, with
    the critics' minimum.
    """
    diffuse = config.sampler == "diffusion"
    action = batch.action
    step_key, noise_key = jax.random.split(key)
    step = jax.random.randint(step_key, action.shape[:1], 0, config.diffusion_steps)
    if diffuse:
        noise = jax.random.normal(noise_key, action.shape)
        schedule = diffusion.variance_preserving_schedule(config.diffusion_steps)
        action = diffusion.noised(schedule, action, noise, step)

    def total_value(action: jax.Array) -> jax.Array:
        values = common.q_values(critics, action, config.activation)
        return jnp.sum(jnp.mean(values, axis=0) if diffuse else jnp.min(values, axis=0))

    sign = -1.0 if diffuse else 1.0
    wanted = sign * config.gradient_scale * jax.grad(total_value)(action)

    def loss(net) -> jax.Array:
        if diffuse:
            output = diffusion.at(net, batch.obs)(action, step)
        else:
            output = _score(config, net, batch.obs)(action)
        return jnp.mean(jnp.square(output - wanted))

    policy_loss, gradient = jax.value_and_grad(loss)(policy.params)
    return common.apply_gradients(optimizers.policy, policy, gradient), policy_loss
