"""Files of the user's that a run depends on, kept with it: a motion is part of a run by content.

inputs/digests.json          SHA-256 of each file, by name
inputs/my_run.csv            the file as it was when the run began
"""

import json
import os
from dataclasses import replace
from pathlib import Path

from mjx_qflex import files
from mjx_qflex.config import Config
from mjx_qflex.errors import UserError
from mjx_qflex.motions import library

FOLDER = "inputs"
DIGESTS = "digests.json"


def check(config: Config, folder: Path) -> None:
    """Checks that the user's files still are those that the run in `folder` began with.

    Raises:
      UserError: one has changed, or the run's copy is damaged.
    """
    digests = _digests(folder)
    for path in _given(config):
        known = digests.get(path.name)
        if known is not None and os.path.isfile(path) and files.digest(path) != known:
            raise UserError(
                f"{path} has changed since the run in {folder} began; put it back (a copy is in "
                f"{folder / FOLDER}), or choose another --logdir"
            )


def keep(config: Config, folder: Path) -> None:
    """Copies the user's files into the run folder, unless they are there."""
    given = {path.name: path for path in _given(config) if os.path.isfile(path)}
    digests = {name: files.digest(path) for name, path in given.items()}
    if not given or digests == _digests(folder):
        return
    (folder / FOLDER).mkdir(exist_ok=True)
    for name, path in given.items():
        files.write(folder / FOLDER / name, path.read_bytes())
    files.write(folder / FOLDER / DIGESTS, json.dumps(digests, indent=1) + "\n")


def found(config: Config, folder: Path) -> Config:
    """Returns the config with files that can be read: the user's, or the run's copies of them.

    Raises:
      UserError: a copy that is needed is damaged.
    """
    present = all(os.path.isfile(path) for path in _given(config))
    return config if present else kept(config, folder)


def kept(config: Config, folder: Path) -> Config:
    """Returns the config with the run's copies of the user's files, where it has them.

    Raises:
      UserError: a copy is damaged.
    """
    given, digests = _given(config), _digests(folder)
    if not given or given[0].name not in digests:
        return config
    for name, digest in digests.items():
        copy = folder / FOLDER / name
        if not copy.is_file() or files.digest(copy) != digest:
            raise files.damaged(copy, "another checksum", f"put {given[0]} back in its place")
    motion = str(folder / FOLDER / given[0].name)
    return replace(config, task_config=replace(config.task_config, motion=motion))


def _given(config: Config) -> list[Path]:
    """Returns the user's files that a config names; the first is what it names."""
    motion = getattr(config.task_config, "motion", None)
    return library.user_files(motion) if isinstance(motion, str) else []


def _digests(folder: Path) -> dict[str, str]:
    path = folder / FOLDER / DIGESTS
    if not path.exists():
        return {}
    digests = files.read_json(path, "choose another --logdir")
    if not all(Path(name).name == name for name in digests):
        raise files.damaged(path, "a name with folders", "choose another --logdir")
    return digests
