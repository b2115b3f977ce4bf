"""MyoSuite's tasks, term by term against values computed in NumPy from C MuJoCo's data."""

import functools

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from c_mujoco import source_data
from observation_terms import split
from task_protocol import WORLDS, compiled_step, make, start

from mjx_qflex import tasks
from mjx_qflex.errors import UserError
from mjx_qflex.physics import muscle
from mjx_qflex.tasks import action_maps, myo_hand_pen_twirl

GROUPS = 8  # of WORLDS random states
LEGS, PEN = "myo_leg_walk", "myo_hand_pen_twirl"


def random_physics(name, rng):
    """A state far from any start: joints in the middle 60% of their ranges, all moving."""
    env = make(name)
    body, model = env.body, env.source_model()
    low, high = np.array([model.joint(joint).range for joint in body.joint_names[1:]]).T
    root = np.array(body.initial_state().qpos[:7], float)
    root[:3] += rng.uniform(-0.06, 0.06, size=3)
    turn = 0.3 * rng.normal(size=3) + [0, 0, rng.uniform(-2, 2)]
    mujoco.mju_quatIntegrate(root[3:], turn, 1.0)
    joints = 0.5 * (low + high) + 0.3 * (high - low) * rng.uniform(-1, 1, size=len(low))
    return body.initial_state()._replace(
        qpos=jnp.asarray(np.concatenate([root, joints]), jnp.float32),
        qvel=jnp.asarray(0.3 * rng.normal(size=body.nv), jnp.float32),
        act=jnp.asarray(rng.uniform(0, 0.5, size=body.nu), jnp.float32),
    )


@functools.cache
def stepped(name):
    """`GROUPS * WORLDS` pairs of a random state's pipeline state and its successor's `State`."""
    env, rng = make(name), np.random.default_rng(0)
    pairs = []
    for _ in range(GROUPS):
        physics = [random_physics(name, rng) for _ in range(WORLDS)]
        physics = jax.tree.map(lambda *x: jnp.stack(x), *physics)
        first = start(name)
        steps = jnp.asarray(rng.integers(0, env.episode_length, WORLDS), jnp.int32)
        before = first.replace(
            pipeline_state=first.pipeline_state._replace(physics=physics, steps=steps)
        )
        action = jnp.asarray(rng.uniform(-1, 1, (WORLDS, env.action_size)), jnp.float32)
        after = compiled_step(name)(before, action)
        for world in range(WORLDS):
            pairs.append(jax.tree.map(lambda x, w=world: x[w], (before.pipeline_state, after)))
    return pairs


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def check_reward(after, expected):
    found = {k.removeprefix("reward/"): v for k, v in after.metrics.items() if "reward/" in k}
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-4, err_msg=name)
    close(after.reward, sum(expected.values()))


def check_muscles(env, terms, data):
    """Within the port's tolerances; forces to 1e-4 of what C MuJoCo's lengths give."""
    lengths = data.actuator_length
    assert np.sqrt(np.mean((terms["length"] - lengths) ** 2)) < 0.5e-3
    for name, values in (
        ("velocity", data.actuator_velocity),
        ("force", 1e-3 * data.actuator_force),
    ):
        wrong = np.linalg.norm(terms[name] - values) / np.linalg.norm(values)
        assert wrong < 0.05, name
    fed = muscle.force(
        env.body.muscle_constants,
        jnp.asarray(lengths, jnp.float32),
        jnp.asarray(data.actuator_velocity, jnp.float32),
        jnp.asarray(data.act, jnp.float32),
    )
    close(1e-3 * fed, 1e-3 * data.actuator_force)


# --- myo_leg_walk ------------------------------------------------------------------------------


def leg_terms(env, obs):
    nu = env.body.nu
    sizes = {"qpos": 19, "qvel": 20, "velocity_of_com": 2, "torso": 4, "feet_height": 2}
    sizes |= {"height": 1, "feet": 6, "phase": 1}
    return split(obs, sizes | dict.fromkeys(("length", "velocity", "force", "act"), nu))


