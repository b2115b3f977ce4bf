"""Recorded motions as joint centres in space: BVH, and Acclaim's ASF skeleton with AMC frames.

Files put y or z up and name joints as they like; a `Recording` has z up and this library's names
(`hip_r`, `knee_r`, ..., see `anatomy`). Lengths stay in the file's unit, since retargeting takes
directions only. Written from the formats' descriptions (Biovision; Acclaim "ASF/AMC", as on the
pages of the CMU Motion Capture Database).
"""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from scipy.spatial.transform import Rotation

from mjx_qflex import bounds, files
from mjx_qflex.errors import UserError

CENTRES = ("hip", "knee", "ankle", "toe", "shoulder", "elbow", "wrist")
AMC_RATE = 120.0  # frames/s; the file does not say, CMU records at this
# What files call the joint centres of one side, without its mark: BVH joints lie at their centre,
# ASF bones end there.
_BVH_NAMES = {
    "hip": ("upleg", "hip", "thigh", "upperleg"),
    "knee": ("leg", "knee", "shin", "lowleg", "lowerleg", "calf"),
    "ankle": ("ankle", "foot"),
    "toe": ("toebase", "toe", "toes", "ball", "foot"),
    "shoulder": ("arm", "uparm", "upperarm", "shoulder"),
    "elbow": ("forearm", "elbow", "lowarm", "lowerarm"),
    "wrist": ("hand", "wrist"),
}
_ASF_NAMES = {
    "hip": ("hipjoint",),
    "knee": ("femur",),
    "ankle": ("tibia",),
    "toe": ("foot",),
    "shoulder": ("clavicle",),
    "elbow": ("humerus",),
    "wrist": ("radius",),
}
Up = Literal["y", "z"]
# Turns a file's axes to z up.
_UPRIGHT = {"y": np.array([[1.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]]), "z": np.eye(3)}
STANDS = 0.5  # at least, of a body's length along its up axis, in the mean over a recording
# Centres that must not lie at one place: a direction between them is asked for.
_APART = (("hip", "knee"), ("knee", "ankle"), ("ankle", "toe"), ("shoulder", "elbow"),
          ("elbow", "wrist"))  # fmt: skip


class Recording(NamedTuple):
    """Joint centres over time, z up."""

    centres: dict[str, np.ndarray]  # by name, `[T, 3]` in the file's unit of length
    rate: float  # frames/s


class _Bone(NamedTuple):
    """A rigid part: where it is attached, how it turns, and where its named centre lies."""

    name: str
    parent: int  # -1: none
    offset: np.ndarray  # [3] of its joint, in the parent's frame, unless channels place it
    end: np.ndarray  # [3] of its named centre, in its own frame
    frame: Rotation  # in which its rotations are given
    channels: tuple[str, ...]  # "Xposition", "Zrotation", ... in the order of the product


def read(path: Path, rate: float | None = None, up: Up | None = None) -> Recording:
    """Reads a `.bvh` file, or an `.amc` file with its `.asf` skeleton beside it.

    Args:
      path: of the file.
      rate: frames/s, in place of the file's (`.amc` files do not say theirs: 120).
      up: the axis that points up; None is the one along which the body stands.

    Raises:
      UserError: no such file or skeleton, not that format, a joint centre is missing, or the
        body does not stand and `up` is not given.
    """
    if not os.path.isfile(path):  # of a name too long, too
        raise UserError(f"no motion file {path}; name an existing .csv, .amc or .bvh file")
    try:
        if path.suffix.lower() == ".bvh":
            bones, frames, own_rate = _read_bvh(_text(path))
            names = _BVH_NAMES
        else:
            bones, unit = _read_asf(_text(skeleton_of(path)))
            frames, own_rate = _read_amc(_text(path), bones, unit), AMC_RATE
            names = _ASF_NAMES
        with np.errstate(all="ignore"):
            positions = _positions(bones, frames)
        if not np.isfinite(positions).all():
            raise ValueError("a number is missing or too large")
    except (ValueError, LookupError, TypeError, StopIteration, RuntimeError, OSError) as error:
        why = f"{type(error).__name__}: {files.reason(error)[:200]}"
        raise UserError(
            f"{path.name} is not a motion of its format ({why}); export it anew"
        ) from None
    found = _centres(path, [bone.name for bone in bones], names)
    centres = {name: positions[:, i] for name, i in found.items()}
    upright = _UPRIGHT[up or _up_axis(path, centres)]
    rate = own_rate if rate is None else rate
    bounds.check_value(f"the rate of {path.name} in frames/s", rate, "--rate")
    return Recording({name: places @ upright.T for name, places in centres.items()}, rate)


def _text(path: Path) -> str:
    """Returns what is in a file; what counts of it is in ASCII, whatever its names are in."""
    return path.read_text(encoding="utf-8-sig", errors="replace")


