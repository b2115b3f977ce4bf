"""Seeds side by side in one program against one after the other: rates and compile time.

    python experiments/seeds/measure.py --algo=qflex --seeds=5

Both take turns, an epoch of every seed each, so that what else the machine does hits both alike.
Appends a line to seeds.csv beside this file.
"""

import argparse
import csv
import statistics
import time
from pathlib import Path

import jax

from mjx_qflex import presets
from mjx_qflex.reports import reporting
from mjx_qflex.runner import driver
from mjx_qflex.training.compiled import Loop
from mjx_qflex.training.loop import make_loop

RESULTS = Path(__file__).with_name("seeds.csv")


class Seeds:
    """Some seeds in training, in one program or one after the other."""

    def __init__(self, loop: Loop, groups: list[list[int]]):
        """Compiles and fills the replay of each group."""
        loop.compile()
        self.loop, self.seconds, self.cpu_seconds = loop, [], []
        self.runs = [loop.prefill(loop.init(loop.key(seeds))) for seeds in groups]
        self.epoch()  # the first one touches memory for the first time
        self.seconds.clear(), self.cpu_seconds.clear()

    def epoch(self) -> None:
        """Trains an epoch of every seed, and notes what that took."""
        wall, cpu = time.perf_counter(), time.process_time()
        self.runs = [self.loop.epoch(run)[0] for run in self.runs]
        jax.block_until_ready([run.device for run in self.runs])
        self.seconds.append(time.perf_counter() - wall)
        self.cpu_seconds.append(time.process_time() - cpu)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", default="chain_reach")
    parser.add_argument("--algo", default="qflex")
    parser.add_argument("--preset")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=20, help="vector steps of an epoch")
    flags = parser.parse_args()
    sets = [f"loop.steps_per_epoch={flags.steps}"]
    config = presets.resolve(flags.task, flags.algo, flags.preset, sets=sets)
    env, algorithm = driver.build(config)
    seeds = list(range(flags.seeds))
    apart = Seeds(make_loop(env, algorithm, config.loop), [[seed] for seed in seeds])
    together = Seeds(make_loop(env, algorithm, config.loop, flags.seeds), [seeds])
    for _ in range(flags.rounds):
        together.epoch()
        apart.epoch()

    def row(name: str, trained: Seeds) -> dict[str, object]:
        seconds = statistics.median(trained.seconds)
        steps = flags.seeds * flags.steps
        return {
            f"{name}_transitions_per_second": round(steps * config.loop.num_envs / seconds),
            f"{name}_updates_per_second": round(steps * config.loop.updates_per_step / seconds, 1),
            f"{name}_cpu_seconds": round(statistics.median(trained.cpu_seconds), 2),
            f"{name}_compile_seconds": round(sum(trained.loop.compile_seconds().values()), 1),
        }

    def ratio(name: str) -> float:
        pairs = zip(getattr(apart, name), getattr(together, name), strict=True)
        return round(statistics.median(slow / fast for slow, fast in pairs), 2)

    line = {
        "task": config.task, "algo": config.algo, "preset": config.preset, "seeds": flags.seeds,
        "num_envs": config.loop.num_envs, "batch_size": config.loop.batch_size,
        **row("together", together), **row("apart", apart),
        "speedup": ratio("seconds"), "speedup_in_cpu_time": ratio("cpu_seconds"),
        "device": reporting.device_name(),
    }  # fmt: skip
    for name, value in line.items():
        print(f"{name}: {value}")
    is_new = not RESULTS.exists()
    with RESULTS.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(line))
        if is_new:
            writer.writeheader()
        writer.writerow(line)


if __name__ == "__main__":
    main()
