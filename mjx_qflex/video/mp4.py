"""Frames to an mp4, through the ffmpeg that imageio-ffmpeg ships."""

import itertools
import subprocess
from collections.abc import Iterable
from pathlib import Path

import imageio_ffmpeg
import numpy as np

from mjx_qflex.errors import UserError


def write_mp4(path: Path, frames: Iterable[np.ndarray], fps: float) -> None:
    """Encodes frames `[H, W, 3]` uint8, all of one even size, to H.264 that any player shows.

    imageio's own writer starts ffmpeg in a way that forks a process whose JAX has threads, which
    may deadlock; a plain `Popen` does not.

    Raises:
      UserError: there is no ffmpeg, or it failed; says how.
    """
    frames = iter(frames)
    first = next(frames)
    height, width, _ = first.shape
    try:
        ffmpeg = imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError as error:
        raise UserError(f"there is no ffmpeg to make {path} with ({error})") from error
    command = [
        ffmpeg, "-y", "-loglevel", "error",
        "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", f"{fps:g}",
        "-i", "-", "-an", "-c:v", "libx264", "-crf", "23", "-pix_fmt", "yuv420p",
        f"file:{path}",  # a name with a colon is no protocol
    ]  # fmt: skip
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    ) as process:
        assert process.stdin is not None and process.stderr is not None
        try:
            for frame in itertools.chain((first,), frames):
                process.stdin.write(np.ascontiguousarray(frame).tobytes())
            process.stdin.close()
        except BrokenPipeError:
            pass  # ffmpeg has given up; what it said follows
        errors = process.stderr.read().decode(errors="replace").strip()
    if process.returncode != 0:
        raise UserError(f"ffmpeg could not write {path}: {' '.join(errors.splitlines())}")
