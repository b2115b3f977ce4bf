"""What several algorithms are made of: trained networks, twin critics, Gaussian heads, temperature.

Everything here is a pure function of small named tuples. What belongs to one paper alone lives in
that paper's file.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, TypeVar, get_args, get_origin, get_type_hints

import jax
import jax.numpy as jnp
import optax

from mjx_qflex import bounds, networks, parallel
from mjx_qflex.conditional import when
from mjx_qflex.errors import UserError
from mjx_qflex.networks import MLP, Activation, Folded, Moments
from mjx_qflex.types import Metrics, Mode, PolicyParts, Transition

EVAL_NOISE_SEED = 0
Decay = Literal["linear", "cosine"]  # of a learning rate
Tree = TypeVar("Tree")


class Network(NamedTuple):
    """A trained network: parameters, running moments, and the optimiser's state."""

    params: Any  # an MLP, or a named tuple of several
    moments: tuple[Moments, ...]  # () without batch norm
    optimizer: optax.OptState


class Temperature(NamedTuple):
    """Weight of the entropy, learned in its logarithm."""

    log_alpha: jax.Array  # []
    optimizer: optax.OptState


def check_options(algorithm: str, config: Any) -> None:
    """Refuses options of a config dataclass that no algorithm can work with.

    Args:
      algorithm: its name, for the message.
      config: an instance; options typed as `Literal` must have one of its values, ranges (tuples)
        must rise, and numbers be in those of `bounds`.

    Raises:
      UserError: an option's value is refused; it is named.
    """
    hints = get_type_hints(type(config))
    for name, value in vars(config).items():
        kind = get_origin(hints[name])
        if kind is Literal and value not in get_args(hints[name]):
            choices = ", ".join(get_args(hints[name]))
            raise UserError(f"{algorithm} has {name}={value!r}; give one of {choices}")
        if kind is tuple and value[0] >= value[1]:
            raise UserError(f"{algorithm} has {name}={value}; give the lower bound first")
    bounds.check(f"{algorithm}'s ", vars(config), algorithm)


# Optimisers.


class Optimizer(NamedTuple):
    """An optimiser of what all devices hold alike, while each sees its own part of the batch.

    It has optax's `init` and `update`, which takes a device's own gradient and steps along the mean
    over all devices; with `axis_name` None there is but one.
    """

    init: Callable[[Any], optax.OptState]
    update: Callable[..., tuple[Any, optax.OptState]]  # (gradient, state, params) -> (step, state)
    axis_name: str | None = None

    def mean(self, tree: Tree) -> Tree:
        """Returns the mean of `tree` over the devices."""
        return parallel.mean(tree, self.axis_name)

    def share(self, number: int) -> int:
        """Returns how many of `number` samples fall to each device."""
        return parallel.share(number, self.axis_name)


def adam(
    learning_rate: optax.ScalarOrSchedule, axis_name: str | None = None, b1: float = 0.9
) -> Optimizer:
    """Returns Adam, with decay `b1` of the mean gradient."""
    inner = optax.adam(learning_rate, b1=b1)

    def update(gradient: Any, state: optax.OptState, params: Any = None):
        return inner.update(parallel.mean(gradient, axis_name), state, params)

    return Optimizer(inner.init, update, axis_name)


def falling_rate(
    first: float, last: float, begin: int, updates: int, shape: Decay = "linear"
) -> optax.Schedule:
    """Returns a learning rate that is `first` for `begin` updates and then falls to `last`.

    It falls over `updates` more, along a line or half a period of a cosine. Qflex's authors train
    the policies of SDAC, DACER and QSM with a line.
    """
    if shape == "linear":
        falling = optax.linear_schedule(first, last, updates)
    else:
        falling = optax.cosine_decay_schedule(first, updates, last / first)
    return optax.join_schedules([optax.constant_schedule(first), falling], [begin])


# Networks.


def init_network(
    optimizer: Optimizer,
    key: jax.Array,
    sizes: Sequence[int],
    batch_norm: bool = False,
) -> Network:
    """Returns an untrained network with layer widths `sizes`, input and output too."""
    params, moments = networks.init_mlp(key, sizes, batch_norm)
    return Network(params, moments, optimizer.init(params))  # pyright: ignore[reportArgumentType]


def descend(
    optimizer: Optimizer,
    network: Network,
    gradient: Any,
    moments: tuple[Moments, ...] = (),
) -> Network:
    """Returns the network after one step against `gradient`, with its new running moments."""
    updates, state = optimizer.update(gradient, network.optimizer, network.params)
    return Network(optax.apply_updates(network.params, updates), moments, state)


