"""Means and random keys of a batch that several devices share: the one place that knows of them.

Inside `jax.shard_map` over a mesh with the axis `AXIS` every device runs the same function on its
own part of the batch, and these functions meet the others. Anywhere else they exchange nothing, and
the numbers are what they would be without this module. So an algorithm is written for one batch,
and takes its gradients' and batch statistics' means from here.
"""

from typing import TypeVar

import jax

AXIS = "devices"  # of every mesh here
Tree = TypeVar("Tree")


def number_of_devices() -> int | None:
    """Returns how many devices share what is being traced; None outside of a mesh."""
    try:
        return jax.lax.axis_size(AXIS)
    except NameError:  # what JAX raises of an axis that is not there
        return None


def mean(tree: Tree) -> Tree:
    """Returns the mean of `tree` over the devices; of equal parts, the mean over the whole batch.

    The gradient of a device's own loss through it is that of the sum of all devices' losses, so
    that the mean of the gradients is the gradient of the mean loss. (That is how `psum` transposes
    under `shard_map(check_vma=False)`.)
    """
    return tree if number_of_devices() is None else jax.lax.pmean(tree, AXIS)


def total(tree: Tree) -> Tree:
    """Returns the sum of `tree` over the devices."""
    return tree if number_of_devices() is None else jax.lax.psum(tree, AXIS)


def share(number: int) -> int:
    """Returns how many of `number` fall to each device, rounded up."""
    return -(-number // (number_of_devices() or 1))


def split(key: jax.Array, number: int) -> jax.Array:
    """Returns this device's `number` keys, of those that one device would draw for all."""
    devices = number_of_devices()
    if devices is None:
        return jax.random.split(key, number)
    keys = jax.random.split(key, number * devices)
    return jax.lax.dynamic_slice_in_dim(keys, number * jax.lax.axis_index(AXIS), number)


def fold_in_device(key: jax.Array) -> jax.Array:
    """Returns this device's own key, out of one that all devices have alike."""
    if number_of_devices() is None:
        return key
    return jax.random.fold_in(key, jax.lax.axis_index(AXIS))
