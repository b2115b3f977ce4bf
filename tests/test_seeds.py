"""Several seeds in one program: each computes what it would alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_envs import Counter, random_algorithm

from mjx_qflex import algos, devices, tasks
from mjx_qflex.conditional import when
from mjx_qflex.runner import driver
from mjx_qflex.sizes import LoopConfig
from mjx_qflex.training import environments
from mjx_qflex.training.compiled import Loop
from mjx_qflex.training.loop import make_loop

pytestmark = pytest.mark.usefixtures("quick_compilation")

TOY = LoopConfig(
    num_envs=4, batch_size=64, updates_per_step=2, prefill_transitions=20, replay_capacity=240,
    steps_per_epoch=30, reset_pool=5, eval_envs=8,
)  # fmt: skip
ONE_UPDATE = dataclasses.replace(
    TOY, batch_size=16, updates_per_step=1, prefill_transitions=0, steps_per_epoch=1
)
# Options of the algorithms that keep their programs small.
TINY = {
    "width": 16, "critic_width": 16, "depth": 1, "diffusion_steps": 3, "particles": 2,
    "reverse_samples": 4, "entropy_samples": 20, "entropy_states": 2,
}  # fmt: skip
SEEDS = (3, 0, 7)


def pair(env, algorithm, config) -> tuple[Loop, Loop]:
    """The loop of one seed, and that of a population of `SEEDS`."""
    loops = (make_loop(env, algorithm, config, number) for number in (None, len(SEEDS)))
    return next(loops), next(loops)


def trained(loop, seeds, epochs):
    """Each seed's run on the host after the prefill and after `epochs` epochs, and the rows."""

    def members(run):
        return jax.device_get([loop.member(run, index).device for index in range(len(seeds))])

    run, rows = loop.prefill(loop.init(loop.key(seeds))), []
    filled = members(run)
    for _ in range(epochs):
        run, metrics = loop.epoch(run)
        rows.append(jax.device_get(metrics))
    return filled, members(run), rows


def assert_close(together, alone):
    """Equal to 1e-5 of the largest entry of each array, or to 1e-6; integers bit for bit.

    Adam's first step divides a gradient by itself: where normalisation cancels a bias, rounding.
    """

    def check(x, y):
        assert x.shape == y.shape and x.dtype == y.dtype
        if np.issubdtype(x.dtype, np.floating):
            scale = np.abs(y).max(initial=0.1)
            np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5 * scale)
        else:
            np.testing.assert_array_equal(x, y)

    jax.tree.map(check, together, alone)


@pytest.fixture(scope="module")
def toys():
    """Loops of environments that break: among many invalid rows a few draws need the fallback."""
    return pair(Counter(poison_label=0.5), random_algorithm(2, 1), TOY)


def test_a_population_computes_bit_for_bit_what_each_seed_does_alone(toys):
    one, population = toys
    filled, together, rows = trained(population, SEEDS, 3)
    for index, seed in enumerate(SEEDS):
        filled_alone, (alone,), rows_alone = trained(one, [seed], 3)
        jax.tree.map(np.testing.assert_array_equal, filled[index], filled_alone[0])
        jax.tree.map(np.testing.assert_array_equal, together[index], alone)
        for row, row_alone in zip(rows, rows_alone, strict=True):
            assert {name: values[index] for name, values in row.items()} == row_alone
    assert not np.array_equal(together[0].learner["weight"], together[1].learner["weight"])
    assert not together[0].replay.valid.all()


def test_a_population_is_split_and_joined_again(toys):
    _, population = toys
    run, _ = population.epoch(population.prefill(population.init(population.key(SEEDS))))
    before = jax.device_get(run.device)
    members = [population.member(run, index) for index in range(len(SEEDS))]
    shapes = population.member_shapes()
    for index, member in enumerate(members):
        found = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), member.device)
        assert found == shapes.device
        jax.tree.map(np.testing.assert_array_equal, population.learner(run, index), member.learner)
    joined = population.join(iter(members))
    assert (joined.epochs, joined.transitions, joined.updates) == (1, 20 + 30 * 4, 60)
    jax.tree.map(np.testing.assert_array_equal, before, jax.device_get(joined.device))
    population.epoch(joined)  # the compiled program takes it


