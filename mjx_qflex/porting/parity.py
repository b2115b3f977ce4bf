"""How a ported body compares with C MuJoCo's simulation of the unported model.

Every function returns plain numbers; `report` puts them together and `as_markdown` prints them.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from numpy.typing import ArrayLike

from mjx_qflex.physics import audit, dynamics, muscle
from mjx_qflex.physics.body import PhysicsState, PortedBody
from mjx_qflex.porting import fitting, library, recipe

STIFF_SOLREF, STIFF_SOLIMP = (0.004, 1.0), (0.9999, 0.9999, 0.001, 0.5, 2.0)


@dataclasses.dataclass(frozen=True)
class PathErrors:
    """Compiled paths against C MuJoCo's tendons on one set of poses."""

    length_rms: np.ndarray  # [A] m
    arm_rms: np.ndarray  # [A] worst joint, relative to the muscle's own RMS arm there
    torque_relative: np.ndarray  # [R] RMS error over RMS torque of random activations; nan: none


def path_errors(body: PortedBody, samples: fitting.PathSamples, seed: int = 0) -> PathErrors:
    """Lengths, moment arms and joint torques on `samples`, evaluated by the ported step's code."""
    num_joints = samples.q.shape[1]
    evaluate = jax.jit(
        lambda q: jax.lax.map(lambda pose: _dense_paths(body, pose), q, batch_size=50),
        compiler_options=body.compiler_options,
    )
    length, arms = (np.asarray(x, np.float64) for x in evaluate(samples.q.astype(np.float32)))
    exact = np.zeros((len(samples.q), body.nu, num_joints))
    exact[:, samples.pair_muscle, samples.pair_joint] = samples.arm
    length_rms = np.sqrt(np.mean((length - samples.length) ** 2, axis=0))
    size = np.sqrt(np.mean(exact**2, axis=0))
    error = np.sqrt(np.mean((arms - exact) ** 2, axis=0))
    arm_rms = np.max(np.where(size > 1e-6, error / np.maximum(size, 1e-6), 0.0), axis=1)

    activation = np.random.default_rng(seed).uniform(size=length.shape)
    torque_exact = np.einsum("sar,sa->sr", exact, _force(body, samples.length, activation))
    torque = np.einsum("sar,sa->sr", arms, _force(body, length, activation))
    scale = np.sqrt(np.mean(torque_exact**2, axis=0))
    difference = np.sqrt(np.mean((torque - torque_exact) ** 2, axis=0))
    relative = np.where(scale > 1e-9, difference / np.maximum(scale, 1e-9), np.nan)
    return PathErrors(length_rms, arm_rms, relative)


