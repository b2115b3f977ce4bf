"""Recipes: which model a body comes from, what stays of it and what leaves.

A recipe is `models/<body>/recipe.toml`; `read` checks it and `source_spec` turns it into the
*source model*: the unported model with the recipe's muscles and repairs, which parity is measured
against and which videos show.

`base = "<body>"` at the top of a recipe takes over the sections of that body's recipe which it does
not give itself, each as a whole; files that a section names lie beside the recipe that it is from.
"""

import dataclasses
import tomllib
from pathlib import Path
from typing import Any

import mujoco
import numpy as np

from mjx_qflex import resources
from mjx_qflex.errors import UserError
from mjx_qflex.lookup import check_keys, unknown_name
from mjx_qflex.porting import adapt, compartments, repairs, sources, values

_SECTIONS: dict[str, dict[str, values.Check] | None] = {
    "source": {
        "package": values.text, "model": values.text, "file": values.text,
        "floor_height": values.number, "fetch": values.text, "repository": values.text,
        "revision": values.text, "folder": values.text, "licence": values.text,
        "sha256": values.text, "by_hand": values.texts,
    },
    "attach": {"files": values.texts},
    "joints": {"lock": values.texts, "range": values.table_of(values.interval)},
    "contacts": {
        "floor": values.text, "with_floor": values.texts, "pairs": values.pairs,
        "mesh_capsules": values.flag,
    },
    "actuators": {
        "count": values.whole(0), "minimum": values.whole(0), "maximum": values.whole(0),
        "drop": values.texts, "fans": values.text, "specific_tension": values.positive,
        "max_width": values.positive, "max_width_of_length": values.positive,
        "position": values.table_of(values.table),
    },
    "solver": {
        "timestep": values.positive, "iterations": values.whole(1),
        "ls_iterations": values.whole(1),
    },
    "repairs": None,  # any muscle's name
    "ranges": None,  # any joint's name
    "paths": {
        "exact": values.flag_or_texts, "length": values.positive, "moment_arm": values.positive,
        "max_degree": values.whole(2), "max_terms": values.whole(1), "num_poses": values.whole(1),
    },
}  # fmt: skip
_ANY_NAME = {"repairs": values.table_of(values.table), "ranges": values.table_of(values.interval)}
_TO_FETCH = ("repository", "revision", "folder", "file", "licence")
_NEEDED_TO_FETCH = {"git": _TO_FETCH, "menagerie": (*_TO_FETCH, "sha256")}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """One body's recipe; fields as in `models/<body>/recipe.toml`."""

    name: str
    folder: Path
    source: dict[str, Any]
    source_folder: Path  # where the source's file is if it ships
    attach: tuple[Path, ...]  # our own MJCF files, added to the environment
    lock: tuple[str, ...]  # joints held at the reference pose
    joint_range: dict[str, tuple[float, float]]  # limits other than the source's, by pattern
    floor: str | None
    with_floor: tuple[str, ...]  # geoms that may touch the floor
    pairs: tuple[tuple[str, str], ...]  # other geoms that may touch each other
    mesh_capsules: bool  # meshes among these become the capsules that MuJoCo fits to them
    position: dict[str, adapt.Servo]  # by pattern of joint names; replace the source's actuators
    count: int  # actuators
    minimum: int
    maximum: int
    drop: tuple[str, ...]  # muscles that leave
    repairs: dict[str, repairs.Repair]  # by muscle
    fans: Path | None  # table of muscle widths; None divides every muscle into equal copies
    timestep: float  # s
    iterations: int
    ls_iterations: int
    ranges: dict[str, tuple[float, float]]  # fitting range where narrower than the joint's limits
    exact_paths: bool | tuple[str, ...]  # muscles whose paths are not compiled; True: all of them
    paths: dict[str, Any]  # overrides of fitting.PathTolerance

    @property
    def contact_pairs(self) -> list[tuple[str, str]]:
        """All pairs of geoms that may touch, those with the floor first."""
        return [(self.floor, geom) for geom in self.with_floor if self.floor] + list(self.pairs)


def body_names() -> list[str]:
    """Returns the names of the bodies that ship with the library."""
    return sorted(
        path.parent.name for path in resources.data_folder("models").glob("*/recipe.toml")
    )


