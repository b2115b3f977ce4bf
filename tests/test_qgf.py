"""Test-time guidance against NumPy, known critics, and the policies that it critics_seen."""

import dataclasses
from functools import partial

import acting
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import references as ref
from test_qflex import as_numpy, np_eval

from mjx_qflex import algos, evaluate, networks, presets
from mjx_qflex import config as configs
from mjx_qflex.algos import common, qgf
from mjx_qflex.algos.qgf import Guided, QgfConfig
from mjx_qflex.errors import UserError
from mjx_qflex.types import EnvSpec, FlowParts

OBS, ACT, BATCH = 5, 3, 7
GUIDABLE = ("crossq", "qflex", "sac")
TINY = {"width": 8, "critic_width": None, "depth": 2, "euler_steps": 4}
OBSERVATIONS = jax.random.normal(jax.random.key(9), (BATCH, OBS))


def built(name, preset="default", **options):
    """An algorithm, its parts, and a learner whose leaves all differ from those it began with."""
    config = algos.entry(name).presets[preset]
    changes = TINY | options
    config = dataclasses.replace(config, **{k: v for k, v in changes.items() if hasattr(config, k)})
    algorithm = algos.make(name, config, EnvSpec(OBS, ACT))
    rng = np.random.default_rng(0)

    def moved(leaf):
        """Kernels, biases and moments of a trained network; what was positive stays so."""
        leaf, noise = np.asarray(leaf), rng.normal(size=leaf.shape)
        if leaf.dtype != np.float32:
            return leaf
        return np.asarray(leaf * np.exp(0.3 * noise) + 0.1 * np.abs(noise), np.float32)

    learner = jax.tree.map(moved, jax.jit(algorithm.init)(jax.random.key(0)))
    return algorithm, partial(parts_of, algorithm), learner


def parts_of(algorithm, learner, obs):
    return algorithm.policy(learner).parts(obs)


def act(algorithm, learner, mode="eval", seed=0):
    key = jax.random.key(seed) if mode == "explore" else None
    action, state, _ = acting.jitted(algorithm)(learner, OBSERVATIONS, key)
    assert action.shape == (BATCH, ACT) and state == ()
    return np.asarray(action)


def guided_action(case, weight, **options):
    algorithm, _, learner = case
    guided = qgf.guide(algorithm, QgfConfig(**options))
    return act(guided, Guided(learner, jnp.float32(weight)))


@pytest.fixture(scope="module", autouse=True)
def quick_compilation():
    """These programs are small and run for a moment; compiling them takes longest."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def trained(quick_compilation):
    return {name: built(name) for name in GUIDABLE}


# Equations.


def np_value(name, learner):
    """The critics' minimum as a function of (obs, action)."""

    def net(index):
        if name == "sac":
            return learner.targets[index], ()
        return learner.critics[index][:2]

    def value(obs, action):
        inputs = np.concatenate([obs, action], 1)
        return np.minimum(*(np_eval(net(index), inputs)[:, 0] for index in (0, 1)))

    return value


def np_guided(name, learner, start, weight, steps, grid):
    """Euler steps a <- a + dt (v + w dQ/da at the clean action)."""
    obs, value = np.asarray(OBSERVATIONS, np.float64), np_value(name, learner)
    action, dt = start, 1 / steps
    for index in range(steps):
        velocity = 0 * action
        if name == "qflex":
            time = np.full((BATCH, 1), (index + (grid == "right")) * dt)
            velocity = np_eval(learner.velocity[:2], np.concatenate([obs, action, time], 1))
            velocity = np.clip(velocity, -steps, steps)
        clean = np.clip(action + (1 - index * dt) * velocity, -1, 1)
        gradient = ref.action_gradient(lambda a: value(obs, a), clean)
        action = action + dt * (velocity + weight * gradient)
    return np.clip(action, -1, 1)


@pytest.mark.parametrize("name", GUIDABLE)
@pytest.mark.parametrize(("steps", "grid"), [(1, "left"), (3, "left"), (3, "right")])
def test_guided_steps_equal_numpy(trained, name, steps, grid):
    _, parts, learner = trained[name]
    taken = parts(learner, OBSERVATIONS)
    start = np.asarray(taken.start(taken.mode_noise), np.float64)
    plain, guided = (
        np_guided(name, as_numpy(learner), start, weight, steps, grid) for weight in (0.0, 0.3)
    )
    assert np.abs(guided - plain).max() > 0.01
    result = guided_action(trained[name], 0.3, euler_steps=steps, euler_grid=grid)
    np.testing.assert_allclose(result, guided, atol=2e-5)


