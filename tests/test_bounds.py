"""Every number that a user may give has a range, and what is outside takes one line."""

import dataclasses
import typing

import pytest

from mjx_qflex import (
    algos,
    benchmark,
    bounds,
    commands,
    evaluate,
    flags,
    presets,
    settings,
    sweep,
    tasks,
)
from mjx_qflex.algos.qgf import QgfConfig
from mjx_qflex.errors import UserError
from mjx_qflex.motions import __main__ as motions

PARSERS = {
    "train": flags.make_parser,
    "evaluate": evaluate.make_parser,
    "benchmark": benchmark.make_parser,
    "sweep": sweep.make_parser,
    "motions": motions.parser,
}


def is_number(kind):
    """Whether a field's type is a number, or holds one."""
    kinds = typing.get_args(kind) or (kind,)
    return typing.get_origin(kind) is not typing.Literal and bool({int, float} & set(kinds))


def numbers_of(options):
    hints = typing.get_type_hints(type(options))
    return [field.name for field in dataclasses.fields(options) if is_number(hints[field.name])]


@pytest.mark.parametrize("algo", sorted(algos.ALGOS))
def test_every_number_of_a_run_has_a_range_that_holds_its_default(algo):
    for task in tasks.TASKS:
        config = presets.resolve(task, algo, "cpu")
        assert set(numbers_of(config)) < set(bounds.RANGES)
        for options in (config.loop, config.algo_config, config.task_config, QgfConfig()):
            assert set(numbers_of(options)) <= set(bounds.RANGES)


@pytest.mark.parametrize("algo", sorted(algos.ALGOS))
def test_no_number_of_a_run_may_be_huge_or_no_number(algo):
    config = presets.resolve("chain_reach", algo, "cpu")
    tried = 0
    for key in settings.keys(config):
        kind = settings._type_at(config, settings._path(config, key))
        for value in ("1e30", "9223372036854775808", "-1e30", "inf", "nan", "-inf", "-7"):
            if not is_number(kind) or (value == "-7" and key.endswith("target_entropy")):
                continue
            text = f"{value},{value}" if typing.get_origin(kind) is tuple else value
            if text == "-7,-7":
                continue
            tried += 1
            with pytest.raises(UserError, match=key.rpartition(".")[2]) as caught:
                settings.apply_sets(config, [f"{key}={text}"])
            assert "\n" not in str(caught.value)
    assert tried > 100


@pytest.mark.parametrize("command", PARSERS)
def test_no_number_of_a_flag_may_be_huge_or_no_number(command):
    parser = PARSERS[command]()
    kinds = (commands.whole_number_flag, commands.number_flag)
    flags = [action.option_strings[0] for action in parser._actions if action.type in kinds]
    assert flags
    for flag in flags:
        for value in ("1e30", "9223372036854775808", "-1", "nan", "inf", "", "many"):
            with pytest.raises(UserError, match=flag.strip("-")) as caught:
                PARSERS[command]().parse([f"{flag}={value}"])
            assert "\n" not in str(caught.value)


def test_a_range_says_what_it_holds():
    assert bounds.Range(1, 1000).words() == "from 1 to 1,000"
    assert bounds.Range(0, 1, below=True).words() == "from 0 below 1"
    assert bounds.Range(0, 0.5, above=True).words() == "above 0, up to 0.5"
    assert not bounds.Range(0, 1).holds(float("nan"))
    with pytest.raises(UserError, match="x is about 1e400; give a whole number from 1 to 10,000"):
        bounds.check_value("x", 10**400, "particles")
