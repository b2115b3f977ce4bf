"""One step of an algorithm's policy."""

import jax


def act(algorithm, learner, obs, key=None, state=None):
    """Returns `Acted` with the policy's own noise, or its mode where `key` is None."""
    policy = algorithm.policy(learner)
    state = policy.init(len(obs)) if state is None else state
    return policy.mode(obs, state) if key is None else policy.sample(obs, state, key)


def jitted(algorithm):
    """Returns `act` of an algorithm, compiled: (learner, obs, key or None) -> `Acted`."""
    return jax.jit(lambda learner, obs, key: act(algorithm, learner, obs, key))
