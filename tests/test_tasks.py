"""Every registered task keeps the environment protocol; walking against C MuJoCo and NumPy."""

import functools

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from c_mujoco import source_data
from observation_terms import human_terms
from random_states import c_data
from task_protocol import CHECKS, WORLDS, compiled_step, make, rollout

from mjx_qflex import tasks
from mjx_qflex.errors import UserError
from mjx_qflex.runner import assessment
from mjx_qflex.tasks import ms_human
from mjx_qflex.training import on_policy


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", sorted(tasks.TASKS))
def test_protocol(name, check):
    """A new task is checked without an edit here."""
    check(name)


def test_brax_ppo_trains_a_task_unchanged():
    from brax.training.agents.ppo import train as ppo

    seen = []
    # brax relies on rank promotion.
    with on_policy.jax_for_brax(jax.pmap), jax.numpy_rank_promotion("allow"):
        ppo.train(
            make("arm_reach"),
            num_timesteps=160,
            episode_length=60,
            num_envs=4,
            batch_size=4,
            num_minibatches=2,
            unroll_length=5,
            num_updates_per_batch=1,
            num_evals=2,
            num_eval_envs=4,
            progress_fn=lambda steps, metrics: seen.append(metrics["eval/episode_reward"]),
        )
    assert len(seen) == 2 and np.isfinite(seen).all()


# --- arm_reach ---------------------------------------------------------------------------------


def test_arm_targets_are_reachable_and_the_hand_is_where_mujoco_puts_it():
    env = make("arm_reach")
    model = env.source_model()
    data = mujoco.MjData(model)
    start, end, _, _ = rollout("arm_reach")
    assert (jnp.linalg.norm(start.pipeline_state.target, axis=1) < 0.6).all()
    for world in range(WORLDS):
        arm = jax.tree.map(lambda x, world=world: x[world], end.pipeline_state)
        data.qpos[:], _ = env.render_qpos(arm)
        mujoco.mj_kinematics(model, data)
        np.testing.assert_allclose(env.hand(arm.physics), data.site("hand").xpos[:2], atol=1e-5)
        miss = np.linalg.norm(arm.target - data.site("hand").xpos[:2])
        distance = end.metrics["reward/distance"][world]
        assert -float(distance) == pytest.approx(miss, abs=1e-5)


# --- ms_human_walk -----------------------------------------------------------------------------


@functools.cache
def walked():
    """One world of the walking task, four actions after a reset, next to C MuJoCo's view of it."""
    env = make("ms_human_walk")
    state, _, _, _ = rollout("ms_human_walk")
    step = compiled_step("ms_human_walk")
    for key in jax.random.split(jax.random.PRNGKey(6), 4):
        action = jax.random.uniform(key, (WORLDS, env.action_size), minval=-1.0, maxval=0.0)
        state = step(state, action)
    return env, state


@functools.cache
def derived():
    """Kinematics and muscles of the walking body, compiled."""
    body = make("ms_human_walk").body
    return jax.jit(
        lambda physics: (body.kinematics(physics), body.muscles(physics)),
        compiler_options=body.compiler_options,
    )


def test_walk_starts_on_the_reference():
    env = make("ms_human_walk")
    start, _, _, _ = rollout("ms_human_walk")
    for world in range(WORLDS):
        walk = jax.tree.map(lambda x, world=world: x[world], start.pipeline_state)
        terms = human_terms(env, start.obs[world])
        np.testing.assert_allclose(terms["miss"], 0.0, atol=1e-6)
        np.testing.assert_allclose(terms["qvel"], env.reference.qvel(walk.offset), atol=1e-5)
        assert not terms["act"].any()
        assert terms["phase"][0] == pytest.approx(float(walk.offset) / 1.14, abs=1e-5)
        assert not start.metrics["outside_range"][world]
        data = source_data(env, walk.physics)
        assert np.sqrt(np.mean((terms["length"] - data.actuator_length) ** 2)) < 1e-4
        wrong = np.linalg.norm(terms["velocity"] - data.actuator_velocity)
        assert wrong < 0.02 * np.linalg.norm(data.actuator_velocity)


