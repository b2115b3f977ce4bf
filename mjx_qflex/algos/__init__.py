"""The algorithms by name. Each is a frozen dataclass of options and a function that builds it.

To add one: write a module `algos/<name>.py` with its config class, its `PRESETS` and its `make`,
and add a line to `ALGOS`.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from mjx_qflex.algos import crossq, dacer, qflex, qsm, sac, sdac
from mjx_qflex.lookup import unknown_name
from mjx_qflex.types import Algorithm


class AlgoEntry(NamedTuple):
    """What the registry knows of an algorithm."""

    config_class: type
    presets: Mapping[str, Any]  # instances of config_class; "default" is among them
    make: Callable[[Any, int, int], Algorithm]


ALGOS: dict[str, AlgoEntry] = {
    "crossq": AlgoEntry(crossq.CrossqConfig, crossq.PRESETS, crossq.make),
    "dacer": AlgoEntry(dacer.DacerConfig, dacer.PRESETS, dacer.make),
    "qflex": AlgoEntry(qflex.QflexConfig, qflex.PRESETS, qflex.make),
    "qsm": AlgoEntry(qsm.QsmConfig, qsm.PRESETS, qsm.make),
    "sac": AlgoEntry(sac.SacConfig, sac.PRESETS, sac.make),
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


def make(name: str, config: Any, observation_size: int, action_size: int) -> Algorithm:
    """Builds the algorithm called `name` from an instance of its config class.

    Raises:
      UserError: no algorithm has that name, or it refuses an option's value.
    """
    return entry(name).make(config, observation_size, action_size)
