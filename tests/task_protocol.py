"""What every task owes the loop: checks by the task's name, and its programs, compiled once."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import absent_sources_skip

from mjx_qflex import tasks
from mjx_qflex.errors import UserError

WORLDS = 3
STEPS = 100


@functools.cache
def make(name):
    """The task, built once; skips the test where its body's source is absent."""
    with absent_sources_skip():
        return tasks.make(name)


@functools.cache
def compiled_step(name):
    env = make(name)
    return jax.jit(jax.vmap(env.step), compiler_options=env.compiler_options)


@functools.cache
def start(name):
    """`WORLDS` fresh worlds."""
    env = make(name)
    reset = jax.jit(jax.vmap(env.reset), compiler_options=env.compiler_options)
    return reset(jax.random.split(jax.random.PRNGKey(0), WORLDS))


def random_step(name, state, key):
    """Steps all worlds by random actions, some of them out of bounds; returns these too."""
    shape = (WORLDS, make(name).action_size)
    action = jax.random.uniform(key, shape, minval=-1.2, maxval=1.2)
    return compiled_step(name)(state, action), action


@functools.cache
def rollout(name):
    """Random actions: the first state, the last, `[STEPS, WORLDS, ...]` of all; and the actions."""
    state, kept, actions = start(name), [], []
    for key in jax.random.split(jax.random.PRNGKey(1), STEPS):
        state, action = random_step(name, state, key)
        kept.append((state.obs, state.reward, state.done, state.metrics, state.info))
        actions.append(action)
    return start(name), state, jax.tree.map(lambda *x: jnp.stack(x), *kept), jnp.stack(actions)


def sizes_and_types(name):
    env = make(name)
    first, _, (obs, reward, done, metrics, info), _ = rollout(name)
    assert first.obs.shape == (WORLDS, env.observation_size)
    assert obs.shape == (STEPS, WORLDS, env.observation_size)
    assert {x.dtype for x in (obs, reward, done, first.obs)} == {jnp.dtype("float32")}
    assert metrics.keys() == first.metrics.keys()
    assert info.keys() == first.info.keys() == {"truncation"}
    assert env.control_dt > 0


def steps_keep_the_types_of_resets(name):
    env = make(name)
    before = jax.eval_shape(env.reset, jax.random.PRNGKey(0))
    after = jax.eval_shape(env.step, before, jnp.zeros(env.action_size))
    assert jax.tree.structure(before) == jax.tree.structure(after)
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        assert (old.shape, old.dtype, old.weak_type) == (new.shape, new.dtype, new.weak_type)


def worlds_do_not_touch_each_other(name):
    action = jnp.zeros((WORLDS, make(name).action_size))
    step = compiled_step(name)
    one, other = step(start(name), action), step(start(name), action.at[0].set(1.0))
    np.testing.assert_array_equal(one.obs[1:], other.obs[1:])
    assert not np.array_equal(one.obs[0], other.obs[0])


def random_actions_stay_finite(name):
    _, end, steps, _ = rollout(name)
    for leaf in jax.tree.leaves((end, steps)):
        assert jnp.isfinite(leaf).all()


def reset_is_a_distribution(name):
    first = start(name)
    for world in range(1, WORLDS):
        assert jnp.abs(first.obs[0] - first.obs[world]).max() > 1e-3
    assert not first.done.any() and not first.info["truncation"].any()


def reward_is_the_sum_of_its_terms(name):
    _, _, (_, reward, _, metrics, _), _ = rollout(name)
    terms = [value for key, value in metrics.items() if key.startswith("reward/")]
    assert len(terms) > 1
    np.testing.assert_allclose(reward, sum(terms), rtol=1e-5, atol=1e-4)


def time_limit_truncates_and_does_not_terminate(name):
    first = start(name)
    steps = jnp.full(WORLDS, make(name).episode_length - 2, jnp.int32)
    state = first.replace(pipeline_state=first.pipeline_state._replace(steps=steps))
    for truncation in (0.0, 1.0):
        state, _ = random_step(name, state, jax.random.PRNGKey(2))
        assert state.info["truncation"].tolist() == [truncation] * WORLDS
        assert not state.done.any()


def random_actions_terminate_unless_the_task_never_does(name):
    """A task that can only time out says so: `terminates = False`."""
    env = make(name)
    _, state, (_, _, done, _, _), _ = rollout(name)
    ended = bool(done[: env.episode_length - 1].any())
    if not getattr(env, "terminates", True):
        assert not ended
        return
    for key in jax.random.split(jax.random.PRNGKey(3), max(0, env.episode_length - 1 - STEPS)):
        if ended:
            break
        state, _ = random_step(name, state, key)
        ended = bool(state.done.any())
    assert ended


def actions_are_clipped(name):
    step = compiled_step(name)
    for bound in (-1.0, 1.0):
        action = bound * jnp.ones((WORLDS, make(name).action_size))  # not weakly typed
        beyond, at = step(start(name), 7.0 * action), step(start(name), action)
        np.testing.assert_array_equal(beyond.obs, at.obs)


def unknown_option_is_refused(name):
    with pytest.raises(UserError, match="colour"):
        tasks.make(name, colour="red")


CHECKS = (
    sizes_and_types,
    steps_keep_the_types_of_resets,
    worlds_do_not_touch_each_other,
    random_actions_stay_finite,
    reset_is_a_distribution,
    reward_is_the_sum_of_its_terms,
    time_limit_truncates_and_does_not_terminate,
    random_actions_terminate_unless_the_task_never_does,
    actions_are_clipped,
    unknown_option_is_refused,
)
