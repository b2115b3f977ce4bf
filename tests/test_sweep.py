"""Sweeps as a user meets them: a file, many runs, failures, stops, workers, a cluster."""

import fcntl
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from tiny_runs import LEFT_BEHIND, TINY, finish, learned, read_rows, wait_for

from mjx_qflex import config as configs
from mjx_qflex import sweep
from mjx_qflex.sweeps import cluster, jobs, sweep_file
from mjx_qflex.sweeps.jobs import State

TINY_SETS = [text for flag, text in zip(TINY, TINY[1:], strict=False) if flag == "--set"]
TOP = f"""
preset = "cpu"
num_envs = 8
total_steps = 4e3
set = {json.dumps(TINY_SETS)}
[[tasks]]
name = "chain"
task = "chain_reach"
"""
# More than a disk holds: refused once the run has begun.
FAILING = """
[[algorithms]]
name = "huge"
algo = "sac"
set = ["loop.replay_capacity=1e12"]
"""
GOOD = """
[[algorithms]]
algo = "qflex"
[[algorithms]]
algo = "sac"
"""
TWO_SEEDS = "seeds = [0, 3]\n"
UNFILMED = "video = false\n"


@pytest.fixture(autouse=True)
def variables(environment, monkeypatch):
    """Runs that are started from within a test find what commands get."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


def write(folder, text):
    """Writes a sweep whose runs lie in `folder`; returns its file."""
    path = Path(f"{folder}.toml")
    path.write_text(f"logdir = '{folder}'\n{text}")
    return path


def until(condition, seconds=120.0):
    """Waits for `condition` and returns what it gives; fails where that takes too long."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.2)
    raise AssertionError("waited too long")


def states(file):
    return {run.name: jobs.state_of(run) for run in sweep_file.read(file).runs}


def rows_of(table):
    """Returns the rows of a printed table by their first cell."""
    lines = [line.strip("|").split("|") for line in table.splitlines() if line.startswith("| ")]
    return {cells[0].strip(): [cell.strip() for cell in cells[1:]] for cells in lines}


@pytest.fixture(scope="module")
def swept(command, environment, tmp_path_factory):
    """A sweep that was stopped, and then brought to its end by two workers side by side."""
    folder = tmp_path_factory.mktemp("sweep") / "runs"
    file = write(folder, TWO_SEEDS + UNFILMED + TOP + FAILING + GOOD)
    stopped = command("sweep", file)
    wait_for(stopped, "chain/qflex/s0 begins")
    log = folder / "chain/qflex/log-s0.txt"
    until(lambda: "training begins" in log.read_text())
    stopped.send_signal(signal.SIGINT)
    code, out, err = finish(stopped)
    assert (code, err) == (0, ""), out + err
    after_stop = states(file)

    code, printed, err = finish(command("sweep", file, "--print", "--jobs=2"))
    assert (code, err) == (0, ""), printed + err
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    workers = [
        subprocess.Popen(
            line, shell=True, env={**environment, "PATH": path}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for line in printed.splitlines()
    ]  # fmt: skip
    return file, after_stop, out, [(worker.args, *finish(worker)) for worker in workers]


def test_ctrl_c_stops_the_run_in_progress_with_its_checkpoint(swept):
    _, after_stop, out, _ = swept
    assert "stopped; the same command goes on" in out
    assert after_stop == {
        "chain/huge/s0": State.FAILED,
        "chain/qflex/s0": State.STOPPED,
        "chain/sac/s0": State.WAITING,
        "chain/huge/s3": State.WAITING,
        "chain/qflex/s3": State.WAITING,
        "chain/sac/s3": State.WAITING,
    }


def test_printed_workers_do_their_shares_and_one_failure_does_not_stop_the_rest(swept):
    file, _, _, workers = swept
    assert [shlex.split(line)[-1] for line, *_ in workers] == ["--worker=1/2", "--worker=2/2"]
    for (_, code, out, err), own in zip(workers, ("0", "3"), strict=True):
        # Runs 1, 3, 5 and 2, 4, 6 of the order above: one failure each.
        assert code == 2
        assert err.startswith("error: 1 of 3 runs failed") and err.count("\n") == 1
        assert f"chain/huge/s{own} failed" in out
    found = states(file)
    assert {name for name, state in found.items() if state == State.FAILED} == {
        "chain/huge/s0",
        "chain/huge/s3",
    }
    assert list(found.values()).count(State.FINISHED) == 4


def test_each_run_is_what_train_makes_of_the_same_settings(swept, trained):
    alone, _ = trained
    folder = swept[0].with_suffix("") / "chain"
    for run in ("qflex/s0", "qflex/s3", "sac/s0", "sac/s3"):
        assert {path.name for path in (folder / run).iterdir()} == LEFT_BEHIND - {"video.mp4"}
        assert "evaluate --run=DIR` makes it" in (folder / run / "report.md").read_text()
    # Stopped and resumed in between.
    assert configs.load(folder / "qflex/s0") == configs.load(alone)
    assert learned(read_rows(folder / "qflex/s0")) == learned(read_rows(alone))
    assert learned(read_rows(folder / "qflex/s3")) != learned(read_rows(alone))
    assert configs.load(folder / "qflex/s3").seed == 3
    assert "resumed from" in (folder / "qflex/log-s0.txt").read_text()


def test_the_same_command_redoes_nothing_but_failures(swept, capsys):
    file = swept[0]
    folder = file.with_suffix("")
    log = folder / "chain/huge/log-s0.txt"
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("s?/**/*")}
    attempts = log.read_text().count("$ python")
    assert len(before) > 50
    assert sweep.main([str(file), "--jobs=2"]) == 2
    assert "2 of 6 runs failed" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("s?/**/*")} == before
    assert log.read_text().count("$ python") == attempts + 1


