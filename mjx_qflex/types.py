"""The shapes that every part of the library agrees on: transitions, policies, algorithms.

Environments follow brax's protocol (`brax.envs.base.Env` and `State`); nothing is added to it but
two conventions. `State.done` is 1 on termination only, and a time-out is
`State.info["truncation"] = 1`, so that the value of a timed-out state is still bootstrapped.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax

Learner = Any  # pytree of everything an algorithm learns: parameters, statistics, optimiser states
ActingState = Any  # pytree, leading axis N, that acting carries from step to step; () for most
Metrics = dict[str, jax.Array]


class EnvSpec(NamedTuple):
    """What an algorithm is told of an environment.

    Attributes:
      observation_size: O.
      action_size: A; actions lie in [-1, 1].
      observation: parts of the observation by name, such as "muscle_length".
      muscle_groups: actuators that pull together, as tuples of their numbers; () where a body has
        no groups. No actuator is in two.
    """

    observation_size: int
    action_size: int
    observation: Mapping[str, slice] = MappingProxyType({})
    muscle_groups: tuple[tuple[int, ...], ...] = ()


class Transition(NamedTuple):
    """One step of experience, or a batch of them along leading axes `[...]`.

    `next_obs` is the observation that the action led to, before any reset; `discount` is 0 where
    the episode terminated there and 1 elsewhere, time-outs included.
    """

    obs: jax.Array  # [..., O]
    action: jax.Array  # [..., A]
    reward: jax.Array  # [...]
    discount: jax.Array  # [...]
    next_obs: jax.Array  # [..., O]
    extras: Mapping[str, jax.Array] = {}  # [..., ?], what the policy gave along with the action


class Acted(NamedTuple):
    """What a policy gives for observations [N, O]."""

    action: jax.Array  # [N, A]
    state: ActingState = ()  # [N, ...], for its next step
    extras: Mapping[str, jax.Array] = {}  # [N, ?], kept with the transition


class FlowParts(NamedTuple):
    """A policy taken apart at observations [N, O], for what moves its actions along a critic.

    An action begins as `start(noise)` and follows `velocity` from time 0 to time 1; the mode's
    noise is `mode_noise`.
    """

    start: Callable[[jax.Array], jax.Array]  # standard normal noise [N, A] -> actions [N, A]
    mode_noise: jax.Array  # [N, A]
    # (actions [N, A], times [N, 1]) -> velocities [N, A]; None where actions stay as they start
    velocity: Callable[[jax.Array, jax.Array], jax.Array] | None
    value: Callable[[jax.Array], jax.Array]  # actions [N, A] -> the critics' minimum [N]


class Policy(NamedTuple):
    """How actions are chosen, as pure functions; parameters are inside, acting state is outside.

    Attributes:
      init: number of environments -> acting state of freshly reset ones.
      sample: (obs [N, O], acting state, key) -> `Acted`, with the policy's own noise.
      mode: (obs [N, O], acting state) -> `Acted`: evaluation, a function of the two alone.
      log_prob: (obs [N, O], actions [N, A]) -> log density [N] of `sample`; None where unknown.
      parts: obs [N, O] -> `FlowParts`; None where the policy is no flow and no Gaussian, or where
        no critic judges actions.
    """

    init: Callable[[int], ActingState]
    sample: Callable[[jax.Array, ActingState, jax.Array], Acted]
    mode: Callable[[jax.Array, ActingState], Acted]
    log_prob: Callable[[jax.Array, jax.Array], jax.Array] | None = None
    parts: Callable[[jax.Array], FlowParts] | None = None


def stateless_policy(
    sample: Callable[[jax.Array, jax.Array], jax.Array],
    mode: Callable[[jax.Array], jax.Array],
    log_prob: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
    parts: Callable[[jax.Array], FlowParts] | None = None,
) -> Policy:
    """Returns the policy without acting state of `sample(obs, key)` and `mode(obs)` -> actions."""
    return Policy(
        init=lambda num_envs: (),
        sample=lambda obs, state, key: Acted(sample(obs, key), state),
        mode=lambda obs, state: Acted(mode(obs), state),
        log_prob=log_prob,
        parts=parts,
    )


def no_update(learner: Learner, batch: Transition, key: jax.Array) -> tuple[Learner, Metrics]:
    """Stands in for the update of an algorithm that learns from what it has just done."""
    raise TypeError("an on-policy algorithm learns nothing from a batch; brax trains it")


class Algorithm(NamedTuple):
    """A learning algorithm as pure functions; all state lives outside, in the learner.

    Attributes:
      init: key -> learner.
      policy: learner -> `Policy`.
      update: (learner, batch [B, ...], key) -> (learner, metrics); the metrics are scalars under
        keys that never change. It does not know where its batch comes from, nor how many devices
        share it (`parallel`). On-policy algorithms have none: brax trains them.
    """

    init: Callable[[jax.Array], Learner]
    policy: Callable[[Learner], Policy]
    update: Callable[[Learner, Transition, jax.Array], tuple[Learner, Metrics]] = no_update
