"""Videos of an evaluated body: MuJoCo renders the source model, matplotlib where no GL is found.

A task that stands on a body model gives `source_model() -> MjModel` and
`render_qpos(pipeline_state) -> (qpos [nq], activation [nu])`; a task that draws itself gives
`draw(axes, pipeline_state)`. `heading` (x, y), the direction that the body faces, turns the camera;
it is +x where a task does not say. Frames play at the speed of the simulated time.
"""

import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from mjx_qflex.video.mp4 import write_mp4

MAX_FPS = 50.0
RENDER_TIMEOUT = 300.0  # s; a software renderer needs about 0.06 s a frame of a full body
GL_LIBRARIES = ("egl", "osmesa")
MUSCLE_COLOURS = LinearSegmentedColormap.from_list("muscle", ("#1f4fd8", "#a33a9a", "#e3201b"))
DRAWN_NOTE = (
    "drawn as a side view, since MuJoCo found neither EGL nor OSMesa to render with; for bones "
    "and muscles install one of them (Debian, Ubuntu: `apt-get install libosmesa6`) and run "
    "`python -m mjx_qflex.evaluate --run=DIR` again"
)


class Video(NamedTuple):
    """What came out: `path` is None where the task cannot be drawn; `note` says how it was made."""

    path: Path | None
    note: str


def make_video(path: Path, env: Any, states: Any, libraries: Iterable[str] | None = None) -> Video:
    """Writes an mp4 of `states` to `path` and says how it was made.

    Args:
      path: the mp4 to write.
      env: the task, see the module's docstring; `control_dt` is the time between states in s.
      states: the task's pipeline states, stacked along a leading axis `[T]`.
      libraries: the GL libraries to try, in this order; by default `$MUJOCO_GL` alone where the
        user has set it, else EGL, then OSMesa.
    """
    stride = max(1, math.ceil(1.0 / (MAX_FPS * env.control_dt) - 1e-6))
    states = jax.tree.map(lambda leaf: np.asarray(leaf)[::stride], states)
    fps = 1.0 / (stride * env.control_dt)
    if hasattr(env, "source_model"):
        return _video_of_model(path, env, states, fps, libraries)
    draw = getattr(env, "draw", None) or (draw_chain if is_chain(states) else None)
    if draw is not None:
        write_mp4(path, _drawn_frames(draw, states), fps)
        return Video(path, "drawn from above: the task has no body model")
    return Video(None, "no video: the task has neither a body model nor a drawing")


def _video_of_model(
    path: Path, env: Any, states: Any, fps: float, libraries: Iterable[str] | None
) -> Video:
    model = env.source_model()
    poses = [env.render_qpos(state) for state in _unstacked(states)]
    qpos, activation = (np.stack(part) for part in zip(*poses, strict=True))
    rgba = tendon_colours(model, activation)
    if libraries is None:
        chosen = os.environ.get("MUJOCO_GL")
        libraries = (chosen,) if chosen else GL_LIBRARIES
    motion = {"qpos": qpos, "rgba": rgba, "fps": fps, "azimuth": azimuth_of(env)}
    for library in libraries:
        if _rendered_by(library, path, model, motion):
            return Video(path, f"rendered by MuJoCo ({library.upper()})")
    write_mp4(path, side_view_frames(model, qpos, rgba, _heading(env)), fps)
    return Video(path, DRAWN_NOTE)


def azimuth_of(env: Any) -> float:
    """Returns the camera's azimuth (degrees) that shows a task's body from its side.

    Looking to the left of the heading, the body crosses the picture to the right; 20 degrees more
    show it from a little behind.
    """
    heading = _heading(env)
    return math.degrees(math.atan2(heading[1], heading[0])) + 90.0 + 20.0


def _heading(env: Any) -> np.ndarray:
    return np.asarray(getattr(env, "heading", (1.0, 0.0)), float)


def tendon_colours(model: Any, activation: np.ndarray) -> np.ndarray:
    """Returns the colour of each tendon `[T, ntendon, 4]` for muscle activations `[T, nu]`.

    Tendons that no muscle pulls keep the model's own colour.
    """
    rgba = np.tile(model.tendon_rgba.astype(np.float32), (len(activation), 1, 1))
    on_tendon = model.actuator_trntype == _tendon_transmission()
    tendon = model.actuator_trnid[on_tendon, 0]
    rgba[:, tendon] = MUSCLE_COLOURS(np.clip(activation[:, on_tendon], 0.0, 1.0))
    return rgba


def _tendon_transmission() -> int:
    import mujoco

    return int(mujoco.mjtTrn.mjTRN_TENDON)


