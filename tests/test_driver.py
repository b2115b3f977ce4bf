"""The driver on a toy task, which compiles in a second."""

import contextlib
import dataclasses
import json
import os
import shutil

import jax
import numpy as np
import pytest
import toy_envs
from conftest import compiling_once

from mjx_qflex import config as configs
from mjx_qflex import devices, presets
from mjx_qflex.errors import UserError
from mjx_qflex.interrupt import Interrupt, Interrupted
from mjx_qflex.reports import reporting
from mjx_qflex.runner import (
    assessment,
    checkpoint,
    checkpointer,
    driver,
    folder_lock,
    metrics,
    run_folder,
    run_log,
)
from mjx_qflex.training.loop import make_loop

SIZES = (
    "loop.num_envs=4", "loop.batch_size=8", "loop.steps_per_epoch=10", "loop.replay_capacity=400",
    "loop.prefill_transitions=40", "loop.reset_pool=4", "loop.eval_envs=4", "evaluations=2",
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def toy_task(tmp_path_factory):
    """Puts a toy in place of the task, and compiles it once for all tests here."""
    env = toy_envs.ActionReward()
    algorithm = toy_envs.random_algorithm(env.observation_size, env.action_size)
    with pytest.MonkeyPatch.context() as patch, compiling_once(tmp_path_factory.mktemp("compiled")):
        patch.setattr(driver, "build", lambda config: (env, algorithm))
        yield


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


def train(folder, total_steps, said=None, interrupt=None, sets=()):
    sets = (*SIZES, *sets)
    config = presets.resolve("chain_reach", total_steps=total_steps, sets=sets, device="cpu")
    words = [] if said is None else said
    with Interrupt(words.append) as own:
        driver.train(
            config,
            folder,
            reporting.writer("command", words.append),
            interrupt or own,
            words.append,
        )
    return words


def train_seeds(folder, seeds, total_steps, at_once=None, stop_at=None, **changes):
    """Trains seeds in `folder`/<seed>; asks to stop once a line says `stop_at`."""
    config = presets.resolve("chain_reach", total_steps=total_steps, sets=SIZES, device="cpu")
    config = dataclasses.replace(config, **changes)
    words: list[str] = []
    with Interrupt(words.append) as interrupt:

        def say(line):
            words.append(line)
            interrupt.requested |= stop_at is not None and stop_at in line

        folders = {seed: folder / str(seed) for seed in seeds}
        try:
            driver.train_seeds(
                config, folders, reporting.writer("command", say), interrupt, say, at_once=at_once
            )
        except Interrupted:
            assert stop_at is not None
            words.append("stopped")
    return words


def said(words, text):
    """How many lines hold `text`."""
    return sum(text in line for line in words)


def transitions(folder):
    return [row["transitions"] for row in metrics.read_rows(folder)]


def evaluated(folder):
    rows = metrics.read_rows(folder)
    return [row["transitions"] for row in rows if not np.isnan(row["evaluation/return"])]


def test_a_slow_machine_is_told_how_to_be_heard_and_trains_alike(tmp_path, monkeypatch):
    monkeypatch.setattr(run_log, "LONG_EPOCH_SECONDS", 0.0)
    words = train(tmp_path / "slow", 120)
    assert said(words, "--set loop.steps_per_epoch=1 is heard sooner and trains alike") == 1
    monkeypatch.setattr(run_log, "LONG_EPOCH_SECONDS", 1e9)
    assert said(train(tmp_path / "fast", 120), "is heard sooner") == 0
    assert_same_outcome(tmp_path / "slow", tmp_path / "fast")


def test_epochs_of_another_length_go_on_with_a_run_and_train_alike(tmp_path):
    train(tmp_path / "long", 120)
    train(tmp_path / "short", 80, sets=["loop.steps_per_epoch=5"])
    assert transitions(tmp_path / "short") == [60, 80]
    train(tmp_path / "short", 120)
    assert transitions(tmp_path / "short") == [60, 80, 120]
    state, other = (outcome(tmp_path / name)[2] for name in ("short", "long"))
    for x, y in zip(state, other, strict=True):
        np.testing.assert_array_equal(x, y)


def test_a_capacity_by_the_free_memory_is_settled_when_the_run_begins(tmp_path, monkeypatch):
    def capacity(name):
        return configs.load(tmp_path / name).loop.replay_capacity

    def run_of(name, total_steps):
        return train(tmp_path / name, total_steps, sets=["loop.replay_capacity=0"])

    run_of("plenty", 100)
    assert capacity("plenty") == 100  # no larger than the run
    monkeypatch.setattr(devices, "free_bytes", lambda: 5_000)
    run_of("little", 80)
    assert 40 < capacity("little") < 80
    # The same command goes on with what was chosen, whatever is free by now.
    run_of("plenty", 140)
    assert capacity("plenty") == 100
    assert transitions(tmp_path / "plenty")[-1] >= 140
    monkeypatch.setattr(devices, "free_bytes", lambda: 1_000)
    with pytest.raises(UserError, match="prefill_transitions|GiB"):
        run_of("none", 80)
    assert not (tmp_path / "none").exists()


def test_seeds_share_the_free_memory_and_one_capacity(tmp_path, monkeypatch):
    def capacities(*seeds):
        return [configs.load(tmp_path / str(seed)).loop.replay_capacity for seed in seeds]

    monkeypatch.setattr(devices, "free_bytes", lambda: 15_000)
    sizes = presets.resolve("chain_reach", sets=(*SIZES, "loop.replay_capacity=0")).loop
    train_seeds(tmp_path, [0, 1], 400, at_once=2, stop_at="epoch 1 |", loop=sizes)
    first, second = capacities(0, 1)
    assert 40 < first == second < 120
    monkeypatch.setattr(devices, "free_bytes", lambda: 2**30)
    train_seeds(tmp_path, [1, 2], 120, loop=sizes)
    assert capacities(1, 2) == [first, first]


def test_a_replay_that_gives_up_rows_is_spoken_of_once(tmp_path, monkeypatch):
    """Every step ends an episode, with room for a fifth of the transitions."""
    env = toy_envs.ActionReward()
    env.episode_length = 1000
    algorithm = toy_envs.random_algorithm(env.observation_size, env.action_size)
    monkeypatch.setattr(driver, "build", lambda config: (env, algorithm))
    words = train(tmp_path, 400)
    assert said(words, "holds the newest 80 transitions only") == 1
    assert {row["replay_transitions"] for row in metrics.read_rows(tmp_path)} == {80.0}


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
    assert not evaluated(tmp_path)
    train(tmp_path, 200)
    assert transitions(tmp_path) == [80.0, 120.0, 160.0, 200.0]
    assert evaluated(tmp_path) == [stopped + 40.0, 200.0]


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
    monkeypatch.setattr(checkpointer, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(checkpointer, "CHECKPOINT_SHARE", 1e9)
    assert len(saves(train(copied, 500))) == 5


def test_checkpoints_without_their_config_are_not_touched(copied):
    (copied / "config.json").unlink()
    with pytest.raises(UserError, match="config.json"):
        train(copied, 100)


LEFT_BEHIND = {
    "checkpoints", "config.json", "evaluation.json", "learning_curve.png", "metrics.csv",
    "report.md", "summary.json", "tensorboard",
}  # fmt: skip
TIMINGS = {"seconds", "steps_per_second", "updates_per_second", "memory_gib"}


def outcome(folder):
    """What a run left that does not depend on how fast the machine was."""
    rows = [
        {name: value for name, value in row.items() if name not in TIMINGS and value == value}
        for row in metrics.read_rows(folder)
    ]
    config = configs.load(folder)
    loop = make_loop(*driver.build(config), config.loop)
    state = run_folder.Member(config, folder).restore(loop.shapes())
    return rows, assessment.load(folder), jax.tree.leaves(jax.device_get(state.device))


def assert_same_outcome(folder, other):
    (rows, result, state), (rows_other, result_other, state_other) = map(outcome, (folder, other))
    assert rows == rows_other and result == result_other
    for x, y in zip(state, state_other, strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.fixture(scope="module")
def alone(toy_task, tmp_path_factory):
    """Seeds 0 and 1, each trained in a command of its own."""
    folder = tmp_path_factory.mktemp("alone")
    for seed in (0, 1):
        train_seeds(folder, [seed], 200)
    return folder


@pytest.fixture
def stopped(toy_task, tmp_path):
    """Seeds 0 and 1, trained together and stopped after an epoch."""
    train_seeds(tmp_path, [0, 1], 200, 2, stop_at="epoch 1 |")
    return tmp_path


@pytest.mark.parametrize("at_once", [1, 2])
def test_seeds_leave_what_each_alone_leaves(alone, tmp_path, at_once):
    words = train_seeds(tmp_path, [0, 1], 200, at_once)
    assert said(words, "compiled epoch") == said(words, "compiled init") == 1
    assert (said(words, "mean of 2 seeds: epoch") > 0) == (at_once == 2)
    for seed in ("0", "1"):
        assert {path.name for path in (tmp_path / seed).iterdir()} == LEFT_BEHIND
        assert configs.load(tmp_path / seed).seed == int(seed)
        assert_same_outcome(tmp_path / seed, alone / seed)
        summary = json.loads((tmp_path / seed / "summary.json").read_text())
        assert summary["seeds_at_once"] == at_once
        report = (tmp_path / seed / "report.md").read_text()
        assert ("with 1 other seed in one program" in report) == (at_once == 2)
    assert metrics.read_rows(tmp_path / "0") != metrics.read_rows(tmp_path / "1")


def test_stopped_seeds_go_on_together_and_finished_ones_are_left_alone(alone, tmp_path):
    words = train_seeds(tmp_path, [0, 1], 200, 2, stop_at="epoch 1 |")
    assert words[-1] == "stopped"
    assert transitions(tmp_path / "0") == transitions(tmp_path / "1") == [80]
    words = train_seeds(tmp_path, [0, 1], 200, 2)
    assert said(words, "resumed from 80 transitions") == 1
    for seed in ("0", "1"):
        assert_same_outcome(tmp_path / seed, alone / seed)
    words = train_seeds(tmp_path, [0, 1], 200, 2)
    assert said(words, "is finished") == len(words) == 2


def test_seeds_at_different_points_train_apart(stopped, alone):
    words = train_seeds(stopped, [0, 1, 2], 200, 3)
    assert said(words, "not all at once") == 1
    assert said(words, "(seeds 0, 1 at 80, seed 2 at 0)") == 1
    for seed in ("0", "1"):
        assert_same_outcome(stopped / seed, alone / seed)
    assert transitions(stopped / "2")[-1] == 200


def test_the_command_of_one_seed_goes_on_with_a_seed_of_several(stopped, alone):
    words = train_seeds(stopped, [1], 200)
    assert said(words, "resumed from 80") == 1
    assert_same_outcome(stopped / "1", alone / "1")


def test_a_folder_of_another_run_is_refused_before_any_seed_trains(alone, tmp_path):
    shutil.copytree(alone / "1", tmp_path / "1")
    with pytest.raises(UserError, match="preset=cpu.*preset=gpu"):
        train_seeds(tmp_path, [0, 1], 200, preset="gpu")
    assert {path.name for path in tmp_path.iterdir()} == {"1"}


def test_a_folder_in_which_another_command_trains_is_refused(finished, copied):
    before = {path: path.stat().st_mtime_ns for path in copied.rglob("*")}
    with (
        folder_lock.held([copied]),
        pytest.raises(UserError, match=f"process {os.getpid()} on .* trains in"),
    ):
        train(copied, 200)
    assert {path: path.stat().st_mtime_ns for path in copied.rglob("*")} == before


OFFLINE = ("loop.offline_updates=25",)


def test_a_run_learns_offline_first_and_goes_on_from_within(tmp_path, monkeypatch):
    """Updates grow while transitions stand still; a stop there loses nothing."""
    monkeypatch.setattr(checkpointer, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(checkpointer, "CHECKPOINT_SHARE", 1e9)
    words = train(tmp_path / "whole", 120, sets=OFFLINE)
    assert said(words, "compiled offline") == 1
    rows = metrics.read_rows(tmp_path / "whole")
    offline = [row for row in rows if row["transitions"] == rows[0]["transitions"]]
    assert (
        len(offline) == 2
        and offline[-1]["updates"] >= 25
        and all(row["updates"] > 0 for row in rows)
    )
    assert np.isnan(offline[0]["episode/return"]) and offline[0]["update/batch_reward"] != 0
    stopped = Interrupt(lambda line: None)

    def stop_soon(line):
        stopped.requested |= line.startswith("filled in")

    with contextlib.suppress(Interrupted):
        train(tmp_path / "stopped", 120, sets=OFFLINE, interrupt=stopped, said=Heard(stop_soon))
    assert len(metrics.read_rows(tmp_path / "stopped")) == 1
    stopped.requested = False
    train(tmp_path / "stopped", 120, sets=OFFLINE)
    assert len(metrics.read_rows(tmp_path / "stopped")) == len(rows)
    states = (outcome(tmp_path / name)[2] for name in ("whole", "stopped"))
    for x, y in zip(*states, strict=True):
        np.testing.assert_array_equal(x, y)


class Heard(list):
    """Lines that are heard as they are said."""

    def __init__(self, hear):
        super().__init__()
        self.append = lambda line: (super(Heard, self).append(line), hear(line))


def test_a_film_that_fails_leaves_the_run(tmp_path, monkeypatch):
    def fail(*arguments):
        raise UserError("ffmpeg could not write video.mp4: no room")

    monkeypatch.setattr(assessment, "film", fail)
    words = train(tmp_path, 80)
    assert said(words, "video: none: ffmpeg could not write video.mp4: no room") == 1
    assert assessment.load(tmp_path)["video"].startswith("none: ffmpeg")
    assert (tmp_path / "report.md").exists()
