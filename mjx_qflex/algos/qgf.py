"""QGF: guiding a trained policy uphill on its critic while it acts (arXiv 2606.11087).

A wrapper `Algorithm -> Algorithm`. At time t of a flow with velocity v, the action a is on its way
to a1 = clip(a + (1 - t) v, -1, 1); a step of length dt is

    a <- a + dt (v + w g),  g = dQ/da1 at a1,  Q the minimum of the (target) critics,

as if a1 moved with a one to one: no derivative of the velocity is needed. The weight w takes the
place of 1 / beta in a policy that follows pi exp(Q / beta). Gaussian policies have v = 0.

It changes evaluation alone. Exploring stays the algorithm's own, so that training a guided
algorithm is training the algorithm, bit for bit.

Departures from the paper. The critics are those that the algorithm trained, not IQL's. The sampler
is that of `flow`, which bounds v (not w g). Evaluation stays a function of the observation: the
first of `best_of` candidates starts where the unguided policy starts (for a Gaussian its mean), the
others from fixed draws of its noise.

With weight 0 and one candidate the action is the unguided policy's, clipped to the box: for a
Gaussian always, for a flow where it acts on the same grid (`euler_steps`, `euler_grid`). On another
grid the two differ by the error of integration. QGF's grid is 10 steps at their left ends, that of
Qflex's code 20 at their right ends.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mjx_qflex import flow
from mjx_qflex.algos import common
from mjx_qflex.types import Acted, ActingState, Algorithm, FlowParts, Learner, Policy, Transition


@dataclasses.dataclass(frozen=True)
class QgfConfig:
    """Options of QGF."""

    weight: float = 0.1  # w at first; `Guided.weight` holds it (paper: 0.004 to 0.12)
    euler_steps: int = 10  # one lasts dt = 1 / euler_steps
    euler_grid: flow.EulerGrid = "left"  # end of a step that the velocity is taken at
    best_of: int = 1  # candidates, of which the critics choose one


class Guided(NamedTuple):
    """The learner of a guided algorithm. The weight is data: another needs no compilation."""

    learner: Learner  # of the algorithm that is guided
    weight: jax.Array  # [] w


def guide(algorithm: Algorithm, config: QgfConfig) -> Algorithm:
    """Returns the algorithm that evaluates with guidance; its learner is a `Guided`.

    Args:
      algorithm: the one to guide; its policy has `parts` (`algos.refuse_unguidable`).
      config: options.

    Raises:
      UserError: an option's value is refused.
    """
    common.check_options("qgf", config)

    def init(key: jax.Array) -> Guided:
        return Guided(algorithm.init(key), jnp.asarray(config.weight, jnp.float32))

    def policy(guided: Guided) -> Policy:
        own = algorithm.policy(guided.learner)
        assert own.parts is not None, "the policy cannot be taken apart"
        parts = own.parts

        def mode(obs: jax.Array, state: ActingState) -> Acted:
            return Acted(best_action(config, parts(obs), guided.weight), state)

        return own._replace(mode=mode)

    def update(guided: Guided, batch: Transition, key: jax.Array):
        learner, metrics = algorithm.update(guided.learner, batch, key)
        return guided._replace(learner=learner), metrics

    return Algorithm(init, policy, update)


def best_action(config: QgfConfig, parts: FlowParts, weight: jax.Array) -> jax.Array:
    """Returns the best of the guided candidates [N, A] in evaluation."""
    action = sample(config, parts, weight, parts.start(parts.mode_noise))
    if config.best_of == 1:
        return action
    draw, key = common.fixed_normal(parts.mode_noise.shape)

    def candidate(key: jax.Array) -> jax.Array:
        return sample(config, parts, weight, parts.start(draw(key)))

    others = jax.vmap(candidate)(jax.random.split(key, config.best_of - 1))
    return common.highest(jnp.concatenate([action[None], others]), parts.value)


def sample(config: QgfConfig, parts: FlowParts, weight: jax.Array, start: jax.Array) -> jax.Array:
    """Carries actions `start` [N, A] along the guided flow; returns them in the box [N, A]."""
    gradient = jax.grad(lambda action: jnp.sum(parts.value(action)))

    def guidance(action: jax.Array, velocity: jax.Array, left: jax.Array) -> jax.Array:
        clean = jnp.clip(action + left * velocity, -1.0, 1.0)
        return weight * gradient(clean)

    velocity = parts.velocity or (lambda action, time: jnp.zeros_like(action))
    end = flow.euler_sample(velocity, start, config.euler_steps, config.euler_grid, guidance)
    return jnp.clip(end, -1.0, 1.0)
