"""`python -m mjx_qflex.motions`: shows a motion on a body, or retargets a recording to it.

python -m mjx_qflex.motions --show=dance --output=dance.mp4
python -m mjx_qflex.motions --retarget=16_35.amc --output=my_run.csv
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mjx_qflex import commands, files
from mjx_qflex.errors import UserError
from mjx_qflex.interrupt import Interrupt

FPS = 50.0
MIN_SECONDS = 4.0  # of a video; short periods are repeated


def parser() -> commands.FlagParser:
    flags = commands.FlagParser(prog="python -m mjx_qflex.motions", description=__doc__)
    add = flags.add_argument
    add("--show", help="render this motion: a shipped one (walk, run, dance) or a file")
    add("--retarget", help="make a motion file of this .amc, .bvh or .csv file")
    add("--body", default="ms_human", help="on which body (default: ms_human)")
    add("--output", help="the .mp4 or .csv file to write (default: named after the motion, here)")
    add(
        "--rate",
        type=commands.number_flag,
        help="frames/s of the recording (default: its own; 120 for .amc)",
    )
    add(
        "--start",
        type=commands.number_flag,
        default=0.0,
        help="first second of the recording (default: 0)",
    )
    add("--up", choices=("y", "z"), help="its axis that points up (default: as its body stands)")
    add("--stop", type=commands.number_flag, help="last second of the recording (default: its end)")
    return flags


class _Pose(NamedTuple):
    qpos: Any  # [source nq]


class _Shown:
    """What `make_video` asks of a task."""

    def __init__(self, body: Any):
        self._model = body.skeleton.model
        self.heading = body.parts.forward
        self.control_dt = 1.0 / FPS

    def source_model(self) -> Any:
        return self._model

    def render_qpos(self, state: _Pose) -> tuple[Any, Any]:
        import numpy as np

        return state.qpos, np.zeros(self._model.nu)


def show(name: str, body: str, output: Path) -> str:
    """Renders at least `MIN_SECONDS` of a motion to `output` and says how.

    Raises:
      UserError: no such motion or body.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np

    from mjx_qflex.motions import library
    from mjx_qflex.video.rendering import make_video

    shipped = f"human_{name}"
    human = library.human(body)
    motion = library.of_human(shipped if shipped in library.names() else name, human)
    period = float(motion.period)
    seconds = period * np.ceil(MIN_SECONDS / period)
    times = np.arange(round(seconds * FPS), dtype=np.float32) / FPS
    reduced = np.asarray(jax.vmap(motion.qpos)(jnp.asarray(times)), np.float64)
    poses = np.stack([human.skeleton.move(q).qpos.copy() for q in reduced])
    with files.beside(output) as temporary:
        video = make_video(temporary, _Shown(human), _Pose(poses))
    return f"{output}: {seconds:.2f} s, {video.note}"


def convert(arguments: Any, output: Path) -> None:
    """Retargets a user's file, writes it as a motion file, and prints what was lost.

    Raises:
      UserError: a file that cannot be read or is the output itself, or no such body.
    """
    from mjx_qflex.motions import library, reference

    source = library.find(arguments.retarget)
    if output.exists() and output.samefile(source):
        raise UserError(f"--output={output} would replace what it is made of; name another file")
    body = library.human(arguments.body)
    columns, loss = library.retargeted(
        source, body, arguments.rate, arguments.start, arguments.stop, arguments.up
    )
    how = "closed to one period" if source.suffix.lower() == ".csv" else "retargeted"
    head = f"{source.name}, {how} for the body {arguments.body} (python -m mjx_qflex.motions)."
    reference.write_columns(output, columns, head)
    for line in loss.lines():
        print(line)
    commands.say(f"{output}: {len(columns['time'])} rows, {columns['time'][-1]:.2f} s")


def command(arguments: Sequence[str], interrupt: Interrupt) -> None:
    del interrupt  # nothing here is worth finishing first
    flags = parser().parse(arguments)
    if flags.help:
        parser().print_help()
        return
    if (flags.show is None) == (flags.retarget is None):
        raise UserError("give either --show=MOTION or --retarget=FILE; see --help")
    name, suffix = (flags.show, ".mp4") if flags.show else (flags.retarget, ".csv")
    output = Path(flags.output or f"{Path(name).stem}{suffix}")
    if output.suffix != suffix or not output.parent.is_dir():
        raise UserError(f"--output={output} must be a {suffix} file in a folder that exists")
    files.check_output(output)
    with commands.quiet_imports():
        from mjx_qflex.motions import library  # noqa: F401
    if flags.show:
        commands.say(show(name, flags.body, output))
    else:
        convert(flags, output)


if __name__ == "__main__":
    sys.exit(commands.run(command, None))
