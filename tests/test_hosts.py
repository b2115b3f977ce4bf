"""Several processes that train one run, on this machine; and how they find each other."""

import json
import signal
import socket
import subprocess
import sys

import pytest
from tiny_runs import finish, read_rows, wait_for

from mjx_qflex.errors import UserError
from mjx_qflex.runner import hosts

# Of few reductions, for which two processes on two cores wait long.
TINY = (
    "--task=chain_reach", "--algo=sac", "--num_envs=8", "--no-video",
    "--set", "loop.steps_per_epoch=5", "--set", "loop.batch_size=16",
    "--set", "loop.prefill_transitions=80", "--set", "loop.replay_capacity=800",
    "--set", "loop.eval_envs=2", "--set", "evaluations=1",
    "--set", "algo.width=8", "--set", "algo.depth=1",
)  # fmt: skip


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


@pytest.fixture
def pair(environment):
    """Starts a command as two processes, which end with the test."""
    started = []

    def start(*flags):
        address = f"--coordinator=127.0.0.1:{free_port()}"
        for index in range(2):
            which = ("--num_processes=2", f"--process_id={index}")
            started.append(
                subprocess.Popen(
                    [sys.executable, "-m", "mjx_qflex.train", *flags, address, *which],
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                    env=environment,
                )
            )
        return started[-2:]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_two_processes_train_one_run_and_stop_together(pair, command, tmp_path):
    """A signal to the second stops both; the run goes on with two, and then with one."""
    folder = tmp_path / "run"
    first, second = pair(*TINY, "--total_steps=1000000", f"--logdir={folder}")
    wait_for(first, "checkpoint at")
    second.send_signal(signal.SIGTERM)
    for process in (first, second):
        code, out, err = finish(process)
        assert (code, "Traceback" in err) == (0, False), out + err
        assert "stopped; the same command goes on" in out
    (*_, newest) = sorted((folder / "checkpoints").iterdir())
    saved = json.loads((newest / "about.json").read_text())["counters"]["transitions"]
    rows = read_rows(folder)
    assert saved == int(rows[-1]["transitions"])
    assert [int(row["epoch"]) for row in rows] == [*range(1, len(rows) + 1)]

    for number, total in ((2, saved + 40), (1, saved + 80)):
        flags = (*TINY, f"--total_steps={total}", f"--logdir={folder}")
        processes = pair(*flags) if number == 2 else [command("train", *flags)]
        outputs = [finish(process) for process in processes]
        assert [code for code, _, _ in outputs] == [0] * number, outputs
        assert f"resumed from {total - 40:,} transitions" in outputs[0][1]
        # The second process leaves the talking and the files to the first.
        assert all("loading JAX" in out and "resumed" not in out for _, out, _ in outputs[1:])
        summary = json.loads((folder / "summary.json").read_text())
        assert (summary["devices"], summary["transitions"]) == (number, total)
        assert int(read_rows(folder)[-1]["transitions"]) == total


@pytest.mark.parametrize(
    ("environment", "several"),
    [
        ({}, False),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4"}, False),  # of a job, outside its steps
        ({"SLURM_STEP_NUM_TASKS": "1"}, False),
        ({"SLURM_STEP_NUM_TASKS": "4"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:2"}, True),
    ],
)
def test_clusters_are_known_by_their_variables(environment, several):
    assert hosts.in_cluster(environment) == several


def test_a_cluster_without_an_address_asks_for_one():
    with pytest.raises(UserError, match="--coordinator=HOST:PORT"):
        hosts.in_cluster({"OMPI_COMM_WORLD_SIZE": "2"})


def test_one_process_of_a_node_has_all_its_devices():
    node = {"SLURM_GPUS_ON_NODE": "4"}
    assert hosts.whole_node({**node, "SLURM_STEP_TASKS_PER_NODE": "1(x2)"}) == [0, 1, 2, 3]
    assert hosts.whole_node({**node, "SLURM_STEP_TASKS_PER_NODE": "4(x2)"}) is None
    assert hosts.whole_node({"SLURM_STEP_TASKS_PER_NODE": "1(x2)"}) is None


@pytest.mark.parametrize(
    ("flags", "wrong"),
    [
        (("localhost:1", None, None), "give all three or none"),
        ((None, 2, 0), "give all three or none"),
        (("localhost:1", 2, 2), "--process_id=2: give 0 to 1"),
    ],
)
def test_flags_that_do_not_go_together(flags, wrong):
    with pytest.raises(UserError, match=wrong):
        hosts.start(*flags)


def test_one_process_agrees_with_itself():
    assert hosts.largest(True, 2.5) == [True, 2.5]
    assert hosts.is_first() and not hosts.several()
