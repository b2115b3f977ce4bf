"""Compiled programs in the user's cache folder, so that the second start of a command is quick.

There are two layers. JAX's persistent compilation cache spares XLA's work; it is asked with the
lowered program, which for a large body takes longer to trace and lower than to load. So whole
executables are kept beside it, under a key of all that a program is made from: they spare tracing,
too. Executables of a CPU hold that CPU's instructions, and each kind of CPU has its own folder.
"""

import dataclasses
import enum
import functools
import hashlib
import importlib.metadata
import os
import pickle
import platform
import re
import sys
import tempfile
import types
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from jax.experimental import serialize_executable

from mjx_qflex import devices, files, resources
from mjx_qflex.errors import UserError

Say = Callable[[str], None]
FORMAT = "1"  # of what is kept
MAX_BYTES = 2 * 2**30  # of a folder; what was not used for longest goes first
PLATFORMS = ("cpu",)  # where loading executables has been tried; elsewhere JAX's layer serves
JAX, EXECUTABLES = "jax", "mjx_qflex"  # folders of the two layers
EXECUTABLE = ".executable"
NAME = re.compile(r"[0-9a-f]{32}\.executable")  # of a file beside the one that leads to it
# XLA reads these itself; what JAX reads shows in its config.
VARIABLES = ("XLA_", "LIBTPU_", "TF_XLA_", "NVIDIA_")

_jax_cache_hits = 0


def _count_hits(event: str, **_: Any) -> None:
    global _jax_cache_hits
    _jax_cache_hits += event == "/jax/compilation_cache/cache_hits"


jax.monitoring.register_event_listener(_count_hits)


# Types whose repr says all.
_SHOWN = (bool, int, float, str, enum.Enum, Path, slice, range)


class Unknown(TypeError):
    """A value whose contents no digest is known for."""


@dataclasses.dataclass
class ProgramStore:
    """Executables of programs that are made from the same things.

    An executable lies under a digest of its lowered program. What that program is made from leads
    to it by a file of its own, so that code which changes none of it needs no compilation.

    Attributes:
      folder: where the files lie.
      made_from: digest of what the programs are made from, apart from `about` and the arguments.
      say: takes the line that tells of a folder which cannot be written to, or a damaged file.
      about: what tells the programs apart, such as name and sizes.
    """

    folder: Path
    made_from: str
    say: Say
    about: tuple[Any, ...] = ()

    def of(self, *about: Any) -> "ProgramStore":
        """Returns the store of the programs that are told apart by `about`."""
        return dataclasses.replace(self, about=(*self.about, *about))

    def load(self, args: tuple[Any, ...]) -> Any:
        """Returns the `jax.stages.Compiled` for arguments of these shapes, None if not kept."""
        name = (_read(self._leads(args)) or b"").decode(errors="replace")
        return self._load(self.folder / name) if NAME.fullmatch(name) else None

    def compile(
        self, args: tuple[Any, ...], lowered: jax.stages.Lowered, options: dict[str, Any] | None
    ) -> Any:
        """Returns `lowered.compile(options)`, or what is kept of it, and keeps it for `args`."""
        text = digest(lowered.as_text(), versions(), settings(), machine(), options)
        place, hits = self.folder / f"{text[:32]}{EXECUTABLE}", _jax_cache_hits
        compiled = self._load(place)
        try:
            if compiled is None:
                compiled = lowered.compile(options)
                # What XLA:CPU has loaded and stores again lacks its functions (jaxlib 0.10.2).
                if _jax_cache_hits > hits:
                    return compiled
                data = pickle.dumps(serialize_executable.serialize(compiled))
                _write(place, zlib.compress(data, 1))
                _prune(self.folder)
            _write(self._leads(args), place.name.encode())
        except OSError as error:
            self.say(f"cannot keep compiled programs in {self.folder}: {error.strerror}")
        return compiled

    def _leads(self, args: tuple[Any, ...]) -> Path:
        """Returns the file that names the executable for `args`."""
        shapes = [f"{leaf.dtype}{leaf.shape}" for leaf in jax.tree.leaves(args)]
        text = repr((self.made_from, self.about, shapes, str(jax.tree.structure(args))))
        return self.folder / hashlib.sha256(text.encode()).hexdigest()[:32]

    def _load(self, path: Path) -> Any:
        data = _read(path)
        if data is None:
            return None
        _find_lapack()
        try:
            payload, tree_in, tree_out = pickle.loads(zlib.decompress(data))
            return serialize_executable.deserialize_and_load(
                payload, tree_in, tree_out, execution_devices=jax.devices()[:1]
            )
        except Exception as error:  # whatever a damaged file makes of unpickling
            self.say(f"{path} is damaged ({type(error).__name__}): compiling anew")
            return None


