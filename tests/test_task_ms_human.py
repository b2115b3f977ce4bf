"""Running and dancing, term by term against values computed in NumPy from C MuJoCo's data."""

import functools

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from c_mujoco import source_data
from conftest import load_body
from observation_terms import human_terms
from scipy.spatial.transform import Rotation
from task_protocol import WORLDS, compiled_step, make, start

from mjx_qflex import motions, tasks
from mjx_qflex.errors import UserError
from mjx_qflex.motions import anatomy
from mjx_qflex.physics import muscle
from mjx_qflex.porting import parity, recipe
from mjx_qflex.tasks import ms_human

GROUPS = 8  # of WORLDS random states
RUN, DANCE = "ms_human_run", "ms_human_dance"
KEY_BODIES = ("pelvis", "torso", "lunate_r", "lunate_l", "calcn_r", "calcn_l")


def random_physics(env, offset, rng):
    """Near the reference at `offset`, tilted, turned a little (dancers: anywhere), moving."""
    body, model = env.body, env.source_model()
    qpos = np.array(env.reference.qpos(offset), float)
    turn = np.array([*rng.normal(size=2) * 0.25, rng.normal() * 0.2])
    mujoco.mju_quatIntegrate(qpos[3:7], turn, 1.0)
    qpos[:3] += 0.03 * rng.normal(size=3)
    qpos[3:7] *= rng.choice([-1.0, 1.0])  # the same pose
    low, high = np.array([model.joint(name).range for name in body.joint_names[1:]]).T
    qpos[7:] = np.clip(qpos[7:] + 0.06 * rng.normal(size=len(low)), low, high)
    return body.initial_state()._replace(
        qpos=jnp.asarray(qpos, jnp.float32),
        qvel=env.reference.qvel(offset) + 0.3 * rng.normal(size=body.nv).astype(np.float32),
        act=jnp.asarray(rng.uniform(0.0, 0.3, size=body.nu), jnp.float32),
    )


@functools.cache
def stepped(name):
    """States after one action from `GROUPS * WORLDS` random ones, and C MuJoCo's data of each.

    They fall on knots of the reference's tables, between which landmarks are interpolated.
    """
    env, rng, first = make(name), np.random.default_rng(0), start(name)
    knots = env.reference.qpos_table.shape[0] - 1
    found = []
    for _ in range(GROUPS):
        offsets = rng.integers(0, knots, WORLDS) * (env.reference.period / knots)
        physics = [random_physics(env, offset, rng) for offset in offsets]
        physics = jax.tree.map(lambda *x: jnp.stack(x), *physics)
        walk = first.pipeline_state._replace(physics=physics, offset=offsets)
        action = jnp.asarray(rng.uniform(-1, 0, (WORLDS, env.action_size)), jnp.float32)
        after = compiled_step(name)(first.replace(pipeline_state=walk), action)
        for world in range(WORLDS):
            state = jax.tree.map(lambda x, w=world: x[w], after)
            found.append((state, source_data(env, state.pipeline_state.physics)))
    return found


def reference_data(env, time):
    """C MuJoCo's kinematics of the reference."""
    model = env.source_model()
    data = mujoco.MjData(model)
    data.qpos[:] = env.body.source_qpos(np.asarray(env.reference.qpos(time)))
    mujoco.mj_kinematics(model, data)
    return data


def nearer(target, qpos):
    """`target` with the sign of its root's quaternion nearer to that of `qpos`."""
    other = target.copy()
    other[3:7] *= -1.0
    return min(target, other, key=lambda q: np.linalg.norm(q - qpos))


def expected_health(name, data, miss):
    root = Rotation.from_quat(data.qpos[3:7], scalar_first=True)  # the identity at rest
    angles = root.as_euler("XYZ") if name == RUN else root.as_euler("ZYX")[1:]
    return (
        data.body("pelvis").xpos[2] >= 0.6
        and data.site("chest").xpos[2] >= 1.0
        and np.abs(angles).max() <= 0.4
        and np.linalg.norm(miss) <= 3.0
    )


