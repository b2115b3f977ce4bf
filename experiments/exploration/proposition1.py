"""Proposition 1: along the flow of Q the mean value F(t) = E[Q(s, a_t)] never falls. And in steps?

    python experiments/exploration/proposition1.py

In continuous time dF/dt = E[grad Q' M grad Q] >= 0. What is run are Euler steps. Here the library's
own ascent and sampler run on a quadratic, on the chain's known value, and on the critics and the
flow of a Qflex run (trained first, or --runs=DIR), and falls of F on the way are measured.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import figures
import jax
import jax.numpy as jnp
import numpy as np
import study_runs as runs
from figures import bent, canvas, save, tips, write_csv

from mjx_qflex import algos, flow
from mjx_qflex.reports.page import COLOURS
from mjx_qflex.types import FlowParts

ACTUATORS = 100  # of the quadratic and the chain
CURVATURE = (0.1, 10.0)  # of the quadratic, least and largest
STD = 0.5  # of their first actions
PUBLISHED = {"steps": 20, "step_size": 0.01}
STEP_SIZES = (1e-4, 1e-3, 0.01, 0.03, 0.1, 0.2, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
DIVISIONS = (5, 10, 20, 40, 80, 160, 320, 640)  # of one flow time
EULER_STEPS = (1, 2, 5, 10, 20, 50, 100)
NOISE = 1e-6  # relative, what single precision may take from a value


CASES = dict(zip(("quadratic", "chain", "critic"), COLOURS, strict=False))


class Case(NamedTuple):
    """A value function at fixed states, and the actions that the flow starts from."""

    value: Callable[[jax.Array], jax.Array]  # actions [B, A] -> values [B]
    start: jax.Array  # [B, A]
    step_size: float  # times 20 is the flow time that is divided ever more finely


def quadratic(num_samples: int) -> Case:
    keys = jax.random.split(jax.random.key(0))
    curvature = jnp.geomspace(*CURVATURE, ACTUATORS)[None]
    center = jax.random.uniform(keys[0], (1, ACTUATORS), minval=-1.0)
    start = STD * jax.random.normal(keys[1], (num_samples, ACTUATORS))
    return Case(lambda a: -0.5 * jnp.sum(curvature * (a - center) ** 2, axis=-1), start, 0.3)


def chain(num_samples: int) -> Case:
    angles = bent(ACTUATORS)
    target = tips(angles, jnp.zeros((1, ACTUATORS))) + jnp.array([[0.04, 0.03]])
    start = STD * jax.random.normal(jax.random.key(1), (num_samples, ACTUATORS))
    return Case(partial(figures.chain_value, angles, target), start, 30.0)


def critic(parts: FlowParts) -> Case:
    """Returns the critics' minimum at visited states, from the source's actions there."""
    noise = jax.random.normal(jax.random.key(2), parts.mode_noise.shape)
    return Case(parts.value, parts.start(noise), 1.0)


@partial(jax.jit, static_argnums=(0, 2, 4))
def ascent_values(value, start: jax.Array, num_steps: int, step_size, clip: bool) -> jax.Array:
    """Returns the values [num_steps + 1, B] on the way of the ascent."""

    def step(actions, _):
        after = flow.ascend(value, actions, 1, step_size, clip)
        return after, value(after)

    after = jax.lax.scan(step, start, length=num_steps)[1]
    return jnp.concatenate([value(start)[None], after])


@partial(jax.jit, static_argnums=(0, 2, 3))
def flow_values(parts_of, obs: jax.Array, num_steps: int, grid: flow.EulerGrid) -> jax.Array:
    """Returns the values [num_steps + 1, B] on the way of the learned flow.

    The sampler only returns where it ends, so it is asked for every prefix: with a velocity of zero
    after the k-th step.
    """
    parts = parts_of(obs)
    start = parts.start(jax.random.normal(jax.random.key(2), parts.mode_noise.shape))
    first = 1 if grid == "right" else 0

    def after(count: jax.Array) -> jax.Array:
        def velocity(actions, time):
            return jnp.where(
                time * num_steps < count + first - 0.5, parts.velocity(actions, time), 0.0
            )

        return parts.value(flow.euler_sample(velocity, start, num_steps, grid))

    return jax.lax.map(after, jnp.arange(num_steps + 1))


def judge(values: jax.Array) -> dict[str, float]:
    """Returns what a path of values [K + 1, B] gains and loses.

    `drawdown` is how far the mean falls below an earlier value at most, `falling` the share of
    single samples' steps that lose more than single precision may take.
    """
    values = np.asarray(values, np.float64)
    mean = values.mean(axis=1)
    fallen = np.maximum.accumulate(mean) - mean
    steps = -np.diff(values, axis=0) > NOISE * np.abs(values[1:])
    return {
        "first": mean[0],
        "last": mean[-1],
        "largest_gain": mean.max() - mean[0],
        "drawdown": np.where(fallen > NOISE * np.abs(mean), fallen, 0.0).max(),
        "falling": steps.mean(),
    }


def with_shares(rows: list[dict]) -> list[dict]:
    """Adds each drawdown as a share of the largest gain that any setting brings to its value."""
    best = {
        name: max(row["largest_gain"] for row in rows if row["value"] == name) for name in CASES
    }
    return [row | {"drawdown_share": row["drawdown"] / best[row["value"]]} for row in rows]


def measure(cases: dict[str, Case], parts_of, obs: jax.Array, quick: bool) -> list[dict]:
    """Returns a row for each case and setting."""
    rows = []
    few = slice(None, None, 4) if quick else slice(None)

    def add(name, how, clip, num_steps, step_size, values):
        setting = {"value": name, "what": how, "variant": clip, "steps": num_steps}
        rows.append({**setting, "step_size": step_size, **judge(values)})

    for name, case in cases.items():
        for variant, clip in (("code", False), ("paper", True)):
            for eta in STEP_SIZES[few]:
                values = ascent_values(case.value, case.start, PUBLISHED["steps"], eta, clip)
                add(name, "step size", variant, PUBLISHED["steps"], eta, values)
        whole = 20 * case.step_size
        for number in DIVISIONS[few]:
            values = ascent_values(case.value, case.start, number, whole / number, False)
            add(name, "division", "code", number, whole / number, values)
    for variant, grid in (("code", "right"), ("paper", "left")):
        for number in EULER_STEPS[few]:
            values = flow_values(parts_of, obs, number, grid)
            add("critic", "learned flow", variant, number, 1 / number, values)
    return rows


def pick(rows: list[dict], name: str, what: str, variant: str) -> list[dict]:
    return [
        row for row in rows if (row["value"], row["what"], row["variant"]) == (name, what, variant)
    ]


def draw(rows: list[dict], curves: dict[str, np.ndarray], folder: Path) -> None:
    figure, ((sizes, divisions, learned, example),) = canvas(17.0, 4.2, 1, 4)
    styles = {"code": ("o-", "no clip (code)"), "paper": ("x--", "clip (paper)")}
    for name, colour in CASES.items():
        for variant, (style, words) in styles.items():
            found = pick(rows, name, "step size", variant)
            x, y = [row["step_size"] for row in found], [row["drawdown_share"] for row in found]
            sizes.plot(x, y, style, color=colour, markersize=4, label=f"{name}, {words}")
        found = pick(rows, name, "division", "code")
        x, y = [row["steps"] for row in found], [row["drawdown_share"] for row in found]
        divisions.plot(x, y, "o-", color=colour, markersize=4, label=name)
    for axis in (sizes, divisions):
        axis.set_xscale("log")
        axis.set_yscale("symlog", linthresh=1e-4)
        axis.set_ylim(-2e-5, 30)
        axis.set_ylabel(
            "how far F falls below an earlier value at most,\nshare of the largest gain"
        )
    sizes.axvline(PUBLISHED["step_size"], color="black", linewidth=0.8, linestyle=":")
    sizes.text(0.011, 1e-5, r"published $\eta$", fontsize=8, rotation=90, va="bottom")
    sizes.set(xlabel=r"step size $\eta$", title="20 steps of ascent")
    divisions.set(xlabel="steps N of one flow time", title="ever finer steps of ascent, no clip")
    grids = {"code": ("o-", "right ends (code)"), "paper": ("x--", "left ends (paper)")}
    for variant, (style, words) in grids.items():
        found = pick(rows, "critic", "learned flow", variant)
        x, y = [row["steps"] for row in found], [row["last"] - row["first"] for row in found]
        learned.plot(x, y, style, color=CASES["critic"], markersize=4, label=words)
    ascent = curves["ascent"]
    learned.axhline(
        ascent[-1] - ascent[0], color="black", linestyle=":", label="its target, the ascent"
    )
    learned.set_xscale("log")
    learned.set_ylim(bottom=0.0)
    learned.set(xlabel="Euler steps 1/dt", title="the learned flow")
    learned.set_ylabel("F(1) - F(0) in the critics' minimum")
    for (name, mean), style in zip(curves.items(), ("-", "o-", "x--"), strict=True):
        time = np.linspace(0.0, 1.0, len(mean))
        example.plot(time, mean, style, color=CASES["critic"], markersize=4, label=name)
    example.set(xlabel="flow time t", ylabel="F(t)", title="20 steps in the critics' minimum")
    for axis in (sizes, divisions, learned, example):
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    sizes.legend(fontsize=7, loc="center left")
    save(figure, "proposition1", folder)


def main(arguments: list[str] | None = None) -> None:
    parser = runs.parser(__doc__, ["chain_reach"], total_steps=60_000, seeds=1)
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--quick", action="store_true", help="a quarter of the settings")
    flags = parser.parse_args(arguments)
    folder = runs.chosen(flags, [("qflex", ())])[0]
    config, trained = runs.restore(folder)
    obs = runs.visited(config, trained, flags.samples, seed=0)
    algos.refuse_unguidable(config.algo)
    policy = trained.algorithm.policy(trained.learner)
    assert policy.parts is not None
    parts_of = policy.parts
    learned = critic(parts_of(obs))
    cases = {
        "quadratic": quadratic(flags.samples),
        "chain": chain(flags.samples),
        "critic": learned,
    }
    rows = with_shares(measure(cases, parts_of, obs, flags.quick))
    write_csv(rows, "proposition1", flags.output)
    steps, step_size = PUBLISHED["steps"], config.algo_config.ascent_step_size
    paths = {
        "ascent": ascent_values(learned.value, learned.start, steps, step_size, False),
        "learned flow, right ends (code)": flow_values(parts_of, obs, steps, "right"),
        "learned flow, left ends (paper)": flow_values(parts_of, obs, steps, "left"),
    }
    means = {name: np.asarray(values, np.float64).mean(axis=1) for name, values in paths.items()}
    draw(rows, means, flags.output)


if __name__ == "__main__":
    main()