def read(name: str) -> Recipe:
    """Reads the recipe of body `name`: one of ours, or a folder with a `recipe.toml`.

    Raises:
      UserError: no such body, a file that is no TOML, a key that recipes do not have, or a value
        that it cannot have.
    """
    folder = Path(name) if "/" in name else resources.data_folder("models") / name
    path = folder / "recipe.toml"
    if not path.is_file():
        raise unknown_name("body", name, body_names())
    data, home = _with_base(path, _parse(path))
    _check_keys(path, data)
    actuators, contacts = data["actuators"], data.get("contacts", {})
    joints = data.get("joints", {})
    count = actuators["count"]
    paths = dict(data.get("paths", {}))
    exact = paths.pop("exact", True)
    return Recipe(
        name=folder.name,
        folder=folder,
        source=data["source"],
        source_folder=home["source"],
        attach=tuple(home["attach"] / file for file in data.get("attach", {}).get("files", ())),
        lock=tuple(joints.get("lock", ())),
        joint_range={joint: (low, high) for joint, (low, high) in joints.get("range", {}).items()},
        floor=contacts.get("floor"),
        with_floor=tuple(contacts.get("with_floor", ())),
        pairs=tuple((first, second) for first, second in contacts.get("pairs", ())),
        mesh_capsules=contacts.get("mesh_capsules", False),
        position=adapt.read_servos(path, actuators.get("position", {})),
        count=count,
        minimum=actuators.get("minimum", count),
        maximum=actuators.get("maximum", count),
        drop=tuple(actuators.get("drop", ())),
        repairs=repairs.read(path, data.get("repairs", {})),
        fans=home["actuators"] / actuators["fans"] if "fans" in actuators else None,
        ranges={joint: (low, high) for joint, (low, high) in data.get("ranges", {}).items()},
        exact_paths=exact if isinstance(exact, bool) else tuple(exact),
        paths=paths,
        **data["solver"],
    )


def _parse(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid TOML: {error}") from error


def _with_base(path: Path, data: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Path]]:
    """Returns the sections of the recipe `data` and of its base, and the folder each is from.

    Raises:
      UserError: the base is none of our bodies, or has a base itself.
    """
    own = {section: content for section, content in data.items() if section != "base"}
    home = dict.fromkeys(own, path.parent)
    if "base" not in data:
        return own, home
    name = str(data["base"])
    if name not in body_names():
        raise unknown_name(f"base of {path}", name, body_names())
    base_path = resources.data_folder("models") / name / "recipe.toml"
    base = _parse(base_path)
    if "base" in base:
        raise UserError(f"{path}: its base {name!r} has a base itself; name {base['base']!r}")
    return {**base, **own}, {**dict.fromkeys(base, base_path.parent), **home}


def _check_keys(path: Path, data: dict[str, Any]) -> None:
    for section, content in data.items():
        if section not in _SECTIONS:
            raise unknown_name(f"section of {path}", section, (*_SECTIONS, "base"))
        values.require(str(path), {section: content}, {section: values.table, **_ANY_NAME})
        if (allowed := _SECTIONS[section]) is not None:
            where = f"[{section}] in {path}"
            check_keys(where, content, allowed)
            values.require(where, content, allowed)
    needed = {"source": (), "actuators": ("count",), "solver": tuple(_SECTIONS["solver"] or ())}
    if how := data.get("source", {}).get("fetch"):
        if how not in _NEEDED_TO_FETCH:
            raise unknown_name(f"way to fetch in {path}", how, _NEEDED_TO_FETCH)
        needed["source"] = _NEEDED_TO_FETCH[how]
    for section, keys in needed.items():
        if section not in data:
            raise UserError(f"{path} needs a section [{section}]")
        check_keys(f"[{section}] in {path}", data[section], data[section], needed=keys)
    floor = data.get("contacts", {}).get("floor")
    for section, key in (("contacts", "with_floor"), ("source", "floor_height")):
        if key in data.get(section, {}) and not floor:
            raise UserError(f"{path}: {key} in [{section}] needs a floor in [contacts]")


def source_model(recipe: Recipe, num_actuators: int | None = None) -> mujoco.MjModel:
    """Compiles the source model with `num_actuators` muscles (None: as many as the recipe says).

    Raises:
      UserError: the source is missing or does not compile, or the number of actuators is not
        possible for this body.
    """
    with sources.quiet_about_prefixes():
        try:
            return source_spec(recipe, num_actuators).compile()
        except (ValueError, mujoco.FatalError) as error:
            raise UserError(
                f"{recipe.name}: MuJoCo does not compile the model: {sources.one_line(error)}"
            ) from error


def as_given(recipe: Recipe, num_actuators: int) -> mujoco.MjModel:
    """The source model without what is changed for the port's sake: meshes stay meshes.

    Raises:
      UserError: as `source_model`.
    """
    return source_model(dataclasses.replace(recipe, mesh_capsules=False), num_actuators)


