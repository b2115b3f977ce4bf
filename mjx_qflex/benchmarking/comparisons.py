"""Comparisons: sides in processes of their own take turns on one machine; ratios of their rates.

The sides of a group run A B C A B C ... and each ratio is taken within a turn, so that whatever
else the machine does hits both of its sides alike.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mjx_qflex.benchmarking.channel import Failed, Side
from mjx_qflex.benchmarking.sides import Spec
from mjx_qflex.benchmarking.timing import Budget, spread
from mjx_qflex.config import Config

Rounds = Mapping[str, Sequence[Mapping[str, float]]]  # rates by quantity, of each side's rounds
Say = Callable[[str], None]


@dataclass(frozen=True)
class Kind:
    """What one word after --compare stands for: our side, its peers, and what they are."""

    ours: str
    peers: Mapping[str, str]
    title: str
    needs_body: tuple[str, ...] = ()


KINDS = {
    "brax": Kind(
        "ours",
        {
            "brax": "brax's SAC, same ported task",
            "brax_raw": "brax's SAC, the task on raw MJX",
            "brax_raw_same": "brax's SAC, raw MJX with the port's contacts and solver steps",
        },
        "training with SAC",
        ("brax_raw", "brax_raw_same"),
    ),
    "host": Kind(
        "ours",
        {"host": "host loop: C MuJoCo in threads, replay in host memory"},
        "training against a host loop",
        ("host",),
    ),
    "flashbax": Kind(
        "replay",
        {
            "flashbax_items": "flashbax, item buffer (whole transitions)",
            "flashbax_pairs": "flashbax, flat buffer (observations once, last ones lost)",
            "brax_queue": "the queue of brax's SAC",
        },
        "replay, full",
    ),
    "raw": Kind(
        "physics",
        {
            "raw": "raw MJX (`mjx.put_model`), its own contacts and options",
            "raw_same": "raw MJX, the port's contacts and solver steps",
            "c": "C MuJoCo, `rollout` on the same cores",
        },
        "physics",
        ("raw", "raw_same", "c"),
    ),
}


def measure(
    kind: str, spec: Spec, config: Config, has_body: bool, budget: Budget, limit_s: float, say: Say
) -> dict[str, Any]:
    """Returns one comparison as JSON values.

    Args:
      kind: name in `KINDS`.
      spec: of our side; the peers' differ in their side only.
      config: that the spec resolves to.
      has_body: whether the task simulates one; peers that need one are left out else.
      budget: of each side; a raw side's round takes as long as it takes.
      limit_s: seconds that a side may take to get ready, or for a round, before it is left out.
      say: takes lines of words.
    """
    group = KINDS[kind]
    peers = [peer for peer in group.peers if has_body or peer not in group.needs_body]
    facts, rounds, failed = _take_turns(spec, (group.ours, *peers), budget, limit_s, say)
    return {
        "kind": kind,
        "title": group.title,
        "task": config.task,
        "algo": config.algo,
        "num_envs": config.replay_loop.num_envs,
        "batch_size": config.replay_loop.batch_size,
        "updates_per_step": config.replay_loop.updates_per_step,
        "width": config.algo_config.width,
        "replay_capacity": config.replay_loop.replay_capacity,
        "cores": spec.cores,
        "sides": {name: _side(facts[name], taken) for name, taken in rounds.items()},
        "failed": failed,
        "ratios": ratios(rounds, group.ours),
    }


def ratios(rounds: Rounds, ours: str) -> dict[str, dict[str, dict[str, float]]]:
    """Returns by peer and quantity how many times our rate is the peer's, of equal rounds."""
    if ours not in rounds:
        return {}
    found = {}
    for name, theirs in rounds.items():
        if name != ours:
            pairs = list(zip(rounds[ours], theirs, strict=False))
            found[name] = {
                quantity: spread([a[quantity] / b[quantity] for a, b in pairs]).as_json()
                for quantity in theirs[0]
                if quantity in rounds[ours][0]
            }
    return found


def _side(facts: dict[str, Any], taken: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    rates = {name: spread([one[name] for one in taken]).as_json() for name in taken[0]}
    return {**facts, "rates": rates, "rounds": list(taken)}


def _take_turns(
    spec: Spec, names: Sequence[str], budget: Budget, limit_s: float, say: Say
) -> tuple[dict[str, dict[str, Any]], dict[str, list[dict[str, float]]], dict[str, str]]:
    """Returns facts and rounds of each side that came through, and why others failed."""
    facts: dict[str, dict[str, Any]] = {}
    rounds: dict[str, list[dict[str, float]]] = {}
    failed: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        sides: dict[str, Side] = {}

        def answer(name: str) -> dict[str, Any] | None:
            """Returns the side's answer, None where it failed and is out from then on."""
            try:
                return sides[name].answer(limit_s)
            except Failed as error:
                failed[name] = str(error)
                say(f"  {name}: {error}")
                sides.pop(name).close()
                rounds.pop(name, None)
                return None

        for name in names:  # one after the other: compilation takes all cores
            side = Side(replace(spec, side=name, seconds=budget.seconds).as_json())
            sides[name] = stack.enter_context(side)
            ready = answer(name)
            if ready is not None:
                facts[name], rounds[name] = ready, []
                say(f"  {name}: ready, compiled in {ready['compile_seconds']:.1f} s")
        for _ in range(budget.repeats):
            for name in list(sides):
                sides[name].ask()
                taken = answer(name)
                if taken is not None:
                    rounds[name].append(taken.pop("rates"))
                    facts[name] |= taken
    return facts, rounds, failed
