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
from mjx_qflex.networks import MLP, Activation, BatchStats, InferenceMLP
from mjx_qflex.types import Metrics, Transition

EVAL_NOISE_SEED = 0
Decay = Literal["linear", "cosine"]  # of a learning rate
Tree = TypeVar("Tree")


class TrainState(NamedTuple):
    """A network in training: parameters, batch statistics, and the optimiser's state."""

    params: Any  # an MLP, or a named tuple of several
    batch_stats: tuple[BatchStats, ...]  # () without batch norm
    opt_state: optax.OptState


class Temperature(NamedTuple):
    """Weight of the entropy, learned in its logarithm."""

    log_alpha: jax.Array  # []
    opt_state: optax.OptState


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


def adam(learning_rate: optax.ScalarOrSchedule, b1: float = 0.9) -> optax.GradientTransformation:
    """Returns Adam, with decay `b1` of the mean gradient.

    Its `update` takes a device's own gradient, and steps along the mean over all devices that share
    a batch.
    """
    inner = optax.adam(learning_rate, b1=b1)

    def update(updates: Any, state: optax.OptState, params: Any = None):
        return inner.update(parallel.mean(updates), state, params)

    return optax.GradientTransformation(inner.init, update)


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


def train_state(
    optimizer: optax.GradientTransformation,
    params: Any,
    batch_stats: tuple[BatchStats, ...] = (),
) -> TrainState:
    """Returns parameters that no update has changed yet."""
    return TrainState(params, batch_stats, optimizer.init(params))


def init_network(
    optimizer: optax.GradientTransformation,
    key: jax.Array,
    sizes: Sequence[int],
    batch_norm: bool = False,
) -> TrainState:
    """Returns an untrained network with layer widths `sizes`, input and output too."""
    return train_state(optimizer, *networks.init_mlp(key, sizes, batch_norm))


def apply_gradients(
    optimizer: optax.GradientTransformation,
    state: TrainState,
    gradients: Any,
    batch_stats: tuple[BatchStats, ...] = (),
) -> TrainState:
    """Returns the network after one step against `gradients`, with its new batch statistics."""
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    return TrainState(optax.apply_updates(state.params, updates), batch_stats, opt_state)


def for_inference(network: TrainState | MLP) -> InferenceMLP:
    """Returns a network for use; an MLP by itself has no batch norm."""
    if isinstance(network, MLP):
        return networks.for_inference(network, ())
    return networks.for_inference(network.params, network.batch_stats)


def params_of(ensemble: Sequence[TrainState]) -> tuple[MLP, ...]:
    """Returns the parameters of each network of an ensemble."""
    return tuple(network.params for network in ensemble)


def copied(tree: Tree) -> Tree:
    """Returns a tree of equal arrays of its own: donation wants targets and critics apart."""
    return jax.tree.map(jnp.copy, tree)


def polyak(rate: float, new: Tree, old: Tree) -> Tree:
    """Returns Polyak's average `rate * new + (1 - rate) * old` of two trees of parameters."""
    return jax.tree.map(lambda x, y: rate * x + (1.0 - rate) * y, new, old)


def every(period: int, count: jax.Array, advance: Callable[[Tree], Tree], tree: Tree) -> Tree:
    """Returns `advance(tree)` where `count` is a multiple of `period`, else `tree`."""
    if period == 1:
        return advance(tree)
    return when(count % period == 0, advance, tree)


# An ensemble of critics, each of (obs, action) -> value.


def init_critics(
    optimizer: optax.GradientTransformation,
    key: jax.Array,
    sizes: Sequence[int],
    batch_norm: bool = False,
    number: int = 2,
) -> tuple[TrainState, ...]:
    """Returns untrained critics with layer widths `sizes`."""
    keys = jax.random.split(key, number)
    return tuple(init_network(optimizer, key, sizes, batch_norm) for key in keys)