def source_spec(recipe: Recipe, num_actuators: int | None = None) -> mujoco.MjSpec:
    """Builds the source model's specification with `num_actuators` muscles.

    Raises:
      UserError: the source is missing, it lacks something that the recipe names, or the number of
        actuators is not possible for this body.
    """
    spec = sources.load(recipe.name, recipe.source_folder, recipe.source)
    spec.option.timestep = recipe.timestep
    adapt.delete_keyframes(spec)
    adapt.show_hidden(spec)
    adapt.attach(spec, recipe.attach)
    adapt.name_parts(spec)
    if recipe.mesh_capsules:
        adapt.fit_capsules(spec, [name for pair in recipe.contact_pairs for name in pair])
    adapt.set_ranges(spec, recipe.joint_range)
    if recipe.position:
        adapt.delete_actuators(spec)
    compartments.drop_muscles(spec, recipe.drop)
    adapt.lock(spec, recipe.lock)
    if recipe.position:
        adapt.add_servos(spec, recipe.position)
    if recipe.floor:
        _place_floor(spec, recipe)
    repairs.apply(spec, recipe.repairs)
    return _with_count(spec, recipe, recipe.count if num_actuators is None else num_actuators)


def _place_floor(spec: mujoco.MjSpec, recipe: Recipe) -> None:
    floor = spec.geom(recipe.floor)
    if floor is None:
        names = [geom.name for geom in spec.geoms if geom.name]
        raise unknown_name(f"floor of {recipe.name}", str(recipe.floor), names)
    if "floor_height" in recipe.source:
        floor.pos = [*floor.pos[:2], recipe.source["floor_height"]]


def _with_count(spec: mujoco.MjSpec, recipe: Recipe, count: int) -> mujoco.MjSpec:
    """Divides the muscles of `spec` until there are `count` actuators."""
    if not recipe.minimum <= count <= recipe.maximum:
        raise UserError(
            f"{recipe.name} cannot have {count} actuators; "
            f"give a number from {recipe.minimum} to {recipe.maximum}"
        )
    muscle = mujoco.mjtGain.mjGAIN_MUSCLE
    if count != len(spec.actuators) and any(a.gaintype != muscle for a in spec.actuators):
        raise UserError(
            f"{recipe.name} has {len(spec.actuators)} actuators, which cannot be divided, since "
            f"not all are muscles; give [actuators] count = {len(spec.actuators)}"
        )
    if recipe.fans:
        return compartments.divide(spec, count, compartments.read_fans(recipe.fans))
    muscles = [muscle.name for muscle in spec.actuators]
    if count == len(muscles):
        return spec
    if not muscles:
        raise UserError(f"{recipe.name} has no actuators; give [actuators] count = 0")
    parts, rest = divmod(count, len(muscles))
    if rest or not parts:
        raise UserError(
            f"{recipe.name} needs a multiple of {len(muscles)} actuators; "
            f"{max(count - rest, len(muscles))} would be one"
        )
    equal = compartments.Fan(0.0, (0.0, 0.0, 0.0))
    return compartments.divide_into(
        spec, dict.fromkeys(muscles, parts), dict.fromkeys(muscles, equal)
    )


def path_fingerprint(recipe: Recipe, model: mujoco.MjModel) -> bytes:
    """Returns bytes that change when anything changes that a muscle path depends on.

    Numbers are rounded to a nanometre, which is below every tolerance and above the differences
    between platforms.
    """
    numbers = [
        model.body_parentid, model.body_pos, model.body_quat, model.jnt_type, model.jnt_bodyid,
        model.jnt_pos, model.jnt_axis, model.jnt_range, model.qpos0, model.eq_obj1id,
        model.eq_obj2id, model.eq_data[:, :5], model.site_bodyid, model.site_pos,
        model.wrap_type, model.wrap_objid, model.wrap_prm, model.tendon_adr, model.tendon_num,
        model.actuator_trnid, model.actuator_gainprm[:, 2],
    ]  # fmt: skip
    if (model.actuator_gear[:, 0] != 1).any():
        numbers.append(model.actuator_gear[:, 0])
    wrapped = model.wrap_objid[np.isin(model.wrap_type, (4, 5))]
    numbers += [model.geom_pos[wrapped], model.geom_quat[wrapped], model.geom_size[wrapped]]
    fits = [sorted(recipe.ranges.items()), sorted(recipe.paths.items())]
    text = repr((*fits, recipe.exact_paths) if recipe.exact_paths else tuple(fits))
    arrays = [np.round(np.asarray(n, float), 9) + 0.0 for n in numbers]
    return text.encode() + b"".join(array.tobytes() for array in arrays)
