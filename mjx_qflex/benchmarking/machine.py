"""Where a measurement was made: hardware, versions, commit, and whether the machine was quiet."""

import os
import platform
import resource
import subprocess
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax

PACKAGES = (
    "mjx_qflex", "jax", "jaxlib", "mujoco", "mujoco-mjx", "brax", "optax", "numpy", "flashbax",
)  # fmt: skip
QUIET_LOAD = 0.25  # runnable processes per core before we begin
QUIET_OTHERS = 0.1  # cores that others use meanwhile
CPU_FIELDS = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")


def describe() -> dict[str, Any]:
    """Returns hardware, versions and commit as JSON values."""
    device = jax.devices()[0]
    limit = (device.memory_stats() or {}).get("bytes_limit") if device.platform != "cpu" else None
    return {
        "cpu": _cpu_model(),
        "cores": cores(),
        "memory_gib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30,
        "platform": device.platform,
        "device": device.device_kind,
        "devices": len(jax.devices()),
        "device_memory_gib": limit and limit / 2**30,
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: found for name in PACKAGES if (found := _version(name))},
        "commit": _commit(),
    }


def cores() -> int:
    """Returns the cores that this process may use."""
    return len(os.sched_getaffinity(0))


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu_model() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _commit() -> str | None:
    """Returns the commit of the source checkout, marked where files differ from it."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        found = subprocess.run([*command, "--abbrev=12"], capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return found.stdout.strip() or None


class QuietWatch:
    """Tells how busy others kept the machine, from when it was made."""

    def __init__(self):
        self.load = os.getloadavg()[0]
        self._start = time.monotonic()
        self._cpu, self._own = _cpu_seconds(), _own_seconds()

    def summary(self) -> dict[str, float]:
        """Returns the load average at the start, and cores that others and the host took since.

        Children count as own once they have ended.
        """
        wall = max(time.monotonic() - self._start, 1e-3)
        now, own = _cpu_seconds(), _own_seconds() - self._own
        since = {name: now[name] - self._cpu[name] for name in now}
        busy = sum(since.get(name, 0.0) for name in ("user", "nice", "system", "irq", "softirq"))
        return {
            "load_average_before": self.load,
            "cores_used_by_others": max(busy - own, 0.0) / wall,
            "cores_stolen_by_the_host": since.get("steal", 0.0) / wall,
            "seconds": wall,
        }


def load_warnings(load: float, cores: int) -> list[str]:
    """Returns a line if the load average, from before we began, says that the machine is busy."""
    if load <= QUIET_LOAD * cores:
        return []
    return [
        f"the load average was {load:.2f} on {cores} cores before the measurement began: times are "
        "longer than on a quiet machine"
    ]


def warnings(quiet: dict[str, float]) -> list[str]:
    """Returns a line for each sign in a watch's summary that the machine was not quiet.

    The load average before is none: it still remembers what has ended.
    """
    lines = []
    for key, whom in (
        ("cores_used_by_others", "other programs"),
        ("cores_stolen_by_the_host", "the virtual machine's host"),
    ):
        if quiet[key] > QUIET_OTHERS:
            lines.append(f"{whom} took {quiet[key]:.2f} cores meanwhile: trust ratios, not rates")
    return lines


def _cpu_seconds() -> dict[str, float]:
    """Returns the seconds that all cores spent in each state since the machine started."""
    path = Path("/proc/stat")
    if not path.exists():
        return {}
    ticks = map(int, path.read_text().split("\n", 1)[0].split()[1:])
    per_second = os.sysconf("SC_CLK_TCK")
    return {name: count / per_second for name, count in zip(CPU_FIELDS, ticks, strict=False)}


def _own_seconds() -> float:
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def restart_peak_memory() -> None:
    """Begins a new peak of this process' memory, where the system can."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def peak_memory() -> int:
    """Returns the most bytes that the device held; on a CPU, this process since the restart."""
    device = jax.devices()[0]
    stats = device.memory_stats() if device.platform != "cpu" else None
    if stats:
        return int(stats["peak_bytes_in_use"])
    path = Path("/proc/self/status")
    for line in path.read_text().splitlines() if path.exists() else []:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