@pytest.mark.parametrize("name", [RUN, DANCE])
def test_reward_terms_against_c_mujoco(name):
    env = make(name)
    health = []
    for state, data in stepped(name):
        walk = state.pipeline_state
        qpos = np.asarray(walk.physics.qpos)
        time = walk.offset + walk.physics.time
        target = nearer(np.array(env.reference.qpos(time)), qpos)
        health.append(expected_health(name, data, target - qpos))
        squared = np.sum((target - qpos)[7:] ** 2)
        terms = {"qpos": -(10 if name == RUN else 5) * squared, "healthy": 100.0 * health[-1]}
        if name == DANCE:
            there = reference_data(env, time)
            miss = [data.body(b).xpos - there.body(b).xpos for b in KEY_BODIES]
            terms["xpos"] = -100 * np.sum(np.square(miss))
        found = {key[7:]: v for key, v in state.metrics.items() if key.startswith("reward/")}
        assert found.keys() == terms.keys()
        for term, value in terms.items():
            assert float(found[term]) == pytest.approx(value, rel=1e-4, abs=1e-4), term
        assert float(state.reward) == pytest.approx(sum(terms.values()), rel=1e-4)
        assert bool(state.done) != health[-1]
    assert 0 < sum(health) < len(health)  # both kinds were among them


@pytest.mark.parametrize("name", [RUN, DANCE])
def test_observation_against_c_mujoco(name):
    env = make(name)
    for state, data in stepped(name):
        walk = state.pipeline_state
        terms = human_terms(env, state.obs)
        qpos = terms["qpos"]
        np.testing.assert_array_equal(qpos, walk.physics.qpos)
        np.testing.assert_array_equal(terms["qvel"], walk.physics.qvel)
        np.testing.assert_allclose(terms["act"], data.act, atol=1e-6)
        np.testing.assert_allclose(terms["pelvis"], data.body("pelvis").xpos, atol=1e-4)
        np.testing.assert_allclose(terms["sternum"], data.site("chest").xpos, atol=1e-4)
        now = walk.offset + walk.physics.time
        expected = nearer(np.array(env.reference.qpos(now)), qpos) - qpos
        np.testing.assert_allclose(terms["miss"], expected, atol=1e-5)
        assert terms["time"][0] == pytest.approx(0.02, abs=1e-6)
        assert terms["phase"][0] == pytest.approx(float(now / env.reference.period) % 1.0, abs=1e-5)
        # Paths are compiled: the port's tolerances (test_port_paths).
        assert np.sqrt(np.mean((terms["length"] - data.actuator_length) ** 2)) < 5e-4
        wrong = np.linalg.norm(terms["velocity"] - data.actuator_velocity)
        assert wrong < 0.1 * np.linalg.norm(data.actuator_velocity)
        wrong = np.linalg.norm(terms["force"] - 1e-3 * data.actuator_force)
        assert wrong < 0.05 * np.linalg.norm(1e-3 * data.actuator_force)


def test_force_of_c_mujocos_lengths_is_c_mujocos():
    body = make(DANCE).body
    of_muscles = jax.jit(functools.partial(muscle.force, body.muscle_constants))
    for state, data in stepped(DANCE):
        force = of_muscles(
            jnp.asarray(data.actuator_length, jnp.float32),
            jnp.asarray(data.actuator_velocity, jnp.float32),
            state.pipeline_state.physics.act,
        )
        peak = np.abs(data.actuator_force).max()
        np.testing.assert_allclose(force, data.actuator_force, rtol=1e-4, atol=1e-4 * peak)


