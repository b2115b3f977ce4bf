"""Renders one motion of a MuJoCo model to an mp4, in a process of its own.

`rendering.py` starts it as `MUJOCO_GL=egl python -m mjx_qflex.video.render_worker FOLDER`:
MuJoCo chooses its GL library when it is imported, and a GL library that does not work can take the
process down with it. FOLDER holds `model.mjb` and `motion.npz` (qpos `[T, nq]`, tendon colours
`[T, ntendon, 4]`, fps, azimuth in degrees); the worker adds `video.mp4` to it.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import mujoco
import numpy as np

from mjx_qflex.video.mp4 import write_mp4

HEIGHT, WIDTH = 480, 640
FILL = 1.8  # camera distance over the body's size: leaves room for what its joints move
FLOOR_RGBA = np.array([0.55, 0.58, 0.62, 1.0], np.float32)


def prepare(model: mujoco.MjModel) -> None:
    """Sets the visual options in place: software GL spends its time on facets and samples."""
    visual = model.vis
    visual.global_.offwidth = max(visual.global_.offwidth, WIDTH)
    visual.global_.offheight = max(visual.global_.offheight, HEIGHT)
    visual.quality.offsamples = 0
    visual.quality.shadowsize = 1024
    visual.quality.numslices = 8
    visual.quality.numstacks = 4


def clear_the_stage(model: mujoco.MjModel) -> None:
    """Hides scenery in place, and lets floors go on for ever: bodies walk out of any room.

    Scenery is what stands in the world as a mesh, such as MyoSuite's room; obstacles are shapes.
    """
    in_world = model.geom_bodyid == 0
    model.geom_rgba[in_world & (model.geom_type == mujoco.mjtGeom.mjGEOM_MESH), 3] = 0.0
    model.geom_matid[in_world & (model.geom_type == mujoco.mjtGeom.mjGEOM_MESH)] = -1
    model.geom_size[model.geom_type == mujoco.mjtGeom.mjGEOM_PLANE, :2] = 0.0


def add_floor(scene: mujoco.MjvScene, x: float, y: float) -> None:
    """Appends a floor at z = 0 below `(x, y)`, for models that bring none."""
    geom = scene.geoms[scene.ngeom]
    size, at = np.array([20.0, 20.0, 0.1]), np.array([x, y, 0.0])
    mujoco.mjv_initGeom(geom, mujoco.mjtGeom.mjGEOM_PLANE, size, at, np.eye(3).ravel(), FLOOR_RGBA)
    scene.ngeom += 1


def height_and_distance(model: mujoco.MjModel, data: mujoco.MjData) -> tuple[float, float]:
    """Height that the camera looks at and its distance, so that all that moves fills the picture.

    Scenes come with rooms and pedestals: the model's own extent says little about the body.
    """
    mujoco.mj_kinematics(model, data)
    moves = model.body_weldid != 0
    moving = np.concatenate([data.xpos[moves], data.geom_xpos[moves[model.geom_bodyid]]])
    low, high = moving.min(axis=0), moving.max(axis=0)
    return 0.5 * (low[2] + high[2]), max(0.3, FILL * np.max(high - low))


def render_frames(
    model: mujoco.MjModel, qpos: np.ndarray, rgba: np.ndarray, azimuth: float
) -> Iterator[np.ndarray]:
    """Yields one image `[H, W, 3]` uint8 for each pose, the camera beside what moves."""
    prepare(model)
    clear_the_stage(model)
    has_floor = bool(np.any(model.geom_type == mujoco.mjtGeom.mjGEOM_PLANE))
    data = mujoco.MjData(model)
    camera = mujoco.MjvCamera()
    camera.azimuth, camera.elevation = azimuth, -8.0
    data.qpos[:] = qpos[0]
    camera.lookat[2], camera.distance = height_and_distance(model, data)
    moving_mass = model.body_mass * (model.body_weldid != 0)
    moving_mass /= moving_mass.sum()
    fixed_lights = model.light_mode == mujoco.mjtCamLight.mjCAMLIGHT_FIXED
    centre = np.full(3, np.inf)
    with mujoco.Renderer(model, HEIGHT, WIDTH) as renderer:
        renderer.scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
        for pose, colours in zip(qpos, rgba, strict=True):
            data.qpos[:] = pose
            model.tendon_rgba[:] = colours
            mujoco.mj_kinematics(model, data)
            mujoco.mj_comPos(model, data)
            mujoco.mj_camlight(model, data)
            mujoco.mj_tendon(model, data)
            here = moving_mass @ data.xipos
            # The camera glides: a jump of the body (the next episode) cuts.
            cut = np.linalg.norm(here - centre) > 0.5
            centre = here.copy() if cut else 0.8 * centre + 0.2 * here
            camera.lookat[:2] = centre[:2]
            data.light_xpos[fixed_lights, :2] += centre[:2]  # nobody walks into the dark
            renderer.update_scene(data, camera)
            if not has_floor:
                add_floor(renderer.scene, *centre[:2])
            yield renderer.render()


def main(folder: Path) -> None:
    model = mujoco.MjModel.from_binary_path(str(folder / "model.mjb"))
    with np.load(folder / "motion.npz") as motion:
        qpos, rgba = motion["qpos"], motion["rgba"]
        fps, azimuth = float(motion["fps"]), float(motion["azimuth"])
    write_mp4(folder / "video.mp4", render_frames(model, qpos, rgba, azimuth), fps)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
