"""The training scan: episode ends, compile counts, memory, reproducibility, broken environments."""

from dataclasses import replace
from functools import partial
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_envs import Counter, random_algorithm

from mjx_qflex import algos, devices, tasks
from mjx_qflex.errors import UserError
from mjx_qflex.sizes import LoopConfig
from mjx_qflex.training import loop as loop_module
from mjx_qflex.training import replay as ring
from mjx_qflex.training.aggregate import merge_metrics
from mjx_qflex.training.loop import make_loop
from mjx_qflex.training.program import Program, stepping_options
from mjx_qflex.types import Acted, EnvSpec

CONFIG = LoopConfig(
    num_envs=8,
    batch_size=16,
    updates_per_step=2,
    prefill_transitions=60,
    replay_capacity=8_000,
    steps_per_epoch=30,
    reset_pool=6,
    eval_envs=16,
)
KEY = jax.random.PRNGKey(0)


def build(config=CONFIG, **options):
    """A loop of a `Counter` environment, and that environment."""
    env = Counter(**options)
    return make_loop(env, random_algorithm(2, 1), config), env


def trained(loop, epochs, key=KEY):
    """A run after prefill and `epochs` epochs, and the metrics of each."""
    run, rows = loop.prefill(loop.init(key)), []
    for _ in range(epochs):
        run, metrics = loop.epoch(run)
        rows.append(jax.device_get(metrics))
    return run, rows


def written(run):
    """The ring's written rows on the host: transitions `[S, N, ...]` and the mask `[S, N]`."""
    replay = run.device.replay
    assert replay.window == replay.held.max()
    places = jnp.indices((int(replay.window), replay.valid.shape[1]))
    data = jax.device_get(ring._read(replay, *places))
    return data, np.asarray(replay.valid[: len(data.reward)])


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(a), jax.device_get(b))


@pytest.fixture(scope="module")
def healthy():
    """A run of four epochs without broken environments: (run, rows, env, loop)."""
    loop, env = build()
    run, rows = trained(loop, 4)
    return run, rows, env, loop


def test_next_observation_is_from_before_the_reset(healthy):
    data, valid = written(healthy[0])
    label, time = data.obs[..., 0], data.obs[..., 1]
    assert valid.all()
    np.testing.assert_array_equal(data.next_obs[..., 0], label)
    np.testing.assert_array_equal(data.next_obs[..., 1], time + 1)
    ended = (data.next_obs[..., 1] == 5) | ((label < 0.3) & (data.next_obs[..., 1] == 3))
    # What follows an end is a new episode, what follows any other step is the same one.
    np.testing.assert_array_equal(time[1:][ended[:-1]], 0)
    np.testing.assert_array_equal(time[1:][~ended[:-1]], data.next_obs[..., 1][:-1][~ended[:-1]])
    np.testing.assert_array_equal(label[1:][~ended[:-1]], label[:-1][~ended[:-1]])


def test_termination_does_not_bootstrap_and_a_time_out_does(healthy):
    data, _ = written(healthy[0])
    died = (data.obs[..., 0] < 0.3) & (data.next_obs[..., 1] == 3)
    assert died.any() and (data.next_obs[..., 1] == 5).any()
    np.testing.assert_array_equal(data.discount, np.where(died, 0.0, 1.0))


def test_acting_state_and_episode_sums_restart_with_the_episode(healthy):
    device = healthy[0].device
    time = np.asarray(device.env_state.obs[:, 1])
    np.testing.assert_array_equal(device.acting, time)
    np.testing.assert_array_equal(device.episode_length, time)
    assert (np.asarray(device.episode_return)[time == 0] == 0).all()


def test_metrics_describe_the_episodes(healthy):
    run, rows, _, _ = healthy
    data, _ = written(run)
    died = np.asarray(data.discount == 0)
    timed_out = np.asarray(data.next_obs[..., 1] == 5)
    totals, running = [], np.zeros(CONFIG.num_envs)
    for step, reward in enumerate(data.reward):
        running += reward
        ended = died[step] | timed_out[step]
        totals.append(np.where(ended, running, np.nan))
        running = np.where(ended, 0.0, running)
    last = slice(-4 * CONFIG.steps_per_epoch, None)  # without prefill
    merged = merge_metrics(rows)
    assert merged["episode/terminations"] == died[last].sum()
    assert merged["episode/timeouts"] == timed_out[last].sum()
    assert merged["episode/count"] == (died | timed_out)[last].sum()
    np.testing.assert_allclose(merged["episode/return"], np.nanmean(totals[last]), rtol=1e-5)
    lengths = np.where(died, 3, 5)[(died | timed_out)][-int(merged["episode/count"]) :]
    np.testing.assert_allclose(merged["episode/length"], lengths.mean(), rtol=1e-6)
    np.testing.assert_allclose(merged["reward"], data.reward[last].mean(), rtol=1e-5)
    np.testing.assert_allclose(merged["env/reward/toy"], merged["reward"], rtol=1e-6)
    assert merged["nonfinite_environments"] == 0


