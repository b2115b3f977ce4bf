"""Metrics of steps into metrics of epochs, and of epochs into rows."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mjx_qflex import parallel
from mjx_qflex.types import Metrics

COUNTS = ("nonfinite_environments", "episode/count", "episode/terminations", "episode/timeouts")
EPISODE_MEANS = ("episode/return", "episode/length")


def mean_where(mask: jax.Array, value: jax.Array) -> jax.Array:
    """Returns the mean of `value` `[N]` where `mask` `[N]`, 0 where it is nowhere."""
    return jnp.where(mask, value, 0.0).sum() / jnp.maximum(mask.sum(), 1)


def reduce_metrics(rows: Metrics) -> Metrics:
    """Turns the metrics of S steps, `[S]` each, into those of the epoch, see `reduce_totals`.

    They are of all devices' steps. (Where environments are bad, the devices' means still weigh the
    same.)
    """
    (steps,) = next(iter(rows.values())).shape
    totals = {name: x.sum() for name, x in rows.items()}
    return reduce_totals(parallel.total(totals), parallel.total(steps))


def reduce_totals(totals: Metrics, steps: int) -> Metrics:
    """Turns metrics summed over `steps` steps into those of the epoch.

    Counts stay sums; `episode/return` and `episode/length` become means over the episodes that
    ended (NaN where none did); everything else is averaged over the steps.
    """
    metrics = {name: x if name in COUNTS else x / steps for name, x in totals.items()}
    for name in EPISODE_MEANS:
        # 0 / 0 is NaN: no episode ended, so there is no mean.
        metrics[name] = totals[name] / totals["episode/count"]
    return metrics


def merge_metrics(epochs: list[dict[str, Any]]) -> dict[str, float]:
    """Joins the metrics of consecutive epochs into one row of Python floats."""
    host = jax.device_get(epochs)
    merged = {}
    for name in host[0]:
        values = np.asarray([row[name] for row in host], np.float64)
        if name in COUNTS:
            merged[name] = float(values.sum())
        elif name in EPISODE_MEANS:
            weights = np.asarray([row["episode/count"] for row in host], np.float64)
            ended = weights > 0
            merged[name] = (
                float(np.average(values[ended], weights=weights[ended])) if ended.any() else np.nan
            )
        else:
            merged[name] = float(values.mean())
    return merged
