"""The metrics log, the progress line, and the interval of paired differences."""

import json
import math
import signal
import struct
import threading
import time
import types

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from mjx_qflex.errors import UserError
from mjx_qflex.interrupt import Interrupt, Interrupted
from mjx_qflex.reports import reporting
from mjx_qflex.runner import assessment, metrics
from mjx_qflex.training import evaluation


def row(transitions, **more):
    return {"transitions": transitions, "seconds": 0.5 * transitions, "return": math.nan, **more}


def test_rows_come_back_with_nan_as_nan(tmp_path):
    log = metrics.MetricsLog(tmp_path, 0)
    log.write(row(10))
    log.write(row(20) | {"return": 1 / 3})
    first, second = metrics.read_rows(tmp_path)  # before closing: each row is there at once
    log.close()
    assert math.isnan(first["return"])
    assert second["return"] == pytest.approx(1 / 3, rel=1e-9)
    assert (tmp_path / "metrics.csv").read_text().splitlines()[0] == "transitions,seconds,return"


def test_a_resumed_log_drops_what_will_be_written_again(tmp_path):
    log = metrics.MetricsLog(tmp_path, 0)
    for transitions in (10, 20, 30):
        log.write(row(transitions))
    log.close()
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("40,2")  # killed in the middle of a line
    log = metrics.MetricsLog(tmp_path, 20)
    log.write(row(30) | {"return": 7.0})
    log.close()
    rows = metrics.read_rows(tmp_path)
    assert [r["transitions"] for r in rows] == [10, 20, 30]
    assert rows[-1]["return"] == 7.0


def events(folder):
    """The events in TensorBoard's files, oldest first."""
    found = []
    for path in sorted((folder / "tensorboard").iterdir()):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])  # then four bytes of check sum, and after it
            found.append(Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return found


def test_tensorboard_has_every_finite_number_at_once(tmp_path):
    log = metrics.MetricsLog(tmp_path, 0)
    log.write(row(10))
    log.write(row(20) | {"return": 0.25})
    values = [
        {value.tag: value.simple_value for value in event.summary.value}
        for event in events(tmp_path)
        if event.HasField("summary")
    ]
    assert values == [
        {"transitions": 10, "seconds": 5.0},
        {"transitions": 20, "seconds": 10.0, "return": 0.25},
    ]
    log.close()
    time.sleep(1.1)  # its files are named by the second
    metrics.MetricsLog(tmp_path, 10).close()
    (start,) = [event for event in events(tmp_path) if event.HasField("session_log")]
    assert start.step == 11 and start.session_log.status == start.session_log.START


def test_the_header_never_changes(tmp_path):
    log = metrics.MetricsLog(tmp_path, 0)
    log.write(row(10))
    with pytest.raises(UserError, match="extra"):
        log.write(row(20, extra=1.0))
    log.close()
    log = metrics.MetricsLog(tmp_path, 10)
    with pytest.raises(UserError, match="extra"):
        log.write(row(20, extra=1.0))
    log.close()


@pytest.mark.parametrize(
    ("seconds", "text"), [(44.6, "45 s"), (200, "3 min 20 s"), (7500, "2 h 5 min"), (0, "0 s")]
)
def test_durations(seconds, text):
    assert metrics.duration(seconds) == text


def test_numbers_are_short():
    assert metrics.number(math.nan) == "-"
    assert metrics.number(1234567.8) == "1,234,568"
    assert metrics.number(0.012345) == "0.01235"


def test_used_memory_is_that_of_this_process():
    assert 2**25 < metrics.used_memory() < 2**36


def test_paired_interval_is_students():
    # Differences 1, 2, 3, 4: mean 2.5, standard error sqrt(5/3)/2, t(0.975; 3) = 3.182446.
    interval = assessment.paired_interval(np.array([1.0, 2.0, 3.0, 4.0]))
    margin = 3.182446 * math.sqrt(5 / 3) / 2
    assert interval == pytest.approx((2.5, 2.5 - margin, 2.5 + margin), rel=1e-5)


def test_paired_interval_covers_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(0)
    draws = rng.normal(1.0, 2.0, (2000, 16))
    covered = [i.low < 1.0 < i.high for i in map(assessment.paired_interval, draws)]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.015)