def test_no_episode_ended_means_no_mean():
    rows = [
        {"episode/count": 0, "episode/return": np.nan, "episode/length": np.nan, "x": 1.0},
        {"episode/count": 2, "episode/return": 3.0, "episode/length": 4.0, "x": 2.0},
    ]
    assert merge_metrics(rows)["episode/return"] == 3.0
    assert np.isnan(merge_metrics(rows[:1])["episode/return"])


def test_counters_are_python_ints(healthy):
    run = healthy[0]
    prefill = 8 * CONFIG.num_envs  # 60 transitions, rounded up to vector steps
    assert (run.epochs, run.transitions, run.updates) == (4, prefill + 4 * 30 * 8, 4 * 30 * 2)
    assert all(type(x) is int for x in (run.epochs, run.transitions, run.updates))
    assert run.learner["updates"] == run.updates


def test_each_program_is_traced_once_and_can_be_compiled_ahead():
    loop, env = build()
    assert loop.compile_seconds() == {} and env.traces["step"] == 0
    seconds = loop.compile()
    assert set(seconds) == {"init", "prefill", "epoch"} and min(seconds.values()) > 0
    assert env.traces["step"] == 2
    run, _ = trained(loop, 1)
    assert env.traces["step"] == 2 and loop.compile_seconds() == seconds
    loop.evaluate(run.learner, KEY)
    loop.evaluate_constant(jnp.zeros(1), KEY)
    loop.rollout(run.learner, KEY)
    assert env.traces["step"] == 5
    traces = dict(env.traces)
    for seed in range(2):
        run = loop.prefill(run)
        run, _ = loop.epoch(run)
        loop.evaluate(run.learner, jax.random.PRNGKey(seed))
        loop.evaluate_constant(jnp.ones(1), jax.random.PRNGKey(seed))
        loop.rollout(run.learner, jax.random.PRNGKey(seed))
    loop.init(jax.random.PRNGKey(1))
    assert env.traces == traces


@pytest.fixture(scope="module")
def breaking():
    """A run of three epochs with environments that break: (run, rows, env, loop)."""
    loop, env = build(poison_label=0.6)
    run, rows = trained(loop, 3)
    return run, rows, env, loop


def test_scan_equals_a_python_loop(breaking):
    _, _, env, loop = breaking
    start = loop.prefill(loop.init(KEY))
    device = jax.tree.map(jnp.copy, start.device)
    run, metrics = loop.epoch(start)

    step = jax.jit(partial(loop_module.train_step, env, random_algorithm(2, 1), CONFIG))
    rows = []
    for _ in range(CONFIG.steps_per_epoch):
        device, row = step(device)
        rows.append(row)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), run.device, device)
    for name in ("nonfinite_environments", "episode/count"):
        assert metrics[name] == sum(int(row[name]) for row in rows) > 0
    np.testing.assert_allclose(metrics["reward"], np.mean([r["reward"] for r in rows]), rtol=1e-5)


def peak_bytes(program, loop):
    """Bytes that the compiled epoch holds at once: arguments, results and temporaries."""
    program.compile(loop.shapes().device)
    memory = program.compiled.memory_analysis()
    return (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
    )


@pytest.mark.parametrize("dtype", get_args(ring.ObsDtype))
def test_compiled_epoch_holds_one_ring(dtype):
    sizes = {"replay_capacity": 500_000, "replay_obs_dtype": dtype}
    config = LoopConfig(**{**CONFIG.__dict__, **sizes})
    loop, env = build(config)
    assert loop.replay_bytes > 10 * 2**20
    assert peak_bytes(loop.programs["epoch"], loop) < 1.2 * loop.replay_bytes
    assert peak_bytes(loop.programs["prefill"], loop) < 1.2 * loop.replay_bytes
    # The same reading sees the second ring of a program that does not donate its argument.
    epoch = partial(loop_module._epoch, env, random_algorithm(2, 1), config)
    assert peak_bytes(Program(epoch), loop) > 1.9 * loop.replay_bytes


