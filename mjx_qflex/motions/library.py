"""Finds a motion by name or path and fits it to a body."""

from pathlib import Path

from mjx_qflex import resources
from mjx_qflex.errors import UserError
from mjx_qflex.lookup import unknown_name
from mjx_qflex.motions import anatomy
from mjx_qflex.motions.reference import Motion, from_columns, read_columns
from mjx_qflex.porting.body import PortedBody

RECORDINGS = (".amc", ".bvh")


def names() -> list[str]:
    """Names of the motions that ship with the library."""
    return sorted(path.stem for path in _folder().glob("human_*.csv"))


def of_body(name: str, body: PortedBody) -> Motion:
    """Returns the motion `name`, of those shipped or a user's file, in the coordinates of `body`.

    A `.csv` file holds one period in the body's own joints (`reference`); a recording, `.bvh` or
    `.amc` with its `.asf` beside it, is retargeted here, which takes seconds to minutes.

    Raises:
      UserError: no such motion or file, or one that does not fit the body.
    """
    path = find(name, body.name)
    if path.suffix.lower() in RECORDINGS:
        raise UserError(f"{path.name} is a recording; make a CSV file of it with --retarget")
    columns = read_columns(path)
    parts = anatomy.of(body.name)
    home = body.initial_state().qpos
    for joint in body.joint_names:
        if joint not in columns and parts.is_finger(joint):
            columns[joint] = 0.0 * columns["time"] + float(home[body.qpos_index(joint)])
    return from_columns(path.name, columns, body.joint_names, travelling=parts.root)


def find(name: str, body: str) -> Path:
    """The file of a motion: a user's path, or what ships for `body` or else for all bodies.

    Raises:
      UserError: there is none.
    """
    if Path(name).suffix.lower() in (".csv", *RECORDINGS):
        if not Path(name).is_file():
            raise UserError(f"no motion file {name}; name an existing .csv, .amc or .bvh file")
        return Path(name)
    for path in (_folder() / body / f"{name}.csv", _folder() / f"{name}.csv"):
        if path.is_file():
            return path
    raise unknown_name("motion", name, names())


def _folder() -> Path:
    return resources.data_folder("assets") / "motions"
