"""The scripts of experiments/exploration: their functions on known cases, each on a tiny size."""

import csv
import importlib
import itertools
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_report
from tiny_runs import TINY

from mjx_qflex import algos, flow
from mjx_qflex import config as configs
from mjx_qflex.errors import UserError
from mjx_qflex.reports import comparison
from mjx_qflex.runner import assessment, checkpoint, driver, run_folder
from mjx_qflex.sweeps import sweep_file
from mjx_qflex.training.loop import make_loop
from mjx_qflex.types import Algorithm, EnvSpec, stateless_policy

FOLDER = Path(__file__).resolve().parents[1] / "experiments" / "exploration"
# Those of the shared tiny run, in the form of --set.
SETS = (
    "loop.num_envs=8", "loop.reset_pool=8",
    *(text for flag, text in itertools.pairwise(TINY) if flag == "--set"),
)  # fmt: skip


@pytest.fixture
def script(monkeypatch):
    """Imports a script by name."""
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module


@pytest.fixture(scope="module")
def run_folders(trained, tmp_path_factory):
    """Folders of the shared tiny run on the chain, and of an arm's run that only began."""
    arm = tmp_path_factory.mktemp("runs") / "arm"
    test_report.write_run(arm, sets=SETS, task="arm_reach")
    config = configs.load(arm)
    loop = make_loop(*driver.build(config), config.loop)
    begun = loop.init(jax.random.PRNGKey(0))
    checkpoint.save(arm / run_folder.CHECKPOINTS, begun, run_folder.fingerprint(config))
    return {"CHAIN": str(trained[0]), "ARM": str(arm)}


