"""Qflex against a NumPy update written from the equations, and its switches one by one."""

import dataclasses
import math

import acting
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import references

from mjx_qflex import algos
from mjx_qflex.algos import common, qflex
from mjx_qflex.algos.qflex import PRESETS, QflexConfig
from mjx_qflex.errors import UserError
from mjx_qflex.types import EnvSpec

OBS, ACT, BATCH = 3, 2, 16
TINY = {"width": 8, "depth": 2, "ascent_steps": 3, "ascent_step_size": 0.3, "euler_steps": 4}
METRICS = {
    "clipped_fraction", "critic_loss", "displacement", "flow_loss", "flow_superiority",
    "policy_loss", "q_mean", "q_scale", "source_entropy",
}  # fmt: skip


def random_batch(seed, size=BATCH):
    return references.random_batch(seed, OBS, ACT, size)


def warmed_up(config):
    """An algorithm and its learner after two updates, batch renormalisation at work."""
    algorithm = qflex.make(config, EnvSpec(OBS, ACT))
    learner = algorithm.init(jax.random.key(0))
    update = jax.jit(algorithm.update)
    for seed in (1, 2):
        learner, _ = update(learner, random_batch(seed), jax.random.key(seed))
    return learner, update


# The reference: plain NumPy in float64, one function an equation.


def as_numpy(tree):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


def np_train(net, x, warmup, corrections):
    """Forward pass with batch moments; `net` is (params, moments before).

    The corrections r and d of each layer are put into the list, or taken from it where they are
    there: they are constants to the gradient.
    """
    params, moments = net
    for index, layer in enumerate(params.layers):
        x = np.maximum(x, 0) if index else x
        if params.norms:
            mean, var = x.mean(0), np.maximum(x.var(0), 1e-5)
            sigma, running = np.sqrt(var + 1e-5), np.sqrt(moments[index].var + 1e-5)
            r = np.clip(sigma / running, 1 / 3, 3)
            d = np.clip((mean - moments[index].mean) / running, -5, 5)
            if len(corrections) == index:
                corrections.append((r, d) if moments[index].count >= warmup else (1.0, 0.0))
            r, d = corrections[index]
            x = ((x - mean) / sigma * r + d) * params.norms[index].scale
            x = x + params.norms[index].offset
        x = x @ layer.kernel + layer.bias
    return x


def np_eval(net, x):
    """Forward pass with running moments."""
    params, moments = net
    for index, layer in enumerate(params.layers):
        x = np.maximum(x, 0) if index else x
        if params.norms:
            x = (x - moments[index].mean) / np.sqrt(moments[index].var + 1e-5)
            x = x * params.norms[index].scale + params.norms[index].offset
        x = x @ layer.kernel + layer.bias
    return x


def np_source(config, output, noise):
    mean, log_std = np.split(output, 2, axis=-1)
    log_std = np.clip(log_std, -20, 2)
    action = mean + np.exp(log_std) * noise
    log_prob = (-0.5 * noise**2 - log_std - 0.5 * np.log(2 * np.pi)).sum(-1)
    if config.tanh_source:
        log_prob = log_prob - np.log(1 - np.tanh(action) ** 2).sum(-1)
        return np.tanh(action), log_prob
    return np.clip(action, -1, 1), log_prob


def np_flow(config, velocity, obs, action):
    dt = 1 / config.euler_steps
    for index in range(config.euler_steps):
        time = (index + (config.euler_grid == "right")) * dt
        inputs = np.concatenate([obs, action, np.full((len(obs), 1), time)], 1)
        action = action + dt * np.clip(np_eval(velocity, inputs), -1 / dt, 1 / dt)
    return action


def np_ascent(config, value, action):
    for _ in range(config.ascent_steps):
        gradient = np.zeros_like(action)
        for index in range(ACT):
            # ReLU networks are piecewise linear: a central difference is exact off the kinks.
            offset = 1e-6 * np.eye(ACT)[index]
            gradient[:, index] = (value(action + offset) - value(action - offset)) / 2e-6
        norm = np.linalg.norm(gradient, axis=1, keepdims=True)
        step = np.minimum(config.ascent_step_size, 2 * np.sqrt(ACT) / (norm + 1e-6))
        action = action + step * gradient
        action = np.clip(action, -1, 1) if config.clip_target else action
    return action


