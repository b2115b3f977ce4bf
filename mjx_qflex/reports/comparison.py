"""Run folders side by side: what each left, which differ only in their seed, what came out.

Configs are read as plain JSON here, so that runs of other versions can be compared too.
"""

import json
import math
import os
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

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
class RecordedRun:
    """What a run folder holds; what is missing or broken is None or empty, and noted."""

    folder: Path
    settings: Settings | None
    rows: pd.DataFrame  # of metrics.csv
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
        points = self.rows.reindex(columns=[x, quantity]).to_numpy(np.float64)
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
    runs: tuple[RecordedRun, ...]

    @property
    def settings(self) -> Settings:
        return self.runs[0].settings or {}

    def estimate(self, of: Callable[[RecordedRun], float], statistic: str) -> Estimate:
        """Estimates a number of the runs; those that do not have it are left out."""
        values = self.values(of)
        if not len(values):
            return Estimate(math.nan, math.nan, math.nan)
        return statistics.over_seeds(values, statistic)

    def values(self, of: Callable[[RecordedRun], float]) -> np.ndarray:
        """Returns a number of each run `[S]`, those that do not have it left out."""
        values = np.asarray([of(run) for run in self.runs])
        return values[np.isfinite(values)]


def read_run(folder: Path) -> RecordedRun:
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
    return RecordedRun(folder, settings, pd.DataFrame(rows), policies or {}, device, tuple(notes))


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
    settings: Settings = {}
    for name, value in data.items():
        if isinstance(value, dict):
            settings |= {f"{groups.get(name, name)}.{key}": item for key, item in value.items()}
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


def group(runs: list[RecordedRun]) -> list[Group]:
    """Groups runs that differ only in their seed; one without a config stays alone."""
    members: dict[str, list[RecordedRun]] = {}
    for run in runs:
        members.setdefault(_identity(run), []).append(run)
    alike = [tuple(sorted(found, key=lambda run: run.seed or 0)) for found in members.values()]
    first = [found[0] for found in alike]
    problems = _name_apart(first, [(task_name(run),) for run in first], "task.", fewest=None)
    algos = zip(problems, map(_algo, first), strict=True)
    names = _name_apart(first, list(algos), "", LABEL_KEYS)
    seen: Counter[Hashable] = Counter()
    groups = []
    for name, problem, found in zip(names, problems, alike, strict=True):
        seen[problem, name] += 1  # runs without a config, in folders of one name
        times = seen[problem, name]
        groups.append(Group(name if times == 1 else f"{name} ({times})", problem, found))
    return groups


def _identity(run: RecordedRun) -> str:
    if run.settings is None:
        return f"folder {run.folder}"
    compared = {key: value for key, value in run.settings.items() if key not in NOT_COMPARED}
    return json.dumps(compared, sort_keys=True)


def folder_names(runs: Sequence[RecordedRun]) -> dict[Path, str]:
    """Returns each run's folder as it is called from where all of them lie.

    In the folder of a sweep many runs are called `s0`; only the folders above tell them apart.
    """
    folders = {run.folder: run.folder.resolve() for run in runs}
    top = os.path.commonpath([folder.parent for folder in folders.values()])
    return {given: folder.relative_to(top).as_posix() for given, folder in folders.items()}


def task_name(run: RecordedRun) -> str:
    """Returns the task, in words where no config tells it."""
    return "runs without a config" if run.settings is None else str(run.settings["task"])


def _algo(run: RecordedRun) -> str:
    return run.name if run.settings is None else str(run.settings["algo"])


def _name_apart(
    runs: Sequence[RecordedRun], own: Sequence[tuple[str, ...]], prefix: str, fewest: int | None
) -> list[str]:
    """Names runs by the end of `own` and the options that differ between runs of the same `own`.

    Of these options a name spells out the first ones, as many as tell it from the others but no
    less than `fewest`; None: all.
    """
    names = []
    for run, base in zip(runs, own, strict=True):
        rivals = [other for other, name in zip(runs, own, strict=True) if name == base]
        table = differences(rivals)
        table = table[table.index.str.startswith(prefix)]
        mine = table.pop(rivals.index(run))
        agreeing = table.eq(mine, axis=0).cummin().sum().max() if len(rivals) > 1 else 0
        spelled = mine if fewest is None else mine[: max(fewest, agreeing + 1)]
        words = [f"{key}={value}" for key, value in spelled.items()]
        names.append(", ".join([base[-1], *words, *["…"][: len(mine) - len(spelled)]]))
    return names


def notes(runs: list[RecordedRun], groups: list[Group]) -> list[str]:
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


def differences(runs: Sequence[RecordedRun], names: list[str] | None = None) -> pd.DataFrame:
    """Returns the settings that differ, as `--set` takes them: a row each, a column a run.

    Columns are called `names`, by default numbered.
    """
    settings = [{key: text(x) for key, x in (run.settings or {}).items()} for run in runs]
    table = pd.DataFrame(settings, index=names).drop(columns=[*NOT_COMPARED], errors="ignore").T
    known = table.loc[:, [bool(found) for found in settings]].fillna(ABSENT)
    return table.fillna(ABSENT).loc[known.nunique(axis=1) > 1]


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
