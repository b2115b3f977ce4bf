"""Reads the model that a recipe names, as its authors left it."""

import contextlib
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mujoco

from mjx_qflex.errors import UserError
from mjx_qflex.lookup import unknown_name
from mjx_qflex.porting import fetch

_PACKAGES = ("myo_sim",)
# Releases before 3 had it; a recipe names its contacts, whatever it said.
_COLLISION = re.compile(rb'(<option\b[^>]*?)\s+collision\s*=\s*"[^"]*"')
_INCLUDE = re.compile(rb'<include\b[^>]*?\bfile\s*=\s*"([^"]+)"')


def load(body: str, folder: Path, source: dict[str, Any]) -> mujoco.MjSpec:
    """Returns the specification of the model in a recipe's `[source]`.

    Raises:
      UserError: it is not there, or MuJoCo does not read it.
    """
    if "package" in source:
        return _from_package(body, source)
    if "file" not in source:
        raise UserError(f'{body}: [source] needs a "file", or package = "myo_sim"')
    return read(fetch.locate(body, folder, source))


def _from_package(body: str, source: dict[str, Any]) -> mujoco.MjSpec:
    if source["package"] not in _PACKAGES:
        raise unknown_name(f"package of {body}", source["package"], _PACKAGES)
    if "model" not in source:
        raise UserError(f'{body}: [source] with a package needs a "model"')
    import myo_sim

    with quiet_about_prefixes():
        try:
            return myo_sim.load_spec(source["model"])
        except ValueError as error:
            raise UserError(f"{body}: myo_sim says: {one_line(error)}") from error


def read(path: Path) -> mujoco.MjSpec:
    """Reads a model file; what is left of `<option collision=...>` in it does not matter.

    Raises:
      UserError: MuJoCo does not read it.
    """
    try:
        return mujoco.MjSpec.from_file(str(path))
    except ValueError as error:
        if "'collision'" not in str(error):
            raise not_a_model(path, error) from error
    try:
        spec = mujoco.MjSpec.from_string(_without_collision(path).decode(), include=_includes(path))
    except (ValueError, OSError) as error:
        raise not_a_model(path, error) from error
    spec.modelfiledir = str(path.parent)
    return spec


def not_a_model(path: Path, error: Exception) -> UserError:
    return UserError(f"{path} is not a model that MuJoCo reads: {one_line(error)}")


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _without_collision(path: Path) -> bytes:
    return _COLLISION.sub(rb"\1", path.read_bytes())


def _includes(path: Path) -> dict[str, bytes]:
    """The files that the model file `path` includes, and those that they include, by name."""
    found: dict[str, bytes] = {}
    waiting = [_without_collision(path)]
    while waiting:
        for name in _INCLUDE.findall(waiting.pop()):
            if name.decode() not in found:
                found[name.decode()] = _without_collision(path.parent / name.decode())
                waiting.append(found[name.decode()])
    return found


@contextlib.contextmanager
def quiet_about_prefixes() -> Iterator[None]:
    """myo_sim attaches limbs without a prefix, on purpose; MuJoCo would write a log of it."""
    previous = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(lambda message: None)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Attaching a spec with an empty prefix")
            yield
    finally:
        mujoco.set_mju_user_warning(previous)
