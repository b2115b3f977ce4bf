"""The networks against the equations written out in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from mjx_qflex import networks

SIZES = (5, 16, 16, 2)


def numpy_renorm(norm, mean, var, x, r_and_d=None):
    """Normalises by given moments; `r_and_d` are the corrections of batch renormalisation."""
    r, d = r_and_d or (1.0, 0.0)
    normal = (x - mean) / np.sqrt(var + 1e-5) * r + d
    return normal * np.asarray(norm.scale) + np.asarray(norm.offset)


def renorm(norm, moments, x, warmup):
    whitened, gain, shift, moments = networks.batch_renorm(norm, moments, x, warmup)
    return whitened * gain[None] + shift[None], moments


def random_norm(rng, size):
    scale, offset = rng.uniform(0.5, 1.5, size), rng.normal(size=size)
    return networks.Affine(jnp.asarray(scale, jnp.float32), jnp.asarray(offset, jnp.float32))


def trained(seed=0, batch_norm=True):
    """A network with random scales, offsets and biases, and moments of a few training calls."""
    rng = np.random.default_rng(seed)
    params, moments = networks.init_mlp(jax.random.key(seed), SIZES, batch_norm)
    params = networks.MLP(
        tuple(
            layer._replace(bias=jnp.asarray(rng.normal(size=layer.bias.shape), jnp.float32))
            for layer in params.layers
        ),
        tuple(random_norm(rng, norm.scale.size) for norm in params.norms),
    )
    for index in range(3):
        x = 2.0 * jax.random.normal(jax.random.key(index), (32, SIZES[0])) + 1.0
        _, moments = networks.apply_train(params, moments, x, warmup=10)
    return params, moments


def test_batch_renorm_equals_numpy_through_warmup_and_clipping():
    rng = np.random.default_rng(0)
    size, warmup = 4, 2
    norm = random_norm(rng, size)
    moments = networks.BatchStats(jnp.zeros(size), jnp.ones(size), jnp.zeros((), jnp.int32))
    mean_average, var_average = np.zeros(size), np.zeros(size)
    # The last batch is far off and wide, so that r and d both reach their limits.
    for call, (center, spread) in enumerate([(0, 1), (0.5, 1.2), (1, 2), (40, 30)]):
        x = rng.normal(center, spread, (64, size)).astype(np.float32)
        x[:, 3] = 7.0  # without variance
        mean, var = x.mean(0), np.maximum(x.var(0), 1e-5)
        r_and_d = None
        if call >= warmup:
            weight = 1 - 0.99**call
            running = np.sqrt(var_average / weight + 1e-5)
            ratio = np.clip(np.sqrt(var + 1e-5) / running, 1 / 3, 3)
            offset = np.clip((mean - mean_average / weight) / running, -5, 5)
            r_and_d = ratio, offset
        expected = numpy_renorm(norm, mean, var, x, r_and_d)
        mean_average = 0.99 * mean_average + 0.01 * mean
        var_average = 0.99 * var_average + 0.01 * var
        result, moments = renorm(norm, moments, jnp.asarray(x), warmup)
        np.testing.assert_allclose(result, expected, rtol=2e-4, atol=2e-4)
    assert ratio.max() == 3 and offset.max() == 5
    weight = 1 - 0.99**4
    np.testing.assert_allclose(moments.mean, mean_average / weight, rtol=1e-5)
    np.testing.assert_allclose(moments.var, var_average / weight, rtol=1e-4, atol=1e-7)
    assert moments.count == 4


def test_correction_carries_no_gradient():
    norm = networks.Affine(jnp.ones(1), jnp.zeros(1))
    moments = networks.BatchStats(jnp.array([0.2]), jnp.array([0.3]), jnp.array(10))
    x = jnp.array([[0.0], [1.0], [3.0]])

    def spread(x, warmup):
        return jnp.sum(renorm(norm, moments, x, warmup)[0] ** 2)

    # Batch-normalised values keep their sum of squares whatever the batch's scale and mean, so
    # with r and d constant the gradient along both vanishes up to the shift by d.
    plain = jax.grad(spread)(x, 100)
    assert abs(float(jnp.sum(plain))) < 1e-4
    assert abs(float(jnp.sum(jax.grad(spread)(x, 0)))) < 1e-4


@pytest.mark.parametrize("batch_norm", [True, False])
def test_folded_equals_unfolded(batch_norm):
    params, moments = trained(batch_norm=batch_norm)
    x = np.random.default_rng(3).normal(size=(9, SIZES[0])).astype(np.float32)
    expected = x.astype(np.float64)
    for index, layer in enumerate(params.layers):
        if index:
            expected = np.maximum(expected, 0)
        if batch_norm:
            mean, var, _ = moments[index]
            expected = numpy_renorm(
                params.norms[index], np.asarray(mean), np.asarray(var), expected
            )
        expected = expected @ np.asarray(layer.kernel) + np.asarray(layer.bias)
    result = networks.apply(networks.for_inference(params, moments), jnp.asarray(x))
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("batch_norm", [True, False])
def test_binding_the_observation_changes_no_number(batch_norm):
    params, moments = trained(batch_norm=batch_norm)
    folded = networks.for_inference(params, moments)
    x = jax.random.normal(jax.random.key(7), (6, SIZES[0]))
    obs, action = x[:, :3], x[:, 3:]
    bound = networks.fix_inputs(folded, obs)

    def value(action):
        return networks.apply(bound, action).sum()

    def value_without(action):
        return networks.apply(folded, jnp.concatenate([obs, action], axis=1)).sum()

    np.testing.assert_allclose(
        networks.apply(bound, action), networks.apply(folded, x), rtol=1e-5, atol=1e-5
    )
    np.testing.assert_allclose(
        jax.grad(value)(action), jax.grad(value_without)(action), rtol=1e-5, atol=1e-5
    )


def test_folding_keeps_the_digits_of_a_large_mean():
    params, moments = networks.init_mlp(jax.random.key(0), (1, 8, 1), batch_norm=True)
    x = 1000.0 + jnp.linspace(-0.05, 0.05, 64)[:, None]
    for _ in range(5):
        output, moments = networks.apply_train(params, moments, x, warmup=10)
    folded = networks.apply(networks.for_inference(params, moments), x)
    np.testing.assert_allclose(folded, output, atol=0.05 * float(jnp.ptp(output)))


def test_untrained_statistics_leave_the_input_alone():
    params, moments = networks.init_mlp(jax.random.key(0), SIZES, batch_norm=True)
    plain, _ = networks.init_mlp(jax.random.key(0), SIZES, batch_norm=False)
    x = jax.random.normal(jax.random.key(1), (4, SIZES[0]))
    np.testing.assert_allclose(
        networks.apply(networks.for_inference(params, moments), x),
        networks.apply(networks.for_inference(plain, ()), x),
        rtol=1e-4,
        atol=1e-4,
    )


def test_initial_kernels_are_truncated_normal():
    params, _ = networks.init_mlp(jax.random.key(0), (400, 300), batch_norm=False)
    scaled = np.asarray(params.layers[0].kernel) * 400**0.5
    assert 1.99 < np.abs(scaled).max() <= 2.0
    assert abs(scaled.std() - 0.8796) < 0.01  # of a unit normal cut at +-2
    assert abs(scaled.mean()) < 0.01


def test_products_in_bfloat16_round_factors_and_nothing_else():
    rng = np.random.default_rng(0)
    x, kernel, upstream = (rng.normal(size=s).astype("f") for s in ((7, 5), (5, 3), (7, 3)))
    layers = (networks.Linear(jnp.asarray(kernel), jnp.full((1, 3), 1e-4)),)
    folded = networks.InferenceMLP(jnp.zeros(5), layers)

    def outputs(x, folded):
        return networks.apply(folded, x)

    def rounded(values):
        return np.asarray(jnp.asarray(values, jnp.bfloat16), np.float32)

    with jax.default_matmul_precision("bfloat16"):
        got, pull = jax.vjp(outputs, jnp.asarray(x), folded)
        to_x, to_folded = pull(jnp.asarray(upstream))
    expected = rounded(x) @ rounded(kernel) + 1e-4
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(to_x, rounded(upstream) @ rounded(kernel).T, rtol=1e-6, atol=1e-6)
    to_kernel = to_folded.layers[0].kernel
    np.testing.assert_allclose(to_kernel, rounded(x).T @ rounded(upstream), rtol=1e-6, atol=1e-6)
    assert got.dtype == to_x.dtype == to_kernel.dtype == jnp.float32
    assert np.abs(got - (x @ kernel + 1e-4)).max() > 1e-4


def test_gelu_is_the_exact_one():
    """The approximation by tanh is up to 5e-4 away, and papers' networks 1e-3 after 3 updates."""
    x = np.linspace(-5.0, 5.0, 1001)
    expected = 0.5 * x * (1 + scipy.special.erf(x / np.sqrt(2)))
    found = networks.ACTIVATIONS["gelu"](jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(found, expected, atol=2e-6)