def _dense_paths(body: PortedBody, q: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Lengths `[A]` and moment arms `[A, R]` at independent scalar joints `q [R]`."""
    free_q, free_v = 7 * body.tree.num_free, 6 * body.tree.num_free
    home = body.initial_state()
    state = home._replace(qpos=jnp.concatenate([home.qpos[:free_q], q]))

    def velocity(qdot):
        return body.muscles(
            state._replace(qvel=jnp.concatenate([jnp.zeros(free_v), qdot]))
        ).velocity

    return body.muscles(state).length, jax.jacfwd(velocity)(jnp.zeros(len(q)))


def _force(body: PortedBody, length: np.ndarray, activation: np.ndarray) -> np.ndarray:
    constants = body.muscle_constants
    force = jax.vmap(lambda x, a: muscle.force(constants, x, jnp.zeros_like(x), a))
    return np.asarray(force(length.astype(np.float32), activation.astype(np.float32)), np.float64)


def force_error(body: PortedBody, seed: int = 0, num_states: int = 50) -> float:
    """Worst relative error of actuator force at random states and controls.

    Muscles are given C MuJoCo's lengths, velocities and activations. Errors are relative to the
    force, or to a thousandth of a muscle's peak force, or 1 N m of a servo, where it hardly acts.
    """
    model, rng = body.source, np.random.default_rng(seed)
    data, worst = mujoco.MjData(model), 0.0
    if not body.nu:
        return worst
    for state in random_states(body, rng, num_states):
        set_source_state(body, data, state)
        data.ctrl[:] = rng.uniform(size=body.nu)
        mujoco.mj_forward(model, data)
        if body.num_muscles:
            pulling = body._activate(state, jnp.asarray(data.ctrl, jnp.float32))[1]
            known = (data.actuator_length, data.actuator_velocity, pulling)
            mine = muscle.force(
                body.muscle_constants, *(jnp.asarray(x, jnp.float32) for x in known)
            )
            floor = 1e-3 * body.muscle_constants.active.peak_force
        else:
            mine = body.servo_force(state, jnp.asarray(data.ctrl, jnp.float32))
            floor = np.ones(body.nu)
        scale = np.maximum(np.abs(data.actuator_force), floor)
        worst = max(worst, float(np.max(np.abs(mine - data.actuator_force) / scale)))
    return worst


def random_states(
    body: PortedBody, rng: np.random.Generator, num: int, speed: float = 0.5, spread: float = 0.1
) -> list[PhysicsState]:
    """States with random velocities, near the reference pose but well inside the fitted ranges."""
    home = body.initial_state()
    first = 7 * body.tree.num_free
    ranges = fitting.joint_ranges(body.tree, body.recipe.ranges)
    margin = 0.2 * (ranges[:, 1] - ranges[:, 0])
    states = []
    for _ in range(num):
        qpos = np.array(home.qpos, np.float64)
        inside = np.clip(qpos[first:], ranges[:, 0] + margin, ranges[:, 1] - margin)
        qpos[first:] = inside + spread * rng.normal(size=body.nq - first)
        qpos[first:] = np.clip(qpos[first:], *ranges.T)
        states.append(
            PhysicsState(
                jnp.asarray(qpos, jnp.float32),
                jnp.asarray(speed * rng.normal(size=body.nv), jnp.float32),
                jnp.asarray(rng.uniform(0, 0.3, size=body.num_muscles), jnp.float32),
                jnp.float32(0),
            )
        )
    return states


def set_source_state(body: PortedBody, data: mujoco.MjData, state: PhysicsState) -> None:
    """Puts a ported state into C MuJoCo's data of the source model."""
    mujoco.mj_resetData(data.model, data)
    data.qpos[:] = body.source_qpos(state.qpos)
    joints = dynamics.joint_state(body.tree, state.qpos, state.qvel)
    data.qvel[body.tree.source_qvel_address] = joints.velocity
    data.act[:] = state.act


def motion_error(
    body: PortedBody,
    actuated: bool,
    starts: Sequence[PhysicsState] | None = None,
    num_steps: int = 100,
    seed: int = 0,
) -> float:
    """Difference after free motion without contacts, relative to the distance moved.

    C MuJoCo simulates the source model with `stiffen_couplings`; the norm is over all its joints
    and all `starts` (None: eight of `random_states`), each under random constant controls.
    """
    model, disable = body.source.__copy__(), mujoco.mjtDisableBit
    model.opt.disableflags |= int(disable.mjDSBL_CONTACT)
    if not actuated:
        model.opt.disableflags |= int(disable.mjDSBL_ACTUATION)
    stiffen_couplings(model)
    body = without_contacts(body)
    if not actuated:
        body = without_force(body)
    advance = jax.jit(
        lambda state, ctrl: body.advance(state, ctrl, num_steps)[0],
        compiler_options=body.compiler_options,
    )
    rng, data, errors, distances = np.random.default_rng(seed), mujoco.MjData(model), [], []
    joints = body.tree.source_qpos_address[7 * body.tree.num_free :]
    for start in random_states(body, rng, 8) if starts is None else starts:
        ctrl = rng.uniform(0, 0.3, size=body.nu)
        set_source_state(body, data, start)
        data.ctrl[:] = ctrl
        before = data.qpos[joints].copy()
        for _ in range(num_steps):
            mujoco.mj_step(model, data)
        after = body.source_qpos(advance(start, jnp.asarray(ctrl, jnp.float32)).qpos)[joints]
        errors.append(after - data.qpos[joints])
        distances.append(data.qpos[joints] - before)
    return relative(errors, distances)


def relative(errors: ArrayLike, distances: ArrayLike) -> float:
    """The size of `errors` over that of `distances`; 0 where nothing moved."""
    distance = np.linalg.norm(distances)
    return float(np.linalg.norm(errors) / distance) if distance else 0.0


def stiffen_couplings(model: mujoco.MjModel) -> None:
    """Makes couplings stiff, and takes the limits of coupled joints away, as the port does.

    A coupled joint goes where its driver, within the driver's limits, puts it. Sources have limits
    that contradict this: the patella of MS-Human-700 would stop its knee 0.4 rad too early.
    """
    model.eq_solref[:], model.eq_solimp[:] = STIFF_SOLREF, STIFF_SOLIMP
    model.jnt_limited[model.eq_obj1id[audit.active_equalities(model)]] = 0


def without_contacts(body: PortedBody) -> PortedBody:
    """The same body in empty space."""
    return dataclasses.replace(body, contacts=())


def without_force(body: PortedBody) -> PortedBody:
    """The same body with actuators that neither push nor pull."""
    return dataclasses.replace(
        body,
        muscle_constants=body.muscle_constants.without_force(),
        servos=body.servos.without_force(),
    )


def contact_change(body: PortedBody, num_steps: int = 50, seed: int = 0) -> dict[str, float]:
    """What cutting contacts and couplings changes in 50 steps from touch-down.

    C MuJoCo simulates the unported model as it is (soft couplings, every contact) and once with
    nothing but the recipe's contacts and stiff couplings; the ported body stands beside both.
    Distances are relative to the distance moved.
    """
    cut = body.source.__copy__()
    stiffen_couplings(cut)
    keep_contacts(cut, body.recipe)
    advance = jax.jit(
        lambda state, ctrl: body.advance(state, ctrl, num_steps)[0],
        compiler_options=body.compiler_options,
    )
    rng = np.random.default_rng(seed)
    joints = body.tree.source_qpos_address[7 * body.tree.num_free :]
    differences: dict[str, list[float]] = {"port against cut model": [], "cut against whole": []}
    for start in random_states(body, rng, 4):
        start = on_the_floor(body, start)
        ctrl = rng.uniform(0, 0.3, size=body.nu)
        ends = []
        for model in (body.source, cut):
            data = mujoco.MjData(model)
            set_source_state(body, data, start)
            data.ctrl[:] = ctrl
            before = data.qpos[joints].copy()
            for _ in range(num_steps):
                mujoco.mj_step(model, data)
            ends.append(data.qpos[joints].copy())
        ported = body.source_qpos(advance(start, jnp.asarray(ctrl, jnp.float32)).qpos)[joints]
        moved = ends[1] - before
        differences["port against cut model"].append(relative(ported - ends[1], moved))
        differences["cut against whole"].append(relative(ends[0] - ends[1], moved))
    return {name: float(np.mean(values)) for name, values in differences.items()}


def on_the_floor(body: PortedBody, state: PhysicsState) -> PhysicsState:
    """Lowers or lifts a body with a free root until it touches its floor, if it has one."""
    floor, geoms = body.recipe.floor, body.recipe.with_floor
    if not (floor and geoms and body.tree.num_free):
        return state
    model, data = body.source, mujoco.MjData(body.source)
    set_source_state(body, data, state)
    mujoco.mj_kinematics(model, data)
    plane = model.geom(floor).id
    gap = min(
        mujoco.mj_geomDistance(model, data, plane, model.geom(geom).id, 10.0, None)
        for geom in geoms
    )
    return state._replace(qpos=state.qpos.at[2].add(-gap))


def keep_contacts(model: mujoco.MjModel, instructions: recipe.Recipe) -> None:
    """Lets nothing collide in `model` but the recipe's pairs of geoms."""
    model.geom_contype[:] = model.geom_conaffinity[:] = 0
    wanted = {frozenset(model.geom(g).id for g in pair) for pair in instructions.contact_pairs}
    for pair, geoms in enumerate(zip(model.pair_geom1, model.pair_geom2, strict=True)):
        if frozenset(map(int, geoms)) not in wanted:
            model.pair_margin[pair] = -1e6  # explicit pairs ignore the masks
    surfaces = dict.fromkeys(first for first, _ in instructions.contact_pairs)
    for bit, surface in enumerate(surfaces):
        model.geom_conaffinity[model.geom(surface).id] |= 1 << bit
        for first, second in instructions.contact_pairs:
            if first == surface:
                model.geom_contype[model.geom(second).id] |= 1 << bit


def rollout_poses(body: PortedBody, num_worlds: int = 32, num_steps: int = 200) -> np.ndarray:
    """Independent scalar joints `[S, R]` that environments visit under random excitations."""
    rng = np.random.default_rng(0)
    starts = jax.tree.map(lambda *x: jnp.stack(x), *random_states(body, rng, num_worlds))

    def roll(state, key):
        def step(carry, key):
            after = body.advance(carry, jax.random.uniform(key, (body.nu,)), 10)[0]
            return after, after.qpos[7 * body.tree.num_free :]

        return jax.lax.scan(step, state, jax.random.split(key, num_steps // 10))[1]

    keys = jax.random.split(jax.random.key(0), num_worlds)
    roll = jax.jit(jax.vmap(roll), compiler_options=body.compiler_options)
    visited = np.asarray(roll(starts, keys), np.float64)
    return visited.reshape(-1, visited.shape[-1])


def range_table(body: PortedBody) -> list[dict[str, Any]]:
    """Fitting range over joint limits, for each independent scalar joint; nothing without fits."""
    if not body.path_groups:
        return []
    instructions, tree = body.recipe, body.tree
    first = 6 * tree.num_free
    fitted = fitting.joint_ranges(tree, instructions.ranges)
    limits = np.tile([-np.inf, np.inf], (len(fitted), 1))
    limits[tree.limit_dof - first] = tree.limit_range
    names = tree.joint_names[tree.num_free :]
    return [
        {"joint": n, "fitted": f.round(3).tolist(), "limits": lim.round(3).tolist()}
        for n, f, lim in zip(names, fitted, limits, strict=True)
    ]


def path_report(body: PortedBody) -> dict[str, Any]:
    """Path lengths, moment arms and torques over the fitted range and on visited states."""
    instructions = body.recipe
    tolerance = library.path_tolerance(instructions)
    exact = np.sort(np.concatenate([body.tendons.muscles, body.linear.muscles])).astype(int)
    exact = [body.actuator_names[a] for a in exact]
    ranges = fitting.joint_ranges(body.tree, instructions.ranges)
    poses = fitting.random_poses(ranges, tolerance.num_test_poses, seed=tolerance.seed + 2)
    visited = rollout_poses(body)
    inside = np.all((visited >= ranges[:, 0]) & (visited <= ranges[:, 1]), axis=1)
    sections = {}
    for title, q in (("over the range", poses), ("visited states", visited)):
        errors = path_errors(body, fitting.sample(body.source, body.tree, q))
        torque = errors.torque_relative[~np.isnan(errors.torque_relative)]
        worst = np.argsort(-np.nan_to_num(errors.torque_relative))[0]
        sections[title] = {
            "length RMS, median muscle (mm)": 1e3 * float(np.median(errors.length_rms)),
            "length RMS, worst muscle (mm)": 1e3 * float(errors.length_rms.max()),
            "worst muscle": body.actuator_names[int(errors.length_rms.argmax())],
            "muscles above 0.5 mm": int((errors.length_rms > 0.5e-3).sum()),
            "moment arm, relative RMS, median muscle": float(np.median(errors.arm_rms)),
            "joint torque, relative RMS, median joint": float(np.median(torque))
            if len(torque)
            else 0.0,
            "joint torque, relative RMS, worst joint": float(torque.max(initial=0.0)),
            "worst joint": body.tree.joint_names[body.tree.num_free + int(worst)],
        }
    if body.path_groups:
        sections["visited states"]["fraction inside the fitted range"] = float(inside.mean())
    samples = fitting.sample(body.source, body.tree, poses[:50])
    idle = sorted(set(range(body.nu)) - set(samples.pair_muscle.tolist()))
    return {
        **sections,
        "terms": int(sum(group.coefficients.size for group in body.path_groups)),
        "groups": len(body.path_groups),
        "muscles left exact": "all" if len(exact) == body.nu else exact,
        "muscles that move no joint": [body.actuator_names[i] for i in idle],
    }
