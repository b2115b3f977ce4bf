"""The device that JAX computes on, and the memory that is free there."""

import os
from pathlib import Path

import jax

from mjx_qflex.errors import UserError


def backend() -> str:
    """Returns the platform that JAX computes on, as `jax.default_backend()` names it.

    Raises:
      UserError: JAX finds none of the devices that it is told to use.
    """
    try:
        return jax.default_backend()
    except (RuntimeError, AssertionError) as error:
        why = f" ({str(error).splitlines()[0]})" if str(error) else ""
        told = os.environ.get("JAX_PLATFORMS", "")
        raise UserError(
            f"JAX finds no device with JAX_PLATFORMS={told!r}{why}; unset it, or set it to cpu"
        ) from error


def free_bytes() -> int | None:
    """Returns the bytes free on the default device, None where the platform does not tell."""
    device = jax.local_devices()[0]
    if device.platform == "cpu":
        return _free_host_bytes()
    stats = device.memory_stats() or {}
    if "bytes_limit" not in stats:
        return None
    return stats["bytes_limit"] - stats.get("bytes_in_use", 0)


def _free_host_bytes() -> int | None:
    """Returns the free memory of the host, or of its control group where that is less."""
    free = []
    available = _numbers(Path("/proc/meminfo")).get("MemAvailable:")
    if available is not None:
        free.append(available * 1024)
    elif "SC_AVPHYS_PAGES" in os.sysconf_names:
        free.append(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.exists() and limit.read_text().strip().isdigit():
        # Not memory.current: that counts the file cache, which gives way.
        used = _numbers(limit.with_name("memory.stat")).get("anon", 0)
        free.append(int(limit.read_text()) - used)
    return min(free, default=None)


def _numbers(path: Path) -> dict[str, int]:
    """Returns the lines "name number ..." of a file by name; none where there is no such file."""
    lines = path.read_text().splitlines() if path.exists() else []
    return {name: int(value) for name, value, *_ in map(str.split, lines)}
