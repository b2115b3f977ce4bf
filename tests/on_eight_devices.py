"""One run on eight devices, which are virtual: `test_devices.py` runs this file in a process of its
own, since the number of devices is fixed when JAX starts."""

import contextlib
import dataclasses
import re
from functools import partial

import jax
import numpy as np
import pytest
import references
import toy_envs
from jax.sharding import PartitionSpec
from toy_envs import Counter, random_algorithm

from mjx_qflex import algos
from mjx_qflex.algos import qflex
from mjx_qflex.parallel import AXIS
from mjx_qflex.runner import checkpoint
from mjx_qflex.sizes import LoopConfig
from mjx_qflex.training import environments, sharding
from mjx_qflex.training.loop import make_loop
from mjx_qflex.training.state import RunState
from mjx_qflex.types import EnvSpec

NUMBER, OBS, ACT = 8, 5, 3
ROWS = 6  # of each device's batch; no algorithm below draws this many of anything else
OFF_POLICY = [name for name, entry in algos.ALGOS.items() if not entry.on_policy]
TINY = {
    "width": 8, "critic_width": None, "depth": 1, "ascent_steps": 2, "euler_steps": 2,
    "diffusion_steps": 3, "particles": 2, "reverse_samples": 4, "entropy_samples": 20,
    "entropy_states": NUMBER * ROWS, "alpha_period": 2, "renorm_warmup": 1, "entropy": True,
}  # fmt: skip
KEY = jax.random.PRNGKey(0)


# Virtual devices compute on the threads of one pool, and one that waits for the others keeps its
# thread: each program is waited for before the next one begins, or they may wait for ever.


def trained(loop):
    """A run after one epoch: (run, where it began, metrics), the latter two on the host."""
    start = jax.block_until_ready(loop.init(loop.key([0])).device)
    copy = jax.device_get(start)
    filled = loop.prefill(RunState(start))
    jax.block_until_ready(filled.device)
    run, metrics = loop.epoch(filled)
    return run, copy, jax.device_get(metrics)


@pytest.fixture(scope="module")
def mesh():
    assert len(jax.devices()) == NUMBER
    return sharding.make_mesh()


def configured(name, **options):
    config = algos.entry(name).presets["default"]
    return dataclasses.replace(config, **{k: v for k, v in options.items() if hasattr(config, k)})


@contextlib.contextmanager
def numbers_of_the_whole_batch(monkeypatch):
    """While traced on a device, each row of a batch gets the random numbers that it would get were
    the whole batch on one device: those of all rows are drawn, and the own ones kept."""

    def of_own_rows(draw, key, *arguments, **options):
        size, *rest = arguments or ((),)
        shape = size if isinstance(size, tuple) else (size,)
        if ROWS not in shape:
            return draw(key, *arguments, **options)
        axis = shape.index(ROWS)
        whole = (*shape[:axis], NUMBER * ROWS, *shape[axis + 1 :])
        drawn = draw(key, whole if isinstance(size, tuple) else whole[0], *rest, **options)
        start = ROWS * jax.lax.axis_index(AXIS)
        return jax.lax.dynamic_slice_in_dim(drawn, start, ROWS, axis)

    with monkeypatch.context() as patch:
        for name in ("normal", "uniform", "randint", "split"):
            patch.setattr(jax.random, name, partial(of_own_rows, getattr(jax.random, name)))
        yield


def on_each_device(mesh, update):
    """`update` over the mesh; learner and metrics come back once from each device, `[D, ...]`."""

    def each(learner, batch, key):
        learner, metrics = update(learner, batch, key)
        return jax.tree.map(lambda x: x[None], (learner, metrics))

    split, same = PartitionSpec(AXIS), PartitionSpec()
    mapped = jax.shard_map(
        each, mesh=mesh, in_specs=(same, split, same), out_specs=split, check_vma=False
    )
    return jax.jit(mapped)


def assert_close(first, second, relative=1e-5):
    """Equal to 1e-5 of each array's largest entry."""

    def check(x, y):
        scale = max(np.abs(y).max(initial=0.0), 1e-2)
        np.testing.assert_allclose(x, y, rtol=relative, atol=relative * scale)

    jax.tree.map(check, jax.device_get(first), jax.device_get(second))


