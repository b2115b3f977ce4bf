"""A training process that is killed at random moments, and one whose disk is full."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
from tiny_runs import TINY, learned, read_rows

from mjx_qflex import config as configs
from mjx_qflex.runner import checkpoint, driver, metrics
from mjx_qflex.runner.run_folder import Member
from mjx_qflex.training.loop import make_loop

# `python -m mjx_qflex.train`, but with a checkpoint every so many seconds, if it costs that long.
TRAIN = """
from mjx_qflex import train
from mjx_qflex.runner import checkpointer
checkpointer.CHECKPOINT_SECONDS, checkpointer.CHECKPOINT_SHARE = {seconds}, 1e9
raise SystemExit(train.main())
"""
TIMEOUT = 240.0  # s


class Training:
    """A training process, and what it has said so far."""

    def __init__(self, environment, folder, *flags, seconds=0.3, log=None):
        self.log = log or folder.with_name(f"{folder.name}.log")
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", TRAIN.format(seconds=seconds), *TINY, "--no-video",
                 f"--logdir={folder}", *flags],
                stdout=log, stderr=subprocess.STDOUT, env=environment,
            )  # fmt: skip

    def said(self):
        return self.log.read_text()

    def wait_until(self, condition):
        """Waits until `condition()` holds; fails where the process ends or hangs before."""
        began = time.monotonic()
        while not condition():
            assert self.process.poll() is None, self.said()
            assert time.monotonic() - began < TIMEOUT, self.said()
            time.sleep(0.001)

    def kill(self):
        self.process.kill()
        assert self.process.wait() == -signal.SIGKILL, self.said()


class Restorer:
    """Reads the newest checkpoint of a run, all of it."""

    def __init__(self):
        self.shapes = None

    def __call__(self, folder):
        config = configs.load(folder)
        if self.shapes is None:
            self.shapes = make_loop(*driver.build(config), config.loop).shapes()
        return Member(config, folder).restore(self.shapes)


@pytest.fixture(scope="module")
def restore():
    return Restorer()


def announced(text, start):
    """The numbers in the lines that tell of a checkpoint written, or of one resumed from."""
    lines = (line.partition("] ")[2] for line in text.splitlines())
    found = (line.removeprefix(start).split()[0] for line in lines if line.startswith(start))
    return [int(number.replace(",", "")) for number in found]


def check_nothing_is_lost_or_broken(folder, said, before, restore):
    """Checks what a killed process left; returns the transitions that the next goes on from."""
    newest = checkpoint.newest(folder / "checkpoints")
    standing = 0 if newest is None else int(newest.name)
    assert standing >= max([before, *announced(said, "checkpoint at ")])
    if newest is None:
        return standing
    assert restore(folder).transitions == standing
    transitions = [row["transitions"] for row in metrics.read_rows(folder)]
    assert transitions == sorted(set(transitions)) and transitions[-1] >= standing
    json.loads((folder / "config.json").read_text())
    return standing


def live_and_die(environment, folder, moment, chance):
    """Trains and is killed at one of the moments; returns what it said."""
    unfinished = folder / "checkpoints"
    training = Training(environment, folder, "--set", "total_steps=100000000")
    if moment == "at any time":
        time.sleep(6.0 * chance)
    elif moment == "training":
        training.wait_until(lambda: "transitions |" in training.said())
        time.sleep(2.0 * chance)
    else:
        # The first save after the start: any earlier leftovers are gone by then.
        training.wait_until(lambda: "transitions |" in training.said())
        training.wait_until(lambda: any(unfinished.glob(f"{checkpoint.UNFINISHED}*")))
        time.sleep(0.05 * chance)
    training.kill()
    return training.said()


def test_a_process_killed_at_30_random_moments_loses_nothing(environment, restore, tmp_path):
    """Each time it goes on from its last checkpoint, to the numbers of a run left alone."""
    draw, folder = random.Random(0), tmp_path / "run"
    kinds = ("training", "saving", "saving", "at any time")
    moments = [draw.choice(kinds) for _ in range(30)]
    standing, caught_saving = 0, 0
    for moment in moments:
        said = live_and_die(environment, folder, moment, draw.random())
        resumed = announced(said, "resumed from ")
        # Killed before it could tell, or it began where the one before was known to stand.
        assert resumed in ([], [standing]) and "Traceback" not in said
        caught_saving += any((folder / "checkpoints").glob(f"{checkpoint.UNFINISHED}*"))
        standing = check_nothing_is_lost_or_broken(folder, said, standing, restore)
    assert caught_saving > 0 and standing > 800
    # To an end, and beside a run that nothing disturbed.
    total = f"--total_steps={standing + 400}"
    for name in ("run", "alone"):
        training = Training(environment, tmp_path / name, total, "--set", "evaluations=0")
        assert training.process.wait(TIMEOUT) == 0, training.said()
    assert announced((tmp_path / "run.log").read_text(), "resumed from ") == [standing]
    rows, rows_alone = (learned(read_rows(tmp_path / name)) for name in ("run", "alone"))
    assert len(rows) == len(rows_alone) > 2 and rows == rows_alone
    assert not list((folder / "checkpoints").glob(f"{checkpoint.UNFINISHED}*"))


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 32 MB, which the test fills."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(place)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"mounting a file system takes root and Linux ({error})")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(place, left):
    """Fills a file system but for `left` bytes; returns the file that does."""
    path = place / "filler"
    handle = os.open(path, os.O_CREAT | os.O_WRONLY)
    try:
        while True:
            os.write(handle, bytes(4096))
    except OSError:
        os.close(handle)
    os.truncate(path, path.stat().st_size - left)
    return path


@pytest.mark.parametrize(
    ("seconds", "left", "says"),
    # No checkpoint after the first; one after every epoch, which takes more than is left.
    [(1e9, 0, "cannot write metrics in"), (0.0, 100_000, "cannot write the checkpoint")],
    ids=["metrics", "checkpoint"],
)
def test_a_full_disk_leaves_the_last_checkpoint(
    environment, restore, small_disk, tmp_path, seconds, left, says
):
    folder, log, endless = small_disk / "run", tmp_path / "log", ("--set", "total_steps=100000000")
    training = Training(environment, folder, *endless, seconds=seconds, log=log)
    training.wait_until(lambda: "checkpoint at" in training.said())
    training.process.send_signal(signal.SIGSTOP)
    filler = fill(small_disk, left)
    newest = checkpoint.newest(folder / "checkpoints")
    training.process.send_signal(signal.SIGCONT)
    assert training.process.wait(TIMEOUT) == 2, training.said()
    (error,) = [line for line in training.said().splitlines() if line.startswith("error: ")]
    assert says in error and "No space left on device" in error
    # tensorstore's futures may outlive Orbax's event loop, and say so; a frame of ours never shows.
    assert "mjx_qflex/runner" not in training.said()
    standing = checkpoint.newest(folder / "checkpoints")
    assert standing is not None and standing >= newest
    assert restore(folder).transitions == int(standing.name)
    assert not list((folder / "checkpoints").glob(f"{checkpoint.UNFINISHED}*"))
    filler.unlink()
    if says == "cannot write the checkpoint":
        more = f"--total_steps={int(standing.name) + 400}"
        again = Training(environment, folder, more, "--set", "evaluations=0", log=log)
        assert again.process.wait(TIMEOUT) == 0, again.said()
        assert announced(again.said(), "resumed from ") == [int(standing.name)]
