"""Videos: MuJoCo where a GL library works, a drawing where none does."""

from typing import NamedTuple

import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from videos import read_clip

from mjx_qflex.errors import UserError
from mjx_qflex.video import mp4, render_worker, rendering
from mjx_qflex.video.mp4 import write_mp4

LEG = """
<mujoco>
  <worldbody>
    <light pos="0 0 3"/>
    {floor}
    <body name="thigh" pos="0 0 1">
      <joint name="slide" type="slide" axis="1 0 0"/>
      <joint name="hip" axis="0 1 0"/>
      <geom type="capsule" fromto="0 0 0 0 0 -.4" size=".04" rgba=".9 .9 .9 1"/>
      <site name="a" pos=".08 0 0"/>
      <site name="c" pos="-.08 0 0"/>
      <body name="shank" pos="0 0 -.45">
        <joint name="knee" axis="0 1 0"/>
        <geom type="capsule" fromto="0 0 0 0 0 -.4" size=".03" rgba=".9 .9 .9 1"/>
        <site name="b" pos=".08 0 -.2"/>
      </body>
    </body>
  </worldbody>
  <tendon>
    <spatial name="pulled" width=".03"><site site="a"/><site site="b"/></spatial>
    <spatial name="ligament" rgba="0 1 0 1"><site site="c"/><site site="b"/></spatial>
  </tendon>
  <actuator>
    <muscle name="muscle" tendon="pulled" lengthrange=".1 1"/>
    <motor name="motor" joint="hip"/>
  </actuator>
</mujoco>
"""


class Pose(NamedTuple):
    qpos: jnp.ndarray
    activation: jnp.ndarray


class Leg:
    """A task of a body model: control steps of 10 ms."""

    control_dt = 0.01

    def __init__(self, floor=""):
        self.model = mujoco.MjModel.from_xml_string(LEG.format(floor=floor))

    def source_model(self):
        return self.model

    def render_qpos(self, pose):
        return pose.qpos, pose.activation


def motion(steps):
    """A leg that swings and walks, its muscle from rest to full activation."""
    time = jnp.linspace(0.0, 1.0, steps)
    qpos = jnp.stack([time, jnp.sin(6 * time), 0.3 * time], 1)
    return Pose(qpos, jnp.stack([time, jnp.zeros(steps)], 1))


def redness(frame):
    """Red minus blue over the strongly coloured pixels."""
    red, green, blue = np.moveaxis(frame.astype(int), -1, 0)
    coloured = (np.abs(red - blue) > 60) & (green < np.maximum(red, blue) - 40)
    return (red - blue)[coloured].sum()


def works(library):
    """Whether MuJoCo renders with a GL library here, found apart from the code under test."""
    import os
    import subprocess
    import sys

    code = "import mujoco; mujoco.GLContext(8, 8).make_current()"
    environment = {**os.environ, "MUJOCO_GL": library}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    return done.returncode == 0


def test_muscles_take_the_colour_of_their_activation_and_ligaments_keep_theirs():
    model = Leg().model
    rgba = rendering.tendon_colours(model, np.array([[0.0, 0.0], [1.0, 0.0], [9.0, 0.0]]))
    assert rgba.shape == (3, 2, 4)
    assert rgba[0, 0, 2] > 0.7 > rgba[0, 0, 0]  # blue at rest
    assert rgba[1, 0, 0] > 0.7 > rgba[1, 0, 2]  # red when active
    np.testing.assert_array_equal(rgba[2, 0], rgba[1, 0])
    np.testing.assert_array_equal(rgba[:, 1], np.tile([0, 1, 0, 1], (3, 1)))


@pytest.mark.parametrize("library", ["osmesa", "egl"])
@pytest.mark.parametrize("floor", ["", '<geom type="plane" size="9 9 .1" rgba=".4 .4 .4 1"/>'])
def test_mujoco_renders_the_source_model(tmp_path, library, floor):
    if not works(library):
        pytest.skip(f"MuJoCo does not render with {library} on this machine")
    path = tmp_path / "video.mp4"
    video = rendering.make_video(path, Leg(floor), motion(41), [library])
    assert video.path == path
    assert library.upper() in video.note
    clip = read_clip(path)
    assert clip.fps == 50.0
    assert len(clip.frames) == 21  # 0.4 s of 100 control steps a second, every second one
    assert redness(clip.frames[0]) < -1000
    assert redness(clip.frames[-1]) > 1000
    below, above = clip.frames[10][-20:, :40].mean(), clip.frames[10][:20, :40].mean()
    assert abs(below - above) > 20  # a floor below, the sky above


