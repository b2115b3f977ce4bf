"""Presets, `--set`, the JSON round trip, and what a resumed run accepts."""

import dataclasses
import json

import pytest

from mjx_qflex import algos, presets, settings
from mjx_qflex import config as configs
from mjx_qflex.errors import UserError


def resolve(*sets, **flags):
    return presets.resolve("chain_reach", device="cpu", sets=sets, **flags)


def test_the_device_chooses_the_preset():
    assert presets.resolve("chain_reach", device="cpu").preset == "cpu"
    for device in ("gpu", "tpu"):
        config = presets.resolve("chain_reach", device=device)
        assert config.preset == "gpu"
        assert config.loop.num_envs >= 2048


def test_paper_preset_is_the_papers_table():
    config = presets.resolve("ms_human_walk", preset="paper", device="cpu")
    loop = config.loop
    assert (loop.num_envs, loop.batch_size, loop.updates_per_step) == (224, 256, 1)
    assert (loop.prefill_transitions, loop.replay_capacity) == (30_000, 1_000_000)
    assert config.total_steps == 50_000_000
    assert config.algo_config.width == 1024
    assert config.algo_config.flow_states == "current"


def test_code_preset_sets_algorithm_and_reward():
    config = presets.resolve("ms_human_walk", preset="code", device="gpu")
    assert config.algo_config.bootstrap == "source"
    assert config.task_config.reward_set == "code"
    assert presets.resolve("ms_human_walk", device="gpu").task_config.reward_set == "paper"


@pytest.mark.parametrize("algo", sorted(set(algos.ALGOS) - {"qflex"}))
def test_baselines_by_preset(algo, tmp_path):
    sets = algos.entry(algo).presets
    for preset, options in (("gpu", "default"), ("paper", "qflex_paper"), ("code", "qflex_paper")):
        config = presets.resolve("chain_reach", algo, preset)
        on_policy = algos.entry(algo).on_policy
        width = {"gpu": 128 if on_policy else 256}.get(preset, 64 if on_policy else 256)
        assert config.algo_config == dataclasses.replace(sets[options], width=width)
        configs.save(config, tmp_path)
        assert configs.load(tmp_path) == config


def test_a_preset_may_set_options_of_an_algorithm_on_any_task():
    assert resolve(algo="crossq").algo_config.critic_width == 256
    assert presets.resolve("arm_reach", "sdac", "cpu").algo_config.particles == 4
    assert resolve("algo.particles=7", algo="sdac").algo_config.particles == 7
    assert presets.resolve("arm_reach", "sdac", "gpu").algo_config.particles == 32


@pytest.mark.parametrize("preset", presets.PRESETS)
def test_all_algorithms_of_a_preset_train_on_the_same_task(preset):
    of_qflex = presets.resolve("ms_human_walk", "qflex", preset)
    for algo in algos.ALGOS:
        config = presets.resolve("ms_human_walk", algo, preset)
        assert (config.task_config, config.total_steps) == (
            of_qflex.task_config,
            of_qflex.total_steps,
        )
        assert algos.entry(algo).on_policy or config.loop == of_qflex.loop
    at_rest = preset in ("cpu", "gpu")
    assert of_qflex.task_config.action_map == ("exponential" if at_rest else "linear")
    # The flow's steps are relative to the rewards that the critics see.
    if at_rest:
        assert of_qflex.algo_config.ascent_step_size == 0.01 / of_qflex.algo_config.reward_scale


def test_flags_override_presets_and_sets_override_flags():
    assert resolve(num_envs=8).loop.num_envs == 8
    assert resolve("loop.num_envs=4", num_envs=8).loop.num_envs == 4
    assert resolve(total_steps=123).total_steps == 123


