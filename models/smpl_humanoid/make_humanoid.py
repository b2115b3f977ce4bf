"""Writes smpl_humanoid.xml: a humanoid with SMPL's joints and an average body's measures.

Joint names and their tree are SMPL's (Loper et al. 2015). Segment lengths are fractions of stature
(Drillis and Contini 1966), segment masses fractions of body mass and segment densities those of
Dempster, both as tabulated in Winter, Biomechanics and Motor Control of Human Movement, chapter 4.
Every segment is a solid of its mass and density, mostly a capsule, so its radius follows. Where the
tables have one segment for several of SMPL's joints (trunk, head and neck, hand, foot), the shares
are ours, and so are ranges of motion, stiffness and damping.

It stands in T-pose, faces +x, left is +y, z is up. Run: python make_humanoid.py
"""

import math
from pathlib import Path

STATURE, MASS = 1.75, 75.0  # m, kg
LENGTH = {  # fractions of stature
    "thigh": 0.245, "shank": 0.246, "ankle_height": 0.039, "foot": 0.152, "foot_breadth": 0.055,
    "upper_arm": 0.186, "forearm": 0.146, "hand": 0.108, "half_hips": 0.191 / 2,
    "half_shoulders": 0.129, "hip_height": 0.530, "shoulder_height": 0.818, "chin_height": 0.870,
}  # fmt: skip
SHARE = {  # of body mass
    "thigh": 0.100, "shank": 0.0465, "foot": 0.0145, "upper_arm": 0.028, "forearm": 0.016,
    "hand": 0.006, "head_and_neck": 0.081, "thorax": 0.216, "abdomen": 0.139, "pelvis": 0.142,
}  # fmt: skip
DENSITY = {  # kg/m^3
    "thigh": 1050, "shank": 1090, "upper_arm": 1070, "forearm": 1130, "hand": 1160,
    "head_and_neck": 1110, "trunk": 1030,
}  # fmt: skip

# Of each body: ranges of its hinges about x, y and z (rad; of the left side, and mirrored on the
# right), and its servos' stiffness (N m / rad) and largest torque (N m). The ankles' stiffness
# holds the upright body, which falls like a pendulum of 730 N m / rad.
JOINTS = {
    "hip": ((-0.5, 0.9), (-2.1, 0.5), (-0.7, 0.7), 500, 300),
    "knee": ((-0.1, 0.1), (-0.05, 2.5), (-0.1, 0.1), 500, 300),
    "ankle": ((-0.5, 0.5), (-0.5, 0.9), (-0.4, 0.4), 600, 200),
    "foot": ((-0.1, 0.1), (-0.9, 0.3), (-0.1, 0.1), 100, 50),
    "spine1": ((-0.4, 0.4), (-0.3, 0.6), (-0.4, 0.4), 500, 300),
    "spine2": ((-0.4, 0.4), (-0.3, 0.6), (-0.4, 0.4), 500, 300),
    "spine3": ((-0.4, 0.4), (-0.3, 0.6), (-0.4, 0.4), 500, 300),
    "neck": ((-0.5, 0.5), (-0.5, 0.7), (-0.7, 0.7), 80, 40),
    "head": ((-0.4, 0.4), (-0.4, 0.5), (-0.6, 0.6), 50, 30),
    "collar": ((-0.3, 0.3), (-0.3, 0.3), (-0.3, 0.3), 300, 150),
    "shoulder": ((-1.6, 1.4), (-1.4, 1.4), (-2.0, 0.7), 200, 100),
    "elbow": ((-0.1, 0.1), (-1.4, 1.4), (-2.4, 0.05), 120, 80),
    "wrist": ((-1.0, 1.0), (-0.3, 0.3), (-0.6, 0.6), 20, 15),
    "hand": ((-1.2, 1.2), (-0.1, 0.1), (-0.2, 0.2), 10, 5),
}
DAMPING = 0.03  # s, of stiffness
ARMATURE = 0.02  # kg m^2
PELVIS_ABOVE_HIPS = 0.04  # m