def test_walk_observation():
    env = make(LEGS)
    model = env.source_model()
    independent = [model.joint(name).qposadr[0] for name in env.body.joint_names[1:]]
    moving = [model.joint(name).dofadr[0] for name in env.body.joint_names[1:]]
    for _, after in stepped(LEGS):
        walk = after.pipeline_state
        data, terms = source_data(env, walk.physics), leg_terms(env, after.obs)
        close(terms["qpos"], data.qpos[[2, 3, 4, 5, 6, *independent]])
        close(terms["qvel"], 0.01 * data.qvel[[*range(6), *moving]])
        close(terms["velocity_of_com"], -data.subtree_linvel[0, :2])
        close(terms["torso"], data.body("torso").xquat)
        left, right, pelvis = (data.body(b).xpos for b in ("talus_l", "talus_r", "pelvis"))
        close(terms["feet_height"], [left[2], right[2]])
        close(terms["height"], data.subtree_com[0, 2:])
        close(terms["feet"], np.concatenate([left - pelvis, right - pelvis]))
        close(terms["phase"], ((walk.offset + walk.steps) % 100) / 100)
        close(terms["act"], data.act)
        check_muscles(env, terms, data)


def test_walk_reward_and_end():
    env, seen = make(LEGS), set()
    for before, after in stepped(LEGS):
        data = source_data(env, after.pipeline_state.physics)
        model = env.source_model()

        def angles(*names, data=data, model=model):
            return np.array([data.qpos[model.joint(name).qposadr[0]] for name in names])

        phase = 2 * np.pi * (before.offset + before.steps) / 100
        hips = 0.8 * np.array([np.cos(phase + np.pi), np.cos(phase)])
        sideways = np.array(data.body("Full Body").xmat).reshape(3, 3) @ [0, -1, 0]
        fallen = data.subtree_com[0, 2] < 0.8 or abs(sideways[0]) > 0.8
        vx, vy, _ = -data.subtree_linvel[0]
        straight = angles("hip_adduction_l", "hip_adduction_r", "hip_rotation_l", "hip_rotation_r")
        check_reward(
            after,
            {
                "velocity": 5 * (np.exp(-((1.2 - vy) ** 2)) + np.exp(-(vx**2))),
                "cyclic_hip": -10 * np.linalg.norm(hips - angles("hip_flexion_l", "hip_flexion_r")),
                "root_rotation": 10 * np.exp(-5 * np.linalg.norm(data.qpos[3:7] - [1, 0, 0, 0])),
                "joint_angles": 5 * np.exp(-5 * np.mean(np.abs(straight))),
                "fallen": -100.0 * fallen,
            },
        )
        assert bool(after.done) == fallen
        seen.add(bool(fallen))
    assert seen == {True, False}


def test_walk_ends_when_it_turns_aside_or_sinks():
    env = make(LEGS)
    good = env.body.initial_state()
    judge = jax.jit(lambda physics: env.has_fallen(physics, env.body.kinematics(physics)))

    def fallen(qpos):
        return bool(judge(good._replace(qpos=jnp.asarray(qpos, jnp.float32))))

    assert not fallen(good.qpos)
    assert fallen(good.qpos.at[2].add(-0.2))
    for angle, expected in ((0.8, False), (1.0, True), (-1.0, True), (np.pi, False)):
        turned = np.array(good.qpos, float)
        mujoco.mju_quatIntegrate(turned[3:7], np.array([0, 0, angle]), 1.0)
        assert fallen(turned) == expected, angle


def lowest_sole(model, data):
    """Height of the feet's lowest point, their ellipsoid left out."""
    heights = []
    for g in range(model.ngeom):
        if "foot_col" in model.geom(g).name and model.geom_type[g] == mujoco.mjtGeom.mjGEOM_CAPSULE:
            down = abs(data.geom_xmat[g].reshape(3, 3)[2, 2]) * model.geom_size[g, 1]
            heights.append(data.geom_xpos[g, 2] - down - model.geom_size[g, 0])
    assert len(heights) == 8
    return min(heights)


