"""Runs that the figures of this folder read: given as folders, or trained by the library's driver.

A folder that holds a finished run is not trained again, and one that was stopped goes on.
"""

import argparse
import math
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from figures import HERE

from mjx_qflex import config as configs
from mjx_qflex import presets
from mjx_qflex.algos.common import copied
from mjx_qflex.algos.qflex import QflexLearner
from mjx_qflex.bounds import whole_number
from mjx_qflex.config import Config
from mjx_qflex.errors import UserError
from mjx_qflex.interrupt import Interrupt
from mjx_qflex.reports import comparison, reporting
from mjx_qflex.reports.comparison import Group
from mjx_qflex.runner import driver, revisit
from mjx_qflex.runner.revisit import Trained
from mjx_qflex.training.loop import make_loop

FOLDER = Path("runs/exploration")
# Without --preset: what makes the preset `cpu` a matter of seconds.
SMALL = ("algo.width=64", "loop.batch_size=128")
WORLDS = 16  # at least, that are stepped to come by states


def parser(description: str, tasks: Sequence[str], total_steps: int, seeds: int):
    """Returns a parser of the flags that choose the runs of a figure and where it goes.

    Args:
      description: of the figure.
      tasks: to train on by default.
      total_steps: transitions of a run by default.
      seeds: of each setting by default.
    """
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    add = parser.add_argument
    add("--runs", type=Path, nargs="+", help="run folders to read; none is trained then")
    add(
        "--tasks",
        nargs="+",
        default=tasks,
        metavar="TASK[,KEY=VALUE]",
        help=f"to train on (default: {' '.join(tasks)})",
    )
    add("--preset", help=f"sizes (default: cpu, with {' and '.join(SMALL)})")
    add("--seeds", type=int, default=seeds, help=f"of each setting (default: {seeds})")
    add(
        "--total_steps",
        type=whole_number,
        default=total_steps,
        help=f"transitions of a run (default: {total_steps:,})",
    )
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="as of mjx_qflex.train")
    add("--logdir", type=Path, default=FOLDER, help=f"of runs to train (default: {FOLDER})")
    add("--output", type=Path, default=HERE, help="folder of CSV and picture")
    return parser


def chosen(flags: argparse.Namespace, variants: Iterable[tuple[str, Sequence[str]]]) -> list[Path]:
    """Returns the folders given, or trains (algorithm, settings) on all tasks and seeds.

    Raises:
      UserError: several algorithms are to be compared with a preset that is tuned for one of them.
    """
    if flags.runs:
        return flags.runs
    variants = tuple(variants)
    algorithms = {algo for algo, _ in variants}
    for task in flags.tasks:
        name, preset = task.split(",")[0], flags.preset or "cpu"
        make = presets.PRESETS[preset]
        tuned = [
            algo
            for algo in sorted(algorithms)
            if replace(make(name, algo).algo_config, width=1)
            != replace(make("arm_reach", algo).algo_config, width=1)
        ]
        if tuned and len(algorithms) > 1:
            raise UserError(
                f"preset {preset} holds options tuned for {tuned[0]} on {name}, so that the others "
                "would be at a disadvantage; give --preset=code, and sizes by --set"
            )
    return [
        train(flags, task, algo, sets, seed)
        for task in flags.tasks
        for algo, sets in variants
        for seed in range(flags.seeds)
    ]


def train(flags: argparse.Namespace, task: str, algo: str, sets: Sequence[str], seed: int) -> Path:
    """Trains one run; returns its folder.

    Args:
      flags: of `parser`.
      task: name, and options after commas.
      algo: name.
      sets: settings besides those of the flags, in the form of --set.
      seed: of the run.
    """
    name, *options = task.split(",")
    preset = flags.preset or "cpu"
    changes = [*(SMALL if flags.preset is None else ()), *options, *flags.set, *sets]
    config = presets.resolve(name, algo, preset, seed, total_steps=flags.total_steps, sets=changes)
    size = [preset] if flags.preset else []
    parts = [name, *options, *flags.set, algo, *sets, *size, f"{config.total_steps}", f"s{seed}"]
    folder = flags.logdir / "-".join(parts).replace("algo.", "").replace("task.", "")
    words = ["python", "-m", "mjx_qflex.train", f"--task={name}", f"--algo={algo}"]
    words += [f"--preset={preset}", f"--seed={seed}", f"--total_steps={config.total_steps}"]
    words += [part for setting in changes for part in ("--set", setting)]
    command = shlex.join([*words, f"--logdir={folder}"])
    print(command, flush=True)
    with Interrupt() as interrupt:
        write = reporting.writer(command, _quiet)
        driver.train(config, folder, write, interrupt, say=_quiet, video=False)
    return folder


def _quiet(text: str) -> None:
    """Keeps silent on all but the end of a run."""
    if text.startswith(("| trained", "done")):
        print(text, flush=True)


def groups(folders: Iterable[Path]) -> list[Group]:
    """Returns runs as groups of those that differ in their seed only."""
    return comparison.group([comparison.read_run(folder) for folder in folders])


def restore(folder: Path) -> tuple[Config, Trained]:
    """Returns a run's config and what its newest checkpoint holds."""
    return configs.load(folder), revisit.restore(folder, Interrupt(), lambda text: None)


def visited(config: Config, trained: Trained, number: int, seed: int) -> jax.Array:
    """Returns different observations [number, O] out of whole episodes of the exploring policy.

    The library's loop collects them, without updates.
    """
    num_steps = trained.env.episode_length
    num_worlds = max(WORLDS, math.ceil(number / num_steps))
    sizes = replace(
        config.loop,
        num_envs=num_worlds,
        updates_per_step=0,
        steps_per_epoch=num_steps,
        prefill_transitions=0,
        replay_capacity=num_worlds * num_steps,
        reset_pool=num_worlds,
    )
    loop = make_loop(trained.env, trained.algorithm, sizes)
    run = loop.init(jax.random.PRNGKey(seed))
    learner = copied(trained.learner)  # an epoch takes over what it is given
    run = replace(run, device=run.device.replace(learner=learner))
    run, _ = loop.epoch(run)
    ring = run.device.replay
    valid = np.asarray(ring.valid)
    obs = np.asarray(ring.obs[: len(valid)], np.float32)[valid]
    return jnp.asarray(np.random.default_rng(seed).permutation(obs)[:number])


def without_flow(learner: QflexLearner) -> QflexLearner:
    """Returns the learner whose source acts alone."""
    return learner._replace(velocity=None)
