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
import sys
import time
from collections.abc import Callable, Sequence
from typing import NoReturn

from mjx_qflex import bounds
from mjx_qflex.errors import UserError
from mjx_qflex.lookup import unknown_name
from mjx_qflex.training.interrupt import Interrupt, Interrupted

USER_ERROR = 2
FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
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


def whole_number(text: str) -> int:
    """Reads "128", "50_000" or "1e6".

    Raises:
      ValueError: it is no whole number.
    """
    try:
        return int(text)
    except ValueError:
        number = float(text)
        if not number.is_integer():  # also refuses infinity and NaN
            raise ValueError(f"{text!r} is no whole number") from None
        return int(number)


def whole_number_flag(text: str) -> int:
    """Reads the value of a flag, as argparse's `type`."""
    try:
        return whole_number(text)
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


def quiet_imports() -> contextlib.AbstractContextManager:
    """Returns a context without standard output: MJX prints there that it found no Warp."""
    return contextlib.redirect_stdout(io.StringIO())


def say(text: str) -> None:
    """Prints a line at once, with the seconds since the command began."""
    print(f"[{time.monotonic() - _STARTED:7.1f} s] {text}", flush=True)


def silent(text: str) -> None:
    """Takes the place of `say` where another process does the talking."""


def run(
    command: Callable[[Sequence[str], Interrupt], None], arguments: Sequence[str] | None
) -> int:
    """Runs a command and returns the exit status: 0, or 2 after a user's mistake or a full disk.

    A request to stop (Ctrl-C, SIGTERM) also ends with 0, at once: what the command left running
    on another thread may be inside XLA, which a normal exit would wait for or crash in.
    """
    try:
        with Interrupt(say) as interrupt:
            command(sys.argv[1:] if arguments is None else arguments, interrupt)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR
    except OSError as error:
        if error.errno not in FULL_DISK:
            raise
        where = f" for {error.filename}" if error.filename else ""
        print(f"error: {error.strerror}{where}; make room, then go on", file=sys.stderr)
        return USER_ERROR
    except Interrupted:
        say("stopped; the same command goes on")
        sys.stdout.flush()
        os._exit(0)
    return 0
