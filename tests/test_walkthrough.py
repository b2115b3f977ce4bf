"""docs/adding.md's steps for adding a body and a task, followed to the letter."""

import importlib.util
import re
import shlex
import sys
import textwrap
from pathlib import Path

import pytest
import task_protocol
import test_task_learning

from mjx_qflex import port, presets, resources, tasks

GUIDE = Path(__file__).parent.parent / "docs" / "adding.md"


@pytest.fixture
def steps():
    """The fenced blocks of the walk-through: by what follows the language, or `sh` in order."""
    text = GUIDE.read_text().split("## A body and a task, step by step")[1].split("\n## ")[0]
    blocks = re.findall(r"^ *```(\w+)(?: (\S+))?\n(.*?)^ *```$", text, re.M | re.S)
    assert [name or language for language, name, _ in blocks] == [
        "models/leg/leg.xml", "models/leg/recipe.toml", "sh",
        "mjx_qflex/tasks/leg_stand.py", "TASKS", "sh",
    ]  # fmt: skip
    return [textwrap.dedent(content) for _, _, content in blocks]


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A folder in the place of the repository's root, its cache empty."""
    monkeypatch.setattr(resources, "data_folder", lambda name: tmp_path / name)
    monkeypatch.setenv(resources.CACHE_VARIABLE, str(tmp_path / "cache"))
    (tmp_path / "models" / "leg").mkdir(parents=True)
    return tmp_path


def test_a_body_and_a_task_are_added_as_written(steps, checkout, monkeypatch, capsys):
    model, recipe, port_command, module, entry, test_command = steps
    (checkout / "models/leg/leg.xml").write_text(model)
    (checkout / "models/leg/recipe.toml").write_text(recipe)

    program, *arguments = shlex.split(port_command)[1:]
    assert (program, arguments[0]) == ("-m", "mjx_qflex.port")
    assert port.main(arguments[1:]) == 0
    report = capsys.readouterr().out
    assert "# leg: 4 actuators" in report
    assert report.splitlines()[-1].startswith("Within tolerance")

    name = "mjx_qflex.tasks.leg_stand"
    path = checkout / "leg_stand.py"
    path.write_text(module)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec and spec.loader
    loaded = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, loaded)
    spec.loader.exec_module(loaded)
    (added,) = eval("{" + entry + "}", {"TaskEntry": tasks.TaskEntry}).items()
    monkeypatch.setitem(tasks.TASKS, *added)

    assert "tests/test_tasks.py" in test_command and "-k leg_stand" in test_command
    for check in task_protocol.CHECKS:
        check("leg_stand")
    test_task_learning.test_the_critic_fits_a_fixed_batch_with_frozen_targets("leg_stand")
    assert presets.resolve("leg_stand").task_config == loaded.LegStandConfig()
