"""Figure 1: samples of a Gaussian and of a Q-guided flow on chains of more and more joints.

    python experiments/exploration/figure1.py

Both draw actions from one Gaussian around doing nothing. The flow then moves its draws uphill on
the chain's known value by the library's own ascent (`flow.ascend`). `figure1.png` shows the tips in
the plane, `best_value.png` how near the best of 64 samples comes to a target, for 2 to 700 joints.
"""

import argparse
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from figures import FLOW, GAUSSIAN, HERE, bent, canvas, chain_value, save, tips, write_csv

from mjx_qflex import flow
from mjx_qflex.reports.page import COLOURS

STD = 0.5  # of every action's Gaussian, where actions reach from -1 to 1
STEPS = 20  # N, of the ascent
DISTANCE = 0.05  # chain lengths, from the tip to the target
COUNTS = (2, 3, 5, 7, 10, 20, 30, 50, 70, 100, 200, 300, 500, 700)
SHOWN = (2, 10, 100, 700)  # joints, of figure1.png
DIRECTION = 0.6  # rad, of the target in figure1.png
# Step sizes eta of the ascent as functions of the number of joints.
STEP_SIZES = {
    "eta = 0.01": lambda num_joints: 0.01,
    "eta = 1": lambda num_joints: 1.0,
    "eta = 0.3 A": lambda num_joints: 0.3 * num_joints,
}


def draws(key: jax.Array, num_samples: int, num_joints: int) -> jax.Array:
    """Returns Gaussian actions [B, A]."""
    return STD * jax.random.normal(key, (num_samples, num_joints))


def path(angles: jax.Array, target: jax.Array, start: jax.Array, step_size: float) -> jax.Array:
    """Returns where the ascent brings actions `start` [B, A], step by step [STEPS + 1, B, A]."""
    value = partial(chain_value, angles, target[None])

    def step(actions, _):
        after = flow.ascend(value, actions, 1, step_size, clip=False)
        return after, after

    after = jax.lax.scan(step, start, length=STEPS)[1]
    return jnp.concatenate([start[None], after])


@partial(jax.jit, static_argnums=(0, 1, 2))
def best_distances(num_joints: int, num_samples: int, num_targets: int, key: jax.Array):
    """Returns the least distance to each of several targets by method, [num_targets] each.

    The Gaussian is asked twice: with as many samples as the flow, and with as many values and
    gradients of Q as the flow computes.
    """
    angles = bent(num_joints)
    tip = tips(angles, jnp.zeros((1, num_joints)))[0]

    def one(key: jax.Array) -> dict[str, jax.Array]:
        angle_key, draw_key, more_key = jax.random.split(key, 3)
        angle = jax.random.uniform(angle_key, (), minval=-jnp.pi, maxval=jnp.pi)
        target = tip + DISTANCE * jnp.stack([jnp.cos(angle), jnp.sin(angle)])
        value = partial(chain_value, angles, target[None])
        start = draws(draw_key, num_samples, num_joints)
        more = draws(more_key, num_samples * STEPS, num_joints)
        few = -jnp.max(value(start))
        found = {
            "gaussian": few,
            "gaussian, equal Q calls": jnp.minimum(few, -jnp.max(value(more))),
        }
        for name, step_size in STEP_SIZES.items():
            end = flow.ascend(value, start, STEPS, step_size(num_joints), clip=False)
            found[f"flow, {name}"] = -jnp.max(value(end))
        return found

    return jax.lax.map(one, jax.random.split(key, num_targets))


def measure(counts: tuple[int, ...], num_samples: int, num_targets: int) -> list[dict]:
    """Returns a row for each method and number of joints: mean and 95% interval over targets."""
    rows = []
    for num_joints in counts:
        # One key for all: the same targets.
        found = best_distances(num_joints, num_samples, num_targets, jax.random.key(0))
        for method, distances in found.items():
            left = np.asarray(distances, np.float64) / DISTANCE
            error = 1.96 * left.std(ddof=1) / len(left) ** 0.5
            rows.append(
                {
                    "joints": num_joints,
                    "method": method,
                    "best_value": -DISTANCE * left.mean(),
                    "distance_left": left.mean(),
                    "interval": error,
                }
            )
    return rows


