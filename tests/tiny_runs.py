"""Commands started as a user would, a tiny run, and what it leaves."""

import csv
import subprocess

TINY = (
    "--task=chain_reach", "--num_envs=8", "--total_steps=4000",
    "--set", "loop.steps_per_epoch=50", "--set", "loop.batch_size=16",
    "--set", "loop.prefill_transitions=400", "--set", "loop.replay_capacity=2000",
    "--set", "loop.eval_envs=4", "--set", "evaluations=3",
    "--set", "algo.width=8", "--set", "algo.depth=1",
)  # fmt: skip
TIMINGS = ("seconds", "steps_per_second", "updates_per_second", "memory_gib")
LEFT_BEHIND = {
    "checkpoints", "config.json", "evaluation.json", "learning_curve.png", "metrics.csv",
    "report.md", "summary.json", "tensorboard", "video.mp4",
}  # fmt: skip


def finish(process, timeout=240.0):
    """Waits for the process; one that takes too long is killed, and the test fails."""
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return process.returncode, out, err


def wait_for(process, text):
    """Reads lines until one contains `text`; fails where the process ends before."""
    seen = []
    for line in process.stdout:
        seen.append(line)
        if text in line:
            return line
    raise AssertionError("".join(seen) + process.stderr.read())


def read_rows(folder):
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def learned(rows):
    """Drops what depends on the clock, and evaluations, whose epochs depend on the run's length."""
    return [
        {
            name: cell
            for name, cell in row.items()
            if name not in TIMINGS and not name.startswith("evaluation/")
        }
        for row in rows
    ]
