"""A ported body: the small state that is carried, one physics step, and what is derived from it."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from mjx_qflex.porting import contacts, dynamics, muscle, paths, solver
from mjx_qflex.porting.tree import Tree, source_positions


class PhysicsState(NamedTuple):
    """All that is carried between steps, in independent coordinates."""

    qpos: jax.Array  # [nq] free joint (position, quaternion w first), then scalar joints
    qvel: jax.Array  # [nv] free joint (linear in the world, angular in the body), then scalars
    act: jax.Array  # [nu] activations
    time: jax.Array  # [] s


class Kinematics(NamedTuple):
    """Poses derived from a state, in the world; B bodies of the source model."""

    xpos: jax.Array  # [B, 3]
    xmat: jax.Array  # [B, 3, 3]
    com: jax.Array  # [3] centre of mass of the whole body
    com_velocity: jax.Array  # [3] m/s


class Muscles(NamedTuple):
    """Muscle quantities derived from a state."""

    length: jax.Array  # [nu] m
    velocity: jax.Array  # [nu] m/s
    force: jax.Array  # [nu] N, negative pulls
    outside: jax.Array  # [] fraction of muscles whose joints are outside the fitted range


@dataclasses.dataclass(frozen=True, eq=False)
class PortedBody:
    """A body in independent coordinates; all methods are pure and work under `vmap` and `jit`."""

    name: str
    tree: Tree
    floor: contacts.FloorContacts
    muscle_constants: muscle.MuscleConstants
    path_groups: tuple[paths.PathGroup, ...]
    actuator_names: tuple[str, ...]
    timestep: float
    iterations: int
    ls_iterations: int
    source: mujoco.MjModel

    # In jax 0.10, XLA:CPU's fusion emitters duplicate work along long chains of joints. From 0.11
    # on the option is unknown, and the step as fast without it.
    compiler_options = (
        {"xla_cpu_use_fusion_emitters": False} if jax.__version_info__ < (0, 11) else {}
    )

    @property
    def nq(self) -> int:
        return self.tree.nq

    @property
    def nv(self) -> int:
        return self.tree.nv

    @property
    def nu(self) -> int:
        return len(self.actuator_names)

    @property
    def joint_names(self) -> tuple[str, ...]:
        """Names of the independent joints, free ones first, in the order of `qpos`."""
        return self.tree.joint_names

    @property
    def body_names(self) -> tuple[str, ...]:
        return self.tree.body_names

    @property
    def total_mass(self) -> float:
        """Mass of all that moves, kg."""
        return float(self.tree.mass.sum())

    def qpos_index(self, joint: str) -> int | slice:
        """Place of a joint in `qpos`: an index, or the slice of a free joint's seven numbers."""
        return self._place(joint, 7)

    def qvel_index(self, joint: str) -> int | slice:
        """Place of a joint in `qvel`: an index, or the slice of a free joint's six numbers."""
        return self._place(joint, 6)

    def _place(self, joint: str, width: int) -> int | slice:
        i, free = self.joint_names.index(joint), self.tree.num_free
        return slice(width * i, width * (i + 1)) if i < free else width * free + i - free

    def body_index(self, body: str) -> int:
        return self.body_names.index(body)

    def initial_state(self) -> PhysicsState:
        """The source model's reference pose, at rest, all muscles inactive."""
        tree = self.tree
        place = tree.source_qpos_address
        free = self.source.qpos0[place[: 7 * tree.num_free]]
        scalar = tree.joint_home[tree.coupling.independent]
        return PhysicsState(
            jnp.asarray(np.concatenate([free, scalar]), jnp.float32),
            jnp.zeros(self.nv),
            jnp.zeros(self.nu),
            jnp.float32(0),
        )

    def step(self, state: PhysicsState, ctrl: jax.Array) -> tuple[PhysicsState, jax.Array]:
        """One physics step as MuJoCo's Euler integrator takes it.

        Args:
          state: state before the step.
          ctrl: excitations `[nu]` in [0, 1].

        Returns:
          The state after it, and the constrained acceleration `[nv]` before it.
        """
        tree, dt = self.tree, self.timestep
        joints = dynamics.joint_state(tree, state.qpos, state.qvel)
        world = dynamics.poses(tree, state.qpos, joints.position)
        move = dynamics.motion(tree, world, joints.velocity)
        mass = dynamics.mass_matrix(tree, move, joints.slope)
        force = dynamics.passive_force(tree, joints) - dynamics.bias_force(tree, move, joints)
        force = force + self._muscle_torque(state)
        rows = contacts.constraint_rows(
            tree, self.floor, dt, state.qpos, state.qvel, world, move, joints.slope
        )
        acceleration = solver.constrained_acceleration(
            mass, force, rows, self.iterations, self.ls_iterations
        )
        # Euler integration with implicit joint damping: (M + dt D) a' = M a. The zeros make its
        # factor wait for the solver's: XLA:CPU runs independent Cholesky calls side by side, and
        # on two cores both then wait for ever for helpers from the one pool of threads that they
        # occupy (jaxlib 0.10.2). It drops an optimization_barrier before it decides on the order.
        damping = dt * dynamics.damping_matrix(tree, joints.slope) + 0 * acceleration
        damped_factor = solver.factor(mass + jnp.diag(damping))
        damped = solver.solve_factored(damped_factor, dynamics.matmul(mass, acceleration))
        qvel = state.qvel + dt * damped
        rate = muscle.activation_rate(self.muscle_constants, ctrl, state.act)
        after = PhysicsState(
            dynamics.integrate(tree, state.qpos, qvel, dt),
            qvel,
            state.act + dt * rate,
            state.time + dt,
        )
        return after, acceleration

    def _muscle_torque(self, state: PhysicsState) -> jax.Array:
        path, _, pull = self._pull(state)
        num_free = 6 * self.tree.num_free
        torque = paths.joint_force(self.path_groups, path, pull, self.nv - num_free)
        return jnp.concatenate([jnp.zeros(num_free), torque])

    def _pull(self, state: PhysicsState) -> tuple[paths.PathState, jax.Array, jax.Array]:
        """Paths, lengthening velocities `[nu]` and forces `[nu]`."""
        path = paths.evaluate(self.path_groups, state.qpos[7 * self.tree.num_free :])
        qdot = state.qvel[6 * self.tree.num_free :]
        velocity = paths.velocity(self.path_groups, path, qdot)
        force = muscle.force(self.muscle_constants, path.length, velocity, state.act)
        return path, velocity, force

    def advance(
        self, state: PhysicsState, ctrl: jax.Array, num_steps: int
    ) -> tuple[PhysicsState, jax.Array]:
        """`num_steps` physics steps under constant `ctrl [nu]`, with the last acceleration."""

        def body(carry, _):
            return self.step(carry[0], ctrl), None

        return jax.lax.scan(body, (state, jnp.zeros(self.nv)), length=num_steps)[0]

    def kinematics(self, state: PhysicsState) -> Kinematics:
        """Poses of all source bodies, and the motion of the centre of mass."""
        tree = self.tree
        joints = dynamics.joint_state(tree, state.qpos, state.qvel)
        world = dynamics.poses(tree, state.qpos, joints.position)
        move = dynamics.motion(tree, world, joints.velocity)
        mass, first = jnp.sum(move.inertia[0]), jnp.sum(move.inertia[1:4], axis=1)
        momentum = jnp.sum(dynamics.node_momentum(move)[3:], axis=1)
        rotation = jnp.moveaxis(world.rotation, -1, 0)[tree.body_node]
        offset = jnp.sum(rotation * tree.body_position[:, None, :], axis=-1)
        return Kinematics(
            xpos=world.position.T[tree.body_node] + offset,
            xmat=dynamics.matmul(rotation, tree.body_rotation),
            com=move.origin + first / mass,
            com_velocity=momentum / mass,
        )

    def muscles(self, state: PhysicsState) -> Muscles:
        """Lengths, velocities and forces of all muscles."""
        path, velocity, force = self._pull(state)
        return Muscles(path.length, velocity, force, jnp.mean(path.outside.astype(jnp.float32)))

    def source_qpos(self, qpos: np.ndarray | jax.Array) -> np.ndarray:
        """Returns the source model's qpos `[..., source nq]`, coupled joints included."""
        qpos = np.asarray(qpos, np.float64)
        tree, free = self.tree, 7 * self.tree.num_free
        flat = qpos.reshape(-1, self.nq)
        scalar, _ = source_positions(tree, flat[:, free:])
        result = np.tile(self.source.qpos0, (len(flat), 1))
        result[:, tree.source_qpos_address] = np.concatenate([flat[:, :free], scalar], axis=1)
        return result.reshape(*qpos.shape[:-1], -1)

    def source_model(self) -> mujoco.MjModel:
        """The unported model: all joints and meshes, the same muscles in the same order."""
        return self.source