def test_walk_starts_on_the_floor_with_either_foot_in_front():
    env = make(LEGS)
    reset = jax.jit(jax.vmap(env.reset), compiler_options=env.compiler_options)
    first = reset(jax.random.split(jax.random.PRNGKey(4), 16))
    assert set(first.pipeline_state.offset.tolist()) == {0, 50}
    for world in range(16):
        walk = jax.tree.map(lambda x, w=world: x[w], first.pipeline_state)
        data = source_data(env, walk.physics)
        assert abs(lowest_sole(env.source_model(), data)) < 1e-3
        right_leads = data.body("talus_r").xpos[1] < data.body("talus_l").xpos[1]
        assert right_leads == (walk.offset == 0)
        assert 1.1 < -data.subtree_linvel[0, 1] < 1.4
        assert data.subtree_com[0, 2] > 0.83
        assert not first.metrics["outside_range"][world]


def test_walk_starts_are_mirror_images():
    env = make(LEGS)
    model, sites = env.source_model(), []
    for side in range(2):
        physics = env.body.initial_state()._replace(
            qpos=env._start_qpos[side], qvel=env._start_qvel[side]
        )
        data = source_data(env, physics)
        bodies = ("talus", "tibia", "toes")
        order = "rl" if side == 0 else "lr"
        places = [
            data.body(f"{b}_{s}").xpos - data.body("pelvis").xpos for b in bodies for s in order
        ]
        speeds = [data.cvel[model.body(f"{b}_{s}").id, 3:] for b in bodies for s in order]
        sites.append(np.array(places + speeds) * ((1, 1, 1) if side == 0 else (-1, 1, 1)))
    # The model's own bones differ by millimetres.
    np.testing.assert_allclose(sites[0], sites[1], atol=5e-3)


# --- myo_hand_pen_twirl ------------------------------------------------------------------------


def pen_terms(obs):
    sizes = {"hand": 23, "place": 3, "qvel": 6, "direction": 3, "target": 3, "off": 3, "turn": 3}
    return split(obs, sizes | {"act": 39})


def test_pen_observation():
    env = make(PEN)
    model = env.source_model()
    home = model.body("pen").pos
    muscles = jax.jit(env.body.muscles)
    for _, after in stepped(PEN):
        pen = after.pipeline_state
        data, terms = source_data(env, pen.physics), pen_terms(after.obs)
        place, axis = data.body("pen").xpos, data.body("pen").xmat.reshape(3, 3)[:, 2]
        close(terms["hand"], data.qpos[:23])
        close(terms["place"], place)
        close(terms["qvel"], 0.01 * data.qvel[23:])
        close(terms["direction"], axis)
        close(terms["target"], pen.target)
        close(terms["off"], place - home)
        close(terms["turn"], axis - pen.target)
        close(terms["act"], data.act)
        found = jax.tree.map(np.asarray, muscles(pen.physics))
        check_muscles(
            env,
            {"length": found.length, "velocity": found.velocity, "force": 1e-3 * found.force},
            data,
        )


def expected_pen_terms(place, axis, act, home, target):
    distance, cosine = np.linalg.norm(place - home), axis @ target
    near = distance < 0.075
    return {
        "distance": -distance,
        "alignment": cosine,
        "activation": -5 * np.linalg.norm(act) / 39,
        "dropped": -5.0 * (not near),
        "bonus": 10.0 * near * ((cosine > 0.9) + 5 * (cosine > 0.95)),
    }


def test_pen_reward_and_end():
    env, seen = make(PEN), set()
    home = env.source_model().body("pen").pos
    for _, after in stepped(PEN):
        pen = after.pipeline_state
        data = source_data(env, pen.physics)
        place, axis = data.body("pen").xpos, data.body("pen").xmat.reshape(3, 3)[:, 2]
        expected = expected_pen_terms(place, axis, data.act, home, np.asarray(pen.target))
        check_reward(after, expected)
        assert bool(after.done) == (expected["dropped"] < 0)
        seen.add(bool(after.done))
    assert seen == {True, False}