def _rendered_by(library: str, path: Path, model: Any, motion: dict[str, Any]) -> bool:
    """Renders in a process with `MUJOCO_GL=library`; returns whether an mp4 came out."""
    import mujoco

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        mujoco.mj_saveModel(model, str(folder / "model.mjb"), None)
        np.savez(folder / "motion.npz", **motion)
        command = [sys.executable, "-m", "mjx_qflex.video.render_worker", name]
        root = str(Path(__file__).resolve().parents[2])
        search = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
        environment = {**os.environ, "MUJOCO_GL": library, "PYTHONPATH": search}
        environment.pop("PYOPENGL_PLATFORM", None)  # left by a MuJoCo imported before
        try:
            # From inside the folder, so that MuJoCo's log file does not land in the user's.
            done = subprocess.run(
                command, env=environment, cwd=name, capture_output=True, timeout=RENDER_TIMEOUT
            )
        except subprocess.TimeoutExpired:
            return False
        video = folder / "video.mp4"
        if done.returncode != 0 or not video.exists():
            return False
        path.write_bytes(video.read_bytes())
    return True


def side_view_frames(
    model: Any, qpos: np.ndarray, rgba: np.ndarray, heading: np.ndarray
) -> Iterator[np.ndarray]:
    """Yields side views `[H, W, 3]` uint8 of bones, muscle paths and floor; `heading` is right."""
    import mujoco

    data = mujoco.MjData(model)
    child = np.flatnonzero(model.body_parentid > 0)
    parent = model.body_parentid[child]
    axes, grab = _canvas()
    muscles = axes.add_collection(LineCollection([], linewidths=1.2))
    bones = axes.add_collection(LineCollection([], colors="0.2", linewidths=2.0))
    axes.axhline(0.0, color="0.4", linewidth=2.0)
    axes.set(
        ylim=(-0.15, 0.9 * model.stat.extent),
        xlabel="forward (m)",
        ylabel="height (m)",
        aspect="equal",
    )
    to_picture = np.array([[heading[0], 0.0], [heading[1], 0.0], [0.0, 1.0]])  # [3, 2]
    for pose, colours in zip(qpos, rgba, strict=True):
        data.qpos[:] = pose
        mujoco.mj_kinematics(model, data)
        mujoco.mj_comPos(model, data)
        mujoco.mj_tendon(model, data)
        segments = np.stack([data.xpos[child], data.xpos[parent]], 1)  # [bones, 2, 3]
        bones.set_segments(list(segments @ to_picture))
        muscles.set_segments([points @ to_picture for points in _tendon_paths(data)])
        muscles.set_color(list(np.clip(colours, 0.0, 1.0)))
        x = data.subtree_com[0, :2] @ heading
        axes.set_xlim(x - 0.9 * model.stat.extent, x + 0.9 * model.stat.extent)
        yield grab()


def _tendon_paths(data: Any) -> list[np.ndarray]:
    """Returns the points `[P, 3]` of each tendon's path (`P` differs)."""
    points = data.wrap_xpos.reshape(-1, 3)
    starts = zip(data.ten_wrapadr, data.ten_wrapnum, strict=True)
    return [points[start : start + number] for start, number in starts]


def is_chain(states: Any) -> bool:
    """Whether the states are of a planar chain with a target, which `draw_chain` can draw."""
    return hasattr(states, "angles") and hasattr(states, "target")


def draw_chain(axes: Any, state: Any) -> None:
    """Draws a chain of unit length with equal links: `angles` [A] rad, `target` [2]."""
    heading = np.cumsum(state.angles)
    links = np.stack([np.cos(heading), np.sin(heading)], 1) / len(heading)
    joints = np.concatenate([np.zeros((1, 2)), np.cumsum(links, 0)])
    axes.plot(*joints.T, "o-", color="0.2", markersize=3)
    axes.plot(*state.target, "o", color="tab:red", markersize=8)
    axes.set(xlim=(-1.4, 1.4), ylim=(-1.05, 1.05), aspect="equal")


def _drawn_frames(draw: Callable[[Any, Any], None], states: Any) -> Iterator[np.ndarray]:
    """Yields a picture of each state as the task draws it."""
    axes, grab = _canvas()
    for state in _unstacked(states):
        axes.clear()
        draw(axes, state)
        yield grab()


def _unstacked(states: Any) -> Iterator[Any]:
    """Yields each of the states that are stacked along a leading axis `[T]`."""
    for t in range(len(jax.tree.leaves(states)[0])):
        yield jax.tree.map(lambda leaf, t=t: leaf[t], states)


def _canvas() -> tuple[Any, Callable[[], np.ndarray]]:
    """Returns the axes of a picture of 640 x 480 pixels and a function that reads its pixels."""
    figure = Figure(figsize=(6.4, 4.8), dpi=100)
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots()

    def grab() -> np.ndarray:
        canvas.draw()
        return np.asarray(canvas.buffer_rgba())[..., :3].copy()

    return axes, grab
