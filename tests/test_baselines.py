"""The baselines' losses and one update of each against NumPy, from the papers' equations."""

import dataclasses
import math
from functools import partial

import acting
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import references as ref
from test_qflex import np_eval, np_train

from mjx_qflex import algos, diffusion
from mjx_qflex.algos import dacer, qsm
from mjx_qflex.algos.common import TrainState
from mjx_qflex.types import EnvSpec

OBS, ACT, BATCH = 5, 3, 16
RATE = 1e-2
TINY = {
    "width": 8, "critic_width": None, "depth": 2, "learning_rate": RATE, "diffusion_steps": 3,
    "particles": 3, "reverse_samples": 4, "entropy_samples": 30, "entropy_states": 2,
    "tau": 0.1, "renorm_warmup": 1, "gradient_scale": 3.0,
}  # fmt: skip


def tiny(name, preset="default", **changes):
    config = algos.entry(name).presets[preset]
    changes = {**TINY, **changes}
    return dataclasses.replace(config, **{k: v for k, v in changes.items() if hasattr(config, k)})


def random_batch(seed):
    return ref.random_batch(seed, OBS, ACT, BATCH)


class Step:
    """One update after `warmup` others: learner before and after, batch, key and metrics."""

    def __init__(self, name, config, warmup):
        algorithm = algos.make(name, config, EnvSpec(OBS, ACT))
        update = jax.jit(algorithm.update)
        learner = jax.jit(algorithm.init)(jax.random.key(0))
        for seed in range(warmup):
            learner, _ = update(learner, random_batch(seed), jax.random.key(seed))
        batch, self.key, self.config = random_batch(99), jax.random.key(99), config
        self.raw, self.batch = learner, ref.as_numpy(batch)
        after, metrics = update(learner, batch, self.key)
        self.old, self.new = ref.as_numpy(learner), ref.as_numpy(after)
        self.metrics = {name: float(value) for name, value in metrics.items()}
        self.after_next, _ = update(after, batch, self.key)
        self.explored = np.asarray(acting.act(algorithm, learner, batch.obs, self.key).action)

    def check_explored(self, expected):
        """The old learner explored so at the batch's observations, with the same key."""
        np.testing.assert_allclose(self.explored, expected, rtol=1e-3, atol=1e-3)

    def critics(self, learner):
        return [critic.params for critic in learner.critics]

    def bootstrapped(self, next_value):
        config, batch = self.config, self.batch
        return config.reward_scale * batch.reward + config.gamma * batch.discount * next_value

    def check_twin_critics(self, target):
        """Both critics took a step on the mean squared error to `target`."""
        config, batch, losses = self.config, self.batch, []
        for index in (0, 1):
            raw = self.raw.critics[index]

            def loss(params):
                value = ref.critic(params, batch.obs, batch.action, config.activation)[:, 0]
                return np.mean((value - target) ** 2)

            losses.append(loss(self.old.critics[index].params))
            ref.check_adam(raw, self.new.critics[index], loss, config.learning_rate)
        np.testing.assert_allclose(self.metrics["critic_loss"], np.mean(losses), rtol=1e-4)

    def check_averaged(self, slow_before, slow_after, fast_after, rate):
        expected = jax.tree.map(lambda x, y: rate * x + (1 - rate) * y, fast_after, slow_before)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), slow_after, expected)

    def check_temperature(self, raw, after, excess, rate, beta1=0.9):
        """`log_alpha` took a step on log_alpha times the excess of entropy."""
        before, after = (
            TrainState(x.log_alpha[None], (), jax.tree.map(lambda y: y[None], x.opt_state))
            for x in (raw, after)
        )
        ref.check_adam(before, after, lambda x: float(x[0]) * excess, rate, beta1)


