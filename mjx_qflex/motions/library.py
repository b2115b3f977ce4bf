"""Finds a motion by name or path and fits it to a body."""

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mjx_qflex import resources
from mjx_qflex.errors import UserError
from mjx_qflex.lookup import unknown_name
from mjx_qflex.motions import anatomy, checks, recordings, retarget
from mjx_qflex.motions.kinematics import Skeleton
from mjx_qflex.motions.reference import Motion, from_columns, read_columns
from mjx_qflex.physics.body import PortedBody
from mjx_qflex.porting import recipe

MADE_FOR = "ms_human"  # the body in whose joints the shipped motions are
RECORDINGS = (".amc", ".bvh")


class Human(NamedTuple):
    """A human body without its muscles."""

    skeleton: Skeleton
    parts: anatomy.Anatomy
    soles: tuple[str, ...]  # capsules that may touch the floor


def human(body: str) -> Human:
    """The human body `body`, as its recipe has it.

    Raises:
      UserError: no human body is called so, or its source is missing.
    """
    parts, instructions = anatomy.of(body), recipe.read(body)
    return Human(Skeleton(recipe.source_model(instructions)), parts, instructions.with_floor)


def names() -> list[str]:
    """Names of the motions that ship with the library."""
    return sorted(path.stem for path in _folder().glob("human_*.csv"))


def of_body(name: str, body: PortedBody) -> Motion:
    """Returns the motion `name`, of those shipped or a user's file, in the coordinates of `body`.

    A `.csv` file holds one period in the body's own joints (`reference`). A recording, `.bvh` or
    `.amc` with its `.asf` beside it, is retargeted, all of it as one period; so are the shipped
    motions for a body with other joints than theirs.

    Raises:
      UserError: no such motion or file, or one that does not fit the body.
    """
    parts, skeleton = anatomy.of(body.name), Skeleton(body.source_model(), body.tree)
    return of_human(name, Human(skeleton, parts, body.recipe.with_floor))


def of_human(name: str, body: Human) -> Motion:
    """`of_body` for a body without its muscles."""
    path = find(name)
    columns = read_columns(path) if path.suffix == ".csv" else retargeted(path, body)[0]
    if path.parent == _folder() and body.parts.root != anatomy.of(MADE_FOR).root:
        recording = _recording_of(human(MADE_FOR), columns)
        columns, _ = retarget.retarget(recording, body.skeleton, body.parts, body.soles)
    _complete(path.name, columns, body)
    checks.check(path.name, columns, body.skeleton)
    return from_columns(path.name, columns, body.skeleton.joint_names, body.parts.root)


def retargeted(
    path: Path,
    body: Human,
    rate: float | None = None,
    start: float = 0.0,
    stop: float | None = None,
    up: recordings.Up | None = None,
) -> tuple[dict[str, np.ndarray], retarget.Loss | retarget.AngleLoss]:
    """One period made of a user's file, as columns of a motion file, and what was lost.

    Args:
      path: a recording, or a `.csv` file of the body's own joints, which is closed and smoothed.
      body: the body to move.
      rate: frames/s, where the file's own is missing or wrong.
      start: first second taken.
      stop: last second taken; None: up to the end.
      up: the axis of a recording that points up; None: as its body stands.

    Raises:
      UserError: a file that cannot be read, or too short a piece.
    """
    if path.suffix.lower() in RECORDINGS:
        recording = recordings.read(path, rate, up)
        recordings.check_apart(path, recording)
        frames = len(next(iter(recording.centres.values())))
        kept = _kept(np.arange(frames) / recording.rate, start, stop)
        centres = {name: places[kept] for name, places in recording.centres.items()}
        recording = recording._replace(centres=centres)
        return retarget.retarget(recording, body.skeleton, body.parts, body.soles)
    columns = read_columns(path)
    _complete(path.name, columns, body)
    checks.check(path.name, columns, body.skeleton, limits=False)
    kept = _kept(columns["time"] - columns["time"][0], start, stop)
    columns = {name: values[kept] for name, values in columns.items()}
    return retarget.close_angles(path.name, columns, body.skeleton, body.parts, body.soles)


def find(name: str) -> Path:
    """The file of a motion: a user's path, or one of those shipped.

    Raises:
      UserError: there is none.
    """
    if Path(name).suffix.lower() in (".csv", *RECORDINGS):
        if not os.path.isfile(name):
            raise UserError(f"no motion file {name}; name an existing .csv, .amc or .bvh file")
        return Path(name)
    if name not in names():
        raise unknown_name("motion", name, names())
    return _folder() / f"{name}.csv"


def user_files(name: str) -> list[Path]:
    """The files that a motion's name stands for, the skeleton of a recording among them.

    None where it is one of those shipped; the first is the motion itself, there or not.
    """
    path = Path(name)
    if path.suffix.lower() not in (".csv", *RECORDINGS):
        return []
    if path.suffix.lower() == ".amc" and path.is_file():
        return [path, recordings.skeleton_of(path)]
    return [path]


def _folder() -> Path:
    return resources.data_folder("assets") / "motions"


def _kept(time: np.ndarray, start: float, stop: float | None) -> np.ndarray:
    stop = float(time[-1]) if stop is None else stop
    kept = (time >= start - 1e-9) & (time <= stop + 1e-9)
    if kept.sum() < retarget.MIN_FRAMES:
        raise UserError(
            f"from {start:g} s to {stop:g} s the motion has {kept.sum()} frames; it lasts "
            f"{time[-1]:.2f} s, and at least {retarget.MIN_FRAMES} frames are needed"
        )
    return kept


def _recording_of(body: Human, columns: dict[str, np.ndarray]) -> recordings.Recording:
    """Where the joint centres of `body` are in one of its own motions."""
    _fill_fingers(columns, body)
    bodies = body.parts.centre_bodies()
    points = body.skeleton.origins(list(bodies.values()))
    rows = np.stack([columns[name] for name in body.skeleton.columns()], axis=1)
    places = np.stack([body.skeleton.positions(points) for q in rows if body.skeleton.move(q)])
    rate = 1.0 / np.diff(columns["time"]).mean()
    return recordings.Recording(dict(zip(bodies, np.moveaxis(places, 1, 0), strict=True)), rate)


def _complete(name: str, columns: dict[str, np.ndarray], body: Human) -> None:
    """Adds the fingers that a motion does not move.

    Raises:
      UserError: another joint has no column.
    """
    _fill_fingers(columns, body)
    missing = [column for column in body.skeleton.columns() if column not in columns]
    if missing:
        raise UserError(f"motion {name} has no column for {missing[0]}; add one")


def _fill_fingers(columns: dict[str, np.ndarray], body: Human) -> None:
    """Adds the fingers that a motion does not move, at rest."""
    for name, place in body.skeleton.columns().items():
        if name not in columns and body.parts.is_finger(name):
            columns[name] = np.full_like(columns["time"], body.skeleton.home[place])