def test_nonfinite_environments_are_ended_counted_and_never_sampled(breaking):
    run, rows, _, _ = breaking
    data, valid = written(run)
    counted = sum(int(row["nonfinite_environments"]) for row in rows)
    in_epochs = valid[-3 * CONFIG.steps_per_epoch :]
    assert counted == (~in_epochs).sum() > 0
    for field in (data.action, data.reward, data.discount):
        np.testing.assert_array_equal(field[~valid], 0)
    # A broken environment's last observation is where the step before it led to.
    led_to, went_on = data.next_obs[:-1], data.obs[1:]
    before = ~valid[1:] & valid[:-1] & (led_to[..., 1] != 5) & (data.discount[:-1] > 0)
    np.testing.assert_array_equal(led_to[before], went_on[before])
    assert before.any()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(run.device)))
    # The row after a broken one starts a new episode.
    np.testing.assert_array_equal(data.obs[1:][~valid[:-1] & valid[1:]][:, 1], 0)
    batch = ring.sample(run.device.replay, KEY, (10_000,))
    assert (batch.next_obs[:, 0] > 0).all()  # filler would be 0
    for row in rows:
        assert all(np.isfinite(value) for value in row.values())


def sampling(sample):
    """The random algorithm with another way to draw actions."""
    algorithm = random_algorithm(2, 1)
    return algorithm._replace(
        policy=lambda learner: algorithm.policy(learner)._replace(sample=sample)
    )


def test_a_learner_that_acts_nan_ends_its_worlds():
    broken = sampling(lambda obs, state, key: Acted(jnp.full((obs.shape[0], 1), jnp.nan), state))
    loop = make_loop(Counter(), broken, CONFIG)
    run, metrics = loop.epoch(loop.init(KEY))
    assert metrics["nonfinite_environments"] == CONFIG.num_envs * CONFIG.steps_per_epoch
    assert not run.device.replay.valid.any()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(run.device)))


def test_the_pool_is_drawn_anew_after_its_steps(healthy):
    """Counted from the first step of the prefill, wherever epochs begin and end."""
    data, _ = written(healthy[0])
    steps = CONFIG.reset_pool_steps
    assert CONFIG.steps_per_epoch % steps, "or epochs would hide it"
    starts = []
    for period in (1, 2, 3):
        # The row after a step shows where its ended environments restarted.
        obs = data.obs[period * steps + 1 : (period + 1) * steps + 1]
        starts.append(set(obs[obs[..., 1] == 0][:, 0].tolist()))
        assert 1 < len(starts[-1]) <= CONFIG.reset_pool
    assert not starts[0] & starts[1] and not starts[1] & starts[2]


@pytest.mark.parametrize("num_seeds", [None, 2])
def test_two_epochs_of_five_steps_are_one_of_ten(num_seeds):
    """Bit for bit: environments, resets, the pool, the ring, the learner and the key."""
    env = Counter()
    algorithm = algos.make(
        "qflex", algos.entry("qflex").config_class(width=8, depth=1), EnvSpec(2, 1)
    )
    key = KEY if num_seeds is None else jnp.stack([KEY, KEY + 1])
    final = []
    for steps in (5, 10):
        config = replace(CONFIG, steps_per_epoch=steps, reset_pool_steps=3)
        loop = make_loop(env, algorithm, config, num_seeds)
        run = loop.prefill(loop.init(key))
        for _ in range(20 // steps):
            run, metrics = loop.epoch(run)
        assert (np.asarray(metrics["episode/count"]) > 0).all()
        final.append(jax.device_get(run.device))
    jax.tree.map(np.testing.assert_array_equal, *final)


def test_same_seed_same_run_bitwise(breaking):
    loop = breaking[-1]
    first, rows = trained(loop, 2)
    second, rows_again = trained(loop, 2)
    other, _ = trained(loop, 2, jax.random.PRNGKey(1))
    assert_same(first.device, second.device)
    assert_same(rows, rows_again)
    assert not np.array_equal(first.learner["weight"], other.learner["weight"])


def test_prefill_by_the_policy_stores_its_actions():
    env = Counter()
    always = sampling(lambda obs, state, key: Acted(jnp.full((obs.shape[0], 1), 0.25), state + 1))
    config = replace(CONFIG, prefill_actions="policy")
    loop = make_loop(env, always, config)
    data, valid = written(loop.prefill(loop.init(KEY)))
    assert valid.all() and np.all(data.action == 0.25)
    loop, _ = build()
    uniform, _ = written(loop.prefill(loop.init(KEY)))
    assert uniform.action.std() > 0.4


def test_without_updates_or_prefill_it_only_collects():
    config = LoopConfig(**{**CONFIG.__dict__, "updates_per_step": 0, "prefill_transitions": 0})
    loop, _ = build(config)
    run, metrics = loop.epoch(loop.prefill(loop.init(KEY)))
    assert run.updates == 0 and run.learner["updates"] == 0
    assert run.device.replay.window == CONFIG.steps_per_epoch
    assert not any(name.startswith("update/") for name in metrics)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_envs", 0),
        ("updates_per_step", -1),
        ("prefill_transitions", 9_000),
        ("prefill_actions", "none"),
        ("replay_capacity", -1),
        ("replay_obs_dtype", "float16"),
        ("matmul_precision", "float16"),
    ],
)
def test_impossible_sizes_are_refused(field, value):
    with pytest.raises(UserError, match=f"loop.{field}"):
        LoopConfig(**{**CONFIG.__dict__, field: value})


