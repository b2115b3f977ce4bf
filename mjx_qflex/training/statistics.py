"""Estimates over seeds: the mean or the interquartile mean, with a bootstrap interval."""

from collections.abc import Callable
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