class Reference:
    """The losses of one update as functions of the parameters that each trains."""

    def __init__(self, config, old, new, batch, key):
        self.config, self.old, self.new = config, as_numpy(old), as_numpy(new)
        self.batch = as_numpy(batch)
        noise_key, time_key = jax.random.split(key)
        self.noise = np.asarray(jax.random.normal(noise_key, batch.action.shape), np.float64)
        self.flow_batch = math.ceil(config.flow_share * BATCH)
        time = jax.random.uniform(time_key, (self.flow_batch, 1))
        self.time = np.asarray(time, np.float64)
        self.alpha = 0.0 if old.temperature is None else float(jnp.exp(old.temperature.log_alpha))
        self.corrections = {name: [] for name in (0, 1, "source", "velocity")}
        self.target = self.critic_target()

    def critic_values(self, index, params=None):
        config, batch, old = self.config, self.batch, self.old
        action, self.log_prob = np_source(
            config, np_eval(old.source[:2], batch.next_obs), self.noise
        )
        if config.bootstrap == "flow":
            action = np_flow(config, old.velocity[:2], batch.next_obs, action)
            action = np.clip(action, -1, 1) if config.clip_stored_action else action
        now = np.concatenate([batch.obs, batch.action], 1)
        then = np.concatenate([batch.next_obs, action], 1)
        params = params or old.critics[index].params
        net = (params, old.critics[index].batch_stats)
        inputs = np.concatenate([now, then])
        values = np_train(net, inputs, config.renorm_warmup, self.corrections[index])[:, 0]
        return values[:BATCH], values[BATCH:]

    def critic_target(self):
        then = np.minimum(self.critic_values(0)[1], self.critic_values(1)[1])
        soft = then - self.alpha * self.log_prob
        reward = self.config.reward_scale * self.batch.reward
        return reward + self.config.gamma * self.batch.discount * soft

    def critic_loss(self, index, params=None):
        return np.mean((self.critic_values(index, params)[0] - self.target) ** 2)

    def value(self, obs, action):
        old_or_new = self.old if self.config.stale_critic else self.new
        both = [
            np_eval((old_or_new.critics[i].params, self.new.critics[i].batch_stats),
                    np.concatenate([obs, action], 1))[:, 0]
            for i in (0, 1)
        ]  # fmt: skip
        return np.minimum(*both) if self.config.gradient == "min" else np.mean(both, 0)

    def policy_loss(self, params=None):
        net = (params or self.old.source.params, self.old.source.batch_stats)
        warmup, corrections = self.config.renorm_warmup, self.corrections["source"]
        output = np_train(net, self.batch.obs, warmup, corrections)
        action, log_prob = np_source(self.config, output, self.noise)
        return np.mean(self.alpha * log_prob - self.value(self.batch.obs, action))

    def flow_pair(self):
        states = self.batch.next_obs if self.config.flow_states == "next" else self.batch.obs
        states, noise = states[: self.flow_batch], self.noise[: self.flow_batch]
        start, _ = np_source(self.config, np_eval(self.new.source[:2], states), noise)
        return states, start, np_ascent(self.config, lambda a: self.value(states, a), start)

    def flow_loss(self, params=None):
        states, start, end = self.flow_pair()
        point = (1 - self.time) * start + self.time * end
        net = (params or self.old.velocity.params, self.old.velocity.batch_stats)
        inputs = np.concatenate([states, point, self.time], 1)
        slope = np_train(net, inputs, self.config.renorm_warmup, self.corrections["velocity"])
        return np.mean((slope - (end - start)) ** 2)


