"""brax's PPO on our environments: restarts, endings, known values, whole runs by the commands."""

import csv
import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_envs
from brax.training.agents.ppo import train as brax_ppo
from conftest import jax_for_others

from mjx_qflex import algos, evaluate, presets, report, train
from mjx_qflex.algos.ppo import PpoConfig, network_factory
from mjx_qflex.interrupt import Interrupt, Interrupted
from mjx_qflex.reports import reporting
from mjx_qflex.runner import assessment, checkpoint, driver, metrics, run_folder
from mjx_qflex.training import environments, on_policy
from mjx_qflex.training.on_policy import BraxEnvironments, OnPolicyConfig

GAMMA = 0.9
OPTIONS = PpoConfig(
    width=32, depth=2, critic_width=None, critic_depth=2, learning_rate=3e-3, gamma=GAMMA,
    entropy_cost=1e-3,
)  # fmt: skip
# 4 unrolls of 8 steps of each environment an iteration.
SIZES = OnPolicyConfig(
    num_envs=16, unroll_length=8, batch_size=16, num_minibatches=4, num_updates_per_batch=4,
    steps_per_epoch=320, eval_envs=32,
)  # fmt: skip
TINY = (
    "--task=chain_reach", "--algo=ppo", "--num_envs=8", "--set", "loop.unroll_length=10",
    "--set", "loop.batch_size=4", "--set", "loop.num_minibatches=4",
    "--set", "loop.steps_per_epoch=60", "--set", "loop.eval_envs=8", "--set", "evaluations=3",
    "--set", "algo.width=16", "--set", "algo.depth=1", "--set", "algo.critic_depth=1",
)  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def as_brax_needs_it(tmp_path_factory):
    with jax_for_others(tmp_path_factory.mktemp("compiled")):
        yield


def compile_now(name, program, *arguments):
    program.compile(*arguments)


def learn(env, epochs, options=OPTIONS, seed=0):
    """Trains; returns the agent, what it learnt and the metrics of each epoch."""
    agent = algos.make("ppo", options, environments.spec(env))
    seen = []
    on_policy.train(
        env, options, SIZES, agent.init(jax.random.PRNGKey(seed)), epochs, seed, compile_now,
        lambda learner, measured: seen.append((learner, measured)),
    )  # fmt: skip
    return agent, seen[-1][0], [measured for _, measured in seen]


def value_of(learner, env, obs):
    networks = network_factory(OPTIONS)(
        env.observation_size,
        env.action_size,
        preprocess_observations_fn=brax_ppo.running_statistics.normalize,
    )
    return float(networks.value_network.apply(learner.normalizer, learner.value, jnp.asarray(obs)))


# Environments.


def step_worlds(env, num_envs, steps, epoch_steps):
    """Steps environments with action 0; returns states from the reset on, and reported metrics."""
    reported = []
    batch = BraxEnvironments(env, epoch_steps, lambda row: reported.append(jax.device_get(row)))
    states = [jax.jit(batch.reset)(jax.random.split(jax.random.PRNGKey(0), num_envs))]
    step = jax.jit(batch.step)
    for _ in range(steps):
        states.append(step(states[-1], jnp.zeros((num_envs, env.action_size))))
    jax.effects_barrier()
    return states, reported


def test_ended_worlds_restart_anew_and_tell_how_they_ended():
    env = toy_envs.Counter(death_label=0.3, poison_label=0.9, poison_time=1)
    states, reported = step_worlds(env, 64, steps=20, epoch_steps=10)
    ended = {"terminated": 0, "timed_out": 0, "bad": 0, "alike": 0}
    for before, after in zip(states, states[1:], strict=False):
        label, time = np.asarray(before.obs).T
        died = (label < 0.3) & (time == 2)
        poisoned = (label > 0.9) & (time == 1)
        late = (time == 4) & ~died
        np.testing.assert_array_equal(after.done, died | poisoned | late)
        np.testing.assert_array_equal(after.info["truncation"], poisoned)
        np.testing.assert_array_equal(after.info["time_out"], late)
        np.testing.assert_allclose(after.reward, np.where(poisoned, 0.0, 0.1 * time), atol=1e-6)
        # A new episode: time 0, and a label of its own.
        fresh = np.asarray(after.done) > 0
        np.testing.assert_array_equal(after.obs[:, 1], np.where(fresh, 0, time + 1))
        ended["alike"] += (fresh & (np.asarray(after.obs[:, 0]) == label)).sum()
        ended["terminated"] += died.sum()
        ended["timed_out"] += late.sum()
        ended["bad"] += poisoned.sum()
    # One environment in 64 draws the start that it had.
    assert ended.pop("alike") < 0.1 * sum(ended.values())
    assert min(ended.values()) > 0
    assert len(reported) == 2
    totals = {name: sum(row[name] for row in reported) for name in reported[0]}
    assert totals["episode/terminations"] == ended["terminated"]
    assert totals["episode/timeouts"] == ended["timed_out"]
    assert totals["nonfinite_environments"] == ended["bad"]
    assert totals["episode/count"] == sum(ended.values())


