"""Run folders with something wrong in them: one line each, and nothing lost."""

import json
import shutil

import pytest
import toy_envs
from conftest import compiling_once

from mjx_qflex import config as configs
from mjx_qflex import evaluate, presets, report
from mjx_qflex.errors import UserError
from mjx_qflex.interrupt import Interrupt, Interrupted
from mjx_qflex.reports import reporting
from mjx_qflex.runner import driver, metrics, run_folder

SIZES = (
    "loop.num_envs=4", "loop.batch_size=8", "loop.steps_per_epoch=10", "loop.replay_capacity=400",
    "loop.prefill_transitions=40", "loop.reset_pool=4", "loop.eval_envs=4", "evaluations=2",
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def toy_task(tmp_path_factory):
    """Puts a toy in place of the task."""
    env = toy_envs.ActionReward()
    algorithm = toy_envs.random_algorithm(env.observation_size, env.action_size)
    with pytest.MonkeyPatch.context() as patch, compiling_once(tmp_path_factory.mktemp("compiled")):
        patch.setattr(driver, "build", lambda config: (env, algorithm))
        yield


def resolve(*sets, total_steps=100):
    return presets.resolve(
        "chain_reach", total_steps=total_steps, sets=[*SIZES, *sets], device="cpu"
    )


def train(folder, config, say=lambda line: None):
    with Interrupt(say) as interrupt:
        driver.train(config, folder, reporting.writer("command", say), interrupt, say, video=False)


@pytest.fixture(scope="module")
def finished(toy_task, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    train(folder, resolve())
    return folder


@pytest.fixture
def copied(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    return folder


def changed(path, **entries):
    found = json.loads(path.read_text()) | entries
    path.write_text(json.dumps(found))


DAMAGES = {
    "binary metrics": lambda run: (run / "metrics.csv").write_bytes(bytes(range(256))),
    "metrics with a null byte": lambda run: (run / "metrics.csv").write_text("transitions\n\0\n"),
    "a letter in a cell": lambda run: (run / "metrics.csv").write_text("transitions,a\n80,x\n"),
    "an infinite step": lambda run: (run / "metrics.csv").write_text("transitions\ninf\n"),
    "no column": lambda run: (run / "metrics.csv").write_text("a,b\n1,2\n"),
    "metrics with a short line": lambda run: (run / "metrics.csv").write_text(
        "transitions,a\n80\n90,1\n"
    ),
    "metrics is a folder": lambda run: put_folder(run / "metrics.csv"),
    "config is empty": lambda run: (run / "config.json").write_text(""),
    "config is a list": lambda run: (run / "config.json").write_text("[]"),
    "config is a folder": lambda run: put_folder(run / "config.json"),
    "config has no loop": lambda run: changed(run / "config.json", loop=None),
    "config has a text for a number": lambda run: changed(run / "config.json", total_steps="100"),
    "config has a list for a text": lambda run: changed(run / "config.json", task=["chain_reach"]),
    "config has true for a seed": lambda run: changed(run / "config.json", seed=True),
    "checkpoints is a file": lambda run: put_file(run / "checkpoints"),
    "evaluation is empty": lambda run: (run / "evaluation.json").write_text(""),
    "evaluation is binary": lambda run: (run / "evaluation.json").write_bytes(b"\xff\xfe\0"),
    "evaluation has no policies": lambda run: (run / "evaluation.json").write_text("{}"),
    "evaluation has other types": lambda run: changed(run / "evaluation.json", policies={"a": 3}),
    "evaluation is a folder": lambda run: put_folder(run / "evaluation.json"),
}


def put_folder(path):
    path.unlink()
    path.mkdir()


def put_file(path):
    shutil.rmtree(path)
    path.write_text("")


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_run_is_one_line_and_stays_as_it_is(copied, damage):
    DAMAGES[damage](copied)
    before = {p: p.is_file() and p.read_bytes() for p in copied.rglob("*")}
    with pytest.raises(UserError, match=str(copied)) as caught:
        train(copied, resolve(total_steps=200))
        train(copied, resolve(total_steps=200))
    assert "\n" not in str(caught.value)
    assert {p: p.is_file() and p.read_bytes() for p in copied.rglob("*")} == before


@pytest.mark.parametrize(
    "damage", [name for name in DAMAGES if name.startswith(("config", "checkpoints"))]
)
def test_evaluating_a_damaged_run_is_one_line(copied, damage, capsys):
    DAMAGES[damage](copied)
    assert evaluate.main([f"--run={copied}", "--episodes=4", "--no-video"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"task": 3}', '{"task": "a", "algo": "b"}'])
def test_a_damaged_summary_is_one_line_and_the_evaluation_is_kept(copied, capsys, text):
    (copied / "evaluation.json").unlink()
    (copied / "summary.json").write_text(text)
    assert evaluate.main([f"--run={copied}", "--episodes=4", "--no-video"]) == 2
    err = capsys.readouterr().err
    assert "summary.json" in err and err.count("\n") == 1
    assert json.loads((copied / "evaluation.json").read_text())["episodes"] == 4


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_page_is_made_of_what_can_be_read(finished, copied, tmp_path, capsys, damage):
    DAMAGES[damage](copied)
    output = tmp_path / "page.html"
    assert report.main([str(finished), str(copied), f"--output={output}"]) == 0
    err = capsys.readouterr().err
    assert output.stat().st_size > 1000
    assert damage.startswith(("config has", "checkpoints")) or "warning: " in err


def test_what_was_stopped_before_it_trained_does_not_hold_the_folder(tmp_path):
    """The command of before may have been wrong; the corrected one takes its place."""
    folder = tmp_path / "run"

    def stop(line):
        if line.startswith(("compiling init", "loaded init")):
            raise Interrupted

    with pytest.raises(Interrupted):
        train(folder, resolve("loop.batch_size=9"), stop)
    assert configs.load(folder).loop.batch_size == 9
    train(folder, resolve())
    assert configs.load(folder) == resolve()
    with pytest.raises(UserError, match="loop.batch_size=8"):
        train(folder, resolve("loop.batch_size=9"))


@pytest.mark.parametrize("left", [metrics.FILE_NAME, "evaluation.json"])
def test_results_without_their_checkpoints_hold_the_folder(copied, left):
    for path in copied.iterdir():
        if path.name not in ("config.json", left):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(UserError, match="loop.batch_size=8"):
        run_folder.settle(resolve("loop.batch_size=9"), copied)


@pytest.mark.parametrize("name", ["x" * 300, "a\0b"])
def test_a_folder_of_an_impossible_name_is_refused(tmp_path, name):
    with pytest.raises(UserError, match="cannot write in the run folder"):
        train(tmp_path / name, resolve())


def test_worlds_that_break_are_spoken_of_at_once(tmp_path, monkeypatch):
    """Every episode ends non-finite: said after the first epoch, once."""
    env = toy_envs.Counter(death_label=0.0, poison_label=-1.0, poison_time=0)
    algorithm = toy_envs.random_algorithm(env.observation_size, 1)
    monkeypatch.setattr(driver, "build", lambda config: (env, algorithm))
    words = []
    train(tmp_path / "run", resolve("evaluations=0"), words.append)
    said = [place for place, line in enumerate(words) if "went non-finite" in line]
    first_line = next(place for place, line in enumerate(words) if "transitions |" in line)
    assert len(said) == 1 and said[0] < first_line
    assert "40 times in this epoch of 4 environments" in words[said[0]]
