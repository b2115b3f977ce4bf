"""Learning: sample batches, update the learner. Where they come from is the sampler's affair."""

from typing import Protocol

import jax

from mjx_qflex.types import Algorithm, Learner, Metrics, Transition


class Sampler(Protocol):
    """Draws batches from data: `replay.sample` from the ring, `dataset.sample` from a data set."""

    def __call__(self, data, key: jax.Array, shape: tuple[int, ...], /) -> Transition:
        """Returns transitions with fields `[*shape, ...]`, drawn with replacement."""
        ...


def learn(
    algorithm: Algorithm,
    sample: Sampler,
    data,
    learner: Learner,
    key: jax.Array,
    num_updates: int,
    batch_size: int,
) -> tuple[Learner, Metrics]:
    """Runs `num_updates` updates, each on a batch of its own; returns their metrics averaged."""
    if num_updates == 0:
        return learner, {}
    key_sample, key_update = jax.random.split(key)
    # One gather for all updates: the data does not change between them, and stays out of the
    # inner scan.
    batches = sample(data, key_sample, (num_updates, batch_size))

    def update(learner, inputs):
        batch, key = inputs
        return algorithm.update(learner, batch, key)

    learner, metrics = jax.lax.scan(
        update, learner, (batches, jax.random.split(key_update, num_updates))
    )
    return learner, {f"update/{name}": value.mean() for name, value in metrics.items()}
