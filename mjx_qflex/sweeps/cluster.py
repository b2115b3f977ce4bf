"""The runs of a sweep as jobs of a cluster, by way of submitit (an optional dependency)."""

from collections.abc import Sequence
from typing import Any

from mjx_qflex.errors import UserError
from mjx_qflex.sweeps import jobs
from mjx_qflex.sweeps.jobs import Job, State
from mjx_qflex.sweeps.sweep_file import Run, Sweep

FOLDER = ".submitit"  # of submitit's own files, in the sweep's folder
# submitit's own limit is 5 minutes; the file's [cluster] overrides these.
DEFAULTS = {"name": "mjx_qflex", "timeout_min": 24 * 60}
# Slurm warns every process of a job with submitit's signal; `ClusterRun` passes it on in its way.
IGNORING_SIGNALS = ("sh", "-c", 'trap "" USR1 USR2; exec "$@"', "sh")


class ClusterRun:
    """A run as submitit calls it; before a time limit or a preemption it saves and queues again."""

    def __init__(self, run: Run):
        self.run = run
        self.job: Job | None = None

    def __call__(self) -> str:
        """Runs to the end; returns what became of it.

        Raises:
          RuntimeError: it failed, so that the cluster counts it as such.
        """
        self.job = jobs.start(self.run, wrapper=IGNORING_SIGNALS)
        if self.job is None:
            return "finished already, or another job's"
        state = self.job.wait()
        if state == State.FAILED:
            raise RuntimeError(f"{self.run.name}: {jobs.last_words(self.run)}")
        return str(state)

    def checkpoint(self) -> Any:
        """Saves and ends the run; returns what submitit is to queue in its place."""
        from submitit.helpers import DelayedSubmission

        if self.job is not None:
            self.job.stop()
            self.job.wait()
        return DelayedSubmission(ClusterRun(self.run))


def submit(sweep: Sweep, runs: Sequence[Run], cluster: str, width: int | None) -> int:
    """Submits all runs that are neither finished nor running, as one array of jobs.

    Args:
      sweep: gives the folder and the parameters of the jobs.
      runs: those to choose from.
      cluster: name of submitit's executor, "slurm" or "local".
      width: how many of them go at once, on Slurm; None leaves it to submitit.

    Returns:
      The number of jobs submitted.

    Raises:
      UserError: submitit is not installed, finds no such cluster, or refuses a parameter.
    """
    try:
        from submitit import AutoExecutor
    except ImportError as error:
        raise UserError(
            "--cluster needs submitit; install it with `pip install 'mjx_qflex[sweep]'`"
        ) from error
    parameters = {**DEFAULTS, **sweep.cluster}
    if width is not None:
        parameters["slurm_array_parallelism"] = width
    try:
        executor = AutoExecutor(sweep.logdir / FOLDER / "%j", cluster=cluster)
        executor.update_parameters(**parameters)
    except (AssertionError, NameError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"submitit: {str(error).splitlines()[0]}") from error
    done = (State.FINISHED, State.RUNNING)
    waiting = [run for run in runs if jobs.state_of(run) not in done]
    if waiting:
        with executor.batch():
            for run in waiting:
                executor.submit(ClusterRun(run))
    return len(waiting)