def test_status_shows_results_and_errors_and_touches_nothing(swept, capsys):
    file = swept[0]
    before = {path: path.stat().st_mtime_ns for path in file.with_suffix("").rglob("*")}
    assert sweep.main([str(file), "--status"]) == 0
    out = capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in file.with_suffix("").rglob("*")} == before
    table = rows_of(out)
    assert table["runs"] == ["finished", "running", "stopped", "failed", "waiting", "return"]
    assert table["all"] == ["4", "", "", "2", "", ""]
    assert table["chain/huge"] == ["", "", "", "2", "", ""]
    returns = [
        json.loads((file.with_suffix("") / f"chain/sac/{seed}/evaluation.json").read_text())
        for seed in ("s0", "s3")
    ]
    mean = sum(result["policies"]["trained"]["return_mean"] for result in returns) / 2
    assert float(table["chain/sac"][-1]) == pytest.approx(mean, rel=1e-3)
    (line,) = [line for line in out.splitlines() if line.startswith("chain/huge/s3 failed: ")]
    assert "error: the replay needs" in line and "log-s3.txt" in line


def test_nothing_is_printed_for_workers_without_work(swept, capsys):
    assert sweep.main([str(swept[0]), "--print"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("--worker=")[1] for line in lines] == ["1/6", "4/6"]


def test_changed_settings_are_refused_before_anything_runs(swept, capsys):
    file = swept[0].with_name("changed.toml")
    text = swept[0].read_text().replace('algo = "qflex"', 'algo = "qflex"\npreset = "code"')
    file.write_text(text)
    assert sweep.main([str(file)]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "chain/qflex/s0" in err and "preset=cpu" in err and "preset=code" in err


def test_a_run_that_another_process_has_is_left_to_it(tmp_path, capsys):
    file = write(tmp_path / "runs", TOP)
    (run,) = sweep_file.read(file).runs
    run.log.parent.mkdir(parents=True)
    with run.log.open("a") as log:
        fcntl.flock(log, fcntl.LOCK_EX)
        assert jobs.state_of(run) == State.RUNNING
        assert sweep.main([str(file)]) == 0
        assert "chain/s0 running: 0 of 4,000 transitions" in capsys.readouterr().out
    assert jobs.state_of(run) == State.STOPPED
    # Nor is one tried again that failed elsewhere meanwhile.
    run.log.write_text(f"error: why\n{jobs.FAILED}status 2\n")
    assert jobs.start(run, again=False) is None
    assert jobs.last_words(run) == "error: why (failed with status 2)"
    assert not run.folder.exists()


def test_a_run_with_a_damaged_checkpoint_fails_alone(tmp_path, capsys):
    file = write(tmp_path / "runs", TOP)
    (run,) = sweep_file.read(file).runs
    run.folder.mkdir(parents=True)
    configs.save(run.config, run.folder)
    (run.folder / "checkpoints/000000004000").mkdir(parents=True)
    for name in ("evaluation.json", "report.md"):
        (run.folder / name).write_text("{}")
    assert sweep.main([str(file), "--status"]) == 0
    assert "chain/s0 stopped" in capsys.readouterr().out
    assert sweep.main([str(file)]) == 2
    assert "is damaged" in capsys.readouterr().out


def test_no_run_begins_after_the_time_is_up(tmp_path, capsys):
    file = write(tmp_path / "runs", TOP)
    assert sweep.main([str(file), "--hours=1e-9"]) == 0
    out = capsys.readouterr().out
    assert "the time is up; 1 runs are left" in out
    assert rows_of(out)["all"] == ["", "", "", "", "1", ""]
    assert not (tmp_path / "runs").exists()


def test_jobs_of_a_cluster_leave_the_same(command, swept, tmp_path):
    folder = tmp_path / "runs"
    file = write(folder, UNFILMED + TOP + FAILING + '[[algorithms]]\nalgo = "sac"\n')
    # The jobs outlive the command, and hold the pipe that `finish` reads to its end.
    code, out, err = finish(command("sweep", file, "--cluster=local"))
    assert (code, err) == (0, ""), out + err
    assert "submitted 2 of 2 runs" in out
    assert states(file) == {"chain/huge/s0": State.FAILED, "chain/sac/s0": State.FINISHED}
    other = swept[0].with_suffix("") / "chain/sac/s0"
    assert learned(read_rows(folder / "chain/sac/s0")) == learned(read_rows(other))
    # submitit knows of the failure, too.
    logs = [path.read_text() for path in folder.glob(".submitit/*/*.err")]
    (failed,) = [text for text in logs if "RuntimeError" in text]
    assert "chain/huge/s0: error: the replay needs" in failed


def test_a_preempted_job_saves_and_is_queued_again(tmp_path):
    text = TOP.replace("4e3", "1e6") + '[[algorithms]]\nalgo = "sac"\n'
    (run,) = sweep_file.read(write(tmp_path / "runs", text)).runs
    job = cluster.ClusterRun(run)
    queued = []

    def warn():
        until(lambda: run.log.exists() and "checkpoint at" in run.log.read_text())
        assert job.job is not None
        # Slurm warns the run's process, too, and that must not end it.
        os.kill(job.job._process.pid, signal.SIGUSR2)
        os.kill(os.getpid(), signal.SIGUSR2)

    # As submitit does, on the thread that waits for the run.
    before = signal.signal(signal.SIGUSR2, lambda *_: queued.append(job.checkpoint()))
    thread = threading.Thread(target=warn)
    thread.start()
    try:
        assert job() == "stopped"
    finally:
        thread.join()
        signal.signal(signal.SIGUSR2, before)
    assert "stopped; the same command goes on" in run.log.read_text()
    (again,) = [submission.function for submission in queued]
    assert isinstance(again, cluster.ClusterRun) and again.run == run


@pytest.mark.parametrize(
    ("cluster", "table", "says"),
    [
        ("local", "[cluster]\nslurm_time_min = 3", "slurm_time_min"),
        ("local", "[cluster]\nlocation = 3", "prefixed"),
        ("slurm", "", "srun"),
    ],
)
def test_what_submitit_refuses_takes_one_line(tmp_path, capsys, monkeypatch, cluster, table, says):
    monkeypatch.setenv("PATH", "")
    file = write(tmp_path / "runs", TOP + table)
    assert sweep.main([str(file), f"--cluster={cluster}"]) == 2
    err = capsys.readouterr().err
    assert says in err and err.count("\n") == 1


def test_a_missing_submitit_takes_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    assert sweep.main([str(write(tmp_path / "runs", TOP)), "--cluster=slurm"]) == 2
    err = capsys.readouterr().err
    assert "pip install 'mjx_qflex[sweep]'" in err and err.count("\n") == 1
    assert not (tmp_path / "runs").exists()