def test_acceleration_against_c_mujoco():
    """In the air: the observed qacc is that of the last of ten physics steps."""
    env, rng, first = make(RUN), np.random.default_rng(1), start(RUN)
    body, offsets = env.body, jnp.linspace(0.0, 0.5, WORLDS)
    aloft = [random_physics(env, offset, rng) for offset in offsets]
    aloft = [x._replace(qpos=x.qpos.at[2].add(1.0)) for x in aloft]
    physics = jax.tree.map(lambda *x: jnp.stack(x), *aloft)
    walk = first.pipeline_state._replace(physics=physics, offset=offsets)
    action = jnp.asarray(rng.uniform(-1, 0, (WORLDS, env.action_size)), jnp.float32)
    obs = np.asarray(compiled_step(RUN)(first.replace(pipeline_state=walk), action).obs)
    model = env.source_model().__copy__()
    parity.stiffen_couplings(model)
    model.opt.disableflags |= int(mujoco.mjtDisableBit.mjDSBL_CONTACT)
    data = mujoco.MjData(model)
    joints = [model.joint(name).dofadr[0] for name in body.joint_names[1:]]
    for world in range(WORLDS):
        parity.set_source_state(body, data, aloft[world])
        data.ctrl[:] = 0.5 * (1.0 + action[world])
        for _ in range(ms_human.PHYSICS_STEPS):
            mujoco.mj_step(model, data)  # qacc stays that of the step's beginning
        found = obs[world, body.nq + body.nv : body.nq + 2 * body.nv]
        expected = data.qacc[[*range(6), *joints]]
        assert np.linalg.norm(found - expected) < 0.1 * np.linalg.norm(expected)


@functools.cache
def health_of(name):
    """Whether a pose is healthy when it is its own target."""
    env = make(name)

    def healthy(qpos):
        physics = env.body.initial_state()._replace(qpos=qpos)
        return env.is_healthy(physics, env.body.kinematics(physics), qpos)

    return env, jax.jit(healthy, compiler_options=env.compiler_options)


@pytest.mark.parametrize("heading", [0.0, 0.6, 1.7, 3.1, 4.5])
def test_a_dancer_may_turn_but_not_tilt_and_a_runner_neither(heading):
    for tilt, lean, upright in [(0.0, 0.0, True), (0.3, -0.3, True), (0.5, 0.0, False),
                                (0.0, 0.5, False)]:  # fmt: skip
        turn = Rotation.from_euler("ZYX", [heading, lean, tilt]).as_quat(scalar_first=True)
        for name in (RUN, DANCE):
            env, healthy = health_of(name)
            qpos = env.body.initial_state().qpos.at[3:7].set(jnp.asarray(turn, jnp.float32))
            straight = name == DANCE or heading == 0.0
            assert bool(healthy(qpos)) == (upright and straight), (name, tilt, lean)


def test_rotation_angles_invert_their_rotation():
    turn = Rotation.from_euler("XYZ", [0.3, -0.2, 0.25])
    angles = ms_human.rotation_angles(jnp.asarray(turn.as_matrix(), jnp.float32))
    np.testing.assert_allclose(angles, [0.3, -0.2, 0.25], atol=1e-6)
    turn = Rotation.from_euler("ZYX", [2.5, -0.2, 0.3])
    angles = ms_human.heading_angles(jnp.asarray(turn.as_matrix(), jnp.float32))
    np.testing.assert_allclose(angles, [0.3, -0.2, 2.5], atol=1e-6)


@pytest.mark.parametrize("name", [RUN, DANCE])
def test_reset_is_on_the_reference(name):
    env, state = make(name), start(name)
    for world in range(WORLDS):
        physics, offset, _ = jax.tree.map(lambda x, w=world: x[w], state.pipeline_state)
        np.testing.assert_allclose(physics.qpos, env.reference.qpos(offset), atol=1e-6)
        np.testing.assert_allclose(physics.qvel, env.reference.qvel(offset), atol=1e-5)
        assert not physics.act.any() and not state.metrics["outside_range"][world]


def turning(body, path):
    """A motion file for `body`: joints wave while it walks ahead and turns once about itself."""
    names = anatomy.of(body.name)
    part = np.linspace(0.0, 1.0, 61)
    home = np.array(body.initial_state().qpos)
    columns = {"time": 1.2 * part}
    for i, joint in enumerate(name for name in body.joint_names if name not in names.root):
        wave = 0.1 * np.sin(2 * np.pi * part + i) + 0.1
        columns[joint] = home[body.qpos_index(joint)] + wave * (1 if i % 2 else 0.5)
    ahead = 1.5 * part
    if len(names.root) == 1:
        root = np.tile(home[:7], (len(part), 1))
        root[:, :2] += ahead[:, None] * names.forward
        turn = Rotation.from_rotvec(np.outer(2 * np.pi * part, [0, 0, 1])) * Rotation.from_quat(
            home[3:7], scalar_first=True
        )
        root[:, 3:] = turn.as_quat(scalar_first=True)
        for row in range(1, len(root)):
            root[row, 3:] *= np.sign(root[row, 3:] @ root[row - 1, 3:])
        columns |= {f"root{s}": x for s, x in zip(motions.FREE_SUFFIXES, root.T, strict=True)}
    else:
        for joint in names.root:
            columns[joint] = np.full(len(part), home[body.qpos_index(joint)])
        columns["pelvis_tx"] += ahead
        columns["pelvis_rotation"] += 2 * np.pi * part
    motions.write_columns(path, columns, "made for a test")