@pytest.mark.parametrize("preset", ["default", "qflex_paper"])
def test_sac(preset):
    config = tiny("sac", preset)
    step = Step("sac", config, 3)
    batch, old, new = step.batch, step.old, step.new
    alpha = np.exp(old.temperature.log_alpha)
    next_key, key = jax.random.split(step.key)

    def policy(params, obs, noise):
        return ref.tanh_gaussian(config, ref.mlp(params, obs, config.activation), noise)

    noise = ref.normal(next_key, (BATCH, ACT))
    action, log_prob = policy(old.policy.params, batch.next_obs, noise)
    value = ref.min_q(old.targets, batch.next_obs, action, config.activation) - alpha * log_prob
    step.check_twin_critics(step.bootstrapped(value))

    noise = ref.normal(key, (BATCH, ACT))

    def loss(params):
        action, log_prob = policy(params, batch.obs, noise)
        value = ref.min_q(step.critics(new), batch.obs, action, config.activation)
        return np.mean(alpha * log_prob - value)

    raw = step.raw.policy
    ref.check_adam(raw, new.policy, loss, RATE)
    np.testing.assert_allclose(step.metrics["policy_loss"], loss(old.policy.params), rtol=1e-4)
    entropy = -policy(old.policy.params, batch.obs, noise)[1].mean()
    np.testing.assert_allclose(step.metrics["policy_entropy"], entropy / ACT, rtol=1e-4)
    step.check_temperature(step.raw.temperature, new.temperature, entropy + ACT, RATE)
    step.check_averaged(old.targets, new.targets, tuple(step.critics(new)), 0.1)
    noise = ref.normal(step.key, (BATCH, ACT))
    step.check_explored(policy(old.policy.params, batch.obs, noise)[0])


@pytest.mark.parametrize("preset", ["default", "qflex_paper"])
def test_crossq(preset):
    config = tiny("crossq", preset)
    step = Step("crossq", config, 2)  # the policy's turn in either preset: updates 2, 5, 8, ...
    batch, old, new = step.batch, step.old, step.new
    alpha = np.exp(old.actor.temperature.log_alpha)
    next_key, key = jax.random.split(step.key)
    corrections = {name: [] for name in (0, 1, "policy")}

    def evaluated_policy(obs, key):
        output = np_eval(old.actor.policy[:2], obs)
        return ref.tanh_gaussian(config, output, ref.normal(key, (BATCH, ACT)))

    def trained_policy(params):
        net = params, old.actor.policy.batch_stats
        output = np_train(net, batch.obs, 1, corrections["policy"])
        return ref.tanh_gaussian(config, output, ref.normal(key, (BATCH, ACT)))

    next_action, log_prob = evaluated_policy(batch.next_obs, next_key)
    inputs = np.concatenate(
        [
            np.concatenate([batch.obs, batch.action], 1),
            np.concatenate([batch.next_obs, next_action], 1),
        ]
    )

    def joint(index, params):
        net = params, old.critics[index].batch_stats
        return np_train(net, inputs, 1, corrections[index])[:, 0]

    both = [joint(index, old.critics[index].params) for index in (0, 1)]
    soft = np.minimum(both[0][BATCH:], both[1][BATCH:]) - alpha * log_prob
    target, losses = step.bootstrapped(soft), []
    for index in (0, 1):

        def critic_loss(params, index=index):
            return np.mean((joint(index, params)[:BATCH] - target) ** 2)

        losses.append(critic_loss(old.critics[index].params))
        raw, after = step.raw.critics[index], new.critics[index]
        ref.check_adam(raw, after, critic_loss, RATE, beta1=0.5)
    np.testing.assert_allclose(step.metrics["critic_loss"], np.mean(losses), rtol=1e-4)

    critics_seen = old.critics if config.stale_critic else new.critics

    def policy_loss(params):
        action, log_prob = trained_policy(params)
        inputs = np.concatenate([batch.obs, action], 1)
        values = [
            np_eval((guide.params, fresh.batch_stats), inputs)[:, 0]
            for guide, fresh in zip(critics_seen, new.critics, strict=True)
        ]
        return np.mean(alpha * log_prob - np.minimum(*values))

    raw = step.raw.actor.policy
    ref.check_adam(raw, new.actor.policy, policy_loss, RATE, 0.5)
    expected = policy_loss(old.actor.policy.params)
    np.testing.assert_allclose(step.metrics["policy_loss"], expected, rtol=1e-4)
    entropy = -trained_policy(old.actor.policy.params)[1].mean()
    np.testing.assert_allclose(step.metrics["policy_entropy"], entropy / ACT, rtol=1e-4)
    excess = entropy + ACT
    step.check_temperature(step.raw.actor.temperature, new.actor.temperature, excess, RATE)
    step.check_explored(evaluated_policy(batch.obs, step.key)[0])
    # The next update is not the policy's turn where it has to wait.
    waited = np.all(step.after_next.actor.policy.params.layers[0].kernel
                    == new.actor.policy.params.layers[0].kernel)  # fmt: skip
    assert waited == (preset == "default")


