"""What a run is: a preset, flags and `--set key=value`, resolved into one frozen `Config`.

Each layer overrides the one before: dataclass defaults, the preset, the table of sizes for
(preset, task), explicit flags, `--set`. The result is printed, saved as `config.json`, and is all
that a run depends on besides the machine.
"""

import dataclasses
import json
import types
import typing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from mjx_qflex import algos, bounds, files, presets, tasks
from mjx_qflex.errors import UserError
from mjx_qflex.lookup import unknown_name
from mjx_qflex.sizes import LoopConfig, OnPolicyConfig

FILE_NAME = "config.json"


@dataclass(frozen=True)
class Config:
    """Everything that decides what a run computes. The run folder is no part of it: runs move."""

    task: str
    algo: str
    preset: str
    seed: int
    total_steps: int  # transitions, prefill included; the run ends at the first epoch past it
    evaluations: int
    loop: Any  # `LoopConfig`, or `OnPolicyConfig` of an algorithm without a replay
    algo_config: Any  # the algorithm's config dataclass
    task_config: Any  # the task's config dataclass
    # Policy or run folder whose learner training goes on from; empty: a fresh one.
    start_from: str = ""

    def __post_init__(self):
        bounds.check("", vars(self))
        for name, field in GROUPS.items():
            options = getattr(self, field)
            if dataclasses.is_dataclass(options):
                bounds.check(f"{name}.", vars(options), self.algo if name == "algo" else "")


# What `--set` may name: a group of options, or a field of the run itself.
GROUPS = {"loop": "loop", "algo": "algo_config", "task": "task_config"}
RUN_KEYS = ("evaluations", "seed", "total_steps")


def resolve(
    task: str,
    algo: str = "qflex",
    preset: str | None = None,
    seed: int = 0,
    num_envs: int | None = None,
    total_steps: int | None = None,
    sets: typing.Sequence[str] = (),
    device: str | None = None,
) -> Config:
    """Resolves flags into a config.

    Args:
      task: name in `tasks.TASKS`.
      algo: name in `algos.ALGOS`.
      preset: name in `presets.SIZES`; by default "cpu" or "gpu", as the device is.
      seed: of everything random in the run.
      num_envs: worlds side by side; by default the preset's.
      total_steps: transitions; by default the preset's.
      sets: `key=value` strings, as given to `--set`.
      device: platform name as of `jax.default_backend()`, which is the default.

    Raises:
      UserError: an unknown name (the nearest is named), or a value of the wrong type.
    """
    task_config = tasks.config_class(task)()
    entry = algos.entry(algo)
    preset = preset or presets.default_preset(device)
    if preset not in presets.SIZES:
        raise unknown_name("preset", preset, presets.SIZES)
    sizes = presets.sizes_of(preset, task, entry.on_policy)

    names = (*presets.ALGO_OPTIONS.get(preset, ()), "default")
    options = next(entry.presets[name] for name in names if name in entry.presets)
    config = Config(
        task=task,
        algo=algo,
        preset=preset,
        seed=seed,
        total_steps=sizes.total_steps if total_steps is None else total_steps,
        evaluations=sizes.evaluations,
        loop=_loop_config(sizes),
        algo_config=replace(options, width=sizes.width),
        task_config=task_config,
    )
    settings = presets.settings_of(preset, task, algo, entry.on_policy)
    return apply_sets(config, (*settings, *_num_envs_sets(config.loop, num_envs), *sets))


def resolve_from(
    saved: Config,
    start_from: str,
    seed: int = 0,
    num_envs: int | None = None,
    total_steps: int | None = None,
    sets: typing.Sequence[str] = (),
) -> Config:
    """Returns the config that goes on from the learner of a run or policy with the config `saved`.

    It is the saved one, but that the trained policy fills the replay, where there is one.

    Args:
      saved: of the run that the learner comes from.
      start_from: where the learner lies.
      seed: of everything random in the run.
      num_envs: environments side by side; by default as saved.
      total_steps: transitions; by default as saved.
      sets: `key=value` strings, as given to `--set`.

    Raises:
      UserError: an unknown key, a value of the wrong type, or an algorithm without a replay.
    """
    if not isinstance(saved.loop, LoopConfig):
        raise UserError(f"--from={start_from}: {saved.algo} cannot go on from another run")
    config = replace(
        saved,
        seed=seed,
        total_steps=saved.total_steps if total_steps is None else total_steps,
        loop=replace(saved.loop, prefill_actions="policy"),
        start_from=start_from,
    )
    return apply_sets(config, (*_num_envs_sets(config.loop, num_envs), *sets))


def _loop_config(sizes: presets.Sizes | presets.OnPolicySizes) -> LoopConfig | OnPolicyConfig:
    if isinstance(sizes, presets.OnPolicySizes):
        names = [field.name for field in dataclasses.fields(OnPolicyConfig)]
        return OnPolicyConfig(**{name: getattr(sizes, name) for name in names})
    return LoopConfig(
        num_envs=sizes.num_envs,
        batch_size=sizes.batch_size,
        updates_per_step=sizes.updates_per_step,
        prefill_transitions=sizes.prefill,
        replay_capacity=sizes.replay,
        steps_per_epoch=sizes.steps_per_epoch,
        reset_pool=sizes.num_envs,
        eval_envs=sizes.eval_envs,
    )