def folded(network: Network) -> Folded:
    """Returns the network for use: running moments merged into its layers."""
    return networks.fold(network.params, network.moments)


def copied(tree: Tree) -> Tree:
    """Returns a tree of equal arrays of its own: donation wants targets and critics apart."""
    return jax.tree.map(jnp.copy, tree)


def averaged(rate: float, new: Tree, old: Tree) -> Tree:
    """Returns Polyak's average `rate * new + (1 - rate) * old` of two trees of parameters."""
    return jax.tree.map(lambda x, y: rate * x + (1.0 - rate) * y, new, old)


def every(period: int, count: jax.Array, advance: Callable[[Tree], Tree], tree: Tree) -> Tree:
    """Returns `advance(tree)` where `count` is a multiple of `period`, else `tree`."""
    if period == 1:
        return advance(tree)
    return when(count % period == 0, advance, tree)


# Twin critics, each of (obs, action) -> value.


def init_critics(
    optimizer: Optimizer,
    key: jax.Array,
    sizes: Sequence[int],
    batch_norm: bool = False,
) -> tuple[Network, ...]:
    """Returns two untrained critics with layer widths `sizes`."""
    return tuple(init_network(optimizer, k, sizes, batch_norm) for k in jax.random.split(key))


def at(critics: Sequence[MLP], obs: jax.Array) -> tuple[Folded, ...]:
    """Returns critics without batch norm as functions of the action, at observations [B, O]."""
    return tuple(networks.bind(networks.fold(critic, ()), obs) for critic in critics)


def bound(critics: Sequence[Network], obs: jax.Array) -> tuple[Folded, ...]:
    """Returns trained critics as functions of the action, at observations [B, O]."""
    return tuple(networks.bind(folded(critic), obs) for critic in critics)


def values(
    critics: Sequence[Folded], action: jax.Array, activation: Activation = "relu"
) -> jax.Array:
    """Returns the values [2, B] of actions [B, A]; observations are bound."""
    # One product after the other: twice as fast on XLA:CPU as both batched by vmap.
    return jnp.stack(
        [networks.apply_folded(critic, action, activation)[:, 0] for critic in critics]
    )


def min_value(critics: Sequence[Folded], activation: Activation = "relu") -> Callable:
    """Returns the critics' minimum as a function of actions [B, A]; observations are bound."""
    return lambda action: jnp.min(values(critics, action, activation), axis=0)


def td_step(
    optimizer: Optimizer,
    critics: tuple[Network, ...],
    batch: Transition,
    target: jax.Array,
    activation: Activation,
) -> tuple[tuple[Network, ...], Metrics]:
    """Moves both critics towards `target` [B] in mean square; returns (critics, metrics)."""

    def loss(params: tuple[MLP, ...]):
        value = values(at(params, batch.obs), batch.action, activation)
        errors = jnp.mean(jnp.square(value - jax.lax.stop_gradient(target)[None]), axis=1)
        return jnp.sum(errors), (errors, value)

    params = tuple(critic.params for critic in critics)
    gradients, (errors, value) = jax.grad(loss, has_aux=True)(params)
    critics = tuple(
        descend(optimizer, critic, gradient)
        for critic, gradient in zip(critics, gradients, strict=True)
    )
    return critics, value_metrics(errors, value)


def value_metrics(errors: jax.Array, value: jax.Array) -> Metrics:
    """Returns the metrics that every critic reports, of losses [2] and values [2, B]."""
    return {
        "critic_loss": jnp.mean(errors),
        "q_mean": jnp.mean(value),
        "q_scale": jnp.mean(jnp.abs(value)),
    }


# Gaussian heads.