def check_apart(path: Path, recording: Recording) -> None:
    """Checks that directions from one joint centre to the next can be told.

    Raises:
      UserError: two lie at one place; names them and the file.
    """
    centres = recording.centres
    pairs = [(f"{a}_{side}", f"{b}_{side}") for a, b in _APART for side in "rl"]
    pairs += [("hip_r", "hip_l"), ("shoulder_r", "shoulder_l")]
    size = np.ptp(np.stack(list(centres.values())), axis=0).max()
    for first, second in pairs:
        if np.linalg.norm(centres[first] - centres[second], axis=1).min() <= 1e-4 * size:
            raise UserError(
                f"{path.name} has {first} and {second} at one place; give its joints their offsets"
            )


def _up_axis(path: Path, centres: dict[str, np.ndarray]) -> Up:
    """Returns the axis along which shoulders are above ankles, in the mean over the frames."""

    def middle(part: str) -> np.ndarray:
        return 0.5 * (centres[f"{part}_r"] + centres[f"{part}_l"])

    along = middle("shoulder") - middle("ankle")
    lengths = np.maximum(np.linalg.norm(along, axis=1, keepdims=True), 1e-12)
    _, y, z = (along / lengths).mean(axis=0)
    if max(y, z) < STANDS:
        raise UserError(
            f"{path.name} has a body that does not stand, and does not tell which axis is up; "
            "retarget it with python -m mjx_qflex.motions and --up=y or --up=z"
        )
    return "y" if y > z else "z"


def skeleton_of(path: Path) -> Path:
    """Returns the `.asf` file of an `.amc` file.

    `16_35.amc` is of `16_35.asf`, or of subject 16's `16.asf`, or of the only skeleton there.

    Raises:
      UserError: there is none.
    """
    candidates = [path.with_suffix(".asf"), path.with_name(f"{path.stem.split('_')[0]}.asf")]
    others = sorted(path.parent.glob("*.asf"))
    for candidate in candidates + (others if len(others) == 1 else []):
        if candidate.is_file():
            return candidate
    raise UserError(f"{path.name} needs its skeleton; put {candidates[1].name} beside it")


def _centres(path: Path, bones: Sequence[str], names: dict[str, tuple[str, ...]]) -> dict[str, int]:
    plain = [re.sub(r"[^a-z0-9]", "", name.lower().rpartition(":")[2]) for name in bones]
    found = {}
    for centre in CENTRES:
        for side, marks in (("r", ("right", "r")), ("l", ("left", "l"))):
            known = [mark + word for word in names[centre] for mark in marks]
            known += [word + mark for word in names[centre] for mark in marks]
            places = [plain.index(name) for name in known if name in plain]
            index = next((place for place in places if place not in found.values()), None)
            if index is None:
                raise UserError(
                    f"{path.name} has no {centre}_{side}; rename its joint {known[0]!r} "
                    f"(it has {', '.join(bones[:40])})"
                )
            found[f"{centre}_{side}"] = index
    return found


def _positions(bones: Sequence[_Bone], frames: dict[str, np.ndarray]) -> np.ndarray:
    """World positions `[T, bones, 3]` of the bones' centres; `frames` has `[T, channels]` each."""
    turns: list[Rotation] = []
    joints: list[np.ndarray] = []
    ends = []
    for bone in bones:
        values = frames[bone.name]
        local, shift = Rotation.identity(len(values)), np.tile(bone.offset, (len(values), 1))
        for channel, column in zip(bone.channels, values.T, strict=True):
            axis = "xyz".index(channel[0].lower())
            if channel.lower().endswith("position"):
                shift[:, axis] = column
            else:
                local = local * Rotation.from_rotvec(column[:, None] * np.eye(3)[axis])
        local = bone.frame * local * bone.frame.inv()
        if bone.parent < 0:
            turns.append(local)
            joints.append(shift)
        else:
            above = turns[bone.parent]
            joints.append(joints[bone.parent] + above.apply(shift))
            turns.append(above * local)
        ends.append(joints[-1] + turns[-1].apply(bone.end))
    return np.stack(ends, axis=1)


