"""Whether the numbers of a motion can be meant: units, limits and lengths of quaternions.

A file in degrees or milliseconds is a legal table; trained on, it breaks every environment at once.
"""

import numpy as np

from mjx_qflex.errors import UserError
from mjx_qflex.motions.kinematics import Skeleton
from mjx_qflex.motions.reference import FREE_SUFFIXES

FAR = 0.35  # rad or m beyond a joint's limit: no rounding, and no loss of retargeting
SHARE_IN_DEGREES = 0.2  # of all values so far beyond their limits
NORM_TOLERANCE = 0.05  # of a quaternion's length
SLOWEST = 0.2  # s between rows; the spline between them would be invention
FASTEST = 100.0  # rad/s or m/s of a joint; sprinters' knees turn at 20
HIGHEST = 10.0  # m of a free joint's height


def check(name: str, columns: dict[str, np.ndarray], body: Skeleton, limits: bool = True) -> None:
    """Refuses columns of a motion file, all that `body` has, which cannot be meant.

    Args:
      name: of the motion, for the message.
      columns: by name, `[T]` each: s, rad, m.
      body: whose joints they are.
      limits: whether a single joint beyond its limits is refused; where it is moved back anyway,
        only the wrong unit is.

    Raises:
      UserError: names what cannot be meant, and the likely unit.
    """
    _check_steps(name, columns["time"])
    for joint in body.joint_names[: body.free]:
        _check_free(name, columns, joint)
    joints = body.joint_names[body.free :]
    values = np.stack([columns[joint] for joint in joints], axis=1)
    speed = np.abs(np.diff(values, axis=0) / np.diff(columns["time"])[:, None])
    beyond = np.maximum(values - body.high, body.low - values)
    far = beyond > FAR
    if far.mean() > SHARE_IN_DEGREES:
        raise UserError(
            f"motion {name}: {far.mean():.0%} of its values are far outside of the joints' limits; "
            "is it in degrees? give radians"
        )
    if limits and far.any():
        row, i = np.unravel_index(beyond.argmax(), beyond.shape)
        raise UserError(
            f"motion {name}: {joints[i]} is {values[row, i]:.3g} at {columns['time'][row]:.2f} s, "
            f"and the joint goes from {body.low[i]:.3g} to {body.high[i]:.3g}; keep it within"
        )
    if speed.max() > FASTEST:
        joint = joints[speed.max(axis=0).argmax()]
        raise UserError(
            f"motion {name} moves {joint} at {speed.max():.3g} rad/s; is its time in seconds?"
        )


def _check_steps(name: str, time: np.ndarray) -> None:
    step = np.diff(time).max(initial=0.0)
    if step > SLOWEST:
        raise UserError(
            f"motion {name} has rows {step:.3g} s apart; give {SLOWEST} s at most, and its time in "
            "seconds"
        )


def _check_free(name: str, columns: dict[str, np.ndarray], joint: str) -> None:
    turn = np.stack([columns[joint + suffix] for suffix in FREE_SUFFIXES[3:]], axis=1)
    length = np.linalg.norm(turn, axis=1)
    row = int(np.abs(length - 1.0).argmax())
    if abs(length[row] - 1.0) > NORM_TOLERANCE:
        raise UserError(
            f"motion {name}: the quaternion of {joint} at {columns['time'][row]:.2f} s has length "
            f"{length[row]:.3g}; give unit quaternions"
        )
    height = np.abs(columns[f"{joint}_z"]).max()
    if height > HIGHEST:
        raise UserError(f"motion {name} has {joint}_z up to {height:.3g} m; is it in metres?")
