"""Checkpoints of a whole run: learner, environments, replay, random key and counters.

    FOLDER/000000123456/         named after the transitions so far (and updates, offline)
        about.json               fingerprint, counters, types and shapes of leaves, sizes and
                                 checksums of files
        learner/                 Orbax
        state/                   Orbax; all the rest, the replay too; in the newest checkpoint only

A checkpoint is written beside the others under a hidden name and renamed when it is complete, so
that a crash at any moment leaves the previous one usable. Arrays are stored as they are: replay
hardly compresses, and compressing made saving ten times slower.
"""

import contextlib
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
import tensorstore

from mjx_qflex import files
from mjx_qflex.errors import UserError
from mjx_qflex.runner import folder_files, hosts
from mjx_qflex.training.state import RunState

GIB = 2**30
KEPT_LEARNERS = 2  # older checkpoints that stay, without their replay
# Parts of a path, before commit 110bb3d and now.
OLD_NAMES = (("moments", "batch_stats"), ("optimizer", "opt_state"), ("carry", "acting"))
UNFINISHED = ".unfinished-"
ABOUT = "about.json"


def _tells_news(record: logging.LogRecord) -> bool:
    """Orbax prints errors that it also raises, and that a store of files has nothing to merge."""
    if "orbax" not in record.pathname:
        return True
    return record.levelno < logging.ERROR and "Skipping merge of OCDBT" not in record.msg


logging.getLogger("absl").addFilter(_tells_news)

Leaves = dict[str, Any]  # a pytree as its leaves, by path: independent of its containers


class Saved(NamedTuple):
    """What a save wrote: the checkpoint's folder, its size on disk and the time it took."""

    path: Path
    num_bytes: int
    seconds: float


@dataclass(frozen=True)
class About:
    """What `about.json` says of a checkpoint.

    Attributes:
      fingerprint: what the run must agree on to go on from here, by name (task, algorithm, ...).
      counters: the host's counters, by name.
      leaves: "dtype[shape]" of each array of the run, by path.
      files: bytes of each file of its items, by path; of older checkpoints, none.
      checksums: CRC-32 of each of these files; of older checkpoints, none.
    """

    fingerprint: dict[str, Any]
    counters: dict[str, int]
    leaves: dict[str, str]
    files: dict[str, int] = field(default_factory=dict)
    checksums: dict[str, int] = field(default_factory=dict)


def save(folder: Path, run: RunState, fingerprint: dict[str, Any]) -> Saved:
    """Writes a checkpoint of `run`, then drops the replay of older ones and the oldest learners.

    Several processes call this together: each writes what its devices hold, the first the rest.

    Args:
      folder: where the run's checkpoints lie; made where missing.
      run: the run; its arrays are only read.
      fingerprint: JSON values by name; `restore` refuses a checkpoint whose fingerprint differs.

    Raises:
      UserError: the folder cannot be written to, or the disk is full; older checkpoints stand.
    """
    start = time.perf_counter()
    path = _place(folder, run)
    if not path.exists():
        unfinished = folder / f"{UNFINISHED}{path.name}"
        try:
            if hosts.is_first():
                _remove_unfinished(folder)
                unfinished.mkdir(parents=True)
            hosts.barrier("checkpoint begun")
            for item, leaves in _items(run.device).items():
                _write(unfinished / item, leaves)
            if hosts.is_first():
                about = About(
                    _plain(fingerprint),
                    _counters(run),
                    _describe(run.device),
                    {
                        str(file.relative_to(unfinished)): n
                        for file, n in folder_files.sizes(unfinished)
                    },
                    folder_files.checksums(unfinished),
                )
                files.write(unfinished / ABOUT, json.dumps(asdict(about), indent=1))
                os.rename(unfinished, path)
            hosts.barrier("checkpoint complete")
        except (OSError, ValueError, RuntimeError) as error:  # as Orbax's stores tell it
            shutil.rmtree(unfinished, ignore_errors=True)
            raise _unwritten(path, newest(folder), error) from error
    if hosts.is_first():
        _thin_out(folder)
    return Saved(path, folder_files.size_on_disk(path), time.perf_counter() - start)


def _place(folder: Path, run: RunState) -> Path:
    """Returns where a checkpoint of the run lies: by transitions, then by updates without any."""
    path = folder / f"{run.transitions:012d}"
    if path.exists() and read_about(path).counters["updates"] != run.updates:
        return path.with_name(f"{path.name}-{run.updates:012d}")
    return path


