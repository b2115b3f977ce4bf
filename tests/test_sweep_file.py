"""What the file of a sweep may say: settings, order, names, and mistakes."""

import textwrap
from pathlib import Path

import pytest

from mjx_qflex import sweep
from mjx_qflex.sweeps import sweep_file

TOP = """
preset = "cpu"
total_steps = 4e3
[[tasks]]
name = "chain"
task = "chain_reach"
"""
SAC = """
[[algorithms]]
algo = "sac"
"""


def test_runs_of_a_file_take_the_right_settings_in_the_right_order(tmp_path):
    file = tmp_path / "a.toml"
    file.write_text("""
        preset = "cpu"
        num_envs = 16
        seeds = 2
        set = ["algo.width=8", "loop.batch_size=32"]
        [[tasks]]
        name = "short"
        task = "chain_reach"
        set = ["task.num_joints=3", "algo.width=9"]
        [[tasks]]
        task = "chain_reach"
        num_envs = 4
        [[algorithms]]
        algo = "sac"
        [[algorithms]]
        algo = "qflex"
        preset = "code"
        set = ["algo.width=10"]
        [[settings]]
        name = "plain"
        [[settings]]
        name = "wide"
        set = ["algo.width=11"]
    """)
    runs = sweep_file.read(file).runs
    names = [run.name for run in runs]
    assert names[:9] == [
        "short/sac/plain/s0", "short/sac/wide/s0", "short/qflex/plain/s0", "short/qflex/wide/s0",
        "short/sac/plain/s1", "short/sac/wide/s1", "short/qflex/plain/s1", "short/qflex/wide/s1",
        "chain_reach/sac/plain/s0",
    ]  # fmt: skip
    assert len(set(names)) == 16
    assert [run.config.algo_config.width for run in runs[:4]] == [9, 11, 10, 11]
    assert [run.config.preset for run in runs[:4]] == ["cpu", "cpu", "code", "code"]
    assert [run.config.task_config.num_joints for run in runs[7:9]] == [3, 8]
    assert [run.config.loop.num_envs for run in runs[7:9]] == [16, 4]
    assert runs[0].config.loop.batch_size == 32
    assert runs[4].config.seed == 1
    assert runs[0].folder == Path("runs/a/short/sac/plain/s0")


def test_the_file_in_the_help_can_be_read(tmp_path):
    text = sweep.EPILOG.split("may hold:\n")[1].split("\nA run is")[0]
    file = tmp_path / "help.toml"
    file.write_text(textwrap.dedent(text))
    read = sweep_file.read(file)
    assert [run.name for run in read.runs[:2]] == [
        "chain-10/qflex-40/wide/s0",
        "chain-10/qflex-40/wide/s1",
    ]
    assert read.runs[0].config.algo_config.ascent_steps == 40
    assert read.cluster == {"slurm_partition": "gpu"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("task = ", "is not valid TOML"),
        ('tsk = "arm_reach"', "did you mean 'task'"),
        ('task = "chain_raech"\npreset = "cpu"', "did you mean 'chain_reach'"),
        ('task = "chain_reach"', "has no preset"),
        ('preset = "cpu"', "has no task"),
        (TOP + '[[algorithms]]\nalgo = "qflx"', "chain/qflx: unknown"),
        (TOP + '[[algorithms]]\nalgo = "sac"\nset = ["algo.widht=3"]', "did you mean 'algo.width'"),
        (TOP + '[[algorithms]]\nalgo = "sac"\nseed = 3', "unknown key of [[algorithms]]"),
        (TOP + '[[algorithms]]\nalgo = "sac"\nset = "algo.width=3"', "is no list of texts"),
        (TOP + '[algorithms]\nalgo = "sac"', "write [[algorithms]]"),
        (TOP + "[[settings]]\nset = []", "has no name"),
        (TOP + '[[settings]]\nname = "a/b"', "names a folder, too"),
        (TOP + SAC + SAC, "are named 'sac'"),
        (TOP + '[[settings]]\nname = "a"\nset = ["seed=3"]', "sets its seed"),
        (TOP.replace("4e3", '"many"'), "is no whole number"),
        (TOP.replace("4e3", "0.5"), "'0.5' is no whole number"),
        ("seeds = 0" + TOP, "seeds is 0; give a whole number from 1"),
        ("seeds = 9223372036854775807" + TOP, "give a whole number from 1"),
        ("seeds = [4294967296]" + TOP, "from 0 to 4,294,967,295"),
        ("seeds = [1, 1]" + TOP, "give their number"),
        ("cluster = 3" + TOP, "is no table"),
        ("video = 3" + TOP, "is no true or false"),
    ],
)
def test_a_bad_file_takes_one_line_and_runs_nothing(tmp_path, capsys, monkeypatch, text, says):
    monkeypatch.chdir(tmp_path)
    Path("bad.toml").write_text(text)
    assert sweep.main(["bad.toml"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: bad.toml") or "in bad.toml" in err
    assert err.count("\n") == 1
    assert says in err
    assert [path.name for path in tmp_path.iterdir()] == ["bad.toml"]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ([], "no file given"),
        (["nowhere.toml"], "cannot read nowhere.toml"),
        (["a.toml", "--jobs=0"], "--jobs is 0; give a whole number from 1"),
        (["a.toml", "--worker=3/2"], "give I/K"),
        (["a.toml", "--hours=long"], "'long' is no number"),
        (["a.toml", "--hours=1", "--status"], "--hours is for runs on this machine"),
        (["a.toml", "--print", "--status"], "not allowed with"),
        (["a.toml", "--print", "--worker=1/2"], "leave --worker out"),
        (["a.toml", "--cluster=pbs"], "invalid choice"),
        (["a.toml", "--statsu"], "did you mean '--status'"),
    ],
)
def test_bad_flags_take_one_line(capsys, flags, says):
    assert sweep.main(flags) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1
    assert says in err
