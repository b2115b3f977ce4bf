"""The interface of algorithms, by one that needs all of it.

Groups of muscles act alike, as in DynSyn; each muscle is pulled back to where its length was when
the episode began, which the acting state remembers, as in DEP; five critics learn from rewards and
from an entropy bonus that the transition carries along.
"""

import acting
import jax
import jax.numpy as jnp
import numpy as np
import optax
from toy_envs import Counter

from mjx_qflex import algos, parallel, tasks
from mjx_qflex.algos import common
from mjx_qflex.sizes import LoopConfig
from mjx_qflex.training import environments
from mjx_qflex.training import replay as ring
from mjx_qflex.training.loop import make_loop
from mjx_qflex.types import Acted, Algorithm, EnvSpec, Policy

CRITICS = 5
SIZES = LoopConfig(
    num_envs=4, batch_size=8, updates_per_step=1, prefill_transitions=40, replay_capacity=80,
    prefill_actions="policy", steps_per_epoch=6, reset_pool=4, eval_envs=2,
)  # fmt: skip


def grouped_algorithm(spec: EnvSpec) -> Algorithm:
    optimizer = optax.adam(1e-3)
    lengths = spec.observation["muscle_length"]
    group_of = np.zeros(spec.action_size, int)
    for number, group in enumerate(spec.muscle_groups):
        group_of[list(group)] = number

    def init(key):
        sizes = (spec.observation_size + spec.action_size, 16, 1)
        return common.init_critics(optimizer, key, sizes, number=CRITICS)

    def policy(critics):
        def pull(obs, first):
            first = jnp.where(jnp.isnan(first), obs[:, lengths], first)
            return first, jnp.tanh(obs[:, lengths] - first)

        def sample(obs, state, key):
            state, action = pull(obs, state)
            noise = jax.random.normal(key, (len(obs), len(spec.muscle_groups)))
            bonus = -0.5 * jnp.sum(jnp.square(noise), axis=1)
            action = jnp.tanh(action + noise[:, group_of])
            return Acted(action, state, {"log_prob": bonus, "group_noise": noise})

        def mode(obs, state):
            state, action = pull(obs, state)
            return Acted(action, state)

        def fresh(num_envs):
            return jnp.full((num_envs, spec.action_size), jnp.nan)

        return Policy(fresh, sample, mode)

    def update(critics, batch, key):
        target = batch.reward - 0.1 * batch.extras["log_prob"]
        critics, metrics = common.td_step(optimizer, critics, batch, target, "relu")
        spread = jnp.std(common.q_values(common.critics_at(critics, batch.obs), batch.action), 0)
        return critics, metrics | {"disagreement": parallel.mean(spread.mean())}

    return Algorithm(init, policy, update)


class Muscled(Counter):
    """A counter whose observation is called a muscle's length, with four muscles in two groups."""

    action_size = 4
    observation_parts = {"muscle_length": slice(0, 2)}
    muscle_groups = ((0, 3), (1, 2))

    def _next(self, toy, action):
        return super()._next(toy, action[:1])


def test_an_algorithm_that_needs_all_of_it_trains():
    env = Muscled()
    spec = environments.spec(env)._replace(observation={"muscle_length": slice(0, 1)})
    algorithm = grouped_algorithm(spec._replace(action_size=4))
    loop = make_loop(env, algorithm, SIZES)
    run = loop.prefill(loop.init(loop.key([0])))
    before = jax.device_get(run.learner)
    run, metrics = loop.epoch(run)
    assert len(run.learner) == CRITICS and metrics["update/disagreement"] > 0
    batch = ring.sample(run.device.replay, jax.random.PRNGKey(1), (128,))
    noise = np.asarray(batch.extras["group_noise"])
    np.testing.assert_allclose(batch.extras["log_prob"], -0.5 * (noise**2).sum(axis=1), rtol=1e-5)
    np.testing.assert_array_equal(batch.action[:, 0], batch.action[:, 3])
    np.testing.assert_array_equal(batch.action[:, 1], batch.action[:, 2])
    for old, new in zip(before, run.learner, strict=True):
        kernel, moved = old.params.layers[0].kernel, new.params.layers[0].kernel
        assert not np.array_equal(kernel, moved)
    result = loop.evaluate(run.learner, jax.random.PRNGKey(2))
    assert np.isfinite(result.return_).all()


def test_tasks_on_muscles_say_where_their_observation_has_what():
    env = tasks.make("myo_leg_walk")
    spec = environments.spec(env)
    state = jax.jit(env.reset)(jax.random.PRNGKey(0))
    muscles = jax.jit(env.body.muscles)(state.pipeline_state.physics)
    np.testing.assert_allclose(state.obs[spec.observation["muscle_length"]], muscles.length)
    np.testing.assert_allclose(
        state.obs[spec.observation["activation"]], state.pipeline_state.physics.act
    )
    ends = [part.stop for part in spec.observation.values()]
    assert ends[-1] == spec.observation_size and ends == sorted(ends)


def test_a_gaussians_density_is_that_of_its_draws():
    """In one dimension it integrates to 1, and is highest where draws are."""
    config = algos.entry("sac").config_class(width=8, depth=1)
    algorithm = algos.make("sac", config, EnvSpec(2, 1))
    learner = algorithm.init(jax.random.key(0))
    policy = algorithm.policy(learner)
    grid = jnp.tanh(jnp.linspace(-7, 7, 20_001))  # fine where tanh squeezes
    obs = jnp.ones((grid.size, 2))
    density = np.exp(policy.log_prob(obs, grid[:, None]))
    np.testing.assert_allclose(np.trapezoid(density, grid), 1.0, atol=0.02)
    draws = acting.act(algorithm, learner, obs, jax.random.key(1)).action[:, 0]
    share = np.mean(np.asarray(draws) < 0.3)
    below = np.asarray(grid) < 0.3
    np.testing.assert_allclose(np.trapezoid(density[below], grid[below]), share, atol=0.02)
