"""MuJoCo's muscle: activation dynamics and the force-length-velocity relation, vectorised.

The equations are those of MuJoCo's documentation ("Muscle actuators") and of its C code; forces
agree with `mjData.actuator_force` to 1e-5 relative (tests/test_port_muscle.py).
"""

import dataclasses

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from mjx_qflex.errors import UserError
from mjx_qflex.physics import audit

_TINY = mujoco.mjMINVAL
_MUSCLE = int(mujoco.mjtGain.mjGAIN_MUSCLE)
_COVERED = (
    ("pulls on something other than a tendon or a joint", "trntype", {
        int(mujoco.mjtTrn.mjTRN_TENDON), int(mujoco.mjtTrn.mjTRN_JOINT),
        int(mujoco.mjtTrn.mjTRN_JOINTINPARENT),
    }),
    ("has a muscle's gain with another dyntype", "dyntype", {int(mujoco.mjtDyn.mjDYN_MUSCLE)}),
    ("has a muscle's gain with another biastype", "biastype", {int(mujoco.mjtBias.mjBIAS_MUSCLE)}),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Scale:
    """How a path length becomes a normalised fibre length, arrays `[A]`."""

    peak_force: np.ndarray  # N
    reference_length: np.ndarray  # m, shortest length of the operating range
    reference_normalized: np.ndarray  # the same in units of the optimal fibre length
    optimal_length: np.ndarray  # m
    longest: np.ndarray  # normalised length at which the active force vanishes

    @classmethod
    def from_parameters(
        cls, parameters: np.ndarray, acc0: np.ndarray, length_range: np.ndarray
    ) -> "Scale":
        """Reads `actuator_gainprm` or `actuator_biasprm [A, ...]`."""
        low, high, force, scale, _, longest = parameters[:, :6].T
        peak = np.where(force < 0, scale / np.maximum(_TINY, acc0), force)
        start, end = length_range.T
        optimal = np.maximum(_TINY, (end - start) / np.maximum(_TINY, high - low))
        return cls(peak, start, low, optimal, longest)

    def normalized(self, length: jax.Array) -> jax.Array:
        """Normalised fibre lengths `[A]` of path lengths `[A]` in m."""
        return (length - self.reference_length) / self.optimal_length + self.reference_normalized


@dataclasses.dataclass(frozen=True)
class MuscleConstants:
    """Parameters of A muscles, arrays `[A]`; velocities in optimal lengths/s, times in s.

    MuJoCo scales active and passive force apart (gain and bias parameters); sources use it: two
    muscles of MyoFullBody have different values there.
    """

    active: Scale
    passive: Scale
    shortest: np.ndarray  # normalised length at which the active force vanishes
    max_velocity: np.ndarray
    eccentric_gain: np.ndarray  # active force at saturating lengthening velocity
    passive_gain: np.ndarray  # passive force at the longest normalised length, times peak
    activation_time: np.ndarray
    deactivation_time: np.ndarray
    smoothing_width: np.ndarray
    # What few models have, None where no muscle does.
    excitation_range: np.ndarray | None  # [A, 2] within [0, 1]
    activation_range: np.ndarray | None  # [A, 2] that integration keeps to, infinite: none
    early: np.ndarray | None  # [A] bool, pulls by the activation after the step
    force_range: np.ndarray | None  # [A, 2] N, infinite: none

    @classmethod
    def from_model(cls, model: mujoco.MjModel) -> "MuscleConstants":
        """Reads the parameters of all muscles among the actuators of `model`.

        Raises:
          UserError: a muscle's gain on an actuator that is no muscle otherwise.
        """
        muscles = model.actuator_gaintype == _MUSCLE
        _refuse_what_is_not_covered(model, muscles)
        gain, bias = model.actuator_gainprm[muscles], model.actuator_biasprm[muscles]
        rise, fall, width = model.actuator_dynprm[muscles, :3].T
        scale = model.actuator_acc0[muscles], model.actuator_lengthrange[muscles]
        return cls(
            active=Scale.from_parameters(gain, *scale),
            passive=Scale.from_parameters(bias, *scale),
            shortest=gain[:, 4],
            max_velocity=gain[:, 6],
            eccentric_gain=gain[:, 8],
            passive_gain=bias[:, 7],
            activation_time=rise,
            deactivation_time=fall,
            smoothing_width=width,
            **_ranges(model, muscles),
        )

    def without_force(self) -> "MuscleConstants":
        """The same muscles, too weak to pull."""
        none = np.zeros_like(self.active.peak_force)
        return dataclasses.replace(
            self,
            active=dataclasses.replace(self.active, peak_force=none),
            passive=dataclasses.replace(self.passive, peak_force=none),
            force_range=None,
        )


def _refuse_what_is_not_covered(model: mujoco.MjModel, muscles: np.ndarray) -> None:
    for actuator in np.flatnonzero(muscles):
        for what, field, covered in _COVERED:
            if getattr(model, f"actuator_{field}")[actuator] not in covered:
                name = model.actuator(int(actuator)).name
                raise UserError(f"actuator {name!r} {what}; a ported muscle is MuJoCo's <muscle>")


def _ranges(model: mujoco.MjModel, muscles: np.ndarray) -> dict[str, np.ndarray | None]:
    """The optional fields of `MuscleConstants`."""
    excitation = limits(model.actuator_ctrlrange, model.actuator_ctrllimited)[muscles]
    excitation = np.clip(excitation, 0, 1)
    narrowed = (excitation != (0, 1)).any() and not audit.disabled(
        model, mujoco.mjtDisableBit.mjDSBL_CLAMPCTRL
    )
    activation = limits(model.actuator_actrange, model.actuator_actlimited)[muscles]
    force = limits(model.actuator_forcerange, model.actuator_forcelimited)[muscles]
    early = model.actuator_actearly[muscles].astype(bool)
    return {
        "excitation_range": excitation if narrowed else None,
        "activation_range": activation if np.isfinite(activation).any() else None,
        "early": early if early.any() else None,
        "force_range": force if np.isfinite(force).any() else None,
    }


def limits(ranges: np.ndarray, limited: np.ndarray) -> np.ndarray:
    """Ranges `[A, 2]`, infinite where they are not `limited [A]`."""
    return np.where(limited[:, None].astype(bool), ranges, np.array([[-np.inf, np.inf]]))


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
    speed = velocity / np.maximum(_TINY, c.active.optimal_length * c.max_velocity)
    gain = _active_length_gain(c, c.active.normalized(length)) * _velocity_gain(c, speed)
    passive = _passive_gain(c, c.passive.normalized(length)) * c.passive.peak_force
    force = -(gain * c.active.peak_force * activation + passive)
    return force if c.force_range is None else jnp.clip(force, *c.force_range.T)


def _active_length_gain(c: MuscleConstants, length: jax.Array) -> jax.Array:
    """Four parabolas that meet at the midpoints between the optimum and either end."""
    longest = c.active.longest
    left, right = 0.5 * (c.shortest + 1), 0.5 * (1 + longest)
    rising = 0.5 * jnp.square((length - c.shortest) / np.maximum(_TINY, left - c.shortest))
    before = 1 - 0.5 * jnp.square((1 - length) / np.maximum(_TINY, 1 - left))
    after = 1 - 0.5 * jnp.square((length - 1) / np.maximum(_TINY, right - 1))
    falling = 0.5 * jnp.square((longest - length) / np.maximum(_TINY, longest - right))
    gain = jnp.where(length <= right, after, falling)
    gain = jnp.where(length <= 1, before, gain)
    gain = jnp.where(length <= left, rising, gain)
    return jnp.where((length >= c.shortest) & (length <= longest), gain, 0.0)


def _velocity_gain(c: MuscleConstants, speed: jax.Array) -> jax.Array:
    excess = c.eccentric_gain - 1
    lengthening = c.eccentric_gain - jnp.square(excess - speed) / np.maximum(_TINY, excess)
    gain = jnp.where(speed <= excess, lengthening, c.eccentric_gain)
    gain = jnp.where(speed <= 0, jnp.square(speed + 1), gain)
    return jnp.where(speed <= -1, 0.0, gain)


def _passive_gain(c: MuscleConstants, length: jax.Array) -> jax.Array:
    """Half-quadratic from the optimum to its midpoint with the longest length, then linear."""
    knee = 0.5 * (1 + c.passive.longest)
    reach = np.maximum(_TINY, knee - 1)
    curved = 0.5 * jnp.square((length - 1) / reach)
    straight = 0.5 + (length - knee) / reach
    gain = jnp.where(length <= knee, curved, straight)
    return jnp.where(length <= 1, 0.0, gain) * c.passive_gain


def activation_rate(
    constants: MuscleConstants, excitation: jax.Array, activation: jax.Array
) -> jax.Array:
    """Returns the time derivative `[A]` of activation, 1/s (time constants: Millard 2013)."""
    c = constants
    if c.excitation_range is not None:
        excitation = jnp.clip(excitation, *c.excitation_range.T)
    bounded = jnp.clip(activation, 0, 1)
    difference = jnp.clip(excitation, 0, 1) - activation
    rise = c.activation_time * (0.5 + 1.5 * bounded)
    fall = c.deactivation_time / (0.5 + 1.5 * bounded)
    x = jnp.clip(difference / np.maximum(_TINY, c.smoothing_width) + 0.5, 0, 1)
    smooth = x * x * x * (3 * x * (2 * x - 5) + 10)
    blend = jnp.where(c.smoothing_width < _TINY, jnp.where(difference > 0, 1.0, 0.0), smooth)
    return difference / jnp.maximum(_TINY, fall + (rise - fall) * blend)


def next_activation(
    constants: MuscleConstants, excitation: jax.Array, activation: jax.Array, timestep: float
) -> jax.Array:
    """Returns activations `[A]` a step of `timestep` s later."""
    later = activation + timestep * activation_rate(constants, excitation, activation)
    within = constants.activation_range
    return later if within is None else jnp.clip(later, *within.T)


def pulling_activation(
    constants: MuscleConstants, activation: jax.Array, later: jax.Array
) -> jax.Array:
    """Returns the activations `[A]` that pull during a step: those before it, or early ones."""
    return activation if constants.early is None else jnp.where(constants.early, later, activation)