@pytest.mark.parametrize("preset", ["default", "qflex_paper"])
def test_sdac(preset):
    config = tiny("sdac", preset, alpha_period=2, decay_begin=0, decay_updates=4)
    step = Step("sdac", config, 4)  # the turn of all
    batch, old, new = step.batch, step.old, step.new
    alpha = np.exp(old.temperature.log_alpha)
    betas = ref.linear_betas(3, 0.8)
    critics, shape = step.critics(old), (BATCH, ACT)
    next_key, policy_key = jax.random.split(step.key)

    def behave(params, obs, key):
        draw_key, noise_key = jax.random.split(key)
        action = ref.best_of(
            3,
            lambda key: ref.denoise(params, obs, betas, key, shape, 0.5, "start"),
            lambda action: ref.min_q(critics, obs, action, "mish"),
            draw_key,
        )
        return action + 0.1 * alpha * ref.normal(noise_key, shape)

    step.check_explored(behave(old.actor.slow_policy, batch.obs, step.key))
    next_action = behave(old.actor.policy.params, batch.next_obs, next_key)
    next_value = ref.min_q(old.actor.targets, batch.next_obs, next_action, "mish")
    step.check_twin_critics(step.bootstrapped(next_value))

    action_key, key = jax.random.split(policy_key)
    step_key, noise_key, candidate_key = jax.random.split(key, 3)
    action = behave(old.actor.policy.params, batch.obs, action_key)
    time = np.asarray(jax.random.randint(step_key, (BATCH,), 0, 3))
    bar = np.cumprod(1 - betas)[time][:, None]
    noisy = np.sqrt(bar) * action + np.sqrt(1 - bar) * ref.normal(noise_key, shape)
    candidates = ref.normal(candidate_key, (4, BATCH, ACT))
    weights = []
    for noise in candidates:
        clean = np.clip((noisy - np.sqrt(1 - bar) * noise) / np.sqrt(bar), -1, 1)
        weights.append(np.exp(5 * ref.min_q(critics, batch.obs, clean, "mish") / alpha))
    weights = np.array(weights) / np.sum(weights, axis=0)

    def loss(params):
        predicted = ref.noise_net(params, batch.obs, noisy, time)
        return np.mean(weights * np.mean((predicted - candidates) ** 2, axis=2))

    raw = step.raw.actor.policy
    # Two of four steps of the falling rate are done.
    ref.check_adam(raw, new.actor.policy, loss, (RATE + 3e-5) / 2)
    np.testing.assert_allclose(
        step.metrics["policy_loss"], loss(old.actor.policy.params), rtol=1e-4
    )
    step.check_averaged(old.actor.targets, new.actor.targets, tuple(step.critics(new)), 0.1)
    slow = old.actor.slow_policy, new.actor.slow_policy
    step.check_averaged(*slow, new.actor.policy.params, 0.1)
    excess = ACT * (0.5 * np.log(2 * np.pi * np.e * (0.1 * alpha) ** 2) + 0.9)
    rate = {"default": 7e-3, "qflex_paper": 3e-4}[preset]
    step.check_temperature(step.raw.temperature, new.temperature, excess, rate)


