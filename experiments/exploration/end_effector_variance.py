"""Does Gaussian noise on more joints move the end effector less? (Appendix A.1 of the paper.)

    python experiments/exploration/end_effector_variance.py

The variance of the tip's position, x and y together, under independent Gaussian joint noise, for
four ways in which the noise of a joint may depend on the number of joints A. Its variance is the
same in all of them at A = 2.
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from figures import HERE, bent, canvas, log_slope, save, write_csv

from mjx_qflex.reports.page import COLOURS
from mjx_qflex.tasks.chain_reach import tip_position

STD = 0.05  # rad, of every joint's noise at A = 2
COUNTS = (2, 3, 5, 7, 10, 20, 30, 50, 70, 100, 200, 300, 500, 700)
# What turns with its own noise, the exponent of A in that noise's variance, and the name.
KINDS = {
    "relative, fixed": ("relative", 0, "relative joint angles, fixed variance"),
    "relative, 1/A": ("relative", -1, r"relative joint angles, variance $\propto 1/A$"),
    "relative, 1/A^2": (
        "relative",
        -2,
        r"relative joint angles, variance $\propto 1/A^2$ (chain_reach)",
    ),
    "absolute, fixed": ("absolute", 0, "absolute link angles, fixed variance"),
}
POSES = {"straight": lambda num_joints: jnp.zeros(num_joints), "half circle": bent}
MIDDLE = (10, 100)  # joints, the range of the second fit


def tip_variance(angles: jax.Array, kind: str, num_samples: int, key: jax.Array) -> float:
    """Returns the variance of the tip in squared chain lengths around joint angles [A]."""
    turned, exponent, _ = KINDS[kind]
    num_joints = angles.shape[0]
    std = STD * (num_joints / 2) ** (exponent / 2)
    noise = std * jax.random.normal(key, (num_samples, num_joints))
    if turned == "absolute":  # a link's own heading: the joint after it turns back
        noise = jnp.diff(noise, axis=1, prepend=0.0)
    positions = jax.jit(jax.vmap(tip_position))(angles[None] + noise)
    return float(jnp.sum(jnp.var(positions, axis=0)))


def measure(counts: tuple[int, ...], num_samples: int) -> list[dict]:
    """Returns a row for each pose, kind and number of joints."""
    return [
        {
            "pose": pose,
            "noise": kind,
            "joints": num_joints,
            "tip_variance": tip_variance(
                POSES[pose](num_joints), kind, num_samples, jax.random.key(num_joints)
            ),
        }
        for pose in POSES
        for kind in KINDS
        for num_joints in counts
    ]


def slopes(rows: list[dict]) -> list[dict]:
    """Returns the exponents of A that fit the variance, over all counts and the middle ones."""
    table = []
    for pose in POSES:
        for kind in KINDS:
            found = [row for row in rows if (row["pose"], row["noise"]) == (pose, kind)]
            x = np.array([row["joints"] for row in found], float)
            y = np.array([row["tip_variance"] for row in found])
            middle = (MIDDLE[0] <= x) & (x <= MIDDLE[1])
            fits = {"slope": log_slope(x, y), "slope_10_to_100": np.nan}
            if middle.sum() > 1:
                fits["slope_10_to_100"] = log_slope(x[middle], y[middle])
            table.append({"pose": pose, "noise": kind, **fits})
    return table


def draw(rows: list[dict], fits: list[dict], folder: Path) -> None:
    figure, axes = canvas(11.5, 4.6, 1, 2, sharex=True, sharey=True)
    for axis, pose in zip(axes[0], POSES, strict=True):
        for kind, colour in zip(KINDS, COLOURS, strict=False):
            found = [row for row in rows if (row["pose"], row["noise"]) == (pose, kind)]
            fit = next(fit for fit in fits if (fit["pose"], fit["noise"]) == (pose, kind))
            label = f"{KINDS[kind][2]}: slope {fit['slope_10_to_100']:+.2f}"
            x, y = [row["joints"] for row in found], [row["tip_variance"] for row in found]
            axis.loglog(x, y, "o-", color=colour, markersize=3.5, label=label)
        axis.set_title(f"around a {pose} chain")
        axis.set_xlabel("joints A")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8, loc="lower left", title="slopes fitted from 10 to 100 joints")
        axis.set_ylim(1e-7, 1)
    axes[0, 0].set_ylabel("variance of the tip, x and y together\n(squared chain lengths)")
    save(figure, "end_effector_variance", folder)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--counts", type=int, nargs="+", default=COUNTS, help="joints")
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--output", type=Path, default=HERE, help="folder of CSV and picture")
    flags = parser.parse_args(arguments)
    rows = measure(tuple(flags.counts), flags.samples)
    fits = slopes(rows)
    write_csv(rows, "end_effector_variance", flags.output)
    write_csv(fits, "end_effector_slopes", flags.output)
    for fit in fits:
        name = f"{fit['pose']}, {fit['noise']}"
        print(f"{name:28} slope {fit['slope']:+.3f}, 10 to 100: {fit['slope_10_to_100']:+.3f}")
    draw(rows, fits, flags.output)


if __name__ == "__main__":
    main()
