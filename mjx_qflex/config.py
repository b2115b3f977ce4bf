"""What a run is: one frozen `Config`, typed dataclasses all the way down.

`presets` make one from a task and an algorithm, `settings` change it by `--set key=value`. It is
printed, saved as `config.json`, and all that a run depends on besides the machine.
"""

import dataclasses
import json
import types
import typing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from mjx_qflex import algos, bounds, files, tasks
from mjx_qflex.algos import AlgoConfig
from mjx_qflex.errors import UserError
from mjx_qflex.sizes import LoopConfig, OnPolicyConfig
from mjx_qflex.tasks.options import TaskConfig

FILE_NAME = "config.json"
GROUPS = {"loop": "loop", "algo": "algo_config", "task": "task_config"}  # of options: their fields


@dataclass(frozen=True)
class Config:
    """Everything that decides what a run computes. The run folder is no part of it: runs move."""

    task: str
    algo: str
    preset: str
    seed: int
    total_steps: int  # transitions, prefill included; the run ends at the first epoch past it
    evaluations: int
    loop: LoopConfig | OnPolicyConfig  # the latter of an algorithm without a replay
    algo_config: AlgoConfig
    task_config: TaskConfig
    # Policy or run folder whose learner training goes on from; empty: a fresh one.
    start_from: str = ""

    @property
    def replay_loop(self) -> LoopConfig:
        """The sizes of an algorithm with a replay, which this must be of."""
        assert isinstance(self.loop, LoopConfig), f"{self.algo} has no replay"
        return self.loop

    def __post_init__(self):
        bounds.check("", vars(self))
        for name, field in GROUPS.items():
            options = getattr(self, field)
            if dataclasses.is_dataclass(options):
                bounds.check(f"{name}.", vars(options), self.algo if name == "algo" else "")


def to_json(config: Config) -> str:
    """Returns the config as JSON text; `from_json` reads it back."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def from_json(text: str) -> Config:
    """Reads a config that `to_json` wrote.

    Raises:
      UserError: not such a text, or one of another version of this library.
    """
    try:
        data = json.loads(text)
        entry, hints = algos.entry(data["algo"]), typing.get_type_hints(Config)
        classes = {
            "loop": OnPolicyConfig if entry.on_policy else LoopConfig,
            "algo_config": entry.config_class,
            "task_config": tasks.config_class(data["task"]),
        }
        return Config(
            **{
                name: _from_plain(classes.get(name, hints[name]), value)
                for name, value in data.items()
            }
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(
            f"the saved config is broken or of another version ({files.reason(error)}); "
            "choose another --logdir, or remove that folder"
        ) from error


def _from_plain(kind: Any, value: Any) -> Any:
    """Rebuilds dataclasses and tuples from what JSON keeps of them.

    Raises:
      TypeError: a value is not of its type.
    """
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        return kind(**{name: _from_plain(hints[name], item) for name, item in value.items()})
    if not _is_of(kind, value):
        raise TypeError(f"{value!r} is no {getattr(kind, '__name__', kind)}")
    return tuple(value) if isinstance(value, list) else value


def _is_of(kind: Any, value: Any) -> bool:
    """Returns whether a value as JSON has it is of a dataclass field's type."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return any(_is_of(one, value) for one in arguments)
    if origin is Literal:
        return value in arguments
    if origin is tuple:
        return isinstance(value, list) and all(_is_of(arguments[0], item) for item in value)
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is kind


def load(folder: Path) -> Config:
    """Reads the config of the run in `folder`.

    Raises:
      UserError: there is no run, or its config cannot be read.
    """
    path = folder / FILE_NAME
    if not path.is_file():
        raise UserError(f"{folder} holds no run: there is no {FILE_NAME} in it")
    text = files.read_text(path, "choose another --logdir")
    try:
        return from_json(text)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def save(config: Config, folder: Path) -> None:
    """Writes the config into `folder`, whole or not at all."""
    files.write(folder / FILE_NAME, to_json(config))


def continued(saved: Config, asked: Config) -> Config:
    """Returns the config to resume `saved` with, now that the command resolves to `asked`.

    The length of the run and of its epochs and the number of evaluations may change. A replay
    whose capacity is chosen by the free memory keeps the one that was chosen.

    Raises:
      UserError: anything else differs; the first difference is named.
    """
    loop = asked.loop
    if isinstance(loop, LoopConfig) and loop.replay_capacity == 0:
        loop = replace(loop, replay_capacity=saved.loop.replay_capacity)
    merged = replace(asked, loop=loop)
    before, now = dataclasses.asdict(saved), dataclasses.asdict(merged)
    before["loop"]["steps_per_epoch"] = now["loop"]["steps_per_epoch"]
    for name in ("total_steps", "evaluations"):
        before[name] = now[name]
    difference = _first_difference(before, now)
    if difference:
        key, old, new = difference
        raise UserError(
            f"the run folder holds a run with {key}={old}, and this command says {key}={new}; "
            "choose another --logdir, or repeat the command that began it"
        )
    return merged


def _first_difference(before: Any, now: Any, key: str = "") -> tuple[str, Any, Any] | None:
    if isinstance(before, dict) and isinstance(now, dict):
        for name in before | now:
            path = f"{key}.{name}" if key else name
            found = _first_difference(before.get(name), now.get(name), path)
            if found:
                return found
        return None
    if before == now:
        return None
    for group, field in GROUPS.items():
        if key.startswith(field + "."):
            key = group + key[len(field) :]
    return key, before, now