def critics_at(critics: Sequence[TrainState | MLP], obs: jax.Array) -> tuple[InferenceMLP, ...]:
    """Returns critics as functions of the action alone, at observations [B, O]."""
    return tuple(networks.fix_inputs(for_inference(critic), obs) for critic in critics)


def q_values(
    critics: Sequence[InferenceMLP], action: jax.Array, activation: Activation = "relu"
) -> jax.Array:
    """Returns the values [E, B] of actions [B, A] by each of E critics; observations are fixed."""
    # One product after the other: twice as fast on XLA:CPU as both batched by vmap.
    return jnp.stack([networks.apply(critic, action, activation)[:, 0] for critic in critics])


def min_q(critics: Sequence[InferenceMLP], activation: Activation = "relu") -> Callable:
    """Returns the critics' minimum as a function of actions [B, A]; observations are fixed."""
    return lambda action: jnp.min(q_values(critics, action, activation), axis=0)


def td_step(
    optimizer: optax.GradientTransformation,
    critics: tuple[TrainState, ...],
    batch: Transition,
    target: jax.Array,
    activation: Activation,
) -> tuple[tuple[TrainState, ...], Metrics]:
    """Moves all critics towards `target` [B] in mean square; returns (critics, metrics)."""

    def loss(params: tuple[MLP, ...]):
        value = q_values(critics_at(params, batch.obs), batch.action, activation)
        errors = jnp.mean(jnp.square(value - jax.lax.stop_gradient(target)[None]), axis=1)
        return jnp.sum(errors), (errors, value)

    gradients, (errors, value) = jax.grad(loss, has_aux=True)(params_of(critics))
    critics = tuple(
        apply_gradients(optimizer, critic, gradient)
        for critic, gradient in zip(critics, gradients, strict=True)
    )
    return critics, value_metrics(errors, value)


def value_metrics(errors: jax.Array, value: jax.Array) -> Metrics:
    """Returns the metrics that every critic reports, of losses [E] and values [E, B]."""
    return {
        "critic_loss": jnp.mean(errors),
        "q_mean": jnp.mean(value),
        "q_scale": jnp.mean(jnp.abs(value)),
    }


# The policy.


def soft_policy_step(
    optimizer: optax.GradientTransformation,
    policy: TrainState,
    head: Callable[[jax.Array], tuple[jax.Array, jax.Array]],
    value: Callable[[jax.Array], jax.Array],
    alpha: jax.Array,
    obs: jax.Array,
    activation: Activation,
    warmup: int = 0,
) -> tuple[TrainState, jax.Array, jax.Array]:
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
        output, batch_stats = networks.apply_train(
            params, policy.batch_stats, obs, warmup, activation
        )
        action, log_prob = head(output)
        entropy = -jnp.mean(log_prob) / action.shape[-1]
        return jnp.mean(alpha * log_prob - value(action)), (batch_stats, entropy)

    (policy_loss, (batch_stats, entropy)), gradient = jax.value_and_grad(loss, has_aux=True)(
        policy.params
    )
    return apply_gradients(optimizer, policy, gradient, batch_stats), policy_loss, entropy


def normal(shape: Sequence[int]) -> Callable[[jax.Array], jax.Array]:
    """Returns `draw(key)`: standard normal numbers of a shape."""
    return lambda key: jax.random.normal(key, shape)


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


def init_temperature(optimizer: optax.GradientTransformation, alpha: float) -> Temperature:
    """Returns a temperature that starts at `alpha`."""
    log_alpha = jnp.asarray(math.log(alpha), jnp.float32)
    return Temperature(log_alpha, optimizer.init(log_alpha))


def adapt_temperature(
    optimizer: optax.GradientTransformation, temperature: Temperature, excess: jax.Array
) -> Temperature:
    """Lowers the temperature where the entropy exceeds its target by `excess` [], else raises it.

    It descends on log(alpha) times excess.
    """
    updates, state = optimizer.update(excess, temperature.opt_state)
    return Temperature(temperature.log_alpha + updates, state)  # pyright: ignore
