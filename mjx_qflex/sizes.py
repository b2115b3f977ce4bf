"""Sizes of training: of a loop with a replay, and of on-policy training."""

from dataclasses import dataclass
from typing import Literal, get_args

from mjx_qflex import bounds
from mjx_qflex.errors import UserError
from mjx_qflex.lookup import unknown_name

# As `jax.default_matmul_precision` has them. "default" is float32 on a CPU, TensorFloat32 (ten bits
# behind the point) on an NVIDIA GPU, and bfloat16 (seven) on a TPU.
MatmulPrecision = Literal["default", "float32", "bfloat16"]
ObsDtype = Literal["float32", "bfloat16"]  # of observations in the replay
PrefillActions = Literal["uniform", "policy"]


@dataclass(frozen=True)
class LoopConfig:
    """Sizes of the training loop.

    Attributes:
      num_envs: N, environments stepped side by side.
      batch_size: B, transitions of one update.
      updates_per_step: updates after each vector step, so that updates per transition are
        `updates_per_step / num_envs`.
      prefill_transitions: transitions before the first update, rounded up to whole vector steps.
      prefill_actions: what makes them: actions drawn uniformly from [-1, 1], or the untrained
        policy's.
      offline_updates: updates after the prefill, on what the replay then holds, before the run
        goes on online; rounded up to whole epochs of `steps_per_epoch * updates_per_step`.
      replay_capacity: transitions that the ring holds, rounded up to whole vector steps; 0 is as
        many as the free memory suggests, a number that a run settles when it begins.
      replay_obs_dtype: in which the ring keeps observations; half the memory in bfloat16.
      matmul_precision: of the networks' matrix products, which `driver.build` gives the algorithm;
        "default" is JAX's, for each device its fastest. Physics always has full precision.
      steps_per_epoch: vector steps of one call of `epoch`. A run ends with the first epoch that
        reaches its number of transitions; nothing else in it depends on this.
      reset_pool: P, reset states from which ended environments restart.
      reset_pool_steps: vector steps after which they are drawn anew.
      eval_envs: E, episodes of one evaluation.
    """

    num_envs: int = 64
    batch_size: int = 256
    updates_per_step: int = 1
    prefill_transitions: int = 30_000
    prefill_actions: PrefillActions = "uniform"
    offline_updates: int = 0
    replay_capacity: int = 1_000_000
    replay_obs_dtype: ObsDtype = "float32"
    matmul_precision: MatmulPrecision = "default"
    steps_per_epoch: int = 100
    reset_pool: int = 64
    reset_pool_steps: int = 20
    eval_envs: int = 64

    def __post_init__(self):
        bounds.check("loop.", vars(self))
        names = {
            "prefill_actions": PrefillActions,
            "replay_obs_dtype": ObsDtype,
            "matmul_precision": MatmulPrecision,
        }
        for name, choices in names.items():
            if getattr(self, name) not in get_args(choices):
                raise unknown_name(f"loop.{name}", getattr(self, name), get_args(choices))
        if self.offline_updates and not (self.updates_per_step and self.prefill_transitions):
            raise UserError(
                f"loop.offline_updates={self.offline_updates} needs updates and data; give "
                "loop.updates_per_step and loop.prefill_transitions at least 1"
            )
        if 0 < self.replay_capacity < self.prefill_transitions:
            raise UserError(
                f"loop.prefill_transitions={self.prefill_transitions} exceeds "
                f"loop.replay_capacity={self.replay_capacity}; lower the first or raise the second"
            )


@dataclass(frozen=True)
class OnPolicyConfig:
    """Sizes of on-policy training, under brax's names.

    An iteration collects `batch_size * num_minibatches` unrolls, an equal number from each
    environment, and goes through them `num_updates_per_batch` times.

    Attributes:
      num_envs: N, environments stepped side by side.
      unroll_length: transitions of an unroll, at whose end the value is bootstrapped.
      batch_size: unrolls of one update.
      num_minibatches: updates of one pass through an iteration's unrolls.
      num_updates_per_batch: passes.
      steps_per_epoch: vector steps between two looks of the host, rounded up to whole iterations.
      eval_envs: E, episodes of one evaluation.
    """

    num_envs: int = 64
    unroll_length: int = 20
    batch_size: int = 8
    num_minibatches: int = 8
    num_updates_per_batch: int = 4
    steps_per_epoch: int = 20
    eval_envs: int = 64

    def __post_init__(self):
        bounds.check("loop.", vars(self))
        unrolls = self.batch_size * self.num_minibatches
        if unrolls % self.num_envs:
            raise UserError(
                f"loop.batch_size={self.batch_size} times loop.num_minibatches="
                f"{self.num_minibatches} is {unrolls} unrolls, which {self.num_envs} environments "
                "cannot share equally; make it a multiple of loop.num_envs"
            )

    @property
    def iteration_steps(self) -> int:
        """Vector steps of an iteration."""
        return self.unroll_length * self.batch_size * self.num_minibatches // self.num_envs

    @property
    def iterations(self) -> int:
        """Iterations of an epoch."""
        return -(-self.steps_per_epoch // self.iteration_steps)

    @property
    def epoch_steps(self) -> int:
        return self.iterations * self.iteration_steps

    @property
    def epoch_transitions(self) -> int:
        return self.epoch_steps * self.num_envs

    @property
    def epoch_updates(self) -> int:
        return self.iterations * self.num_updates_per_batch * self.num_minibatches