@pytest.fixture(params=sorted(anatomy.ANATOMIES))
def walker_and_dancer(request, monkeypatch, tmp_path):
    """Both tasks on one body, loaded once, with a motion that costs nothing to make."""
    body = load_body(request.param)
    monkeypatch.setattr(ms_human.porting, "load", lambda *_, **__: body)
    path = tmp_path / "turning.csv"
    turning(body, path)
    options = {"body": request.param, "motion": str(path)}
    return tasks.make("ms_human_walk", **options), tasks.make(DANCE, **options)


def moved_physics(env, time, rng):
    """Near the reference at `time`, moving; a scalar root is tilted, too."""
    body = env.body
    if body.tree.num_free:
        return random_physics(env, time, rng)
    noise = np.where(np.isin(body.joint_names, anatomy.of(body.name).root), 0.2, 0.06)
    qpos = np.array(env.reference.qpos(time)) + noise * rng.normal(size=body.nq)
    return body.initial_state()._replace(
        qpos=jnp.asarray(qpos, jnp.float32),
        qvel=env.reference.qvel(time) + 0.3 * rng.normal(size=body.nv).astype(np.float32),
        act=jnp.asarray(rng.uniform(0.0, 0.3, size=body.nu), jnp.float32),
    )


def chest_position(names, data):
    chest = data.body(names.chest) if names.sternum is None else data.site(names.sternum)
    return chest.xpos


def check_observation(env, obs, data, miss, time):
    """Holds an observation to C MuJoCo's data, and to what the pose misses of its target."""
    names, terms = anatomy.of(env.body.name), human_terms(env, obs)
    np.testing.assert_allclose(terms["act"], data.act, atol=1e-6)
    assert np.sqrt(np.mean((terms["length"] - data.actuator_length) ** 2)) < 5e-4
    wrong = np.linalg.norm(terms["force"] - 1e-3 * data.actuator_force)
    assert wrong < 0.05 * np.linalg.norm(1e-3 * data.actuator_force)
    assert terms["phase"][0] == pytest.approx(time / 1.2 % 1.0, abs=1e-5)
    np.testing.assert_allclose(terms["pelvis"], data.body(names.pelvis).xpos, atol=1e-4)
    np.testing.assert_allclose(terms["sternum"], chest_position(names, data), atol=1e-4)
    np.testing.assert_allclose(terms["miss"], miss, atol=1e-5)


