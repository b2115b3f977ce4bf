"""Tasks of robots and the ostrich, term by term against NumPy on C MuJoCo's data."""

import functools
import runpy

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from conftest import absent_sources_skip

from mjx_qflex import resources, tasks
from mjx_qflex.porting import parity, recipe
from mjx_qflex.tasks.tolerance import tolerance
from mjx_qflex.training import assessment

STATES = 24


@functools.cache
def make(name):
    """The task, made once; skips the test where its source is absent."""
    with absent_sources_skip():
        return tasks.make(name)


def random_states(env, seed=0, height=0.3, tilt=0.6):
    """Random poses about the task's start, joints anywhere in their ranges, and velocities."""
    rng = np.random.default_rng(seed)
    body, model = env.body, env.source_model()
    qpos = np.tile(
        np.asarray(env.reset(jax.random.PRNGKey(0)).pipeline_state.physics.qpos), (STATES, 1)
    )
    for i in range(body.tree.num_free):
        qpos[:, 7 * i : 7 * i + 3] += rng.uniform(-height, height, (STATES, 3))
        turn = qpos[:, 7 * i + 3 : 7 * i + 7] + rng.uniform(-tilt, tilt, (STATES, 4))
        qpos[:, 7 * i + 3 : 7 * i + 7] = turn / np.linalg.norm(turn, axis=1, keepdims=True)
    for name in body.joint_names[body.tree.num_free :]:
        low, high = model.joint(name).range if model.joint(name).range.any() else (-0.3, 0.3)
        qpos[:, body.qpos_index(name)] = rng.uniform(low, high, STATES)
    qvel = rng.normal(size=(STATES, body.nv))
    act = rng.uniform(size=(STATES, np.size(body.initial_state().act)))
    physics = body.initial_state()._replace(
        qpos=jnp.asarray(qpos, jnp.float32),
        qvel=jnp.asarray(qvel, jnp.float32),
        act=jnp.asarray(act, jnp.float32),
        time=jnp.zeros(STATES),
    )
    return physics, rng.uniform(-1.2, 1.2, (STATES, env.action_size)).astype(np.float32)


def c_data(env, physics, ctrl=None):
    """C MuJoCo's data at the ported state `physics` (of one world) under `ctrl`."""
    model, tree = env.source_model(), env.body.tree
    data = mujoco.MjData(model)
    data.qpos[:] = env.body.source_qpos(physics.qpos)
    data.qvel[tree.source_qvel_address] = physics.qvel
    if np.size(physics.act):
        data.act[:] = physics.act
    if ctrl is not None:
        data.ctrl[:] = ctrl
    mujoco.mj_forward(model, data)
    mujoco.mj_subtreeVel(model, data)
    return data


def worlds(tree):
    return [jax.tree.map(lambda x, i=i: np.asarray(x[i]), tree) for i in range(STATES)]


def batched(env, function):
    return jax.jit(jax.vmap(function), compiler_options=env.compiler_options)


# --- tolerance ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "values"),
    [  # at x = -3, -1, 0, 1.5, 2, 4
        ({}, [0, 0, 1, 0, 0, 0]),
        ({"lower": -1.0, "upper": 2.0}, [0, 1, 1, 1, 1, 0]),
        ({"lower": 1.0, "upper": np.inf}, [0, 0, 0, 1, 1, 1]),
        (
            {"lower": 1.0, "upper": 2.0, "margin": 2.0},
            [10.0**-4, 10.0**-1, 10.0**-0.25, 1, 1, 10.0**-1],
        ),
        (
            {"lower": 1.0, "upper": 2.0, "margin": 4.0, "value_at_margin": 0.5},
            [0.5, 0.5**0.25, 0.5 ** (1 / 16), 1, 1, 0.5**0.25],
        ),
        (
            {"lower": 1.0, "upper": 2.0, "margin": 2.0, "sigmoid": "linear", "value_at_margin": 0},
            [0, 0, 0.5, 1, 1, 0],
        ),
        (
            {"lower": 1.0, "upper": 2.0, "margin": 2.0, "sigmoid": "linear"},
            [0, 0.1, 0.55, 1, 1, 0.1],
        ),
        (
            {"margin": 3.0, "sigmoid": "quadratic", "value_at_margin": 0},
            [0, 8 / 9, 1, 0.75, 5 / 9, 0],
        ),
    ],
)
def test_tolerance_against_its_published_definition(options, values):
    x = jnp.array([-3.0, -1.0, 0.0, 1.5, 2.0, 4.0])
    np.testing.assert_allclose(tolerance(x, **options), values, atol=1e-6)


