"""A ported body: the small state that is carried, one physics step, and what is derived from it."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from mjx_qflex.physics import contacts, dynamics, linear, muscle, paths, servos, solver, tendons
from mjx_qflex.physics.tree import Tree, source_positions


class PhysicsState(NamedTuple):
    """All that is carried between steps, in independent coordinates."""

    qpos: jax.Array  # [nq] free joint (position, quaternion w first), then scalar joints
    qvel: jax.Array  # [nv] free joint (linear in the world, angular in the body), then scalars
    act: jax.Array  # [nu] activations of muscles; servos have none, [0]
    time: jax.Array  # [] s


class Kinematics(NamedTuple):
    """Poses derived from a state, in the world; B bodies of the source model."""

    xpos: jax.Array  # [B, 3]
    xmat: jax.Array  # [B, 3, 3]
    velocity: jax.Array  # [B, 6] rad/s, and m/s of the body's origin, in world axes
    com: jax.Array  # [3] centre of mass of the whole body
    com_velocity: jax.Array  # [3] m/s


class Muscles(NamedTuple):
    """Muscle quantities derived from a state."""

    length: jax.Array  # [nu] m
    velocity: jax.Array  # [nu] m/s
    force: jax.Array  # [nu] N, negative pulls
    outside: jax.Array  # [] fraction of muscles whose joints are outside the fitted range


class _Placed(NamedTuple):
    """A state's coordinates, poses and motion, which all forces are computed from."""

    joints: dynamics.JointState
    world: dynamics.Poses
    move: dynamics.Motion


class _Pull(NamedTuple):
    """Muscle paths and forces of a state: of compiled paths, and of exact ones."""

    compiled: paths.PathState | None
    exact: tendons.TendonState | None
    muscles: Muscles


