"""Where shipped data lies, in a source checkout and in an installed wheel."""

import os
from pathlib import Path

from mjx_qflex.errors import UserError

MODELS_VARIABLE = "MJX_QFLEX_MODELS"
CACHE_VARIABLE = "MJX_QFLEX_CACHE"


def package_folder() -> Path:
    """Returns the folder of this library's code."""
    return Path(__file__).resolve().parent


def data_folder(name: str) -> Path:
    """Returns the folder of shipped data called `name` ("models" or "assets").

    A wheel installs both inside the package; a checkout has them beside it.

    Raises:
      UserError: the folder is in neither place, so the installation is incomplete.
    """
    for folder in (package_folder() / name, package_folder().parent / name):
        if folder.is_dir():
            return folder
    raise UserError(f"the folder {name!r} of mjx_qflex is missing; reinstall the package")


def cache_folder() -> Path:
    """Returns the user's cache folder: `$MJX_QFLEX_CACHE`, else `~/.cache/mjx_qflex`.

    Raises:
      UserError: no variable names it, and the user has no home folder.
    """
    chosen, caches = os.environ.get(CACHE_VARIABLE), os.environ.get("XDG_CACHE_HOME")
    if chosen:
        return Path(chosen)
    try:
        return Path(caches or Path.home() / ".cache") / "mjx_qflex"
    except RuntimeError:
        raise UserError(
            f"this user has no home folder to keep files in; set {CACHE_VARIABLE} to a folder"
        ) from None


def user_models_folder() -> Path | None:
    """Returns the folder of models that the user supplies (`$MJX_QFLEX_MODELS`), or None."""
    value = os.environ.get(MODELS_VARIABLE)
    return Path(value) if value else None
