"""The shapes that every part of the library agrees on: transitions, algorithms, parts of policies.

Environments follow brax's protocol (`brax.envs.base.Env` and `State`); nothing is added to it but
two conventions. `State.done` is 1 on termination only, and a time-out is
`State.info["truncation"] = 1`, so that the value of a timed-out state is still bootstrapped.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax

Mode = Literal["explore", "eval"]
Learner = Any  # pytree of everything an algorithm learns: parameters, statistics, optimiser states
Carry = Any  # pytree of per-environment acting state, leading axis N; () for most algorithms
Metrics = dict[str, jax.Array]


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


class PolicyParts(NamedTuple):
    """A policy taken apart at observations [N, O], for what moves its actions along a critic.

    An action begins as `start(noise)` and follows `velocity` from time 0 to time 1; in evaluation
    the noise is `eval_noise`.
    """

    start: Callable[[jax.Array], jax.Array]  # standard normal noise [N, A] -> actions [N, A]
    eval_noise: jax.Array  # [N, A]
    # (actions [N, A], times [N, 1]) -> velocities [N, A]; None where actions stay as they start
    velocity: Callable[[jax.Array, jax.Array], jax.Array] | None
    value: Callable[[jax.Array], jax.Array]  # actions [N, A] -> the critics' minimum [N]


class Algorithm(NamedTuple):
    """A learning algorithm as pure functions; all state lives outside, in `learner` and `carry`.

    * `init(key) -> learner`
    * `init_carry(num_envs) -> carry`, the acting state of freshly reset environments
    * `act(learner, obs [N, O], carry, key, mode) -> (action [N, A], carry)`, `mode` is static
    * `update(learner, batch: Transition [B, ...], key) -> (learner, metrics)`; the metrics are
      scalars under keys that never change

    With an `axis_name`, `update` runs on each device along that axis, on its own part of the batch
    and with a key of its own; the learner stays the same on all, metrics are of the own part.
    """

    init: Callable[[jax.Array], Learner]
    init_carry: Callable[[int], Carry]
    act: Callable[[Learner, jax.Array, Carry, jax.Array, Mode], tuple[jax.Array, Carry]]
    update: Callable[[Learner, Transition, jax.Array], tuple[Learner, Metrics]]
    axis_name: str | None = None


class Agent(NamedTuple):
    """What acts but is trained elsewhere: an `Algorithm` without `update`."""

    init: Callable[[jax.Array], Learner]
    init_carry: Callable[[int], Carry]
    act: Callable[[Learner, jax.Array, Carry, jax.Array, Mode], tuple[jax.Array, Carry]]
