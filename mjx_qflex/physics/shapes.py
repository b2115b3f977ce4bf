"""Spheres and capsules of a source model, where they sit on their bodies."""

from collections.abc import Iterable

import mujoco
import numpy as np


def rotation_matrix(quaternion: np.ndarray) -> np.ndarray:
    """The matrix `[3, 3]` of a quaternion `[4]`, w first."""
    matrix = np.zeros(9)
    mujoco.mju_quat2Mat(matrix, quaternion)
    return matrix.reshape(3, 3)


def capsule_ends(model: mujoco.MjModel, geoms: Iterable[int]) -> np.ndarray:
    """Rear and front centres `[G, 2, 3]` of capsules (m, in their bodies' frames).

    A sphere is a capsule without length.
    """
    ends = []
    for geom in geoms:
        is_capsule = model.geom_type[geom] == mujoco.mjtGeom.mjGEOM_CAPSULE
        half = model.geom_size[geom, 1] if is_capsule else 0.0
        axis = half * rotation_matrix(model.geom_quat[geom])[:, 2]
        ends.append(model.geom_pos[geom] + np.stack([-axis, axis]))
    return np.array(ends).reshape(-1, 2, 3)
