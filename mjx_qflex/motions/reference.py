"""Periodic joint trajectories from a CSV file, looked up as pure JAX functions.

The file has a row of column names, evenly spaced rows over one period, and a last row that equals
the first one, a stride further on: `time` (s), then one column a joint (rad). A free joint `j` has
seven: `j_x j_y j_z` (m) and the quaternion `j_qw j_qx j_qy j_qz`, which runs on without a change of
sign: after a full turn it ends as the negative of what it was. Lines that start with `#` tell where
the numbers come from.
"""

import csv
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from flax import struct

from mjx_qflex import files
from mjx_qflex.errors import UserError

FREE_SUFFIXES = ("_x", "_y", "_z", "_qw", "_qx", "_qy", "_qz")
OVERSAMPLING = 5  # knots of the lookup tables between two rows of the file


@struct.dataclass
class Motion:
    """A periodic motion in the coordinates of a body, tabulated densely enough to be interpolated.

    Positions are free of the travelled distance; `drift` is what every period adds to them.
    """

    period: jax.Array  # [] s
    qpos_table: jax.Array  # [K + 1, nq], both ends of the period
    qvel_table: jax.Array  # [K + 1, nv]
    drift: jax.Array  # [nq] a period; of joints that travel
    closing: jax.Array  # [nq] factor of every period: -1 for a quaternion that a full turn negates
    quaternions: tuple[int, ...] = struct.field(pytree_node=False)  # first index of each

    def qpos(self, time: jax.Array) -> jax.Array:
        """Positions `[nq]` at `time` (s, any real number), the way travelled so far included."""
        cycles = time / self.period
        qpos = interpolate(self.qpos_table, cycles)
        for start in self.quaternions:
            quaternion = qpos[start : start + 4]
            qpos = qpos.at[start : start + 4].set(quaternion / jnp.linalg.norm(quaternion))
        odd = jnp.mod(jnp.floor(cycles), 2.0) == 1.0
        return jnp.where(odd, self.closing, 1.0) * qpos + self.drift * cycles

    def qvel(self, time: jax.Array) -> jax.Array:
        """Velocities `[nv]` at `time`; of a free joint MuJoCo's: world linear, local angular."""
        return interpolate(self.qvel_table, time / self.period)

    def nearest(self, time: jax.Array, qpos: jax.Array) -> jax.Array:
        """`qpos(time)` with the sign of each quaternion that is nearer to that of `qpos [nq]`."""
        target = self.qpos(time)
        for start in self.quaternions:
            place = slice(start, start + 4)
            same = jnp.sum(target[place] * qpos[place]) >= 0.0
            target = target.at[place].multiply(jnp.where(same, 1.0, -1.0))
        return target


@struct.dataclass
class Landmarks:
    """World positions of `P` points of a body along a motion."""

    period: jax.Array  # [] s
    table: jax.Array  # [K + 1, P, 3] m, free of the travelled distance
    drift: jax.Array  # [3] m a period

    def positions(self, time: jax.Array) -> jax.Array:
        """Positions `[P, 3]` at `time` (s)."""
        cycles = time / self.period
        return interpolate(self.table, cycles) + (self.drift * cycles)[None]


def interpolate(table: jax.Array, cycles: jax.Array) -> jax.Array:
    """Linear interpolation of `table [K + 1, ...]` at the fractional part of `cycles []`."""
    intervals = table.shape[0] - 1
    place = (cycles - jnp.floor(cycles)) * intervals
    below = jnp.clip(jnp.floor(place).astype(jnp.int32), 0, intervals - 1)
    part = place - below
    return (1.0 - part) * table[below] + part * table[below + 1]


def landmarks(motion: Motion, body: Any, names: Sequence[str]) -> Landmarks:
    """Where C MuJoCo puts the origins of the source bodies `names` when `body` moves so."""
    model = body.source_model()
    data = mujoco.MjData(model)
    ids = [model.body(name).id for name in names]

    def positions(qpos: np.ndarray) -> np.ndarray:
        data.qpos[:] = qpos
        mujoco.mj_kinematics(model, data)
        return data.xpos[ids]

    table = np.asarray(motion.qpos_table, float)
    part = np.linspace(0.0, 1.0, len(table))
    # `drift` may turn a scalar root as well as move it: it is taken off places, not off poses.
    poses = body.source_qpos(table + np.outer(part, np.asarray(motion.drift)))
    found = np.stack([positions(qpos) for qpos in poses])
    travelled = found[-1, 0] - found[0, 0]
    return Landmarks(
        period=motion.period,
        table=jnp.asarray(found - part[:, None, None] * travelled, jnp.float32),
        drift=jnp.asarray(travelled, jnp.float32),
    )


def load(path: Path, joint_names: Sequence[str], travelling: Sequence[str] = ()) -> Motion:
    """Read the motion of a body whose coordinates are `joint_names`, in this order.

    Free joints travel, and so may the scalar joints `travelling`.

    Raises:
      UserError: there is no such file, a joint has no column, or the file is not one period.
    """
    return from_columns(path.name, read_columns(path), joint_names, travelling)


