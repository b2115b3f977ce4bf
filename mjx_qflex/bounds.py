"""What numbers an option may have: one table, by name, for options of runs and flags alike.

Bounds are generous: they keep out what cannot be meant, or cannot be computed with, and would end
in a traceback after minutes of compiling. Whether a machine has room is checked elsewhere.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from mjx_qflex.errors import UserError

INT32 = 2**31 - 1


class Range(NamedTuple):
    """Numbers from `low` to `high`; `above` and `below` leave out the end itself."""

    low: float
    high: float
    above: bool = False
    below: bool = False

    def holds(self, value: float) -> bool:
        """Returns whether `value` is in the range; NaN is in none."""
        at_end = (self.above and value == self.low) or (self.below and value == self.high)
        return self.low <= value <= self.high and not at_end

    def words(self) -> str:
        """Returns the range as a message names it: "from 1 to 100", "above 0, up to 1,000"."""
        low = f"above {_number(self.low)}," if self.above else f"from {_number(self.low)}"
        between = "below" if self.below else "up to" if self.above else "to"
        return f"{low} {between} {_number(self.high)}"


SEED = Range(0, 2**32 - 1)  # JAX's keys are made of 32 bits; more would be taken modulo
SHARE = Range(0, 1)
POSITIVE = Range(0, 1e6, above=True)
NOT_NEGATIVE = Range(0, 1e6)
RATE = Range(0, 1e3, above=True)
COUNT = Range(1, 10_000)
BATCH = Range(1, 2**24)
WIDTH = Range(1, 2**16)
DEPTH = Range(1, 100)
UPDATES = Range(1, INT32)  # what a counter on the device can reach
FROM_0 = Range(0, INT32)
TRANSITIONS = Range(0, 10**12)
SECONDS = Range(0, 10**6, above=True)

RANGES: dict[str, Range] = {
    # of a run
    "seed": SEED,
    "total_steps": Range(1, 10**12),
    "evaluations": Range(0, 10**6),
    # of its loop
    "num_envs": BATCH,
    "batch_size": BATCH,
    "eval_envs": BATCH,
    "reset_pool": BATCH,
    "num_minibatches": BATCH,
    "updates_per_step": Range(0, 10_000),
    "num_updates_per_batch": COUNT,
    "unroll_length": COUNT,
    "prefill_transitions": TRANSITIONS,
    "offline_updates": FROM_0,
    "replay_capacity": TRANSITIONS,
    "steps_per_epoch": Range(1, 10**6),
    "reset_pool_steps": UPDATES,
    # of algorithms
    "width": WIDTH,
    "critic_width": WIDTH,
    "depth": DEPTH,
    "critic_depth": DEPTH,
    "learning_rate": RATE,
    "source_learning_rate": RATE,
    "alpha_learning_rate": RATE,
    "final_learning_rate": Range(0, 1e3),
    "dacer.final_learning_rate": RATE,
    "decay_begin": FROM_0,
    "decay_updates": UPDATES,
    "renorm_warmup": FROM_0,
    "alpha_period": UPDATES,
    "policy_delay": COUNT,
    "delay": COUNT,
    "ascent_steps": COUNT,
    "flow_share": Range(0, 1, above=True),
    "euler_steps": Range(0, 10_000),
    "qgf.euler_steps": COUNT,
    "diffusion_steps": COUNT,
    "particles": COUNT,
    "reverse_samples": COUNT,
    "entropy_samples": COUNT,
    "entropy_states": BATCH,
    "best_of": COUNT,
    "gamma": SHARE,
    "gae_lambda": SHARE,
    "tau": SHARE,
    "policy_tau": SHARE,
    "beta1": Range(0, 1, below=True),
    "reward_scale": POSITIVE,
    "value_scale": POSITIVE,
    "initial_std": POSITIVE,
    "initial_alpha": POSITIVE,
    "output_gain": POSITIVE,
    "ascent_step_size": POSITIVE,
    "schedule_scale": POSITIVE,
    "start_scale": POSITIVE,
    "gradient_scale": POSITIVE,
    "clipping_epsilon": POSITIVE,
    "max_grad_norm": POSITIVE,
    "noise_scale": NOT_NEGATIVE,
    "action_noise": NOT_NEGATIVE,
    "entropy_cost": NOT_NEGATIVE,
    "value_coefficient": NOT_NEGATIVE,
    "weight": NOT_NEGATIVE,
    "target_entropy": Range(-1e6, 1e6),
    "log_std_range": Range(-100, 100),
    # of tasks
    "num_joints": COUNT,
    "num_actuators": COUNT,
    # of flags
    "--seeds": COUNT,
    "--tolerance": NOT_NEGATIVE,
    "--seeds_at_once": COUNT,
    "--devices": COUNT,
    "--num_processes": COUNT,
    "--process_id": Range(0, 10_000),
    "--episodes": Range(2, 2**24),  # an interval needs two
    "--guidance": NOT_NEGATIVE,
    "--guidance_steps": COUNT,
    "--jobs": COUNT,
    "--hours": SECONDS,
    "--repeats": COUNT,
    "--cores": COUNT,
    "--seconds": SECONDS,
    "--limit": SECONDS,
    "--peak_tflops": Range(0, 1e9, above=True),
    "--batches": BATCH,
    "--raw_batches": BATCH,
    "--raw_limit": SECONDS,
    "--rate": Range(1, 10_000),  # frames/s
    "--start": Range(0, 10**6),
    "--stop": SECONDS,
}


def check_flags(values: Mapping[str, Any]) -> None:
    """Refuses flags of a command, by name without dashes, with a number outside of its range.

    Raises:
      UserError: one is outside; names it.
    """
    for name, value in values.items():
        flag = f"--{name}"
        check_value(flag, value, flag if flag in RANGES else name)


def check_value(key: str, value: Any, name: str, owner: str = "") -> None:
    """Refuses a number outside of its range; others than numbers pass.

    Args:
      key: what the user calls it, for the message.
      value: a number, several in a list or tuple, or anything else.
      name: its name in `RANGES`; a name that is not there takes any number that a device can hold.
      owner: whose option it is, such as an algorithm's name, where another range may hold.

    Raises:
      UserError: it is outside; names the range.
    """
    if isinstance(value, list | tuple):
        for item in value:
            check_value(key, item, name, owner)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return
    whole = Range(-INT32, INT32) if isinstance(value, int) else Range(-1e30, 1e30)
    allowed = RANGES.get(f"{owner}.{name}") or RANGES.get(name) or whole
    if not allowed.holds(value):
        kind = "whole number" if isinstance(value, int) else "number"
        raise UserError(f"{key} is {_number(value)}; give a {kind} {allowed.words()}")


def check(prefix: str, options: Mapping[str, Any], owner: str = "") -> None:
    """Refuses options with a number outside of its range; arguments as of `check_value`.

    Raises:
      UserError: one is outside; names it as `prefix` and its name.
    """
    for name, value in options.items():
        check_value(f"{prefix}{name}", value, name, owner)


def _number(value: float) -> str:
    if isinstance(value, float) and not value.is_integer():  # so is infinity
        return f"{value:g}"
    return f"{int(value):,}" if abs(value) < 1e15 else f"about 1e{len(str(abs(int(value)))) - 1}"


def whole_number(text: str) -> int:
    """Reads "128", "50_000" or "1e6".

    Raises:
      ValueError: it is no whole number.
    """
    try:
        return int(text)
    except ValueError:
        number = float(text)
        if not number.is_integer():  # also refuses infinity and NaN
            raise ValueError(f"{text!r} is no whole number") from None
        return int(number)
