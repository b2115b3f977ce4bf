"""DACER: diffusion actor-critic with entropy regulator (Wang et al., arXiv 2405.15177).

The policy's gradient is propagated back through the whole denoising chain. The critics learn the
return's distribution as a Gaussian (DSAC-T, arXiv 2310.05858). Now and then the policy's entropy
is estimated by a Gaussian mixture, and steers the noise that is added to actions. The numbers are
those of the authors' code where the paper has none.
"""

import dataclasses
import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mjx_qflex import diffusion, networks, parallel
from mjx_qflex.algos import common
from mjx_qflex.algos.common import Temperature, TrainState
from mjx_qflex.diffusion import NoiseNet, Schedule
from mjx_qflex.networks import MLP, Activation, InferenceMLP
from mjx_qflex.types import Algorithm, EnvSpec, Metrics, Transition, stateless_policy

LOSS_BIAS = 0.1  # added to variances in the critic's loss, against division by small ones
BOUND = 3.0  # standard deviations, of drawn returns and of their distance to the mean

COMPONENTS = 3  # of the mixture
CLUSTERING_STEPS = 10  # of k-means, which begins the fit
FITTING_STEPS = 30  # of expectation and maximisation; the authors' library stops by tolerance
# Added to variances. The authors' library has 1e-6, in double precision; here the entropy of an
# actuator has a floor of -3.2 nats, well below any target.
COVARIANCE_BIAS = 1e-4


@dataclasses.dataclass(frozen=True)
class DacerConfig:
    """Options of DACER. The defaults are the authors' own setting.

    The entropy that alpha answers to is estimated by fitting a mixture of three Gaussians to
    `entropy_samples` actions. With fewer than several actions per actuator and component the fit
    is degenerate and reads far too low, so that alpha only grows: true of the default 200 from
    some 20 actuators on.
    """

    width: int = 256  # units of each hidden layer of every network
    depth: int = 3  # hidden layers
    activation: Activation = "gelu"  # of the critics (the authors' table; their code: uncertain)
    learning_rate: float = 1e-4  # of critics and policy
    final_learning_rate: float | None = None  # of the policy; None: it stays, else it falls ...
    decay_begin: int = 25_000  # ... linearly from this policy update on ...
    decay_updates: int = 50_000  # ... over so many
    gamma: float = 0.99  # discount per control step
    tau: float = 0.005  # share of the new parameters in the slow copies
    delay: int = 2  # critic updates to one of policy and slow copies
    reward_scale: float = 0.2  # factor on rewards before the critics see them
    diffusion_steps: int = 20
    schedule: Literal["variance_preserving", "linear"] = "variance_preserving"
    schedule_scale: float = 0.3  # factor on the linear schedule
    start_scale: float = 1.0  # standard deviation of the noise that sampling begins with
    noise_scale: float = 0.15  # of noise on actions, in units of alpha (some tasks: 0.1)
    initial_alpha: float = 3.0  # rounded: the code's logarithm is 1.2, on some tasks 1.7
    target_entropy: float = -0.9  # nats per actuator
    alpha_learning_rate: float = 3e-2
    alpha_period: int = 10_000  # updates to one of the temperature
    entropy_samples: int = 200  # actions that a mixture is fitted to
    entropy_states: int = 256  # of a batch, at which that is done


PRESETS: dict[str, DacerConfig] = {
    "default": DacerConfig(),
    # What Qflex's authors ran: their launcher lets the policy's rate fall, alpha's 3e-2 stands. The
    # rest was read in the repository that theirs builds on.
    "qflex_paper": DacerConfig(
        activation="mish",
        learning_rate=3e-4,
        final_learning_rate=3e-5,
        schedule="linear",
        start_scale=0.5,
    ),
}


class DacerLearner(NamedTuple):
    """All that DACER learns."""

    critics: tuple[TrainState, ...]  # two of (obs, action) -> mean and spread of the return
    spread: jax.Array  # [2], slow average of each critic's standard deviation
    actor: "Actor"
    regulator: "Regulator"
    count: jax.Array  # int32 [], updates so far