def _num_envs_sets(loop: LoopConfig | OnPolicyConfig, num_envs: int | None) -> list[str]:
    """Returns what the flag --num_envs says, in the form of `--set`."""
    names = [name for name in ("num_envs", "reset_pool") if hasattr(loop, name)]
    return [] if num_envs is None else [f"loop.{name}={num_envs}" for name in names]


def apply_sets(config: Config, sets: typing.Sequence[str]) -> Config:
    """Applies `key=value` strings to a config; the last of equal keys wins.

    They are applied together, so that values which are only valid jointly need no order.

    Raises:
      UserError: no `=`, an unknown key, or a value of the wrong type.
    """
    changes: dict[str, Any] = {}
    for text in sets:
        key, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"--set {text!r} has no '='; write --set KEY=VALUE")
        path = _path(config, key)
        node = changes
        for name in path[:-1]:
            node = node.setdefault(name, {})
        node[path[-1]] = _parse(key, value, _type_at(config, path))
    return _replace_all(config, changes)


def keys(config: Config) -> list[str]:
    """Returns every key that `--set` accepts for this task and algorithm."""
    leaves = [key for name in GROUPS for key in _leaf_keys(name, getattr(config, GROUPS[name]))]
    return [*leaves, *RUN_KEYS]


def value_at(config: Config, key: str) -> Any:
    """Returns the value of one of the `keys`."""
    node: Any = config
    for name in _path(config, key):
        node = getattr(node, name)
    return node


def _leaf_keys(prefix: str, value: Any) -> list[str]:
    if not dataclasses.is_dataclass(value):
        return [prefix]
    return [
        key
        for field in dataclasses.fields(value)
        for key in _leaf_keys(f"{prefix}.{field.name}", getattr(value, field.name))
    ]


def _path(config: Config, key: str) -> list[str]:
    if key not in keys(config):
        raise unknown_name("--set key", key, keys(config))
    first, *rest = key.split(".")
    return [GROUPS.get(first, first), *rest]


def _type_at(node: Any, path: list[str]) -> Any:
    for name in path[:-1]:
        node = getattr(node, name)
    return typing.get_type_hints(type(node))[path[-1]]


def _replace_all(node: Any, changes: dict[str, Any]) -> Any:
    new = {
        name: _replace_all(getattr(node, name), change) if isinstance(change, dict) else change
        for name, change in changes.items()
    }
    return replace(node, **new)


def _parse(key: str, text: str, expected: Any) -> Any:
    """Reads `text` as the type of a dataclass field: a scalar, `X | None`, `Literal`, `tuple`."""
    try:
        return _parse_as(text.strip(), expected)
    except ValueError:
        hint = _type_name(expected)
        raise UserError(f"--set {key}={text}: {text!r} is no {hint}; give {hint}") from None


def _parse_as(text: str, expected: Any) -> Any:
    origin, arguments = typing.get_origin(expected), typing.get_args(expected)
    if origin in (typing.Union, types.UnionType):
        if text.lower() == "none" and type(None) in arguments:
            return None
        return _parse_as(text, next(kind for kind in arguments if kind is not type(None)))
    if origin is Literal:
        choices = {str(choice): choice for choice in arguments}
        if text not in choices:
            raise ValueError
        return choices[text]
    if origin is tuple:
        items = [item for item in text.strip("()").split(",") if item.strip()]
        repeated = len(arguments) == 2 and arguments[1] is Ellipsis
        kinds = arguments[:1] * len(items) if repeated else arguments
        if len(items) != len(kinds):
            raise ValueError
        return tuple(_parse_as(item.strip(), kind) for item, kind in zip(items, kinds, strict=True))
    if expected is bool:
        return {"true": True, "1": True, "false": False, "0": False}[_known_bool(text)]
    if expected is int:
        return bounds.whole_number(text)
    if expected is float:
        return float(text)
    return text


def _known_bool(text: str) -> str:
    if text.lower() not in ("true", "false", "1", "0"):
        raise ValueError
    return text.lower()


def _type_name(expected: Any) -> str:
    origin, arguments = typing.get_origin(expected), typing.get_args(expected)
    if origin in (typing.Union, types.UnionType):
        names = [_type_name(kind) for kind in arguments if kind is not type(None)]
        return " or ".join([*names, "none"] if type(None) in arguments else names)
    if origin is Literal:
        return "one of " + ", ".join(map(str, arguments))
    if origin is tuple:
        return f"list of {_type_name(arguments[0])} separated by commas"
    names = {int: "whole number", float: "number", bool: "true or false", str: "text"}
    return names.get(expected, str(expected))


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
        raise TypeError(f"{value!r} is no {_type_name(kind)}")
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
