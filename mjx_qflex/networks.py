"""The one network recipe of all algorithms: an MLP, with batch renormalisation or without.

    BatchRenorm(input) -> [Linear -> activation -> BatchRenorm] x depth -> Linear

Training runs `apply_train`, which normalises by the batch and returns new running statistics. Using
a trained network runs `for_inference` once and `apply` as often as needed. With fixed statistics
every normalisation is an affine map in front of a linear layer, so that it can be merged into that
layer. `fix_inputs` also fixes the inputs that stay the same from call to call (the observation,
while 20 steps move the action): their share of the first layer is computed once. The numbers stay
the same.

Under `jax.default_matmul_precision("bfloat16")` a layer rounds both factors of its product and sums
in float32; all else stays as it is. XLA by itself would follow that setting on a TPU only.

Batch renormalisation: Ioffe, "Batch Renormalization", arXiv 1702.03275; its constants here are
those of Qflex's code (CrossQ, arXiv 1902.05605, warms up for 100,000 calls instead of 10).
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from mjx_qflex import parallel

EPSILON = 1e-5  # added to variances, and the least variance of a batch
DECAY = 0.99  # of the running batch_stats
R_LIMIT = 3.0  # ratio of batch to running standard deviation that is corrected
D_LIMIT = 5.0  # running standard deviations of the batch mean's offset that is corrected

Activation = Literal["relu", "gelu", "mish"]
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": jax.nn.relu,
    "gelu": partial(jax.nn.gelu, approximate=False),
    "mish": jax.nn.mish,
}


class Linear(NamedTuple):
    kernel: jax.Array  # [I, O]
    bias: jax.Array  # [O]


class Affine(NamedTuple):
    scale: jax.Array  # [F]
    offset: jax.Array  # [F]


class MLP(NamedTuple):
    """Learned parameters; `norms` holds one entry in front of each layer, or is empty."""

    layers: tuple[Linear, ...]
    norms: tuple[Affine, ...]


class BatchStats(NamedTuple):
    """Exponential averages over training batches, without bias towards where they started."""

    mean: jax.Array  # [F]
    var: jax.Array  # [F]
    count: jax.Array  # [] int32, training calls so far


class InferenceMLP(NamedTuple):
    """A network with fixed batch statistics: `activation((x - center) @ kernel + bias) @ ...`."""

    center: jax.Array  # [I]
    layers: tuple[Linear, ...]  # biases are [1, O], or [B, O] where inputs were fixed


def init_mlp(
    key: jax.Array, sizes: Sequence[int], batch_norm: bool
) -> tuple[MLP, tuple[BatchStats, ...]]:
    """Returns parameters and statistics of a network of layer widths `sizes`, input and output too.

    Kernels are truncated normal with standard deviation 1 / sqrt(inputs) before truncation at two
    of it, as in Haiku; biases are zero.
    """
    layers = []
    for inputs, outputs in zip(sizes[:-1], sizes[1:], strict=True):
        key, layer_key = jax.random.split(key)
        kernel = jax.random.truncated_normal(layer_key, -2.0, 2.0, (inputs, outputs))
        layers.append(Linear(kernel / inputs**0.5, jnp.zeros(outputs)))
    if not batch_norm:
        return MLP(tuple(layers), ()), ()
    norms = tuple(Affine(jnp.ones(size), jnp.zeros(size)) for size in sizes[:-1])
    batch_stats = tuple(
        BatchStats(jnp.zeros(size), jnp.ones(size), jnp.zeros((), jnp.int32)) for size in sizes[:-1]
    )
    return MLP(tuple(layers), norms), batch_stats


def _mean_and_variance(x: jax.Array, origin: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns mean and variance [F] of a batch [B, F] that several devices may share.

    They meet once: the variance between the devices' means follows from squares of offsets from
    `origin` [F], which must be near the means for no digits to be lost.
    """
    mean = jnp.mean(x, axis=0)
    var = jnp.mean(jnp.square(x - mean[None]), axis=0)
    if parallel.number_of_devices() is None:
        return mean, var
    offset = mean - origin
    offset, square = parallel.mean((offset, var + jnp.square(offset)))
    return origin + offset, square - jnp.square(offset)