def test_rewards_and_observation_of_every_body(walker_and_dancer):
    """Both tasks' terms, at times between the knots of the tables, against C MuJoCo."""
    walker, dancer = walker_and_dancer
    body, names = walker.body, anatomy.of(walker.body.name)

    def all_of(state):
        physics = state.physics
        kinematics, muscles = body.kinematics(physics), body.muscles(physics)
        terms, target = [], None
        for env in (walker, dancer):
            target = env.target(state.offset + physics.time, physics.qpos)
            healthy = env.is_healthy(physics, kinematics, target.qpos)
            terms.append(env.reward_terms(physics, kinematics, muscles, target, healthy))
        qacc = jnp.zeros(body.nv)
        return walker._observe(state, qacc, kinematics, muscles, target.qpos), terms

    forward, up = np.array([*names.forward, 0.0]), np.array([0.0, 0.0, 1.0])
    axes = np.stack([np.cross(up, forward), -forward, up])
    at_rest = source_data(walker, body.initial_state())
    rest = at_rest.body(names.pelvis).xmat.reshape(3, 3).copy()
    compiled = jax.jit(all_of, compiler_options=body.compiler_options)
    rng, joints = np.random.default_rng(2), [n for n in body.joint_names if n not in names.root]
    places = [body.qpos_index(name) for name in joints]
    for time in rng.uniform(0.0, 3.0, 4).astype(np.float32):
        physics = moved_physics(walker, time, rng)
        state = ms_human.WalkState(physics, jnp.float32(time), jnp.int32(0))
        obs, (walking, dancing) = jax.tree.map(np.asarray, compiled(state))
        data, there = source_data(walker, physics), reference_data(walker, time)
        qpos, target = np.asarray(physics.qpos), np.array(walker.reference.qpos(time))
        if body.tree.num_free:
            target = nearer(target, qpos)
        squared = np.sum((target - qpos)[places] ** 2)
        speed = data.subtree_linvel[0]
        expected = {
            "qpos": -50 * squared,
            "qvel": -0.1 * float(jnp.sum((walker.reference.qvel(time) - physics.qvel) ** 2)),
            "actuation": -50 * 1e-3 * np.linalg.norm(data.actuator_force) / body.nu,
            "velocity": -5 * ((1.25 - speed @ forward) ** 2 + (speed @ axes[0]) ** 2),
        }
        for term, value in expected.items():
            loose = 0.02 if term == "actuation" and body.path_groups else 1e-3  # compiled paths
            assert float(walking[term]) == pytest.approx(value, rel=loose, abs=1e-4), term
        miss = [data.body(b).xpos - there.body(b).xpos for b in names.key_bodies()]
        assert float(dancing["qpos"]) == pytest.approx(-5 * squared, rel=1e-4)
        assert float(dancing["xpos"]) == pytest.approx(-100 * np.sum(np.square(miss)), rel=5e-3)
        turn = data.body(names.pelvis).xmat.reshape(3, 3) @ rest.T
        turn = Rotation.from_matrix(axes @ turn @ axes.T)
        height, chest_height = data.body(names.pelvis).xpos[2], chest_position(names, data)[2]
        near = np.linalg.norm(target - qpos) <= 3.0 and height >= 0.6 and chest_height >= 1.0
        for terms, angles in ((walking, turn.as_euler("XYZ")), (dancing, turn.as_euler("ZYX")[1:])):
            healthy = near and np.abs(angles).max() <= 0.4
            assert float(terms["healthy"]) == 100.0 * healthy
        check_observation(walker, obs, data, target - qpos, time)


@pytest.mark.parametrize("body", sorted(anatomy.ANATOMIES))
def test_the_table_of_names_is_right(body):
    """Landmarks exist, and lie where their names say when the body stands."""
    try:
        model = recipe.source_model(recipe.read(body))
    except UserError as error:
        pytest.skip(str(error))
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    names = anatomy.of(body)
    left = np.cross([0.0, 0.0, 1.0], [*names.forward, 0.0])
    places = {c: data.body(b).xpos for c, b in names.centre_bodies().items()}
    for high, low in (("shoulder", "hip"), ("hip", "knee"), ("knee", "ankle"), ("elbow", "wrist")):
        for side, sign in (("r", -1.0), ("l", 1.0)):
            above, below = places[f"{high}_{side}"], places[f"{low}_{side}"]
            assert above[2] > below[2] + 0.2
            assert sign * (above - data.body(names.pelvis).xpos) @ left > 0.03
    for side in ("r", "l"):  # toes are ahead of ankles
        ahead = places[f"toe_{side}"] - places[f"ankle_{side}"]
        assert ahead[:2] @ names.forward > 0.08
    assert 1.1 < chest_position(names, data)[2] < 1.5
    assert set(names.root) <= {model.joint(j).name for j in range(model.njnt)}
    assert set(names.key_bodies()) <= {model.body(b).name for b in range(model.nbody)}


def test_unknown_motion_and_body_are_refused():
    with pytest.raises(UserError, match="human_run"):
        motions.of_body("human_rum", make(RUN).body)
    with pytest.raises(UserError, match="ms_human"):
        tasks.make(RUN, body="ms_humann")
    with pytest.raises(UserError, match="paper"):
        tasks.make(DANCE, reward_set="code")
