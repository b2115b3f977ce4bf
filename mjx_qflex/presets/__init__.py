"""The presets: functions from a task and an algorithm to a `Config`, a file each.

`resolve` puts flags and `--set` on top, `resolve_from` goes on from the config of a trained policy.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from mjx_qflex import algos, devices, tasks
from mjx_qflex.config import Config
from mjx_qflex.errors import UserError
from mjx_qflex.lookup import unknown_name
from mjx_qflex.presets.code import code
from mjx_qflex.presets.cpu import cpu
from mjx_qflex.presets.gpu import gpu
from mjx_qflex.presets.paper import paper
from mjx_qflex.settings import apply_sets
from mjx_qflex.sizes import LoopConfig

PRESETS: dict[str, Callable[[str, str], Config]] = {
    "cpu": cpu,
    "gpu": gpu,
    "paper": paper,
    "code": code,
}


def default_preset(device: str | None = None) -> str:
    """Returns the preset for a platform: "cpu" without an accelerator, "gpu" with one.

    Raises:
      UserError: JAX finds none of the devices that it is told to use.
    """
    return "cpu" if (device or devices.backend()) == "cpu" else "gpu"


def resolve(
    task: str,
    algo: str = "qflex",
    preset: str | None = None,
    seed: int = 0,
    num_envs: int | None = None,
    total_steps: int | None = None,
    sets: Sequence[str] = (),
    device: str | None = None,
) -> Config:
    """Resolves flags into a config.

    Args:
      task: name in `tasks.TASKS`.
      algo: name in `algos.ALGOS`.
      preset: name in `PRESETS`; by default "cpu" or "gpu", as the device is.
      seed: of everything random in the run.
      num_envs: environments side by side; by default the preset's.
      total_steps: transitions; by default the preset's.
      sets: `key=value` strings, as given to `--set`.
      device: platform name as of `jax.default_backend()`, which is the default.

    Raises:
      UserError: an unknown name (the nearest is named), or a value of the wrong type.
    """
    tasks.config_class(task)  # refuses a name that is none
    algos.entry(algo)
    preset = preset or default_preset(device)
    if preset not in PRESETS:
        raise unknown_name("preset", preset, PRESETS)
    config = PRESETS[preset](task, algo)
    if total_steps is not None:
        config = replace(config, total_steps=total_steps)
    config = replace(config, seed=seed)
    return apply_sets(config, (*_num_envs_sets(config, num_envs), *sets))


def resolve_from(
    saved: Config,
    start_from: str,
    seed: int = 0,
    num_envs: int | None = None,
    total_steps: int | None = None,
    sets: Sequence[str] = (),
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
    return apply_sets(config, (*_num_envs_sets(config, num_envs), *sets))


def _num_envs_sets(config: Config, num_envs: int | None) -> list[str]:
    """Returns what the flag --num_envs says, in the form of `--set`."""
    names = ["num_envs", "reset_pool"] if isinstance(config.loop, LoopConfig) else ["num_envs"]
    return [] if num_envs is None else [f"loop.{name}={num_envs}" for name in names]