def restore(folder: Path, shapes: RunState, fingerprint: dict[str, Any]) -> RunState | None:
    """Reads the newest checkpoint, bit for bit; returns None where there is none.

    Args:
      folder: where the run's checkpoints lie.
      shapes: a run of `ShapeDtypeStruct`s, `Loop.shapes()`; they say where each array goes, which
        need not be where it came from, by default to the first device.
      fingerprint: as given to `save`.

    Raises:
      UserError: the checkpoint is damaged, or belongs to another task, configuration or shape;
        names which.
    """
    path = newest(folder)
    if path is None:
        return None
    about = read_about(path)
    wanted = _flat(_plain(fingerprint))
    # An option that is younger than the checkpoint had no other value than its default.
    known = {name: value for name, value in wanted.items() if name in _flat(about.fingerprint)}
    _require_equal(path, about.fingerprint, known)
    leaves_saved = {_todays(name): text for name, text in about.leaves.items()}
    _require_equal(path, leaves_saved, _describe(shapes.device))
    leaves: Leaves = {}
    for item, expected in _items(shapes.device).items():
        leaves |= _read(path, item, about, expected)
    structure = jax.tree.structure(shapes.device)
    device = jax.tree.unflatten(structure, [leaves[name] for name in _leaves(shapes.device)])
    return replace(shapes, device=device, **about.counters)


def restore_learner(path: Path, shapes: Any) -> Any:
    """Reads the learner alone from the checkpoint `path`, the newest or an older one.

    Args:
      path: a checkpoint's folder, such as `newest(folder)`.
      shapes: the learner as `ShapeDtypeStruct`s.

    Raises:
      UserError: the checkpoint is damaged, or its learner has other shapes; names which.
    """
    about = read_about(path)
    expected = _leaves(shapes, "learner")
    _require_equal(
        path,
        {_todays(k): text for k, text in about.leaves.items() if k.startswith("learner.")},
        {name: _text(leaf) for name, leaf in expected.items()},
    )
    leaves = _read(path, "learner", about, expected)
    return jax.tree.unflatten(jax.tree.structure(shapes), list(leaves.values()))


def newest(folder: Path) -> Path | None:
    """Returns the newest complete checkpoint in `folder`, None where there is none."""
    return max(_complete(folder), default=None)


def read_about(path: Path) -> About:
    """Returns what the checkpoint `path` says of itself.

    Raises:
      UserError: it cannot be read.
    """
    needed = {"fingerprint": dict, "counters": dict, "leaves": dict}
    found = files.read_json(path / ABOUT, "start again with another --logdir", **needed)
    try:
        about = About(**found)
        numbers = [about.counters[name] for name in ("epochs", "transitions", "updates")]
        if [type(number) for number in numbers] == [int] * 3 and numbers[1] == int(
            path.name.partition("-")[0]
        ):
            return about
    except (TypeError, KeyError, ValueError):
        pass
    raise _damaged(path, ABOUT)


def check_disk(folders: Sequence[Path], state_bytes: int) -> None:
    """Refuses a disk that cannot hold a checkpoint of each run, and one more.

    A run's old checkpoint stays until its new one is complete; runs save one after the other.

    Args:
      folders: where each run's checkpoints will lie; what lies there already counts as room.
      state_bytes: bytes of one run's device state.

    Raises:
      UserError: too little room; the message names both sizes.
    """
    existing = folders[0]
    while not existing.exists():
        existing = existing.parent
    old = sum(folder_files.size_on_disk(path) for folder in folders for path in _complete(folder))
    room, number = shutil.disk_usage(existing).free + old, len(folders) + 1
    if room < number * state_bytes:
        raise UserError(
            f"{number} checkpoints need {number * state_bytes / GIB:.2f} GiB, but "
            f"{room / GIB:.2f} GiB are free in {existing}; free some, choose another --logdir, or "
            "lower loop.replay_capacity"
        )


def _items(device: Any) -> dict[str, Leaves]:
    """Splits a device state into the parts that are stored apart."""
    leaves = _leaves(device)
    learner = {name: leaf for name, leaf in leaves.items() if name.startswith("learner.")}
    items = {"learner": learner, "state": {k: v for k, v in leaves.items() if k not in learner}}
    return {item: held for item, held in items.items() if held}


def _leaves(tree: Any, prefix: str = "") -> Leaves:
    """Returns the leaves by path, in the tree's order."""
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    paths = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in flat]
    names = [f"{prefix}.{path}".strip(".") for path in paths]
    if len(set(names)) != len(names):
        raise ValueError("two leaves of the state have the same path")
    return dict(zip(names, (leaf for _, leaf in flat), strict=True))


def _write(path: Path, leaves: Leaves) -> None:
    with _orbax() as checkpointer:
        # The store has no arrays of size zero; shapes tell all there is to know of them.
        stored = {name: leaf for name, leaf in leaves.items() if leaf.size}
        checkpointer.save(path.resolve(), args=ocp.args.PyTreeSave(stored))


