"""Means and random keys of a batch that several devices share.

A function that runs on every device of a mesh sees its own part of the batch, and the name of the
axis along which the others have theirs. `axis_name` None is one device alone: nothing is exchanged,
and the numbers are what they would be without this module.
"""

from typing import TypeVar

import jax

AXIS = "devices"  # of every mesh here
Tree = TypeVar("Tree")


def mean(tree: Tree, axis_name: str | None) -> Tree:
    """Returns the mean of `tree` over the devices; of equal parts, the mean over the whole batch.

    The gradient of a device's own loss through it is that of the sum of all devices' losses, so
    that the mean of the gradients is the gradient of the mean loss. (That is how `psum` transposes
    under `shard_map(check_vma=False)`.)
    """
    return tree if axis_name is None else jax.lax.pmean(tree, axis_name)


def total(tree: Tree, axis_name: str | None) -> Tree:
    """Returns the sum of `tree` over the devices."""
    return tree if axis_name is None else jax.lax.psum(tree, axis_name)


def share(number: int, axis_name: str | None) -> int:
    """Returns how many of `number` fall to each device, rounded up."""
    return number if axis_name is None else -(-number // jax.lax.axis_size(axis_name))


def split(key: jax.Array, number: int, axis_name: str | None) -> jax.Array:
    """Returns this device's `number` keys, of those that one device would draw for all."""
    if axis_name is None:
        return jax.random.split(key, number)
    keys = jax.random.split(key, number * jax.lax.axis_size(axis_name))
    return jax.lax.dynamic_slice_in_dim(keys, number * jax.lax.axis_index(axis_name), number)


def own(key: jax.Array, axis_name: str | None) -> jax.Array:
    """Returns this device's own key, out of one that all devices have alike."""
    return key if axis_name is None else jax.random.fold_in(key, jax.lax.axis_index(axis_name))