def batch_renorm(
    norm: Affine, batch_stats: BatchStats, x: jax.Array, warmup: int
) -> tuple[jax.Array, jax.Array, jax.Array, BatchStats]:
    """Normalises a batch `x` [B, F] as in training.

    The first `warmup` calls are plain batch normalisation. Later ones correct the batch's
    statistics towards the running ones, through factors that carry no gradient.

    Returns:
      The whitened batch z [B, F], gain [F] and shift [F] such that the result is z * gain + shift,
      and the new statistics.
    """
    mean, var = _mean_and_variance(x, batch_stats.mean)
    var = jnp.maximum(var, EPSILON)
    deviation = jnp.sqrt(var + EPSILON)
    running_deviation = jnp.sqrt(batch_stats.var + EPSILON)
    r = jnp.clip(deviation / running_deviation, 1.0 / R_LIMIT, R_LIMIT)
    d = jnp.clip((mean - batch_stats.mean) / running_deviation, -D_LIMIT, D_LIMIT)
    warm = batch_stats.count >= warmup
    r = jax.lax.stop_gradient(jnp.where(warm, r, 1.0))
    d = jax.lax.stop_gradient(jnp.where(warm, d, 0.0))
    # (1 - decay) / (1 - decay^n): the average that starts at zero, divided by its total weight. In
    # this form an input that never varies keeps its mean to the last digit.
    count = batch_stats.count + 1
    weight = -jnp.expm1(count.astype(jnp.float32) * math.log(DECAY))
    rate = jnp.minimum((1.0 - DECAY) / weight, 1.0)
    new_stats = BatchStats(
        mean=batch_stats.mean + rate * (mean - batch_stats.mean),
        var=batch_stats.var + rate * (var - batch_stats.var),
        count=count,
    )
    whitened = (x - mean[None]) / deviation[None]
    return (
        whitened,
        norm.scale * r,
        norm.scale * d + norm.offset,
        jax.lax.stop_gradient(new_stats),
    )


def apply_train(
    params: MLP,
    batch_stats: tuple[BatchStats, ...],
    x: jax.Array,
    warmup: int,
    activation: Activation = "relu",
) -> tuple[jax.Array, tuple[BatchStats, ...]]:
    """Maps `x` [B, I] to the output [B, O] by the batch's statistics; also returns running ones."""
    new_stats = []
    for index, layer in enumerate(params.layers):
        if index:
            x = ACTIVATIONS[activation](x)
        if params.norms:
            # Gain and shift act on the kernel, not on the batch: the gradient of the first layer
            # then needs no product that goes back to a wide input, and networks that read the same
            # input share its whitening.
            x, gain, shift, updated = batch_renorm(
                params.norms[index], batch_stats[index], x, warmup
            )
            layer = _absorb(layer, gain, shift)
            new_stats.append(updated)
        x = _product(x, layer.kernel) + layer.bias[None]
    return x, tuple(new_stats)


def _product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Returns `x` [B, I] times `kernel` [I, O] in the precision that JAX is set to."""
    if jax.config.jax_default_matmul_precision == "bfloat16":
        return _rounded_product(x, kernel)
    return x @ kernel


@jax.custom_vjp
def _rounded_product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    # With a derivative of its own: JAX's would multiply the float32 gradient by bfloat16 factors.
    return _rounded_product_forward(x, kernel)[0]


def _rounded_product_forward(x: jax.Array, kernel: jax.Array):
    x, kernel = x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)
    return _summed_in_float32(x, kernel), (x, kernel)


def _rounded_product_backward(factors: tuple[jax.Array, jax.Array], gradient: jax.Array):
    x, kernel = factors
    gradient = gradient.astype(jnp.bfloat16)
    return _summed_in_float32(gradient, kernel.T), _summed_in_float32(x.T, gradient)


_summed_in_float32 = partial(jnp.matmul, preferred_element_type=jnp.float32)


_rounded_product.defvjp(_rounded_product_forward, _rounded_product_backward)


def _absorb(layer: Linear, gain: jax.Array, shift: jax.Array) -> Linear:
    """Returns the layer that maps z as `layer` maps z * gain + shift."""
    bias = layer.bias + jnp.dot(shift, layer.kernel, precision=jax.lax.Precision.HIGHEST)
    return Linear(gain[:, None] * layer.kernel, bias)


def for_inference(params: MLP, batch_stats: tuple[BatchStats, ...]) -> InferenceMLP:
    """Returns the network with its running statistics merged into the linear layers.

    The input is still centred explicitly: an observation's mean can be large against its spread,
    and subtracting after the product would lose digits.
    """
    layers = list(params.layers)
    center = jnp.zeros(layers[0].kernel.shape[0])
    for index, norm in enumerate(params.norms):
        gain = norm.scale / jnp.sqrt(batch_stats[index].var + EPSILON)
        if index == 0:
            center, shift = batch_stats[index].mean, norm.offset
        else:
            shift = norm.offset - batch_stats[index].mean * gain
        layers[index] = _absorb(layers[index], gain, shift)
    return InferenceMLP(center, tuple(Linear(layer.kernel, layer.bias[None]) for layer in layers))


def fix_inputs(net: InferenceMLP, x: jax.Array) -> InferenceMLP:
    """Returns the network of the remaining inputs, with the leading ones fixed to `x` [B, I0]."""
    leading = x.shape[-1]
    first, *rest = net.layers
    bias = _product(x - net.center[None, :leading], first.kernel[:leading]) + first.bias
    return InferenceMLP(net.center[leading:], (Linear(first.kernel[leading:], bias), *rest))


def apply(net: InferenceMLP, x: jax.Array, activation: Activation = "relu") -> jax.Array:
    """Maps `x` [B, I] (the inputs that are not fixed) to the output [B, O]."""
    x = x - net.center[None]
    for index, layer in enumerate(net.layers):
        if index:
            x = ACTIVATIONS[activation](x)
        x = _product(x, layer.kernel) + layer.bias
    return x
