"""What the human bodies call the parts that tasks and retargeting speak of: one line a body."""

from typing import NamedTuple

from mjx_qflex.lookup import unknown_name


class Anatomy(NamedTuple):
    """Names in one source model."""

    root: tuple[str, ...]  # joints that place the whole body; all others pose it
    pelvis: str
    chest: str  # the body that carries the breastbone
    sternum: str | None  # a site on the breastbone; None: the origin of `chest`
    hand: str  # bodies of the right side; the left side ends in _l
    forward: tuple[float, float]  # where it faces in the world at qpos0
    centres: dict[str, str]  # joint centre -> body whose origin lies there, right side

    def is_finger(self, joint: str) -> bool:
        """Whether `joint` is one of the fingers', which a motion need not move."""
        return joint.startswith(_FINGERS)

    def key_bodies(self) -> tuple[str, ...]:
        """Pelvis, chest, hands and feet: the bodies whose places a dance is judged by."""
        sides = tuple(self.hand + side for side in ("_r", "_l"))
        return (self.pelvis, self.chest, *sides, "calcn_r", "calcn_l")

    def centre_bodies(self) -> dict[str, str]:
        """The body at each joint centre, both sides: `hip_r`, `hip_l`, `knee_r`, ..."""
        return {
            f"{centre}_{side}": f"{body}_{side}"
            for centre, body in self.centres.items()
            for side in ("r", "l")
        }


_FINGERS = ("cmc_", "mp_", "ip_", "mcp", "pm", "md")
_LIMBS = {
    "hip": "femur",
    "knee": "tibia",
    "ankle": "talus",
    "toe": "toes",
    "shoulder": "humerus",
    "elbow": "ulna",
}
_MYO = Anatomy(
    root=("root",),
    pelvis="pelvis",
    chest="torso",
    sternum="chest",
    hand="lunate",
    forward=(0.0, -1.0),
    centres={**_LIMBS, "wrist": "lunate"},
)
_SCALAR_ROOT = tuple(f"pelvis_{name}" for name in ("tz", "ty", "tx", "tilt", "list", "rotation"))

ANATOMIES: dict[str, Anatomy] = {
    "ms_human": _MYO,
    "myo_full_body": _MYO,
    "ms_human_700": Anatomy(
        root=_SCALAR_ROOT,
        pelvis="pelvis",
        chest="sternum",
        sternum=None,
        hand="hand",
        forward=(1.0, 0.0),
        centres={**_LIMBS, "wrist": "hand"},
    ),
}


def of(body: str) -> Anatomy:
    """Returns the names of the human body called `body`.

    Raises:
      UserError: it is none of the human bodies.
    """
    if body not in ANATOMIES:
        raise unknown_name("human body", body, ANATOMIES)
    return ANATOMIES[body]