def falls(x, bound, margin):
    """A linear tolerance towards larger values, 0 at the margin."""
    return np.clip(1 - (bound - x) / margin, 0, 1)


@pytest.mark.parametrize("name", ["h1_balance", "h1_run", "smpl_jump"])
def test_to_be_idle_is_to_hold_the_start_pose(name):
    """There the servos are without force, as no action with equal entries could make them."""
    env = make(name)
    start = env.body.initial_state()._replace(qpos=env.start)
    ctrl = np.asarray(env.targets(assessment.idle_action(env)))
    np.testing.assert_allclose(c_data(env, start, ctrl).actuator_force, 0.0, atol=1e-2)  # N m
    assert np.ptp(env.idle_action) > 0.1 and np.abs(env.idle_action).max() <= 1.0


# --- h1_run and h1_balance ---------------------------------------------------------------------

H1_TASKS = ("h1_run", "h1_balance")


@functools.cache
def h1_derived(name):
    """All that the task derives from random states, and C MuJoCo's data of the same states."""
    env = make(name)
    physics, action = random_states(env)

    def derive(physics, action):
        ctrl = env.targets(action)
        kinematics = env.body.kinematics(physics)
        factors = env.reward_factors(kinematics, env.body.servo_force(physics, ctrl))
        terms, over = env.reward_terms(factors), env.is_over(physics, kinematics)
        return ctrl, factors, terms, over, env.robot_velocity(kinematics)

    derived = worlds(batched(env, derive)(physics, action))
    low, high = env.source_model().actuator_ctrlrange.T
    ctrl = low + (np.clip(action, -1, 1) + 1) / 2 * (high - low)
    data = [c_data(env, *pair) for pair in zip(worlds(physics), ctrl, strict=True)]
    return derived, data, ctrl


@pytest.mark.parametrize("name", H1_TASKS)
def test_h1_reward_against_numpy(name):
    derived, data, ctrls = h1_derived(name)
    head_height = 1.65 if name == "h1_run" else 1.65 + 0.37
    for (ctrl, factors, terms, _, velocity), d, expected_ctrl in zip(
        derived, data, ctrls, strict=True
    ):
        np.testing.assert_allclose(ctrl, expected_ctrl, atol=1e-5)
        np.testing.assert_allclose(velocity, d.body("pelvis").subtree_linvel, atol=1e-4)
        up = d.body("torso_link").xmat.reshape(3, 3)[:, 2]
        head = d.body("torso_link").xpos[2] + 0.7 * up[2]
        vx, vy, _ = d.body("pelvis").subtree_linvel
        small = np.mean(np.maximum(1 - (d.actuator_force / 10) ** 2, 0))
        expected = {
            "small_control": (4 + small) / 5,
            "standing": 0.1 ** (max(head_height - head, 0) / (1.65 / 4)) ** 2,
            "upright": falls(up[2], 0.9, 1.9),
        }
        if name == "h1_run":
            expected["speed"] = falls(vx, 5, 5)
            gain = (5 * expected["speed"] + 1) / 6
        else:
            expected["dont_move"] = gain = (0.1 ** (vx / 2) ** 2 + 0.1 ** (vy / 2) ** 2) / 2
        assert factors.keys() == expected.keys()
        for factor, value in expected.items():
            assert factors[factor] == pytest.approx(value, abs=1e-4), factor
        product = expected["small_control"] * expected["standing"] * expected["upright"] * gain
        assert sum(terms.values()) == pytest.approx(product, abs=1e-4)


@pytest.mark.parametrize("name", H1_TASKS)
def test_h1_observation_is_mujocos_state(name):
    env = make(name)
    physics, _ = random_states(env)
    observe = batched(env, lambda p: env.observe(p, env.body.kinematics(p)))
    obs = np.asarray(observe(physics))
    assert obs.shape[1] == {"h1_run": 51, "h1_balance": 64}[name]
    for row, world in zip(obs, worlds(physics), strict=True):
        data = c_data(env, world)
        np.testing.assert_allclose(row, [*data.qpos, *data.qvel], atol=1e-5)


