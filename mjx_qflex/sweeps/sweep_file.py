"""A sweep's file: tables of tasks, algorithms and settings, whose product with the seeds is run.

`python -m mjx_qflex.sweep --help` shows such a file. What a line of a table says
overrides the top of the file, a later table an earlier one; of equal keys in `set` the last wins. A
run's folder is `<logdir>/<task>/<algorithm>/<setting>/s<seed>`, with the names of the tables that
are there. The preset has no default here: it would depend on the device, and the machine that reads
the file need not be the one that trains.

Partial results are useful early: all of the first task's runs come first, there one seed of every
algorithm and setting after the other.
"""

import itertools
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mjx_qflex import bounds
from mjx_qflex import flags as flags_of
from mjx_qflex.config import Config
from mjx_qflex.errors import UserError
from mjx_qflex.lookup import unknown_name
from mjx_qflex.runner import run_folder

# What stands for whole flags of `train`, and the type of its value.
FLAGS = {"task": str, "algo": str, "preset": str, "body": str, "num_envs": int, "total_steps": int}
# The tables, and the flag whose value is a line's name where it has none of its own.
TABLES = {"tasks": "task", "algorithms": "algo", "settings": None}
KEYS_OF_ALL = (*FLAGS, "video", "set")
TOP_KEYS = ("logdir", "seeds", "cluster", *TABLES, *KEYS_OF_ALL)
LINE_KEYS = ("name", *KEYS_OF_ALL)
# 1e6 is a float in TOML; `train` refuses those with a fraction.
TYPES: dict[type, tuple[tuple[type, ...], str]] = {
    str: ((str,), "text"),
    int: ((int, float), "whole number"),
    bool: ((bool,), "true or false"),
    dict: ((dict,), "table"),
}
NAME = re.compile(r"\w[\w.+-]*")  # one part of a path, and not hidden

Table = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """One run of a sweep: what `train` is called with, and where it leaves what it makes.

    Attributes:
      group: names of the lines that it is made of; runs of one group differ in their seed.
      seed: of everything random in it.
      folder: the run folder.
      arguments: of `python -m mjx_qflex.train`.
      config: what they resolve to.
    """

    group: str
    seed: int
    folder: Path
    arguments: tuple[str, ...]
    config: Config

    @property
    def name(self) -> str:
        return f"{self.group}/s{self.seed}".lstrip("/")

    @property
    def log(self) -> Path:
        """The file beside the run folder that keeps all that the run says."""
        return self.folder.with_name(f"log-{self.folder.name}.txt")


@dataclass(frozen=True)
class Sweep:
    """All runs of a sweep in the order in which they begin, and how a cluster is to start them."""

    logdir: Path
    runs: tuple[Run, ...]
    cluster: Table


def read(path: Path) -> Sweep:
    """Reads the file of a sweep and resolves each of its runs.

    Raises:
      UserError: no such file, no TOML, an unknown key (the nearest is named), a value of the wrong
        type, two runs of one name, or settings that `train` refuses; says which run's.
    """
    data = _parse(path)
    _check(path, data, TOP_KEYS, "the top")
    tasks, algorithms, settings = (_lines(path, data, table) for table in TABLES)
    logdir = _typed(path, "logdir", data.get("logdir", f"runs/{path.stem}"), str)
    cluster = _typed(path, "cluster", data.get("cluster", {}), dict)
    runs = [
        _run(path, Path(logdir), (data, *lines), seed)
        for task in tasks
        for seed in _seeds(path, data.get("seeds", 1))
        for lines in itertools.product((task,), algorithms, settings)
    ]
    return Sweep(Path(logdir), tuple(runs), cluster)


def check_folders(runs: tuple[Run, ...]) -> None:
    """Checks that each run can go on in its folder, where it has begun.

    Raises:
      UserError: a folder cannot be written, or holds a run of other settings; the first is named.
    """
    for run in runs:
        try:
            run_folder.check_writable(run.folder)
            run_folder.settle(run.config, run.folder)
        except UserError as error:
            raise UserError(f"{run.folder}: {error}") from error


