"""Several processes, on one host or on many, that train one run together.

Each runs the same command and sees all devices, but feeds its own alone; what they compute together
they must all call in the same order. So what one of them alone can know, such as a signal or the
time, they agree on between epochs. The first owns the run folder and does the talking.
"""

import contextlib
import importlib.util
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from mjx_qflex.errors import UserError

# The others wait so long for the first, which evaluates and films at the end of a run.
FINISH_SECONDS = 3600


def start(
    coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> None:
    """Joins the other processes: those of the flags, or of Slurm, Open MPI or a TPU pod.

    Must come before anything that makes JAX look for its devices.

    Args:
      coordinator: "host:port" of the first process; None looks around for a cluster.
      num_processes: of all; 1 looks for no cluster.
      process_id: of this one, from 0 on.

    Raises:
      UserError: flags that do not go together.
    """
    given = [value is not None for value in (coordinator, num_processes, process_id)]
    if coordinator is None and num_processes == 1:
        return
    if any(given) and not all(given):
        raise UserError(
            "processes are found by --coordinator=HOST:PORT, --num_processes=NUMBER and "
            "--process_id=NUMBER together; give all three or none"
        )
    if coordinator is not None:
        assert num_processes is not None and process_id is not None
        host, _, port = coordinator.rpartition(":")
        if not host or not re.fullmatch("[0-9]{1,5}", port) or not 0 < int(port) < 2**16:
            raise UserError(f"--coordinator={coordinator}: give HOST:PORT, such as 10.0.0.1:1234")
        if not 0 <= process_id < num_processes:
            raise UserError(
                f"--process_id={process_id}: give 0 to {num_processes - 1}, one to each process"
            )
        _initialize(
            coordinator_address=coordinator,
            num_processes=num_processes,
            process_id=process_id,
            cluster_detection_method="deactivate",
        )
    elif in_cluster(os.environ):
        _initialize(local_device_ids=whole_node(os.environ))


def in_cluster(environment: Mapping[str, str]) -> bool:
    """Returns whether the variables are those of one process among several that JAX can find.

    Raises:
      UserError: there are several, but JAX cannot find them.
    """
    if _count(environment, "SLURM_STEP_NUM_TASKS") > 1:
        return True
    if _count(environment, "OMPI_COMM_WORLD_SIZE") > 1:
        if "OMPI_MCA_orte_hnp_uri" not in environment:
            raise UserError(
                "this Open MPI does not tell where its first process is; give "
                "--coordinator=HOST:PORT, --num_processes and --process_id"
            )
        return True
    return _has_tpu()


def _has_tpu() -> bool:
    """Returns whether this is a TPU's host; JAX asks it for the others of its pod."""
    chips = [*Path("/dev").glob("accel*"), *Path("/dev/vfio").glob("[0-9]*")]
    return importlib.util.find_spec("libtpu") is not None and bool(chips)


def whole_node(environment: Mapping[str, str]) -> list[int] | None:
    """Returns all devices of the node where its one process has them; None leaves it to JAX.

    JAX gives each process of Slurm one device, also where the node has but one process.
    """
    tasks = environment.get("SLURM_STEP_TASKS_PER_NODE", "")
    number = environment.get("SLURM_GPUS_ON_NODE")
    alone = set(part.partition("(")[0] for part in tasks.split(",")) == {"1"}
    if not alone or not number:
        return None
    return list(range(_count(environment, "SLURM_GPUS_ON_NODE")))


def _count(environment: Mapping[str, str], name: str) -> int:
    """Returns a variable's number, 1 where it is not set.

    Raises:
      UserError: it is none.
    """
    text = environment.get(name, "1")
    if not re.fullmatch("[0-9]{1,6}", text):
        raise UserError(f"{name}={text!r} is no number of processes or devices; unset it")
    return int(text)


def _initialize(**options: Any) -> None:
    # JAX would take SIGTERM for itself.
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(shutdown_timeout_seconds=FINISH_SECONDS, **options)


def leave() -> None:
    """Waits until all processes are here, and parts from them; ends what `start` began."""
    if several():
        jax.distributed.shutdown()


def several() -> bool:
    return jax.process_count() > 1


def is_first() -> bool:
    """Returns whether this process owns the run folder."""
    return jax.process_index() == 0


@contextlib.contextmanager
def first_alone(context: contextlib.AbstractContextManager) -> Iterator[None]:
    """Enters a context in the first process alone; what it refuses, all processes refuse.

    Raises:
      UserError: the first process's own, or that there was one.
    """
    refused: UserError | None = None
    with contextlib.ExitStack() as stack:
        if is_first():
            try:
                stack.enter_context(context)
            except UserError as error:
                refused = error
        (failed,) = largest(refused is not None)
        if failed:
            raise refused or UserError("the first process refuses this command; see what it says")
        yield


def barrier(name: str) -> None:
    """Waits until all processes have come to this place, called `name`."""
    if several():
        multihost_utils.sync_global_devices(name)


def largest(*values: float) -> list[float]:
    """Returns the largest of each of `values` over all processes, which must all call this."""
    if not several():
        return list(values)
    return np.max(multihost_utils.process_allgather(np.asarray(values)), axis=0).tolist()
