"""The command that measures: its flags, its files, and its arithmetic."""

import json

import jax
import jax.numpy as jnp
import pytest
from conftest import ROOT
from tiny_runs import finish

from mjx_qflex import benchmark
from mjx_qflex.benchmarking import cases, comparisons, flops, machine, page
from mjx_qflex.benchmarking.channel import Failed, Side
from mjx_qflex.benchmarking.sides import Spec
from mjx_qflex.benchmarking.timing import Spread, calibrated, spread

SIZES = (
    "--set", "loop.steps_per_epoch=4", "--set", "loop.batch_size=8", "--set", "algo.width=8",
    "--set", "loop.replay_capacity=400", "--set", "loop.prefill_transitions=100",
    "--set", "loop.updates_per_step=2", "--seconds=0.01", "--repeats=2",
)  # fmt: skip


@pytest.fixture(scope="module")
def measured(command, tmp_path_factory):
    """Results of two tiny cases, by the command: their folder, and what it printed."""
    folder = tmp_path_factory.mktemp("benchmark") / "tiny"
    process = command(
        "benchmark", "--task=chain_reach", "--algo=sac", "--num_envs", 4, 8, "--batch_size", 16,
        *SIZES, f"--output={folder}",
    )  # fmt: skip
    code, out, err = finish(process)
    assert code == 0, out + err
    return folder, out


@pytest.fixture(scope="module")
def compared(command, tmp_path_factory):
    """Results of a tiny comparison with brax on one core: their folder, and what it printed."""
    folder = tmp_path_factory.mktemp("benchmark") / "compared"
    process = command(
        "benchmark", "--task=chain_reach", "--algo=sac", "--num_envs=4", "--compare", "brax",
        "--cores=1", *SIZES, f"--output={folder}",
    )  # fmt: skip
    code, out, err = finish(process)
    assert code == 0, out + err
    return folder, out


def read(folder):
    return json.loads((folder / page.FILE_NAME).read_text())


def test_says_where_it_was_measured(measured):
    results = read(measured[0])
    here = results["machine"]
    assert here["cores"] >= 1 and here["memory_gib"] > 0.1 and here["cpu"]
    assert {"jax", "jaxlib", "mujoco", "brax", "mjx_qflex"} <= set(here["versions"])
    assert here["commit"] is None or len(here["commit"]) >= 7
    assert results["quiet"]["load_average_before"] >= 0.0 and results["quiet"]["seconds"] > 0.0
    assert results["command"].startswith("python -m mjx_qflex.benchmark --task=chain_reach")
    assert results["peaks"]["attained_here"]["float32_tflops"] > 1e-4


def test_measures_every_part(measured):
    small, large = read(measured[0])["cases"]
    assert (small["num_envs"], large["num_envs"]) == (4, 8)
    for case in (small, large):
        assert case["updates_per_transition"] == 2 / case["num_envs"]
        rates = [case[name] for name in page.RATES if name != "physics_steps_per_s"]
        for rate in [*rates, case["acting_latency_s"], *case["updates_per_s"].values()]:
            assert 0.0 < rate["low"] <= rate["median"] <= rate["high"]
        assert set(case["updates_per_s"]) == {"8", "16"}
        assert set(case["shares"]) == set(cases.SHARES)
        assert sum(case["shares"].values()) == pytest.approx(1.0)
        assert all(share >= 0.0 for share in case["shares"].values())
        assert {"epoch", "update 8", "sample", "act one"} <= set(case["compile_seconds"])
        assert all(seconds > 0.0 for seconds in case["compile_seconds"].values())
        # A step's updates and transitions are two views of one time.
        ratio = case["trained_updates_per_s"]["median"] / case["transitions_per_s"]["median"]
        assert ratio == pytest.approx(case["updates_per_transition"])
        assert 0.01 < case["peak_memory_gib"] < 16.0
        assert case["flops"]["update"]["products"] > 0.0
    assert "physics_steps_per_s" not in small  # a chain has none


def test_compiling_is_no_part_of_the_time(measured):
    """An epoch of four steps takes milliseconds, and to compile at least a hundred."""
    for case in read(measured[0])["cases"]:
        epoch = 4 * case["num_envs"] / case["transitions_per_s"]["median"]
        assert case["compile_seconds"]["epoch"] > 2.0 * epoch


def test_leaves_a_table_a_csv_and_a_picture(measured, tmp_path):
    folder, out = measured
    results = read(folder)
    text = (folder / "results.md").read_text()
    assert text == page.as_markdown(results) and text in out
    assert (folder / "plot.png").read_bytes()[:4] == b"\x89PNG"
    rows = (folder / "results.csv").read_text().splitlines()
    assert rows[0].startswith("kind,task,algo,num_envs") and len(rows) > 20
    page_file = folder.parent / "README.md"
    page_file.write_text(f"before\n{page.BEGIN}\nold\n{page.END}\nafter\n")
    assert benchmark.main([f"--table={folder.parent}"]) == 0
    written = page_file.read_text()
    assert written.startswith("before\n") and written.endswith("after\n")
    assert "old" not in written and text.splitlines()[4] in written


def test_takes_turns_with_brax(compared):
    folder, out = compared
    (one,) = read(folder)["comparisons"]
    assert one["kind"] == "brax" and one["cores"] == 1 and one["failed"] == {}
    assert set(one["sides"]) == {"ours", "brax"}  # a chain has no raw MJX model
    for side in one["sides"].values():
        assert side["compile_seconds"] > 0.0 and len(side["rounds"]) == 2
        for rates in side["rounds"]:  # equal updates per transition on both sides
            assert rates["updates/s"] / rates["transitions/s"] == pytest.approx(2 / 4)
    ours, brax = (one["sides"][name]["rounds"] for name in ("ours", "brax"))
    expected = sorted(
        a["transitions/s"] / b["transitions/s"] for a, b in zip(ours, brax, strict=True)
    )
    ratio = one["ratios"]["brax"]["transitions/s"]
    assert (ratio["low"], ratio["high"]) == pytest.approx(expected)
    assert "brax's SAC, same ported task" in out