def draw_best(rows: list[dict], num_samples: int, folder: Path) -> None:
    styles = {
        "gaussian": (GAUSSIAN, "o-", f"Gaussian, {num_samples} samples"),
        "gaussian, equal Q calls": (
            GAUSSIAN,
            "o--",
            f"Gaussian, {num_samples * (STEPS + 1):,} samples (as many calls of Q as a flow)",
        ),
        "flow, eta = 0.01": (COLOURS[2], "s-", r"flow, $\eta = 0.01$ (as published)"),
        "flow, eta = 1": (COLOURS[3], "s-", r"flow, $\eta = 1$"),
        "flow, eta = 0.3 A": (FLOW, "s-", r"flow, $\eta = 0.3\,A$"),
    }
    figure, ((axis,),) = canvas(7.5, 4.8, 1, 1)
    for method, (colour, style, label) in styles.items():
        found = [row for row in rows if row["method"] == method]
        x = [row["joints"] for row in found]
        y = np.array([row["distance_left"] for row in found])
        error = np.array([row["interval"] for row in found])
        axis.plot(x, y, style, color=colour, label=label, markersize=4)
        axis.fill_between(x, y - error, y + error, color=colour, alpha=0.2, linewidth=0)
    axis.set_xscale("log")
    axis.set_ylim(0, 1.02)
    axis.set_xlabel("joints A")
    axis.set_ylabel("distance of the best sample to the target,\nshare of the distance at rest")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8, loc="upper left")
    axis.set_title(f"best of {num_samples}: mean over targets, with its 95% interval", fontsize=10)
    save(figure, "best_value", folder)


def draw_plane(num_samples: int, shown: tuple[int, ...], folder: Path) -> None:
    figure, axes = canvas(2.9 * len(shown), 5.9, 2, len(shown))
    for (above, below), num_joints in zip(axes.T, shown, strict=True):
        angles = bent(num_joints)
        tip = np.asarray(tips(angles, jnp.zeros((1, num_joints)))[0])
        target = tip + DISTANCE * np.array([np.cos(DIRECTION), np.sin(DIRECTION)])
        start = draws(jax.random.key(1), num_samples, num_joints)
        step_size = STEP_SIZES["eta = 0.3 A"](num_joints)
        trail = jax.vmap(partial(tips, angles))(path(angles, jnp.asarray(target), start, step_size))
        trail = np.asarray(trail)
        _contours(above, target, (-0.58, 0.42), (-0.08, 0.92), np.arange(0.1, 1.2, 0.1))
        headings = np.cumsum(np.asarray(angles))
        links = np.stack([np.cos(headings), np.sin(headings)]) / num_joints
        above.plot(*np.cumsum(np.c_[np.zeros(2), links], axis=1), "-", color="black", linewidth=1.5)
        half = 0.1
        square = [(tip[axis] - half, tip[axis] + half) for axis in range(2)]
        (left, right), (low, high) = square
        above.plot([left, right, right, left, left], [low, low, high, high, low], "k-", lw=0.6)
        above.set_title(f"{num_joints} joints")
        _contours(below, target, *square, np.arange(0.01, 0.3, 0.01))
        below.plot(*trail.transpose(2, 0, 1), "-", color=FLOW, linewidth=0.5, alpha=0.6)
        below.plot(*trail[0].T, ".", color=GAUSSIAN, markersize=5, label="Gaussian")
        below.plot(*trail[-1].T, ".", color=FLOW, markersize=5, label="after the flow")
    axes[0, 0].set_ylabel("y (chain lengths)")
    axes[1, 0].set_ylabel("y (chain lengths)")
    for axis in axes[1]:
        axis.set_xlabel("x (chain lengths)")
    axes[1, 0].legend(fontsize=8, loc="lower left")
    save(figure, "figure1", folder)


def _contours(axis, target: np.ndarray, x_range, y_range, levels: np.ndarray) -> None:
    """Draws the value in the plane of the tip, and the target."""
    x, y = np.meshgrid(np.linspace(*x_range, 60), np.linspace(*y_range, 60))
    distance = np.hypot(x - target[0], y - target[1])
    axis.contour(x, y, distance, levels=levels, colors="0.75", linewidths=0.6)
    axis.plot(*target, "*", color="black", markersize=9, zorder=5)
    axis.set_xlim(*x_range)
    axis.set_ylim(*y_range)
    axis.set_aspect("equal")
    axis.tick_params(labelsize=7)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--counts", type=int, nargs="+", default=COUNTS, help="joints")
    parser.add_argument("--shown", type=int, nargs="+", default=SHOWN, help="of figure1.png")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--targets", type=int, default=256)
    parser.add_argument("--output", type=Path, default=HERE, help="folder of CSV and pictures")
    flags = parser.parse_args(arguments)
    rows = measure(tuple(flags.counts), flags.samples, flags.targets)
    write_csv(rows, "best_value", flags.output)
    for row in rows:
        print(f"{row['joints']:4} {row['method']:26} {row['distance_left']:.3f}")
    draw_best(rows, flags.samples, flags.output)
    draw_plane(flags.samples, tuple(flags.shown), flags.output)


if __name__ == "__main__":
    main()