def test_the_gradient_is_that_of_the_clean_action_and_passes_no_velocity():
    """One step from a = 0.4 with v = 2 a: a1 = clip(1.2) = 1, where Q = a1^2 has slope 2."""
    parts = FlowParts(
        start=lambda noise: noise,
        mode_noise=jnp.full((1, 1), 0.4),
        velocity=lambda action, time: 2.0 * action,
        value=lambda action: jnp.sum(jnp.square(action), axis=-1),
    )
    action = qgf.best_action(QgfConfig(euler_steps=1), parts, jnp.float32(-0.3))
    np.testing.assert_allclose(action, 0.4 + 0.8 - 0.3 * 2.0, rtol=1e-6)


# What guidance promises.


@pytest.mark.parametrize("name", ["crossq", "sac"])
def test_a_gaussian_without_weight_is_unguided(trained, name):
    algorithm, _, learner = trained[name]
    np.testing.assert_array_equal(guided_action(trained[name], 0.0), act(algorithm, learner))
    assert not np.allclose(guided_action(trained[name], 1.0), act(algorithm, learner))


@pytest.mark.parametrize(
    ("preset", "grid", "eval_noise"), [("code", "right", "fixed"), ("paper", "left", "mean")]
)
def test_a_flow_without_weight_is_unguided_on_its_own_grid(preset, grid, eval_noise):
    case = built("qflex", preset, eval_noise=eval_noise)
    unguided = np.clip(act(case[0], case[2]), -1, 1)
    steps = TINY["euler_steps"]
    same = guided_action(case, 0.0, euler_steps=steps, euler_grid=grid)
    np.testing.assert_allclose(same, unguided, atol=1e-6)
    finer = guided_action(case, 0.0, euler_steps=5 * steps, euler_grid=grid)
    assert 1e-5 < np.abs(finer - unguided).max() < 0.2


def quadratic(center):
    """A Gaussian policy at rest whose critic is highest at `center` [A]."""
    return FlowParts(
        start=lambda noise: 0.3 * noise,
        mode_noise=jnp.zeros((2, ACT)),
        velocity=None,
        value=lambda action: -0.5 * jnp.sum(jnp.square(action - center), axis=-1),
    )


def test_a_known_critic_pulls_the_action_to_its_maximum():
    center = jnp.asarray([[0.6, -0.2, 3.0]])
    distances = []
    for weight in (0.0, 1.0, 3.0):
        action = qgf.best_action(QgfConfig(), quadratic(center), jnp.float32(weight))
        # Ten steps of dt = 0.1, each of which leaves 1 - w / 10 of the way.
        expected = jnp.clip(center * (1 - (1 - 0.1 * weight) ** 10), -1.0, 1.0)
        np.testing.assert_allclose(action, jnp.repeat(expected, 2, 0), atol=1e-5)
        distances.append(float(jnp.abs(action - jnp.clip(center, -1, 1)).max()))
    assert distances[0] > distances[1] > distances[2]
    assert distances[2] < 0.03


@pytest.mark.parametrize("name", GUIDABLE)
@pytest.mark.parametrize("weight", [0.0, 0.1])
def test_more_candidates_never_lower_the_value(trained, name, weight):
    _, parts, learner = trained[name]
    value = parts(learner, OBSERVATIONS).value
    one, two, eight = (
        value(jnp.asarray(guided_action(trained[name], weight, best_of=number)))
        for number in (1, 2, 8)
    )
    assert (two >= one - 1e-6).all() and (eight >= one - 1e-6).all()
    assert (eight > one + 1e-4).any()


def test_candidates_are_the_policys_own_and_fixed(trained):
    """Evaluation stays a function of the observation, whatever the row."""
    algorithm, parts, learner = trained["sac"]
    guided = qgf.guide(algorithm, QgfConfig(best_of=4))
    state = Guided(learner, jnp.float32(0.0))
    reverse = acting.act(guided, state, OBSERVATIONS[::-1]).action
    np.testing.assert_allclose(reverse[::-1], act(guided, state), atol=1e-6)
    # By hand: the mean, then three draws of the fixed noise.
    taken = parts(learner, OBSERVATIONS)
    draw, key = common.fixed_normal((BATCH, ACT))
    noises = [taken.mode_noise, *map(draw, jax.random.split(key, 3))]
    actions = np.stack([np.asarray(taken.start(noise)) for noise in noises])
    best = np.argmax([np.asarray(taken.value(jnp.asarray(action))) for action in actions], axis=0)
    expected = actions[best, np.arange(BATCH)]
    np.testing.assert_allclose(act(guided, state), expected, atol=1e-6)


