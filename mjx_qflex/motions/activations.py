"""Muscle activations that go with a shipped reference motion, one file a motion and body.

They come from static optimisation (`experiments/paper/ms_human_walk/feasibility.py`): at each
phase the muscles balance gravity, inertia and their own passive tension as nearly as they can.
"""

import jax
import jax.numpy as jnp
import numpy as np

from mjx_qflex import resources
from mjx_qflex.errors import UserError
from mjx_qflex.motions.reference import interpolate
from mjx_qflex.physics.body import PortedBody


def file_name(motion: str, body: str, num_actuators: int) -> str:
    """The file of a motion's activations: `activation [P, A]` over a period, `muscles [A]`."""
    return f"{motion}_{body}_{num_actuators}.npz"


def of_body(motion: str, body: PortedBody) -> jax.Array:
    """Returns activations `[P + 1, A]` at evenly spaced phases of `motion`, both ends given.

    Raises:
      UserError: nobody has fitted them for this motion, body and number of actuators.
    """
    folder = resources.data_folder("assets") / "motions"
    path = folder / file_name(motion, body.name, body.nu)
    if not path.is_file():
        raise UserError(
            f"there are no fitted activations for motion {motion} on {body.name} with {body.nu} "
            "actuators; leave task.start_activation at zero"
        )
    with np.load(path, allow_pickle=False) as stored:
        activation, muscles = stored["activation"].astype(np.float32), stored["muscles"].tolist()
    if muscles != list(body.actuator_names):
        raise UserError(f"{path.name} is of other muscles than {body.name} has; fit it anew")
    return jnp.asarray(np.concatenate([activation, activation[:1]]))


def at(table: jax.Array, phase: jax.Array) -> jax.Array:
    """Activations `[A]` at `phase []`, of which only the fractional part counts."""
    return interpolate(table, phase)
