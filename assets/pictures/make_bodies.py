"""Draws `bodies.png`: every body at the start of an episode, its muscles coloured at random.

    MUJOCO_GL=osmesa python assets/pictures/make_bodies.py

Models that no Python package ships are needed, too: `python -m mjx_qflex.port --fetch BODY`.
"""

from pathlib import Path

import jax
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mjx_qflex import tasks
from mjx_qflex.video import render_worker, rendering

HERE = Path(__file__).parent
COLUMNS = 5
# Title, task and its options.
PANELS = (
    ("ms_human: 700 muscles", "ms_human_walk", {}),
    ("ms_human_700: 700 muscles", "ms_human_walk", {"body": "ms_human_700"}),
    ("myo_full_body: 416 muscles", "ms_human_walk", {"body": "myo_full_body"}),
    ("myo_legs: 80 muscles", "myo_leg_walk", {}),
    ("myo_hand_pen: 39 muscles", "myo_hand_pen_twirl", {}),
    ("ostrich: 120 muscles", "ostrich_run", {}),
    ("smpl_humanoid: 69 servos", "smpl_jump", {}),
    ("unitree_h1: 19 servos", "h1_run", {}),
    ("unitree_h1_board: 19 servos", "h1_balance", {}),
    ("arm: 6 muscles", "arm_reach", {}),
)


ZOOM = {"myo_hand_pen_twirl": 0.4}  # share of the picture's width and height that is shown


def cropped(image: np.ndarray, share: float) -> np.ndarray:
    """The middle of an image `[H, W, 3]`."""
    rows, columns = (round(0.5 * (1 - share) * size) for size in image.shape[:2])
    return image[rows : len(image) - rows, columns : image.shape[1] - columns]


def picture(task: str, options: dict) -> np.ndarray:
    """Renders one reset state of a task, `[H, W, 3]` uint8."""
    env = tasks.make(task, **options)
    state = jax.jit(env.reset)(jax.random.PRNGKey(1)).pipeline_state
    qpos, act = env.render_qpos(jax.tree.map(np.asarray, state))
    model = env.source_model()
    random_act = np.random.default_rng(0).uniform(size=act.shape)
    rgba = rendering.tendon_colours(model, random_act[None])
    azimuth = rendering.azimuth_of(env)
    return next(render_worker.render_frames(model, qpos[None], rgba, azimuth))


def main() -> None:
    rows = -(-len(PANELS) // COLUMNS)
    figure = Figure(figsize=(2.6 * COLUMNS, 2.2 * rows), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    for axes, (title, task, options) in zip(
        figure.subplots(rows, COLUMNS).flat, PANELS, strict=False
    ):
        axes.imshow(cropped(picture(task, options), ZOOM.get(task, 1.0)))
        axes.set_title(title, fontsize=9)
        axes.set_axis_off()
    canvas.print_png(HERE / "bodies.png")


if __name__ == "__main__":
    main()
