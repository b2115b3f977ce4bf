"""Table 4: total activation of the muscles under trained policies.

    python experiments/exploration/table4.py [--runs DIR ...]

The sum of activations over all muscles, its mean over an episode's steps, and over episodes of the
policy in evaluation; runs that differ in their seed only share a line. Runs need their checkpoints.
"""

import jax
import numpy as np
import study_runs as runs
from figures import say, write_csv

from mjx_qflex.errors import UserError
from mjx_qflex.reports import statistics
from mjx_qflex.runner import assessment
from mjx_qflex.training import evaluation

VARIANTS = (("qflex", ()), ("crossq", ()))


def activations(trained: runs.Trained, episodes: int, seed: int) -> np.ndarray:
    """Returns the sum of activations over muscles, mean over each episode's steps [episodes].

    Raises:
      UserError: the run's body has no muscles.
    """
    program = evaluation.make_rollout(trained.env, trained.algorithm.policy)
    totals = []
    for key in jax.random.split(assessment.evaluation_key(seed), episodes):
        rollout = evaluation.record(program, trained.learner, key)
        physics = getattr(rollout.pipeline_state, "physics", None)
        if physics is None or not physics.act.shape[-1]:
            raise UserError("the run's body has no muscles; give runs on arm_reach, for example")
        totals.append(np.asarray(physics.act, np.float64)[1:].sum(axis=-1).mean())
    return np.array(totals)


def main(arguments: list[str] | None = None) -> None:
    parser = runs.parser(__doc__, ["arm_reach"], total_steps=60_000, seeds=2)
    parser.add_argument("--episodes", type=int, default=32)
    flags = parser.parse_args(arguments)
    rows = []
    for item in runs.groups(runs.chosen(flags, VARIANTS)):
        totals = []
        for run in item.runs:
            config, trained = runs.restore(run.folder)
            totals.append(activations(trained, flags.episodes, config.seed).mean())
        estimate = statistics.over_seeds(np.array(totals))
        final = item.estimate(lambda run: run.final("return"), "mean")
        muscles = trained.env.action_size
        rows.append(
            {
                "task": item.problem,
                "name": item.name,
                "seeds": len(item.runs),
                "muscles": muscles,
                "total_activation": float(estimate.value),
                "low": float(estimate.low),
                "high": float(estimate.high),
                "of_one_muscle": float(estimate.value) / muscles,
                "return": float(final.value),
            }
        )
        say(rows[-1])
    write_csv(rows, "table4", flags.output)


if __name__ == "__main__":
    main()