@pytest.mark.usefixtures("quick_compilation")
@pytest.mark.parametrize("name", OFF_POLICY)
def test_an_update_of_eight_parts_is_that_of_the_whole_batch(mesh, monkeypatch, name):
    monkeypatch.setattr(qflex, "SUPERIORITY_STATES", NUMBER * ROWS)
    config = configured(name, **TINY)
    algorithm = algos.make(name, config, EnvSpec(OBS, ACT))
    update, everywhere = jax.jit(algorithm.update), on_each_device(mesh, algorithm.update)
    learner = jax.jit(algorithm.init)(jax.random.key(0))
    for step in range(4):
        batch = references.random_batch(step, OBS, ACT, NUMBER * ROWS)
        key = jax.random.key(step)
        with numbers_of_the_whole_batch(monkeypatch):
            copies, metrics = jax.device_get(everywhere(learner, batch, key))
        learner, expected = update(learner, batch, key)
        jax.tree.map(lambda x: np.testing.assert_array_equal(x, x[:1].repeat(NUMBER, 0)), copies)
        assert_close(jax.tree.map(lambda x: x[0], copies), learner)
        assert_close({k: v.mean() for k, v in metrics.items()}, expected)


CONFIG = LoopConfig(
    num_envs=16, batch_size=32, updates_per_step=2, prefill_transitions=60, replay_capacity=8_000,
    steps_per_epoch=20, reset_pool=16, eval_envs=16,
)  # fmt: skip


@pytest.fixture(scope="module")
def toys(mesh):
    """The toy loops of one device and of eight, and `trained` on the eight."""
    alone = make_loop(Counter(), random_algorithm(2, 1), CONFIG)
    shared = make_loop(Counter(), random_algorithm(2, 1), CONFIG, mesh=mesh)
    return alone, shared, *trained(shared)


def parts(array):
    """What each device holds of `array`, on the host."""
    return [np.asarray(shard.data) for shard in array.addressable_shards]


def test_a_run_begins_as_on_one_device(toys):
    alone, shared, _, start, _ = toys
    jax.tree.map(np.testing.assert_array_equal, start, jax.device_get(alone.init(KEY).device))
    for first, second in zip(
        *(jax.tree.leaves(loop.shapes().device) for loop in (alone, shared)), strict=True
    ):
        assert (first.shape, first.dtype) == (second.shape, second.dtype)


def test_each_device_has_its_own_worlds_and_all_the_same_learner(toys):
    _, _, run, _, _ = toys
    device, replay = run.device, run.device.replay
    shared = {"learner": device.learner, "key": device.key, "at": (replay.row, replay.step)}
    for leaf in jax.tree.leaves(shared):
        copies = parts(leaf)
        assert len(copies) == NUMBER and all(np.array_equal(copies[0], x) for x in copies)
    rows = replay.valid.shape[0]
    assert {part.shape for part in parts(replay.valid)} == {(rows, 2)}
    assert {part.shape[1:] for part in parts(replay.obs)} == {(2, 2)}
    assert {part.shape for part in parts(replay.held)} == {(2,)}
    assert {part.shape[0] for part in parts(device.env_state.obs)} == {2}
    actions = [part[: int(replay.row)] for part in parts(replay.action)]
    assert all(not np.array_equal(actions[0], other) for other in actions[1:])
    assert run.learner["updates"] == run.updates == 40


def test_the_ring_of_each_device_follows_its_worlds(toys):
    _, _, run, _, metrics = toys
    replay = jax.device_get(run.device.replay)
    rows = int(replay.row)
    assert rows == 4 + 20 and run.transitions == rows * 16 == metrics["replay_transitions"]
    label, time = replay.obs[:rows, :, 0], replay.obs[:rows, :, 1]
    ended = replay.ending[:rows] >= 0
    died = (label < 0.3) & (time == 2)
    np.testing.assert_array_equal(ended, died | (time == 4))
    np.testing.assert_array_equal(replay.discount[:rows] == 0, died)
    np.testing.assert_array_equal(time[1:][ended[:-1]], 0)
    np.testing.assert_array_equal(label[1:][~ended[:-1]], label[:-1][~ended[:-1]])
    # Metrics are those of all environments.
    last = slice(-20, None)
    assert metrics["episode/count"] == ended[last].sum() > 0
    assert metrics["episode/terminations"] == died[last].sum()
    lengths = np.where(died, 3, 5)[last][ended[last]]
    np.testing.assert_allclose(metrics["episode/length"], lengths.mean(), rtol=1e-6)
    np.testing.assert_allclose(metrics["reward"], replay.reward[:rows][last].mean(), rtol=1e-5)
    assert metrics["update/updates"] == (1 + 40) / 2


def test_evaluation_has_one_device_and_its_numbers(toys):
    alone, shared, run, _, _ = toys
    learner = shared.learner(run, 0)
    assert all(len(leaf.devices()) == 1 for leaf in jax.tree.leaves(learner))
    found = shared.evaluate(learner, KEY)
    expected = alone.evaluate(jax.device_get(learner), KEY)
    np.testing.assert_array_equal(found.return_, expected.return_)


