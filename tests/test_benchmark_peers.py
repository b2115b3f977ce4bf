"""The peers of the benchmark do what they are compared for."""

import dataclasses

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from conftest import jax_for_others, load_body

from mjx_qflex import algos, tasks
from mjx_qflex.algos.sac import SacConfig
from mjx_qflex.benchmarking import brax_sac, replays, sides, source_physics
from mjx_qflex.benchmarking.channel import Ended
from mjx_qflex.benchmarking.host_loop import CEnvironments, HostLoop, HostRing
from mjx_qflex.benchmarking.sides import Spec
from mjx_qflex.sizes import LoopConfig
from mjx_qflex.training import environments
from mjx_qflex.training import replay as ring
from mjx_qflex.training.collect import transition_spec
from mjx_qflex.types import Transition

CONFIG = LoopConfig(
    num_envs=4, batch_size=8, updates_per_step=3, prefill_transitions=8, replay_capacity=64,
    steps_per_epoch=5, reset_pool=4, eval_envs=2,
)  # fmt: skip
TINY = (
    "loop.steps_per_epoch=3", "loop.batch_size=8", "loop.replay_capacity=64", "algo.width=8",
    "loop.updates_per_step=2", "algo.depth=1", "loop.prefill_transitions=8",
)  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def as_others_need_it(tmp_path_factory):
    with jax_for_others(tmp_path_factory.mktemp("compiled")):
        yield


@pytest.fixture(scope="module")
def arm():
    load_body("arm")
    return tasks.make("arm_reach")


# The host loop.


@pytest.fixture(scope="module")
def host(arm):
    """The loop after one epoch."""
    sac = algos.make("sac", SacConfig(width=8, depth=1), environments.spec(arm))
    loop = HostLoop(arm, sac, CONFIG, threads=2)
    loop.epoch()
    return loop


def step_in_c(model, obs, action, steps):
    """Returns what C MuJoCo makes of an arm: its observed state [10] after an action."""
    data = mujoco.MjData(model)
    data.qpos[:], data.qvel[:], data.act[:] = obs[:2], obs[2:4], obs[4:10]
    data.ctrl[:] = 0.5 * (np.clip(action, -1.0, 1.0) + 1.0)
    mujoco.mj_step(model, data, steps)
    return np.concatenate([data.qpos, data.qvel, data.act])


def test_the_host_loops_transitions_are_c_mujocos(host, arm):
    stored = host.ring.sample((200,))
    assert len(np.unique(stored.reward)) > 15  # 28 were made: prefill and epoch
    model = arm.source_model()
    for i in range(40):
        expected = step_in_c(model, stored.obs[i], stored.action[i], arm.physics_steps)
        np.testing.assert_allclose(stored.next_obs[i, :10], expected, rtol=1e-4, atol=1e-5)
        miss = np.linalg.norm(stored.next_obs[i, 12:14])
        assert stored.reward[i] == pytest.approx(-miss + (miss < 0.03), abs=1e-5)
    assert (stored.discount == 1.0).all()  # an arm only times out


def test_the_host_loop_updates_as_often_as_asked(host):
    assert host.transitions == 8 + 5 * 4 and host.updates == 5 * 3
    assert int(host.learner.policy.opt_state[0].count) == 15
    assert all(seconds > 0.0 for seconds in host.seconds.values())


