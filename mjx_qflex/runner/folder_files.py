"""Sizes and checksums of the files in a folder."""

import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

CHUNK = 2**22  # bytes read at once for a checksum


def checksums(path: Path, names: Iterable[str] | None = None) -> dict[str, int]:
    """Returns the CRC-32 of files in `path`, by default of all, by their path in it."""
    if names is None:
        names = [str(file.relative_to(path)) for file, _ in sizes(path)]
    with ThreadPoolExecutor() as threads:  # it computes outside of Python's lock
        return dict(zip(names, threads.map(lambda name: checksum(path / name), names), strict=True))


def checksum(path: Path) -> int:
    total = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            total = zlib.crc32(chunk, total)
    return total


def size_on_disk(path: Path) -> int:
    return sum(size for _, size in sizes(path))


def sizes(path: Path) -> Iterator[tuple[Path, int]]:
    return ((file, file.stat().st_size) for file in path.rglob("*") if file.is_file())