def _read(path: Path, item: str, about: About, expected: Leaves) -> Leaves:
    # Orbax reads what is left of an incomplete item and fails halfway, with many traces.
    for name, size in about.files.items():
        file = path / name
        if name.startswith(f"{item}/") and not (file.is_file() and file.stat().st_size == size):
            raise _damaged(path, name)
    expected_sums = {k: v for k, v in about.checksums.items() if k.startswith(f"{item}/")}
    for name, found in folder_files.checksums(path, expected_sums).items():
        if found != expected_sums[name]:
            raise _damaged(path, name)
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    placed = {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding or here)
        for name, leaf in expected.items()
    }
    names = {_todays(name): name for name in about.leaves}
    stored = {names[name]: leaf for name, leaf in placed.items() if leaf.size}
    how = ocp.checkpoint_utils.construct_restore_args(stored)
    try:
        with _orbax() as checkpointer:
            read = checkpointer.restore(
                (path / item).resolve(), args=ocp.args.PyTreeRestore(stored, restore_args=how)
            )
    except Exception as error:  # whatever damage makes of it, where there were no checksums yet
        raise _damaged(path, item) from error
    return {
        name: read[names[name]]
        if leaf.size
        else jnp.zeros(leaf.shape, leaf.dtype, device=leaf.sharding)
        for name, leaf in placed.items()
    }


def _unwritten(path: Path, before: Path | None, error: Exception) -> UserError:
    """Returns what to say of a checkpoint that could not be written, `before` being the last."""
    # A store's message is long; the number of the system's error is at its end.
    number = re.search(r"os_error_code='(\d+)'", str(error))
    says = os.strerror(int(number[1])) if number else getattr(error, "strerror", None)
    why = says or type(error).__name__
    stands = f"; {before.name} stands, and the same command goes on from it" if before else ""
    return UserError(f"cannot write the checkpoint {path}: {why}{stands}")


def _damaged(path: Path, what: str) -> UserError:
    return UserError(
        f"the checkpoint {path} is damaged ({what}); start again with another --logdir"
    )


@contextlib.contextmanager
def _orbax() -> Iterator[ocp.Checkpointer]:
    """A checkpointer that leaves no Python objects behind.

    tensorstore (0.1.86) never frees the Python objects that it makes of JSON. Orbax has it make
    some for a line of its log at every save, some 60 KB a checkpoint, so it is not asked; and for
    each array of a common store (OCDBT), as much again, so each array has files of its own.
    """
    statistics = tensorstore.experimental_collect_matching_metrics
    tensorstore.experimental_collect_matching_metrics = lambda *_, **__: []
    try:
        handler = ocp.PyTreeCheckpointHandler(use_compression=False, use_ocdbt=False)
        with ocp.Checkpointer(handler) as checkpointer:
            yield checkpointer
    finally:
        tensorstore.experimental_collect_matching_metrics = statistics


def _complete(folder: Path) -> list[Path]:
    """Returns the checkpoints in `folder`, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if re.fullmatch("[0-9]+(-[0-9]+)?", path.name))


def _thin_out(folder: Path) -> None:
    """Keeps the newest checkpoint whole, a few learners before it, and nothing else."""
    older = _complete(folder)[:-1]
    for path in older[:-KEPT_LEARNERS]:
        shutil.rmtree(path)
    for path in older[-KEPT_LEARNERS:]:
        shutil.rmtree(path / "state", ignore_errors=True)


def _remove_unfinished(folder: Path) -> None:
    for path in folder.glob(f"{UNFINISHED}*"):
        shutil.rmtree(path)


def _counters(run: RunState) -> dict[str, int]:
    return {"epochs": run.epochs, "transitions": run.transitions, "updates": run.updates}


def _todays(name: str) -> str:
    """Returns what is called so now, of a leaf's path in an older checkpoint."""
    for old, new in OLD_NAMES:
        name = f".{name}.".replace(f".{old}.", f".{new}.").strip(".")
    return name


def _describe(tree: Any) -> dict[str, str]:
    return {name: _text(leaf) for name, leaf in _leaves(tree).items()}


def _text(leaf: Any) -> str:
    return f"{leaf.dtype}{list(leaf.shape)}"


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """Returns the values as JSON gives them back (tuples become lists)."""
    return json.loads(json.dumps(values))


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns nested values under dotted names."""
    flat = {}
    for name, value in values.items():
        is_group = isinstance(value, dict)
        flat |= _flat(value, f"{prefix}{name}.") if is_group else {prefix + name: value}
    return flat


def _require_equal(path: Path, saved: dict[str, Any], wanted: dict[str, Any]) -> None:
    saved, wanted = _flat(saved), _flat(wanted)
    names = [k for k in saved | wanted if saved.get(k, "absent") != wanted.get(k, "absent")]
    if names:
        name = names[0]
        more = f" (and {len(names) - 1} more differences)" if len(names) > 1 else ""
        raise UserError(
            f"the checkpoint {path} was written with {name}={saved.get(name, 'absent')}, this run "
            f"has {name}={wanted.get(name, 'absent')}{more}; use the same settings or another "
            "--logdir"
        )
