"""MuJoCo's muscle: activation dynamics and the force-length-velocity relation, vectorised.

The equations are those of MuJoCo's documentation ("Muscle actuators") and of its C code; forces
agree with `mjData.actuator_force` to 1e-5 relative (tests/test_port_muscle.py).
"""

import dataclasses

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

_TINY = mujoco.mjMINVAL


@dataclasses.dataclass(frozen=True)
class MuscleConstants:
    """Parameters of A muscles, arrays `[A]`; lengths in m, forces in N, times in s."""

    peak_force: np.ndarray
    reference_length: np.ndarray  # shortest length of the operating range
    reference_normalized: np.ndarray  # the same in units of the optimal fibre length
    optimal_length: np.ndarray
    shortest: np.ndarray  # normalised lengths at which the active force vanishes
    longest: np.ndarray
    max_velocity: np.ndarray  # optimal lengths per second
    passive_scale: np.ndarray  # passive force at the longest normalised length, times peak
    eccentric_gain: np.ndarray  # active force at saturating lengthening velocity
    activation_time: np.ndarray
    deactivation_time: np.ndarray
    smoothing_width: np.ndarray

    @classmethod
    def from_model(cls, model: mujoco.MjModel) -> "MuscleConstants":
        """Reads the parameters of all actuators of `model`, which must all be muscles."""
        gain = model.actuator_gainprm
        low, high, force, scale, shortest, longest, velocity, passive, eccentric = gain[:, :9].T
        peak = np.where(force < 0, scale / np.maximum(_TINY, model.actuator_acc0), force)
        length_range = model.actuator_lengthrange
        optimal = (length_range[:, 1] - length_range[:, 0]) / np.maximum(_TINY, high - low)
        rise, fall, width = model.actuator_dynprm[:, :3].T
        return cls(
            peak, length_range[:, 0], low, np.maximum(_TINY, optimal), shortest, longest, velocity,
            passive, eccentric, rise, fall, width,
        )  # fmt: skip


def force(
    constants: MuscleConstants, length: jax.Array, velocity: jax.Array, activation: jax.Array
) -> jax.Array:
    """Returns the force `[A]` in N of each muscle; negative pulls, as MuJoCo's actuator_force.

    Args:
      constants: parameters of the A muscles.
      length: path lengths `[A]` in m.
      velocity: lengthening velocities `[A]` in m/s.
      activation: activations `[A]` in [0, 1].
    """
    c = constants
    normalized = c.reference_normalized + (length - c.reference_length) / c.optimal_length
    speed = velocity / np.maximum(_TINY, c.optimal_length * c.max_velocity)
    active = _active_length_gain(c, normalized) * _velocity_gain(c, speed)
    return -c.peak_force * (active * activation + _passive_gain(c, normalized))


def _active_length_gain(c: MuscleConstants, length: jax.Array) -> jax.Array:
    """Four parabolas that meet at the midpoints between the optimum and either end."""
    left, right = 0.5 * (c.shortest + 1), 0.5 * (1 + c.longest)
    rising = 0.5 * jnp.square((length - c.shortest) / np.maximum(_TINY, left - c.shortest))
    before = 1 - 0.5 * jnp.square((1 - length) / np.maximum(_TINY, 1 - left))
    after = 1 - 0.5 * jnp.square((length - 1) / np.maximum(_TINY, right - 1))
    falling = 0.5 * jnp.square((c.longest - length) / np.maximum(_TINY, c.longest - right))
    gain = jnp.where(length <= right, after, falling)
    gain = jnp.where(length <= 1, before, gain)
    gain = jnp.where(length <= left, rising, gain)
    return jnp.where((length >= c.shortest) & (length <= c.longest), gain, 0.0)


def _velocity_gain(c: MuscleConstants, speed: jax.Array) -> jax.Array:
    excess = c.eccentric_gain - 1
    lengthening = c.eccentric_gain - jnp.square(excess - speed) / np.maximum(_TINY, excess)
    gain = jnp.where(speed <= excess, lengthening, c.eccentric_gain)
    gain = jnp.where(speed <= 0, jnp.square(speed + 1), gain)
    return jnp.where(speed <= -1, 0.0, gain)


def _passive_gain(c: MuscleConstants, length: jax.Array) -> jax.Array:
    """Half-quadratic from the optimum to its midpoint with the longest length, then linear."""
    knee = 0.5 * (1 + c.longest)
    reach = np.maximum(_TINY, knee - 1)
    curved = 0.5 * jnp.square((length - 1) / reach)
    straight = 0.5 + (length - knee) / reach
    gain = jnp.where(length <= knee, curved, straight)
    return c.passive_scale * jnp.where(length <= 1, 0.0, gain)


def activation_rate(
    constants: MuscleConstants, excitation: jax.Array, activation: jax.Array
) -> jax.Array:
    """Returns the time derivative `[A]` of activation, 1/s (Millard et al. 2013's time constants)."""
    c = constants
    bounded = jnp.clip(activation, 0, 1)
    difference = jnp.clip(excitation, 0, 1) - activation
    rise = c.activation_time * (0.5 + 1.5 * bounded)
    fall = c.deactivation_time / (0.5 + 1.5 * bounded)
    x = jnp.clip(difference / np.maximum(_TINY, c.smoothing_width) + 0.5, 0, 1)
    smooth = x * x * x * (3 * x * (2 * x - 5) + 10)
    blend = jnp.where(c.smoothing_width < _TINY, jnp.where(difference > 0, 1.0, 0.0), smooth)
    return difference / jnp.maximum(_TINY, fall + (rise - fall) * blend)
