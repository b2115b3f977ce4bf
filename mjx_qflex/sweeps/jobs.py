"""The runs of a sweep as processes: started, stopped, looked at.

Every run is a process `python -m mjx_qflex.train` of its own, so that what fails or leaks stays its
own, and a run folder holds just what that command makes. What it says goes to a log beside the run
folder. The log is also the lock (`flock`) that tells several sweeps of one file, on machines that
share the folder, who has which run: the run's process holds it, even where its sweep was killed.
"""

import contextlib
import enum
import fcntl
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TextIO

import numpy as np

from mjx_qflex import config as configs
from mjx_qflex.errors import UserError
from mjx_qflex.interrupt import SIGNALS, Interrupt, Interrupted
from mjx_qflex.runner import assessment, metrics, run_folder
from mjx_qflex.runner.metrics import duration, number
from mjx_qflex.sweeps.sweep_file import Run

POLL_SECONDS = 0.2
TAIL_BYTES = 4096  # of a log, in which its last lines are looked for
TAIL_CHARACTERS = 200  # of a line that is shown
FAILED = "sweep: failed with "  # begins the last line of a failed run's log
# Exit statuses of a run that was asked to stop, before it could hear it or twice: no failures.
STOPS = tuple(status for number in SIGNALS for status in (-number, 128 + number))
COMPILATIONS_VARIABLE = "JAX_COMPILATION_CACHE_DIR"

Say = Callable[[str], None]


class State(enum.StrEnum):
    """Where a run stands; `STOPPED` has begun, and the next sweep goes on with it."""

    FINISHED = "finished"
    RUNNING = "running"
    STOPPED = "stopped"
    FAILED = "failed"
    WAITING = "waiting"


def state_of(run: Run) -> State:
    """Returns where a run stands, whichever process on whichever machine it is in."""
    if _is_finished(run):
        return State.FINISHED
    if run.log.exists():
        with run.log.open() as log:
            if not _lock(log, fcntl.LOCK_SH):
                return State.RUNNING
    return _state_at_rest(run)


def _state_at_rest(run: Run) -> State:
    """Returns the state of a run that no process works on."""
    if _is_finished(run):
        return State.FINISHED
    if any(line.startswith(FAILED) for line in _last_lines(run.log)[-1:]):
        return State.FAILED
    begun = run.log.exists() or (run.folder / configs.FILE_NAME).exists()
    return State.STOPPED if begun else State.WAITING


def _is_finished(run: Run) -> bool:
    try:
        return run_folder.is_finished(run.config, run.folder)
    except (UserError, ValueError):  # a damaged file, which the run itself will fail with and name
        return False


def _lock(log: TextIO, how: int) -> bool:
    """Takes the lock of an open log, until its last copy is closed; returns whether it was free."""
    try:
        fcntl.flock(log, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _last_lines(log: Path) -> list[str]:
    """Returns the last lines of a log that hold anything."""
    if not log.exists():
        return []
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - TAIL_BYTES))
        text = file.read().decode(errors="replace")
    return [line for line in text.splitlines() if line.strip()]


def last_words(run: Run) -> str:
    """Returns the last that a failed run said, which is its error, and how it ended."""
    *said, end = ["", *_last_lines(run.log)]
    return f"{said[-1].strip()[:TAIL_CHARACTERS]} ({end.removeprefix('sweep: ')})"


class Job:
    """A run in a process of its own, from `start` on."""

    def __init__(self, run: Run, process: subprocess.Popen, log: TextIO):
        self.run = run
        self._process, self._log = process, log
        self._started = time.monotonic()
        self._asked_to_stop = False

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    def stop(self) -> None:
        """Asks the run to save and end; asking twice would abort it."""
        if not self._asked_to_stop:
            self._asked_to_stop = True
            self._process.send_signal(signal.SIGTERM)

    def ended(self) -> State | None:
        """Returns what became of the run, None while it goes on; keeps a failure in its log."""
        status = self._process.poll()
        if status is None:
            return None
        if status and status not in STOPS and not self._log.closed:
            how = f"signal {signal.Signals(-status).name}" if status < 0 else f"status {status}"
            self._log.write(f"{FAILED}{how}\n")
        self._log.close()
        return _state_at_rest(self.run)

    def wait(self) -> State:
        """Waits for the run to end; returns what became of it.

        By looking again and again, since `Popen.wait` would lock itself out where a signal handler
        waits for the process that the main thread waits for already.
        """
        while (state := self.ended()) is None:
            time.sleep(POLL_SECONDS)
        return state


def start(
    run: Run,
    again: bool = True,
    environment: Mapping[str, str] | None = None,
    wrapper: Sequence[str] = (),
) -> Job | None:
    """Starts a run, or goes on with it.

    Args:
      run: the run.
      again: whether to try one that has failed.
      environment: variables of its process; by default those of this one.
      wrapper: a command that runs the command which follows it.

    Returns:
      The job; None where the run is finished, has failed, or another process has it.
    """
    run.log.parent.mkdir(parents=True, exist_ok=True)
    log = run.log.open("a", encoding="utf-8")
    state = _state_at_rest(run) if _lock(log, fcntl.LOCK_EX) else State.RUNNING
    if state in (State.FINISHED, State.RUNNING) or (state == State.FAILED and not again):
        log.close()
        return None
    print(f"$ {command_line('train', run.arguments)}", file=log, flush=True)
    process = subprocess.Popen(
        [*wrapper, sys.executable, "-m", "mjx_qflex.train", *run.arguments],
        stdin=subprocess.DEVNULL,
        stdout=log,  # with it the process inherits the lock
        stderr=subprocess.STDOUT,
        env=environment,
        start_new_session=True,  # Ctrl-C in the terminal is the sweep's to pass on, once
    )
    return Job(run, process, log)


