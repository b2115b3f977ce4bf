"""Makes README's moving picture of a shipped policy out of the video that evaluating it leaves.

python -m mjx_qflex.evaluate --policy=myo_leg_walk --output=runs/walk
python assets/pictures/make_walk.py runs/walk/video.mp4 assets/pictures/myo_leg_walk.gif
"""

import argparse
import subprocess
from pathlib import Path

import imageio_ffmpeg

START, SECONDS, FPS, WIDTH = 3.0, 3.0, 15, 320  # s, s, 1/s, pixels
COLOURS = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("video", type=Path)
    parser.add_argument("picture", type=Path)
    flags = parser.parse_args()
    # One palette for all frames: 3 s stay well below 2 MB.
    filters = (
        f"fps={FPS},scale={WIDTH}:-1:flags=lanczos,split[a][b];"
        f"[a]palettegen=max_colors={COLOURS}[p];[b][p]paletteuse=dither=none"
    )
    part = ("-ss", str(START), "-t", str(SECONDS), "-i", str(flags.video))
    command = (imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-loglevel", "error", *part)
    subprocess.run((*command, "-filter_complex", filters, str(flags.picture)), check=True)


if __name__ == "__main__":
    main()
