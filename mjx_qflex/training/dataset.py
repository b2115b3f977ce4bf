"""A fixed set of transitions on the device, sampled as the replay ring is."""

import chex
import jax
from flax import struct

from mjx_qflex.types import Transition


class Dataset(struct.PyTreeNode):
    """M transitions, fields `[M, ...]`."""

    transitions: Transition

    @property
    def size(self) -> int:
        return self.transitions.reward.shape[0]


def make(transitions: Transition) -> Dataset:
    """Returns the data set of transitions with fields `[M, ...]`."""
    chex.assert_equal_shape_prefix(jax.tree.leaves(transitions), 1)
    return Dataset(transitions)


def sample(dataset: Dataset, key: jax.Array, shape: tuple[int, ...]) -> Transition:
    """Draws transitions uniformly, with replacement; fields are `[*shape, ...]`."""
    index = jax.random.randint(key, shape, 0, dataset.size)
    return jax.tree.map(lambda x: x[index], dataset.transitions)
