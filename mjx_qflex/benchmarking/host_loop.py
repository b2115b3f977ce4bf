"""The other way to train: C MuJoCo's environments in threads, transitions in host memory.

    act (device) → controls to the host → `mujoco.rollout` → coordinates to the device
    → observation, reward, ending (device) → transitions to the host's ring
    → U batches drawn on the host → U updates (device)

It is the official Qflex's division of labour with less overhead than there: environments step in
threads of one process instead of processes, observations of all environments come from one
compiled call of the port's functions instead of Python, and the U updates of a vector step are one
call. What is the
same on both sides of a comparison is the very same code: acting, the task, the update.
"""

import time
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import jax
import mujoco
import numpy as np
from brax.envs.base import State
from mujoco import rollout

from mjx_qflex.benchmarking import source_physics
from mjx_qflex.physics.body import PhysicsState
from mjx_qflex.sizes import LoopConfig
from mjx_qflex.tasks.body_task import BodyTask
from mjx_qflex.training import environments
from mjx_qflex.training.collect import transition_spec
from mjx_qflex.training.program import Program, stepping_options
from mjx_qflex.types import Algorithm, Transition

FULL = mujoco.mjtState.mjSTATE_FULLPHYSICS
PARTS = ("act", "physics", "task", "reset", "ring write", "sample", "update")


class CEnvironments:
    """N environments of a body's source model, in C MuJoCo on some threads."""

    def __init__(self, env: BodyTask, num_envs: int, threads: int):
        self.body, self.steps = env.body, env.physics_steps
        self.model = env.body.source
        self._data = [mujoco.MjData(self.model) for _ in range(threads)]
        self._pool = rollout.Rollout(nthread=threads)
        size = mujoco.mj_stateSize(self.model, FULL)
        self._home = np.zeros(size)
        mujoco.mj_getState(self.model, self._data[0], self._home, FULL)
        self.states = np.tile(self._home, (num_envs, 1))  # [N, S], float64
        self.acceleration = np.zeros((num_envs, self.model.nv))  # of the last physics step
        self._after = np.empty((num_envs, self.steps, size))
        self._sensors = np.empty((num_envs, self.steps, self.model.nsensordata))

    def full_states(self, qpos: np.ndarray, qvel: np.ndarray, act: np.ndarray) -> np.ndarray:
        """Returns full states `[N, S]` of source coordinates, at time 0."""
        states = np.tile(self._home, (len(qpos), 1))
        states[:, 0] = 0.0
        states[:, 1 : 1 + self._used] = np.concatenate([qpos, qvel, act], axis=1)
        return states

    @property
    def _used(self) -> int:
        return self.model.nq + self.model.nv + self.model.na

    def restart(self, where: np.ndarray, states: np.ndarray) -> None:
        """Puts environments `where` [K] into full states `[K, S]`, at rest."""
        self.states[where] = states
        self.acceleration[where] = 0.0

    def advance(self, ctrl: np.ndarray) -> None:
        """Takes the physics steps of one action under `ctrl` [N, nu].

        The solver starts from the last acceleration, as it does in `mj_step`.
        """
        count = len(ctrl)
        self._pool.rollout(
            [self.model] * count,
            self._data,
            self.states,
            ctrl.astype(np.float64)[:, None],
            nstep=self.steps,
            initial_warmstart=self.acceleration,
            state=self._after,
            sensordata=self._sensors,
        )
        before = self._after[:, -2] if self.steps > 1 else self.states
        change = self._after[:, -1] - before
        velocity = slice(1 + self.model.nq, 1 + self.model.nq + self.model.nv)
        self.acceleration = change[:, velocity] / self.model.opt.timestep
        self.states = self._after[:, -1].copy()

    def coordinates(self) -> tuple[PhysicsState, np.ndarray]:
        """Returns the port's coordinates of all environments, and its accelerations, in float32."""
        model = self.model
        qpos, qvel, act = np.split(
            self.states[:, 1 : 1 + self._used], [model.nq, model.nq + model.nv], axis=1
        )
        _, acceleration = source_physics.from_source(self.body, qpos, self.acceleration)
        qpos, qvel = source_physics.from_source(self.body, qpos, qvel)
        parts = (x.astype(np.float32) for x in (qpos, qvel, act, self.states[:, 0]))
        return PhysicsState(*cast(Any, parts)), acceleration.astype(np.float32)

    def close(self) -> None:
        self._pool.close()