@pytest.mark.parametrize("library", ["osmesa", "egl"])
def test_a_long_way_stays_lit_on_an_endless_floor(tmp_path, library):
    """After 20 m, beyond the floor of the model and its lamp, the picture is as at the start."""
    if not works(library):
        pytest.skip(f"MuJoCo does not render with {library} on this machine")
    pose = motion(5)
    far = pose._replace(qpos=pose.qpos.at[3:, 0].set(20.0))
    leg = Leg('<geom type="plane" size="9 9 .1" rgba=".4 .4 .4 1"/>')
    rendering.make_video(tmp_path / "video.mp4", leg, far, [library])
    first, *_, last = read_clip(tmp_path / "video.mp4").frames.astype(float)
    assert abs(first.mean() - last.mean()) < 0.1 * first.mean()
    assert last[-20:].mean() > 20


def test_scenery_leaves_the_stage_and_obstacles_stay():
    room = """<mujoco><asset><mesh name="room" vertex="0 0 0 1 0 0 0 1 0 0 0 1"/></asset><worldbody>
      <geom type="mesh" mesh="room" contype="0" conaffinity="0"/><geom type="sphere" size=".2"/>
      <geom type="plane" size="7 7 .1"/><body><geom type="mesh" mesh="room"/></body>
    </worldbody></mujoco>"""
    model = mujoco.MjModel.from_xml_string(room)
    render_worker.clear_the_stage(model)
    assert (model.geom_rgba[:, 3] > 0).tolist() == [False, True, True, True]
    assert model.geom_size[2].tolist() == [0.0, 0.0, 0.1]


def test_without_gl_a_side_view_is_drawn_and_says_how_to_get_better(tmp_path):
    path = tmp_path / "video.mp4"
    video = rendering.make_video(path, Leg(), motion(41), ["nonsense"])
    assert "side view" in video.note
    assert "apt-get install libosmesa6" in video.note
    clip = read_clip(path)
    assert (clip.fps, len(clip.frames)) == (50.0, 21)
    assert redness(clip.frames[0]) < -100
    assert redness(clip.frames[-1]) > 100


def test_a_gl_library_that_crashes_gives_way_to_the_next(tmp_path, monkeypatch):
    tried = []

    def crash(library, *_):
        tried.append(library)
        return False

    monkeypatch.setattr(rendering, "_rendered_by", crash)
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    video = rendering.make_video(tmp_path / "video.mp4", Leg(), motion(5))
    assert tried == ["egl", "osmesa"]
    assert "side view" in video.note
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    rendering.make_video(tmp_path / "video.mp4", Leg(), motion(5))
    assert tried[2:] == ["osmesa"]


def test_the_heading_turns_the_side_view():
    model = Leg().model
    qpos = np.zeros((1, model.nq))
    rgba = np.ones((1, model.ntendon, 4)) * [1.0, 0.0, 0.0, 1.0]
    seen_from_side, *_ = rendering.side_view_frames(model, qpos, rgba, np.array([1.0, 0.0]))
    seen_from_front, *_ = rendering.side_view_frames(model, qpos, rgba, np.array([0.0, -1.0]))
    # The muscle lies 8 cm in front of the bones: seen from the front they coincide.
    assert not np.array_equal(seen_from_side, seen_from_front)


def test_a_task_without_any_picture_says_so(tmp_path):
    class Bare:
        control_dt = 0.02

    video = rendering.make_video(tmp_path / "video.mp4", Bare(), {"x": jnp.zeros((3, 2))})
    assert video.path is None
    assert "no video" in video.note
    assert list(tmp_path.iterdir()) == []


def test_a_failing_encoder_says_what_ffmpeg_said(tmp_path):
    frames = [np.zeros((48, 64, 3), np.uint8)] * 3
    with pytest.raises(UserError, match="No such file"):
        write_mp4(tmp_path / "nowhere" / "video.mp4", frames, 10.0)


def test_an_ffmpeg_that_fails_is_one_line(tmp_path, monkeypatch):
    """Of odd sizes H.264 has none; and there may be no ffmpeg at all."""
    frames = [np.zeros((7, 5, 3), np.uint8)]
    with pytest.raises(UserError, match="ffmpeg could not write") as caught:
        mp4.write_mp4(tmp_path / "odd.mp4", frames, 25.0)
    assert "\n" not in str(caught.value)

    def absent():
        raise RuntimeError("No ffmpeg exe could be found.")

    monkeypatch.setattr(mp4.imageio_ffmpeg, "get_ffmpeg_exe", absent)
    with pytest.raises(UserError, match="there is no ffmpeg"):
        mp4.write_mp4(tmp_path / "none.mp4", frames, 25.0)