def test_a_population_holds_one_ring_of_each_seed():
    config = dataclasses.replace(TOY, replay_capacity=200_000)
    one, population = pair(Counter(), random_algorithm(2, 1), config)
    counters = 8  # bytes; they are common to all seeds
    together = len(SEEDS) * (one.replay_bytes - counters) + counters
    assert population.replay_bytes == together > 10 * 2**20
    program = population.programs["epoch"]
    program.compile(population.shapes().device)
    memory = program.compiled.memory_analysis()
    assert memory.alias_size_in_bytes > population.replay_bytes
    # Written in place and sampled from: nothing the size of one ring besides.
    assert memory.temp_size_in_bytes < 0.5 * one.replay_bytes


def check_one_update(env, name):
    config = algos.entry(name).presets["default"]
    options = {key: value for key, value in TINY.items() if hasattr(config, key)}
    config = dataclasses.replace(config, **options)
    algorithm = algos.make(name, config, environments.spec(env))
    one, population = pair(env, algorithm, ONE_UPDATE)
    start, together, _ = trained(population, SEEDS, 1)
    start_alone, (alone,), _ = trained(one, SEEDS[-1:], 1)
    assert_close(start[-1], start_alone[0])
    assert_close(together[-1], alone)


def test_after_one_update_a_seed_is_what_it_is_alone():
    check_one_update(tasks.make("chain_reach", num_joints=8), "qflex")


def test_after_one_update_a_seed_on_a_ported_body_is_what_it_is_alone():
    check_one_update(tasks.make("arm_reach"), "sac")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in algos.ALGOS if not algos.entry(name).on_policy])
def test_after_one_update_a_seed_of_any_algorithm_is_what_it_is_alone(name):
    jax.config.update("jax_disable_most_optimizations", False)
    check_one_update(tasks.make("chain_reach", num_joints=8), name)


@pytest.mark.parametrize(
    ("condition", "turns"), [([False] * 3, 0), ([True, False, True], 1), ([True] * 3, 1)]
)
def test_a_conditional_under_vmap_works_only_where_a_member_needs_it(condition, turns):
    count = []

    def advance(x):
        jax.debug.callback(lambda: count.append(None))
        return 2.0 * x + 1.0

    values = jnp.arange(3.0)
    condition = jnp.asarray(condition)
    result = jax.jit(jax.vmap(lambda c, x: when(c, advance, x)))(condition, values)
    jax.effects_barrier()
    np.testing.assert_array_equal(result, np.where(condition, 2 * values + 1, values))
    assert (len(count) > 0) == (turns > 0)
    count.clear()
    for member, value in zip(condition, values, strict=True):
        jax.jit(lambda c, x: when(c, advance, x))(member, value)
    jax.effects_barrier()
    assert len(count) == condition.sum()


@pytest.mark.parametrize(
    ("states_free", "at_once"), [(20.0, 5), (6.7, 5), (6.6, 4), (3.4, 2), (0.5, 1), (None, 5)]
)
def test_as_many_seeds_at_once_as_an_accelerator_holds(monkeypatch, states_free, at_once):
    """A checkpoint needs room for one state more, and a tenth stays free."""
    alone = make_loop(Counter(), random_algorithm(2, 1), TOY)
    free = None if states_free is None else int(states_free * alone.state_bytes)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(devices, "free_bytes", lambda: free)
    words: list[str] = []
    assert driver._number_at_once(alone, 5, None, words.append) == at_once
    assert [f"{at_once} at once" in line for line in words] == [True] * (at_once < 5)


def test_on_a_cpu_seeds_train_one_after_the_other_unless_asked_otherwise():
    alone = make_loop(Counter(), random_algorithm(2, 1), TOY)
    words: list[str] = []
    assert driver._number_at_once(alone, 5, None, words.append) == 1
    assert "--seeds_at_once" in words[0]
    assert driver._number_at_once(alone, 5, 3, words.append) == 3
    assert driver._number_at_once(alone, 2, 3, words.append) == 2
    assert driver._number_at_once(alone, 1, None, words.append) == 1
    assert len(words) == 1
