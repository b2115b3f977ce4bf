"""The algorithms by name. Each is a frozen dataclass of options and a function that builds it.

To add one: write a module `algos/<name>.py` with its config class, its `PRESETS` and its `make`,
and add a line to `ALGOS`. Where its policy has `parts` it can be guided (`qgf`).
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from mjx_qflex.algos import crossq, dacer, ppo, qflex, qsm, sac, sdac
from mjx_qflex.errors import UserError
from mjx_qflex.lookup import unknown_name
from mjx_qflex.types import Algorithm, EnvSpec

AlgoConfig = (
    crossq.CrossqConfig
    | dacer.DacerConfig
    | ppo.PpoConfig
    | qflex.QflexConfig
    | qsm.QsmConfig
    | sac.SacConfig
    | sdac.SdacConfig
)


class AlgoEntry(NamedTuple):
    """What the registry knows of an algorithm."""

    config_class: type
    presets: Mapping[str, Any]  # instances of config_class; "default" is among them
    make: Callable[[Any, EnvSpec], Algorithm]  # of an instance of config_class
    guidable: bool = False  # whether its policy has `parts`, see `types.Policy`
    on_policy: bool = False  # has no `update` from a batch: `training.on_policy` trains it


ALGOS: dict[str, AlgoEntry] = {
    "crossq": AlgoEntry(crossq.CrossqConfig, crossq.PRESETS, crossq.make, guidable=True),
    "dacer": AlgoEntry(dacer.DacerConfig, dacer.PRESETS, dacer.make),
    "ppo": AlgoEntry(ppo.PpoConfig, ppo.PRESETS, ppo.make, on_policy=True),
    "qflex": AlgoEntry(qflex.QflexConfig, qflex.PRESETS, qflex.make, guidable=True),
    "qsm": AlgoEntry(qsm.QsmConfig, qsm.PRESETS, qsm.make),
    "sac": AlgoEntry(sac.SacConfig, sac.PRESETS, sac.make, guidable=True),
    "sdac": AlgoEntry(sdac.SdacConfig, sdac.PRESETS, sdac.make),
}


def entry(name: str) -> AlgoEntry:
    """Returns what the registry knows of the algorithm called `name`.

    Raises:
      UserError: no algorithm has that name.
    """
    if name not in ALGOS:
        raise unknown_name("algorithm", name, ALGOS)
    return ALGOS[name]


def make(name: str, config: Any, spec: EnvSpec) -> Algorithm:
    """Builds the algorithm called `name` from an instance of its config class.

    Raises:
      UserError: no algorithm has that name, or it refuses an option's value.
    """
    return entry(name).make(config, spec)


def refuse_unguidable(name: str) -> None:
    """Refuses algorithms whose policy guidance cannot move.

    Raises:
      UserError: no algorithm has that name, or its policy is neither a flow nor a Gaussian, or
        it has no critic of actions.
    """
    if not entry(name).guidable:
        able = ", ".join(sorted(other for other in ALGOS if ALGOS[other].guidable))
        raise UserError(
            f"{name} cannot be guided: that takes a flow or a Gaussian, and critics of "
            f"actions; guidance works on {able}"
        )
