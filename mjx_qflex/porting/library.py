"""Loads ported bodies, with compiled paths from where they were last fitted."""

import hashlib
import os
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import mujoco
import numpy as np

from mjx_qflex import resources
from mjx_qflex.errors import UserError
from mjx_qflex.lookup import unknown_name
from mjx_qflex.physics import contacts, linear, muscle, servos, tendons, tree
from mjx_qflex.physics.body import PortedBody
from mjx_qflex.physics.paths import PathGroup
from mjx_qflex.porting import fitting, recipe

_FORMAT = b"paths 2"


def load(name: str, num_actuators: int | None = None) -> PortedBody:
    """Returns the body `name` with `num_actuators` muscles (None: as many as its recipe says).

    Compiled muscle paths are read from the recipe's folder if they belong to exactly this recipe
    and source, else from the user's cache, else they are fitted (minutes for a large body) and
    kept in the cache.

    Raises:
      UserError: unknown body, broken recipe, missing source, impossible number of actuators,
        something in the model that a port does not cover, a path that no polynomial follows, or
        releases of mujoco and mujoco-mjx that do not match.
    """
    refuse_unmatched_releases()
    instructions = recipe.read(name)
    source = recipe.source_model(instructions, num_actuators)
    body_tree = tree.build(source)
    fitting.joint_ranges(body_tree, instructions.ranges)  # refuses names of joints that are none
    motors = servos.Servos.from_model(source, body_tree)
    if 0 < len(motors.joint) < source.nu:
        raise UserError(f"{instructions.name} has muscles and motors; keep one kind of actuators")
    constants = muscle.MuscleConstants.from_model(source)
    exact = exact_muscles(instructions, source)
    return PortedBody(
        tree=body_tree,
        contacts=contacts.build(source, body_tree, instructions.contact_pairs),
        muscle_constants=constants,
        path_groups=_compiled_paths(instructions, source, body_tree, exact),
        tendons=tendons.from_model(source, body_tree, exact),
        linear=linear.from_model(source, body_tree, linear.muscles(source)),
        servos=motors,
        actuator_names=tuple(source.actuator(i).name for i in range(source.nu)),
        recipe=instructions,
        source=source,
    )


def exact_muscles(instructions: recipe.Recipe, source: mujoco.MjModel) -> list[int]:
    """Returns the actuators of `source` whose paths the recipe leaves exact, parts of them too.

    Muscles on joints and on fixed tendons are not among them: their paths are linear.

    Raises:
      UserError: the recipe names a muscle that the model does not have.
    """
    pulling = source.actuator_gaintype == mujoco.mjtGain.mjGAIN_MUSCLE
    pulling[linear.muscles(source)] = False
    names = {int(a): source.actuator(int(a)).name.split("#")[0] for a in np.flatnonzero(pulling)}
    wanted = instructions.exact_paths
    if isinstance(wanted, bool):
        return list(names) if wanted else []
    for name in wanted:
        if name not in names.values():
            raise unknown_name(
                f"muscle in [paths] exact of {instructions.name}", name, set(names.values())
            )
    return [a for a, name in names.items() if name in wanted]


def refuse_unmatched_releases() -> None:
    """Raises UserError unless mujoco and mujoco-mjx are the same release.

    mujoco 4 gave a wrap's side site another meaning, and mjx 3.17 does not know it: tendons are
    then wrong by up to 171 mm without a word.
    """
    from importlib.metadata import version

    compiler, simulator = version("mujoco"), version("mujoco-mjx")
    if compiler != simulator:
        raise UserError(
            f"mujoco {compiler} and mujoco-mjx {simulator} differ; "
            f"run: pip install mujoco=={simulator} mujoco-mjx=={simulator}"
        )


def path_tolerance(instructions: recipe.Recipe) -> fitting.PathTolerance:
    return fitting.PathTolerance(**instructions.paths)