def from_columns(
    name: str,
    columns: dict[str, np.ndarray],
    joint_names: Sequence[str],
    travelling: Sequence[str] = (),
) -> Motion:
    """As `load`, from the columns of a file; `name` is for its error messages."""
    header, quaternions, travels = [], [], []
    for joint in joint_names:
        if f"{joint}_qw" in columns:
            travels += range(len(header), len(header) + 3)
            quaternions.append(len(header) + 3)
            header += [joint + suffix for suffix in FREE_SUFFIXES]
        else:
            travels += [len(header)] if joint in travelling else []
            header.append(joint)
    missing = [column for column in header if column not in columns]
    if missing:
        raise UserError(f"motion {name} has no column for {missing[0]}; add one")
    time = columns["time"]
    rows = np.stack([columns[column] for column in header], axis=1)
    drift, closing = np.zeros(len(header)), np.ones(len(header))
    drift[travels] = (rows[-1] - rows[0])[travels]
    for start in quaternions:
        turn = slice(start, start + 4)
        closing[turn] = np.sign(rows[-1, turn] @ rows[0, turn])
    if len(time) < 4 or np.ptp(np.diff(time)) > 1e-3 or time[-1] <= time[0]:
        raise UserError(f"motion {name} is not in even steps of time; resample it")
    if not np.allclose(rows[-1], closing * rows[0] + drift, atol=1e-5):
        raise UserError(f"motion {name} is not one period, both ends given; retarget it anew")
    period = time[-1] - time[0]
    cycles = (time - time[0]) / period
    once = (rows - np.outer(cycles, drift))[:-1]
    # Two periods close even where one negates a quaternion.
    dense, slopes = periodic_spline(np.concatenate([once, closing * once]), OVERSAMPLING)
    half = len(dense) // 2
    dense, slopes = dense[: half + 1], slopes[: half + 1] / 2.0
    velocities = _velocities(dense, (slopes + drift) / period, quaternions)
    return Motion(
        period=jnp.asarray(period, jnp.float32),
        qpos_table=jnp.asarray(dense, jnp.float32),
        qvel_table=jnp.asarray(velocities, jnp.float32),
        drift=jnp.asarray(drift, jnp.float32),
        closing=jnp.asarray(closing, jnp.float32),
        quaternions=tuple(quaternions),
    )


def read_columns(path: Path) -> dict[str, np.ndarray]:
    """The columns of a motion file by name.

    Raises:
      UserError: there is no such file, or it is not a table of numbers with a column `time`.
    """
    if not os.path.isfile(path):  # of a name too long, too
        raise UserError(f"no motion file {path}; name an existing CSV file")
    try:
        # Comments may be in any language's letters; names and numbers are in ASCII.
        with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
            lines = [*csv.reader(line for line in file if not line.startswith("#"))]
        table = np.array(lines[1:], dtype=float)
    except (ValueError, csv.Error, OSError) as error:
        why = files.reason(error)[:200]
        raise UserError(f"motion {path.name} is not a table of numbers ({why})") from None
    if not table.size:
        raise UserError(f"motion {path.name} has no rows; give column names, then rows of numbers")
    if table.shape[1] != len(lines[0]) or not np.isfinite(table).all():
        raise UserError(f"motion {path.name} has gaps; give every column a number in every row")
    names = [name.strip() for name in lines[0]]
    twice = [name for i, name in enumerate(names) if name in names[:i]]
    if twice:
        raise UserError(f"motion {path.name} has the column {twice[0]} twice; remove one")
    columns = dict(zip(names, table.T, strict=True))
    if "time" not in columns:
        raise UserError(f"motion {path.name} has no column for time; add one, in seconds")
    if (np.diff(columns["time"]) <= 0.0).any():
        raise UserError(f"motion {path.name} goes back in time; sort its rows")
    return columns


def write_columns(path: Path, columns: dict[str, np.ndarray], head: str) -> None:
    """Writes a motion file; the lines of `head` tell where the numbers come from."""
    with files.beside(path) as temporary, temporary.open("w", newline="") as file:
        file.writelines(f"# {line}\n" for line in head.splitlines())
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        for time, *row in zip(*columns.values(), strict=True):
            writer.writerow([f"{time:.4f}", *(f"{value:.6f}" for value in row)])


def periodic_spline(rows: np.ndarray, factor: int) -> tuple[np.ndarray, np.ndarray]:
    """Periodic cubic spline through `rows [T, n]`, `factor` times as dense.

    Returns values and derivatives by the number of periods, both `[factor * T, n]`.
    """
    count = len(rows)
    after, before = np.roll(rows, -1, axis=0), np.roll(rows, 1, axis=0)
    identity = np.eye(count)
    neighbours = np.roll(identity, 1, axis=1) + np.roll(identity, -1, axis=1)
    # Second derivatives m at the knots, step 1: m[i-1] + 4 m[i] + m[i+1] = 6 (second difference).
    curvature = np.linalg.solve(4.0 * identity + neighbours, 6.0 * (before - 2.0 * rows + after))
    following = np.roll(curvature, -1, axis=0)
    part = (np.arange(factor) / factor)[None, :, None]
    start, end = rows[:, None], after[:, None]
    c0, c1 = curvature[:, None] / 6.0, following[:, None] / 6.0
    rest = 1.0 - part
    values = c0 * (rest**3 - rest) + c1 * (part**3 - part) + start * rest + end * part
    slopes = c0 * (1.0 - 3.0 * rest**2) + c1 * (3.0 * part**2 - 1.0) + end - start
    return values.reshape(factor * count, -1), slopes.reshape(factor * count, -1) * count


def _velocities(qpos: np.ndarray, rates: np.ndarray, quaternions: Sequence[int]) -> np.ndarray:
    """MuJoCo velocities `[K, nv]` from coordinates and their time derivatives `[K, nq]`."""
    parts, done = [], 0
    for start in quaternions:
        parts.append(rates[:, done:start])
        unit = qpos[:, start : start + 4]
        length = np.linalg.norm(unit, axis=1, keepdims=True)
        w, v = unit[:, :1] / length, unit[:, 1:] / length
        dw, dv = rates[:, start : start + 1] / length, rates[:, start + 1 : start + 4] / length
        parts.append(2.0 * (w * dv - dw * v - np.cross(v, dv)))  # 2 conj(q) dq/dt
        done = start + 4
    return np.concatenate([*parts, rates[:, done:]], axis=1)