def test_each_epoch_has_starts_of_its_own():
    """32 environments restart at every step: the labels of an epoch are the 32 of its pool."""
    states, reported = step_worlds(toy_envs.ObservationLabels(), 32, steps=40, epoch_steps=20)
    first = {float(x) for state in states[1:20] for x in state.obs[:, 0]}
    second = {float(x) for state in states[21:40] for x in state.obs[:, 0]}
    assert 24 < len(first) <= 32 and 24 < len(second) <= 32
    assert not first & second
    assert [row["episode/length"] for row in reported] == [1.0, 1.0]


# Learning.


def test_a_time_out_bootstraps():
    """A reward of 1 a step, for ever but for time-outs after 4."""
    env = toy_envs.EndlessReward()
    _, learner, rows = learn(env, epochs=6)
    assert value_of(learner, env, [0.0]) == pytest.approx(1 / (1 - GAMMA), rel=0.1)
    assert rows[0]["episode/return"] == 4.0 and rows[0]["episode/terminations"] == 0


def test_a_termination_does_not_bootstrap():
    """The same by termination: at most 1 + 0.9 + 0.81 + 0.73 lie ahead, 1 at least."""
    env = toy_envs.MortalReward()
    _, learner, _ = learn(env, epochs=6)
    assert 1.0 < value_of(learner, env, [0.0]) < 3.44


def test_learns_which_action_is_best_and_leaves_jax_alone():
    env = toy_envs.ActionReward()
    # With 3e-3, brax's PPO overshoots once the policy has hardly any noise left.
    options = dataclasses.replace(OPTIONS, learning_rate=1e-3)
    agent, learner, rows = learn(env, epochs=2, options=options)
    programs = assessment.make_programs(env, agent, 32)
    trained = programs.evaluate(learner, jax.random.PRNGKey(1)).return_.mean()
    assert trained > -0.05  # doing nothing returns -0.25, random actions -0.58
    assert rows[-1]["episode/return"] > rows[0]["episode/return"]
    assert all(np.isfinite(value) for row in rows for value in row.values())
    assert {"update/policy_loss", "update/v_loss", "reward", "env/reward/toy"} <= set(rows[0])
    assert brax_ppo.jax is jax and "device_put_replicated" not in vars(jax)


# Whole runs.


def read_rows(folder):
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def trained(as_brax_needs_it, tmp_path_factory):
    """A finished run by the command: its folder."""
    folder = tmp_path_factory.mktemp("runs") / "ppo"
    assert train.main([*TINY, "--total_steps=2000", f"--logdir={folder}"]) == 0
    return folder


def test_a_run_leaves_the_same_as_any_other(trained, tmp_path, capsys):
    assert {path.name for path in trained.iterdir()} == {
        "checkpoints", "config.json", "evaluation.json", "learning_curve.png", "metrics.csv",
        "report.md", "summary.json", "tensorboard", "video.mp4",
    }  # fmt: skip
    rows = read_rows(trained)
    # 60 steps are three iterations of 160 transitions.
    assert [int(row["transitions"]) for row in rows] == [480, 960, 1440, 1920, 2400]
    assert [int(row["updates"]) for row in rows] == [96, 192, 288, 384, 480]
    assert sum(bool(row["evaluation/return"]) for row in rows) == 3
    assert rows[-1]["episode/length"] == "20"
    result = json.loads((trained / "evaluation.json").read_text())
    assert set(result["policies"]) == {"trained", "untrained", "idle"}
    last = float(rows[-1]["evaluation/return"])
    assert last == pytest.approx(result["policies"]["trained"]["return_mean"], rel=1e-4)
    summary = json.loads((trained / "summary.json").read_text())
    assert summary["compile_seconds"] > 1.0 and summary["updates"] == 480
    page = tmp_path / "page.html"
    assert report.main([str(trained), f"--output={page}"]) == 0
    assert "ppo" in page.read_text()
    assert capsys.readouterr().err == ""


def test_finished_runs_rest_are_evaluated_again_and_go_on(trained, capsys):
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*")}
    assert train.main([*TINY, "--total_steps=2000", f"--logdir={trained}"]) == 0
    assert "is finished" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in trained.rglob("*")} == before

    last = float(read_rows(trained)[-1]["evaluation/return"])
    assert evaluate.main([f"--run={trained}", "--episodes=8", "--no-video"]) == 0
    result = json.loads((trained / "evaluation.json").read_text())
    assert result["policies"]["trained"]["return_mean"] == pytest.approx(last, rel=1e-4)
    assert evaluate.main([f"--run={trained}", "--guidance", "0.1"]) == 2
    assert "ppo cannot be guided" in capsys.readouterr().err

    rows = read_rows(trained)
    assert train.main([*TINY, "--total_steps=2500", f"--logdir={trained}"]) == 0
    out = capsys.readouterr().out
    assert "resumed from 2,400" in out and "start afresh" in out
    assert read_rows(trained)[:-1] == rows
    assert int(read_rows(trained)[-1]["transitions"]) == 2880
    assert "2,880 transitions" in (trained / "report.md").read_text()


