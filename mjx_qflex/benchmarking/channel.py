"""Both ends of the pipe between a comparison and its sides: one line of JSON for each round.

Only the standard library is imported here; see `worker`.
"""

import contextlib
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from typing import Any

GO = "go\n"


class Ended(Exception):
    """The comparison wants no further round."""


class Failed(Exception):
    """A side ended or took too long; the message says which."""


class Channel:
    """The side's end; what libraries print goes to standard error."""

    def __init__(self):
        self._answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def report(self, **facts: Any) -> None:
        """Sends facts, and waits until a round is asked for.

        Raises:
          Ended: none will be.
        """
        self._answers.write(json.dumps(facts) + "\n")
        self._answers.flush()
        if sys.stdin.readline() != GO:
            raise Ended


class Side:
    """The comparison's end: a worker process, alive inside a `with`."""

    def __init__(self, spec: dict[str, Any]):
        """Starts it, compilation and warm-up included; `wait` for these with the first `answer`."""
        environment = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", **os.environ}
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115, closed by `close`
        self._process = subprocess.Popen(
            [sys.executable, "-m", "mjx_qflex.benchmarking.worker", json.dumps(spec)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment,
        )
        self._unread = b""

    def __enter__(self) -> "Side":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the process, wherever it is."""
        assert self._process.stdin and self._process.stdout
        self._process.kill()
        self._process.wait()
        for file in (self._process.stdin, self._process.stdout, self._errors):
            with contextlib.suppress(BrokenPipeError):  # a word that it did not read
                file.close()

    def ask(self) -> None:
        """Asks for a round."""
        assert self._process.stdin
        with contextlib.suppress(BrokenPipeError):  # `answer` says why
            self._process.stdin.write(GO.encode())
            self._process.stdin.flush()

    def answer(self, limit_s: float) -> dict[str, Any]:
        """Returns the next answer.

        Raises:
          Failed: the process ended, or took longer than `limit_s`.
        """
        assert self._process.stdout
        source, until = self._process.stdout.fileno(), time.monotonic() + limit_s
        while b"\n" not in self._unread:
            left = until - time.monotonic()
            if left <= 0 or not select.select([source], [], [], left)[0]:
                raise Failed(f"not done in {limit_s:.0f} s")
            read = os.read(source, 65536)
            if not read:
                raise Failed(self._last_words())
            self._unread += read
        line, self._unread = self._unread.split(b"\n", 1)
        return json.loads(line)

    def _last_words(self) -> str:
        code = self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return (lines or [f"exit status {code}"])[-1][:300]