@pytest.mark.parametrize(
    ("text", "group", "name", "value"),
    [
        ("loop.batch_size=1e2", "loop", "batch_size", 100),
        ("loop.batch_size=1_000", "loop", "batch_size", 1000),
        ("algo.learning_rate=1e-3", "algo_config", "learning_rate", 1e-3),
        ("algo.clip_target=true", "algo_config", "clip_target", True),
        ("algo.clip_target=0", "algo_config", "clip_target", False),
        ("algo.gradient=mean", "algo_config", "gradient", "mean"),
        ("task.num_joints=3", "task_config", "num_joints", 3),
    ],
)
def test_set_is_typed_by_the_field(text, group, name, value):
    found = getattr(getattr(resolve(text), group), name)
    assert found == value
    assert type(found) is type(value)


def test_sets_that_are_valid_only_together_need_no_order():
    sizes = ("loop.prefill_transitions=300000", "loop.replay_capacity=400000")
    assert resolve(*sizes) == resolve(*reversed(sizes))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("loop.batchsize=3", "did you mean 'loop.batch_size'"),
        ("algo.widht=3", "did you mean 'algo.width'"),
        ("task.num_joint=3", "did you mean 'task.num_joints'"),
        ("loop=3", "unknown --set key"),
        ("loop.batch_size", "has no '='"),
        ("loop.batch_size=big", "whole number"),
        ("loop.batch_size=1.5", "whole number"),
        ("loop.batch_size=inf", "whole number"),
        ("algo.learning_rate=fast", "number"),
        ("algo.clip_target=maybe", "true or false"),
        ("algo.gradient=max", "one of min, mean"),
        ("loop.batch_size=0", "loop.batch_size is 0; give a whole number from 1 to 16,777,216"),
        ("total_steps=0", "total_steps is 0; give a whole number from 1 to"),
        ("seed=4294967296", "seed is 4,294,967,296; give a whole number from 0 to 4,294,967,295"),
    ],
)
def test_bad_set_says_what_would_be_right(text, says):
    with pytest.raises(UserError, match=".") as caught:
        resolve(text)
    message = str(caught.value)
    assert says in message
    assert "\n" not in message


@dataclasses.dataclass(frozen=True)
class Inner:
    sizes: tuple[int, ...] = (1, 2)
    pair: tuple[float, float] = (0.0, 1.0)
    limit: float | None = None


def test_every_kind_of_field_is_read():
    parse, kind = settings._parse, settings._type_at
    assert parse("k", "3, 4,5", kind(Inner(), ["sizes"])) == (3, 4, 5)
    assert parse("k", "(0.5,2)", kind(Inner(), ["pair"])) == (0.5, 2.0)
    assert parse("k", "none", kind(Inner(), ["limit"])) is None
    assert parse("k", "2", kind(Inner(), ["limit"])) == 2.0
    for name, text in (("pair", "1"), ("limit", "low"), ("sizes", "1,a")):
        with pytest.raises(UserError):
            parse("k", text, kind(Inner(), [name]))


@pytest.mark.parametrize("name", ["task", "algo", "preset"])
def test_unknown_names_are_user_errors(name):
    with pytest.raises(UserError, match="unknown"):
        presets.resolve(**{"task": "chain_reach", name: "nonsense"})


def test_json_round_trip(tmp_path):
    for config in (resolve("algo.width=32"), resolve(preset="paper"), resolve(preset="code")):
        configs.save(config, tmp_path)
        assert configs.load(tmp_path) == config
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    assert json.loads((tmp_path / "config.json").read_text())["task"] == "chain_reach"


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"task": "chain_reach"}'])
def test_a_broken_saved_config_is_a_user_error(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match="broken"):
        configs.load(tmp_path)


def test_a_resumed_run_may_get_longer_and_nothing_else():
    saved = resolve("loop.steps_per_epoch=7")
    longer = configs.continued(saved, resolve(total_steps=10**6))
    assert longer.total_steps == 10**6
    assert longer.loop.steps_per_epoch == resolve().loop.steps_per_epoch
    for asked, key in (
        (resolve("algo.width=33"), "algo.width"),
        (resolve(num_envs=3), "loop.num_envs"),
        (resolve(seed=1), "seed"),
        (presets.resolve("ms_human_walk", device="cpu"), "task"),
    ):
        with pytest.raises(UserError, match=key):
            configs.continued(saved, asked)
