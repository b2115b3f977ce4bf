"""Training from the host's side: which seeds are left to train, and how many of them at once.

`train.py` trains them.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import jax
from jax.sharding import Mesh

from mjx_qflex import algos, devices, tasks
from mjx_qflex import config as configs
from mjx_qflex.config import Config
from mjx_qflex.errors import UserError
from mjx_qflex.interrupt import Interrupt, Say
from mjx_qflex.runner import (
    checkpoint,
    folder_lock,
    hosts,
    inputs,
    policies,
    run_folder,
)
from mjx_qflex.runner import train as run_train
from mjx_qflex.runner.assessment import TimedTask
from mjx_qflex.runner.checkpointer import Checkpointer
from mjx_qflex.runner.evaluator import Evaluator
from mjx_qflex.runner.metrics import GIB
from mjx_qflex.runner.run_folder import Member
from mjx_qflex.runner.run_log import RunLog
from mjx_qflex.runner.train import Finished
from mjx_qflex.runner.trainers import BraxTrainer, ReplayTrainer, Trainer, brax_loop
from mjx_qflex.sizes import LoopConfig, OnPolicyConfig
from mjx_qflex.training import environments, sharding
from mjx_qflex.training import replay as ring
from mjx_qflex.training.collect import replay_layout
from mjx_qflex.training.compiled import Loop
from mjx_qflex.training.loop import make_loop
from mjx_qflex.training.precision import with_matmul_precision
from mjx_qflex.types import Algorithm, Learner

Loops = Callable[[LoopConfig | OnPolicyConfig, int | None], Loop]  # sizes, number of seeds
OnFinished = Callable[[Finished], None]


def train(
    asked: Config,
    folder: Path,
    on_finished: OnFinished,
    interrupt: Interrupt,
    say: Say,
    video: bool = True,
) -> None:
    """Trains, or goes on with, the run in `folder` until it is done or the user stops it.

    Args:
      asked: what the command resolved to.
      folder: the run folder; made where missing.
      on_finished: takes the trained run, and writes what is to be read about it.
      interrupt: tells when to stop.
      say: takes each line of words.
      video: whether to film the trained policy.

    Raises:
      UserError: the folder is not writable or holds another run, or memory or disk do not suffice.
      Interrupted: the user stopped it; what was trained is saved.
    """
    train_seeds(asked, {asked.seed: folder}, on_finished, interrupt, say, video=video)


def train_seeds(
    asked: Config,
    folders: Mapping[int, Path],
    on_finished: OnFinished,
    interrupt: Interrupt,
    say: Say,
    *,
    video: bool = True,
    at_once: int | None = None,
    devices: int | None = None,
) -> None:
    """Trains, or goes on with, several seeds of one config, each in a run folder of its own.

    Each folder is what `train` alone would have left. Programs are compiled once for all seeds.

    Args:
      asked: what the command resolved to; its seed is not used.
      folders: the run folder of each seed; made where missing.
      on_finished: takes each trained run, and writes what is to be read about it.
      interrupt: tells when to stop.
      say: takes each line of words.
      video: whether to film each trained policy.
      at_once: how many train side by side in one program, 1 or more; None is as many as the device
        holds, and one on a CPU, where more at once are no faster, or on several devices.
      devices: how many share each run; None is all, and one of an on-policy algorithm.

    Raises:
      UserError: a folder is not writable, holds another run or is in another process's hands,
        memory or disk do not suffice, several at once of an on-policy algorithm or on several
        devices, or devices that are not there or cannot share the environments or batches; nothing
        is written then.
      Interrupted: the user stopped it; what was trained is saved.
    """
    mesh, at_once = _shared_out(asked.algo, at_once, devices)
    for folder in folders.values():
        run_folder.check_writable(folder)
    with hosts.first_alone(folder_lock.held(list(folders.values()))):
        _train_unfinished(asked, folders, on_finished, interrupt, say, video, at_once, mesh)


def _train_unfinished(
    asked: Config,
    folders: Mapping[int, Path],
    on_finished: OnFinished,
    interrupt: Interrupt,
    say: Say,
    video: bool,
    at_once: int | None,
    mesh: Mesh | None,
) -> None:
    """Trains the seeds that are not finished; `train_seeds` holds their folders."""
    members = [
        member
        for seed, folder in folders.items()
        if (member := _unfinished(replace(asked, seed=seed), folder, say))
    ]
    if not members:
        return
    say(f"building the task {asked.task}")
    available = inputs.found(members[0].config, members[0].folder)
    env, algorithm = interrupt.attempt(build, available)
    start = interrupt.attempt(_start, asked, algorithm)
    members = _settle_capacity(members, env, at_once, mesh)
    loops = _make_loops(env, algorithm, mesh, say)

    def make_trainer(config: Config, number: int) -> Trainer:
        loop = loops(config.loop, number if number > 1 else None)
        if algos.entry(config.algo).on_policy:
            return BraxTrainer(config, env, loop, interrupt, say)
        return ReplayTrainer(config, loop, interrupt, say)

    one = make_trainer(members[0].config, 1)
    one.loop.check_fits(devices.free_bytes())
    sizes, *room = one.describe(len(members) > 1)
    say(f"{env.observation_size:,} observations, {env.action_size:,} actuators, {sizes}")
    for line in room:
        say(line)
    checkpoint.check_disk([member.checkpoints for member in members], one.loop.state_bytes)
    at_once = _number_at_once(one.loop, len(members), at_once, say)
    for group in _groups(members, at_once, say):
        if len(folders) > 1:
            say(f"training {_names(group)} in {', '.join(str(one.folder) for one in group)}")
        trainer = make_trainer(group[0].config, len(group))
        parts = group, trainer.loop, interrupt, say
        run = run_train.train(
            group,
            trainer,
            RunLog(group, say),
            Checkpointer(*parts),
            Evaluator(*parts),
            interrupt,
            say,
            start,
        )
        run_train.finish(group, run, trainer, env, algorithm, interrupt, say, video, on_finished)


def build(config: Config) -> tuple[TimedTask, Algorithm]:
    """Builds the environment and the algorithm of a run."""
    env = cast(TimedTask, tasks.from_config(config.task, config.task_config))
    algorithm = algos.make(config.algo, config.algo_config, environments.spec(env))
    if isinstance(config.loop, LoopConfig):
        algorithm = with_matmul_precision(algorithm, config.loop.matmul_precision)
    return env, algorithm


def _start(config: Config, algorithm: Algorithm) -> Learner | None:
    """Returns the learner that training begins with, None for a fresh one.

    Raises:
      UserError: it is not there, damaged, or of other sizes.
    """
    if not config.start_from:
        return None
    if is_policy(config.start_from):
        return policies.learner_of(policies.read(policies.find(config.start_from)), algorithm)
    newest = run_folder.newest_checkpoint(Path(config.start_from))
    shapes = jax.eval_shape(algorithm.init, jax.eval_shape(lambda: jax.random.PRNGKey(0)))
    return checkpoint.restore_learner(newest, shapes)


def is_policy(name: str) -> bool:
    """Whether training from `name` means a policy; else it is a run folder."""
    return not (Path(name) / configs.FILE_NAME).is_file()


def config_of(name: str) -> Config:
    """Returns the config of the policy or run called `name`.

    Raises:
      UserError: there is none, or it cannot be read.
    """
    if is_policy(name):
        return policies.read(policies.find(name)).config
    return configs.load(Path(name))


def _make_loops(env: TimedTask, algorithm: Algorithm, mesh: Mesh | None, say: Say) -> Loops:
    """Returns what makes the loop of a size, once each, with its devices."""
    if mesh is not None:
        say(f"{mesh.size} devices share the environments, the replay and each batch")

    def make(config: LoopConfig | OnPolicyConfig, num_seeds: int | None) -> Loop:
        if isinstance(config, OnPolicyConfig):
            return brax_loop(env, algorithm, config)
        return make_loop(env, algorithm, config, num_seeds, mesh)

    return functools.cache(make)


def _shared_out(
    algo: str, at_once: int | None, devices: int | None
) -> tuple[Mesh | None, int | None]:
    """Returns the devices that share each run, None for one, and how many seeds train at once.

    Raises:
      UserError: that cannot be; see `train_seeds`.
    """
    on_policy = algos.entry(algo).on_policy
    if on_policy and hosts.several():
        raise UserError(f"{algo} trains on one device; start one process, without --coordinator")
    if on_policy and at_once not in (None, 1):
        raise UserError(
            f"--seeds_at_once={at_once}: {algo} trains one seed after the other; leave that flag "
            "out"
        )
    mesh = sharding.make_mesh(1 if on_policy and devices is None else devices)
    if mesh is not None and at_once not in (None, 1):
        raise UserError(
            f"--seeds_at_once={at_once} takes one device, and there are {mesh.size}; add "
            "--devices=1, or leave that flag out"
        )
    return mesh, 1 if on_policy or mesh is not None else at_once


def _unfinished(asked: Config, folder: Path, say: Say) -> Member | None:
    """Returns the run to train in `folder`, None where it is finished."""
    config = run_folder.settle(asked, folder)
    if not run_folder.is_finished(config, folder):
        return Member(config, folder)
    say(
        f"{folder} is finished ({config.total_steps:,} transitions): see "
        f"{folder / run_folder.REPORT_NAME}; a larger --total_steps goes on from there"
    )
    return None


def _settle_capacity(
    members: Sequence[Member], env: TimedTask, at_once: int | None, mesh: Mesh | None
) -> list[Member]:
    """Chooses the capacity of the replay by the free memory, where that was asked for.

    A ring never needs to hold more than the whole run. Seeds that begin beside others which have
    begun before take their capacity.
    """
    config = members[0].config
    if not isinstance(config.loop, LoopConfig):
        return list(members)
    capacity = max(member.config.loop.replay_capacity for member in members)
    if capacity == 0:
        sharing = min(at_once or (1 if jax.default_backend() == "cpu" else 2**31), len(members))
        whole = replace(config.loop, replay_capacity=config.total_steps)
        free = devices.free_bytes()
        if free is not None:
            free = sharding.free_together(mesh, free) // sharing
        layout = replay_layout(env, whole, environments.reset_shapes(env))
        capacity = ring.fitting_capacity(layout, free)
        capacity = -int(hosts.largest(-capacity)[0])  # what fits everywhere
    return [
        member if member.config.loop.replay_capacity else member.with_loop(replay_capacity=capacity)
        for member in members
    ]


def _number_at_once(alone: Loop, number: int, asked: int | None, say: Say) -> int:
    """Returns how many of `number` seeds train side by side."""
    if number == 1 or asked is not None:
        return min(number, asked or 1)
    if jax.default_backend() == "cpu":
        say("one seed after the other: side by side is no faster on a CPU (see --seeds_at_once)")
        return 1
    free = devices.free_bytes()
    if free is None:
        return number
    # A checkpoint takes a copy of one seed's state.
    fit = max(1, int(ring.USABLE_SHARE * free / alone.state_bytes) - 1)
    if fit < number:
        say(
            f"{number} seeds at once would take {number * alone.state_bytes / GIB:.2f} GiB, and "
            f"{free / GIB:.2f} GiB are free on the device: {fit} at once"
        )
    return min(number, fit)


def _groups(members: Sequence[Member], at_once: int, say: Say) -> list[list[Member]]:
    """Splits seeds into groups of at most `at_once` that stand at the same point."""
    standing: dict[int | None, list[Member]] = {}
    for member in members:
        standing.setdefault(member.transitions(), []).append(member)
    if at_once > 1 and len(standing) > 1:
        points = ", ".join(f"{_names(same)} at {at or 0:,}" for at, same in standing.items())
        say(f"not all at once: the seeds stand at different transitions ({points})")
    return [
        same[start : start + at_once]
        for same in standing.values()
        for start in range(0, len(same), at_once)
    ]


def _names(members: Sequence[Member]) -> str:
    seeds = [str(member.config.seed) for member in members]
    return f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {', '.join(seeds)}"