def test_a_stopped_run_keeps_what_it_learnt(tmp_path):
    sets = [flag for flag in TINY if flag.startswith(("loop.", "algo.", "evaluations"))]
    config = presets.resolve("chain_reach", "ppo", None, 0, 8, 2000, sets, "cpu")

    def go(folder, stop_at):
        words = []

        def say(line):
            words.append(line)
            interrupt.requested |= line.startswith(stop_at)

        with Interrupt(words.append) as interrupt:
            driver.train(config, folder, reporting.writer("command", say), interrupt, say)

    with pytest.raises(Interrupted):  # while compiling: at once, with nothing to save
        go(tmp_path / "early", "compiling training_epoch")
    assert metrics.read_rows(tmp_path / "early") == []

    folder = tmp_path / "run"
    with pytest.raises(Interrupted):
        go(folder, "checkpoint at 480")
    stopped = int(metrics.read_rows(folder)[-1]["transitions"])
    newest = checkpoint.newest(folder / run_folder.CHECKPOINTS)
    assert newest is not None and int(newest.name) == stopped < 2000
    go(folder, "never")
    rows = metrics.read_rows(folder)
    assert [int(row["transitions"]) for row in rows] == [480, 960, 1440, 1920, 2400]
    # The data after the stop is not that of the beginning once more.
    assert len({row["reward"] for row in rows}) == len(rows)
    assert (folder / "report.md").exists()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--num_envs=7"], "16 unrolls, which 7 environments cannot share equally"),
        (["--set", "loop.batch_size=0"], "loop.batch_size is 0"),
        (["--set", "loop.replay_capacity=10"], "unknown --set key 'loop.replay_capacity'"),
        (["--set", "algo.activation=gelu"], "give one of swish, relu, tanh"),
        (["--set", "algo.tau=0.1"], "unknown --set key 'algo.tau'"),
    ],
)
def test_bad_input_takes_one_line_and_writes_nothing(capsys, tmp_path, flags, says):
    assert train.main([*TINY, *flags, f"--logdir={tmp_path / 'run'}"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and says in err
    assert list(tmp_path.iterdir()) == []


def test_sizes_that_are_valid_only_together_need_no_order():
    sizes = ["loop.batch_size=6", "loop.num_minibatches=2"]
    config = presets.resolve("chain_reach", "ppo", "cpu", num_envs=12, sets=sizes)
    assert config.loop.num_envs == 12
    assert config == presets.resolve("chain_reach", "ppo", "cpu", num_envs=12, sets=sizes[::-1])


@pytest.mark.parametrize("preset", ["cpu", "gpu", "paper", "code"])
@pytest.mark.parametrize("task", ["chain_reach", "ms_human_walk"])
def test_presets_are_complete(preset, task):
    config = presets.resolve(task, "ppo", preset)
    other = presets.resolve(task, "sac", preset)
    assert (config.total_steps, config.evaluations) == (other.total_steps, other.evaluations)
    assert config.loop.eval_envs == other.loop.eval_envs
    if preset in ("paper", "code"):
        # Stable-Baselines3's iteration: 2,048 steps of 4 environments, minibatches of 512.
        assert config.loop.iteration_steps == 2048 and config.loop.num_envs == 4
        assert config.loop.batch_size * config.loop.unroll_length == 512


def test_help_lists_its_own_settings(capsys):
    assert train.main(["--task=chain_reach", "--algo=ppo", "--preset=cpu", "--help"]) == 0
    text = capsys.readouterr().out
    assert "loop.unroll_length=20" in text and "algo.gae_lambda=0.95" in text
    assert "replay" not in text.partition("Settings of")[2]
    assert train.main(["--algo=ppo", "--help"]) == 0
    assert "128" in capsys.readouterr().out


def test_seeds_train_one_after_the_other(tmp_path, capsys):
    sets = [*TINY, "--total_steps=480", f"--logdir={tmp_path}", "--no-video", "--seeds=2"]
    assert train.main([*sets, "--seeds_at_once=2"]) == 2
    assert "one seed after the other" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    assert train.main(sets) == 0
    assert {run.name for run in tmp_path.iterdir()} == {"s0", "s1"}
    first, second = (metrics.read_rows(tmp_path / name) for name in ("s0", "s1"))
    assert [row["transitions"] for row in first] == [row["transitions"] for row in second]
    assert first[-1]["episode/return"] != second[-1]["episode/return"]