@pytest.mark.parametrize("name", GUIDABLE)
def test_exploring_and_learning_are_the_algorithms_own(trained, name):
    algorithm, _, learner = trained[name]
    doubled = algorithm._replace(
        update=lambda learner, batch, key: (jax.tree.map(lambda leaf: leaf + leaf, learner), {})
    )
    guided = qgf.guide(doubled, QgfConfig(weight=2.0, best_of=3))
    state = Guided(learner, jnp.float32(0.5))
    explored = act(algorithm, learner, "explore", 3)
    np.testing.assert_array_equal(act(guided, state, "explore", 3), explored)
    batch = ref.random_batch(5, OBS, ACT, 16)
    updated, metrics = guided.update(state, batch, jax.random.key(5))
    expected = doubled.update(learner, batch, jax.random.key(5))[0]
    jax.tree.map(np.testing.assert_array_equal, updated.learner, expected)
    assert (updated.weight, metrics) == (0.5, {})
    assert jax.eval_shape(guided.init, jax.random.key(0)).weight.dtype == jnp.float32


def test_every_weight_runs_the_same_program(trained):
    traces = []
    algorithm, _, learner = trained["qflex"]

    def counted(learner):
        traces.append(None)
        return algorithm.policy(learner)

    run = acting.jitted(qgf.guide(algorithm._replace(policy=counted), QgfConfig()))
    actions = [
        run(Guided(learner, jnp.float32(weight)), OBSERVATIONS, None).action
        for weight in (0.0, 0.1, 1.0)
    ]
    assert len(traces) == 1
    assert not np.allclose(actions[0], actions[1]) and not np.allclose(actions[1], actions[2])


def test_sac_is_valued_by_its_targets(trained):
    _, parts, learner = trained["sac"]
    action = jnp.zeros((BATCH, ACT))
    inputs = jnp.concatenate([OBSERVATIONS, action], axis=1)

    def least(nets):
        values = [networks.apply(networks.for_inference(net, ()), inputs)[:, 0] for net in nets]
        return np.minimum(*map(np.asarray, values))

    value = parts(learner, OBSERVATIONS).value(action)
    np.testing.assert_allclose(value, least(learner.targets), atol=1e-6)
    assert not np.allclose(value, least([critic.params for critic in learner.critics]), atol=1e-3)


@pytest.mark.parametrize("name", algos.ALGOS)
def test_what_can_be_guided_has_parts(name):
    config = algos.entry(name).presets["default"]
    algorithm = algos.make(name, config, EnvSpec(OBS, ACT))
    policy = algorithm.policy(jax.eval_shape(algorithm.init, jax.random.key(0)))
    assert (policy.parts is not None) == algos.entry(name).guidable


# Refusals.


@pytest.mark.parametrize("name", sorted(set(algos.ALGOS) - set(GUIDABLE)))
def test_other_algorithms_are_refused(name, tmp_path, capsys):
    config = presets.resolve("chain_reach", algo=name)
    with pytest.raises(UserError, match=f"{name} cannot be guided.*crossq, qflex, sac"):
        algos.refuse_unguidable(name)
    configs.save(config, tmp_path)
    assert evaluate.main([f"--run={tmp_path}", "--guidance", "0.1"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "crossq, qflex, sac" in err


@pytest.mark.parametrize(
    "options",
    [{"weight": -1.0}, {"weight": float("nan")}, {"euler_steps": 0}, {"best_of": 0},
     {"euler_grid": "middle"}],
)  # fmt: skip
def test_refused_options(trained, options):
    with pytest.raises(UserError, match=next(iter(options))):
        qgf.guide(trained["sac"][0], QgfConfig(**options))


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--best_of=2"], "add --guidance"),
        (["--guidance_steps=3"], "add --guidance"),
        (["--guidance_grid=right"], "add --guidance"),
        (["--guidance", "0.1", "--guidance_grid=middle"], "'left', 'right'"),
        (["--guidance", "0.1", "--best_of=0"], "--best_of is 0"),
        (["--guidance", "0.1", "--guidance_steps=0"], "--guidance_steps is 0"),
        (["--guidance", "-1"], "guidance"),
        (["--guidance", "0", "much"], "'much' is no number"),
        (["--guidance=nan"], "--guidance is nan"),
        (["--guidance"], "expected at least one argument"),
    ],
)
def test_refused_flags(capsys, tmp_path, flags, says):
    assert evaluate.main([f"--run={tmp_path}", *flags]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and says in err


def test_help_shows_the_real_defaults(capsys):
    assert evaluate.main(["--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert f"Euler steps of it (default: {QgfConfig.euler_steps})" in text
    assert f"is taken at (default: {QgfConfig.euler_grid}," in text
    assert f"the critics choose one (default: {QgfConfig.best_of})" in text
