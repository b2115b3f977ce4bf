"""Checkpoints: bit for bit across a killed process, thin, atomic, and only for the same run."""

import gc
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_envs import Counter, random_algorithm

from mjx_qflex.errors import UserError
from mjx_qflex.runner import checkpoint
from mjx_qflex.sizes import LoopConfig
from mjx_qflex.training.loop import make_loop
from mjx_qflex.training.state import RunState

KEY = jax.random.PRNGKey(0)
FINGERPRINT = {"task": "counter", "algo": "random", "sizes": (1, 2)}


def build():
    config = LoopConfig(
        num_envs=8,
        batch_size=16,
        prefill_transitions=40,
        replay_capacity=2_000,
        steps_per_epoch=20,
        reset_pool=6,
        eval_envs=4,
    )
    return make_loop(Counter(poison_label=0.7), random_algorithm(2, 1), config)


def advance(loop, run, epochs):
    for _ in range(epochs):
        run, _ = loop.epoch(run)
    return run


def train_save_and_die(folder: str, how: str) -> None:
    """Trains two epochs, saves, and is killed: at once, or while it writes the next checkpoint."""
    loop = build()
    run = advance(loop, loop.prefill(loop.init(KEY)), 2)
    checkpoint.save(Path(folder), run, FINGERPRINT)
    if how == "while saving":
        write = checkpoint._write

        def write_and_die(path, leaves):
            write(path, leaves)
            os.kill(os.getpid(), signal.SIGKILL)

        checkpoint._write = write_and_die
        checkpoint.save(Path(folder), advance(loop, run, 1), FINGERPRINT)
    os.kill(os.getpid(), signal.SIGKILL)


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(a), jax.device_get(b))


@pytest.fixture(scope="module")
def loop():
    return build()


@pytest.fixture(scope="module")
def uninterrupted(loop):
    """The run of 2 + 2 epochs that nothing disturbed."""
    return advance(loop, loop.prefill(loop.init(KEY)), 4)


@pytest.mark.parametrize("how", ["after saving", "while saving"])
def test_killed_and_restored_run_goes_on_bit_for_bit(tmp_path, loop, uninterrupted, how):
    code = f"import test_checkpoint as t; t.train_save_and_die({str(tmp_path)!r}, {how!r})"
    here = Path(__file__).parent
    paths = os.pathsep.join([str(here), str(here.parent)])
    died = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": paths, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert died.returncode == -signal.SIGKILL, died.stderr
    unfinished = list(tmp_path.glob(f"{checkpoint.UNFINISHED}*"))
    assert len(unfinished) == (how == "while saving")

    run = checkpoint.restore(tmp_path, loop.shapes(), FINGERPRINT)
    assert run is not None and (run.epochs, run.transitions, run.updates) == (2, 360, 40)
    assert all(type(x) is int for x in (run.epochs, run.transitions, run.updates))
    run = advance(loop, run, 2)
    assert_same(run.device, uninterrupted.device)
    assert (run.epochs, run.transitions) == (uninterrupted.epochs, uninterrupted.transitions)
    # The next save clears what the killed one left.
    checkpoint.save(tmp_path, run, FINGERPRINT)
    assert not list(tmp_path.glob(f"{checkpoint.UNFINISHED}*"))


def test_only_the_newest_holds_replay_and_older_ones_their_learner(tmp_path, loop):
    run = loop.init(KEY)
    learners = []
    for _ in range(5):
        run = advance(loop, run, 1)
        learners.append(jax.device_get(run.learner))
        saved = checkpoint.save(tmp_path, run, FINGERPRINT)
        assert saved.num_bytes > loop.state_bytes and saved.seconds > 0
    folders = sorted(tmp_path.iterdir())
    assert len(folders) == 1 + checkpoint.KEPT_LEARNERS
    assert [(path / "state").exists() for path in folders] == [False, False, True]
    assert checkpoint.newest(tmp_path) == folders[-1]
    for path, learner in zip(folders, learners[-3:], strict=True):
        restored = checkpoint.restore_learner(path, loop.shapes().learner)
        assert jax.tree.structure(restored) == jax.tree.structure(learner)
        assert_same(restored, learner)


def test_saving_leaves_the_run_usable_and_saving_twice_is_harmless(tmp_path, loop):
    run = advance(loop, loop.init(KEY), 1)
    first = checkpoint.save(tmp_path, run, FINGERPRINT)
    assert checkpoint.save(tmp_path, run, FINGERPRINT).path == first.path
    advance(loop, run, 1)


def test_saving_again_and_again_leaves_no_objects_behind(tmp_path):
    leaves = {str(i): jnp.ones(3) for i in range(5)}

    def objects_after(transitions):
        for number in transitions:
            run = RunState({"learner": leaves, "x": jnp.ones(9)}, transitions=number)  # type: ignore[arg-type]
            checkpoint.save(tmp_path, run, {})
        gc.collect()
        return len(gc.get_objects())

    # Two objects a save would be 40; caches that fill once do so in one of the spans at most.
    counts = [objects_after(range(first, first + 20)) for first in (1, 21, 41)]
    assert min(after - before for before, after in itertools.pairwise(counts)) < 40


def test_nothing_to_restore(tmp_path, loop):
    assert checkpoint.restore(tmp_path / "absent", loop.shapes(), FINGERPRINT) is None
    assert checkpoint.newest(tmp_path) is None


