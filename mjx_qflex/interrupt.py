"""Ctrl-C, SIGTERM and a hang-up as a request to stop, seen at once, even while XLA computes.

A Python signal handler runs on the main thread, and only between its bytecodes, so a main thread
that waits inside XLA would hear nothing for minutes. The main thread therefore only ever waits:
every long call runs on a thread of its own.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, TypeVar

Result = TypeVar("Result")
Say = Callable[[str], None]  # takes each line of words that a user is to see
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
POLL_SECONDS = 0.1


class Interrupted(Exception):
    """The user asked to stop while something ran that may be left unfinished."""


class Interrupt:
    """A context in which the first of `SIGNALS` is noted and the second aborts.

    A hang-up that was ignored before (`nohup`) still is.
    """

    def __init__(self, say: Say = print):
        self.requested = False
        self._say = say
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Interrupt":
        for number in SIGNALS:
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue
            self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        if self.requested and number == signal.SIGHUP:
            return  # a terminal that goes away says so more than once, and means no hurry
        if self.requested:
            os._exit(128 + number)
        self.requested = True
        with contextlib.suppress(RuntimeError):  # in the middle of another line
            self._say(f"{signal.Signals(number).name}: stopping (once more aborts at once)")

    def complete(self, function: Callable[..., Result], *args: Any) -> Result:
        """Calls `function` and waits for it, whatever is requested meanwhile."""
        return self._call(function, args, leave_on_request=False)

    def attempt(self, function: Callable[..., Result], *args: Any) -> Result:
        """Calls `function`, but leaves it behind as soon as a stop is requested.

        Raises:
          Interrupted: a stop was requested before or meanwhile. The thread may still be running;
            end the process with `leave`.
        """
        return self._call(function, args, leave_on_request=True)

    def _call(self, function: Callable[..., Result], args: tuple, leave_on_request: bool) -> Result:
        outcome: dict[str, Any] = {}

        def work() -> None:
            try:
                outcome["result"] = function(*args)
            except BaseException as error:  # handed to the main thread, which raises it
                outcome["error"] = error

        thread = threading.Thread(target=work, daemon=True)
        if not (leave_on_request and self.requested):
            thread.start()
            while thread.is_alive() and not (leave_on_request and self.requested):
                thread.join(POLL_SECONDS)
        if leave_on_request and self.requested:
            raise Interrupted
        if "error" in outcome:
            raise outcome["error"]
        return outcome["result"]
