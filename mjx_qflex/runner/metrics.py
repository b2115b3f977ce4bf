"""What one sees of a run: rows in metrics.csv and TensorBoard, and a line of progress."""

import csv
import io
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from mjx_qflex import files
from mjx_qflex.errors import UserError

FILE_NAME = "metrics.csv"
TENSORBOARD_FOLDER = "tensorboard"
OLD_COLUMNS = {"nonfinite_worlds": "nonfinite_environments"}
GIB = 2**30
Row = dict[str, float]


class MetricsLog:
    """Appends rows under a header that never changes, to a CSV file and to TensorBoard.

    Each row has a `transitions` column, which never falls. Opening the log of a run that goes on
    from `transitions` drops the rows past that point: the run is about to write them again.
    """

    def __init__(self, folder: Path, transitions: int, updates: float = math.inf):
        """Opens the log in `folder` for a run that stands at `transitions` and `updates`."""
        self._path = folder / FILE_NAME
        rows = [
            row
            for row in read_rows(folder)
            if row["transitions"] <= transitions and row.get("updates", 0) <= updates
        ]
        self._header = list(rows[0]) if rows else None
        text = io.StringIO(newline="")
        if self._header:
            writer = csv.DictWriter(text, self._header)
            writer.writeheader()
            writer.writerows(map(_to_text, rows))
        files.write(self._path, text.getvalue())
        self._file = self._path.open("a", newline="")
        self._board = _Board(folder / TENSORBOARD_FOLDER, transitions + 1 if rows else None)

    def write(self, row: Row) -> None:
        """Appends a row, which is in the file when this returns; NaN is an empty cell.

        Raises:
          UserError: the row's columns are not those of the rows before, or the disk is full.
        """
        if self._header is None:
            self._header = list(row)
            csv.DictWriter(self._file, self._header).writeheader()
        if set(row) != set(self._header):
            changed = ", ".join(sorted(set(row) ^ set(self._header)))
            raise UserError(
                f"{self._path} has other columns than this version writes ({changed}); "
                "choose another --logdir"
            )
        try:
            csv.DictWriter(self._file, self._header).writerow(_to_text(row))
            self._file.flush()
            self._board.write(int(row["transitions"]), row)
        except OSError as error:
            raise UserError(
                f"cannot write metrics in {self._path.parent}: {error.strerror}; make room, then "
                "the same command goes on from the last checkpoint"
            ) from error

    def close(self) -> None:
        self._file.close()
        self._board.close()


class _Board:
    """TensorBoard's event file, written at once.

    tensorboardX's own writer has a thread for it. A full disk ends that thread, and then whoever
    adds an event waits for ever.
    """

    def __init__(self, folder: Path, purge_from: int | None):
        """Opens a new file; events of earlier ones from step `purge_from` on are void."""
        folder.mkdir(parents=True, exist_ok=True)
        self._events = EventsWriter(str(folder / "events"))
        if purge_from is not None:
            start = SessionLog(status=SessionLog.START)
            self._events.write_event(Event(step=purge_from, file_version="brain.Event:2"))
            self._events.write_event(Event(step=purge_from, session_log=start))

    def write(self, step: int, row: Row) -> None:
        values = [
            Summary.Value(tag=name, simple_value=value)
            for name, value in row.items()
            if math.isfinite(value)
        ]
        event = Event(wall_time=time.time(), step=step, summary=Summary(value=values))
        self._events.write_event(event)
        self._events.flush()

    def close(self) -> None:
        self._events.close()


def read_rows(folder: Path) -> list[Row]:
    """Returns the rows of the log in `folder`, empty cells as NaN; none where there is no log.

    A last line that a killed process left incomplete is dropped.

    Raises:
      UserError: the log is damaged; says where.
    """
    path = folder / FILE_NAME
    if not path.exists():
        return []
    advice = "choose another --logdir, or repair it"
    text = files.read_text(path, advice)
    whole = text[: text.rfind("\n") + 1]
    try:
        header, *lines = [*csv.reader(io.StringIO(whole, newline=""))] or [[]]
        header = [OLD_COLUMNS.get(name, name) for name in header]
    except csv.Error as error:
        raise files.damaged(path, files.reason(error), advice) from error
    if lines and "transitions" not in header:
        raise files.damaged(path, "it has no column 'transitions'", advice)
    rows = []
    for number, cells in enumerate(lines, start=2):
        try:
            row = {name: float(x or "nan") for name, x in zip(header, cells, strict=True)}
            int(row["transitions"])  # is a number
        except (ValueError, OverflowError) as error:
            raise files.damaged(path, f"line {number}: {files.reason(error)}", advice) from error
        rows.append(row)
    return rows


def _to_text(row: Row) -> dict[str, str]:
    return {name: "" if math.isnan(value) else f"{value:.10g}" for name, value in row.items()}


def mean_row(rows: Sequence[Row]) -> Row:
    """Returns the mean of each column over `rows`, NaNs left out; NaN where nothing remains."""

    def mean(values: list[float]) -> float:
        return sum(values) / len(values) if values else math.nan

    return {
        name: mean([row[name] for row in rows if not math.isnan(row[name])]) for name in rows[0]
    }


def used_memory() -> int:
    """Returns the bytes in use on the default device; on a CPU, those of this process."""
    device = jax.local_devices()[0]
    stats = device.memory_stats() if device.platform != "cpu" else None
    if stats:
        return int(stats["bytes_in_use"])
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def progress_line(row: Row, total_transitions: int, seconds_left: float) -> str:
    """Returns one line on the epoch that `row` describes."""
    parts = [
        f"epoch {row['epoch']:.0f}",
        f"{row['transitions']:,.0f} of {total_transitions:,} transitions",
        f"return {number(row['episode/return'])}",
        f"length {number(row['episode/length'])}",
        f"{row['steps_per_second']:,.0f} steps/s",
        f"{row['updates_per_second']:.3g} updates/s",
        f"{row['updates_per_transition']:.3g} updates/transition",
        f"{row['memory_gib']:.1f} GiB",
        f"{duration(seconds_left)} left",
    ]
    return " | ".join(parts)


def number(value: Any) -> str:
    """Returns a few digits of a number, "-" for NaN (no episode ended)."""
    return "-" if math.isnan(value) else f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"


def duration(seconds: float) -> str:
    """Returns a time span as a person says it: "45 s", "3 min 20 s", "2 h 5 min"."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60} min"