def fit_paths(
    instructions: recipe.Recipe, source: mujoco.MjModel, body_tree: tree.Tree
) -> tuple[fitting.PathFit, fitting.PathSamples]:
    """Fits the paths of a source model that are not left exact.

    Returns the fit and the poses on which it was tested.

    Raises:
      UserError: a path that no polynomial follows within the recipe's tolerances.
    """
    tolerance = path_tolerance(instructions)
    ranges = fitting.joint_ranges(body_tree, instructions.ranges)
    train = fitting.sample(
        source, body_tree, fitting.random_poses(ranges, tolerance.num_poses, tolerance.seed)
    )
    test = fitting.sample(
        source,
        body_tree,
        fitting.random_poses(ranges, tolerance.num_test_poses, tolerance.seed + 1),
    )
    peak = muscle.MuscleConstants.from_model(source).active.peak_force
    muscles = np.flatnonzero(_to_compile(source, exact_muscles(instructions, source)))
    found = fitting.fit(train, test, ranges, peak, tolerance, muscles)
    found.refuse_failures([source.actuator(a).name for a in range(source.nu)], tolerance)
    return found, test


def _compiled_paths(
    instructions: recipe.Recipe, source: mujoco.MjModel, body_tree: tree.Tree, exact: list[int]
) -> tuple[PathGroup, ...]:
    compiled = _to_compile(source, exact)
    if not compiled.any():
        return ()
    key = _content_key(instructions, source)
    shipped = instructions.folder / "paths.npz"
    # Fits in the folder "paths", of before, need not hold their tolerances.
    cached = resources.cache_folder() / "fits" / f"{instructions.name}-{key[:16]}.npz"
    for path in (shipped, cached):
        groups = read_paths(path, key)
        if groups is not None:
            return groups
    print(
        f"compiling the {compiled.sum()} muscle paths of {instructions.name} "
        "(once; takes minutes)...",
        file=sys.stderr,
        flush=True,
    )
    fit, _ = fit_paths(instructions, source, body_tree)
    write_paths(cached, key, fit.groups)
    return fit.groups


def _to_compile(source: mujoco.MjModel, exact: list[int]) -> np.ndarray:
    """Which actuators `[A]` are muscles whose paths become polynomials."""
    compiled = source.actuator_gaintype == mujoco.mjtGain.mjGAIN_MUSCLE
    compiled[[*exact, *linear.muscles(source)]] = False
    return compiled


def _content_key(instructions: recipe.Recipe, source: mujoco.MjModel) -> str:
    return hashlib.sha256(_FORMAT + recipe.path_fingerprint(instructions, source)).hexdigest()


def ship_paths(name: str) -> Path:
    """Fits the paths of a body at its recipe's own size and stores them beside the recipe.

    Raises:
      UserError: the body has no paths to fit, or cannot be loaded.
    """
    instructions = recipe.read(name)
    source = recipe.source_model(instructions)
    if not _to_compile(source, exact_muscles(instructions, source)).any():
        raise UserError(f"{instructions.name} has no muscle paths to fit; leave --write out")
    fit, _ = fit_paths(instructions, source, tree.build(source))
    path = instructions.folder / "paths.npz"
    write_paths(path, _content_key(instructions, source), fit.groups)
    return path


def read_paths(path: Path, key: str) -> tuple[PathGroup, ...] | None:
    """Returns the compiled paths in `path` if they are there and belong to `key`, else None."""
    if not path.is_file():
        return None
    try:
        with path.open("rb") as stream, np.load(stream) as file:
            if str(file["key"]) != key:
                return None
            return tuple(
                PathGroup(
                    **{
                        field: file[f"{i}/{field}"]
                        for field in ("muscles", "joints", "center", "half_range", "coefficients")
                    },
                    degree=int(file[f"{i}/degree"]),
                )
                for i in range(int(file["groups"]))
            )
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None  # damaged: fit anew


def write_paths(path: Path, key: str, groups: tuple[PathGroup, ...]) -> None:
    """Writes compiled paths to `path` in one move, so that no reader sees half a file."""
    arrays: dict[str, Any] = {"key": np.array(key), "groups": np.array(len(groups))}
    for i, group in enumerate(groups):
        arrays[f"{i}/muscles"] = group.muscles.astype(np.int32)
        arrays[f"{i}/joints"] = group.joints.astype(np.int32)
        arrays[f"{i}/center"] = group.center
        arrays[f"{i}/half_range"] = group.half_range
        arrays[f"{i}/degree"] = np.array(group.degree)
        arrays[f"{i}/coefficients"] = group.coefficients.astype(np.float32)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".npz")
    os.close(handle)
    np.savez_compressed(temporary, **arrays)
    os.chmod(temporary, 0o644)
    os.replace(temporary, path)
