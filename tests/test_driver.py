"""The driver on a toy task, which compiles in a second."""

import shutil

import jax
import pytest
import toy_envs
from jax.experimental.compilation_cache import compilation_cache

from mjx_qflex import config as configs
from mjx_qflex.errors import UserError
from mjx_qflex.training import checkpoint, driver, metrics
from mjx_qflex.training.interrupt import Interrupt, Interrupted

SIZES = (
    "loop.num_envs=4", "loop.batch_size=8", "loop.steps_per_epoch=10", "loop.replay_capacity=400",
    "loop.prefill_transitions=40", "loop.reset_pool=4", "loop.eval_envs=4", "evaluations=2",
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def toy_task(tmp_path_factory):
    """Puts a toy in place of the task, and compiles it once for all tests here."""
    env = toy_envs.ActionReward()
    algorithm = toy_envs.random_algorithm(env.observation_size, env.action_size)
    options = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    before = {name: getattr(jax.config, name) for name in options}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver, "build", lambda config: (env, algorithm))
        for name, value in options.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        yield
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()


@pytest.fixture(scope="module")
def finished(toy_task, tmp_path_factory):
    """A finished run: its folder and what it said."""
    folder = tmp_path_factory.mktemp("finished")
    return folder, train(folder, 100)


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of the finished run, to change."""
    folder = tmp_path / "run"
    shutil.copytree(finished[0], folder)
    return folder


def train(folder, total_steps, said=None, interrupt=None):
    config = configs.resolve("chain_reach", total_steps=total_steps, sets=SIZES, device="cpu")
    words = [] if said is None else said
    with Interrupt(words.append) as own:
        driver.train(config, folder, "command", interrupt or own, words.append)
    return words


def transitions(folder):
    return [row["transitions"] for row in metrics.read_rows(folder)]


def test_epochs_that_take_too_long_are_shortened_once_and_for_good(tmp_path, monkeypatch):
    monkeypatch.setattr(driver, "MAX_EPOCH_SECONDS", 0.0)
    monkeypatch.setattr(driver, "AIMED_EPOCH_SECONDS", 0.0)
    words = train(tmp_path, 120)
    assert any("going on with loop.steps_per_epoch=1" in line for line in words)
    assert transitions(tmp_path) == [80, *range(84, 121, 4)]
    assert configs.load(tmp_path).loop.steps_per_epoch == 1
    # The same command, which asks for 10 again, goes on with what was found.
    train(tmp_path, 132)
    assert transitions(tmp_path) == [80, *range(84, 133, 4)]


def test_a_task_that_cannot_be_drawn_still_has_its_report(finished):
    folder, words = finished
    assert any("no video" in line for line in words)
    assert "no video" in (folder / "report.md").read_text()
    assert not (folder / "video.mp4").exists()


def test_a_stop_during_an_evaluation_saves_first(tmp_path, monkeypatch):
    class StopsInEvaluation(Interrupt):
        def attempt(self, function, *args):
            if self.armed and "evaluat" in words[-1]:
                self.requested = True
            return super().attempt(function, *args)

    words: list[str] = []
    interrupt = StopsInEvaluation(words.append)
    interrupt.armed = True
    with pytest.raises(Interrupted):
        train(tmp_path, 200, words, interrupt)
    stopped = transitions(tmp_path)[-1]
    assert stopped < 200
    assert int(checkpoint.newest(tmp_path / "checkpoints").name) == stopped
    train(tmp_path, 200)
    assert transitions(tmp_path) == [80.0, 120.0, 160.0, 200.0]


def test_a_run_that_was_stopped_before_its_report_makes_up_for_it(copied):
    (copied / "report.md").unlink()
    words = train(copied, 100)
    assert any("resumed from" in line for line in words)
    assert (copied / "report.md").exists()
    assert any("is finished" in line for line in train(copied, 100))


def test_checkpoints_come_after_the_first_and_last_epoch_and_when_due(copied, monkeypatch):
    def saves(words):
        return [line for line in words if line.startswith("checkpoint at")]

    rare = saves(train(copied, 300))
    assert len(rare) == 1
    monkeypatch.setattr(driver, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(driver, "CHECKPOINT_SHARE", 1e9)
    assert len(saves(train(copied, 500))) == 5


def test_checkpoints_without_their_config_are_not_touched(copied):
    (copied / "config.json").unlink()
    with pytest.raises(UserError, match="config.json"):
        train(copied, 100)
