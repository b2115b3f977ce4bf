"""The commands as a user meets them: files, words, exit codes, signals, resuming."""

import dataclasses
import errno
import json
import os
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
from tiny_runs import LEFT_BEHIND, TINY, finish, learned, read_rows, wait_for
from videos import read_clip

from mjx_qflex import commands, evaluate, presets, settings, train
from mjx_qflex import config as configs
from mjx_qflex.runner import checkpoint

LONG = (*TINY, "--set", "total_steps=100000000")


def test_a_run_leaves_what_it_promises(trained):
    folder, _ = trained
    assert {path.name for path in folder.iterdir()} == LEFT_BEHIND
    assert (folder / "learning_curve.png").read_bytes()[:4] == b"\x89PNG"
    assert list((folder / "tensorboard").glob("events*"))
    assert checkpoint.newest(folder / "checkpoints") is not None
    config = configs.load(folder)
    assert config.preset == "cpu"
    assert config.loop.num_envs == 8
    assert config.algo_config.width == 8


def test_metrics_rows_grow_and_reach_the_end(trained):
    rows = read_rows(trained[0])
    transitions = [int(row["transitions"]) for row in rows]
    assert transitions == list(range(800, 4001, 400))
    assert [int(row["epoch"]) for row in rows] == list(range(1, 10))
    assert sum(bool(row["evaluation/return"]) for row in rows) == 3
    assert rows[-1]["evaluation/return"]


def test_the_words_of_a_run(trained):
    lines = trained[1].splitlines()
    assert "training chain_reach" in lines[0]
    assert "preset cpu (chosen for this device)" in trained[1]
    order = ["the replay takes 0.00 GiB", "compiled epoch in", "training begins", "transitions |"]
    places = [trained[1].index(text) for text in order]
    assert places == sorted(places)
    progress = [line for line in lines if "steps/s" in line]
    for word in ("return", "length", "updates/s", "updates/transition", "GiB", "left"):
        assert word in progress[-1]


def test_the_report_says_what_came_out(trained):
    folder, _ = trained
    report = (folder / "report.md").read_text()
    result = json.loads((folder / "evaluation.json").read_text())
    assert "--task=chain_reach" in report
    assert "4,000 transitions" in report
    assert f"{result['policies']['trained']['return_mean']:.4g}" in report
    assert set(result["policies"]) == {"trained", "untrained", "idle"}
    # The trained policy's evaluation is the one on the curve: the same seeds.
    last = float(read_rows(folder)[-1]["evaluation/return"])
    assert last == pytest.approx(result["policies"]["trained"]["return_mean"], rel=1e-4)


def test_the_video_decodes_at_real_time(trained):
    clip = read_clip(trained[0] / "video.mp4")
    assert clip.fps == 20.0
    assert len(clip.frames) == 5 * 21  # 5 episodes of 20 steps, from the reset to the end
    assert len({frame.tobytes() for frame in clip.frames}) > 90


def test_the_same_command_leaves_a_finished_run_alone(command, trained):
    folder, _ = trained
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    code, out, err = finish(command("train", *TINY, f"--logdir={folder}"))
    assert (code, err) == (0, "")
    assert "is finished" in out
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_stopped_runs_resume_bit_for_bit(command, trained, tmp_path):
    """SIGTERM, twice: the same numbers as a run left alone. (`test_faults` kills.)"""
    whole, _ = trained
    folder = tmp_path / "run"
    process = command("train", *LONG, f"--logdir={folder}")
    wait_for(process, "checkpoint at 800")
    process.send_signal(signal.SIGTERM)
    assert finish(process)[0] == 0
    first_stop = int(checkpoint.newest(folder / "checkpoints").name)

    process = command("train", *LONG, f"--logdir={folder}")
    wait_for(process, f"resumed from {first_stop:,}")
    wait_for(process, "transitions |")
    asked = time.monotonic()
    process.send_signal(signal.SIGTERM)
    code, out, err = finish(process)
    assert (code, err) == (0, "")
    assert time.monotonic() - asked < 10
    assert "stopped; the same command goes on" in out
    rows = read_rows(folder)
    stopped_at = int(checkpoint.newest(folder / "checkpoints").name)
    assert int(rows[-1]["transitions"]) == stopped_at > first_stop

    transitions = [int(row["transitions"]) for row in rows]
    assert transitions == list(range(800, stopped_at + 1, 400))
    shared = min(len(rows), 9)
    assert learned(rows)[:shared] == learned(read_rows(whole))[:shared]