@functools.cache
def _find_lapack() -> None:
    """Lets JAX look LAPACK's functions up, which it does when it first lowers a call of one.

    An executable that was loaded before would call a null pointer.
    """
    jax.jit(jnp.linalg.cholesky).lower(jax.ShapeDtypeStruct((2, 2), jnp.float32))


def enable(say: Say) -> Path | None:
    """Turns JAX's persistent compilation cache on, in the user's cache folder.

    A folder that the user chose (`JAX_COMPILATION_CACHE_DIR`) stays, and
    `JAX_ENABLE_COMPILATION_CACHE=false` leaves all caching off.

    Returns:
      The folder of executables, None where there is to be none, it cannot be written to, or others
      can: a program that they put there would be run.

    Raises:
      UserError: JAX finds no device.
    """
    devices.backend()
    if not jax.config.jax_enable_compilation_cache:
        return None
    chosen = jax.config.jax_compilation_cache_dir
    try:
        folder = Path(chosen or resources.cache_folder() / "compiled" / machine()[:16])
    except UserError as error:
        say(f"compiling without a cache: {error}")
        return None
    try:
        for place in (folder if chosen else folder / JAX, folder / EXECUTABLES):
            place.mkdir(parents=True, exist_ok=True, mode=0o700)
            with tempfile.TemporaryFile(dir=place):
                pass
            if danger := files.who_else_writes(place):
                say(f"compiling without a cache: {danger}, and what it holds is run")
                return None
    except OSError as error:
        say(f"compiling without a cache: cannot write in {folder} ({error.strerror})")
        return None
    if chosen is None:
        jax.config.update("jax_compilation_cache_dir", str(folder / JAX))
        _prune(folder / JAX)
    return folder / EXECUTABLES


def open_store(folder: Path | None, config: Any, env: Any, say: Say) -> ProgramStore | None:
    """Returns the store of the programs of one environment and config, None where none can be.

    Args:
      folder: what `enable` returned.
      config: a dataclass of all that is not in `env`; its changes are other programs.
      env: the environment; only those of this library, whose code is in the key, have a store.
      say: takes a line about a folder that cannot be written to.
    """
    own = type(env).__module__.partition(".")[0] == __name__.partition(".")[0]
    if folder is None or not own or jax.default_backend() not in PLATFORMS:
        return None
    try:
        made_from = digest(FORMAT, source(), versions(), settings(), machine(), config, env)
    except Unknown:
        return None
    return ProgramStore(folder, made_from, say)


@functools.cache
def source() -> str:
    """Returns a digest of this library's code."""
    total, package = hashlib.sha256(), resources.package_folder()
    for path in sorted(package.rglob("*.py")):
        total.update(str(path.relative_to(package)).encode() + b"\0" + path.read_bytes() + b"\0")
    return total.hexdigest()


@functools.cache
def versions() -> str:
    """Returns a digest of the versions of Python and of all that is installed for it."""
    installed = importlib.metadata.distributions()
    names = sorted({f"{one.name}=={one.version}" for one in installed})
    return digest(sys.version, names)


