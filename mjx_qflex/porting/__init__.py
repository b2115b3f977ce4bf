"""Porting: from a MuJoCo model to a body that thousands of environments step at once.

Read `recipe` (what stays), `tree` (constants, couplings eliminated), `dynamics`, `contacts`,
`solver` (one step), `paths`, `fitting`, `muscle` (the muscles), then `body` and `library`.
"""

from mjx_qflex.physics.body import Kinematics, Muscles, PhysicsState, PortedBody
from mjx_qflex.porting.library import load

__all__ = ["Kinematics", "Muscles", "PhysicsState", "PortedBody", "load"]