def table(folder, name):
    with (folder / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_finished_run_is_found_again_and_others_are_told_apart(script, trained, tmp_path):
    runs = script("study_runs")
    parser = runs.parser("A figure.", ["chain_reach"], total_steps=4000, seeds=1)
    flags = parser.parse_args([f"--logdir={tmp_path}", *(f"--set={text}" for text in SETS)])
    name = "-".join(["chain_reach", *SETS, "qflex", "4000", "s0"]).replace("algo.", "")
    shutil.copytree(trained[0], tmp_path / name)
    before = {path.name for path in tmp_path.rglob("*")}
    assert runs.chosen(flags, [("qflex", ())]) == [tmp_path / name]
    assert {path.name for path in tmp_path.rglob("*")} == before
    flags = parser.parse_args([f"--logdir={tmp_path}", "--runs", "a", "b"])
    assert runs.chosen(flags, [("qflex", ())]) == [Path("a"), Path("b")]


def test_a_preset_tuned_for_one_algorithm_is_no_comparison(script, tmp_path):
    runs = script("study_runs")
    parser = runs.parser("A figure.", ["ms_human_walk"], total_steps=4000, seeds=1)
    flags = parser.parse_args([f"--logdir={tmp_path}", "--preset=gpu"])
    with pytest.raises(UserError, match="tuned for qflex on ms_human_walk"):
        runs.chosen(flags, [("qflex", ()), ("crossq", ())])


def test_visited_states_are_different_and_from_whole_episodes(script, run_folders):
    runs = script("study_runs")
    config, trained = runs.restore(Path(run_folders["CHAIN"]))
    length = trained.env.episode_length
    obs = np.asarray(runs.visited(config, trained, runs.WORLDS * length, seed=0))
    assert len(np.unique(obs, axis=0)) == len(obs) == runs.WORLDS * length
    _, counts = np.unique(obs[:, -4:-2], axis=0, return_counts=True)
    assert (counts % length == 0).all()  # each episode's target is there at every step of it


def test_the_tip_varies_as_the_linearised_chain(script):
    """Small noise around a straight chain moves the tip across it only."""
    variance = script("end_effector_variance")
    for kind, expected in (
        ("relative, fixed", lambda std, share: std**2 * np.sum(share**2)),
        ("absolute, fixed", lambda std, share: std**2 / len(share)),
        ("relative, 1/A", lambda std, share: std**2 * np.sum(share**2) * 2 / len(share)),
        ("relative, 1/A^2", lambda std, share: std**2 * np.sum(share**2) * 4 / len(share) ** 2),
    ):
        share = np.arange(12, 0, -1) / 12  # of the chain that a joint turns
        found = variance.tip_variance(jnp.zeros(12), kind, 20_000, jax.random.key(0))
        np.testing.assert_allclose(found, expected(variance.STD, share), rtol=0.05)


def test_figure1_moves_by_the_librarys_ascent(script):
    figure1, figures = script("figure1"), script("figures")
    angles, target = figures.bent(6), jnp.array([0.1, 0.5])
    start = figure1.draws(jax.random.key(0), 5, 6)
    path = figure1.path(angles, target, start, 0.2)
    end = flow.ascend(
        lambda actions: figures.chain_value(angles, target[None], actions), start, 20, 0.2, False
    )
    np.testing.assert_allclose(path[-1], end, atol=1e-5)
    np.testing.assert_array_equal(path[0], start)
    tip = figures.tips(figures.bent(200), jnp.zeros((1, 200)))[0]
    np.testing.assert_allclose(np.linalg.norm(tip), 2 / np.pi, atol=1e-3)
    best = figure1.best_distances(50, 8, 16, jax.random.key(0))
    means = {name: float(values.mean()) for name, values in best.items()}
    assert means["flow, eta = 0.3 A"] < 0.5 * means["gaussian"]
    assert means["gaussian, equal Q calls"] < means["gaussian"]


def test_proposition1_measures_falls(script):
    proposition1 = script("proposition1")
    values = np.array([[0.0, 0.0], [4.0, 2.0], [3.0, 1.0], [9.0, 1.0]])
    found = proposition1.judge(values)
    assert found["largest_gain"] == 5.0 and found["last"] == 5.0
    assert found["drawdown"] == 1.0 and found["falling"] == pytest.approx(2 / 6)


def test_a_flow_by_prefixes_ends_where_the_sampler_ends(script):
    proposition1 = script("proposition1")
    config = algos.entry("qflex").config_class(width=8, depth=1)
    algorithm = algos.make("qflex", config, EnvSpec(3, 2))
    learner = algorithm.init(jax.random.key(0))
    obs = jax.random.normal(jax.random.key(1), (4, 3))

    def parts_of(obs):
        return algorithm.policy(learner).parts(obs)

    parts = parts_of(obs)
    start = parts.start(jax.random.normal(jax.random.key(2), (4, 2)))
    for grid in ("right", "left"):
        values = proposition1.flow_values(parts_of, obs, 5, grid)
        np.testing.assert_allclose(values[0], parts.value(start), atol=1e-5)
        end = flow.euler_sample(parts.velocity, start, 5, grid)
        np.testing.assert_allclose(values[-1], parts.value(end), atol=1e-5)
        assert np.ptp(values, axis=0).min() > 0


def test_figure9_finds_the_correlation_that_is_there(script):
    mixing = jnp.array([[0.1, 0.0, 0.0], [0.08, 0.06, 0.0], [0.0, 0.0, 0.1]])

    def sample(obs, key):
        return obs[:, :3] + jax.random.normal(key, (obs.shape[0], 3)) @ mixing.T

    algorithm = Algorithm(lambda key: (), lambda learner: stateless_policy(sample, sample))
    noise = script("figure9").measure(algorithm, (), jnp.zeros((3, 4)), 4096)
    expected = np.array([[1.0, 0.8, 0.0], [0.8, 1.0, 0.0], [0.0, 0.0, 1.0]])
    np.testing.assert_allclose(noise.correlation, expected, atol=0.04)
    np.testing.assert_allclose(noise.off_diagonal, 0.8 / 3, atol=0.03)
    np.testing.assert_allclose(noise.std, 0.1, rtol=0.03)
    # Eigenvalues 1.8, 0.2 and 1: (1.8 + 0.2 + 1)^2 / (1.8^2 + 0.2^2 + 1).
    np.testing.assert_allclose(noise.dimensions, 9.0 / 4.28, rtol=0.05)


def test_figure5_reads_one_setting_at_a_time_and_a_grid(script, tmp_path):
    figure5 = script("figure5")
    folders = [test_report.write_run(tmp_path / "plain")]
    for text in ("algo.ascent_steps=5", "algo.ascent_step_size=0.1", "algo.ascent_steps=80"):
        folders.append(test_report.write_run(tmp_path / text, sets=[text]))
    groups = comparison.group([comparison.read_run(folder) for folder in folders])
    line = figure5.along(groups, "algo.ascent_steps")
    assert [item.settings["algo.ascent_steps"] for item in line] == [5, 20, 80]
    line = figure5.along(groups, "algo.ascent_step_size")
    assert [item.settings["algo.ascent_step_size"] for item in line] == [0.01, 0.1]
    figure5.main(["--runs", *map(str, folders), f"--output={tmp_path}"])
    assert len(table(tmp_path, "figure5")) == 3 + 2 + 1


def test_figure8_compares_what_the_folders_hold(script, tmp_path):
    finals = {
        "flow": ("qflex", [], (5.0, 7.0)),
        "none": ("qflex", ["algo.euler_steps=0"], (6.0, 4.0)),
    }
    folders = [
        test_report.write_run(tmp_path / f"{name}{seed}", seed, value, sets, algo)
        for name, (algo, sets, values) in finals.items()
        for seed, value in enumerate(values)
    ]
    script("figure8").main(["--runs", *map(str, folders), f"--output={tmp_path}"])
    flow_on, flow_off = table(tmp_path, "figure8")
    assert float(flow_on["return_value"]) == 6.0 and float(flow_off["return_value"]) == 5.0
    assert float(flow_off["above_first_value"]) == 0.25  # of four pairs only 6 > 5


TINY_FLAGS = {
    "end_effector_variance": ["--counts", "10", "20", "--samples=100"],
    "figure1": ["--counts", "2", "5", "--shown", "2", "--samples=4", "--targets=3"],
    "table5": ["--algos", "sac", "--counts", "3", "--worlds=2", "--batch=8",
               "--set=algo.width=8"],
    "figure4": ["--runs", "CHAIN", "--episodes=4"],
    "figure9": ["--runs", "CHAIN", "--states=16", "--draws=16"],
    "proposition1": ["--runs", "CHAIN", "--samples=16", "--quick"],
    "table4": ["--runs", "ARM", "--episodes=2"],
}  # fmt: skip


@pytest.mark.parametrize("name", TINY_FLAGS)
def test_scripts_run_on_tiny_sizes(script, run_folders, tmp_path, monkeypatch, name):
    module = script(name)
    if name == "table5":
        monkeypatch.setattr(module, "BUDGET_S", 0.0)
    flags = [run_folders.get(flag, flag) for flag in TINY_FLAGS[name]]
    output = tmp_path / "not" / "there yet"
    module.main([*flags, f"--output={output}"])
    tables = list(output.glob("*.csv"))
    assert tables
    for path in tables:
        numbers = table(output, path.stem)
        assert numbers and all(cell != "" for row in numbers for cell in row.values())
    for path in output.glob("*.png"):
        assert path.stat().st_size > 1000


def test_every_script_is_tried():
    scripts = {path.stem for path in FOLDER.glob("*.py")} - {"figures", "study_runs"}
    assert scripts == {*TINY_FLAGS, "figure5", "figure8", "learning"}


def test_learning_gathers_finished_runs_and_keeps_those_of_before(
    script, trained, tmp_path, capsys
):
    learning, (run, *_) = script("learning"), trained
    for seed in (0, 1):
        folder = tmp_path / "runs" / "chain-8" / "qflex" / f"s{seed}"
        shutil.copytree(run, folder)
        config = folder / configs.FILE_NAME
        config.write_text(config.read_text().replace('"seed": 0', f'"seed": {seed}'))
    begun = tmp_path / "runs" / "chain-8" / "sac" / "s0"
    shutil.copytree(run, begun)
    (begun / "evaluation.json").unlink()

    learning.main([f"--logdir={tmp_path / 'runs'}", f"--output={tmp_path}"])
    rows = table(tmp_path, "learning")
    assert {(row["task"], row["algorithm"], row["seed"]) for row in rows} == {
        ("chain-8", "qflex", "0"), ("chain-8", "qflex", "1"),
    }  # fmt: skip
    gain = assessment.load(run)["trained_minus"]["idle"]["mean"]
    (result,) = table(tmp_path, "learning_final")
    assert float(result["gain_value"]) == pytest.approx(gain, abs=1e-3)
    shown = learning._short(gain)
    assert f"| qflex | {shown} ({shown}, {shown}) |" in capsys.readouterr().out
    assert result["seeds"] == "2"

    shutil.rmtree(tmp_path / "runs" / "chain-8" / "qflex" / "s1")
    learning.main([f"--logdir={tmp_path / 'runs'}", f"--output={tmp_path}"])
    assert len(table(tmp_path, "learning")) == len(rows)


def test_the_studys_lines_train_alike_on_each_body_and_hold_all_that_its_table_shows(script):
    learning, tuned, tuning = (
        sweep_file.read(FOLDER / f"{name}.toml").runs for name in ("learning", "tuned", "tuning")
    )
    num_actuators = script("learning").num_actuators
    first = learning[0].config
    steps = {}  # of each body, the first line's
    for run in (*learning, *tuned, *tuning):
        body = run.group.split("/")[0]
        assert run.config.loop == first.loop
        assert run.config.total_steps == steps.setdefault(body, run.config.total_steps)
        assert run.config.algo_config.width == first.algo_config.width
    for run in tuned:
        actuators = num_actuators(run.group.split("/")[0])
        assert run.config.algo_config.ascent_step_size == pytest.approx(0.02 * actuators)
    for name, runs in {"learning": (*learning, *tuned), "tuning": tuning}.items():
        planned = {(run.group, str(run.seed)): run.config.total_steps for run in runs}
        ends = {
            (f"{row['task']}/{row['algorithm']}", row["seed"]): float(row["transitions"])
            for row in table(FOLDER, name)  # the last point of a run is its end
        }
        assert ends.keys() <= planned.keys()
        for run, end in ends.items():
            assert planned[run] <= end < 1.01 * planned[run], run
