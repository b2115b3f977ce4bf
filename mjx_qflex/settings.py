"""`--set KEY=VALUE`: one option of a config, by its name.

A key is a field of a group of options, such as `loop.num_envs`, or a field of the run itself.
"""

import dataclasses
import types
import typing
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from mjx_qflex import bounds
from mjx_qflex.config import GROUPS, Config
from mjx_qflex.errors import UserError
from mjx_qflex.lookup import unknown_name

RUN_KEYS = ("evaluations", "seed", "total_steps")


def apply_sets(config: Config, sets: Sequence[str]) -> Config:
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
