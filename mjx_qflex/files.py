"""Files that are written whole or not at all, and read with one line about what is wrong with them.

Only the standard library is imported here.
"""

import contextlib
import hashlib
import json
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mjx_qflex.errors import UserError

LEFTOVER = r"\.[0-9a-f]{16}(\.[^.]*)?"  # what files are called until they take their place


@contextlib.contextmanager
def beside(path: Path) -> Iterator[Path]:
    """Gives a new, empty file in the folder of `path`, which takes its place when all went well.

    Where it has been removed again, nothing takes any place. The new file has a name that nobody
    can foresee, and was not there before: nothing is written through a link. A file that was at
    `path` stays until then.
    """
    # The suffix is kept for those who choose a format by it; a long name would be too long.
    temporary = path.with_name(f".{secrets.token_hex(8)}{path.suffix[-20:]}")
    os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    try:
        yield temporary
        if temporary.exists():
            os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def remove_leftovers(folder: Path) -> None:
    """Removes what `beside` left in a folder where its process was killed, an hour ago or more."""
    for path in folder.glob(".*"):
        found = path.lstat()
        long_ago = time.time() - found.st_mtime > 3600.0
        if re.fullmatch(LEFTOVER, path.name) and long_ago and stat.S_ISREG(found.st_mode):
            path.unlink(missing_ok=True)


def write(path: Path, content: str | bytes) -> None:
    """Writes a file, text as UTF-8."""
    data = content.encode() if isinstance(content, str) else content
    with beside(path) as temporary:
        temporary.write_bytes(data)


def digest(path: Path) -> str:
    """Returns the SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def check_output(path: Path, flag: str = "--output") -> None:
    """Checks that a file can be written at `path`, before the work that makes it; leaves nothing.

    Raises:
      UserError: there is no such folder, it cannot be written to, or something else than a file is
        there, such as a device, a folder or a link; names `flag`.
    """
    try:
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISREG(path.lstat().st_mode):
                raise UserError(f"{flag}={path} is there and is no file; name another")
        with contextlib.suppress(_AllWell), beside(path):
            raise _AllWell
    except (OSError, ValueError) as error:
        raise UserError(f"cannot write {flag}={path}: {reason(error)}; name another") from error


def check_output_folder(path: Path, flag: str = "--output") -> None:
    """Checks that files can be written in the folder `path`, which is made where missing.

    Raises:
      UserError: it cannot be made or written to; names `flag`.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot make {flag}={path}: {reason(error)}; name another") from error
    check_output(path / f"check{secrets.token_hex(4)}", flag)


class _AllWell(Exception):
    """Ends a trial before anything is put in place."""


def reason(error: Exception) -> str:
    """Returns why something failed, in one line."""
    text = getattr(error, "strerror", None) or str(error)
    return text.splitlines()[0] if text else type(error).__name__


def who_else_writes(folder: Path) -> str | None:
    """Returns in words why others than this user could change files in a folder, None if not.

    What is loaded as a program must lie where nobody else can put it: neither in the folder nor by
    way of those above it.
    """
    own, others = os.getuid(), stat.S_IWOTH
    for place in (folder.resolve(), *folder.resolve().parents):
        found = place.stat()
        if found.st_uid not in (own, 0) or (found.st_uid != own and place == folder.resolve()):
            return f"{place} belongs to another user"
        open_to_group = found.st_mode & stat.S_IWGRP and found.st_gid not in (os.getgid(), 0)
        kept_apart = found.st_mode & stat.S_ISVTX and place != folder.resolve()
        if (found.st_mode & others or open_to_group) and not kept_apart:
            return f"others can write in {place}"
    return None


def read_text(path: Path, advice: str = "write it anew") -> str:
    """Reads a text file in UTF-8, with or without a byte order mark.

    Raises:
      UserError: it cannot be read, or is no such text; ends with the `advice`.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise damaged(path, f"byte {error.start} is no text in UTF-8", advice) from error
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {reason(error)}; {advice}") from error


def read_json(path: Path, advice: str, **needed: type | tuple[type, ...]) -> dict[str, Any]:
    """Reads a JSON object that this library wrote.

    Args:
      path: the file.
      advice: what would help, for the message: "remove it", ...
      needed: the types of entries that must be there.

    Raises:
      UserError: it cannot be read or is damaged; says what is wrong.
    """
    text = read_text(path, advice)
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise damaged(path, reason(error), advice) from error
    if not isinstance(found, dict):
        raise damaged(path, "it holds no table of entries", advice)
    for name, kind in needed.items():
        if not isinstance(found.get(name), kind) or isinstance(found[name], bool):
            raise damaged(path, f"no {name!r} of the right type in it", advice)
    return found


def damaged(path: Path, what: str, advice: str) -> UserError:
    """Returns what to say of a file of a run that is not as it was written."""
    return UserError(f"{path} is damaged ({what}); {advice}")
