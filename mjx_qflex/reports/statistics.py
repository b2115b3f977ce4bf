"""Estimates over seeds, with bootstrap intervals: mean, interquartile mean, improvement."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

LEVEL = 0.95
RESAMPLES = 2000


class Estimate(NamedTuple):
    """A statistic over seeds and the ends of its 95% interval: numbers, or arrays `[...]`.

    The ends are NaN where there is a single seed, whose spread nobody knows.
    """

    value: Any
    low: Any
    high: Any


def interquartile_mean(values: np.ndarray, axis: int = 0) -> np.ndarray:
    """Returns the mean of what is left when a quarter of the values goes at either end.

    Of S values floor(S / 4) go at either end, as in Agarwal et al. (2021, "Deep reinforcement
    learning at the edge of the statistical precipice"); up to three values it is their mean.
    """
    return stats.trim_mean(values, 0.25, axis=axis)


STATISTICS: dict[str, Callable[..., np.ndarray]] = {"mean": np.mean, "iqm": interquartile_mean}


def over_seeds(values: np.ndarray, statistic: str = "mean") -> Estimate:
    """Estimates a statistic of seeds with its percentile bootstrap interval.

    Whole seeds are drawn with replacement, always the same draws, so a curve's points belong
    together and a page comes out the same twice. From fewer than some ten seeds the interval is
    narrower than it claims to be.

    Args:
      values: one row a seed, `[S, ...]`.
      statistic: name in `STATISTICS`.
    """
    values = np.asarray(values, np.float64)
    function = STATISTICS[statistic]
    value = function(values, axis=0)
    if len(values) < 2:
        return Estimate(value, np.full_like(value, np.nan), np.full_like(value, np.nan))
    drawn = stats.bootstrap(
        (values,),
        function,
        axis=0,
        vectorized=True,
        n_resamples=RESAMPLES,
        confidence_level=LEVEL,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    return Estimate(value, drawn.confidence_interval.low, drawn.confidence_interval.high)


def probability_of_improvement(
    first: Sequence[np.ndarray], second: Sequence[np.ndarray]
) -> Estimate:
    """Estimates how probably a run of one algorithm scores above a run of another.

    On one task it is the share of pairs of runs in which the first one's is higher, ties counting
    one half; over tasks it is the mean (Agarwal et al. 2021, the Mann-Whitney U statistic divided
    by the number of pairs). The bootstrap is stratified: it draws runs within each task and each
    algorithm, always the same draws.

    Args:
      first: scores of the one algorithm, for each task those of its runs `[S]`.
      second: those of the other on the same tasks, `[R]`; no need for as many runs.
    """
    rng = np.random.default_rng(0)
    values, drawn = [], []
    for x, y in zip(first, second, strict=True):
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        pairs = 0.5 * (1.0 + np.sign(x[:, None] - y[None]))
        rows = rng.integers(len(x), size=(RESAMPLES, len(x), 1))
        columns = rng.integers(len(y), size=(RESAMPLES, 1, len(y)))
        values.append(pairs.mean())
        drawn.append(pairs[rows, columns].mean(axis=(1, 2)))
    value = float(np.mean(values))
    if min(map(len, (*first, *second))) < 2:
        return Estimate(value, np.nan, np.nan)
    tail = 50.0 * (1.0 - LEVEL)
    low, high = np.percentile(np.mean(drawn, axis=0), (tail, 100.0 - tail))
    return Estimate(value, float(low), float(high))
