"""What grows in a long run: a small one, with a checkpoint a second or one in all.

    python experiments/long_life/allocations.py --checkpoints=often --seconds=300
    python experiments/long_life/allocations.py --checkpoints=once --seconds=100

Says every 15 s what `malloc` has given out, how many objects Python has, and the resident memory.
"""

import argparse
import ctypes
import os
import re
import sys
import tempfile
import threading
import time
from pathlib import Path

from mjx_qflex import presets
from mjx_qflex.interrupt import Interrupt, Interrupted
from mjx_qflex.reports import reporting
from mjx_qflex.runner import checkpointer, driver

SETTINGS = (
    "algo.width=16", "loop.batch_size=16", "loop.replay_capacity=5000", "loop.steps_per_epoch=10",
    "evaluations=1", "task.num_joints=2", "loop.eval_envs=8",
)  # fmt: skip
INTERVAL = 15.0  # s
LIBC = ctypes.CDLL("libc.so.6")
LIBC.fdopen.restype = ctypes.c_void_p


def given_out() -> float:
    """Returns the MiB that glibc's `malloc` has given out, of all its arenas and by `mmap`."""
    descriptor = LIBC.memfd_create(b"malloc_info", 0)
    file = ctypes.c_void_p(LIBC.fdopen(descriptor, b"w+"))
    LIBC.malloc_info(0, file)
    LIBC.fflush(file)
    text = os.pread(descriptor, 10**7, 0).decode()
    LIBC.fclose(file)
    totals = text[text.rindex("</heap>") :]

    def sizes(pattern: str) -> int:
        return sum(int(size) for size in re.findall(pattern + r'[^>]*size="(\d+)"', totals))

    free = sizes('type="fast"') + sizes('type="rest"')
    return (sizes('<system type="current"') - free + sizes('<total type="mmap"')) / 2**20


def resident() -> float:
    """Returns the resident memory in MiB."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024  # type: ignore[index]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--checkpoints", choices=("often", "once"), default="often")
    parser.add_argument("--seconds", type=float, default=300.0)
    flags = parser.parse_args()
    checkpointer.CHECKPOINT_SECONDS = 1.0 if flags.checkpoints == "often" else 1e9
    checkpointer.CHECKPOINT_SHARE = 1.0
    said: list[str] = []
    began = time.monotonic()

    def watch(interrupt: Interrupt) -> None:
        while (passed := time.monotonic() - began) < flags.seconds:
            saves = sum(line.startswith("checkpoint") for line in said)
            print(
                f"{passed:4.0f} s, {saves} checkpoints: malloc {given_out():.1f} MiB, "
                f"{sys.getallocatedblocks():,} Python objects, resident {resident():.1f} MiB",
                flush=True,
            )
            time.sleep(INTERVAL)
        interrupt.requested = True

    config = presets.resolve("chain_reach", "qflex", "cpu", total_steps=10**9, sets=SETTINGS)
    with tempfile.TemporaryDirectory() as folder, Interrupt(said.append) as interrupt:
        threading.Thread(target=watch, args=(interrupt,), daemon=True).start()
        try:
            driver.train(
                config,
                Path(folder) / "run",
                reporting.writer("command", said.append),
                interrupt,
                said.append,
            )
        except Interrupted:
            print(said[-1])


if __name__ == "__main__":
    main()