@pytest.mark.parametrize(
    "dtype", [jnp.bfloat16, jnp.float16, jnp.float32, jnp.int8, jnp.int32, jnp.uint32, bool]
)
def test_leaves_of_any_type_and_size(tmp_path, dtype):
    leaves = [jnp.arange(6).reshape(2, 3).astype(dtype), jnp.ones((), dtype), jnp.zeros(0, dtype)]
    Pair = namedtuple("Pair", "a b")
    device = {"learner": {"x": Pair(*leaves[:2])}, "rest": (leaves[2], (), None, leaves[0][::-1])}
    run = RunState(device, epochs=3, transitions=2**40, updates=7)  # type: ignore[arg-type]
    checkpoint.save(tmp_path, run, {})
    shapes = RunState(jax.eval_shape(lambda: device))
    restored = checkpoint.restore(tmp_path, shapes, {})
    assert restored is not None and restored.transitions == 2**40
    assert jax.tree.structure(restored.device) == jax.tree.structure(device)
    jax.tree.map(lambda x, y: np.testing.assert_equal(x.dtype, y.dtype), device, restored.device)
    assert_same(restored.device, device)


def test_checkpoint_of_another_run_is_refused(tmp_path, loop):
    run = loop.init(KEY)
    checkpoint.save(tmp_path, run, FINGERPRINT)
    with pytest.raises(UserError, match="task=counter.*task=other"):
        checkpoint.restore(tmp_path, loop.shapes(), {**FINGERPRINT, "task": "other"})
    with pytest.raises(UserError, match="task=counter.*task=absent"):
        checkpoint.restore(tmp_path, loop.shapes(), {})
    # An option that is younger than the checkpoint; `configs.continued` knows its default.
    assert checkpoint.restore(tmp_path, loop.shapes(), {**FINGERPRINT, "extra": 1}) is not None
    learner = loop.shapes().learner
    learner["weight"] = jax.ShapeDtypeStruct((9,), jnp.float32)
    with pytest.raises(UserError, match=r"learner\.weight=float32\[2\].*float32\[9\]"):
        checkpoint.restore_learner(checkpoint.newest(tmp_path), learner)
    shapes = loop.shapes()
    narrower = RunState(shapes.device.replace(key=jax.ShapeDtypeStruct((2,), jnp.int32)))
    with pytest.raises(UserError, match=r"key=uint32\[2\].*key=int32\[2\]"):
        checkpoint.restore(tmp_path, narrower, FINGERPRINT)


@pytest.mark.parametrize("text", ["", "[]", "3", "{}", "null", b"\xff\x00", '{"fingerprint": 1}'])
def test_what_a_checkpoint_says_of_itself_is_checked(tmp_path, loop, text):
    path = checkpoint.save(tmp_path, loop.init(KEY), FINGERPRINT).path / "about.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match="about.json.*another") as caught:
        checkpoint.read_about(path.parent)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("item", ["learner", "state"])
def test_a_flipped_bit_is_found(tmp_path, loop, item):
    path = checkpoint.save(tmp_path, loop.init(KEY), FINGERPRINT).path
    about = checkpoint.read_about(path)
    assert set(about.checksums) == set(about.files)
    assert checkpoint.restore(tmp_path, loop.shapes(), FINGERPRINT) is not None
    name = next(name for name in about.files if name.startswith(item) and name.endswith("/0"))
    content = bytearray((path / name).read_bytes())
    content[len(content) // 2] ^= 1
    (path / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"damaged \({re.escape(name)}\)"):
        checkpoint.restore(tmp_path, loop.shapes(), FINGERPRINT)


@pytest.mark.parametrize("damaged", ["about.json", "state", "state/key/.zarray", "state/key/0"])
def test_damaged_checkpoint_is_one_line(tmp_path, loop, damaged):
    path = checkpoint.save(tmp_path, loop.init(KEY), FINGERPRINT).path
    if damaged == "state":
        shutil.rmtree(path / damaged)
    else:
        content = (path / damaged).read_bytes()
        (path / damaged).write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=rf"{re.escape(damaged)}.*another") as caught:
        checkpoint.restore(tmp_path, loop.shapes(), FINGERPRINT)
    assert "\n" not in str(caught.value)


def test_folder_that_cannot_be_written(tmp_path, loop):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot write the checkpoint"):
        checkpoint.save(tmp_path / "file", loop.init(KEY), FINGERPRINT)


def test_disk_that_cannot_hold_two_is_refused(tmp_path, loop, monkeypatch):
    usage = namedtuple("usage", "free")
    free = int(1.5 * loop.state_bytes)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(free))
    with pytest.raises(UserError, match="2 checkpoints need .* GiB.*loop.replay_capacity"):
        checkpoint.check_disk([tmp_path / "not" / "yet"], loop.state_bytes)
    # A run that goes on has one there already, which the next but one replaces.
    checkpoint.save(tmp_path, loop.init(KEY), FINGERPRINT)
    checkpoint.check_disk([tmp_path], loop.state_bytes)
    # Each of several runs leaves its checkpoint.
    with pytest.raises(UserError, match="3 checkpoints need"):
        checkpoint.check_disk([tmp_path, tmp_path / "other"], loop.state_bytes)