def test_walk_observation_against_c_mujoco():
    env, state = walked()
    for world in range(WORLDS):
        walk = jax.tree.map(lambda x, world=world: x[world], state.pipeline_state)
        data = source_data(env, walk.physics)
        terms = human_terms(env, state.obs[world])
        np.testing.assert_allclose(terms["pelvis"], data.body("pelvis").xpos, atol=1e-4)
        np.testing.assert_allclose(terms["sternum"], data.site("chest").xpos, atol=1e-4)
        np.testing.assert_allclose(terms["act"], data.act, atol=1e-6)
        # Paths are compiled: half a millimetre RMS, and what follows from it. Some joints have left
        # the fitted range by now, where moment arms stay what they are at its edge.
        assert np.sqrt(np.mean((terms["length"] - data.actuator_length) ** 2)) < 5e-4
        wrong = np.linalg.norm(terms["velocity"] - data.actuator_velocity)
        assert wrong < 0.15 * np.linalg.norm(data.actuator_velocity)
        wrong = np.linalg.norm(terms["force"] - 1e-3 * data.actuator_force)
        assert wrong < 0.05 * np.linalg.norm(1e-3 * data.actuator_force)
        assert terms["time"][0] == pytest.approx(0.08, abs=1e-6)
        phase = (0.08 + float(walk.offset)) / 1.14 % 1.0
        assert terms["phase"][0] == pytest.approx(phase, abs=1e-5)


def expected_terms(env, walk, data, reward_set, time):
    """Eq. 32 in NumPy, from C MuJoCo's data."""
    physics = jax.tree.map(np.asarray, walk.physics)
    target = np.asarray(env.reference.qpos(walk.offset + time))
    target_qvel = np.asarray(env.reference.qvel(walk.offset + time))
    squared = np.sum((target_qvel - physics.qvel) ** 2)
    vx, vy, _ = data.subtree_linvel[0]
    nu = env.body.nu
    paper = reward_set == "paper"
    effort = np.linalg.norm(data.actuator_force) / 1000 if paper else np.linalg.norm(physics.act)
    return {
        "qpos": -50 * np.sum((target[7:] - physics.qpos[7:]) ** 2),
        "qvel": -0.1 * (squared if paper else np.sqrt(squared)),
        "actuation": -(50 if paper else 1) * effort / nu,
        "velocity": -5 * (vx**2 + (1.25 + vy) ** 2),
        "healthy": 100.0,
    }


@pytest.mark.parametrize("reward_set", ["paper", "code"])
def test_walk_reward_against_numpy(reward_set):
    env, state = walked()
    env = with_reward_set(env, reward_set)
    for world in range(WORLDS):
        walk = jax.tree.map(lambda x, world=world: x[world], state.pipeline_state)
        physics = walk.physics
        data = source_data(env, physics)
        time = 0.06 if reward_set == "code" else 0.08
        target = env.target(walk.offset + time, physics.qpos)
        kinematics, muscles = derived()(physics)
        healthy = env.is_healthy(physics, kinematics, target.qpos)
        found = env.reward_terms(physics, kinematics, muscles, target, healthy)
        expected = expected_terms(env, walk, data, reward_set, time)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert float(found[name]) == pytest.approx(value, rel=0.02, abs=1e-4), name
        if reward_set == "paper":
            for name, value in found.items():
                assert float(state.metrics[f"reward/{name}"][world]) == pytest.approx(
                    float(value), rel=1e-3, abs=1e-4
                )


class Waiting:
    """A body that does not move: time passes, and all else is the body's own."""

    def __init__(self, body):
        self._body = body

    def __getattr__(self, name):
        return getattr(self._body, name)

    def advance(self, state, ctrl, num_steps):
        later = state._replace(time=state.time + num_steps * self._body.timestep)
        return later, jnp.zeros(self._body.nv)