class Actor(NamedTuple):
    """What every `delay`-th update changes, and the loss that it reports until the next."""

    policy: TrainState  # of a NoiseNet
    targets: tuple[MLP, ...]  # slow copies of the critics
    loss: jax.Array  # []


class Regulator(NamedTuple):
    """What every `alpha_period`-th update changes."""

    temperature: Temperature
    entropy: jax.Array  # [] nats per actuator, as last estimated


class Optimizers(NamedTuple):
    critic: optax.GradientTransformation
    policy: optax.GradientTransformation
    temperature: optax.GradientTransformation


def make(config: DacerConfig, spec: EnvSpec) -> Algorithm:
    """Builds DACER for an environment.

    Raises:
      UserError: an option's value is refused.
    """
    common.check_options("dacer", config)
    if config.schedule == "linear":
        schedule = diffusion.linear_schedule(config.diffusion_steps, config.schedule_scale)
    else:
        schedule = diffusion.variance_preserving_schedule(config.diffusion_steps)
    optimizers = _optimizers(config)

    def init(key: jax.Array) -> DacerLearner:
        critic_key, policy_key = jax.random.split(key)
        sizes = (spec.observation_size + spec.action_size, *(config.width,) * config.depth, 2)
        critics = common.init_critics(optimizers.critic, critic_key, sizes)
        net = diffusion.init_noise_net(
            policy_key, spec.observation_size, spec.action_size, config.width, config.depth
        )
        targets = common.copied(common.params_of(critics))
        temperature = common.init_temperature(optimizers.temperature, config.initial_alpha)
        return DacerLearner(
            critics=critics,
            spread=jnp.zeros(2),
            actor=Actor(common.train_state(optimizers.policy, net), targets, jnp.zeros(())),
            regulator=Regulator(temperature, jnp.zeros(())),
            count=jnp.zeros((), jnp.int32),
        )

    def policy(learner: DacerLearner):
        """Its mode adds no noise and uses the same draws always, of one key where Qflex's authors
        derive one from the observation."""
        net = learner.actor.policy.params

        def sample(obs: jax.Array, key: jax.Array) -> jax.Array:
            draw = common.normal((obs.shape[0], spec.action_size))
            alpha = jnp.exp(learner.regulator.temperature.log_alpha)
            return _sample(config, schedule, net, alpha, obs, key, draw)

        def mode(obs: jax.Array) -> jax.Array:
            draw, key = common.fixed_normal((obs.shape[0], spec.action_size))
            return _sample(config, schedule, net, 0.0, obs, key, draw)

        return stateless_policy(sample, mode)

    def update(learner: DacerLearner, batch: Transition, key: jax.Array):
        return _update(config, schedule, optimizers, learner, batch, key)

    return Algorithm(init, policy, update)


def _optimizers(config: DacerConfig) -> Optimizers:
    rate, last = config.learning_rate, config.final_learning_rate
    policy_rate = rate
    if last is not None:
        policy_rate = common.falling_rate(rate, last, config.decay_begin, config.decay_updates)
    return Optimizers(
        critic=common.adam(rate),
        policy=common.adam(policy_rate),
        temperature=common.adam(config.alpha_learning_rate),
    )


def _sample(config: DacerConfig, schedule: Schedule, net: NoiseNet, alpha, obs, key, draw):
    """Returns actions [B, A] in [-1, 1] with the regulator's noise, differentiable in `net`."""
    draw_key, noise_key = jax.random.split(key)
    action = diffusion.sample(
        diffusion.at(net, obs), schedule, draw_key, draw, config.start_scale, "start"
    )
    return jnp.clip(action + config.noise_scale * alpha * draw(noise_key), -1.0, 1.0)


def _returns(critic: InferenceMLP, action, activation: Activation) -> tuple[jax.Array, jax.Array]:
    """Returns mean and standard deviation [B] of the return of actions [B, A]."""
    output = networks.apply(critic, action, activation)
    return output[:, 0], jax.nn.softplus(output[:, 1])


