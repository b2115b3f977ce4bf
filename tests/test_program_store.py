"""Compiled programs that outlive their process: found again, never stale, never in the way."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import absent_sources_skip
from tiny_runs import TINY, finish, learned, read_rows, wait_for

from mjx_qflex import tasks
from mjx_qflex.algos import sac
from mjx_qflex.runner import program_store
from mjx_qflex.training.program import Program

ARGUMENTS = (jnp.arange(4.0), {"x": jnp.float32(2.0)})
# A donated argument, and a factor by LAPACK.
KEPT = """
import sys
from pathlib import Path
import jax, jax.numpy as jnp
from mjx_qflex.training.program import Program
from mjx_qflex.runner.program_store import ProgramStore

def step(x, matrix):
    print("traced")
    return x + 1, jnp.linalg.cholesky(matrix)

program = Program(step, donate=(0,))
program.store = ProgramStore(Path(sys.argv[1]), "this", print).of("step", 3)
x, matrix = jnp.arange(5.0), 4.0 * jnp.eye(3)
shapes = program.shapes(x, matrix)
first, factor = program(x, matrix)
assert jax.tree.map(lambda a: (a.shape, a.dtype), (first, factor)) == jax.tree.map(
    lambda a: (a.shape, a.dtype), shapes)
assert x.is_deleted()
print(first.tolist(), factor[1].tolist())
"""


@pytest.fixture
def store(tmp_path):
    """A store, and the lines that it said."""
    words: list[str] = []
    return program_store.ProgramStore(tmp_path / "kept", "these", words.append), words


def keeping(store, function=lambda x, tree: x * tree["x"]):
    """A program of `function` that is kept in `store`, and how often it was traced."""
    traces = []

    def traced(*args):
        traces.append(None)
        return function(*args)

    program = Program(traced)
    program.store = store
    return program, traces


def test_another_process_runs_what_the_first_compiled(environment, tmp_path):
    def run():
        command = [sys.executable, "-c", KEPT, str(tmp_path)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.splitlines()

    first, second = run(), run()
    assert first == ["traced", "[1.0, 2.0, 3.0, 4.0, 5.0] [0.0, 2.0, 0.0]"]
    assert second == first[1:]


def test_a_program_is_loaded_where_all_is_the_same(store):
    one, words = store
    program, traces = keeping(one.of("f"))
    result = program(*ARGUMENTS)
    again, traces_again = keeping(one.of("f"))
    assert again.shapes(*ARGUMENTS) == jax.ShapeDtypeStruct((4,), jnp.float32)
    np.testing.assert_array_equal(again(*ARGUMENTS), result)
    assert (len(traces), len(traces_again), words) == (1, 0, [])
    # Other arguments, another name, other makings: traced, and none of them the other's.
    (x, tree), others = (
        ARGUMENTS,
        [one.of("g"), dataclasses.replace(one, made_from="those").of("f")],
    )
    for other, args in [(one.of("f"), (x[:3], tree)), *((other, ARGUMENTS) for other in others)]:
        changed, traces = keeping(other, lambda x, tree: x - tree["x"])
        np.testing.assert_array_equal(changed(*args), args[0] - 2.0)
        assert len(traces) == 1
    assert not program_store._read(one.folder)


def test_code_that_changes_nothing_of_the_program_shares_its_executable(store):
    one, _ = store
    keeping(one)[0].compile(*ARGUMENTS)
    before = set(one.folder.iterdir())
    other, traces = keeping(dataclasses.replace(one, made_from="those"))
    other.compile(*ARGUMENTS)
    (new,) = set(one.folder.iterdir()) - before
    assert len(traces) == 1 and new.suffix != program_store.EXECUTABLE


def test_large_constants_are_part_of_the_program(store):
    one, _ = store
    constant = np.zeros(100_000, np.float32)
    for changed in (0.0, 1.0):
        constant[50_000] = changed
        store_of_each = dataclasses.replace(one, made_from=str(changed))
        program, _ = keeping(store_of_each, lambda x: x + jnp.asarray(constant))
        assert float(program(jnp.zeros(100_000)).sum()) == changed


@pytest.mark.parametrize("damage", [b"", b"nonsense", None])
def test_a_damaged_file_is_compiled_anew(store, damage):
    one, words = store
    keeping(one)[0].compile(*ARGUMENTS)
    (kept,) = one.folder.glob(f"*{program_store.EXECUTABLE}")
    kept.write_bytes(kept.read_bytes()[:-100] if damage is None else damage)
    program, traces = keeping(one)
    np.testing.assert_array_equal(program(*ARGUMENTS), ARGUMENTS[0] * 2)
    assert len(traces) == 1 and words and all(str(kept) in line for line in words)
    words.clear()
    keeping(one)[0].compile(*ARGUMENTS)
    assert words == []


def test_a_folder_that_cannot_be_written_to_is_one_line(store):
    one, words = store
    one.folder.write_text("in the way")
    program, _ = keeping(one)
    np.testing.assert_array_equal(program(*ARGUMENTS), ARGUMENTS[0] * 2)
    assert len(words) == 1 and str(one.folder) in words[0]


def test_what_was_not_used_for_longest_goes_first(tmp_path, monkeypatch):
    monkeypatch.setattr(program_store, "MAX_BYTES", 250)
    for age, name in enumerate("dacb"):
        (tmp_path / name).write_bytes(bytes(100))
        os.utime(tmp_path / name, (1_000 - age, 1_000 - age))
    assert program_store._read(tmp_path / "b")  # used now
    program_store._prune(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"b", "d"}


def test_the_digest_of_an_environment_knows_every_number_in_it():
    made = [program_store.digest(tasks.make("arm_reach")) for _ in range(2)]
    assert made[0] == made[1]
    assert program_store.digest(tasks.make("arm_reach", num_actuators=12)) != made[0]
    env = tasks.make("arm_reach")
    env.body.source.body_mass[1] += 1e-9
    assert program_store.digest(env) != made[0]
    env = tasks.make("arm_reach")
    env.body.tree.mass[1] += 1e-3
    assert program_store.digest(env) != made[0]


# The walk's siblings are made of the same things.
@pytest.mark.parametrize("name", sorted(set(tasks.TASKS) - {"ms_human_run", "ms_human_dance"}))
def test_every_task_has_a_digest(name):
    with absent_sources_skip():
        env = tasks.make(name)
    assert program_store.digest(env)


def test_what_has_no_known_contents_is_not_kept(tmp_path):
    config = sac.PRESETS["default"]
    env = tasks.make("chain_reach")
    assert program_store.open_store(tmp_path, config, env, print) is not None
    assert program_store.open_store(None, config, env, print) is None
    env.stream = open(os.devnull)  # noqa: SIM115
    assert program_store.open_store(tmp_path, config, env, print) is None
    env.stream.close()

    class Mine(type(env)):
        pass

    assert program_store.open_store(tmp_path, config, Mine(env.config), print) is None
    with pytest.raises(program_store.Unknown):
        program_store.digest(np.array([object()]))


def test_a_digest_tells_apart(tmp_path):
    function = lambda: None  # noqa: E731
    values = [
        None, 0, 0.0, False, "0", b"0", (), [], {}, (0,), ((0,), 0), ((0, 0),), {0: 1}, {1: 0},
        np.zeros(2), np.zeros(2, np.float32), np.zeros((1, 2)), jnp.zeros(2), {0}, {1}, Path("0"),
        slice(0), int, float, function, sac.PRESETS["default"],
        dataclasses.replace(sac.PRESETS["default"], width=3),
    ]  # fmt: skip
    assert len({program_store.digest(value) for value in values}) == len(values)
    shared = np.zeros(3)
    assert program_store.digest([shared, shared]) == program_store.digest([shared, shared])


def test_caching_can_be_turned_off():
    assert not jax.config.jax_enable_compilation_cache  # as conftest says
    assert program_store.enable(print) is None


def test_a_cache_folder_that_is_broken_is_one_line(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("MJX_QFLEX_CACHE", str(tmp_path / "file"))
    words: list[str] = []
    jax.config.update("jax_enable_compilation_cache", True)
    try:
        assert program_store.enable(words.append) is None
    finally:
        jax.config.update("jax_enable_compilation_cache", False)
    assert len(words) == 1 and str(tmp_path / "file") in words[0]
    assert jax.config.jax_compilation_cache_dir is None


def test_the_second_start_of_a_command_compiles_nothing(environment, tmp_path):
    """In a user's cache folder, which nothing but its variable names."""
    own = {key: value for key, value in environment.items() if key != "JAX_COMPILATION_CACHE_DIR"}
    cache = tmp_path / "cache"

    def train(name):
        flags = [*TINY, "--total_steps=1200", "--no-video", f"--logdir={tmp_path / name}"]
        process = subprocess.Popen(
            [sys.executable, "-m", "mjx_qflex.train", *flags],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**own, "MJX_QFLEX_CACHE": str(cache)},
        )
        code, out, err = finish(process)
        assert (code, err) == (0, ""), out + err
        return out

    first = train("first")
    assert "compiled epoch" in first and "loaded" not in first
    (machine,) = (cache / "compiled").iterdir()
    assert list((machine / program_store.EXECUTABLES).iterdir())
    assert list((machine / program_store.JAX).glob("*-cache"))
    second = train("second")
    assert "compiled" not in second.replace("as compiled before", "")
    for name in ("prefill", "epoch"):
        assert f"loaded {name}, as compiled before, in" in second
    assert learned(read_rows(tmp_path / "first")) == learned(read_rows(tmp_path / "second"))


@pytest.mark.slow
def test_the_second_start_of_ms_human_walk_takes_less_than_half(environment, tmp_path):
    """CPU seconds to the first step, by `experiments/start_up/measure.py`'s way of counting."""
    own = {key: value for key, value in environment.items() if not key.startswith("JAX_")}

    def start(name):
        process = subprocess.Popen(
            [sys.executable, "-m", "mjx_qflex.train", "--task=ms_human_walk", "--preset=cpu",
             f"--logdir={tmp_path / name}"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**own, "JAX_PLATFORMS": "cpu", "MJX_QFLEX_CACHE": str(tmp_path / "cache")},
        )  # fmt: skip
        wait_for(process, "filling the replay")
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        process.kill()
        process.communicate()
        return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")

    first, second = start("first"), start("second")
    assert second < first / 2 and second < 15