@pytest.mark.parametrize("tilt", [0.2, 0.4, 0.6])
@pytest.mark.parametrize("off", [0.07, 0.08])
def test_pen_bonus_and_drop(tilt, off):
    """Bonuses above cosines 0.9 and 0.95, none once the pen is dropped."""
    env = make(PEN)
    home = env.source_model().body("pen").pos
    physics = env.body.initial_state()
    physics = physics._replace(qpos=physics.qpos.at[2].add(off))
    axis = np.asarray(myo_hand_pen_twirl.pen_direction(physics), float)
    across = np.cross(axis, [0, 1, 0]) / np.linalg.norm(np.cross(axis, [0, 1, 0]))
    target = np.cos(tilt) * axis + np.sin(tilt) * across
    pen = start(PEN).pipeline_state._replace(physics=physics, target=jnp.asarray(target))
    expected = expected_pen_terms(home + [0, 0, off], axis, np.zeros(39), home, target)
    assert (expected["dropped"] < 0) == (off > 0.075)
    found = env.reward_terms(pen)
    for name, value in expected.items():
        assert float(found[name]) == pytest.approx(value, abs=1e-4), name


def test_pen_targets():
    """The vertical turned by up to 1 rad about y, then about x."""
    for tilt in ((0.3, -0.7), (-1.0, 1.0), (0.0, 0.5)):
        turn = np.array([1.0, 0, 0, 0])
        mujoco.mju_quatIntegrate(turn, np.array([tilt[0], 0, 0]), 1.0)
        mujoco.mju_quatIntegrate(turn, np.array([0, tilt[1], 0]), 1.0)
        expected = np.zeros(3)
        mujoco.mju_rotVecQuat(expected, np.array([0.0, 0, 1]), turn)
        close(myo_hand_pen_twirl.target_direction(jnp.array(tilt)), expected)
    target = start(PEN).pipeline_state.target
    np.testing.assert_allclose(jnp.linalg.norm(target, axis=1), 1.0, rtol=1e-6)
    assert (target[:, 2] > np.cos(1.0) ** 2).all()


def test_pen_lies_in_the_open_hand():
    """In C MuJoCo, all contacts of the source on: it hardly moves until the hand does."""
    env = make(PEN)
    model = env.source_model()
    data = mujoco.MjData(model)
    data.qpos[:] = env.body.source_qpos(start(PEN).pipeline_state.physics.qpos[0])
    assert data.joint("pro_sup_r").qpos[0] == -1.5 and not data.qpos[1:23].any()
    mujoco.mj_forward(model, data)
    pen = model.geom("pen").id
    touching = {model.geom(g).name for c in data.contact if pen in c.geom for g in c.geom}
    assert {"2mcskin_coll_r", "5proxph_coll_r"} <= touching
    assert min(contact.dist for contact in data.contact) > -1.5e-3
    home, axis = data.body("pen").xpos.copy(), data.body("pen").xmat.reshape(3, 3)[:, 2].copy()
    for step in range(250):
        mujoco.mj_step(model, data)
        moved = np.linalg.norm(data.body("pen").xpos - home)
        assert moved < (0.005 if step < 50 else 0.05)
    assert data.body("pen").xmat.reshape(3, 3)[:, 2] @ axis > 0.9


def test_pen_contacts_match_c_mujoco():
    """After ten actions hand and pen are where C MuJoCo, without nails, puts them."""
    env = make(PEN)
    model = env.source_model().__copy__()
    nails = [g for g in range(model.ngeom) if model.geom(g).name.endswith("coll_2_r")]
    model.geom_contype[nails] = model.geom_conaffinity[nails] = 0
    data = mujoco.MjData(model)
    state = start(PEN)
    data.qpos[:] = env.body.source_qpos(state.pipeline_state.physics.qpos[0])
    data.ctrl[:] = 1 / (1 + np.exp(2.5))
    for _ in range(10):
        state = compiled_step(PEN)(state, jnp.zeros((WORLDS, 39)))
        for _ in range(5):
            mujoco.mj_step(model, data)
    found = env.body.source_qpos(state.pipeline_state.physics.qpos[0])
    assert np.abs(found - data.qpos).max() < 1e-3
    assert np.linalg.norm(data.body("pen").xpos - env._place) > 0.01


# --- both --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [LEGS, PEN])
def test_action_maps(name):
    with pytest.raises(UserError, match="sigmoid"):
        tasks.make(name, action_map="sigmoyd")
    actions = jnp.array([-2.0, -1.0, 0.0, 0.5, 1.0, 2.0])
    clipped = np.clip(actions, -1, 1)
    found = action_maps.excitation(actions, make(name).config.action_map)
    np.testing.assert_allclose(found, 1 / (1 + np.exp(-5 * (clipped - 0.5))), rtol=1e-5)
