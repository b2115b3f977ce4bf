"""Policies in files of their own: written from a run, read back, refused where they do not hold."""

import json
import shutil

import jax
import numpy as np
import pytest
from tiny_runs import TINY

from mjx_qflex import algos, evaluate, export, files, presets, train
from mjx_qflex import config as configs
from mjx_qflex.errors import UserError
from mjx_qflex.runner import checkpoint, driver, policies, run_folder
from mjx_qflex.training.loop import make_loop
from mjx_qflex.training.state import with_learner
from mjx_qflex.types import EnvSpec

SIZES = 3, 2  # of observations and actions
SMALL = ("algo.width=8", "algo.depth=1")


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    """The policy of a finished run, exported by the command."""
    folder = tmp_path_factory.mktemp("policies") / "mine"
    run = str(trained[0])
    assert export.main([f"--run={run}", f"--output={folder}", "--card=licence=Apache-2.0"]) == 0
    return folder


@pytest.fixture
def copied(exported, tmp_path):
    return shutil.copytree(exported, tmp_path / "copy")


def parts(folder):
    """A policy as read, its algorithm and the learner that it makes."""
    policy = policies.read(folder)
    _, algorithm = driver.build(policy.config)
    return policy, algorithm, policies.learner_of(policy, algorithm)


def named(tree):
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {policies._name(path): np.asarray(leaf) for path, leaf in flat}


def test_a_policy_is_its_run_but_for_the_optimisers(trained, exported):
    policy, algorithm, learner = parts(exported)
    newest = checkpoint.newest(trained[0] / run_folder.CHECKPOINTS)
    of_run = named(checkpoint.restore_learner(newest, jax.eval_shape(lambda: learner)))
    fresh = named(algorithm.init(jax.random.PRNGKey(0)))
    for name, array in named(learner).items():
        expected = fresh if "opt_state" in name else of_run
        np.testing.assert_array_equal(array, expected[name])
    assert policy.config == configs.load(trained[0])
    assert policy.card["licence"] == "Apache-2.0" and policy.card["transitions"] == 4000
    observations, actions = policy.examples["observations"], policy.examples["actions"]
    assert len(observations) == len(actions) == 16 and np.ptp(observations, axis=0).max() > 0
    np.testing.assert_array_equal(policies.actions(algorithm, learner, observations), actions)


@pytest.mark.parametrize(
    ("algo", "needed", "spared"),
    [
        ("qflex", ("source", "velocity"), ("critics",)),
        ("sac", ("policy",), ("critics", "targets", "temperature")),
        ("qsm", ("slow_policy", "critics"), ("targets", "policy")),
        ("sdac", ("actor", "critics", "temperature"), ()),
    ],
)
def test_what_a_policy_acts_with(algo, needed, spared):
    entry = algos.entry(algo)
    config = entry.config_class(width=8, depth=1)
    algorithm = algos.make(algo, config, EnvSpec(*SIZES))
    learner = algorithm.init(jax.random.PRNGKey(0))
    acts = {name.split(".")[0] for name in policies.acting(algorithm, learner, SIZES[0])}
    particles = getattr(config, "particles", 2) > 1
    assert acts == {name for name in needed if particles or name != "critics"}
    assert not acts & set(spared)


def test_a_policy_is_evaluated_without_its_run(exported, tmp_path, capsys):
    output = tmp_path / "out"
    flags = [f"--policy={exported}", f"--output={output}", "--episodes=4", "--no-video"]
    assert evaluate.main(flags) == 0
    assert "of 4 episodes reach the time limit" in capsys.readouterr().out
    result = json.loads((output / "evaluation.json").read_text())
    assert list(result["policies"]) == ["trained"]
    assert result["policies"]["trained"]["reached_limit"] == 4  # chain_reach never terminates


def test_training_goes_on_from_a_policy_and_from_a_run(trained, exported):
    """The first learner is that of the policy, or of the run with its optimisers."""
    for source, optimizers in ((exported, False), (trained[0], True)):
        config = presets.resolve_from(driver.config_of(str(source)), str(source), seed=5)
        assert (config.seed, config.loop.prefill_actions) == (5, "policy")
        env, algorithm = driver.build(config)
        start = driver._start(config, algorithm)
        run = with_learner(make_loop(env, algorithm, config.loop).init(start_key()), start)
        newest = checkpoint.newest(trained[0] / run_folder.CHECKPOINTS)
        of_run = named(checkpoint.restore_learner(newest, jax.eval_shape(lambda x=start: x)))
        for name, array in named(run.learner).items():
            same = np.array_equal(array, of_run[name])
            assert same or ("opt_state" in name and not optimizers), name


def start_key():
    return jax.random.PRNGKey(5)


def test_the_command_goes_on_from_a_policy(exported, tmp_path, capsys):
    folder = tmp_path / "run"
    flags = [f"--from={exported}", f"--logdir={folder}", "--total_steps=800", "--no-video"]
    assert train.main(flags) == 0
    assert "filling the replay with 400 transitions (policy actions)" in capsys.readouterr().out
    assert configs.load(folder).start_from == str(exported)
    assert train.main([*flags, "--task=arm_reach"]) == 2
    assert "--task says arm_reach; leave --task out" in capsys.readouterr().err
    assert train.main([*TINY, f"--logdir={folder}"]) == 2


def broken_array(folder):
    data = bytearray((folder / "acting.npz").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "acting.npz").write_bytes(data)


def other_actions(folder):
    """As if the code had changed: the arrays are whole, and act differently."""
    with np.load(folder / "acting.npz") as file:
        arrays = dict(file)
    arrays["example.actions"] += 0.01
    np.savez_compressed(folder / "acting.npz", **arrays)
    about = json.loads((folder / "policy.json").read_text())
    about["files"]["acting.npz"] = files.digest(folder / "acting.npz")
    (folder / "policy.json").write_text(json.dumps(about))


def other_format(folder):
    about = json.loads((folder / "policy.json").read_text())
    (folder / "policy.json").write_text(json.dumps(about | {"format": 99}))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (broken_array, r"damaged \(acting.npz\)"),
        (other_actions, "acts differently here: up to 0.01 from"),
        (other_format, "format 99"),
        (lambda folder: (folder / "policy.json").write_text("{}"), "damaged"),
        (lambda folder: (folder / "learning.npz").unlink(), "damaged"),
    ],
)
def test_a_policy_that_does_not_hold_is_refused(copied, damage, says):
    damage(copied)
    with pytest.raises(UserError, match=says):
        parts(copied)


def test_names_that_are_not_there(tmp_path, capsys):
    with pytest.raises(UserError, match="policy"):
        policies.find("nonsense")
    assert evaluate.main(["--policy=nonsense"]) == 2
    assert evaluate.main(["--policy=x", "--run=y"]) == 2
    assert evaluate.main([]) == 2
    assert train.main(["--from=nonsense"]) == 2
    assert export.main([f"--run={tmp_path}"]) == 2
    assert export.main([f"--run={tmp_path}", "--output=x", "--card=nothing"]) == 2
    assert capsys.readouterr().err.count("\n") == 6
