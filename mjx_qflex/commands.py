"""What the commands share: flags whose errors take one line, and an orderly way out.

Only the standard library is imported here, so that a command speaks before JAX is loaded. That is
also why it is argparse and not absl's flags: absl prints several lines for an unknown flag, exits
with 1, and has no default that depends on the device.
"""

import argparse
import contextlib
import errno
import io
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn

from mjx_qflex import bounds
from mjx_qflex.errors import UserError
from mjx_qflex.interrupt import Interrupt, Interrupted
from mjx_qflex.lookup import unknown_name

USER_ERROR = 2
CLOSED_PIPE = 128 + signal.SIGPIPE  # as a shell says it
FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
NOBODY_READS = (errno.EPIPE, errno.EIO)
_STARTED = time.monotonic()


class FlagParser(argparse.ArgumentParser):
    """An `ArgumentParser` that raises `UserError`, and names the flag nearest to an unknown one."""

    def __init__(self, **options):
        super().__init__(
            add_help=False,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            **options,
        )
        self.add_argument("--help", action="store_true", help="show this and exit")

    def error(self, message: str) -> NoReturn:
        raise UserError(message)

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Parses all of `arguments`.

        Raises:
          UserError: an unknown flag, or a value of the wrong type, out of range or empty.
        """
        flags, unknown = self.parse_known_args(arguments)
        if unknown:
            known = [name for action in self._actions for name in action.option_strings]
            raise unknown_name("flag", unknown[0].partition("=")[0], known)
        for argument in arguments:
            if not argument or argument.startswith("--") and argument.endswith("="):
                raise UserError(f"{argument or repr('')} has no value; give one, or leave it out")
        bounds.check_flags(vars(flags))
        return flags


def whole_number_flag(text: str) -> int:
    """Reads the value of a flag, as argparse's `type`."""
    try:
        return bounds.whole_number(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no whole number; give one such as 3 or 1e6"
        ) from None


def number_flag(text: str) -> float:
    """Reads the value of a flag that need not be whole, as argparse's `type`."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number; give one such as 0.5") from None


@contextlib.contextmanager
def quiet_imports() -> Iterator[None]:
    """A context in which to load JAX and MuJoCo, whatever the environment says.

    It has no standard output, since MJX prints there that it found no Warp; and no `MUJOCO_GL`,
    since MuJoCo cannot be loaded where that names a library which is not there. Only the renderer
    needs it, in a process of its own.

    Raises:
      UserError: JAX is set to double precision, which no run is made for.
    """
    if os.environ.get("JAX_ENABLE_X64", "").lower() in ("1", "true", "t", "yes", "y", "on"):
        raise UserError("JAX_ENABLE_X64 is set, and runs are in single precision; unset it")
    library = os.environ.get("MUJOCO_GL")
    os.environ["MUJOCO_GL"] = "disable"
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        del os.environ["MUJOCO_GL"]
        if library is not None:
            os.environ["MUJOCO_GL"] = library


def say(text: str) -> None:
    """Prints a line at once, with the seconds since the command began.

    Where nobody reads any more (a closed pipe or terminal), it asks to stop, as a hang-up does.
    """
    try:
        print(f"[{time.monotonic() - _STARTED:7.1f} s] {text}", flush=True)
    except OSError as error:
        if error.errno not in NOBODY_READS:
            raise
        _print_no_more()
        signal.raise_signal(signal.SIGHUP)


def _print_no_more() -> None:
    """Lets standard output go nowhere: what is left in its buffer, too."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def silent(text: str) -> None:
    """Takes the place of `say` where another process does the talking."""


def run(
    command: Callable[[Sequence[str], Interrupt], int | None], arguments: Sequence[str] | None
) -> int:
    """Runs a command and returns the exit status: its own, by default 0.

    It is 2 after a mistake that the user can mend.

    A request to stop (Ctrl-C, SIGTERM, a hang-up) also ends with 0, at once: what the command left
    running on another thread may be inside XLA, which a normal exit would wait for or crash in.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what its encoding lacks must not end a run
            stream.reconfigure(errors="backslashreplace")
    try:
        with Interrupt(say) as interrupt:
            status = command(sys.argv[1:] if arguments is None else arguments, interrupt)
    except Interrupted:
        say("stopped; the same command goes on")
        sys.stdout.flush()
        os._exit(0)
    except BrokenPipeError:
        _print_no_more()
        return CLOSED_PIPE
    except Exception as error:
        line = mistake(error)
        if line is None:
            raise
        print(f"error: {line}", file=sys.stderr)
        return USER_ERROR
    return status or 0


def mistake(error: Exception) -> str | None:
    """Returns in one line what the user can mend about an error, None where that is nothing."""
    if isinstance(error, UserError):
        return " ".join(str(error).splitlines())
    if isinstance(error, OSError) and error.filename is not None:
        room = "; make room, then go on" if error.errno in FULL_DISK else ""
        return f"{error.strerror} for {error.filename}{room}"
    if isinstance(error, OSError) and error.errno in FULL_DISK:
        return f"{error.strerror}; make room, then go on"
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
        return (
            "out of memory; lower loop.num_envs, loop.replay_capacity, loop.batch_size or "
            "algo.width, whichever is large"
        )
    return None
