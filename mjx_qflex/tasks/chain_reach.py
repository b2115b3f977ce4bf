"""Reaching with a planar chain of many short links, the toy problem of Qflex's Figure 1.

A chain of unit length has A equal links, so that more joints mean finer control of the same arm:
joint i may turn by at most 0.5 / A rad a step. The body is kinematic and needs no simulator, which
makes this the task to learn in seconds.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from brax.envs.base import Env, State

from mjx_qflex.errors import UserError
from mjx_qflex.tasks.options import TaskConfig

EPISODE_LENGTH = 20
TURN = 0.5  # rad, the turn of all joints together at full action
REACHED = 0.05  # chain lengths, the distance within which the tip counts as on the target
SQUARED_RADIUS = (0.1, 0.8)  # of the target, drawn uniformly: uniform over the ring's area


@dataclass(frozen=True)
class ChainReachConfig(TaskConfig):
    """Options of `chain_reach`: how many joints, thus actuators, the chain has."""

    num_joints: int = 8


class ChainState(NamedTuple):
    """All that evolves."""

    angles: jax.Array  # [A] rad, each joint relative to the link before
    target: jax.Array  # [2] chain lengths
    steps: jax.Array  # [] int32, steps since reset


def tip_position(angles: jax.Array) -> jax.Array:
    """Returns the tip [2] of a chain of unit length whose joints stand at `angles` [A] rad."""
    headings = jnp.cumsum(angles)
    return jnp.stack([jnp.mean(jnp.cos(headings)), jnp.mean(jnp.sin(headings))])


def turn_joints(angles: jax.Array, action: jax.Array) -> jax.Array:
    """Returns the joint angles [A] after one step of `action` [A], clipped to [-1, 1]."""
    return angles + TURN / angles.shape[-1] * jnp.clip(action, -1.0, 1.0)


class ChainReach(Env):
    """Bring the tip of a straight chain to a target within 20 steps.

    Observation [A + 4]: joint angles times sqrt(A), target, target minus tip. Reward: minus the
    distance, plus 1 within 0.05. The episode ends by time-out only.
    """

    terminates = False  # it only times out
    compiler_options: dict[str, bool | int | str] = {}

    def __init__(self, config: ChainReachConfig = ChainReachConfig()):
        if config.num_joints < 1:
            raise UserError(f"chain_reach has num_joints={config.num_joints}; give 1 or more")
        self.config = config
        self.episode_length = EPISODE_LENGTH
        self.control_dt = 0.05  # s, nominal: the chain has no dynamics

    @property
    def observation_size(self) -> int:
        return self.config.num_joints + 4

    @property
    def action_size(self) -> int:
        return self.config.num_joints

    @property
    def backend(self) -> str:
        return "mjx"  # what brax's wrappers expect of a body that needs none of its own pipelines

    def reset(self, rng: jax.Array) -> State:
        """Returns a straight chain with a new target."""
        angle_key, radius_key = jax.random.split(rng)
        angle = jax.random.uniform(angle_key, (), minval=-jnp.pi, maxval=jnp.pi)
        low, high = SQUARED_RADIUS
        radius = jnp.sqrt(jax.random.uniform(radius_key, (), minval=low, maxval=high))
        chain = ChainState(
            angles=jnp.zeros(self.action_size),
            target=radius * jnp.stack([jnp.cos(angle), jnp.sin(angle)]),
            steps=jnp.zeros((), jnp.int32),
        )
        zero = jnp.zeros(())
        metrics = {"reward/distance": zero, "reward/reached": zero}
        # brax annotates pipeline_state as a state of its own pipelines.
        return State(
            cast(Any, chain), self._observe(chain), zero, zero, metrics, {"truncation": zero}
        )

    def step(self, state: State, action: jax.Array) -> State:
        """Turns the joints by `action` [A] in [-1, 1]."""
        old = cast(ChainState, state.pipeline_state)
        chain = ChainState(turn_joints(old.angles, action), old.target, old.steps + 1)
        distance = jnp.linalg.norm(chain.target - tip_position(chain.angles))
        terms = {
            "reward/distance": -distance,
            "reward/reached": (distance < REACHED).astype(jnp.float32),
        }
        truncation = (chain.steps >= self.episode_length).astype(jnp.float32)
        return state.replace(
            pipeline_state=chain,
            obs=self._observe(chain),
            reward=terms["reward/distance"] + terms["reward/reached"],
            metrics={**state.metrics, **terms},
            info={**state.info, "truncation": truncation},
        )

    def _observe(self, chain: ChainState) -> jax.Array:
        scaled = chain.angles * self.action_size**0.5
        return jnp.concatenate([scaled, chain.target, chain.target - tip_position(chain.angles)])