def test_a_finished_run_goes_on_with_more_steps(command, trained, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(trained[0], folder)
    before = read_rows(folder)
    flags = (*TINY, "--total_steps=4800", f"--logdir={folder}")
    code, out, err = finish(command("train", *flags))
    assert (code, err) == (0, ""), out + err
    rows = read_rows(folder)
    assert rows[: len(before)] == before
    assert [int(row["transitions"]) for row in rows[len(before) :]] == [4400, 4800]
    assert "4,800 transitions" in (folder / "report.md").read_text()


def test_evaluate_renders_and_brings_the_report_up_to_date(command, trained, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(trained[0], folder)
    (folder / "video.mp4").unlink()
    code, out, err = finish(command("evaluate", f"--run={folder}", "--episodes=5", "--seed=3"))
    assert (code, err) == (0, ""), out + err
    result = json.loads((folder / "evaluation.json").read_text())
    assert (result["episodes"], result["seed"]) == (5, 3)
    assert (folder / "video.mp4").stat().st_size > 1000
    assert "5 episodes of each policy" in (folder / "report.md").read_text()
    assert "trained minus it" in out


def test_evaluate_sweeps_the_weight_of_guidance(command, trained, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(trained[0], folder)
    before = (folder / "evaluation.json").read_text()
    flags = (f"--run={folder}", "--episodes=4", "--best_of=2", "--guidance_steps=5")
    code, out, err = finish(command("evaluate", *flags, "--guidance", "0.5", "0.02"))
    assert (code, err) == (0, ""), out + err
    sweep = json.loads((folder / "guidance.json").read_text())
    policies = sweep["policies"]
    assert list(policies) == ["unguided", "0.0", "0.02", "0.5"]
    assert (sweep["euler_steps"], sweep["best_of"], sweep["transitions"]) == (5, 2, 4000)
    # The same starts as the run's evaluation of 4 episodes, with intervals from pairs of them.
    unguided = json.loads(before)["policies"]["trained"]["returns"]
    assert policies["unguided"]["returns"] == pytest.approx(unguided, rel=1e-4)
    assert len({tuple(policy["returns"]) for policy in policies.values()}) == 4
    for name, interval in sweep["minus_weight_0"].items():
        pairs = zip(policies[name]["returns"], policies["0.0"]["returns"], strict=True)
        mean = sum(guided - plain for guided, plain in pairs) / 4
        assert interval["mean"] == pytest.approx(mean)
        assert interval["low"] < mean < interval["high"]
    assert set(sweep["minus_weight_0"]) == {"unguided", "0.02", "0.5"}
    assert "minus weight 0" in out
    report = (folder / "report.md").read_text()
    assert "## Guided at test time" in report and "| 0.02 " in report
    assert (folder / "evaluation.json").read_text() == before
    assert {path.name for path in folder.iterdir()} == LEFT_BEHIND | {"guidance.json"}


def test_guidance_of_weight_0_on_the_policys_own_steps_is_the_policy(command, trained, tmp_path):
    """In the run's own precision too."""
    folder = tmp_path / "run"
    shutil.copytree(trained[0], folder)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["loop"]["matmul_precision"] = "bfloat16"
    path.write_text(json.dumps(config))
    flags = (f"--run={folder}", "--episodes=4", "--guidance_steps=20", "--guidance_grid=right")
    code, out, err = finish(command("evaluate", *flags, "--guidance", "0"))
    assert (code, err) == (0, ""), out + err
    policies = json.loads((folder / "guidance.json").read_text())["policies"]
    unguided = policies["unguided"]["returns"]
    assert policies["0.0"]["returns"] == pytest.approx(unguided, rel=1e-6)
    exact = json.loads((folder / "evaluation.json").read_text())["policies"]["trained"]["returns"]
    assert unguided != pytest.approx(exact, rel=1e-6)


def refused(capsys, main, *flags):
    """Returns the one line that a refused command prints."""
    assert main(list(map(str, flags))) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--task=chain_raech"], "did you mean 'chain_reach'"),
        (["--task=chain_reach", "--algo=qflx"], "did you mean 'qflex'"),
        (["--task=chain_reach", "--preset=papr"], "did you mean 'paper'"),
        (["--task=h1_run", "--body=arm"], "h1_run has no choice of bodies"),
        (["--task=ms_human_walk", "--body=ms_humn"], "did you mean 'ms_human'"),
        (["--task=chain_reach", "--numenvs=3"], "did you mean '--num_envs'"),
        (["--task=chain_reach", "--num_envs=many"], "'many' is no whole number"),
        (["--task=chain_reach", "--seed=1.5"], "'1.5' is no whole number"),
        (["--task=chain_reach", "--seeds=0"], "--seeds is 0; give a whole number from 1 to"),
        (["--task=chain_reach", "--seeds=2", "--seeds_at_once=0"], "--seeds_at_once is 0"),
        (["--task=chain_reach", "--seeds_at_once=2"], "add --seeds=NUMBER"),
        (["--task=chain_reach", "--seed=4294967295", "--seeds=2"], "the last of --seeds=2 is"),
        (["--task=chain_reach", "--total_steps=400"], "2,560 transitions only fill the replay"),
        (["--task=chain_reach", "--num_envs=0"], "--num_envs is 0; give"),
        (["--task=chain_reach", "--set", "algo.widht=3"], "did you mean 'algo.width'"),
        (["--task=chain_reach", "--set", "algo.width=wide"], "give whole number"),
        (["--task=chain_reach", "--set", "loop.replay_capacity=1e13"], "loop.replay_capacity"),
        (["--task=chain_reach", "--set", "task.num_joints=0"], "num_joints"),
        (["--task"], "expected one argument"),
        (["chain_reach"], "unknown flag 'chain_reach'"),
        ([], "add --task=NAME"),
    ],
)
def test_bad_input_takes_one_line_and_writes_nothing(capsys, tmp_path, flags, says):
    folder = tmp_path / "run"
    assert says in refused(capsys, train.main, *flags, f"--logdir={folder}")
    assert list(tmp_path.iterdir()) == []


def test_each_seed_has_its_own_run_folder():
    named = {seed: Path(f"runs/chain_reach-sac-s{seed}") for seed in (3, 4)}
    assert train._run_folders("chain_reach-sac", 3, 2, None) == named
    assert train._run_folders("chain_reach-sac", 3, None, None) == {3: named[3]}
    below = {seed: Path(f"here/s{seed}") for seed in (3, 4)}
    assert train._run_folders("chain_reach-sac", 3, 2, Path("here")) == below
    assert train._run_folders("chain_reach-sac", 3, 1, Path("here")) == {3: below[3]}
    assert train._run_folders("chain_reach-sac", 3, None, Path("here")) == {3: Path("here")}


def test_bad_input_from_the_shell(command, tmp_path):
    process = command("train", "--task=chain_raech", f"--logdir={tmp_path / 'run'}")
    code, _, err = finish(process)
    assert code == 2
    assert err.count("\n") == 1
    assert "did you mean 'chain_reach'" in err


def test_a_folder_that_cannot_be_written_is_refused(capsys, tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    line = refused(capsys, train.main, *TINY, f"--logdir={file / 'run'}")
    assert "cannot write in the run folder" in line
    assert "--logdir" in line
    assert list(tmp_path.iterdir()) == [file]


def test_a_run_of_other_settings_or_task_is_refused(capsys, trained, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(trained[0], folder)
    before = sorted(folder.rglob("*"))
    line = refused(capsys, train.main, *TINY, "--seed=1", f"--logdir={folder}")
    assert "seed=0" in line and "seed=1" in line
    other = (*TINY, "--set", "task.num_joints=3", f"--logdir={folder}")
    assert "task.num_joints=8" in refused(capsys, train.main, *other)
    # The folder says that it is of this task, the checkpoint knows better.
    saved = configs.load(folder)
    changed = dataclasses.replace(
        saved, task_config=dataclasses.replace(saved.task_config, num_joints=3)
    )
    configs.save(changed, folder)
    (folder / "report.md").unlink()
    before.remove(folder / "report.md")
    line = refused(capsys, train.main, *other)
    assert "checkpoint" in line
    assert sorted(folder.rglob("*")) == before
    assert configs.load(folder) == changed


def test_a_full_disk_is_one_line(capsys):
    def command(arguments, interrupt):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "report.md")

    assert commands.run(command, []) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_evaluate_refuses_what_is_no_run(capsys, tmp_path):
    assert "holds no run" in refused(capsys, evaluate.main, f"--run={tmp_path}")
    assert "add --run=DIR" in refused(capsys, evaluate.main)
    assert "from 2 to" in refused(capsys, evaluate.main, f"--run={tmp_path}", "--episodes=1")
    assert list(tmp_path.iterdir()) == []


def test_help_shows_the_real_defaults(capsys):
    assert train.main(["--help"]) == 0
    text = capsys.readouterr().out
    sizes = presets.resolve("ms_human_walk", preset="paper")
    expected = rf"paper +ms_human_walk +{sizes.loop.num_envs} +{sizes.total_steps:,}"
    assert re.search(expected, text)
    for flag in ("task", "algo", "preset", "seed", "num_envs", "total_steps", "logdir", "set"):
        assert f"--{flag}" in text
    assert "(default: 0)" in text

    assert train.main(["--task=chain_reach", "--preset=cpu", "--help"]) == 0
    text = capsys.readouterr().out
    config = presets.resolve("chain_reach", preset="cpu")
    assert f"loop.num_envs={config.loop.num_envs}" in text
    assert f"algo.learning_rate={config.algo_config.learning_rate}" in text
    for key in settings.keys(config):
        assert f"  {key}=" in text

    assert evaluate.main(["--help"]) == 0
    assert "(default: 64)" in capsys.readouterr().out


def test_ms_human_walk_from_end_to_end(command, tmp_path):
    """The main job in small: 700 actuators, trained, stopped, resumed, evaluated and filmed."""
    folder = tmp_path / "run"
    flags = (
        "--task=ms_human_walk", "--preset=cpu", "--num_envs=8", "--total_steps=320",
        "--set", "loop.steps_per_epoch=5", "--set", "loop.batch_size=16",
        "--set", "loop.prefill_transitions=80", "--set", "loop.replay_capacity=400",
        "--set", "loop.eval_envs=4", "--set", "evaluations=1", "--set", "algo.width=16",
        "--set", "algo.depth=1", f"--logdir={folder}",
    )  # fmt: skip
    process = command("train", *flags)
    wait_for(process, "checkpoint at 120 transitions")
    process.send_signal(signal.SIGTERM)
    code, out, err = finish(process)
    assert code == 0 and "Warning" not in err, out + err  # XLA complains of slow compiles there
    assert len(read_rows(folder)) < 6

    code, out, err = finish(command("train", *flags), timeout=600.0)
    assert code == 0 and "Warning" not in err, out + err  # XLA complains of slow compiles there
    rows = read_rows(folder)
    assert [int(row["transitions"]) for row in rows] == list(range(120, 321, 40))
    assert all(float(row["nonfinite_environments"]) == 0 for row in rows)
    report = (folder / "report.md").read_text()
    assert "700 actuators" in report
    assert "zero excitation" in report
    clip = read_clip(folder / "video.mp4")
    assert clip.fps == 50.0
    assert len(clip.frames) > 10
