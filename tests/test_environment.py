"""What surrounds a command: variables, homes, devices, signals, other processes."""

import os
import pwd
import signal
import subprocess
import sys

import pytest
from tiny_runs import TINY, finish, wait_for

from mjx_qflex import benchmark, evaluate, resources, sweep, train
from mjx_qflex.errors import UserError
from mjx_qflex.runner import checkpoint, hosts


def one_line(capsys):
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1
    return err


@pytest.mark.parametrize("value", ["1", "true", "True", "ON"])
def test_double_precision_is_refused(capsys, monkeypatch, tmp_path, value):
    monkeypatch.setenv("JAX_ENABLE_X64", value)
    for main, flags in (
        (train.main, ["--task=chain_reach", f"--logdir={tmp_path / 'run'}"]),
        (evaluate.main, [f"--run={tmp_path}"]),
        (benchmark.main, ["--task=chain_reach"]),
        (sweep.main, ["none.toml"]),
    ):
        assert main(flags) == 2
        assert "JAX_ENABLE_X64 is set" in one_line(capsys)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("flags", [["--help"], ["--task=chain_reach"]])
def test_devices_that_are_not_there_are_one_line(environment, tmp_path, flags):
    done = subprocess.run(
        [sys.executable, "-m", "mjx_qflex.train", *flags, f"--logdir={tmp_path / 'run'}"],
        env={**environment, "JAX_PLATFORMS": "cuda"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "JAX finds no device with JAX_PLATFORMS='cuda'" in error
    assert "Traceback" not in done.stderr and not list(tmp_path.iterdir())


LOAD = """
import os
from mjx_qflex import commands
with commands.quiet_imports():
    import mujoco
print(os.environ["MUJOCO_GL"])
"""


def test_mujoco_is_loaded_whatever_renders(environment):
    """Its import fails where `MUJOCO_GL` names what is not there; the renderer still gets it."""
    done = subprocess.run(
        [sys.executable, "-c", LOAD],
        env={**environment, "MUJOCO_GL": "nonsense"},
        capture_output=True,
        text=True,
    )
    assert (done.stdout, done.stderr) == ("nonsense\n", "")


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (["mjx_qflex.motions", "--show=no_such_motion"], "unknown motion"),
        (["mjx_qflex.port", "--body=no_such_body"], "no_such_body"),
        (["mjx_qflex.port", "--bodi=arm"], "did you mean '--body'"),
        (["mjx_qflex.port"], "give --body=NAME"),
        (["mjx_qflex.export", "--run=no_such_run", "--output=made"], "no_such_run"),
    ],
)
def test_a_library_that_is_not_there_stops_no_command(environment, tmp_path, command, says):
    done = subprocess.run(
        [sys.executable, "-m", *command],
        env={**environment, "MUJOCO_GL": "nonsense"},
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 2 and done.stderr.startswith("error: ") and says in done.stderr
    assert done.stderr.count("\n") == 1 and not list(tmp_path.iterdir())


def test_a_user_without_a_home(monkeypatch):
    """As in many containers: no HOME, and no entry in the table of users."""

    def unknown(number):
        raise KeyError(number)

    for name in ("HOME", "XDG_CACHE_HOME", resources.CACHE_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    with pytest.raises(UserError, match="set MJX_QFLEX_CACHE"):
        resources.cache_folder()
    monkeypatch.setenv(resources.CACHE_VARIABLE, "/somewhere")
    assert str(resources.cache_folder()) == "/somewhere"


@pytest.mark.parametrize(
    "coordinator", ["nonsense", ":1", "host:", "host:x", "host:0", "host:65536", "host:-1"]
)
def test_a_coordinator_is_a_host_and_a_port(coordinator):
    with pytest.raises(UserError, match="give HOST:PORT"):
        hosts.start(coordinator, 2, 0)


@pytest.mark.parametrize("name", ["SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"])
@pytest.mark.parametrize("value", ["", "two", "-1", "1.5", "9" * 20])
def test_odd_variables_of_a_cluster_are_one_line(name, value):
    with pytest.raises(UserError, match=f"{name}="):
        hosts.in_cluster({name: value})


INTERRUPTED = "import os, signal, time; os.kill(os.getpid(), signal.SIGINT); time.sleep(9)\n"


@pytest.mark.parametrize("module", ["train", "evaluate", "report", "sweep", "benchmark"])
def test_ctrl_c_while_a_command_is_loaded_leaves_no_traceback(environment, tmp_path, module):
    """`argparse` stands for all that is loaded before the command listens."""
    (tmp_path / "argparse.py").write_text(INTERRUPTED)
    done = subprocess.run(
        [sys.executable, "-m", f"mjx_qflex.{module}", "--help"],
        env={**environment, "PYTHONPATH": f"{tmp_path}{os.pathsep}{environment['PYTHONPATH']}"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")


@pytest.fixture
def heard_hang_ups():
    """Commands hear of a hang-up, also where these tests were started by nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("heard_hang_ups")
def test_a_hang_up_saves_and_says_no_more(command, tmp_path):
    """The terminal goes away, twice, and with it whoever read: the run is saved all the same."""
    folder = tmp_path / "run"
    process = command("train", *TINY, "--set", "total_steps=100000000", f"--logdir={folder}")
    wait_for(process, "checkpoint at 800")
    wait_for(process, "transitions |")
    before = checkpoint.newest(folder / "checkpoints")
    process.stdout.close()
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGHUP)
    process.wait(60)
    assert (process.returncode, process.stderr.read()) == (0, "")
    process.stderr.close()
    assert checkpoint.newest(folder / "checkpoints") > before
    again = command("train", *TINY, "--set", "total_steps=100000000", f"--logdir={folder}")
    wait_for(again, "resumed from")
    second = command("train", *TINY, f"--logdir={folder}")
    code, _, err = finish(second)
    assert code == 2 and f"process {again.pid} on" in err and err.count("\n") == 1
    again.send_signal(signal.SIGTERM)
    assert finish(again)[0] == 0


def test_an_ignored_hang_up_stays_ignored(environment):
    """As under `nohup`."""
    code = (
        "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "from mjx_qflex import commands\n"
        "def command(arguments, interrupt):\n"
        "    signal.raise_signal(signal.SIGHUP); commands.say(str(interrupt.requested))\n"
        "raise SystemExit(commands.run(command, []))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0 and "False" in done.stdout


def test_an_empty_flag_is_a_mistake(capsys, tmp_path, monkeypatch):
    """`--logdir=$UNSET` would write into the current folder."""
    monkeypatch.chdir(tmp_path)
    for flags in (["--logdir="], ["--logdir", ""], ["--set="], ["--task="]):
        assert train.main(["--task=chain_reach", *flags]) == 2
        assert "has no value" in one_line(capsys)
    assert list(tmp_path.iterdir()) == []
