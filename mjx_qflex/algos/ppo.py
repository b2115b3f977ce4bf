"""PPO: proximal policy optimisation (Schulman et al., arXiv 1707.06347), brax's implementation.

Learning is brax's own (`brax.training.agents.ppo.train`), which `training/on_policy.py` calls; here
are its options, and its networks as a policy that acts and is evaluated like any other. PPO
learns from what it has just done and keeps no replay, so it has no `update` from a batch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from brax.training.acme import running_statistics, specs
from brax.training.agents.ppo import networks as brax_networks

from mjx_qflex.algos import common
from mjx_qflex.types import Algorithm, EnvSpec, stateless_policy

Activation = Literal["swish", "relu", "tanh"]


@dataclass(frozen=True)
class PpoConfig:
    """Options of PPO. The defaults are MuJoCo Playground's for locomotion (locomotion_params.py).

    Sizes of the data are no part of them: `sizes.OnPolicyConfig`.
    """

    width: int = 128  # units of each hidden layer of the policy
    depth: int = 4  # hidden layers of the policy
    critic_width: int | None = 256  # of the value network; None: as the policy's
    critic_depth: int = 5
    activation: Activation = "swish"
    # A Gaussian squashed by tanh whose deviation depends on the state, or a plain one whose
    # deviation does not; the task clips its actions.
    distribution: Literal["tanh_normal", "normal"] = "tanh_normal"
    learning_rate: float = 3e-4
    gamma: float = 0.97  # discount per control step
    gae_lambda: float = 0.95  # of generalised advantage estimation
    clipping_epsilon: float = 0.3  # of the ratio of probabilities; Playground takes brax's default
    entropy_cost: float = 0.01
    value_coefficient: float = 0.5  # weight of half the mean squared error of values
    max_grad_norm: float | None = 1.0
    normalize_observations: bool = True  # by running moments
    reward_scale: float = 1.0


PRESETS: dict[str, PpoConfig] = {
    "default": PpoConfig(),
    # What Qflex's authors compare with: HumanoidBench's script (ppo/run_sb3_ppo.py), which sets
    # the learning rate and leaves all else to Stable-Baselines3 2.x's defaults. Its orthogonal
    # initialisation, and Adam's epsilon of 1e-5, are not brax's to choose.
    "qflex_paper": PpoConfig(
        width=64,
        depth=2,
        critic_width=None,
        critic_depth=2,
        activation="tanh",
        distribution="normal",
        learning_rate=3e-5,
        gamma=0.99,
        clipping_epsilon=0.2,
        entropy_cost=0.0,
        value_coefficient=1.0,  # brax halves the squared error, Stable-Baselines3 does not
        max_grad_norm=0.5,
        normalize_observations=False,
    ),
}


class PpoLearner(NamedTuple):
    """All of what PPO learns that brax hands out, in brax's order; Adam's moments it keeps."""

    normalizer: running_statistics.RunningStatisticsState
    policy: Any
    value: Any


def make(config: PpoConfig, spec: EnvSpec) -> Algorithm:
    """Builds PPO's policy for an environment.

    Raises:
      UserError: an option's value is refused.
    """
    common.check_options("ppo", config)
    normalize = running_statistics.normalize if config.normalize_observations else _as_they_are
    networks = network_factory(config)(
        spec.observation_size, spec.action_size, preprocess_observations_fn=normalize
    )
    inference = brax_networks.make_inference_fn(networks)

    def init(key: jax.Array) -> PpoLearner:
        policy_key, value_key = jax.random.split(key)
        return PpoLearner(
            running_statistics.init_state(
                specs.Array((spec.observation_size,), jnp.dtype("float32"))
            ),
            networks.policy_network.init(policy_key),
            networks.value_network.init(value_key),
        )

    def policy(learner: PpoLearner):
        unused = jax.random.key(0)  # brax asks for a key where nothing is drawn
        return stateless_policy(
            sample=lambda obs, key: inference(learner, deterministic=False)(obs, key)[0],
            mode=lambda obs: inference(learner, deterministic=True)(obs, unused)[0],
        )

    return Algorithm(init, policy)


def network_factory(config: PpoConfig) -> Callable[..., brax_networks.PPONetworks]:
    """Returns what builds brax's networks, as `brax.training.agents.ppo.train` asks for it."""
    return partial(
        brax_networks.make_ppo_networks,
        policy_hidden_layer_sizes=(config.width,) * config.depth,
        value_hidden_layer_sizes=(config.critic_width or config.width,) * config.critic_depth,
        activation=getattr(jax.nn, config.activation),
        distribution_type=config.distribution,
        noise_std_type="log",
    )


def _as_they_are(obs: jax.Array, statistics: Any) -> jax.Array:
    del statistics
    return obs
