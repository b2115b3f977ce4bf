"""The algorithms by name. Each is a frozen dataclass of options and a function that builds it.

To add one: write a module `algos/<name>.py` with its config class, its `PRESETS` and its `make`,
and add a line to `ALGOS`. With `policy_parts` beside its `make` it can be guided (`qgf`).
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax

from mjx_qflex.algos import crossq, dacer, ppo, qflex, qsm, sac, sdac
from mjx_qflex.errors import UserError
from mjx_qflex.lookup import unknown_name
from mjx_qflex.types import Agent, Algorithm, Learner, PolicyParts


class AlgoEntry(NamedTuple):
    """What the registry knows of an algorithm."""

    config_class: type
    presets: Mapping[str, Any]  # instances of config_class; "default" is among them
    # (config, O, A) -> algorithm; one with a replay also takes the `axis_name` of several devices
    make: Callable[..., Agent | Algorithm]
    # (config, learner, obs [N, O]) -> parts; None where the policy is no flow and no Gaussian, or
    # where no critic judges actions
    policy_parts: Callable[[Any, Any, jax.Array], PolicyParts] | None = None
    on_policy: bool = (
        False  # `make` gives an `Agent`; `training.on_policy` trains it, without replay
    )


ALGOS: dict[str, AlgoEntry] = {
    "crossq": AlgoEntry(crossq.CrossqConfig, crossq.PRESETS, crossq.make, crossq.policy_parts),
    "dacer": AlgoEntry(dacer.DacerConfig, dacer.PRESETS, dacer.make),
    "ppo": AlgoEntry(ppo.PpoConfig, ppo.PRESETS, ppo.make, on_policy=True),
    "qflex": AlgoEntry(qflex.QflexConfig, qflex.PRESETS, qflex.make, qflex.policy_parts),
    "qsm": AlgoEntry(qsm.QsmConfig, qsm.PRESETS, qsm.make),
    "sac": AlgoEntry(sac.SacConfig, sac.PRESETS, sac.make, sac.policy_parts),
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


def make(
    name: str,
    config: Any,
    observation_size: int,
    action_size: int,
    axis_name: str | None = None,
) -> Agent | Algorithm:
    """Builds the algorithm called `name` from an instance of its config class.

    With an `axis_name` its updates run on all devices along that axis of a mesh.

    Raises:
      UserError: no algorithm has that name, it refuses an option's value, or it is on-policy and
        asked to run on several devices.
    """
    known = entry(name)
    if not known.on_policy:
        return known.make(config, observation_size, action_size, axis_name)
    if axis_name is not None:
        raise UserError(f"{name} trains on one device; add --devices=1")
    return known.make(config, observation_size, action_size)


def policy_parts(name: str, config: Any) -> Callable[[Learner, jax.Array], PolicyParts]:
    """Returns the function that takes the policy of the algorithm called `name` apart.

    It maps a learner and observations [N, O] to `PolicyParts`; `config` is an instance of the
    algorithm's config class.

    Raises:
      UserError: no algorithm has that name, or its policy is neither a flow nor a Gaussian, or
        it has no critic of actions.
    """
    parts = entry(name).policy_parts
    if parts is None:
        able = ", ".join(sorted(other for other in ALGOS if ALGOS[other].policy_parts))
        raise UserError(
            f"{name} cannot be guided: that takes a flow or a Gaussian, and critics of "
            f"actions; guidance works on {able}"
        )
    return partial(parts, config)