def test_ratios_are_taken_turn_by_turn():
    rounds = {
        "ours": [{"x/s": 10.0, "y/s": 1.0}, {"x/s": 20.0, "y/s": 1.0}, {"x/s": 90.0, "y/s": 1.0}],
        "peer": [{"x/s": 5.0}, {"x/s": 40.0}, {"x/s": 30.0}],
    }
    found = comparisons.ratios(rounds, "ours")
    assert found == {"peer": {"x/s": {"median": 2.0, "low": 0.5, "high": 3.0, "repeats": 3}}}
    assert comparisons.ratios({"peer": rounds["peer"]}, "ours") == {}


def test_shares_sum_to_one():
    parts = {name: 0.1 for name in cases.SHARES if name != "rest"}
    found = cases.shares(parts, 1.0)
    assert found["shares"]["rest"] == pytest.approx(0.3)
    assert found["parts_over_step"] == pytest.approx(0.7)
    found = cases.shares(parts, 0.35)
    assert found["shares"]["rest"] == 0.0 and found["parts_over_step"] == pytest.approx(2.0)
    assert sum(found["shares"].values()) == pytest.approx(1.0)


def test_medians_and_rates():
    seconds = spread([0.5, 0.1, 0.2])
    assert seconds == Spread(0.2, 0.1, 0.5, 3)
    assert seconds.rate(10.0) == Spread(50.0, 20.0, 100.0, 3)


def test_finds_how_often_to_repeat():
    calls = []

    def seconds_of(number):
        calls.append(number)
        return 1e-3 * number

    assert calibrated(seconds_of, 1.0) == pytest.approx(1000, rel=0.01)
    assert calls[:2] == [1, 1]  # the first call warms up
    assert calibrated(lambda number: 5.0 * number, 1.0) == 1


def test_counts_what_xla_counts_and_loops_besides():
    x, w = jnp.ones((32, 64)), jnp.ones((64, 16))

    def layer(x, w):
        return jnp.maximum(x @ w, 0.0)

    analysis = jax.jit(layer).lower(x, w).compile().cost_analysis()
    counted = flops.count(layer, x, w)
    assert counted == flops.Flops(2 * 32 * 64 * 16, 32 * 16)
    assert counted.total == pytest.approx(analysis["flops"], rel=0.02)
    square = jnp.ones((16, 16))
    scanned = flops.count(
        lambda x: jax.lax.scan(lambda c, _: (c @ square, None), x, length=7), x[:16, :16]
    )
    assert scanned.products == 7 * 2 * 16**3
    branches = flops.count(
        lambda x: jax.lax.cond(x[0, 0] > 0, lambda x: x @ square @ square, lambda x: x, x),
        square,
    )
    assert branches.products == 2 * 2 * 16**3


def test_warns_of_a_busy_machine():
    quiet = {"cores_used_by_others": 0.0, "cores_stolen_by_the_host": 0.0}
    assert machine.warnings(quiet) == []
    assert "1.50 cores" in machine.warnings(quiet | {"cores_used_by_others": 1.5})[0]
    assert machine.load_warnings(0.1, 2) == []
    assert "3.00 on 2 cores" in machine.load_warnings(3.0, 2)[0]


def test_a_side_that_cannot_or_takes_too_long_is_named():
    chain = Spec("host", "chain_reach", "sac", "cpu", 4).as_json()
    with Side(chain) as side, pytest.raises(Failed, match="simulates no body"):
        side.answer(60.0)
    with Side(chain) as side, pytest.raises(Failed, match="not done in 0 s"):
        side.answer(0.01)


@pytest.mark.parametrize(
    "flags, message",
    [
        ([], "no task given"),
        (["--task=chain_reech"], "did you mean 'chain_reach'"),
        (["--task=chain_reach", "--algo=sacc"], "did you mean 'sac'"),
        (["--task=chain_reach", "--algo=ppo"], "ppo has no replay"),
        (["--task=chain_reach", "--repeats=0"], "--repeats is 0"),
        (["--task=chain_reach", "--seconds=-1"], "--seconds is -1"),
        (["--task=chain_reach", "--num_envs=0"], "--num_envs is 0"),
        (["--task=chain_reach", "--set", "loop.updates_per_step=0"], "updates_per_step is 0"),
        (["--task=chain_reach", "--set", "loop.replay_capacity=0"], "give a number"),
        (["--task=chain_reach", "--compare", "brox"], "did you mean 'brax'"),
        (["--task=chain_reach", "--compare", "host"], "simulates no body"),
        (["--task=chain_reach", "--compare", "brax"], "brax has no qflex"),
        (["--task=chain_reach", "--compare", "brax", "--cores=999"], "--cores=999"),
        (["--task=chain_reach", "--cores=1"], "--cores is for --compare"),
        (["--table=no/such/folder"], "no results.json"),
    ],
)
def test_bad_input_takes_one_line(flags, message, capsys):
    assert benchmark.main(flags) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1 and err.startswith("error: ")


def test_committed_tables_are_those_of_the_committed_numbers():
    folder = ROOT / "experiments" / "benchmark"
    text = (folder / "README.md").read_text()
    inside = text.split(page.BEGIN)[1].split(page.END)[0]
    for results in page.read(folder):
        assert page.as_markdown(results) in inside
