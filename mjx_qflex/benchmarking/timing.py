"""Timing: a step repeated inside one program, compile time apart, as median and spread."""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from mjx_qflex.training.program import Program


class Spread(NamedTuple):
    """Several measurements of the same quantity."""

    median: float
    low: float
    high: float
    repeats: int

    def rate(self, amount: float) -> "Spread":
        """Returns `amount` a second, of seconds."""
        return Spread(amount / self.median, amount / self.high, amount / self.low, self.repeats)

    def as_json(self) -> dict[str, float]:
        return dict(self._asdict())


def spread(values: Sequence[float]) -> Spread:
    return Spread(float(np.median(values)), min(values), max(values), len(values))


class Budget(NamedTuple):
    """How long to measure: `repeats` rounds of about `seconds` each."""

    seconds: float = 1.0
    repeats: int = 5


class Repeated:
    """A program that applies `step` to its state any number of times: nothing but the step counts.

    The state is donated and carried from call to call, so that a step sees the memory of the one
    before, as in the training loop. `step` must not leave work that does not depend on what it
    changes: XLA would move that out of the loop.
    """

    state: Any

    def __init__(self, step: Callable[[Any], Any], state: Any, options: dict[str, Any]):
        """Compiles; `state` is given away. `options` are XLA's."""

        def run(number: jax.Array, state: Any) -> Any:
            return jax.lax.fori_loop(0, number, lambda _, state: step(state), state)

        self._program = Program(run, donate=(1,), compiler_options=options)
        self.state = state
        self.compile_seconds = self._program.compile(np.int32(1), state)

    def seconds(self, number: int) -> float:
        """Runs `number` steps; returns the seconds that all of them took."""
        start = time.perf_counter()
        self.state = jax.block_until_ready(self._program(np.int32(number), self.state))
        return time.perf_counter() - start

    def measure(self, budget: Budget) -> Spread:
        """Warms up, then returns the seconds of one step."""
        number = calibrated(self.seconds, budget.seconds)
        return spread([self.seconds(number) / number for _ in range(budget.repeats)])


def calibrated(seconds_of: Callable[[int], float], target: float) -> int:
    """Returns how many steps take about `target` seconds, 1 or more; the first call warms up."""
    seconds_of(1)
    number = 1
    while (taken := seconds_of(number)) < 0.2 * target:
        number *= max(2, min(10, int(0.3 * target / max(taken, 1e-9))))
    return max(1, round(number * target / taken))


def measure_calls(call: Callable[[], Any], budget: Budget) -> Spread:
    """Returns the seconds of one call by itself, result on the host; low and high are deciles.

    The rounds of the budget are spent on single calls.
    """
    call()
    times, begin = [], time.perf_counter()
    while len(times) < 20 or time.perf_counter() - begin < budget.seconds * budget.repeats:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    low, median, high = np.quantile(times, (0.1, 0.5, 0.9))
    return Spread(float(median), float(low), float(high), len(times))
