"""A fixed data set is sampled as the ring is."""

import jax
import jax.numpy as jnp
import numpy as np

from mjx_qflex.training import dataset
from mjx_qflex.training.learn import learn
from mjx_qflex.types import Algorithm, Transition, stateless_policy

NUMBER = 50


def numbered():
    """Transitions whose fields all tell which one it is."""
    index = jnp.arange(NUMBER, dtype=jnp.float32)
    wide = index[:, None]
    return Transition(wide, -wide, index, jnp.ones(NUMBER), wide + 1, {"cost": 2 * index})


def test_samples_are_whole_and_uniform():
    batch = dataset.sample(dataset.make(numbered()), jax.random.key(0), (200, 100))
    index = np.asarray(batch.reward)
    np.testing.assert_array_equal(batch.obs[..., 0], index)
    np.testing.assert_array_equal(batch.action[..., 0], -index)
    np.testing.assert_array_equal(batch.next_obs[..., 0], index + 1)
    np.testing.assert_array_equal(batch.extras["cost"], 2 * index)
    counts = np.bincount(index.astype(int).ravel(), minlength=NUMBER)
    assert abs(counts - 400).max() < 5 * 400**0.5


def test_learning_does_not_know_where_batches_come_from():
    """The mean of what was seen converges to the data set's."""

    def update(learner, batch, key):
        return 0.9 * learner + 0.1 * batch.reward.mean(), {"seen": batch.reward.mean()}

    policy = stateless_policy(lambda obs, key: obs, lambda obs: obs)
    algorithm = Algorithm(lambda key: jnp.zeros(()), lambda learner: policy, update)
    data = dataset.make(numbered())
    learner, metrics = learn(
        algorithm, dataset.sample, data, jnp.zeros(()), jax.random.key(1), 200, 64
    )
    np.testing.assert_allclose(learner, (NUMBER - 1) / 2, atol=2.0)
    assert abs(metrics["update/seen"] - (NUMBER - 1) / 2) < 1.0