def test_c_worlds_step_like_c_mujoco_with_couplings_and_contacts():
    load_body("myo_legs")
    env = tasks.make("myo_leg_walk")
    made = CEnvironments(env, 3, threads=2)
    rng = np.random.default_rng(0)
    home = env.body.initial_state()
    physics = jax.tree.map(lambda x: jnp.stack([x] * 3), home)
    bent = physics.qpos.at[:, 7:].add(rng.uniform(0.0, 0.2, (3, env.body.nq - 7)))
    physics = physics._replace(qpos=bent, qvel=jnp.asarray(rng.normal(0.0, 0.1, (3, env.body.nv))))
    qpos, qvel = jax.vmap(lambda one: source_physics.to_source(env.body, one))(physics)
    np.testing.assert_allclose(qpos, env.body.source_qpos(physics.qpos), atol=1e-5)
    full = made.full_states(*map(np.asarray, (qpos, qvel, physics.act)))
    made.restart(np.arange(3), full)
    model = env.source_model()
    data = [mujoco.MjData(model) for _ in range(3)]
    for one, start in zip(data, full, strict=True):
        mujoco.mj_setState(model, one, start, mujoco.mjtState.mjSTATE_FULLPHYSICS)
    for _ in range(3):
        ctrl = rng.uniform(size=(3, model.nu)).astype(np.float32)
        made.advance(ctrl)
        for one, u in zip(data, ctrl, strict=True):
            one.ctrl[:] = u
            mujoco.mj_step(model, one, env.physics_steps)
    physics, acceleration = made.coordinates()
    expected = [
        source_physics.from_source(env.body, x.qpos, x.qvel) for x in data
    ]  # fmt: skip
    np.testing.assert_allclose(physics.qpos, [q for q, _ in expected], atol=1e-5)
    np.testing.assert_allclose(physics.qvel, [v for _, v in expected], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(physics.act, [x.act for x in data], atol=1e-6)
    assert np.isfinite(acceleration).all() and acceleration.shape == (3, env.body.nv)
    made.close()


def test_the_host_ring_keeps_the_newest_valid_ones():
    spec = Transition(*(jax.ShapeDtypeStruct(s, np.float32) for s in ((2,), (1,), (), (), (2,))))
    ring = HostRing(spec, 4, seed=0)
    for number in range(3):
        value = 10.0 * number
        step = jax.tree.map(lambda x, v=value: np.full((2, *x.shape), v, np.float32), spec)
        step.reward[1] += 1
        ring.add(step, np.array([True, number != 1]))
    assert set(ring.sample((200,)).reward) == {1.0, 10.0, 20.0, 21.0}


# Physics.


def test_the_task_on_raw_mjx_is_the_same_task(arm):
    """Without contacts and couplings the port differs from raw MJX by its fitted paths only."""
    raw = source_physics.on_raw_mjx(arm, reduced=True)
    key, states = jax.random.PRNGKey(0), []
    for env in (arm, raw):
        state = jax.jit(env.reset)(key)
        step = jax.jit(env.step)
        for number in range(5):
            action = jax.random.uniform(
                jax.random.fold_in(key, number), (env.action_size,), minval=-1.0
            )
            state = step(state, action)
        states.append(state)
    ported, through = states
    np.testing.assert_allclose(ported.obs, through.obs, atol=0.02)
    assert float(jnp.abs(ported.obs[:2] - arm.reset(key).obs[:2]).max()) > 0.1
    assert float(through.info["truncation"]) == 0.0


# brax's SAC.


def test_brax_updates_as_often_as_asked_with_networks_of_the_size_asked_for():
    env, found, compiled = tasks.make("chain_reach"), [], []

    def on_epoch(epoch):
        found.append(epoch)
        if len(found) == 3:
            raise Ended

    with pytest.raises(Ended):
        brax_sac.train(env, SacConfig(width=8, depth=1), CONFIG, 0, compiled.append, on_epoch)
    assert [epoch.updates for epoch in found] == [15, 15, 15]  # three after each vector step
    assert [epoch.transitions for epoch in found] == [20, 20, 20]
    assert all(epoch.seconds > 0.0 for epoch in found) and compiled[0] > 0.01
    networks = brax_sac.network_factory(SacConfig(width=8, depth=2))(
        observation_size=env.observation_size, action_size=env.action_size
    )
    parameters = networks.policy_network.init(jax.random.PRNGKey(0))
    ours = algos.make("sac", SacConfig(width=8, depth=2), environments.spec(env))
    sizes = jax.tree.map(jnp.size, ours.init(jax.random.PRNGKey(0)).policy.params)
    theirs = jax.tree.map(jnp.size, parameters)
    assert sum(jax.tree.leaves(theirs)) == sum(jax.tree.leaves(sizes))


# Replay.


@pytest.mark.parametrize("name", replays.BUFFERS)
def test_buffers_return_what_was_added(name):
    """Environment w at time t observes (w, t), and goes on to (w, t + 1)."""
    num_envs, rows = 3, 6
    spec = Transition(*(jax.ShapeDtypeStruct(s, jnp.float32) for s in ((2,), (1,), (), (), (2,))))
    layout = ring.Layout(spec, num_envs, num_envs * rows, episode_length=100)
    buffer = replays.BUFFERS[name](layout, (4, 4))
    content, add = buffer.init(), jax.jit(buffer.add)
    for time in range(10):  # the last six stay
        environment = jnp.arange(num_envs, dtype=jnp.float32)
        obs = jnp.stack([environment, jnp.full(num_envs, time, jnp.float32)], axis=1)
        step = Transition(
            obs, obs[:, :1], obs[:, 1], jnp.ones(num_envs), obs + jnp.array([[0.0, 1.0]])
        )
        content = add(content, step, jnp.zeros(num_envs, bool))
    sample = jax.jit(buffer.sample)
    draws = [sample(content, key) for key in jax.random.split(jax.random.PRNGKey(0), 20)]
    drawn = jax.tree.map(lambda *x: np.stack(x).ravel(), *draws)
    obs, next_obs = (x.reshape(320, 2) for x in (drawn.obs, drawn.next_obs))
    np.testing.assert_array_equal(next_obs - obs, np.tile([[0.0, 1.0]], (320, 1)))
    np.testing.assert_array_equal(drawn.reward, obs[:, 1])
    # Pairs of neighbours need the newest time as a successor.
    times = range(4, 9) if name == "flashbax_pairs" else range(4, 10)
    assert {tuple(x) for x in obs} == {(w, t) for w in range(3) for t in times}


def test_buffers_are_filled_before_they_are_measured():
    env = tasks.make("chain_reach")
    spec = transition_spec(env, environments.reset_shapes(env))
    layout = ring.Layout(spec, 4, 400, episode_length=20)
    buffer = replays.ours(layout, (2, 8))
    content = replays.fill(buffer, buffer.init(), layout)
    assert int(content.window) == 100 and bool(content.valid.all())


# The sides.


class Rounds:
    """Takes what a side reports, and ends it after two rounds."""

    def __init__(self):
        self.reports = []

    def report(self, **facts):
        self.reports.append(facts)
        if len(self.reports) == 3:
            raise Ended


@pytest.mark.parametrize(
    "side, task, quantities",
    [
        ("host", "arm_reach", {"transitions/s", "updates/s"}),
        ("physics", "arm_reach", {"physics steps/s"}),
        ("c", "arm_reach", {"physics steps/s"}),
        ("replay", "chain_reach", {"added transitions/s", "sampled transitions/s"}),
        ("flashbax_items", "chain_reach", {"added transitions/s", "sampled transitions/s"}),
        ("flashbax_pairs", "chain_reach", {"added transitions/s", "sampled transitions/s"}),
        ("brax_queue", "chain_reach", {"added transitions/s", "sampled transitions/s"}),
    ],
)
def test_sides_report_rates(side, task, quantities):
    spec, rounds = Spec(side, task, "sac", "cpu", 4, TINY, seconds=0.01), Rounds()
    sides.serve(spec, rounds)
    ready, *measured = rounds.reports
    assert ready["compile_seconds"] >= 0.0
    for report in measured:
        assert set(report["rates"]) == quantities
        assert all(rate > 0.0 for rate in report["rates"].values())
        if side == "host":
            assert sum(report["shares"].values()) == pytest.approx(1.0)
            ratio = report["rates"]["updates/s"] / report["rates"]["transitions/s"]
            assert ratio == pytest.approx(2 / 4)


def test_all_sides_begin_alike():
    spec = Spec("ours", "chain_reach", "sac", "cpu", 4, TINY)
    config = spec.config()
    assert config.loop.prefill_transitions == 8
    assert dataclasses.replace(spec, side="brax").config() == config
    assert Spec.from_json(spec.as_json()) == spec
