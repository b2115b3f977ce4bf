"""How actions in [-1, 1] become muscle excitations: each suite of tasks has a map of its own."""

from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from mjx_qflex.lookup import unknown_name

ActionMap = Literal["linear", "exponential", "sigmoid"]

EXPONENT = 8.0  # of the exponential map: action 0 excites by 1.8%
SLOPE, MIDDLE = 5.0, 0.5  # of the sigmoid map


def check(task: str, action_map: str) -> None:
    """Refuses an action map that does not exist.

    Raises:
      UserError: there is none of that name; the nearest is named.
    """
    if action_map not in get_args(ActionMap):
        raise unknown_name(f"action map of {task}", action_map, get_args(ActionMap))


def excitation(action: jax.Array, action_map: ActionMap) -> jax.Array:
    """Returns excitations `[A]` from 0 to 1 for actions from -1 to 1, to which they are clipped.

    * "linear" is Qflex's map, (a + 1) / 2: action 0 is half of full excitation, in every muscle.
    * "exponential" is (e^{8 x} - 1) / (e^8 - 1) with x = (a + 1) / 2. Action 0 is a resting tone of
      1.8%, and equal changes of the action change the excitation by about equal ratios, so that
      exploration is in proportion to the signal, as motor noise is (Harris and Wolpert 1998).
    * "sigmoid" is MyoSuite's, 1 / (1 + e^{-5 (a - 0.5)}): 0.06% to 92%, action 0 is 7.6%.
    """
    action = jnp.clip(action, -1.0, 1.0)
    if action_map == "sigmoid":
        return jax.nn.sigmoid(SLOPE * (action - MIDDLE))
    share = 0.5 * (action + 1.0)
    if action_map == "linear":
        return share
    return jnp.expm1(EXPONENT * share) / np.expm1(EXPONENT)
