"""Tasks whose physics is not the port's: raw MJX, or whatever the caller has computed elsewhere.

A task calls `body.advance` once in a step; what stands in for its body answers that call, and
observation, reward and ending stay the task's own.
"""

import copy
import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from brax.envs.base import State

from mjx_qflex.errors import UserError
from mjx_qflex.physics import dynamics
from mjx_qflex.physics.body import PhysicsState, PortedBody
from mjx_qflex.porting import speed
from mjx_qflex.tasks.body_task import BodyState, BodyTask

# (state, ctrl [nu], physics steps) -> (state, acceleration [nv])
Advance = Callable[[Any, jax.Array, int], tuple[Any, jax.Array]]


@dataclasses.dataclass(frozen=True, eq=False)
class StandIn(PortedBody):
    """A ported body with another way to advance; all else is the port's."""

    advancing: Advance
    start: Callable[[PhysicsState], Any] = lambda state: state  # adds what `advancing` carries

    def initial_state(self) -> Any:
        return self.start(super().initial_state())

    def advance(self, state: Any, ctrl: jax.Array, num_steps: int) -> tuple[Any, jax.Array]:
        return self.advancing(state, ctrl, num_steps)


def with_advance(env: BodyTask, advancing: Advance, **options: Any) -> BodyTask:
    """Returns a copy of a task whose body advances so."""
    fields = {f.name: getattr(env.body, f.name) for f in dataclasses.fields(PortedBody)}
    changed = copy.copy(env)
    changed.body = StandIn(**fields, advancing=advancing, **options)
    return changed


def physics_of(state: State) -> Any:
    """Returns the physics in a body task's state."""
    return cast(BodyState, state.pipeline_state).physics


def body_task(env: Any, name: str) -> BodyTask:
    """Returns `env` if it simulates a body.

    Raises:
      UserError: it does not.
    """
    if not isinstance(env, BodyTask):
        raise UserError(f"{name} simulates no body; compare it with brax and flashbax only")
    return env


# Coordinates of the source model.


def to_source(body: PortedBody, state: PhysicsState) -> tuple[jax.Array, jax.Array]:
    """Returns the source model's (qpos, qvel), coupled joints included."""
    tree, free = body.tree, 7 * body.tree.num_free
    joints = dynamics.joint_state(tree, state.qpos, state.qvel)
    place = jnp.concatenate([state.qpos[:free], joints.position])
    home = jnp.asarray(body.source.qpos0, jnp.float32)
    qpos = home.at[tree.source_qpos_address].set(place)
    qvel = jnp.zeros(body.source.nv).at[tree.source_qvel_address].set(joints.velocity)
    return qpos, qvel


def from_source(body: PortedBody, qpos: Any, qvel: Any) -> tuple[Any, Any]:
    """Returns the port's (qpos, qvel) `[..., nq], [..., nv]`: coupled joints are left out."""
    tree = body.tree

    def kept(numbers: Any, address: Any, num_free: int) -> Any:
        scalar = address[num_free:][tree.coupling.independent]
        return numbers[..., np.concatenate([address[:num_free], scalar])]

    free = tree.num_free
    return (
        kept(qpos, tree.source_qpos_address, 7 * free),
        kept(qvel, tree.source_qvel_address, 6 * free),
    )


# Raw MJX.


class RawState(NamedTuple):
    """A `PhysicsState` and where raw MJX's solver starts from."""

    qpos: jax.Array
    qvel: jax.Array
    act: jax.Array
    time: jax.Array
    warmstart: jax.Array  # [source nv]


def on_raw_mjx(env: BodyTask, reduced: bool) -> BodyTask:
    """Returns the task on `mjx.put_model` of its source model; see `speed.raw_model`.

    Between actions coupled joints are put back to where their drivers want them; observations are
    computed by the port, which costs less than a raw physics step by far.
    """
    from mujoco import mjx

    body = env.body
    model = speed.raw_model(body, reduced)
    template = mjx.make_data(model)

    def advance(state: RawState, ctrl: jax.Array, num_steps: int) -> tuple[RawState, jax.Array]:
        qpos, qvel = to_source(body, PhysicsState(state.qpos, state.qvel, state.act, state.time))
        data = template.replace(
            qpos=qpos, qvel=qvel, act=state.act, ctrl=ctrl, qacc_warmstart=state.warmstart
        )
        data = jax.lax.fori_loop(0, num_steps, lambda _, data: mjx.step(model, data), data)
        qpos, qvel = from_source(body, data.qpos, data.qvel)
        _, acceleration = from_source(body, data.qpos, data.qacc)
        time = state.time + num_steps * body.timestep
        return RawState(qpos, qvel, data.act, time, data.qacc_warmstart), acceleration

    def begin(state: PhysicsState) -> RawState:
        return RawState(state.qpos, state.qvel, state.act, state.time, jnp.zeros(body.source.nv))

    return with_advance(env, advance, start=begin)


# Physics computed elsewhere.


def controls(env: BodyTask, state: State, action: jax.Array) -> jax.Array:
    """Returns the controls `[nu]` under which the task's step would advance its body."""
    asked: list[jax.Array] = []

    def advance(physics: PhysicsState, ctrl: jax.Array, _: int):
        asked.append(ctrl)
        return physics, jnp.zeros(env.body.nv)

    with_advance(env, advance).step(state, action)
    return asked[0]


def stepped(
    env: BodyTask, state: State, action: jax.Array, physics: PhysicsState, acceleration: jax.Array
) -> State:
    """Returns the task's step where advancing has led to `physics`, with `acceleration` [nv]."""
    return with_advance(env, lambda *_: (physics, acceleration)).step(state, action)
