"""Memory and speed of one `train` process over an hour, seen from outside.

    python experiments/long_life/measure.py --hours=1
    python experiments/long_life/measure.py --verdict

The process trains `chain_reach` with Qflex, its epochs a second or two, with checkpoints and
evaluations as any run has them, until its time is up and it is asked to stop. Every ten seconds,
right after a row of its metrics, a line goes to samples.csv: what the kernel says of its memory and
of the CPU time it took, its updates so far, the machine's load, and the CPU time of a fixed piece
of work, the reference. Speed is CPU time per update over that of the reference: a virtual core is
not equally fast at all times, and what else slows one slows the other.
"""

import argparse
import csv
import os

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # of the reference, before NumPy is imported

import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent
SAMPLES = FOLDER / "samples.csv"
COLUMNS = (
    "seconds",
    "cpu_seconds",
    "rss_mib",
    "anonymous_mib",
    "threads",
    "epoch",
    "updates",
    "load",
    "reference_ms",
)
COMMAND = (
    "--task=chain_reach", "--algo=qflex", "--preset=cpu", "--total_steps=1e9", "--no-video",
    "--set", "algo.width=128", "--set", "loop.batch_size=128", "--set", "evaluations=10000",
    "--set", "loop.replay_capacity=50000", "--set", "loop.steps_per_epoch=10",
)  # fmt: skip
INTERVAL = 10.0  # s
WARM_UP = 1 / 4  # of the time: the ring fills, the first evaluation compiles
BLOCKS = 10  # of the rest, over which memory is averaged and speed taken
FLAT_MEMORY, FLAT_SPEED = 0.02, 0.05  # of the mean, an hour


def usage(pid: int) -> dict[str, float]:
    """Returns memory (MiB), threads and CPU time (s, all threads, children waited for) so far."""
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    values = dict(line.split(":", 1) for line in status)
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    ticks = sum(int(field) for field in fields[11:15])
    return {
        "cpu_seconds": ticks / os.sysconf("SC_CLK_TCK"),
        "rss_mib": int(values["VmRSS"].split()[0]) / 1024,
        "anonymous_mib": int(values["RssAnon"].split()[0]) / 1024,
        "threads": int(values["Threads"]),
        "load": os.getloadavg()[0],
    }


def reference_ms() -> float:
    """Returns the CPU time (ms) of some products of matrices as large as the networks'."""
    x = np.ones((128, 128), np.float32)
    began = time.thread_time()
    for _ in range(2_000):
        x = np.tanh(x @ x)
    return 1000 * (time.thread_time() - began)


def last_row(path: Path) -> dict[str, str]:
    """Returns the last row of a metrics file that may be written to meanwhile; {} for none."""
    if not path.exists():
        return {}
    with path.open("rb") as file:
        header = file.readline().decode().strip().split(",")
        file.seek(max(0, os.fstat(file.fileno()).st_size - 2000))
        lines = file.read().decode().split("\n")[:-1]
    cells = lines[-1].strip().split(",") if lines else []
    return dict(zip(header, cells, strict=True)) if len(cells) == len(header) > 1 else {}


def record(hours: float, folder: Path) -> None:
    """Trains in `folder` for so long, and writes samples.csv."""
    command = [sys.executable, "-m", "mjx_qflex.train", *COMMAND, f"--logdir={folder}"]
    began, sampled, epoch = time.monotonic(), 0.0, ""
    process = subprocess.Popen(command)
    try:
        with SAMPLES.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            while process.poll() is None and time.monotonic() - began < 3600 * hours:
                time.sleep(0.05)
                row = last_row(folder / "metrics.csv")
                new = bool(row) and row["epoch"] != epoch
                if new and time.monotonic() - sampled >= INTERVAL:
                    epoch, sampled = row["epoch"], time.monotonic()
                    seen = {**usage(process.pid), "reference_ms": reference_ms()}
                    seen = {name: round(value, 2) for name, value in seen.items()}
                    counts = {name: int(float(row[name])) for name in ("epoch", "updates")}
                    writer.writerow({"seconds": round(sampled - began, 1), **seen, **counts})
                    file.flush()
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        code = process.wait(timeout=300)
    print(f"the run ended with status {code}")


def slope(hours: np.ndarray, values: np.ndarray) -> tuple[float, float]:
    """Returns the least-squares slope of `[BLOCKS]` values an hour, and its standard error."""
    fit, residual, *_ = np.polyfit(hours, values, 1, full=True)
    spread = np.sqrt(residual[0] / (BLOCKS - 2)) if len(residual) else 0.0
    return float(fit[0]), float(spread / (hours.std() * np.sqrt(BLOCKS)))


def verdict() -> None:
    """Prints slopes with standard errors, and draws memory and speed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with SAMPLES.open(newline="") as file:
        rows = list(csv.DictReader(file))
    data = {name: np.array([float(row[name]) for row in rows]) for name in COLUMNS}
    hours = data["seconds"] / 3600
    epochs, updates = data["epoch"][-1], data["updates"][-1]
    print(f"{hours[-1]:.2f} hours, {epochs:,.0f} epochs, {updates:,.0f} updates")
    (warm,) = np.nonzero(hours >= WARM_UP * hours[-1])
    blocks = np.array_split(warm, BLOCKS)
    middles = np.array([hours[block].mean() for block in blocks])

    def growth(name: str, block: np.ndarray) -> float:
        return data[name][block[-1]] - data[name][block[0]]

    memory = np.array([data["rss_mib"][block].mean() for block in blocks])
    reference = np.array([data["reference_ms"][block].mean() for block in blocks])
    update = np.array([1000 * growth("cpu_seconds", b) / growth("updates", b) for b in blocks])
    figure, axes = pyplot.subplots(2, 1, sharex=True, figsize=(8, 5), layout="constrained")
    axes[0].plot(hours, data["rss_mib"], linewidth=0.8)
    print(f"CPU time: {update.mean():.2f} ms an update, {reference.mean():.1f} ms the reference")
    for axis, values, name, flat in (
        (axes[0], memory, "resident memory (MiB)", FLAT_MEMORY),
        (axes[1], update / reference, "an update over the reference", FLAT_SPEED),
    ):
        change, error = slope(middles, values)
        word = "flat" if abs(change) <= max(flat * values.mean(), 2 * error) else "NOT flat"
        print(
            f"{name}: mean {values.mean():,.4g}, slope {change:+.3g} ± {error:.2g} an hour "
            f"({change / values.mean():+.1%}): {word}"
        )
        axis.plot(middles, values, "k.")
        axis.set_ylabel(name)
        axis.set_ylim(0, 1.1 * max(values.max(), *(line.get_ydata().max() for line in axis.lines)))
    axes[1].set_xlabel("hours")
    figure.savefig(FOLDER / "long_life.png", dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hours", type=float)
    parser.add_argument("--verdict", action="store_true")
    flags = parser.parse_args()
    if flags.hours:
        with tempfile.TemporaryDirectory() as folder:
            record(flags.hours, Path(folder))
    if flags.hours or flags.verdict:
        verdict()


if __name__ == "__main__":
    main()