@pytest.mark.parametrize("number", [4, 1])
def test_a_checkpoint_of_eight_devices_goes_on_with_fewer(toys, tmp_path, number):
    alone, shared, run, _, _ = toys
    loop = alone
    if number > 1:
        fewer = sharding.make_mesh(number)
        loop = make_loop(Counter(), random_algorithm(2, 1), CONFIG, mesh=fewer)
    before = jax.device_get(run.device)
    checkpoint.save(tmp_path, run, {})
    restored = checkpoint.restore(tmp_path, loop.member_shapes(), {})
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(restored.device), before)
    assert {len(leaf.devices()) for leaf in jax.tree.leaves(restored.device)} == {number}
    after, metrics = loop.epoch(restored)
    metrics = jax.device_get(metrics)
    assert after.transitions == run.transitions + 320 == metrics["replay_transitions"]
    assert all(np.isfinite(value) for value in metrics.values())
    # And back: eight go on from what fewer left.
    checkpoint.save(tmp_path, after, {})
    restored = checkpoint.restore(tmp_path, shared.member_shapes(), {})
    again, _ = shared.epoch(restored)
    jax.block_until_ready(again.device)
    assert again.epochs == 3 and len(again.device.episode_return.devices()) == NUMBER


def test_eight_devices_learn_like_one(mesh):
    """The probe whose best return is 0; doing nothing returns -0.25, random actions -0.58."""
    env = toy_envs.ActionReward()
    config = configured("sac", width=32, depth=2, learning_rate=5e-3, target_entropy=-2.0)
    sizes = LoopConfig(
        num_envs=16, batch_size=64, prefill_transitions=1_000, replay_capacity=10_000,
        steps_per_epoch=200, reset_pool=64, eval_envs=64,
    )  # fmt: skip
    returns, losses = [], []
    for devices in (None, mesh):
        algorithm = algos.make("sac", config, environments.spec(env))
        loop = make_loop(env, algorithm, sizes, mesh=devices)
        run, _, metrics = trained(loop)
        learner = loop.learner(run, 0)
        returns.append(float(loop.evaluate(learner, jax.random.PRNGKey(1)).return_.mean()))
        losses.append(float(metrics["update/critic_loss"]))
    assert min(returns) > -0.1 and abs(returns[0] - returns[1]) < 0.05, returns
    np.testing.assert_allclose(*losses, rtol=0.3)


COLLECTIVE = re.compile(
    r"= (.*?) (all-gather|all-to-all|all-reduce|collective-permute|collective-broadcast|"
    r"reduce-scatter|send|recv)(?:-start)?\("
)


def collectives(text):
    """The name of each collective of a compiled program, and the numbers that it moves."""
    found = []
    for shapes, name in COLLECTIVE.findall(text):
        sizes = [
            np.prod([int(n) for n in dims.split(",") if n], dtype=int)
            for dims in re.findall(r"\w+\[([\d,]*)\]", shapes)
        ]
        found.append((name, int(sum(sizes))))
    return found


@pytest.mark.usefixtures("quick_compilation")
def test_nothing_but_reductions_travels_between_devices(mesh):
    """Of an update: all gradients once, and what normalisation needs, once forth and once back."""
    env = Counter()
    config = configured("qflex", width=64)
    algorithm = algos.make("qflex", config, environments.spec(env))
    loop = make_loop(env, algorithm, CONFIG, mesh=mesh)
    loop.programs["prefill"].compile(loop.shapes().device)
    assert collectives(loop.programs["prefill"].compiled.as_text()) == []
    loop.programs["epoch"].compile(loop.shapes().device)
    found = collectives(loop.programs["epoch"].compiled.as_text())
    assert {name for name, _ in found} == {"all-reduce"}
    learner = loop.shapes().learner
    networks = [*learner.critics, learner.source, learner.velocity]
    parameters = sum(x.size for x in jax.tree.leaves([network.params for network in networks]))
    moments = sum(x.size for x in jax.tree.leaves([network.batch_stats for network in networks]))
    metrics = loop.programs["epoch"].shapes(loop.shapes().device)[1]
    numbers = sum(number for _, number in found)
    print(f"{len(found)} all-reduces of {numbers} numbers; {parameters} parameters")
    # Batch statistics are a mean, a variance and a count of each normalisation; their gradients
    # are as many.
    assert numbers <= parameters + 2 * moments + len(metrics)