def test_ring_that_cannot_fit_is_refused_before_allocation():
    with pytest.raises(UserError, match=r"GiB.*loop\.replay_capacity"):
        loop, _ = build(LoopConfig(**{**CONFIG.__dict__, "replay_capacity": 10**12}))
        loop.check_fits(devices.free_bytes())


def test_a_state_that_cannot_fit_is_refused_before_allocation():
    loop, env = build(CONFIG)
    algorithm = algos.make(
        "sac", algos.entry("sac").config_class(width=2**16, depth=100), EnvSpec(2, 1)
    )
    with pytest.raises(UserError, match=r"the run's state needs .* GiB.*algo\.width"):
        make_loop(env, algorithm, CONFIG).check_fits(devices.free_bytes())


def test_compiler_options_of_the_environment_are_for_the_cpu(monkeypatch):
    env = Counter()
    assert stepping_options(env) == {}
    env.compiler_options = {"xla_cpu_enable_fast_math": False}
    assert stepping_options(env) == env.compiler_options
    env.compiler_options = {"no_such_option": 1}
    with pytest.raises(Exception, match="no_such_option"):
        make_loop(env, random_algorithm(2, 1), CONFIG).init(KEY)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert stepping_options(env) == {}


def test_4096_environments_in_one_scan():
    env = tasks.make("chain_reach", num_joints=8)
    config = LoopConfig(
        num_envs=4096,
        batch_size=512,
        prefill_transitions=8192,
        replay_capacity=100_000,
        steps_per_epoch=25,
        eval_envs=64,
    )
    loop = make_loop(env, random_algorithm(env.observation_size, env.action_size), config)
    run, rows = trained(loop, 2)
    assert run.transitions == 4096 * (2 + 50)
    # Every environment times out once, at 20 steps, in the first epoch and again in the second.
    assert [int(row["episode/timeouts"]) for row in rows] == [4096, 4096]
    assert sum(int(row["episode/terminations"]) for row in rows) == 0
    assert merge_metrics(rows)["episode/length"] == env.episode_length


def test_what_the_policy_gives_along_is_kept_with_the_transition():
    """Twice the action, and the acting state: each sample has those of its own step."""

    def sample(obs, state, key):
        action = jax.random.uniform(key, (obs.shape[0], 1), minval=-1.0)
        return Acted(action, state + 1, {"double": 2.0 * action, "step": state})

    loop = make_loop(Counter(), sampling(sample), replace(CONFIG, prefill_actions="policy"))
    run = loop.prefill(loop.init(KEY))
    batch = ring.sample(run.device.replay, jax.random.PRNGKey(3), (256,))
    np.testing.assert_array_equal(batch.extras["double"], 2.0 * batch.action)
    np.testing.assert_array_equal(batch.extras["step"], batch.obs[:, 1].astype(int))
    uniform = make_loop(Counter(), sampling(sample), CONFIG)
    run = uniform.prefill(uniform.init(KEY))
    batch = ring.sample(run.device.replay, jax.random.PRNGKey(3), (64,))
    assert not batch.extras["double"].any() and batch.action.any()


def test_an_offline_phase_learns_from_the_prefill_and_steps_nothing():
    updates = CONFIG.steps_per_epoch * CONFIG.updates_per_step
    config = replace(CONFIG, offline_updates=updates + 1)
    loop, env = build(config)
    phases = loop.phases(loop.phases(0)[0].transitions + 1)
    assert [phase.name for phase in phases] == ["prefill", "offline", "online"]
    run, rows = loop.init(loop.key([0])), []
    for phase in phases:
        while not phase.is_done(run):
            before = jax.device_get(run.device.env_state.obs)
            run, metrics = loop.advance(phase, run)
            rows.append((phase.name, jax.device_get(metrics)))
            same = np.array_equal(before, run.device.env_state.obs)
            assert same == (phase.name == "offline")
    names = [name for name, _ in rows]
    assert names == ["prefill", "offline", "offline", "online"]
    assert (run.epochs, run.updates) == (3, 3 * updates)
    assert int(run.learner["updates"]) == run.updates
    offline, online = rows[1][1], rows[3][1]
    assert set(offline) == set(online)
    assert np.isnan(offline["episode/return"]) and offline["update/updates"] > 0
    assert offline["replay_transitions"] > 0
    without = build()[0].phases(10**6)
    assert [phase.name for phase in without] == ["prefill", "online"]


def test_offline_updates_need_data_and_updates():
    for field in ("prefill_transitions", "updates_per_step"):
        with pytest.raises(UserError, match="loop.offline_updates=5 needs"):
            replace(CONFIG, offline_updates=5, **{field: 0})
