"""Reading an mp4 back."""

import re
import subprocess
from pathlib import Path
from typing import NamedTuple

import imageio_ffmpeg
import numpy as np


class Clip(NamedTuple):
    fps: float
    frames: np.ndarray  # [T, H, W, 3] uint8


def read_clip(path: Path) -> Clip:
    """Decodes `path` through ffmpeg; fails where it cannot."""
    to_raw = ("-f", "rawvideo", "-pix_fmt", "rgb24", "-")
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-i", str(path), *to_raw]
    done = subprocess.run(command, capture_output=True, check=True, start_new_session=True)
    about = done.stderr.decode()
    size = re.search(r"Video: .* (\d+)x(\d+)", about)
    fps = re.search(r"([\d.]+) fps", about)
    assert size and fps, about
    width, height = map(int, size.groups())
    frames = np.frombuffer(done.stdout, np.uint8).reshape(-1, height, width, 3)
    return Clip(float(fps[1]), frames)