def command_line(module: str, arguments: Sequence[str]) -> str:
    """Returns a command of this library as a shell takes it."""
    return shlex.join(["python", "-m", f"mjx_qflex.{module}", *arguments])


def work(
    runs: Sequence[Run], width: int, hours: float | None, interrupt: Interrupt, say: Say
) -> None:
    """Runs all that is not finished on this machine; what has failed before comes last.

    Args:
      runs: in the order in which they begin.
      width: how many go side by side.
      hours: after which none begins any more; None is no limit.
      interrupt: stops the runs in progress with their checkpoints.
      say: takes each line of words.

    Raises:
      Interrupted: the user asked to stop; all processes have ended.
    """
    states = {run.name: state_of(run) for run in runs}
    again = [run for run in runs if states[run.name] == State.FAILED]
    queue = [run for run in runs if states[run.name] not in (State.FINISHED, State.FAILED)]
    queue += again
    deadline = time.monotonic() + 3600 * hours if hours is not None else float("inf")
    active: list[Job] = []
    with _shared_compilations() as environment:
        while queue or active:
            if queue and time.monotonic() >= deadline:
                say(f"the time is up; {len(queue)} runs are left for the same command to begin")
                queue = []
            while queue and len(active) < width and not interrupt.requested:
                run = queue.pop(0)
                if job := start(run, run in again, environment):
                    say(f"{run.name} begins, {len(queue)} after it; what it says: {run.log}")
                    active.append(job)
            if interrupt.requested:
                queue = []
                for job in active:
                    job.stop()
            active = [job for job in active if not _report_end(job, say)]
            time.sleep(POLL_SECONDS if active else 0.0)
    if interrupt.requested:
        raise Interrupted


@contextlib.contextmanager
def _shared_compilations() -> Iterator[dict[str, str]]:
    """Gives variables for processes that compile each program once between them, for this while.

    Seeds of one configuration have the same programs. Not kept for longer: a program compiled for
    one processor may not run on another that shares the folder.
    """
    with tempfile.TemporaryDirectory(prefix="mjx_qflex_sweep_") as folder:
        yield {COMPILATIONS_VARIABLE: folder, **os.environ}


def _report_end(job: Job, say: Say) -> bool:
    """Says how a job ended; returns whether it has."""
    state = job.ended()
    if state is None:
        return False
    words = {
        State.FINISHED: lambda: f": return {number(_final_return(job.run))}",
        State.FAILED: lambda: f": {last_words(job.run)}",
    }.get(state, str)
    say(f"{job.run.name} {state} after {duration(job.seconds)}{words()}")
    return True


def _final_return(run: Run) -> float:
    result = assessment.load(run.folder)
    return float("nan") if result is None else result["policies"]["trained"]["return_mean"]


def require_success(runs: Sequence[Run]) -> None:
    """Raises a `UserError` where runs have failed; it counts them and names the first."""
    failed = [run for run in runs if state_of(run) == State.FAILED]
    if failed:
        raise UserError(
            f"{len(failed)} of {len(runs)} runs failed, {failed[0].name} first: read "
            f"{failed[0].log}; the same command tries them again"
        )


def table(runs: Sequence[Run]) -> list[str]:
    """Returns the lines of a table of groups and states, and one on each run that is not at rest.

    Finished runs give the mean return of their group: of the trained policy's final evaluation.
    """
    states = {run.name: state_of(run) for run in runs}
    rows: list[tuple[str, ...]] = [("runs", *State, "return")]
    for group in (*dict.fromkeys(run.group for run in runs), None):
        members = [run for run in runs if group is None or run.group == group]
        counts = Counter(states[run.name] for run in members)
        cells = (str(counts[state] or "") for state in State)
        returns = [_final_return(run) for run in members if states[run.name] == State.FINISHED]
        mean = number(np.mean(returns)) if returns and group is not None else ""
        rows.append(("all" if group is None else group or "all seeds", *cells, mean))
    return [*assessment.markdown(rows), *filter(None, (_detail(run, states) for run in runs))]


def _detail(run: Run, states: Mapping[str, State]) -> str:
    """Returns a line on a run that is under way or has failed."""
    state = states[run.name]
    if state == State.FAILED:
        return f"{run.name} failed: {last_words(run)}; {run.log}"
    if state not in (State.RUNNING, State.STOPPED):
        return ""
    try:
        rows = metrics.read_rows(run.folder)
    except UserError as error:
        return f"{run.name} {state}: {error}"
    done = rows[-1]["transitions"] if rows else 0
    return f"{run.name} {state}: {done:,.0f} of {run.config.total_steps:,} transitions"