def _update(
    config: DacerConfig,
    schedule: Schedule,
    optimizers: Optimizers,
    learner: DacerLearner,
    batch: Transition,
    key: jax.Array,
):
    """One update: critics; policy and slow copies, and regulator, where it is their turn.

    As in the authors' code, the policy sees the critics from before this update.
    """
    next_key, return_key, policy_key, entropy_key = jax.random.split(key, 4)
    alpha = jnp.exp(learner.regulator.temperature.log_alpha)

    def behave(net: NoiseNet, obs: jax.Array, key: jax.Array) -> jax.Array:
        draw = common.normal(batch.action.shape)
        return _sample(config, schedule, net, alpha, obs, key, draw)

    next_action = behave(learner.actor.policy.params, batch.next_obs, next_key)
    target, drawn = _targets(config, learner.actor.targets, batch, next_action, return_key)
    critics, spread, metrics = _update_critics(
        config, optimizers.critic, learner, batch, target, drawn
    )

    def advance(actor: Actor) -> Actor:
        old_critics = common.critics_at(learner.critics, batch.obs)

        def loss(net: NoiseNet) -> jax.Array:
            action = behave(net, batch.obs, policy_key)
            means = [_returns(critic, action, config.activation)[0] for critic in old_critics]
            return -jnp.mean(jnp.minimum(*means))

        value, gradient = jax.value_and_grad(loss)(actor.policy.params)
        return Actor(
            policy=common.apply_gradients(optimizers.policy, actor.policy, gradient),
            targets=common.polyak(config.tau, common.params_of(critics), actor.targets),
            loss=parallel.mean(value),
        )

    def regulate(regulator: Regulator) -> Regulator:
        obs = batch.obs[: parallel.share(config.entropy_states)]
        entropy = parallel.mean(
            _policy_entropy(config, schedule, learner.actor.policy.params, alpha, obs, entropy_key)
        )
        excess = entropy - config.target_entropy * batch.action.shape[-1]
        temperature = common.adapt_temperature(
            optimizers.temperature, regulator.temperature, excess
        )
        return Regulator(temperature, entropy / batch.action.shape[-1])

    actor = common.every(config.delay, learner.count, advance, learner.actor)
    regulator = common.every(config.alpha_period, learner.count, regulate, learner.regulator)
    return DacerLearner(critics, spread, actor, regulator, learner.count + 1), metrics | {
        "policy_loss": actor.loss,
        "policy_entropy": regulator.entropy,
        "temperature": jnp.exp(regulator.temperature.log_alpha),
    }


def _targets(config: DacerConfig, targets, batch: Transition, next_action, key):
    """Returns what the critics are to expect [B], and one draw of it [B]."""
    outputs = [
        _returns(critic, next_action, config.activation)
        for critic in common.critics_at(targets, batch.next_obs)
    ]
    (mean, _), (other_mean, _) = outputs
    noise = jax.random.normal(key, (2, *mean.shape))
    draws = [m + s * jnp.clip(z, -BOUND, BOUND) for (m, s), z in zip(outputs, noise, strict=True)]
    reward = config.reward_scale * batch.reward
    discount = config.gamma * batch.discount
    next_draw = jnp.where(mean < other_mean, *draws)
    return reward + discount * jnp.minimum(mean, other_mean), reward + discount * next_draw


def _update_critics(config: DacerConfig, optimizer, learner: DacerLearner, batch, target, drawn):
    """DSAC-T's step: means follow the expected target, spreads the drawn one, within bounds."""
    stop = jax.lax.stop_gradient
    target, drawn = stop(target), stop(drawn)

    def loss(params: MLP, spread: jax.Array):
        (critic,) = common.critics_at((params,), batch.obs)
        mean, deviation = _returns(critic, batch.action, config.activation)
        fresh = stop(parallel.mean(jnp.mean(deviation)))
        spread = jnp.where(
            learner.count == 0, fresh, config.tau * fresh + (1.0 - config.tau) * spread
        )
        q, s = stop(mean), stop(deviation)
        bounded = q + jnp.clip(drawn - q, -BOUND * spread, BOUND * spread)
        pull = mean * (target - q) / (jnp.square(s) + LOSS_BIAS)
        widen = deviation * (jnp.square(q - bounded) - jnp.square(s)) / (s**3 + LOSS_BIAS)
        # The factor makes the gradient's size independent of the returns' scale.
        total = -(jnp.square(spread) + LOSS_BIAS) * jnp.mean(pull + widen)
        return total, (spread, mean, jnp.mean(jnp.square(q - target)), fresh)

    results = [
        jax.grad(loss, has_aux=True)(critic.params, spread)
        for critic, spread in zip(learner.critics, learner.spread, strict=True)
    ]
    gradients, aux = zip(*results, strict=True)
    spreads, means, errors, deviations = map(jnp.stack, zip(*aux, strict=True))
    critics = tuple(
        common.apply_gradients(optimizer, critic, gradient)
        for critic, gradient in zip(learner.critics, gradients, strict=True)
    )
    metrics: Metrics = common.value_metrics(errors, means)
    return critics, spreads, metrics | {"q_deviation": jnp.mean(deviations)}


