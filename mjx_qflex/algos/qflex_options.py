"""Options of Qflex, and the settings of its official code and of its paper.

The paper and the code (github.com/LNSGroup/Qflex) differ in a dozen places. Each has an option.
"""

import dataclasses
from typing import Literal

from mjx_qflex import flow


@dataclasses.dataclass(frozen=True)
class QflexConfig:
    """Options of Qflex. The defaults are `PRESETS["default"]`."""

    width: int = 256  # units of each hidden layer of every network (paper: 1024 for 700 muscles)
    depth: int = 3  # hidden layers
    learning_rate: float = 3e-4
    source_learning_rate: float | None = None  # of the source policy; None: as the others
    beta1: float = 0.5  # Adam's decay of the mean gradient
    gamma: float = 0.99  # discount per control step
    reward_scale: float = 1.0  # factor on rewards in the critics' target
    initial_std: float = 1.0  # of the source before any update, ahead of the squashing
    output_gain: float = 1.0  # factor on every network's initial output kernel; see _init
    ascent_steps: int = 20  # N, steps of gradient ascent on the critic
    ascent_step_size: float = 0.01  # eta, factor on the critic's gradient
    # Of the flow when acting; one lasts dt = 1 / euler_steps. 0: no flow, the source alone acts.
    euler_steps: int = 20
    flow_states: Literal["next", "current"] = "next"  # observations that the flow is trained on
    # Share of each batch that the flow is trained on; its ascent is most of an update.
    flow_share: float = 1.0
    bootstrap: Literal["source", "flow"] = "source"  # next action in the critic's target
    clip_target: bool = False  # project the ascent's iterates to the box of valid actions
    clip_stored_action: bool = False  # clip the flow's actions before they are stored
    tanh_source: bool = True  # squash the Gaussian source by tanh, else clip its draws
    entropy: bool = False  # soft values and a learned temperature, as in SAC and CrossQ
    target_entropy: float = -1.0  # nats per actuator, where `entropy` is on
    euler_grid: flow.EulerGrid = "right"  # end of an Euler step that its velocity is taken at
    gradient: Literal["min", "mean"] = "min"  # of the two critics, for policy and ascent
    stale_critic: bool = True  # policy and ascent see the critics from before this update
    renorm_warmup: int = 10  # training calls before batch norm becomes batch renorm
    eval_noise: Literal["fixed", "mean"] = "fixed"  # evaluation: one fixed draw, or none
    batch_norm: Literal["everywhere", "critic"] = "everywhere"  # networks that have it


_CODE = QflexConfig(
    # What commit 0be8acf of the official code does (relax/algorithm/flow_exp.py,
    # relax/network/{flow,blocks}.py, relax/utils/flow_matching.py); with equal weights, batches and
    # draws 30 updates agree to 3e-7, but for two details of batch normalisation. Theirs starts
    # running variances at 0, ours at 1, which the first acting step and update alone can see. And
    # after the warm-up theirs divides by sqrt(var / r^2 + eps), as CrossQ's authors do, where ours
    # is Ioffe's formula, r / sqrt(var + eps).
    flow_states="next",  # the ascent and the flow loss use next_obs
    bootstrap="source",  # the source network in evaluation mode gives the next action
    clip_target=False,  # bounds are made, but only logged
    clip_stored_action=False,  # the environment's wrapper clips, the buffer keeps what came
    tanh_source=True,  # evaluate_reference returns tanh of the draw
    entropy=False,  # log-probabilities are computed, but enter no loss
    euler_grid="right",  # times 0.05, 0.10, ..., 1.00
    gradient="min",  # pointwise minimum of both critics
    stale_critic=True,  # a "target" copy with rate 1, refreshed at the end of an update
    renorm_warmup=10,  # warmup_th of the BatchRenorm block
    eval_noise="fixed",  # one key for all steps of an evaluation
    batch_norm="everywhere",  # critics, source and velocity field
)
_PAPER = QflexConfig(
    # Where the text is silent, the code's setting stands.
    flow_states="current",  # Algorithm 1 builds the flow on the sampled states
    bootstrap="flow",  # the next action is drawn from the policy, which is the flow
    clip_target=True,  # the ascent keeps actions valid
    clip_stored_action=True,  # the policy's actions lie in the action space
    tanh_source=False,  # the source is a Gaussian; clipped, since its actions are to be valid
    entropy=False,  # no entropy term in the losses
    euler_grid="left",  # the explicit Euler method; the text names no other grid
    gradient="min",  # clipped double Q, as in the code
    stale_critic=False,  # no target network
    renorm_warmup=10,  # not stated
    eval_noise="fixed",  # not stated
    batch_norm="critic",  # batch normalisation within the Q-network
)
PRESETS: dict[str, QflexConfig] = {
    # The setting of the code: on chain_reach and arm_reach it learns better than the paper's, and
    # no single switch beats it by more than the noise (experiments/qflex_switches).
    "default": QflexConfig(),
    "code": _CODE,
    "paper": _PAPER,
}
