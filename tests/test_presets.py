"""What every preset makes of every task and algorithm, compared with what is on record.

`data/resolved_configs.json` was written at commit 186e028, when presets were tables: the most
common value of each key, and where others stood. A preset that is to change changes this file, or
`MEANT` below.
"""

import json
from pathlib import Path

import pytest

from mjx_qflex import algos, presets, settings, tasks
from mjx_qflex.config import Config

RECORD = json.loads((Path(__file__).parent / "data" / "resolved_configs.json").read_text())
# Options that came since, with the value that changes nothing.
MEANT = {"loop.offline_updates": 0}


def recorded(preset, task, algo):
    """Returns the values on record of a combination, by key."""
    keys = [*RECORD["keys"][algo].split(), *RECORD["keys"][task].split()]
    values = {key: RECORD["common"][key] for key in [*keys, *settings.RUN_KEYS]}
    for key, others in RECORD["differing"].items():
        for value, places in others:
            for names in places:
                found = zip((preset, task, algo), names, strict=True)
                if key in values and all(name in several.split() for name, several in found):
                    values[key] = value
    return values


ALGOS, TASKS = ([n for n in names if n in RECORD["keys"]] for names in (algos.ALGOS, tasks.TASKS))


def test_what_is_on_record_is_still_there():
    """A new algorithm or task need not be on record."""
    assert {*ALGOS, *TASKS} == set(RECORD["keys"])
    assert len(presets.PRESETS) * len(TASKS) * len(ALGOS) == 308


@pytest.mark.parametrize("preset", presets.PRESETS)
@pytest.mark.parametrize("algo", ALGOS)
def test_every_combination_is_as_on_record(preset, algo):
    for task in TASKS:
        config = presets.resolve(task, algo, preset)
        values = {key: settings.value_at(config, key) for key in settings.keys(config)}
        for key, value in MEANT.items():
            assert values.pop(key, value) == value
        assert json.loads(json.dumps(values)) == recorded(preset, task, algo), (preset, task)


def test_a_config_is_typed_to_the_last_field():
    config = presets.resolve("ms_human_walk", preset="gpu")
    assert isinstance(config, Config) and config.replay_loop is config.loop
    on_policy = presets.resolve("ms_human_walk", "ppo", "gpu")
    with pytest.raises(AssertionError, match="ppo has no replay"):
        _ = on_policy.replay_loop
