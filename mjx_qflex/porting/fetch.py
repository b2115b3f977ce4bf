"""Finds the models that no Python package ships, and fetches them once into the user's cache.

A recipe's `[source]` says where such a model comes from: `fetch` (how), `repository`, `revision`,
`folder` in it, `file` in that folder, `licence`, and what proves that the right files came:

* `fetch = "menagerie"`: through the package mujoco-menagerie, whose release archive must have the
  recipe's `sha256`. Its variables MENAGERIE_ROOT, MENAGERIE_BASE_URL and MENAGERIE_CACHE_DIR work.
* `fetch = "git"`: `revision` is a commit, whose hash covers every file; git checks what it fetches
  against it.

`by_hand` lists where in the user's own folder (`$MJX_QFLEX_MODELS`) the file may lie; what lies
there serves instead.
"""

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from mjx_qflex import resources
from mjx_qflex.errors import UserError

GIT_TIMEOUT = 900.0  # s
Source = dict[str, Any]  # a recipe's [source]


def locate(body: str, recipe_folder: Path, source: Source) -> Path:
    """Returns the model file of a body's `source`, without any access to the network.

    Raises:
      UserError: the file is neither shipped, nor in the user's folder, nor fetched.
    """
    shipped = recipe_folder / source["file"]
    if "fetch" not in source and shipped.is_file():
        return shipped
    by_hand = source.get("by_hand", [source["file"]])
    user = resources.user_models_folder()
    for path in [user / name for name in by_hand] if user else []:
        if path.is_file():
            return path
    fetched = _fetched(source) if "fetch" in source else None
    if fetched and fetched.is_file():
        return fetched
    get_it = f"run: python -m mjx_qflex.port --fetch {body}; or " if "fetch" in source else ""
    raise UserError(
        f"{body}: its model {source['file']} is not on this machine; {get_it}set "
        f"{resources.MODELS_VARIABLE} to the folder that holds {' or '.join(by_hand)}"
    )


def fetch(body: str, source: Source) -> Path:
    """Fetches the model of a body into the user's cache unless it is there; returns its file.

    Raises:
      UserError: the source cannot be fetched, or is not what the recipe pins. Nothing half-written
        is left then.
    """
    if "fetch" not in source:
        raise UserError(f"{body} needs nothing fetched: its model comes with the installation")
    _check(body, source)
    try:
        if source["fetch"] == "menagerie":
            _fetch_archive(body, source)
        else:
            _fetch_commit(body, source)
    except (_Failed, OSError) as error:
        places = " or ".join(source.get("by_hand", [source["file"]]))
        raise UserError(
            f"{body}: fetching failed ({_first_line(error)}); by hand: put the folder "
            f"{source['folder']} of {source['repository']} at {source['revision'][:12]} where "
            f"{resources.MODELS_VARIABLE} points to, so that {places} lies in it"
        ) from error
    path = _fetched(source)
    if path is None or not path.is_file():
        raise UserError(f"{body}: {source['file']} is not among the files fetched; see the recipe")
    return path


def _check(body: str, source: Source) -> None:
    """Refuses what git or a path would take for something else than a recipe means.

    Raises:
      UserError: names the key.
    """
    words = {"revision": r"[0-9a-f]{40}", "repository": r"(https|ssh|file)://\S+"}
    words |= {"folder": r"[\w.][\w./ -]*", "file": r"[\w.][\w./ -]*"}
    right = {"revision": "a commit's 40 hexadecimal digits", "repository": "a URL, https://..."}
    for key, pattern in words.items():
        value = source.get(key)
        outside = key in ("folder", "file") and ".." in Path(str(value)).parts
        if not isinstance(value, str) or not re.fullmatch(pattern, value) or outside:
            wanted = right.get(key, "a path inside of the repository")
            raise UserError(f"{body}: its recipe has {key} = {value!r}; give {wanted}")


class _Failed(Exception):
    """Why nothing came, in a few words."""


def _fetched(source: Source) -> Path | None:
    """Where the file lies once it is fetched; None if it is known not to be."""
    if source["fetch"] == "git":
        return _checkout_folder(source) / source["file"]
    from mujoco_menagerie import get

    cache, robot = _menagerie_cache(), get(source["folder"])
    if cache.root:
        return cache.root / robot.name / source["file"]
    return cache.model_path(robot) / source["file"] if cache.is_cached(robot) else None


def _menagerie_cache() -> Any:
    from mujoco_menagerie import Cache

    own = resources.cache_folder() / "models" / "menagerie"
    return Cache(dir=os.environ.get("MENAGERIE_CACHE_DIR") or own)


def _fetch_archive(body: str, source: Source) -> None:
    import mujoco_menagerie

    robot = mujoco_menagerie.get(source["folder"])
    if robot.sha256 != source["sha256"]:
        raise UserError(
            f"{body}: mujoco-menagerie {mujoco_menagerie.__version__} lists {robot.asset} with "
            "another checksum than the recipe; install the release that mjx_qflex asks for"
        )
    try:
        robot.path(_menagerie_cache())
    except mujoco_menagerie.MenagerieError as error:
        raise _Failed(_first_line(error)) from error


def _checkout_folder(source: Source) -> Path:
    name = f"{Path(source['folder']).name}-{source['revision'][:16]}"
    return resources.cache_folder() / "models" / name


def _fetch_commit(body: str, source: Source) -> None:
    """Checks out `folder` of exactly the commit `revision`, and moves it into place at once."""
    target = _checkout_folder(source)
    if target.is_dir():
        return
    if shutil.which("git") is None:
        raise _Failed("git is not installed")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetching-") as folder:
        stage = Path(folder)
        _git(stage, "init", "--quiet")
        _git(stage, "remote", "add", "origin", source["repository"])
        _git(stage, "sparse-checkout", "set", source["folder"])
        # Only this commit, and of its files only those in the folder.
        _git(
            stage, "fetch", "--quiet", "--depth=1", "--filter=blob:none", "--end-of-options",
            "origin", source["revision"],
        )  # fmt: skip
        _git(stage, "-c", "core.autocrlf=false", "checkout", "--quiet", source["revision"])
        tree = stage / source["folder"]
        if not tree.is_dir():
            raise UserError(f"{body}: {source['repository']} has no folder {source['folder']}")
        try:
            os.replace(tree, target)
        except OSError:
            if not target.is_dir():  # else another process was faster
                raise


def _git(folder: Path, *arguments: str) -> None:
    environment = {**os.environ, "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
    for variable in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):  # set where a hook calls us
        environment.pop(variable, None)
    try:
        subprocess.run(
            ["git", "-C", str(folder), *arguments],
            check=True, capture_output=True, text=True, env=environment, timeout=GIT_TIMEOUT,
        )  # fmt: skip
    except subprocess.CalledProcessError as error:
        raise _Failed(f"git: {_first_line(error.stderr)}") from error
    except subprocess.TimeoutExpired as error:
        raise _Failed(f"git took more than {GIT_TIMEOUT:.0f} s") from error


def _first_line(text: object) -> str:
    lines = str(text).strip().splitlines()
    return lines[0] if lines else type(text).__name__
