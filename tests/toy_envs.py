"""Small environments under brax's protocol, for tests of the loop and of algorithms.

The probe environments have Q values that are known in closed form; each adds one thing that can
break (a constant reward, dependence on the observation, discounting, dependence on the action, the
end of an episode). The others count their own traces or go non-finite on demand.
"""

import jax
import jax.numpy as jnp
from brax.envs.base import Env, State
from flax import struct

from mjx_qflex import parallel
from mjx_qflex.types import Acted, Algorithm, Policy


@struct.dataclass
class Toy:
    """All that evolves in a toy environment."""

    value: jax.Array  # [O], what is observed
    time: jax.Array  # int32 [], steps since reset


class ToyEnv(Env):
    """A base: one-dimensional observation and action, subclasses give the rest."""

    episode_length = 1
    control_dt = 0.1
    observation_size = 1
    action_size = 1
    backend = "mjx"

    def _first(self, rng: jax.Array) -> jax.Array:
        """Returns the first observation [O]."""
        raise NotImplementedError

    def _next(self, toy: Toy, action: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Returns the next observation [O], the reward [] and whether the episode terminates []."""
        raise NotImplementedError

    def reset(self, rng: jax.Array) -> State:
        value = self._first(rng)
        zero = jnp.zeros(())
        return State(
            pipeline_state=Toy(value, jnp.zeros((), jnp.int32)),
            obs=value,
            reward=zero,
            done=zero,
            metrics={"reward/toy": zero},
            info={"truncation": zero},
        )

    def step(self, state: State, action: jax.Array) -> State:
        toy = state.pipeline_state
        value, reward, terminated = self._next(toy, jnp.clip(action, -1.0, 1.0))
        toy = Toy(value, toy.time + 1)
        done = jnp.asarray(terminated, jnp.float32)
        truncation = jnp.asarray(toy.time >= self.episode_length, jnp.float32) * (1.0 - done)
        return state.replace(
            pipeline_state=toy,
            obs=value,
            reward=reward,
            done=done,
            metrics={"reward/toy": reward},
            info={"truncation": truncation},
        )


def _random_sign(rng: jax.Array) -> jax.Array:
    return jnp.where(jax.random.bernoulli(rng, shape=(1,)), 1.0, -1.0)


class ConstantReward(ToyEnv):
    """One step, reward 1, termination: Q = 1."""

    def _first(self, rng):
        return jnp.zeros(1)

    def _next(self, toy, action):
        return toy.value, jnp.ones(()), True


class ObservationReward(ToyEnv):
    """One step, the reward is the observation, -1 or 1, then termination: Q(s, a) = s."""

    def _first(self, rng):
        return _random_sign(rng)

    def _next(self, toy, action):
        return toy.value, toy.value[0], True


class ObservationLabels(ConstantReward):
    """One step, observing a random label."""

    def _first(self, rng):
        return jax.random.uniform(rng, (1,))


class DelayedReward(ToyEnv):
    """Observation 0 then 1, reward only on the second step: Q(0, a) = gamma, Q(1, a) = 1."""

    episode_length = 10

    def _first(self, rng):
        return jnp.zeros(1)

    def _next(self, toy, action):
        last = toy.time >= 1
        return jnp.ones(1), jnp.where(last, 1.0, 0.0), last


class ActionReward(ToyEnv):
    """One step, reward -(a - 0.5 s)^2 with s = -1 or 1: Q(s, a) is the same, best action 0.5 s."""

    def _first(self, rng):
        return _random_sign(rng)

    def _next(self, toy, action):
        return toy.value, -jnp.square(action[0] - 0.5 * toy.value[0]), True


class EndlessReward(ToyEnv):
    """Reward 1 a step and a time-out after 4: bootstrapped, Q = 1 / (1 - gamma).

    Were the time-out taken for a termination, Q would be at most 4.
    """

    episode_length = 4
    terminates = False

    def _first(self, rng):
        return jnp.zeros(1)

    def _next(self, toy, action):
        ends = toy.time + 1 >= self.episode_length
        return toy.value, jnp.ones(()), ends & self.terminates


class MortalReward(EndlessReward):
    """The same ending by termination, the time not observed: Q <= 4."""

    terminates = True


class Counter(ToyEnv):
    """Observes [episode's random label, steps since reset]; counts how often Python traces it.

    Reward: the action plus 0.1 per step since the reset. The environment terminates at step 3
    where its label is below `death_label`, else it times out. It goes non-finite in the step that
    follows time `poison_time`, where its label exceeds `poison_label`.
    """

    episode_length = 5
    observation_size = 2

    def __init__(self, death_label=0.3, poison_label=2.0, poison_time=1):
        self.death_label = death_label
        self.poison_label = poison_label
        self.poison_time = poison_time
        self.traces = {"reset": 0, "step": 0}

    def _first(self, rng):
        self.traces["reset"] += 1
        return jnp.stack([jax.random.uniform(rng), jnp.zeros(())])

    def _next(self, toy, action):
        self.traces["step"] += 1
        label, time = toy.value
        poisoned = (label > self.poison_label) & (toy.time >= self.poison_time)
        value = jnp.stack([label, time + jnp.where(poisoned, jnp.nan, 1.0)])
        return value, action[0] + 0.1 * time, (label < self.death_label) & (toy.time >= 2)


def random_algorithm(observation_size: int, action_size: int) -> Algorithm:
    """An algorithm for tests of the loop: random actions, a learner that sums what it is given.

    Its acting state counts the steps since the episode began; its mode acts with the learner's sum.
    """

    def init(key):
        weight = jax.random.normal(key, (observation_size,))
        # Target and parameters start equal: a trap for donation.
        return {"weight": weight, "target": weight, "updates": jnp.zeros((), jnp.int32)}

    def policy(learner):
        def sample(obs, state, key):
            action = jax.random.uniform(key, (obs.shape[0], action_size), minval=-1.0)
            return Acted(action, state + 1)

        def mode(obs, state):
            action = jnp.tanh(obs @ learner["weight"])[:, None] * jnp.ones((1, action_size))
            return Acted(action, state + 1)

        return Policy(lambda num_envs: jnp.zeros(num_envs, jnp.int32), sample, mode)

    def update(learner, batch, key):
        noise = 0.01 * jax.random.normal(key, (observation_size,))
        seen, noise = parallel.mean((batch.next_obs.mean(axis=0), noise))
        weight = 0.9 * learner["weight"] + 0.1 * seen + noise
        learner = {
            "weight": weight,
            "target": learner["weight"],
            "updates": learner["updates"] + 1,
        }
        return learner, {"batch_reward": batch.reward.mean(), "updates": learner["updates"]}

    return Algorithm(init, policy, update)
