"""Run folders side by side: what each left, which differ only in their seed, what came out.

Configs are read as plain JSON here, so that runs of other versions can be compared too.
"""

import dataclasses
import itertools
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mjx_qflex import config as configs
from mjx_qflex.errors import UserError
from mjx_qflex.reports import reporting, statistics
from mjx_qflex.reports.statistics import Estimate
from mjx_qflex.runner import assessment, metrics

SIGNS_OF_A_RUN = (configs.FILE_NAME, metrics.FILE_NAME, assessment.FILE_NAME)
# Where epochs end is a way to look, and changes nothing that they compute.
NOT_COMPARED = ("seed", "loop.steps_per_epoch")
ABSENT = "—"
LABEL_KEYS = 2  # differing options that a group's name spells out at least
CURVE_POINTS = 200  # at most, of a group's curve
Settings = dict[str, Any]  # values by the keys of `--set`


@dataclass(frozen=True)
class Run:
    """What a run folder holds; what is missing or broken is None or empty, and noted."""

    folder: Path
    settings: Settings | None
    rows: list[metrics.Row]
    policies: dict[str, dict[str, Any]]  # of evaluation.json, the trained one among them
    device: str
    notes: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def seed(self) -> int | None:
        return None if self.settings is None else self.settings.get("seed")

    @property
    def policy(self) -> dict[str, Any] | None:
        """What evaluation.json says of the trained policy."""
        return self.policies.get("trained")

    @property
    def video(self) -> Path | None:
        path = self.folder / assessment.VIDEO_NAME
        return path if path.is_file() and path.stat().st_size else None

    def series(self, quantity: str, x: str = "transitions") -> np.ndarray:
        """Returns the points `[N, 2]` of a column over another, without gaps."""
        points = [(row.get(x, math.nan), row.get(quantity, math.nan)) for row in self.rows]
        points = np.asarray(points, np.float64).reshape(-1, 2)
        return points[np.isfinite(points).all(axis=1)]

    def last(self, quantity: str) -> float:
        """Returns the last value of a column, NaN where it has none."""
        points = self.series(quantity)
        return float(points[-1, 1]) if len(points) else math.nan

    def median(self, quantity: str) -> float:
        points = self.series(quantity)
        return float(np.median(points[:, 1])) if len(points) else math.nan

    def final(self, quantity: str) -> float:
        """Returns "return" or "length" at the end: the best founded number that there is."""
        if self.policy is not None:
            return float(self.policy[f"{quantity}_mean"])
        evaluated = self.last(f"evaluation/{quantity}")
        return evaluated if math.isfinite(evaluated) else self.last(f"episode/{quantity}")


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but their seed.

    Attributes:
      name: short, and unlike that of any other group.
      problem: task and task options, in words; only groups of one problem can be compared.
      runs: ordered by seed.
    """

    name: str
    problem: str
    runs: tuple[Run, ...]

    @property
    def settings(self) -> Settings:
        return self.runs[0].settings or {}

    def estimate(self, of: Callable[[Run], float], statistic: str) -> Estimate:
        """Estimates a number of the runs; those that do not have it are left out."""
        values = self.values(of)
        if not len(values):
            return Estimate(math.nan, math.nan, math.nan)
        return statistics.over_seeds(values, statistic)

    def values(self, of: Callable[[Run], float]) -> np.ndarray:
        """Returns a number of each run `[S]`, those that do not have it left out."""
        values = np.asarray([of(run) for run in self.runs])
        return values[np.isfinite(values)]


def read_run(folder: Path) -> Run:
    """Reads a run folder as far as it can be read.

    Raises:
      UserError: it is no run folder.
    """
    if not any((folder / name).is_file() for name in SIGNS_OF_A_RUN):
        what = "there is no such folder" if not folder.is_dir() else "none of its files is a run's"
        raise UserError(
            f"{folder} is no run: {what}; give folders with {', '.join(SIGNS_OF_A_RUN)}"
        )
    notes: list[str] = []
    settings = _read(folder / configs.FILE_NAME, _settings, notes)
    rows = _read(folder / metrics.FILE_NAME, _rows, notes)
    policies = _read(folder / assessment.FILE_NAME, _policies, notes)
    device = ""
    if (folder / reporting.SUMMARY_NAME).is_file():
        device = _read(folder / reporting.SUMMARY_NAME, _device, notes) or ""
    video = folder / assessment.VIDEO_NAME
    if video.is_file() and not video.stat().st_size:
        notes.append(f"{video.name} is empty")
    if rows and not (folder / metrics.FILE_NAME).read_bytes().endswith(b"\n"):
        notes.append(f"{metrics.FILE_NAME} ends within a line")
    return Run(folder, settings, rows or [], policies or {}, device, tuple(notes))


def _read(path: Path, parse: Callable[[Path], Any], notes: list[str]) -> Any:
    """Returns what `parse` makes of a file; notes why not, and returns None."""
    if not path.is_file():
        notes.append(f"{path.name} is missing")
        return None
    try:
        return parse(path)
    except (UserError, ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        notes.append(f"{path.name} cannot be read ({reason})")
        return None


def _settings(path: Path) -> Settings:
    data = json.loads(path.read_text())
    groups = {field: name for name, field in configs.GROUPS.items()}
    settings = {}
    for name, value in data.items():
        if isinstance(value, dict):
            prefix = groups.get(name, name)
            settings |= {f"{prefix}.{key}": item for key, item in value.items()}
        else:
            settings[name] = value
    if not {"task", "algo", "seed"} <= set(settings):
        raise ValueError("it names no task, algo or seed")
    if type(settings["seed"]) is not int:
        raise ValueError("its seed is no whole number")
    return settings


def _rows(path: Path) -> list[metrics.Row]:
    rows = metrics.read_rows(path.parent)
    if not rows:
        raise ValueError("it has no whole row")
    return rows


def _policies(path: Path) -> dict[str, dict[str, Any]]:
    policies = json.loads(path.read_text())["policies"]
    if "trained" not in policies:
        raise ValueError("it has no trained policy")
    return {
        name: policy | {key: float(policy[key]) for key in ("return_mean", "length_mean")}
        for name, policy in policies.items()
    }


def _device(path: Path) -> str:
    return str(json.loads(path.read_text())["device"])


def group(runs: list[Run]) -> list[Group]:
    """Groups runs that differ only in their seed; one without a config stays alone."""
    members: dict[str, list[Run]] = {}
    for run in runs:
        members.setdefault(_identity(run), []).append(run)
    alike = [
        Group("", task_name(found[0]), tuple(sorted(found, key=lambda run: run.seed or 0)))
        for found in members.values()
    ]
    problems = _name_apart(alike, task_name, "task.", fewest=None)
    alike = [
        dataclasses.replace(item, problem=name) for item, name in zip(alike, problems, strict=True)
    ]
    names = list(alike)
    for problem in dict.fromkeys(problems):
        places = [place for place, item in enumerate(alike) if item.problem == problem]
        found = _name_apart([alike[place] for place in places], _algo, "", LABEL_KEYS)
        for place, name in zip(places, found, strict=True):
            names[place] = dataclasses.replace(alike[place], name=name)
    return _numbered(names)


def _identity(run: Run) -> str:
    if run.settings is None:
        return f"folder {run.folder}"
    compared = {key: value for key, value in run.settings.items() if key not in NOT_COMPARED}
    return json.dumps(compared, sort_keys=True)


def folder_names(runs: Sequence[Run]) -> dict[Path, str]:
    """Returns each run's folder as it is called from where all of them lie.

    In the folder of a sweep many runs are called `s0`; only the folders above tell them apart.
    """
    folders = {run.folder: run.folder.resolve() for run in runs}
    top = os.path.commonpath([folder.parent for folder in folders.values()])
    return {given: folder.relative_to(top).as_posix() for given, folder in folders.items()}


def task_name(run: Run) -> str:
    """Returns the task, in words where no config tells it."""
    return "runs without a config" if run.settings is None else str(run.settings["task"])


def _algo(run: Run) -> str:
    return run.name if run.settings is None else str(run.settings["algo"])


def _name_apart(
    groups: list[Group], base: Callable[[Run], str], prefix: str, fewest: int | None
) -> list[str]:
    """Names groups by `base` and the options that differ between groups of one base.

    Of these options a name spells out the first ones, as many as tell it from the others but no
    less than `fewest`; None: all.
    """
    bases = [base(item.runs[0]) for item in groups]
    names = []
    for item, own in zip(groups, bases, strict=True):
        rivals = [other for other, name in zip(groups, bases, strict=True) if name == own]
        keys = [key for key in differences(rivals) if key.startswith(prefix)]
        alike = [_first_agreeing(item, other, keys) for other in rivals if other is not item]
        spelled = keys if fewest is None else keys[: max([fewest, *(n + 1 for n in alike)])]
        words = [f"{key}={text(item.settings.get(key, ABSENT))}" for key in spelled]
        names.append(", ".join([own, *words, *(["…"] if spelled != keys else [])]))
    return names


def _first_agreeing(one: Group, other: Group, keys: list[str]) -> int:
    """Counts the options before the first one in which two groups differ."""
    same = (one.settings.get(key, ABSENT) == other.settings.get(key, ABSENT) for key in keys)
    return len(list(itertools.takewhile(bool, same)))


def _numbered(groups: list[Group]) -> list[Group]:
    """Tells groups of one name apart: runs without a config, in folders of one name."""
    seen: dict[tuple[str, str], int] = {}
    numbered = []
    for item in groups:
        key = (item.problem, item.name)
        seen[key] = seen.get(key, 0) + 1
        name = item.name if seen[key] == 1 else f"{item.name} ({seen[key]})"
        numbered.append(dataclasses.replace(item, name=name))
    return numbered


def notes(runs: list[Run], groups: list[Group]) -> list[str]:
    """Returns a line on each run with missing or broken files, and on each seed there twice."""
    lines = [f"{run.folder}: {'; '.join(run.notes)}" for run in runs if run.notes]
    for item in groups:
        seeds = Counter(run.seed for run in item.runs)
        lines += [
            f"{item.problem}, {item.name}: seed {seed} is there {times} times, and counts as often"
            for seed, times in seeds.items()
            if times > 1
        ]
    return lines


def improvement(first: list[Group], second: list[Group]) -> Estimate:
    """Estimates how probably a run of one algorithm ends with a higher return than one of another.

    Args:
      first: groups of the one algorithm, one a problem.
      second: those of the other, on the same problems in the same order.
    """
    scores = [[item.values(lambda run: run.final("return")) for item in x] for x in (first, second)]
    if not all(len(values) for found in scores for values in found):
        return Estimate(math.nan, math.nan, math.nan)
    return statistics.probability_of_improvement(*scores)


def differences(groups: list[Group]) -> dict[str, list[Any]]:
    """Returns the values, one a group, of the settings in which groups differ."""
    known = [item for item in groups if item.settings]
    keys = dict.fromkeys(key for item in known for key in item.settings)
    table = {}
    for key in keys:
        values = [item.settings.get(key, ABSENT) for item in known]
        if key not in NOT_COMPARED and any(value != values[0] for value in values):
            table[key] = [item.settings.get(key, ABSENT) for item in groups]
    return table


def text(value: Any) -> str:
    """Returns a setting as `--set` takes it."""
    return ",".join(map(text, value)) if isinstance(value, list) else str(value)


def curve(
    item: Group, quantity: str, x: str, statistic: str
) -> tuple[np.ndarray, Estimate, list[np.ndarray]]:
    """Returns a group's learning curve and those of its seeds.

    Returns:
      x `[T]`, the estimate `[T]` over seeds (T = 0 where no range is common), and each seed's
      own points `[N, 2]`.
    """
    lines = [line for run in item.runs if len(line := run.series(quantity, x))]
    if not lines:
        return np.zeros(0), Estimate(*np.zeros((3, 0))), []
    places, values = at_common_points(lines)
    if not len(places):
        return places, Estimate(*np.zeros((3, 0))), lines
    return places, statistics.over_seeds(values, statistic), lines


def at_common_points(lines: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Interpolates the points `[N, 2]` of each seed, and only where all of them have been.

    An estimate over fewer seeds towards the end would be another estimate.

    Returns:
      x `[T]`, at most `CURVE_POINTS`, none where no range is common; values `[S, T]`.
    """
    begin, end = max(line[0, 0] for line in lines), min(line[-1, 0] for line in lines)
    places = np.unique(np.concatenate([line[:, 0] for line in lines]))
    places = places[(begin <= places) & (places <= end)]
    if len(places) > CURVE_POINTS:
        places = places[np.linspace(0, len(places) - 1, CURVE_POINTS).round().astype(int)]
    return places, np.stack([np.interp(places, line[:, 0], line[:, 1]) for line in lines])