@dataclasses.dataclass(frozen=True, eq=False)
class PortedBody:
    """A body in independent coordinates; all methods are pure and work under `vmap` and `jit`.

    It is driven by muscles, whose paths are polynomials or exact, or by servos.
    """

    tree: Tree
    contacts: tuple[contacts.Contacts, ...]
    muscle_constants: muscle.MuscleConstants
    path_groups: tuple[paths.PathGroup, ...]  # compiled muscle paths
    tendons: tendons.Tendons  # exact muscle paths
    linear: linear.LinearPaths  # muscles on joints and on fixed tendons
    servos: servos.Servos
    actuator_names: tuple[str, ...]
    recipe: Any  # the `porting.recipe.Recipe` that it was ported by
    source: mujoco.MjModel

    @property
    def compiler_options(self) -> dict[str, Any]:
        """XLA's options for programs that step this body on a CPU.

        In jax 0.10, XLA:CPU's fusion emitters duplicate work along long chains of joints, by up to
        a third of the step. With fitted paths there is nothing to gain, and a learner in the same
        program loses up to a fifth. From 0.11 on the option is unknown, and the step as fast
        without it.
        """
        if self.path_groups or jax.__version_info__ >= (0, 11):
            return {}
        return {"xla_cpu_use_fusion_emitters": False}

    @property
    def name(self) -> str:
        return self.recipe.name

    @property
    def timestep(self) -> float:
        """Duration of a physics step, s."""
        return self.recipe.timestep

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
    def num_muscles(self) -> int:
        return self.nu - len(self.servos.joint)

    @property
    def joint_names(self) -> tuple[str, ...]:
        """Names of the independent joints, free ones first, in the order of `qpos`."""
        return self.tree.joint_names

    @property
    def body_names(self) -> tuple[str, ...]:
        return self.tree.body_names

    def qpos_index(self, joint: str) -> int | slice:
        """Place of a joint in `qpos`: an index, or the slice of a free joint's seven numbers."""
        i, free = self.joint_names.index(joint), self.tree.num_free
        return slice(7 * i, 7 * (i + 1)) if i < free else 7 * free + i - free

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
            jnp.zeros(self.num_muscles),
            jnp.float32(0),
        )

    def _place_nodes(self, state: PhysicsState) -> _Placed:
        joints = dynamics.joint_state(self.tree, state.qpos, state.qvel)
        world = dynamics.poses(self.tree, state.qpos, joints.position)
        return _Placed(joints, world, dynamics.motion(self.tree, world, joints.velocity))

    def step(self, state: PhysicsState, ctrl: jax.Array) -> tuple[PhysicsState, jax.Array]:
        """One physics step as MuJoCo's Euler integrator takes it.

        Args:
          state: state before the step.
          ctrl: excitations `[nu]` in [0, 1].

        Returns:
          The state after it, and the constrained acceleration `[nv]` before it.
        """
        tree, dt = self.tree, self.timestep
        placed = self._place_nodes(state)
        joints, world, move = placed
        mass = dynamics.mass_matrix(tree, move, joints.slope)
        act, pulling = self._activate(state, ctrl)
        force = dynamics.passive_force(tree, joints) - dynamics.bias_force(tree, move, joints)
        force = force + self._actuator_force(state._replace(act=pulling), ctrl, placed)
        rows = contacts.constraint_rows(
            tree, self.contacts, dt, state.qpos, state.qvel, world, move, joints.slope
        )
        acceleration = solver.constrained_acceleration(
            mass, force, rows, self.recipe.iterations, self.recipe.ls_iterations
        )
        qvel = state.qvel + dt * self._damped(mass, acceleration, joints)
        qpos = dynamics.integrate(tree, state.qpos, qvel, dt)
        return PhysicsState(qpos, qvel, act, state.time + dt), acceleration

    def _damped(
        self, mass: jax.Array, acceleration: jax.Array, joints: dynamics.JointState
    ) -> jax.Array:
        """The acceleration `[nv]` that Euler integration with implicit joint damping makes of one.

        (M + dt D) a' = M a.
        """
        tree, dt = self.tree, self.timestep
        if not tree.implicit_damping:
            return acceleration
        # The zeros make this factor wait for the solver's: XLA:CPU runs independent Cholesky calls
        # side by side, and on two cores both then wait for ever for helpers from the one pool of
        # threads that they occupy (jaxlib 0.10.2). It drops an optimization_barrier before it
        # decides on the order.
        damping = dt * dynamics.damping_matrix(tree, joints) + 0 * acceleration
        damped_factor = solver.factor(mass + jnp.diag(damping))
        return solver.solve_factored(damped_factor, dynamics.matmul(mass, acceleration))

    def _activate(self, state: PhysicsState, ctrl: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Activations `[num_muscles]` after the step, and those that pull during it."""
        if not self.num_muscles:
            return state.act, state.act
        constants = self.muscle_constants
        later = muscle.next_activation(constants, ctrl, state.act, self.timestep)
        return later, muscle.pulling_activation(constants, state.act, later)

    def _actuator_force(self, state: PhysicsState, ctrl: jax.Array, placed: _Placed) -> jax.Array:
        """Generalised forces `[nv]` of all actuators, within the ranges of the joints."""
        force = self._unlimited_force(state, ctrl, placed)
        within = self.tree.actuator_range
        return jnp.clip(force, *within.T) if np.isfinite(within).any() else force

    def _unlimited_force(self, state: PhysicsState, ctrl: jax.Array, placed: _Placed) -> jax.Array:
        num_free, num_scalar = 6 * self.tree.num_free, self.nv - 6 * self.tree.num_free
        if not self.num_muscles:
            scalar = servos.joint_force(self.servos, self.servo_force(state, ctrl), num_scalar)
            return jnp.concatenate([jnp.zeros(num_free), scalar])
        pull = self._pull(state, placed)
        force, total = pull.muscles.force, jnp.zeros(self.nv)
        if pull.compiled is not None:
            scalar = paths.joint_force(self.path_groups, pull.compiled, force, num_scalar)
            total = jnp.concatenate([jnp.zeros(num_free), scalar])
        if pull.exact is not None:
            wrenches = tendons.node_wrenches(
                self.tendons, pull.exact, force[self.tendons.muscles], self.tree.num_nodes
            )
            slope = placed.joints.slope
            total = total + dynamics.wrench_force(self.tree, placed.move, slope, wrenches)
        if len(self.linear.muscles):
            slope, pulls = placed.joints.slope, force[self.linear.muscles]
            total = total + linear.generalised_force(self.linear, self.tree, slope, pulls)
        return total

    def servo_force(self, state: PhysicsState, ctrl: jax.Array) -> jax.Array:
        """Forces `[nu]` of the servos under `ctrl [nu]`, N m or N, as MuJoCo's actuator_force."""
        q, qdot = state.qpos[7 * self.tree.num_free :], state.qvel[6 * self.tree.num_free :]
        return servos.force(self.servos, ctrl, q, qdot)

    def _pull(self, state: PhysicsState, placed: _Placed) -> _Pull:
        compiled, exact, parts, members = None, None, [], []
        if self.path_groups:
            compiled = paths.evaluate(self.path_groups, state.qpos[7 * self.tree.num_free :])
            qdot = state.qvel[6 * self.tree.num_free :]
            rate = paths.velocity(self.path_groups, compiled, qdot)
            parts.append((compiled.length, rate, compiled.outside))
            members.append(np.sort(np.concatenate([g.muscles for g in self.path_groups])))
        if len(self.tendons.muscles):
            exact = tendons.evaluate(self.tendons, placed.world, placed.move.origin)
            rate = tendons.velocity(self.tendons, exact, placed.move.velocity)
            parts.append((exact.length, rate, jnp.zeros(len(rate), bool)))
            members.append(self.tendons.muscles)
        if len(self.linear.muscles):
            length, rate = linear.evaluate(self.linear, self.tree, placed.joints)
            parts.append((length, rate, jnp.zeros(len(rate), bool)))
            members.append(self.linear.muscles)
        length, velocity, outside = parts[0]
        if len(parts) > 1:
            order = np.argsort(np.concatenate(members))
            columns = (jnp.concatenate(x) for x in zip(*parts, strict=True))
            length, velocity, outside = (x[order] for x in columns)
        force = muscle.force(self.muscle_constants, length, velocity, state.act)
        share = jnp.mean(outside.astype(jnp.float32))
        return _Pull(compiled, exact, Muscles(length, velocity, force, share))

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
        _, world, move = self._place_nodes(state)
        mass, first = jnp.sum(move.inertia[0]), jnp.sum(move.inertia[1:4], axis=1)
        momentum = jnp.sum(dynamics.node_momentum(move)[3:], axis=1)
        rotation = jnp.moveaxis(world.rotation, -1, 0)[tree.body_node]
        offset = jnp.sum(rotation * tree.body_position[:, None, :], axis=-1)
        xpos = world.position.T[tree.body_node] + offset
        spatial = jnp.concatenate([move.velocity, jnp.zeros((6, 1))], axis=1)[:, tree.body_node]
        linear = spatial[3:] + dynamics.cross(spatial[:3], xpos.T - move.origin[:, None])
        return Kinematics(
            xpos=xpos,
            xmat=dynamics.matmul(rotation, tree.body_rotation),
            velocity=jnp.concatenate([spatial[:3], linear]).T,
            com=move.origin + first / mass,
            com_velocity=momentum / mass,
        )

    def muscles(self, state: PhysicsState) -> Muscles:
        """Lengths, velocities and forces of all muscles of a body that has muscles."""
        return self._pull(state, self._place_nodes(state)).muscles

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
