"""JAX's persistent compilation cache in the user's cache folder, so that a second start is quick.

Programs of a CPU hold that CPU's instructions, and each kind of CPU has its own folder.
"""

import hashlib
import os
import platform
import tempfile
from collections.abc import Callable
from pathlib import Path

import jax

from mjx_qflex import devices, files, resources
from mjx_qflex.errors import UserError

MAX_BYTES = 2 * 2**30  # of a folder; what was not used for longest goes first
MIN_SECONDS = 0.2  # of compiling; what compiles faster is not kept


def enable(say: Callable[[str], None]) -> Path | None:
    """Turns JAX's persistent compilation cache on.

    A folder that the user chose (`JAX_COMPILATION_CACHE_DIR`) stays, and
    `JAX_ENABLE_COMPILATION_CACHE=false` leaves caching off.

    Returns:
      The folder, None where there is to be none, it cannot be written to, or others can write in
      it: a program that they put there would be run.

    Raises:
      UserError: JAX finds no device.
    """
    devices.backend()
    if not jax.config.jax_enable_compilation_cache:
        return None
    chosen = jax.config.jax_compilation_cache_dir
    try:
        folder = Path(chosen or resources.cache_folder() / "compiled" / _machine() / "jax")
    except UserError as error:
        say(f"compiling without a cache: {error}")
        return None
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryFile(dir=folder):
            pass
        if danger := files.who_else_writes(folder):
            say(f"compiling without a cache: {danger}, and what it holds is run")
            jax.config.update("jax_enable_compilation_cache", False)
            return None
    except OSError as error:
        say(f"compiling without a cache: cannot write in {folder} ({error.strerror})")
        return None
    if chosen is None:
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", MIN_SECONDS)
        _prune(folder)
    return folder


def _machine() -> str:
    """Returns a digest of the kind of CPU, and of how many of them XLA splits its work over."""
    told = Path("/proc/cpuinfo")
    names = ("model name", "flags", "Features", "CPU part")
    lines = told.read_text().splitlines() if told.exists() else []
    kinds = sorted({line for line in lines if line.partition("\t")[0].strip() in names})
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    what = (platform.machine(), platform.processor(), kinds, cpus)
    return hashlib.sha256(repr(what).encode()).hexdigest()[:16]


def _prune(folder: Path) -> None:
    """Removes the files that were not used for longest, where all of them are too large."""
    ages = []
    for path in folder.rglob("*"):
        try:
            found = path.stat()
        except FileNotFoundError:
            continue  # another process does the same
        if path.is_file():
            ages.append((found.st_mtime, found.st_size, path))
    total = sum(size for _, size, _ in ages)
    for _, size, path in sorted(ages):
        if total <= MAX_BYTES:
            return
        path.unlink(missing_ok=True)
        total -= size