long = {name: fraction * STATURE for name, fraction in LENGTH.items()}
heavy = {name: fraction * MASS for name, fraction in SHARE.items()}
servos: dict[str, str] = {}  # by joint


def capsule_radius(mass: float, length: float, density: float) -> float:
    """Radius (m) of a capsule of this whole length, mass and density, by bisection."""
    low, high = 0.0, length / 2
    for _ in range(50):
        radius = (low + high) / 2
        volume = math.pi * radius**2 * (length - 2 * radius / 3)
        low, high = (radius, high) if volume < mass / density else (low, radius)
    return low


def limb(
    name: str, length: float, direction: tuple[float, float, float], mass: float, density: int
):
    """A capsule from the body's origin over `length` in `direction`."""
    radius = capsule_radius(mass, length, density)
    ends = [d * end for end in (radius, length - radius) for d in direction]
    return geom(name, mass, f'type="capsule" fromto="{numbers(ends)}" size="{radius:.4f}"')


def geom(name: str, mass: float, shape: str, kind: str = "flesh") -> str:
    return f'<geom name="{name}" class="{kind}" mass="{mass:.4f}" {shape}/>'


def numbers(values) -> str:
    return " ".join(f"{value:.4f}".rstrip("0").rstrip(".") for value in values)


def body(name: str, position, geoms: list[str], children: list[list[str]] = ()) -> list[str]:
    """Lines of a body with its three hinges; adds their servos to `servos`."""
    *ranges, stiffness, limit = JOINTS[name.removeprefix("left_").removeprefix("right_")]
    lines = [f'<body name="{name}" pos="{numbers(position)}">']
    for axis, (low, high) in zip("xyz", ranges, strict=True):
        if name.startswith("right_") and axis != "y":  # the mirror at the plane y = 0
            low, high = -high, -low
        joint = f"{name}_{axis}"
        lines.append(
            f'  <joint name="{joint}" class="{axis}" range="{numbers((low, high))}" '
            f'damping="{numbers([DAMPING * stiffness])}"/>'
        )
        half, middle = (high - low) / 2, (high + low) / 2
        servos[joint] = (
            f'<general name="{joint}" joint="{joint}" gainprm="{numbers([stiffness * half])}" '
            f'biasprm="{numbers([stiffness * middle, -stiffness])}" '
            f'forcerange="{-limit} {limit}"/>'
        )
    lines += [f"  {line}" for line in geoms]
    for child in children:
        lines += [f"  {line}" for line in child]
    return [*lines, "</body>"]


def leg(side: str, sign: int) -> list[str]:
    """Thigh, shank, and a foot: two capsules from heel to ball, one across the toes."""
    down = (0.0, 0.0, -1.0)
    breadth, height, length = long["foot_breadth"], long["ankle_height"], long["foot"]
    radius, heel, ball = breadth / 4, -0.25 * length, 0.5 * length  # m in front of the ankle
    tip, sole = 0.75 * length - radius, radius - height
    mass = heavy["foot"]
    soles = [
        geom(
            f"{side}_sole_{i}", 0.4 * mass,
            f'type="capsule" size="{radius:.4f}" '
            f'fromto="{numbers((heel + radius, y, sole, ball, y, sole))}"', "touching",
        )
        for i, y in enumerate((-radius, radius))
    ]  # fmt: skip
    toes = geom(
        f"{side}_toes", 0.2 * mass,
        f'type="capsule" size="{radius:.4f}" '
        f'fromto="{numbers((tip - ball, -radius, 0, tip - ball, radius, 0))}"', "touching",
    )  # fmt: skip
    foot = body(f"{side}_foot", (ball, 0, sole), [toes])
    ankle = body(f"{side}_ankle", (0, 0, -long["shank"]), soles, [foot])
    shank = limb(f"{side}_shank", long["shank"], down, heavy["shank"], DENSITY["shank"])
    knee = body(f"{side}_knee", (0, 0, -long["thigh"]), [shank], [ankle])
    thigh_radius = capsule_radius(heavy["thigh"], long["thigh"], DENSITY["thigh"])
    thigh = limb(f"{side}_thigh", long["thigh"], down, heavy["thigh"], DENSITY["thigh"])
    at = (0, sign * (long["half_hips"] - thigh_radius), -PELVIS_ABOVE_HIPS)
    return body(f"{side}_hip", at, [thigh], [knee])