class HostRing:
    """The newest transitions, in host memory."""

    def __init__(self, spec: Transition, capacity: int, seed: int):
        self._fields = jax.tree.map(lambda x: np.zeros((capacity, *x.shape), x.dtype), spec)
        self._capacity, self._place, self._filled = capacity, 0, 0
        self._random = np.random.default_rng(seed)

    def add(self, step: Transition, valid: np.ndarray) -> None:
        """Writes the valid ones of transitions `[N, ...]`."""
        count = int(valid.sum())
        rows = (self._place + np.arange(count)) % self._capacity

        def write(field: Any, values: Any) -> None:
            field[rows] = values[valid]

        jax.tree.map(write, self._fields, step)
        self._place = (self._place + count) % self._capacity
        self._filled = min(self._filled + count, self._capacity)

    def sample(self, shape: tuple[int, ...]) -> Transition:
        """Draws uniformly, with replacement; fields are `[*shape, ...]`."""
        rows = self._random.integers(self._filled, size=shape)
        return jax.tree.map(lambda field: field[rows], self._fields)


class _Held(NamedTuple):
    """A task whose action brings the physics along: `(action, physics, acceleration)`."""

    env: BodyTask

    def step(self, state: State, action: Any) -> State:
        return source_physics.stepped(self.env, state, *action)