CASES = {
    "code": PRESETS["code"],
    "paper": PRESETS["paper"],
    "soft": dataclasses.replace(PRESETS["code"], entropy=True, gradient="mean", stale_critic=False),
    "quiet": dataclasses.replace(
        PRESETS["code"],
        reward_scale=0.1, initial_std=0.2, output_gain=0.05, source_learning_rate=1e-4,
    ),
    "quarter": dataclasses.replace(PRESETS["code"], flow_share=0.25),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_one_update_equals_numpy(case):
    config = dataclasses.replace(CASES[case], **TINY, renorm_warmup=1, beta1=0.0)
    old, update = warmed_up(config)
    batch, key = random_batch(3), jax.random.key(3)
    new, metrics = update(old, batch, key)
    reference = Reference(config, old, new, batch, key)

    losses = np.mean([reference.critic_loss(0), reference.critic_loss(1)])
    np.testing.assert_allclose(metrics["critic_loss"], losses, rtol=1e-4)
    np.testing.assert_allclose(metrics["policy_loss"], reference.policy_loss(), rtol=1e-4)
    np.testing.assert_allclose(metrics["flow_loss"], reference.flow_loss(), rtol=1e-3)
    _, start, end = reference.flow_pair()
    displacement = np.mean(np.sqrt(np.mean((end - start) ** 2, axis=1)))
    np.testing.assert_allclose(metrics["displacement"], displacement, rtol=1e-3)
    values = [reference.critic_values(i)[0] for i in (0, 1)]
    np.testing.assert_allclose(metrics["q_mean"], np.mean(values), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(metrics["q_scale"], np.mean(np.abs(values)), rtol=1e-4)
    assert set(metrics) == METRICS | ({"temperature"} if config.entropy else set())

    usual = config.learning_rate
    for name, loss, rate in (
        ("critics", lambda params: reference.critic_loss(0, params), usual),
        ("source", reference.policy_loss, config.source_learning_rate or usual),
        ("velocity", reference.flow_loss, usual),
    ):
        pair = getattr(reference.old, name), getattr(reference.new, name)
        before, after = (x[0] if name == "critics" else x for x in pair)
        check_adam_step(rate, loss, before, after)
    if config.entropy:
        # Entropy is above its target of -1 an actuator, so the temperature falls.
        assert new.temperature.log_alpha < old.temperature.log_alpha < 0
        # Its Adam has the usual decay, whatever the networks' is: mean and square of one excess.
        before, after = (x.temperature.opt_state[0] for x in (old, new))
        excess = np.sqrt((after.nu - 0.999 * before.nu) / 0.001)
        np.testing.assert_allclose(after.mu, 0.9 * before.mu + 0.1 * excess, rtol=1e-3)


def check_adam_step(rate, loss, before, after):
    """Every layer's kernel moved against the gradient, as Adam with both decays scales it."""
    for index, layer in enumerate(before.params.layers):
        for entry in ((0, 0), (1, layer.kernel.shape[1] - 1)):
            gradient = []
            for sign in (1, -1):
                kernel = layer.kernel.copy()
                kernel[entry] += sign * 1e-6
                layers = list(before.params.layers)
                layers[index] = layer._replace(kernel=kernel)
                gradient.append(loss(before.params._replace(layers=tuple(layers))))
            gradient = (gradient[0] - gradient[1]) / 2e-6
            second = before.opt_state[0].nu.layers[index].kernel[entry]
            second = (0.999 * second + 0.001 * gradient**2) / (1 - 0.999**3)
            step = -rate * gradient / (np.sqrt(second) + 1e-8)
            moved = after.params.layers[index].kernel[entry] - layer.kernel[entry]
            np.testing.assert_allclose(moved, step, rtol=2e-2, atol=2e-3 * rate)


def act(config, mode, seed=0, num_envs=5, learner=None):
    algorithm = qflex.make(config, EnvSpec(OBS, ACT))
    learner = learner or algorithm.init(jax.random.key(0))
    obs = jnp.ones((num_envs, OBS))
    key = jax.random.key(seed) if mode == "explore" else None
    action, state, extras = acting.act(algorithm, learner, obs, key)
    assert action.shape == (num_envs, ACT) and state == () and extras == {}
    return np.asarray(action)


def test_exploring_draws_and_evaluation_does_not():
    config = dataclasses.replace(PRESETS["code"], **TINY)
    explored = act(config, "explore")
    assert np.ptp(explored, axis=0).min() > 0
    assert not np.allclose(explored, act(config, "explore", seed=1))
    fixed = act(config, "eval")
    assert np.ptp(fixed, axis=0).max() < 1e-6  # one draw for every environment and step
    np.testing.assert_array_equal(fixed, act(config, "eval", seed=1))
    mean = act(dataclasses.replace(config, eval_noise="mean"), "eval")
    assert not np.allclose(mean, fixed)


def test_mean_evaluation_starts_at_the_source_mean():
    config = dataclasses.replace(PRESETS["code"], **TINY, eval_noise="mean")
    learner = qflex.make(config, EnvSpec(OBS, ACT)).init(jax.random.key(0))
    nets = as_numpy(learner)
    obs = np.ones((5, OBS))
    start = np.tanh(np_eval(nets.source[:2], obs)[:, :ACT])
    expected = np_flow(config, nets.velocity[:2], obs, start)
    np.testing.assert_allclose(act(config, "eval", learner=learner), expected, atol=1e-5)


def test_clip_stored_action_bounds_what_leaves_the_policy():
    config = dataclasses.replace(PRESETS["code"], **TINY)
    learner = qflex.make(config, EnvSpec(OBS, ACT)).init(jax.random.key(0))
    # A velocity field that only knows one way: 3 along every actuator.
    last = learner.velocity.params.layers[-1]
    last = last._replace(kernel=jnp.zeros_like(last.kernel), bias=jnp.full(ACT, 3.0))
    params = learner.velocity.params
    params = params._replace(layers=(*params.layers[:-1], last))
    learner = learner._replace(velocity=learner.velocity._replace(params=params))
    assert act(config, "explore", learner=learner).min() > 1.5
    clipped = dataclasses.replace(config, clip_stored_action=True)
    np.testing.assert_array_equal(act(clipped, "explore", learner=learner), 1.0)


def test_without_euler_steps_the_source_acts_and_learns_as_before():
    config = dataclasses.replace(PRESETS["code"], **TINY)
    off = dataclasses.replace(config, euler_steps=0)
    learner = qflex.make(off, EnvSpec(OBS, ACT)).init(jax.random.key(0))
    expected, _ = qflex.sample_source(
        off,
        common.for_inference(learner.source),
        jnp.ones((5, OBS)),
        jax.random.normal(jax.random.key(0), (5, ACT)),
    )
    np.testing.assert_allclose(act(off, "explore", learner=learner), expected, atol=1e-6)
    without, _ = warmed_up(off)
    with_flow, _ = warmed_up(config)
    assert without.velocity is None
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6),
        (without.critics, without.source),
        (with_flow.critics, with_flow.source),
    )