def gaussian(output: jax.Array, log_std_range: tuple[float, float]) -> tuple[jax.Array, jax.Array]:
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
        return tanh_gaussian(*gaussian(output, self.log_std_range), noise, self.correction)

    def sample(self, network: Network, obs: jax.Array, noise: jax.Array):
        """Returns actions [B, A] and log densities [B] at observations [B, O]."""
        output = networks.apply_folded(folded(network), obs, self.activation)
        return self.head(output, noise)

    def act(self, network: Network, obs: jax.Array, key: jax.Array, mode: Mode) -> jax.Array:
        """Draws actions [N, A], or gives tanh of the mean in evaluation."""
        noise = jax.random.normal(key, (obs.shape[0], network.params.layers[-1].bias.size // 2))
        noise = noise if mode == "explore" else jnp.zeros_like(noise)
        return self.sample(network, obs, noise)[0]

    def parts(self, network: Network, obs: jax.Array, value: Callable) -> PolicyParts:
        """Takes the policy apart at observations [N, O], where `value` judges actions [N, A]."""
        action_size = network.params.layers[-1].bias.size // 2
        return PolicyParts(
            start=lambda noise: self.sample(network, obs, noise)[0],
            eval_noise=jnp.zeros((obs.shape[0], action_size)),
            velocity=None,
            value=value,
        )


def climb(
    optimizer: Optimizer,
    policy: Network,
    head: Callable[[jax.Array], tuple[jax.Array, jax.Array]],
    value: Callable[[jax.Array], jax.Array],
    alpha: jax.Array,
    obs: jax.Array,
    activation: Activation,
    warmup: int = 0,
) -> tuple[Network, jax.Array, jax.Array]:
    """Moves a policy towards high soft values: down the gradient of mean(alpha log pi - Q).

    Args:
      optimizer: of the policy.
      policy: the network, obs -> output of the head.
      head: maps outputs to actions [B, A] and their log densities [B], differentiably.
      value: maps actions [B, A] to values [B] at `obs`.
      alpha: weight [] of the entropy.
      obs: observations [B, O].
      activation: of the policy.
      warmup: of its batch renormalisation.

    Returns:
      The policy, and of this device's observations its loss [] and the entropy [] per actuator in
      nats that it had before.
    """

    def loss(params: MLP):
        output, moments = networks.apply_train(
            params, policy.moments, obs, warmup, activation, optimizer.axis_name
        )
        action, log_prob = head(output)
        entropy = -jnp.mean(log_prob) / action.shape[-1]
        return jnp.mean(alpha * log_prob - value(action)), (moments, entropy)

    (policy_loss, (moments, entropy)), gradient = jax.value_and_grad(loss, has_aux=True)(
        policy.params
    )
    return descend(optimizer, policy, gradient, moments), policy_loss, entropy


def normal(shape: Sequence[int]) -> Callable[[jax.Array], jax.Array]:
    """Returns `draw(key)`: standard normal numbers of a shape."""
    return lambda key: jax.random.normal(key, shape)


def normal_source(mode: Mode, key: jax.Array, shape: Sequence[int]) -> tuple[Callable, jax.Array]:
    """Returns `draw(key) -> [N, A]` and the key to use for a mode of acting."""
    return (normal(shape), key) if mode == "explore" else fixed_normal(shape)


def fixed_normal(shape: Sequence[int]) -> tuple[Callable, jax.Array]:
    """Returns `draw(key) -> [N, A]` and the key of evaluation.

    It is one key for ever and one draw for all rows, so that evaluation is a function of the
    observation alone.
    """
    one = normal((1, *shape[1:]))
    return lambda key: jnp.broadcast_to(one(key), shape), jax.random.key(EVAL_NOISE_SEED)


def best_of(
    number: int,
    draw: Callable[[jax.Array], jax.Array],
    value: Callable[[jax.Array], jax.Array],
    key: jax.Array,
) -> jax.Array:
    """Returns for each row the action [B, A] of highest value among `number` draws.

    Args:
      number: of draws; 1 needs no values.
      draw: maps a key to actions [B, A].
      value: maps actions [B, A] to values [B].
      key: of the draws.
    """
    if number == 1:
        return draw(key)
    return highest(jax.vmap(draw)(jax.random.split(key, number)), value)


def highest(actions: jax.Array, value: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """Returns for each row the action [B, A] of highest `value` among candidates [K, B, A]."""
    best = jnp.argmax(jax.vmap(value)(actions), axis=0)
    return jnp.take_along_axis(actions, best[None, :, None], axis=0)[0]


# Temperature.


def init_temperature(optimizer: Optimizer, alpha: float) -> Temperature:
    """Returns a temperature that starts at `alpha`."""
    log_alpha = jnp.asarray(math.log(alpha), jnp.float32)
    return Temperature(log_alpha, optimizer.init(log_alpha))


def adapt_temperature(
    optimizer: Optimizer, temperature: Temperature, excess: jax.Array
) -> Temperature:
    """Lowers the temperature where the entropy exceeds its target by `excess` [], else raises it.

    It descends on log(alpha) times excess.
    """
    updates, state = optimizer.update(excess, temperature.optimizer)
    return Temperature(temperature.log_alpha + updates, state)  # pyright: ignore