def test_h1_run_ends_when_the_pelvis_is_low():
    env = make("h1_run")
    physics, _ = random_states(env)
    physics = physics._replace(qpos=physics.qpos.at[:, 2].set(jnp.linspace(0.1, 0.3, STATES)))
    over = batched(env, lambda p: env.is_over(p, env.body.kinematics(p)))(physics)
    np.testing.assert_array_equal(over, np.linspace(0.1, 0.3, STATES) < 0.2)


def test_h1_balance_ends_where_mujoco_finds_the_wrong_contacts():
    env = make("h1_balance")
    model = env.source_model()
    rng = np.random.default_rng(3)
    physics, _ = random_states(env, seed=4, height=0.05, tilt=0.15)
    # Feet just above the ball, beside the board or on the floor; pelvis always above 0.8 m.
    qpos = np.array(physics.qpos)
    qpos[:, 7 * 2 :] = np.array(env.start)[7 * 2 :] + rng.uniform(-0.2, 0.2, (STATES, 19))
    qpos[: STATES // 2, 2] = rng.uniform(0.9, 1.1, STATES // 2)
    qpos[: STATES // 2, 7:10] = [0.0, 0.0, 5.0]
    qpos[STATES // 2 :, 9] = rng.uniform(0.0, 0.3, STATES // 2)
    qpos[STATES // 2 :, 2] = 2.5
    physics = physics._replace(qpos=jnp.asarray(qpos))
    over = batched(env, lambda p: env.is_over(p, env.body.kinematics(p)))(physics)
    floor, ball, board = (model.geom(name).id for name in ("floor", "ball", "board"))
    round_types = (int(mujoco.mjtGeom.mjGEOM_SPHERE), int(mujoco.mjtGeom.mjGEOM_CAPSULE))
    expected = []
    for world in worlds(physics):
        data, wrong = c_data(env, world), False
        for pair in data.contact.geom:
            for surface, other in (pair, pair[::-1]):
                round_part = model.geom_type[other] in round_types
                wrong |= surface == floor and (other == board or round_part)
                wrong |= surface == ball and other != board and round_part
        expected.append(wrong or data.qpos[2] < 0.8)
    np.testing.assert_array_equal(over, expected)
    assert 4 < np.sum(expected) < STATES - 4


@pytest.mark.parametrize("name", H1_TASKS)
def test_h1_holds_its_keyframe_as_c_mujoco_does(name):
    """Ten actions of holding the start pose, with only the recipe's contacts."""
    env = make(name)
    model = env.source_model().__copy__()
    parity.keep_contacts(model, recipe.read(env.body.name))
    data = mujoco.MjData(model)
    state = env.reset(jax.random.PRNGKey(5))
    data.qpos[:] = env.body.source_qpos(state.pipeline_state.physics.qpos)
    data.ctrl[:] = [*(0.0, 0.0, -0.4, 0.8, -0.4) * 2, *[0.0] * 9]
    low, high = model.actuator_ctrlrange.T
    action = jnp.asarray(2 * (data.ctrl - low) / (high - low) - 1, jnp.float32)
    step = jax.jit(env.step, compiler_options=env.compiler_options)
    for _ in range(10):
        state = step(state, action)
        mujoco.mj_step(model, data, nstep=10)
    np.testing.assert_allclose(state.obs[: model.nq], data.qpos, atol=5e-3)
    assert not state.done


# --- smpl_jump ---------------------------------------------------------------------------------


@functools.cache
def smpl_derived():
    env = make("smpl_jump")
    physics, action = random_states(env)

    def derive(physics, action):
        ctrl, kinematics = env.targets(action), env.body.kinematics(physics)
        factors = env.reward_factors(kinematics, env.body.servo_force(physics, ctrl))
        over = env.is_over(physics, kinematics)
        return factors, env.reward_terms(factors), over, env.observe(physics, kinematics)

    derived = worlds(batched(env, derive)(physics, action))
    return derived, [c_data(env, world) for world in worlds(physics)]


def test_smpl_reward_against_numpy():
    for (factors, terms, over, _), d in zip(*smpl_derived(), strict=True):
        head, pelvis = d.body("head").xpos[2], d.body("pelvis").xpos[2]
        up = d.body("spine3").xmat[8]
        outside = max(2.0 - head, head - 2.1, 0)
        expected = {
            "height": max(1 - 0.99 * outside / 2.0, 0),
            "speed": falls(d.body("pelvis").subtree_linvel[2], 5, 5),
            "upright": falls(up, 0.9, 1.9),
        }
        assert factors.keys() == expected.keys()
        for factor, value in expected.items():
            assert factors[factor] == pytest.approx(value, abs=1e-4), factor
        assert sum(terms.values()) == pytest.approx(np.prod(list(expected.values())), abs=1e-4)
        assert over == (head < 0.5 or pelvis < 0.2)


def test_smpl_observation_against_numpy():
    env = make("smpl_jump")
    derived, data = smpl_derived()
    for (*_, obs), d in zip(derived, data, strict=True):
        rotation = d.xmat[1:].reshape(-1, 3, 3)
        heading = np.arctan2(rotation[0, 1, 0], rotation[0, 0, 0])
        c, s = np.cos(heading), np.sin(heading)
        back = np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]])
        place = (d.xpos[2:] - d.xpos[1]) @ back.T
        local = np.einsum("ij,njk->nik", back, rotation)
        columns = np.concatenate([local[:, :, 0], local[:, :, 2]], axis=1)
        velocity = np.zeros((2, 24, 3))
        for i in range(24):
            both = np.zeros(6)
            mujoco.mj_objectVelocity(
                env.source_model(), d, mujoco.mjtObj.mjOBJ_XBODY, i + 1, both, 0
            )
            velocity[:, i] = both[3:], both[:3]
        parts = (d.xpos[1, 2:], place, columns, velocity @ back.T)
        expected = np.concatenate([np.ravel(part) for part in parts])
        assert obs.shape == (env.observation_size,) == (358,)
        np.testing.assert_allclose(obs, expected, atol=1e-4)


def test_smpl_falls_are_noticed():
    env = make("smpl_jump")
    heights = jnp.linspace(-0.9, 0.0, STATES)  # m, of the T-pose
    physics, _ = random_states(env)
    qpos = jnp.tile(env.start, (STATES, 1)).at[:, 2].add(heights)
    over = batched(env, lambda p: env.is_over(p, env.body.kinematics(p)))(
        physics._replace(qpos=qpos)
    )
    pelvis = env.start[2] + np.asarray(heights)
    np.testing.assert_array_equal(over, pelvis < 0.2)


def test_smpl_actions_are_shares_of_the_joints_ranges():
    model = make("smpl_jump").source_model()
    data = mujoco.MjData(model)
    for ctrl, column in ((-1.0, 0), (1.0, 1), (0.0, None)):
        ranges = model.jnt_range[1:]
        data.qpos[7:] = ranges.mean(axis=1) if column is None else ranges[:, column]
        data.ctrl[:] = ctrl
        mujoco.mj_forward(model, data)
        np.testing.assert_allclose(data.actuator_force, 0.0, atol=1.0)  # N m, of rounding


def test_smpl_body_stands_in_its_t_pose():
    env = make("smpl_jump")
    model = env.source_model()
    assert model.nbody == 25 and model.nu == 69
    assert model.body_mass.sum() == pytest.approx(75.0, abs=0.01)
    low, high = model.jnt_range[1:].T
    hold = jnp.asarray(-(low + high) / (high - low), jnp.float32)
    state = jax.jit(env.reset)(jax.random.PRNGKey(0))
    run = jax.jit(
        lambda state: jax.lax.scan(lambda s, _: (env.step(s, hold), s.obs[0]), state, length=45),
        compiler_options=env.compiler_options,
    )
    state, heights = run(state)
    assert not state.done
    np.testing.assert_allclose(heights[10:], env.start[2], atol=0.02)


def test_the_smpl_body_is_what_its_script_writes():
    folder = resources.data_folder("models") / "smpl_humanoid"
    script = runpy.run_path(str(folder / "make_humanoid.py"))
    assert script["document"]() == (folder / "smpl_humanoid.xml").read_text()


# --- ostrich_run -------------------------------------------------------------------------------


@functools.cache
def ostrich_derived():
    env = make("ostrich_run")
    physics, _ = random_states(env)
    # The root anywhere, so that every reason to end an episode is among the states.
    root = np.random.default_rng(1).uniform(-1.0, 1.0, (STATES, 6)) * [3, 3, 0.7, 0.3, 1.2, 3]
    physics = physics._replace(qpos=physics.qpos.at[:, :6].set(root))

    def derive(physics):
        kinematics, muscles = env.body.kinematics(physics), env.body.muscles(physics)
        return env.observe(physics, kinematics, muscles), env.is_over(physics, kinematics)

    derived = worlds(batched(env, derive)(physics))
    return derived, [c_data(env, world) for world in worlds(physics)]


def test_ostrich_observation_and_end_against_numpy():
    reasons = np.zeros(3, int)
    for (obs, over), d in zip(*ostrich_derived(), strict=True):
        head, pelvis = d.body("head").xpos[2], d.geom("pelvis").xpos[2]
        feet = [d.body("r_pes").xpos[2], d.body("l_pes").xpos[2]]
        parts = {
            "heights": [head, pelvis, *feet],
            "qpos": d.qpos[1:],
            "qvel": np.clip(d.qvel, -100, 100),
            "act": d.act,
            "force": np.clip(d.actuator_force / 1000, -100, 100),
            "length": d.actuator_length,
            "velocity": np.clip(d.actuator_velocity, -100, 100),
            "forward": d.sensor("torso_subtreelinvel").data[:1],
        }
        assert obs.shape == (596,)
        edges = np.cumsum([len(part) for part in parts.values()])
        for (name, part), seen in zip(parts.items(), np.split(obs, edges[:-1]), strict=True):
            np.testing.assert_allclose(seen, part, atol=1e-4, rtol=1e-4, err_msg=name)
        why = [head < 0.9, pelvis < 0.6, abs(d.qpos[4]) > 0.8]
        assert over == any(why)
        reasons += why
    assert reasons.all()


def test_ostrich_reward_is_the_forward_velocity_and_rest_is_all_below_zero():
    env = make("ostrich_run")
    reset, step = (
        jax.jit(jax.vmap(f), compiler_options=env.compiler_options) for f in (env.reset, env.step)
    )
    start = reset(jax.random.split(jax.random.PRNGKey(2), STATES))
    model = env.source_model()
    joints = np.asarray(start.pipeline_state.physics.qpos)[:, 6:]
    low, high = model.jnt_range[6:].T / 5
    assert (joints >= low - 1e-6).all() and (joints <= high + 1e-6).all()
    assert (joints.std(axis=0) > 0.1 * (high - low)).all()
    excited = jax.random.uniform(jax.random.PRNGKey(3), (STATES, 120), minval=-1.0)
    moved = step(step(start, excited), excited)
    for world, reward in zip(worlds(moved.pipeline_state.physics), moved.reward, strict=True):
        forward = c_data(env, world).sensor("torso_subtreelinvel").data[0]
        assert reward == pytest.approx(forward, abs=1e-4)
    resting, lower = (step(start, jnp.full((STATES, 120), a)) for a in (0.0, -0.7))
    np.testing.assert_array_equal(resting.obs, lower.obs)
    assert np.abs(moved.obs - resting.obs).max() > 1e-2


def test_before_an_episode_of_the_ostrich_ends_only_the_recipes_geoms_reach_the_floor():
    """Poses anywhere in the joints' ranges, lowered until the first of those geoms touches."""
    env = make("ostrich_run")
    model, rng = env.source_model(), np.random.default_rng(6)
    data, low, high = mujoco.MjData(model), *model.jnt_range[6:].T
    allowed = [model.geom(name).id for name in env.body.recipe.with_floor]
    floor, alive, first = model.geom("floor").id, 0, set()
    for _ in range(2000):
        turn = rng.uniform(-1.0, 1.0, 3) * [0.5, 0.8, 3.0]
        data.qpos[:] = [0.0, 0.0, 0.0, *turn, *rng.uniform(low, high)]
        mujoco.mj_kinematics(model, data)
        steep = np.abs(data.geom_xmat[allowed, 8])
        extent = model.geom_size[allowed, 0] + steep * model.geom_size[allowed, 1]  # of a capsule
        heights = data.geom_xpos[allowed, 2] - extent
        data.qpos[2] -= heights.min()
        mujoco.mj_kinematics(model, data)
        if data.body("head").xpos[2] < 0.9 or data.geom("pelvis").xpos[2] < 0.6:
            continue
        mujoco.mj_comPos(model, data)
        mujoco.mj_collision(model, data)
        alive += 1
        first.add(model.geom(allowed[heights.argmin()]).name)
        touching = {geom for pair in data.contact.geom if floor in pair for geom in pair}
        assert touching <= {floor, *allowed}
    assert alive > 500
    assert {"r_tarsometatarsus", "l_tarsometatarsus"} & first
