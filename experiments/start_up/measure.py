"""How long a `train` command takes to its first step, the first time and the second.

    python experiments/start_up/measure.py --task=ms_human_walk

Starts the command twice with an empty cache folder, and stops each at the end of the prefill.
Appends to starts.csv, for each line that the command says, the seconds since the process began: of
the clock, and of CPU time of all its threads, which other work on the machine changes less.
"""

import argparse
import csv
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RESULTS = Path(__file__).with_name("starts.csv")
COLUMNS = ("task", "start", "seconds", "cpu_seconds", "load", "line")
STEPS, END = "filling the replay", "training begins"  # the first step, and where to stop


def cpu_seconds(pid: int) -> float:
    """Returns the CPU time of a process so far, of all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(int(field) for field in fields[11:13]) / os.sysconf("SC_CLK_TCK")


def start(flags: list[str], cache: Path) -> list[dict]:
    """Runs the command until the end of its prefill; returns a row for each line it says."""
    began, rows = time.monotonic(), []
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [sys.executable, "-m", "mjx_qflex.train", *flags, f"--logdir={folder}/run"],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "MJX_QFLEX_CACHE": str(cache)},
        )
        assert process.stdout is not None
        for line in process.stdout:
            text = line.partition("] ")[2].strip()
            rows.append({
                "seconds": round(time.monotonic() - began, 2),
                "cpu_seconds": cpu_seconds(process.pid),
                "load": round(os.getloadavg()[0], 1),
                "line": text.partition(" GiB")[0],
            })  # fmt: skip
            if END in text:
                break
        process.kill()
        process.communicate()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", default="ms_human_walk")
    parser.add_argument("--algo", default="qflex")
    flags = parser.parse_args()
    command = [f"--task={flags.task}", f"--algo={flags.algo}"]
    first_steps = []
    with tempfile.TemporaryDirectory() as cache, RESULTS.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if file.tell() == 0:
            writer.writeheader()
        for number in ("first", "second"):
            rows = start(command, Path(cache))
            writer.writerows({"task": flags.task, "start": number, **row} for row in rows)
            print(f"\n{number} start\n| seconds | CPU seconds | load | |\n|---|---|---|---|")
            for row in rows:
                print("| {seconds} | {cpu_seconds} | {load} | {line} |".format(**row))
            first_steps.append(next(row for row in rows if STEPS in row["line"]))
    for name in ("seconds", "cpu_seconds"):
        first, second = (row[name] for row in first_steps)
        print(f"{name} to the first step: {first}, then {second} ({second / first:.0%})")


if __name__ == "__main__":
    main()