def _read_bvh(text: str) -> tuple[list[_Bone], dict[str, np.ndarray], float]:
    head, _, motion = text.partition("MOTION")
    words = iter(head.split())
    bones: list[_Bone] = []
    open_bones: list[int] = []
    for word in words:
        if word in ("ROOT", "JOINT"):
            name = next(words)
            _expect(words, "{")
            _expect(words, "OFFSET")
            offset = np.array([float(next(words)) for _ in range(3)])
            _expect(words, "CHANNELS")
            channels = tuple(next(words) for _ in range(int(next(words))))
            parent = open_bones[-1] if open_bones else -1
            open_bones.append(len(bones))
            bones.append(_Bone(name, parent, offset, np.zeros(3), Rotation.identity(), channels))
        elif word == "End":
            while next(words) != "}":
                pass
        elif word == "}":
            open_bones.pop()
    lines = motion.strip().splitlines()
    count, step = int(lines[0].split()[-1]), float(lines[1].split()[-1])
    if not step > 0.0:
        raise ValueError(f"a frame takes {step:g} s")
    table = np.array(" ".join(lines[2:]).split(), float).reshape(count, -1)
    edges = np.cumsum([0, *(len(bone.channels) for bone in bones)])
    if edges[-1] != table.shape[1] or not bones:
        raise ValueError(f"{table.shape[1]} numbers a frame for {edges[-1]} channels")
    frames = {}
    for bone, first, last in zip(bones, edges, edges[1:], strict=False):
        turns = [channel.lower().endswith("rotation") for channel in bone.channels]
        frames[bone.name] = np.where(turns, np.deg2rad(table[:, first:last]), table[:, first:last])
    return bones, frames, 1.0 / step


def _expect(words: Iterator[str], word: str) -> None:
    found = next(words)
    if found != word:
        raise ValueError(f"{found!r} where {word!r} belongs")


def _read_asf(text: str) -> tuple[list[_Bone], float]:
    """Bones, parents first, the root called "root"; and the radians in a unit of angle."""
    sections = {
        part.split(None, 1)[0]: part.split("\n", 1)[1] if "\n" in part else ""
        for part in re.sub(r"#.*", "", text).split("\n:")
        if part.strip()
    }
    unit = 1.0 if re.search(r"angle\s+rad", sections.get("units", "")) else np.pi / 180.0
    root = dict(line.split(None, 1) for line in sections["root"].strip().splitlines())
    order = tuple(_channel(word) for word in root["order"].split())
    turns = [c for c in order if c.endswith("rotation")][::-1]
    places = [c for c in order if c.endswith("position")]
    orientation = np.array(root.get("orientation", "0 0 0").split(), float)
    frame = _euler(root.get("axis", "XYZ").strip(), orientation * unit)
    zero = np.zeros(3)
    bones = [_Bone("root", -1, zero, zero, frame, (*places, *turns))]
    described = {}
    for block in re.findall(r"begin\b(.*?)\bend\b", sections["bonedata"], re.DOTALL):
        lines = [line.split() for line in block.strip().splitlines() if line.strip()]
        described |= {line[1]: lines for line in lines if line[0] == "name"}
    children: dict[str, list[str]] = {}
    for line in sections["hierarchy"].splitlines():
        words = line.split()
        if words and words[0] not in ("begin", "end"):
            children[words[0]] = words[1:]
    queue = [(child, 0) for child in children["root"]]
    for name, parent in queue:
        if len(bones) > len(described):
            raise ValueError(f"the bone {name} hangs from itself")
        fields = {line[0]: line[1:] for line in described[name]}
        end = np.array(fields["direction"], float) * float(fields["length"][0])
        *angles, axes = fields["axis"]
        channels = tuple(_channel(word) for word in fields.get("dof", ()))[::-1]
        frame = _euler(axes, np.array(angles, float) * unit)
        bones.append(_Bone(name, parent, bones[parent].end, end, frame, channels))
        queue += [(child, len(bones) - 1) for child in children.get(name, ())]
    return bones, unit


def _channel(word: str) -> str:
    """`rx` or `TX` as BVH would call it."""
    return word[1].upper() + {"r": "rotation", "t": "position"}[word[0].lower()]


def _euler(axes: str, angles: np.ndarray) -> Rotation:
    """Turns about fixed axes, the first one first."""
    return Rotation.from_euler(axes.lower(), angles)


def _read_amc(text: str, bones: Sequence[_Bone], unit: float) -> dict[str, np.ndarray]:
    rows: dict[str, list[list[float]]] = {bone.name: [] for bone in bones}
    count = 0
    for line in text.splitlines():
        name, *values = line.split() or ["#"]
        if name.isdigit():
            count += 1
        elif name in rows and count:
            rows[name].append([float(value) for value in values])
    frames = {}
    for bone in bones:
        given = np.array(rows[bone.name] or np.zeros((count, 0)))
        if given.shape != (count, len(bone.channels)) or not count:
            raise ValueError(f"{bone.name} has {given.shape} numbers in {count} frames")
        places = [channel.endswith("position") for channel in bone.channels]
        # The file gives positions, then turns in the order of `dof`, last channel first.
        shifts, turns = given[:, : sum(places)], given[:, sum(places) :][:, ::-1]
        frames[bone.name] = np.concatenate([shifts, turns * unit], axis=1)
    return frames