def test_batch_norm_in_the_critic_only():
    config = dataclasses.replace(PRESETS["paper"], **TINY)
    learner = qflex.make(config, EnvSpec(OBS, ACT)).init(jax.random.key(0))
    assert learner.critics[0].params.norms and not learner.source.params.norms
    assert not learner.velocity.params.norms


def test_a_quiet_start_acts_near_rest():
    """Before any update the source's actions are small, and neither flow nor critics see more."""
    config = dataclasses.replace(QflexConfig(), width=64, initial_std=0.2, output_gain=0.05)
    algorithm = qflex.make(config, EnvSpec(OBS, 50))
    learner = algorithm.init(jax.random.key(0))
    obs = jax.random.normal(jax.random.key(1), (200, OBS))
    action = acting.act(algorithm, learner, obs, jax.random.key(2)).action
    assert abs(float(action.mean())) < 0.02
    np.testing.assert_allclose(action.std(), 0.2, rtol=0.1)
    loud = qflex.make(dataclasses.replace(config, output_gain=1.0), EnvSpec(OBS, 50))
    spread = acting.act(loud, loud.init(jax.random.key(0)), obs, jax.random.key(2)).action
    assert spread.std() > 1.2 * action.std()


def test_presets_differ_where_paper_and_code_differ():
    differ = {
        field.name
        for field in dataclasses.fields(QflexConfig)
        if getattr(PRESETS["code"], field.name) != getattr(PRESETS["paper"], field.name)
    }
    assert differ == {
        "flow_states", "bootstrap", "clip_target", "clip_stored_action", "tanh_source",
        "euler_grid", "stale_critic", "batch_norm",
    }  # fmt: skip
    assert PRESETS["default"] == QflexConfig() == PRESETS["code"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gradient": "max"}, "gradient='max'; give one of min, mean"),
        ({"ascent_steps": 0}, "from 1 to"),
        ({"euler_steps": -1}, "qflex's euler_steps is -1; give a whole number from 0"),
        ({"initial_std": 0.0}, "above 0"),
        ({"ascent_step_size": -1.0}, "ascent_step_size is -1; give a number above 0"),
        ({"beta1": 1.0}, "beta1 is 1; give a number from 0 below 1"),
        ({"flow_share": 0.0}, "flow_share is 0; give a number above 0, up to 1"),
        ({"flow_share": 1.1}, "flow_share is 1.1; give a number above 0, up to 1"),
    ],
)
def test_refused_options(options, message):
    with pytest.raises(UserError, match=message):
        qflex.make(dataclasses.replace(QflexConfig(), **options), EnvSpec(OBS, ACT))


def test_refused_metric_and_unknown_algorithm():
    with pytest.raises(UserError, match="metric has shape"):
        qflex.make(QflexConfig(), EnvSpec(OBS, ACT), metric=jnp.ones(5))
    with pytest.raises(UserError, match="did you mean 'qflex'"):
        algos.make("qflx", QflexConfig(), EnvSpec(OBS, ACT))