class HostLoop:
    """Trains as `loop.make_loop`'s epochs do, with physics and replay on the host."""

    def __init__(
        self, env: BodyTask, algorithm: Algorithm, config: LoopConfig, threads: int, seed: int = 0
    ):
        """Compiles, and fills the ring with the prefill's transitions of the initial policy."""
        self.config, self.environments = config, CEnvironments(env, config.num_envs, threads)
        self.ring = HostRing(
            transition_spec(env, environments.reset_shapes(env)), config.replay_capacity, seed
        )
        self.seconds: dict[str, float] = dict.fromkeys(PARTS, 0.0)
        self.transitions = self.updates = 0
        options = stepping_options(env)
        self._reset = Program(lambda key: _reset(env, config.reset_pool, key), (), options)
        self._act = Program(lambda *x: _act(env, algorithm, *x), (), options)
        self._observe = Program(lambda *x: _observe(env, fresh, *x), (), options)
        self._update = Program(lambda *x: _update(algorithm, *x), (0,))
        self._key, key = jax.random.split(jax.random.PRNGKey(seed))
        self.learner = jax.jit(algorithm.init)(key)
        self._carry = fresh = algorithm.policy(self.learner).init(config.num_envs)
        self._refresh_pool()
        picked = np.arange(config.num_envs) % config.reset_pool
        self._state = jax.tree.map(lambda x: x[picked], self._pool)
        self._obs = np.asarray(environments.observation(self._state))
        self.environments.restart(np.arange(config.num_envs), self._pool_states[picked])
        for _ in range(-(-config.prefill_transitions // config.num_envs)):
            self._collect()

    @property
    def compile_seconds(self) -> float:
        programs = (self._reset, self._act, self._observe, self._update)
        return sum(program.compile_seconds or 0.0 for program in programs)

    def epoch(self) -> None:
        """Trains for `steps_per_epoch` vector steps."""
        for _ in range(self.config.steps_per_epoch):
            self._collect()
            self._learn()

    def _collect(self) -> None:
        """Steps every environment once, writes the ring and restarts those that ended."""
        if self._pool_age == self.config.reset_pool_steps:
            with self._timed("reset"):
                self._refresh_pool()
        self._pool_age += 1
        with self._timed("act"):
            acted = self._act(self.learner, self._state, self._carry, self._next_key())
            action, carry, ctrl = acted
            ctrl, action_host = np.asarray(ctrl), np.asarray(action)
        with self._timed("physics"):
            self.environments.advance(ctrl)
        with self._timed("task"):
            physics, acceleration = self.environments.coordinates()
            held = (action, physics, acceleration)
            seen = self._observe(self._state, carry, held, self._pool, self._next_key())
            self._state, self._carry, outcome = seen
            outcome = jax.tree.map(np.asarray, outcome)
        with self._timed("ring write"):
            discount = 1.0 - outcome["terminated"].astype(np.float32)
            step: Any = (
                self._obs, action_host, outcome["reward"], discount, outcome["next_obs"]
            )  # fmt: skip
            self.ring.add(Transition(*step), ~outcome["bad"])
            self._obs = outcome["obs"]
        with self._timed("reset"):
            ended = np.flatnonzero(outcome["ended"])
            self.environments.restart(ended, self._pool_states[outcome["choice"][ended]])
        self.transitions += self.config.num_envs

    def _learn(self) -> None:
        number = self.config.updates_per_step
        if number == 0:
            return
        with self._timed("sample"):
            batches = self.ring.sample((number, self.config.batch_size))
        with self._timed("update"):
            self.learner = self._update(self.learner, batches, self._next_key())
            jax.block_until_ready(self.learner)
        self.updates += number

    def _refresh_pool(self) -> None:
        self._pool, coordinates = self._reset(self._next_key())
        self._pool_states = self.environments.full_states(*map(np.asarray, coordinates))
        self._pool_age = 0

    def _next_key(self) -> jax.Array:
        self._key, key = jax.random.split(self._key)
        return key

    @contextmanager
    def _timed(self, part: str):
        start = time.perf_counter()
        yield
        self.seconds[part] += time.perf_counter() - start


def _reset(env: BodyTask, size: int, key: jax.Array) -> tuple[State, tuple[jax.Array, ...]]:
    """Returns the pool `[P, ...]`, and its (qpos, qvel, act) in source coordinates."""
    pool = environments.reset(env, jax.random.split(key, size))
    physics = source_physics.physics_of(pool)
    qpos, qvel = jax.vmap(lambda one: source_physics.to_source(env.body, one))(physics)
    return pool, (qpos, qvel, physics.act)


def _act(env: BodyTask, algorithm: Algorithm, learner: Any, state: State, carry: Any, key: Any):
    """Returns (action [N, A], carry, controls [N, nu])."""
    obs = environments.observation(state)
    action, carry, _ = algorithm.policy(learner).sample(obs, carry, key)
    ctrl = jax.vmap(lambda s, a: source_physics.controls(env, s, a))(state, action)
    return action, carry, ctrl


def _observe(
    env: BodyTask,
    fresh_acting: Any,
    before: State,
    carry: Any,
    held: tuple[jax.Array, PhysicsState, jax.Array],
    pool: State,
    key: jax.Array,
) -> tuple[State, Any, dict[str, jax.Array]]:
    """Returns the environments after the step and after restarts, and what the host is to know."""
    outcome = environments.advance(cast(Any, _Held(env)), before, cast(Any, held))
    (num_envs,) = before.done.shape
    choice = jax.random.randint(key, (num_envs,), 0, pool.done.shape[0])
    fresh = jax.tree.map(lambda x: x[choice], pool)
    state = environments.select(outcome.ended, fresh, outcome.state)
    carry = environments.select(outcome.ended, fresh_acting, carry)
    return (
        state,
        carry,
        {
            "reward": outcome.reward,
            "next_obs": environments.observation(outcome.state),
            "obs": environments.observation(state),
            "bad": outcome.bad,
            "terminated": outcome.terminated,
            "ended": outcome.ended,
            "choice": choice,
        },
    )


def _update(algorithm: Algorithm, learner: Any, batches: Transition, key: jax.Array) -> Any:
    """Runs the updates of one vector step on batches `[U, B, ...]`, as the loop does."""

    def update(learner, inputs):
        batch, key = inputs
        return algorithm.update(learner, batch, key)[0], None

    (number, _) = batches.reward.shape
    return jax.lax.scan(update, learner, (batches, jax.random.split(key, number)))[0]