def policy(mean):
    return {"return_mean": mean, "return_std": 1.0, "length_mean": 10.0, "nonfinite": 0}


def write_run(folder, low, high):
    summary = {
        "command": "python -m mjx_qflex.train --task=t", "task": "t", "algo": "qflex",
        "preset": "cpu", "seed": 0, "device": "2 CPU cores", "versions": {"jax": "0.10"},
        "python": "3.11", "observation_size": 5, "action_size": 3, "num_envs": 4,
        "transitions": 100, "updates": 20, "epochs": 2, "training_seconds": 61.0,
        "compile_seconds": 9.0, "memory_gib": 1.0, "steps_per_second": 50.0,
        "updates_per_second": 10.0,
    }  # fmt: skip
    (folder / "summary.json").write_text(json.dumps(summary))
    policies = {"trained": policy(2.0), "untrained": policy(1.0), "idle": policy(0.0)}
    interval = {"mean": (low + high) / 2, "low": low, "high": high}
    assessment.save(
        {
            "seed": 0, "episodes": 64, "idle_action": -1.0, "control_dt": 0.02,
            "policies": policies, "trained_minus": {"untrained": interval, "idle": interval},
        },
        folder,
    )  # fmt: skip
    return summary


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(0.5, 1.5, "is better than"), (-0.5, 1.5, "cannot be told apart"), (-2, -1, "is worse than")],
)
def test_the_report_claims_what_the_interval_allows(tmp_path, low, high, verdict):
    write_run(tmp_path, low, high)
    reporting.write_report(tmp_path)
    report = (tmp_path / "report.md").read_text()
    assert f"{verdict} the policy `untrained`" in report or verdict == "cannot be told apart"
    assert verdict in report
    assert "zero excitation" in report
    assert "1 min 1 s of training" in report


@pytest.mark.parametrize(
    ("idle", "said"),
    [
        ([-1.0, -1.0], "zero excitation"),
        ([0.0, 0.0], "constant action 0"),
        ([-1.0, 0.5], "idle: the start pose held"),
    ],
)
def test_a_report_says_what_idleness_was(idle, said):
    env = types.SimpleNamespace(
        idle_action=np.array(idle), action_size=2, control_dt=0.1, episode_length=7
    )
    episodes = evaluation.EvalResult(*np.zeros((4, 3)), {})
    algorithm = types.SimpleNamespace(init=lambda key: key)
    programs = types.SimpleNamespace(
        evaluate=lambda learner, key: episodes, evaluate_constant=lambda action, key: episodes
    )
    assessed = assessment.assess(programs, env, algorithm, None, 0)
    assert f"| {said} " in "\n".join(assessment.table(json.loads(json.dumps(assessed))))
    assert assessment.reached(assessed) == "0 of 3 episodes reach the time limit"


def signal_after(seconds):
    threading.Timer(seconds, signal.raise_signal, [signal.SIGTERM]).start()


def test_an_attempt_is_left_at_once_and_a_completion_is_awaited():
    with Interrupt(say=lambda _: None) as interrupt:
        signal_after(0.2)
        start = time.monotonic()
        with pytest.raises(Interrupted):
            interrupt.attempt(time.sleep, 5.0)
        assert time.monotonic() - start < 2.0
        assert interrupt.complete(lambda: 3) == 3
        with pytest.raises(Interrupted):
            interrupt.attempt(lambda: 3)
    with Interrupt(say=lambda _: None) as interrupt:
        signal_after(0.1)
        start = time.monotonic()
        interrupt.complete(time.sleep, 0.6)
        assert interrupt.requested
        assert time.monotonic() - start >= 0.6


def test_errors_come_back_to_the_caller_and_handlers_are_put_back():
    before = signal.getsignal(signal.SIGTERM)

    def fail():
        raise UserError("wrong")

    with Interrupt() as interrupt, pytest.raises(UserError, match="wrong"):
        interrupt.attempt(fail)
    assert signal.getsignal(signal.SIGTERM) is before