def _parse(path: Path) -> Table:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid TOML: {error}") from error


def _check(path: Path, table: Table, known: tuple[str, ...], where: str) -> None:
    """Checks the keys of a line or of the top, and the types of what `train` gets."""
    for key, value in table.items():
        if key not in known:
            raise unknown_name(f"key of {where} in {path}", key, known)
        kind = {"name": str, "video": bool, **FLAGS}.get(key)
        if kind is not None:
            _typed(path, key, value, kind)
    sets = table.get("set", [])
    if not isinstance(sets, list) or not all(isinstance(text, str) for text in sets):
        raise UserError(f'{path}: set = {sets!r} is no list of texts; write ["KEY=VALUE", ...]')


def _typed(path: Path, key: str, value: Any, kind: type) -> Any:
    kinds, kind_name = TYPES[kind]
    if type(value) not in kinds:
        raise UserError(f"{path}: {key} = {value!r} is no {kind_name}")
    return value


def _seeds(path: Path, value: Any) -> list[int]:
    """Returns the seeds: those of a list, or as many as a number says."""
    if type(value) is int:
        bounds.check_value(f"{path}: seeds", value, "--seeds")
        return list(range(value))
    seeds = value
    whole = isinstance(seeds, list) and all(type(seed) is int for seed in seeds)
    if not whole or not seeds or len(set(seeds)) < len(seeds):
        raise UserError(
            f"{path}: seeds = {value!r}; give their number, or a list of different whole numbers"
        )
    bounds.check_value(f"{path}: a seed", seeds, "seed")
    return seeds


def _lines(path: Path, data: Table, table: str) -> list[Table]:
    """Returns the lines of a table with their names; one empty line where there is no table."""
    if table not in data:
        return [{}]
    lines = data[table]
    if not isinstance(lines, list) or not lines or not all(isinstance(row, dict) for row in lines):
        raise UserError(f"{path}: {table} is no list of tables; write [[{table}]]")
    named: dict[str, Table] = {}
    for line in lines:
        _check(path, line, LINE_KEYS, f"[[{table}]]")
        name = line.get("name", line.get(TABLES[table]))
        if name is None:
            raise UserError(f"{path}: a [[{table}]] has no name; add name = ...")
        if not NAME.fullmatch(name):
            raise UserError(
                f"{path}: the name {name!r} of a [[{table}]] names a folder, too; use letters, "
                "digits, '-', '_', '+' and '.'"
            )
        if name in named:
            raise UserError(f"{path}: two [[{table}]] are named {name!r}; add another name to one")
        named[name] = {**line, "name": name}
    return list(named.values())


def _run(path: Path, logdir: Path, layers: tuple[Table, ...], seed: int) -> Run:
    """Makes the run of some lines, each overriding those before, with a seed."""
    group = "/".join(line["name"] for line in layers[1:] if "name" in line)
    flags = {key: line[key] for line in layers for key in line if key in FLAGS}
    for needed in ("task", "preset"):
        if needed not in flags:
            raise UserError(f"{path}: {group or 'the run'} has no {needed}; add {needed} = ...")
    film = [line["video"] for line in layers if "video" in line]
    folder = logdir / group / f"s{seed}"
    arguments = [f"--{key}={flags[key]}" for key in FLAGS if key in flags]
    arguments += [f"--seed={seed}", f"--logdir={folder}"]
    if film and not film[-1]:
        arguments.append("--no-video")
    for line in layers:
        arguments += itertools.chain(*(("--set", text) for text in line.get("set", ())))
    try:
        config = flags_of.resolve(flags_of.make_parser().parse(arguments))
    except UserError as error:
        raise UserError(f"{path}: {group or 'the run'}: {error}") from error
    if config.seed != seed:
        raise UserError(f"{path}: {group or 'the run'} sets its seed; give seeds = [...] instead")
    return Run(group, seed, folder, tuple(arguments), config)