def with_reward_set(env, reward_set, **changes):
    """The same task and body under another reward set, without loading the body again."""
    other = object.__new__(ms_human.MsHumanWalk)
    other.__dict__ = env.__dict__ | {"rewards": ms_human.WALK_REWARDS[reward_set]} | changes
    return other


@pytest.mark.parametrize("reward_set", ["paper", "code"])
def test_time_limit_and_phase_of_both_sets(reward_set):
    env = make("ms_human_walk")
    env = with_reward_set(env, reward_set, body=Waiting(env.body))
    start, _, _, _ = rollout("ms_human_walk")
    steps = jnp.full(WORLDS, env.episode_length - 1, jnp.int32)
    late = start.replace(pipeline_state=start.pipeline_state._replace(steps=steps))
    step = jax.jit(jax.vmap(env.step), compiler_options=env.compiler_options)
    after = step(late, jnp.full((WORLDS, env.action_size), -1.0))
    code = reward_set == "code"
    assert after.done.tolist() == [float(code)] * WORLDS
    assert after.info["truncation"].tolist() == [float(not code)] * WORLDS
    for world in range(WORLDS):
        offset = 0.0 if code else float(start.pipeline_state.offset[world])
        phase = human_terms(env, after.obs[world])["phase"][0]
        assert phase == pytest.approx((0.02 + offset) / 1.14 % 1.0, abs=1e-5)


def test_health():
    env = make("ms_human_walk")
    start, _, _, _ = rollout("ms_human_walk")
    physics = jax.tree.map(lambda x: x[0], start.pipeline_state.physics)

    def healthy(qpos, target):
        moved = physics._replace(qpos=qpos)
        return bool(env.is_healthy(moved, derived()(moved)[0], target))

    good = physics.qpos
    assert healthy(good, good)
    low = good.at[2].set(0.55)
    assert not healthy(low, low)
    for axis in range(3):
        tilted = np.array(good, float)
        turn = np.zeros(3)
        turn[axis] = 0.6
        mujoco.mju_quatIntegrate(tilted[3:7], turn, 1.0)
        assert not healthy(jnp.asarray(tilted, jnp.float32), good)
    assert not healthy(good, good.at[1].add(3.1))
    assert healthy(good, good.at[1].add(2.9))


def test_action_maps():
    actions = jnp.array([-2.0, -1.0, 0.0, 0.5, 1.0, 2.0])
    linear = ms_human.excitation(actions, "linear")
    np.testing.assert_allclose(linear, [0.0, 0.0, 0.5, 0.75, 1.0, 1.0])
    graded = ms_human.excitation(actions, "exponential")
    assert graded[0] == graded[1] == 0.0  # rest is no excitation at all
    middle = [(np.exp(8 * x) - 1) / (np.exp(8) - 1) for x in (0.5, 0.75)]
    np.testing.assert_allclose(graded[2:], [*middle, 1.0, 1.0], rtol=1e-5)
    with pytest.raises(UserError, match="action map"):
        ms_human.MsHumanWalk(ms_human.MsHumanWalkConfig(action_map="cubic"))


def test_unknown_reward_set_is_refused():
    with pytest.raises(UserError, match="paper"):
        tasks.make("ms_human_walk", reward_set="papper")


@pytest.mark.parametrize("name", ["h1_balance", "h1_run", "smpl_jump"])
def test_to_be_idle_is_to_hold_the_start_pose(name):
    """There the servos are without force, as no action with equal entries could make them."""
    env = make(name)
    start = env.body.initial_state()._replace(qpos=env.start)
    ctrl = np.asarray(env.targets(assessment.idle_action(env)))
    np.testing.assert_allclose(c_data(env, start, ctrl).actuator_force, 0.0, atol=1e-2)  # N m
    assert np.ptp(env.idle_action) > 0.1 and np.abs(env.idle_action).max() <= 1.0
