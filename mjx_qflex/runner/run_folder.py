"""The run folder: whether a run may be written there, and what one already there agrees on."""

import contextlib
import dataclasses
import os
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mjx_qflex import config as configs
from mjx_qflex import files
from mjx_qflex.config import Config
from mjx_qflex.errors import UserError
from mjx_qflex.runner import assessment, checkpoint, inputs, metrics
from mjx_qflex.training.replay import num_rows
from mjx_qflex.training.state import RunState

CHECKPOINTS = "checkpoints"  # folder of checkpoints in the run folder
REPORT_NAME = "report.md"  # what a run is finished with; whoever trains writes it


@dataclass(frozen=True)
class Member:
    """One seed and its run folder, which is the same whether it trains alone or beside others."""

    config: Config
    folder: Path

    @property
    def checkpoints(self) -> Path:
        return self.folder / CHECKPOINTS

    def transitions(self) -> int | None:
        """Returns those of the newest checkpoint, None where there is none."""
        newest = checkpoint.newest(self.checkpoints)
        return None if newest is None else checkpoint.read_about(newest).counters["transitions"]

    def with_loop(self, **changes: Any) -> "Member":
        """Returns the member with other sizes of its loop."""
        loop = replace(self.config.loop, **changes)
        return replace(self, config=replace(self.config, loop=loop))

    def save_config(self) -> None:
        """Writes the config and the files that it names; makes the folder where missing."""
        self.folder.mkdir(parents=True, exist_ok=True)
        files.remove_leftovers(self.folder)
        inputs.keep(self.config, self.folder)
        configs.save(self.config, self.folder)

    def restore(self, shapes: RunState) -> RunState:
        """Reads the newest checkpoint, which must exist; `shapes` are `Loop.member_shapes()`."""
        run = checkpoint.restore(self.checkpoints, shapes, fingerprint(self.config))
        assert run is not None, "only a run with a checkpoint resumes"
        return run

    def save(self, run: RunState) -> checkpoint.Saved:
        """Writes a checkpoint of `run`, this seed's alone."""
        return checkpoint.save(self.checkpoints, run, fingerprint(self.config))


def newest_checkpoint(folder: Path) -> Path:
    """Returns the newest checkpoint of the run in `folder`.

    Raises:
      UserError: there is none.
    """
    newest = checkpoint.newest(folder / CHECKPOINTS)
    if newest is None:
        raise UserError(f"the run in {folder} has no checkpoint yet; train it first")
    return newest


def check_writable(folder: Path) -> None:
    """Checks that files can be made in `folder`, or where it will be made; leaves nothing.

    Raises:
      UserError: they cannot; says why.
    """
    try:
        with contextlib.suppress(FileNotFoundError):
            folder.stat()  # refuses a name that no file can have
        place = next(place for place in (folder, *folder.parents) if place.exists())
        with tempfile.TemporaryFile(dir=place):
            pass
    except (OSError, ValueError) as error:
        raise UserError(
            f"cannot write in the run folder {folder}: {files.reason(error)}; choose another with "
            "--logdir"
        ) from error


def settle(asked: Config, folder: Path) -> Config:
    """Returns the config to run with: that of the run in `folder`, where there is one.

    Raises:
      UserError: the folder holds another run or is damaged, or there is nothing to train.
    """
    _require_training(asked)
    _check_kinds(folder)
    checkpoints = checkpoint.newest(folder / CHECKPOINTS) is not None
    rows = metrics.read_rows(folder)
    if (folder / configs.FILE_NAME).exists():
        # One that was stopped before it trained leaves a config, and nothing that it is needed for.
        trained = checkpoints or rows or assessment.load(folder)
        if not trained:
            return asked
        inputs.check(asked, folder)
        return configs.continued(configs.load(folder), asked)
    if checkpoints:
        raise UserError(
            f"{folder} holds checkpoints but no {configs.FILE_NAME}; choose another --logdir"
        )
    return asked


def _check_kinds(folder: Path) -> None:
    """Refuses a file where a run has a folder, and the other way around."""
    for name in (CHECKPOINTS, metrics.TENSORBOARD_FOLDER):
        if os.path.lexists(folder / name) and not (folder / name).is_dir():
            raise UserError(f"{folder / name} is no folder; choose another --logdir, or remove it")
    for name in (configs.FILE_NAME, metrics.FILE_NAME, assessment.FILE_NAME):
        if os.path.lexists(folder / name) and not (folder / name).is_file():
            raise UserError(f"{folder / name} is no file; choose another --logdir, or remove it")


def _require_training(config: Config) -> None:
    prefill = getattr(config.loop, "prefill_transitions", 0)
    filled = num_rows(config.loop.num_envs, prefill) * config.loop.num_envs
    if config.total_steps <= filled:
        raise UserError(
            f"total_steps is {config.total_steps:,}, and the first {filled:,} transitions only "
            "fill the replay; give more, or a smaller loop.prefill_transitions"
        )


def is_finished(config: Config, folder: Path) -> bool:
    newest = checkpoint.newest(folder / CHECKPOINTS)
    result = assessment.load(folder)
    if newest is None or result is None or not (folder / REPORT_NAME).exists():
        return False
    done = checkpoint.read_about(newest).counters["transitions"]
    return done >= config.total_steps and result.get("transitions") == done


def fingerprint(config: Config) -> dict[str, Any]:
    """Returns what a checkpoint must agree on with the run that goes on from it."""
    plain = dataclasses.asdict(config)
    del plain["loop"]["steps_per_epoch"], plain["total_steps"], plain["evaluations"]
    return plain