class DacerStep(Step):
    """An update at which critics, policy and regulator all have their turn."""

    def __init__(self, preset):
        config = tiny("dacer", preset, alpha_period=2, decay_begin=1, decay_updates=2)
        super().__init__("dacer", config, 4)
        # The third policy update is one of two steps down the falling rate.
        self.policy_rate = {"default": RATE, "qflex_paper": (RATE + 3e-5) / 2}[preset]
        paper = preset == "default"
        self.betas = ref.vp_betas(3) if paper else ref.linear_betas(3, 0.3)
        self.start = 1.0 if paper else 0.5
        self.alpha = np.exp(self.old.regulator.temperature.log_alpha)

    def behave(self, params, obs, key):
        draw_key, noise_key = jax.random.split(key)
        shape = (len(obs), ACT)
        action = ref.denoise(params, obs, self.betas, draw_key, shape, self.start, "start")
        return np.clip(action + 0.15 * self.alpha * ref.normal(noise_key, shape), -1, 1)

    def critic(self, params, obs, action):
        output = ref.critic(params, obs, action, self.config.activation)
        return output[:, 0], np.log1p(np.exp(output[:, 1]))

    def check_critics(self, next_key, return_key):
        batch, old, new = self.batch, self.old, self.new
        next_action = self.behave(old.actor.policy.params, batch.next_obs, next_key)
        outputs = [self.critic(params, batch.next_obs, next_action) for params in old.actor.targets]
        z = np.clip(ref.normal(return_key, (2, BATCH)), -3, 3)
        first = outputs[0][0] < outputs[1][0]
        draws = [mean + std * z for (mean, std), z in zip(outputs, z, strict=True)]
        target = self.bootstrapped(np.minimum(outputs[0][0], outputs[1][0]))
        drawn = self.bootstrapped(np.where(first, *draws))

        errors = []
        for index in (0, 1):
            raw, before = self.raw.critics[index], old.critics[index].params
            q, s = self.critic(before, batch.obs, batch.action)
            spread = 0.1 * s.mean() + 0.9 * old.spread[index]
            np.testing.assert_allclose(new.spread[index], spread, rtol=1e-4)
            bounded = np.clip(drawn, q - 3 * spread, q + 3 * spread)

            def loss(params, q=q, s=s, spread=spread, bounded=bounded):
                mean, std = self.critic(params, batch.obs, batch.action)
                towards = mean * (target - q) / (s**2 + 0.1)
                widening = std * ((q - bounded) ** 2 - s**2) / (s**3 + 0.1)
                return -(spread**2 + 0.1) * np.mean(towards + widening)

            ref.check_adam(raw, new.critics[index], loss, RATE)
            errors.append(np.mean((q - target) ** 2))
        np.testing.assert_allclose(self.metrics["critic_loss"], np.mean(errors), rtol=1e-4)

    def check_policy(self, key):
        batch, old, new = self.batch, self.old, self.new

        def loss(params):
            action = self.behave(params, batch.obs, key)
            values = [self.critic(params, batch.obs, action)[0] for params in self.critics(old)]
            return -np.mean(np.minimum(*values))

        ref.check_adam(self.raw.actor.policy, new.actor.policy, loss, self.policy_rate)
        np.testing.assert_allclose(
            self.metrics["policy_loss"], loss(old.actor.policy.params), rtol=1e-4
        )

    def check_regulator(self, key):
        """The entropy is that of 30 actions at each of the batch's first two states."""
        entropies = []
        for obs, state_key in zip(self.batch.obs, jax.random.split(key), strict=False):
            obs = np.repeat(obs[None], 30, 0)
            actions = self.behave(self.old.actor.policy.params, obs, state_key)
            entropies.append(dacer.mixture_entropy(jnp.asarray(actions, jnp.float32)))
        entropy = float(np.mean(entropies))
        np.testing.assert_allclose(self.metrics["policy_entropy"], entropy / ACT, rtol=1e-3)
        before, after = (x.regulator.temperature for x in (self.raw, self.new))
        self.check_temperature(before, after, entropy + 0.9 * ACT, 3e-2)


@pytest.mark.parametrize("preset", ["default", "qflex_paper"])
def test_dacer(preset):
    step = DacerStep(preset)
    next_key, return_key, policy_key, entropy_key = jax.random.split(step.key, 4)
    step.check_explored(step.behave(step.old.actor.policy.params, step.batch.obs, step.key))
    step.check_critics(next_key, return_key)
    step.check_policy(policy_key)
    step.check_averaged(
        step.old.actor.targets, step.new.actor.targets, tuple(step.critics(step.new)), 0.1
    )
    step.check_regulator(entropy_key)


