"""A user's motion is part of a run by its content: kept, found again, and never changed unseen."""

import json
import shutil
from dataclasses import replace

import pytest
import toy_envs
from test_motion_files import RUN, write_acclaim

from mjx_qflex import config as configs
from mjx_qflex import evaluate, presets
from mjx_qflex.errors import UserError
from mjx_qflex.interrupt import Interrupt
from mjx_qflex.reports import reporting
from mjx_qflex.runner import driver, inputs
from mjx_qflex.runner.run_folder import Member


def config_of(motion):
    config = presets.resolve("ms_human_run", device="cpu")
    return replace(config, task_config=replace(config.task_config, motion=str(motion)))


@pytest.fixture
def begun(tmp_path, monkeypatch):
    """A run that began with a motion named from where it began; its folder."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    shutil.copy(RUN, "mine.csv")
    folder = tmp_path / "run"
    Member(config_of("mine.csv"), folder).save_config()
    assert configs.load(folder) == config_of("mine.csv")
    return folder


def test_a_run_keeps_what_its_motion_was(begun):
    assert (begun / "inputs" / "mine.csv").read_bytes() == RUN.read_bytes()
    assert list(json.loads((begun / "inputs" / "digests.json").read_text())) == ["mine.csv"]
    before = (begun / "inputs" / "mine.csv").stat().st_mtime_ns
    Member(config_of("mine.csv"), begun).save_config()
    assert (begun / "inputs" / "mine.csv").stat().st_mtime_ns == before


def test_from_another_folder_the_copy_is_found(begun, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = configs.load(begun)
    copy = str(begun / "inputs" / "mine.csv")
    inputs.check(config, begun)
    assert inputs.found(config, begun).task_config.motion == copy
    assert inputs.kept(config, begun).task_config.motion == copy
    monkeypatch.chdir(tmp_path / "here")
    assert inputs.found(config, begun) == config
    assert inputs.kept(config, begun).task_config.motion == copy


def test_a_changed_motion_is_refused_on_resume(begun):
    with open("mine.csv", "a") as file:
        file.write("# one more line\n")
    with pytest.raises(UserError, match="mine.csv has changed since the run in .* began"):
        inputs.check(config_of("mine.csv"), begun)


@pytest.mark.parametrize("name", ["mine.csv", "digests.json"])
def test_a_damaged_copy_is_named(begun, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (begun / "inputs" / name).write_text("")
    with pytest.raises(UserError, match=f"{name} is damaged"):
        inputs.found(configs.load(begun), begun)


def test_names_of_copies_do_not_lead_out_of_the_folder(begun):
    (begun / "inputs" / "digests.json").write_text('{"../config.json": ""}')
    with pytest.raises(UserError, match="damaged"):
        inputs.kept(configs.load(begun), begun)


def test_a_recording_brings_its_skeleton(tmp_path):
    path = write_acclaim(tmp_path, "0 0 0", [((0, 0, 0, 0, 0, 0), "0 0 0")] * 2)
    folder = tmp_path / "run"
    config = config_of(path)
    Member(config, folder).save_config()
    path.unlink()
    path.with_name("07.asf").unlink()
    found = inputs.found(config, folder).task_config.motion
    assert found == str(folder / "inputs" / "07_01.amc")
    assert (folder / "inputs" / "07.asf").is_file()


def test_shipped_motions_need_no_copy(tmp_path):
    config = presets.resolve("ms_human_walk", device="cpu")
    Member(config, tmp_path / "run").save_config()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.json"]
    assert inputs.found(config, tmp_path) == inputs.kept(config, tmp_path) == config


SIZES = (
    "loop.num_envs=4", "loop.batch_size=8", "loop.steps_per_epoch=10", "loop.replay_capacity=400",
    "loop.prefill_transitions=40", "loop.reset_pool=4", "loop.eval_envs=4", "evaluations=0",
)  # fmt: skip


def test_a_run_is_evaluated_and_resumed_from_anywhere(tmp_path, monkeypatch):
    """With a toy in place of the body: what counts is which motion it would have had."""
    built = []

    def build(config):
        built.append(config.task_config.motion)
        env = toy_envs.ActionReward()
        return env, toy_envs.random_algorithm(env.observation_size, env.action_size)

    def train(total_steps):
        sets = (*SIZES, "task.motion=mine.csv")
        config = presets.resolve("ms_human_run", total_steps=total_steps, sets=sets, device="cpu")
        with Interrupt(lambda line: None) as interrupt:
            driver.train(
                config,
                folder,
                reporting.writer("command", print),
                interrupt,
                lambda line: None,
                video=False,
            )

    monkeypatch.setattr(driver, "build", build)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    shutil.copy(RUN, "mine.csv")
    folder, copy = tmp_path / "run", str(tmp_path / "run" / "inputs" / "mine.csv")
    train(80)
    monkeypatch.chdir(tmp_path)
    assert evaluate.main([f"--run={folder}", "--episodes=4", "--no-video"]) == 0
    train(120)
    assert built == ["mine.csv", copy, copy]
    (tmp_path / "mine.csv").write_text("another")
    with pytest.raises(UserError, match="mine.csv has changed"):
        train(160)
    assert configs.load(folder).task_config.motion == "mine.csv"
