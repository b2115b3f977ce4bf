"""Figure 9: is exploration noise correlated across actuators? On any finished runs.

    python experiments/exploration/figure9.py [--runs DIR ...]

At states out of whole episodes of the exploring policy, many actions are drawn. Their spread at
each state, scaled actuator by actuator, gives a correlation matrix; the pictures show its mean over
states. A Qflex run appears twice: its Gaussian source alone, whose noise is independent by
construction, and its flow.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import study_runs as runs
from figures import canvas, save, say, write_csv

from mjx_qflex.algos.qflex import QflexLearner
from mjx_qflex.reports import comparison
from mjx_qflex.types import Algorithm

VARIANTS = (("qflex", ()), ("crossq", ()))


class Noise(NamedTuple):
    """Exploration noise at S states, measured by D draws at each.

    Attributes:
      correlation: [A, A], mean over the states at which both actuators vary.
      off_diagonal: [S], mean absolute correlation between two of them. Of independent noise it
        would be about sqrt(2 / (pi D)), from the finite number of draws alone.
      dimensions: [S], participation ratio (tr C)^2 / tr(C^2) of the covariance C.
      std: [S], root mean square over actuators.
    """

    correlation: np.ndarray
    off_diagonal: np.ndarray
    dimensions: np.ndarray
    std: np.ndarray


def measure(algorithm: Algorithm, learner: Any, obs: jax.Array, num_draws: int) -> Noise:
    """Draws `num_draws` actions at each of the observations [S, O]."""

    @jax.jit
    def at(row: jax.Array, key: jax.Array):
        obs = jnp.broadcast_to(row, (num_draws, row.shape[0]))
        policy = algorithm.policy(learner)
        action = policy.sample(obs, policy.init(num_draws), key).action
        noise = jnp.clip(action, -1.0, 1.0)  # as the world takes it
        noise = noise - noise.mean(axis=0, keepdims=True)
        covariance = noise.T @ noise / num_draws
        std = jnp.sqrt(jnp.diag(covariance))
        free = std > 1e-6  # an actuator whose draws all end at one bound has no correlation
        correlation = covariance / jnp.outer(std, std)
        correlation = jnp.where(jnp.outer(free, free), correlation, jnp.nan)
        others = jnp.where(jnp.eye(std.shape[0], dtype=bool), jnp.nan, jnp.abs(correlation))
        off_diagonal = jnp.nanmean(others)
        dimensions = jnp.trace(covariance) ** 2 / jnp.sum(covariance**2)
        return correlation, off_diagonal, dimensions, jnp.sqrt(jnp.mean(std**2))

    keys = jax.random.split(jax.random.key(0), len(obs))
    rows = zip(*(at(row, key) for row, key in zip(obs, keys, strict=True)), strict=True)
    correlation, *rest = (np.stack(part) for part in rows)
    known = np.isfinite(correlation).any(axis=0)
    total = np.nansum(correlation, axis=0) / np.maximum(np.isfinite(correlation).sum(axis=0), 1)
    return Noise(np.where(known, total, np.nan), *rest)


def policies(trained: runs.Trained) -> Iterator[tuple[str, Any]]:
    """Yields the policies of a run by name: learners to act with."""
    if isinstance(trained.learner, QflexLearner) and trained.learner.velocity is not None:
        yield "source alone", runs.without_flow(trained.learner)
        yield "with its flow", trained.learner
    else:
        yield "policy", trained.learner


def main(arguments: list[str] | None = None) -> None:
    parser = runs.parser(__doc__, ["chain_reach", "arm_reach"], total_steps=60_000, seeds=1)
    parser.add_argument("--states", type=int, default=64)
    parser.add_argument("--draws", type=int, default=1024, help="actions at each state")
    flags = parser.parse_args(arguments)
    folders = runs.chosen(flags, VARIANTS)
    names = comparison.folder_names([comparison.read_run(folder) for folder in folders])
    rows, pictures = [], []
    for folder in folders:
        config, trained = runs.restore(folder)
        obs = runs.visited(config, trained, flags.states, seed=0)
        for name, learner in policies(trained):
            noise = measure(trained.algorithm, learner, obs, flags.draws)
            rows.append(
                {
                    "run": names[folder],
                    "policy": name,
                    "actuators": trained.env.action_size,
                    "std": noise.std.mean(),
                    "mean_abs_correlation": np.nanmean(noise.off_diagonal),
                    "by_chance": (2.0 / (np.pi * flags.draws)) ** 0.5,
                    "dimensions": noise.dimensions.mean(),
                }
            )
            say(rows[-1])
            pictures.append((f"{names[folder]}\n{name}", noise))
    write_csv(rows, "figure9", flags.output)
    columns = min(3, len(pictures))
    lines = -(-len(pictures) // columns)
    figure, axes = canvas(3.3 * columns, 3.4 * lines, lines, columns)
    for axis in axes.flat[len(pictures) :]:
        axis.set_visible(False)
    for axis, (title, noise) in zip(axes.flat, pictures, strict=False):
        image = axis.imshow(noise.correlation, cmap="RdBu_r", vmin=-1, vmax=1)
        axis.set_title(title, fontsize=8)
        axis.set_xlabel("actuator")
        axis.set_ylabel("actuator")
    figure.colorbar(image, ax=axes, label="correlation of the noise, mean over states", shrink=0.8)
    save(figure, "figure9", flags.output)


if __name__ == "__main__":
    main()