def arm(side: str, sign: int, chest_height: float, collar_mass: float) -> list[str]:
    """Collar, upper arm, forearm, palm and fingers, stretched sideways."""
    out = (0.0, float(sign), 0.0)
    palm, fingers = 0.55 * long["hand"], 0.45 * long["hand"]
    radius = capsule_radius(0.35 * heavy["hand"], fingers, DENSITY["hand"])
    shape = f'type="capsule" size="{radius:.4f}" '
    shape += f'fromto="{numbers((0, sign * radius, 0, 0, sign * (fingers - radius), 0))}"'
    finger = geom(f"{side}_fingers", 0.35 * heavy["hand"], shape, "touching")
    hand = body(f"{side}_hand", (0, sign * palm, 0), [finger])
    flat = limb(f"{side}_palm", palm, out, 0.65 * heavy["hand"], DENSITY["hand"])
    wrist = body(f"{side}_wrist", (0, sign * long["forearm"], 0), [flat], [hand])
    fore = limb(f"{side}_forearm", long["forearm"], out, heavy["forearm"], DENSITY["forearm"])
    elbow = body(f"{side}_elbow", (0, sign * long["upper_arm"], 0), [fore], [wrist])
    upper = limb(
        f"{side}_upper_arm", long["upper_arm"], out, heavy["upper_arm"], DENSITY["upper_arm"]
    )
    arm_radius = capsule_radius(heavy["upper_arm"], long["upper_arm"], DENSITY["upper_arm"])
    from_middle = long["half_shoulders"] - arm_radius
    inner = 0.3 * from_middle
    shoulder = body(f"{side}_shoulder", (0, sign * (from_middle - inner), 0), [upper], [elbow])
    clavicle = limb(f"{side}_collar", from_middle - inner, out, collar_mass, DENSITY["trunk"])
    at = (0, sign * inner, long["shoulder_height"] - chest_height)
    return body(f"{side}_collar", at, [clavicle], [shoulder])


def block(name: str, mass: float, height: float, half_breadth: float, center: float) -> str:
    """A box of the trunk's density: as high and broad as given, as deep as its mass asks."""
    depth = mass / DENSITY["trunk"] / (height * 2 * half_breadth)
    size = numbers((depth / 2, half_breadth, height / 2))
    return geom(name, mass, f'type="box" pos="0 0 {center:.4f}" size="{size}"')