@pytest.mark.parametrize("preset", ["default", "qflex_paper"])
def test_qsm(preset):
    config = tiny("qsm", preset, policy_tau=0.2, decay_updates=8)
    config = dataclasses.replace(config, decay_begin=min(config.decay_begin, 1))
    step = Step("qsm", config, 3)
    batch, old, new = step.batch, step.old, step.new
    critics, shape = step.critics(old), (BATCH, ACT)
    # Qflex's authors update the critics first, and the score on the new ones.
    critics_seen, rate = {
        "default": (critics, RATE * (1 + np.cos(np.pi * 3 / 8)) / 2),
        "qflex_paper": (step.critics(new), RATE + (3e-5 - RATE) * 2 / 8),
    }[preset]
    next_key, policy_key = jax.random.split(step.key)
    step_key, noise_key = jax.random.split(policy_key)
    betas = ref.vp_betas(3)

    if preset == "default":
        time = np.asarray(jax.random.randint(step_key, (BATCH,), 0, 3))
        bar = np.cumprod(1 - betas)[time][:, None]
        action = np.sqrt(bar) * batch.action + np.sqrt(1 - bar) * ref.normal(noise_key, shape)
        wanted = -3 * ref.action_gradient(
            lambda a: np.mean([ref.critic(c, batch.obs, a, "relu")[:, 0] for c in critics_seen], 0),
            action,
        )

        def output(params):
            return ref.noise_net(params, batch.obs, action, time)
    else:
        wanted = 3 * ref.action_gradient(
            lambda a: ref.min_q(critics_seen, batch.obs, a, "relu"), batch.action
        )

        def output(params):
            return ref.critic(params, batch.obs, batch.action, "relu")

    def loss(params):
        return np.mean((output(params) - wanted) ** 2)

    raw = step.raw.policy
    ref.check_adam(raw, new.policy, loss, rate)
    np.testing.assert_allclose(step.metrics["policy_loss"], loss(old.policy.params), rtol=1e-4)
    step.check_averaged(old.slow_policy, new.slow_policy, new.policy.params, 0.2)

    def draw(policy, obs, key):
        if preset == "default":
            return ref.denoise(policy, obs, betas, key, shape, 1.0, "iterate")
        keys = jax.random.split(key, 4)
        action = ref.normal(keys[0], shape)
        for index, key in enumerate(keys[1:]):
            size = 1 - index / 3
            slope = ref.critic(policy, obs, action, "relu")
            action = action + size / 2 * slope + np.sqrt(size) * ref.normal(key, shape)
            action = np.clip(action, -1, 1)
        return action

    def behave(policy, obs, key):
        draw_key, noise_key = jax.random.split(key)
        value = partial(ref.min_q, critics, obs, activation="relu")
        action = ref.best_of(3, partial(draw, policy, obs), value, draw_key)
        noise = {"default": 0.1, "qflex_paper": 0.0}[preset]
        return np.clip(action + noise * ref.normal(noise_key, shape), -1, 1)

    step.check_explored(behave(old.slow_policy, batch.obs, step.key))
    slow_policy = {"default": new.slow_policy, "qflex_paper": old.slow_policy}[preset]
    next_action = behave(slow_policy, batch.next_obs, next_key)
    next_value = ref.min_q(old.targets, batch.next_obs, next_action, "relu")
    step.check_twin_critics(step.bootstrapped(next_value))
    step.check_averaged(old.targets, new.targets, tuple(step.critics(new)), 0.1)


def test_schedules():
    for schedule, betas in (
        (diffusion.linear_schedule(20, 0.8), ref.linear_betas(20, 0.8)),
        (diffusion.variance_preserving_schedule(5), ref.vp_betas(5)),
    ):
        np.testing.assert_allclose(schedule.beta, betas, rtol=1e-5)
        np.testing.assert_allclose(schedule.alpha_bar, np.cumprod(1 - betas), rtol=1e-5)


def test_mixture_entropy_of_known_mixtures():
    """Apart, the components' entropies add to the weights'; one Gaussian is itself."""
    rng = np.random.default_rng(0)
    deviations, centers = np.array([0.2, 0.05, 0.1]), 0.8 * np.array([[1, 1], [-1, 1], [0, -1]])
    label = rng.choice(3, 2_000, p=[0.5, 0.2, 0.3])
    samples = centers[label] + deviations[label, None] * rng.normal(size=(2_000, 2))
    weights = np.bincount(label) / 2_000
    gaussians = np.log(2 * np.pi * np.e * (deviations**2 + 1e-4))
    expected = np.sum(weights * (gaussians - np.log(weights)))
    found = dacer.mixture_entropy(jnp.asarray(samples, jnp.float32))
    np.testing.assert_allclose(found, expected, atol=0.06)


def test_langevin_settles_where_the_score_points():
    """A score of 40 (0.3 - a) is that of a narrow Gaussian at 0.3."""
    draw_shape = (512, 2)
    action = qsm.langevin(
        lambda action: 40.0 * (0.3 - action),
        jax.random.key(0),
        lambda key: jax.random.normal(key, draw_shape),
        400,
    )
    np.testing.assert_allclose(action.mean(), 0.3, atol=0.05)
    assert math.isclose(float(action.std()), 40**-0.5, abs_tol=0.06)