def _policy_entropy(config: DacerConfig, schedule: Schedule, net: NoiseNet, alpha, obs, key):
    """Estimates the policy's entropy [] in nats, as a mean over observations [B, O]."""
    shape = (config.entropy_samples, net.body.layers[-1].bias.size)

    def at_state(inputs):
        obs, key = inputs
        draw = common.normal(shape)
        actions = _sample(config, schedule, net, alpha, obs[None], key, draw)
        return mixture_entropy(actions)

    # One state after the other: full covariances of all at once would not fit for large bodies.
    return jnp.mean(jax.lax.map(at_state, (obs, jax.random.split(key, obs.shape[0]))))


def mixture_entropy(samples: jax.Array) -> jax.Array:
    """Returns an entropy [] in nats of `samples` [S, A], by a mixture of three Gaussians.

    It is the weights' entropy plus the components' mean entropy: an upper bound of the mixture's,
    tight where components are apart.
    """
    size = samples.shape[-1]
    responsibility = _clusters(samples)  # [S, K]

    def moments(responsibility):
        total = jnp.sum(responsibility, axis=0) + 1e-6  # [K]
        means = responsibility.T @ samples / total[:, None]
        offsets = samples[None] - means[:, None]  # [K, S, A]
        weighted = responsibility.T[:, :, None] * offsets
        covariance = jnp.einsum("ksi,ksj->kij", weighted, offsets) / total[:, None, None]
        root = jnp.linalg.cholesky(covariance + COVARIANCE_BIAS * jnp.eye(size)[None])
        log_det = 2.0 * jnp.sum(jnp.log(jnp.diagonal(root, axis1=1, axis2=2)), axis=1)
        return total / jnp.sum(total), offsets, root, log_det

    def step(_, responsibility):
        weights, offsets, root, log_det = moments(responsibility)
        solve = jax.vmap(lambda r, x: jax.scipy.linalg.solve_triangular(r, x.T, lower=True))
        distance = jnp.sum(jnp.square(solve(root, offsets)), axis=1)  # [K, S]
        log_density = jnp.log(weights)[:, None] - 0.5 * (distance + log_det[:, None])
        return jax.nn.softmax(log_density, axis=0).T

    responsibility = jax.lax.fori_loop(0, FITTING_STEPS, step, responsibility)
    weights, _, _, log_det = moments(responsibility)
    entropies = 0.5 * (size * (1.0 + math.log(2.0 * math.pi)) + log_det)
    return jnp.sum(weights * (entropies - jnp.log(weights)))


def _clusters(samples: jax.Array) -> jax.Array:
    """Returns memberships [S, K] of k-means, begun at samples that are far from each other."""

    def distances(centers):
        return jnp.sum(jnp.square(samples[:, None] - centers[None]), axis=-1)  # [S, K]

    centers = samples[:1]
    for _ in range(COMPONENTS - 1):
        farthest = jnp.argmax(jnp.min(distances(centers), axis=1))
        centers = jnp.concatenate([centers, samples[farthest][None]])

    def members(centers):
        return jax.nn.one_hot(jnp.argmin(distances(centers), axis=1), COMPONENTS)

    def step(_, centers):
        member = members(centers)
        total = jnp.sum(member, axis=0)[:, None]
        return jnp.where(total > 0, member.T @ samples / jnp.maximum(total, 1.0), centers)

    return members(jax.lax.fori_loop(0, CLUSTERING_STEPS, step, centers))