def settings() -> str:
    """Returns a digest of what else decides how JAX and XLA compile."""
    chosen = {
        name: repr(value)
        for name, value in jax.config.values.items()
        if not any(word in name for word in ("cache", "log", "traceback", "dump"))
    }
    variables = {k: v for k, v in os.environ.items() if k.startswith(VARIABLES)}
    devices = jax.devices()
    client = devices[0].client
    kinds = [device.device_kind for device in devices]
    return digest(
        dict(sorted(chosen.items())), dict(sorted(variables.items())),
        client.platform, client.platform_version, kinds,
    )  # fmt: skip


@functools.cache
def machine() -> str:
    """Returns a digest of the kind of CPU, and of how many of them XLA splits its work over."""
    told = Path("/proc/cpuinfo")
    names = ("model name", "flags", "Features", "CPU part")
    lines = told.read_text().splitlines() if told.exists() else []
    kinds = sorted({line for line in lines if line.partition("\t")[0].strip() in names})
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return digest(platform.machine(), platform.processor(), kinds, cpus)


def digest(*values: Any) -> str:
    """Returns a digest of everything that `values` hold, to the last array.

    Raises:
      Unknown: something in them cannot be looked into.
    """
    total = hashlib.sha256()
    _feed(total.update, values, {})
    return total.hexdigest()


def _feed(update: Callable[[bytes], None], value: Any, seen: dict[int, tuple[int, Any]]) -> None:
    """Feeds `update` with what `value` holds; `seen` has number and object of those fed, by id."""
    kind = type(value)
    update(f"<{kind.__module__}.{kind.__qualname__}>".encode())
    if value is None or isinstance(value, _SHOWN):
        update(repr(value).encode())
        return
    if id(value) in seen:
        update(str(seen[id(value)][0]).encode())
        return
    seen[id(value)] = len(seen), value  # kept, so that no other object gets its id
    if isinstance(value, bytes):
        update(value)
    elif isinstance(value, np.ndarray | np.generic | jax.Array):
        array = np.asarray(value)
        if array.dtype.hasobject:
            raise Unknown("an array of objects has no known contents")
        update(f"{array.dtype}{array.shape}".encode() + array.tobytes())
    elif isinstance(value, mujoco.MjModel):
        buffer = np.empty(mujoco.mj_sizeModel(value), np.uint8)
        mujoco.mj_saveModel(value, None, buffer)
        update(buffer.tobytes())
    else:
        for part in _parts(value):
            _feed(update, part, seen)
    update(b"</>")


def _parts(value: Any) -> list[Any]:
    """Returns what an object consists of, besides its type.

    Raises:
      Unknown: nothing is known of its type.
    """
    if isinstance(value, tuple | list):
        return list(value)
    if isinstance(value, set | frozenset):
        return sorted(value, key=repr)
    if isinstance(value, Mapping):
        return [part for item in value.items() for part in item]
    if isinstance(value, type):
        return [value.__module__, value.__qualname__]
    if isinstance(value, functools.partial):
        return [value.func, value.args, value.keywords]
    if isinstance(value, types.MethodType):
        return [value.__func__, value.__self__]
    if isinstance(value, types.FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        return [value.__module__, value.__qualname__, value.__defaults__, cells]
    if type(value).__module__.partition(".")[0] == __name__.partition(".")[0]:
        return [vars(value)]
    raise Unknown(f"{type(value)} has no known contents")


def _read(path: Path) -> bytes | None:
    """Returns what is in a file, which counts as used now; None if it cannot be read.

    Nor is what somebody else may have put there: it will be run.
    """
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:
            if not files.is_own(file.fileno()):
                return None
            data = file.read()
        os.utime(path)
    except OSError:
        return None
    return data


def _write(path: Path, data: bytes) -> None:
    """Writes a file in one move, so that no reader sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.replace(temporary, path)
    except OSError:
        Path(temporary).unlink(missing_ok=True)
        raise


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
