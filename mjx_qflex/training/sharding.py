"""One program over several devices: what lies where, and how a function runs on all of them.

Each device has its own environments and their part of the ring; the learner, the key and the ring's
counters are the same on all. The arrays are global, `[N, ...]` over all devices' environments, so
that nothing in a `DeviceState`, nor in a checkpoint, depends on the number of devices.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mjx_qflex.errors import UserError
from mjx_qflex.parallel import AXIS
from mjx_qflex.sizes import LoopConfig
from mjx_qflex.training.program import Program


def make_mesh(number: int | None = None) -> Mesh | None:
    """Returns a mesh of `number` devices, by default all; None where that is one.

    Raises:
      UserError: there are not so many, or some processes would have none.
    """
    devices = jax.devices()
    number = len(devices) if number is None else number
    if not 1 <= number <= len(devices):
        raise UserError(f"--devices={number}: there are {len(devices)}; give 1 to {len(devices)}")
    if jax.process_count() > 1 and number < len(devices):
        raise UserError(
            f"--devices={number}: {jax.process_count()} processes have {len(devices)} together, "
            "and must use them all; leave that flag out"
        )
    return None if number == 1 else Mesh(np.asarray(devices[:number]), (AXIS,))


def share(config: LoopConfig, number: int) -> LoopConfig:
    """Returns the sizes of one of `number` devices; rings keep their number of rows.

    Raises:
      UserError: environments, batches or reset states cannot be shared equally.
    """
    sizes = {name: getattr(config, name) for name in ("num_envs", "batch_size", "reset_pool")}
    for name, size in sizes.items():
        if size % number:
            fits = max(n for n in range(1, number) if not any(s % n for s in sizes.values()))
            above = size + number - size % number
            raise UserError(
                f"loop.{name}={size} cannot be shared equally by {number} devices; give {above}, "
                f"or --devices={fits}"
            )

    def part(size: int) -> int:
        return -(-size // number)

    return replace(
        config,
        num_envs=config.num_envs // number,
        batch_size=config.batch_size // number,
        prefill_transitions=part(config.prefill_transitions),
        replay_capacity=part(config.replay_capacity),
        reset_pool=config.reset_pool // number,
    )


def program(
    mesh: Mesh,
    function: Callable,
    world_axes_in: Any,
    world_axes_out: Any,
    donate: tuple[int, ...],
    options: dict[str, Any],
) -> Program:
    """Returns the program that runs `function` on each device of `mesh`, on the device's own part.

    Args:
      mesh: of the devices.
      function: of one argument; reduces what it returns as the same for all.
      world_axes_in: the argument's axis of environments, by prefix; None is the same on all
      devices.
      world_axes_out: that of the results.
      donate: numbers of the arguments that are donated.
      options: of the compiler.
    """
    specs_in, specs_out = _specs(world_axes_in), _specs(world_axes_out)
    # Physics has loops over constants, which the check of what varies would have to be told of.
    mapped = jax.shard_map(
        function, mesh=mesh, in_specs=(specs_in,), out_specs=specs_out, check_vma=False
    )

    def jit(function: Callable, **arguments: Any) -> Callable:
        where = {"in_shardings": (_on(mesh, specs_in),), "out_shardings": _on(mesh, specs_out)}
        return jax.jit(function, **where, **arguments)

    return Program(mapped, donate, options, jit)


def free_together(mesh: Mesh | None, free: int) -> int:
    """Returns the bytes that all devices of `mesh` have free, where one memory has `free`."""
    return free * _memories(mesh)


def bytes_of_each(mesh: Mesh | None, num_bytes: int) -> int:
    """Returns what falls on each memory of `num_bytes` that the devices of `mesh` share."""
    return -(-num_bytes // _memories(mesh))


def _memories(mesh: Mesh | None) -> int:
    """Returns how many memories a mesh has; the virtual devices of a CPU have one in common."""
    if mesh is None:
        return 1
    of_one_memory = len(mesh.local_devices) if mesh.local_devices[0].platform == "cpu" else 1
    return mesh.size // of_one_memory


def placed(mesh: Mesh, shapes: Any, world_axes: Any) -> Any:
    """Returns `ShapeDtypeStruct`s that also say which device of `mesh` holds what."""

    def place(sharding: NamedSharding, part: Any) -> Any:
        return jax.tree.map(lambda x: x.update(sharding=sharding), part)

    return jax.tree.map(place, _on(mesh, _specs(world_axes)), shapes)


def on_first(tree: Any) -> Any:
    """Returns what is the same on all devices as arrays of this process's first; no copy."""
    return jax.tree.map(lambda x: x.addressable_data(0), tree)


def _specs(world_axes: Any) -> Any:
    def spec(axis: int | None) -> PartitionSpec:
        return PartitionSpec() if axis is None else PartitionSpec(*(None,) * axis, AXIS)

    return jax.tree.map(spec, world_axes, is_leaf=lambda axis: axis is None)


def _on(mesh: Mesh, specs: Any) -> Any:
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)
