"""One process a run folder: who trains in it holds a lock, which ends with the process.

The lock (`flock`) is on a hidden file in the folder that names its holder. It goes when the run
ends in whatever way; the file stays only after a kill, and then tells of nobody.
"""

import contextlib
import errno
import fcntl
import os
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path

from mjx_qflex.errors import UserError

FILE_NAME = ".lock"
UNSUPPORTED = (errno.ENOLCK, errno.EOPNOTSUPP)  # some network file systems know no locks


@contextlib.contextmanager
def held(folders: Sequence[Path]) -> Iterator[None]:
    """Holds the locks of run folders; makes those that are missing, and removes them if unused.

    Raises:
      UserError: another process has one of them; names the process.
    """
    with contextlib.ExitStack() as stack:
        for folder in folders:
            for made in _make(folder):
                stack.callback(_remove_empty, made)
            stack.callback(_release, folder, _take(folder))
        yield


def _make(folder: Path) -> list[Path]:
    """Makes a folder and those above it; returns the ones that were missing, from the top."""
    missing = [place for place in (folder, *folder.parents) if not place.exists()][::-1]
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def _remove_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()


def _take(folder: Path) -> int | None:
    """Locks a folder; returns the handle of the lock, None where its file system has none."""
    path = folder / FILE_NAME
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(handle, 200).decode(errors="replace").strip() or "another process"
            os.close(handle)
            raise UserError(
                f"{holder} trains in {folder}; wait for it or stop it, or choose another --logdir"
            ) from None
        except OSError as error:
            os.close(handle)
            if error.errno not in UNSUPPORTED:
                raise
            path.unlink(missing_ok=True)
            return None
        if _is_at(handle, path):
            os.ftruncate(handle, 0)
            os.write(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
            return handle
        os.close(handle)  # its holder ended, and took the file away, just before


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


def _release(folder: Path, handle: int | None) -> None:
    if handle is not None:
        (folder / FILE_NAME).unlink(missing_ok=True)  # first, so that nobody waits for this file
        os.close(handle)