def trunk() -> list[str]:
    """The spine above the pelvis, with head and arms."""
    half = long["half_hips"] * 0.8
    pelvis_top = long["hip_height"] + 0.08
    neck_height = 0.5 * (long["shoulder_height"] + long["chin_height"])
    chest = pelvis_top + 0.55 * (neck_height - pelvis_top)
    step = (chest - pelvis_top) / 2
    collar_mass = 0.05 * heavy["thorax"]
    head_height = long["chin_height"]
    ball = STATURE - head_height
    skull_radius = capsule_radius(0.85 * heavy["head_and_neck"], ball, DENSITY["head_and_neck"])
    skull = geom(
        "head", 0.85 * heavy["head_and_neck"],
        f'type="capsule" size="{skull_radius:.4f}" '
        f'fromto="{numbers((0.01, 0, skull_radius - 0.01, 0.01, 0, ball - skull_radius))}"',
    )  # fmt: skip
    head = body("head", (0, 0, head_height - neck_height), [skull])
    throat = limb(
        "neck", head_height - neck_height + 0.06, (0.0, 0.0, 1.0),
        0.15 * heavy["head_and_neck"], DENSITY["head_and_neck"],
    )  # fmt: skip
    neck = body("neck", (0, 0, neck_height - chest), [throat], [head])
    arms = [arm(side, sign, chest, collar_mass) for side, sign in (("left", 1), ("right", -1))]
    ribs = block(
        "chest", heavy["thorax"] - 2 * collar_mass, neck_height - chest, half,
        (neck_height - chest) / 2,
    )  # fmt: skip
    spine3 = body("spine3", (0, 0, step), [ribs], [neck, *arms])
    waist = [block(f"waist_{i}", heavy["abdomen"] / 2, step, half, step / 2) for i in (1, 2)]
    spine2 = body("spine2", (0, 0, step), [waist[1]], [spine3])
    at = (0, 0, pelvis_top - long["hip_height"] - PELVIS_ABOVE_HIPS)
    return body("spine1", at, [waist[0]], [spine2])


def document() -> str:
    """The whole model; the pelvis is a capsule across the hips."""
    radius = capsule_radius(heavy["pelvis"], 2 * long["half_hips"], DENSITY["trunk"])
    half = long["half_hips"] - radius
    hips = geom(
        "pelvis", heavy["pelvis"],
        f'type="capsule" fromto="{numbers((0, -half, 0, 0, half, 0))}" size="{radius:.4f}"',
    )  # fmt: skip
    limbs = [leg("left", 1), leg("right", -1), trunk()]
    lines = [f"        {line}" for part in limbs for line in part]
    in_order = sorted(servos, key=lambda joint: "\n".join(lines).index(f'joint name="{joint}"'))
    height = long["thigh"] + long["shank"] + long["ankle_height"] + PELVIS_ABOVE_HIPS
    return TEMPLATE.format(
        height=height, armature=ARMATURE, hips=hips, limbs="\n".join(lines),
        servos="\n".join(f"    {servos[joint]}" for joint in in_order),
    )  # fmt: skip


TEMPLATE = """<mujoco model="smpl_humanoid">
  <!-- Written by make_humanoid.py, which says from which tables. -->
  <compiler angle="radian"/>
  <option timestep="0.0022222222222222222"/>
  <statistic extent="2" center="0 0 1"/>
  <visual><headlight ambient="0.4 0.4 0.4" diffuse="0.5 0.5 0.5" specular="0.1 0.1 0.1"/></visual>
  <asset>
    <texture name="sky" type="skybox" builtin="gradient" rgb1="0.75 0.85 0.95" rgb2="0.95 0.97 1"
             width="64" height="384"/>
  </asset>
  <default>
    <joint type="hinge" limited="true" armature="{armature}"/>
    <geom rgba="0.80 0.62 0.52 1"/>
    <general ctrllimited="true" ctrlrange="-1 1" forcelimited="true" biastype="affine"/>
    <default class="x"><joint axis="1 0 0"/></default>
    <default class="y"><joint axis="0 1 0"/></default>
    <default class="z"><joint axis="0 0 1"/></default>
    <default class="flesh"><geom contype="0" conaffinity="0"/></default>
    <default class="floor"><geom contype="0" conaffinity="1" rgba="0.55 0.58 0.62 1"/></default>
    <default class="touching"><geom contype="1" conaffinity="0" friction="1"/></default>
  </default>
  <worldbody>
    <light pos="0 0 4" dir="0 0 -1" type="directional"/>
    <geom name="floor" class="floor" type="plane" size="20 20 1"/>
    <body name="pelvis" pos="0 0 {height:.4f}">
      <freejoint name="root"/>
      {hips}
{limbs}
    </body>
  </worldbody>
  <actuator>
{servos}
  </actuator>
</mujoco>
"""

if __name__ == "__main__":
    Path(__file__).with_name("smpl_humanoid.xml").write_text(document())
