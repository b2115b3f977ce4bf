"""How far a part is from what the device could do at best.

Datasheet peaks stand beside what a plain product and a plain copy reach here, because the first are
not reached by anything, and are not known for every device.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mjx_qflex.benchmarking.timing import Budget, Repeated


class Peak(NamedTuple):
    """Of one device: products (TFLOP/s) in three formats, memory (GB/s), and whose numbers."""

    float32: float
    tf32: float
    bfloat16: float
    gb_per_s: float
    source: str


# By a part of the device's kind. Dense products, without structured sparsity.
PEAKS = {
    "H200": Peak(67.0, 494.0, 989.0, 4800.0, "NVIDIA's datasheet, SXM"),
    "H100": Peak(67.0, 494.0, 989.0, 3350.0, "NVIDIA's datasheet, SXM"),
    "A100": Peak(19.5, 156.0, 312.0, 2039.0, "NVIDIA's datasheet, 80 GB SXM"),
}


def peak_of(device_kind: str) -> Peak | None:
    """Returns the datasheet's peaks of a device, None where they are not in `PEAKS`."""
    return next((peak for name, peak in PEAKS.items() if name in device_kind), None)


def attained(budget: Budget) -> dict[str, float]:
    """Returns what a product of two large matrices and a copy reach on the default device.

    Products are float32 at JAX's default precision (tf32 on newer GPUs) and bfloat16.
    """
    size = 1024 if jax.default_backend() == "cpu" else 8192
    found = {}
    for dtype in (jnp.float32, jnp.bfloat16):
        matrix = jax.random.normal(jax.random.key(0), (size, size), dtype) / math.sqrt(size)
        product = Repeated(lambda pair: (pair[1], pair[0] @ pair[1]), (matrix, matrix + 0), {})
        name = f"{jnp.dtype(dtype).name}_tflops"
        found[name] = 2e-12 * size**3 / product.measure(budget).median
    numbers = jnp.zeros(2**25 if size == 1024 else 2**29)
    copy = Repeated(lambda x: x + 1.0, numbers, {})
    found["gb_per_s"] = 2e-9 * numbers.nbytes / copy.measure(budget).median
    return found


def describe(device_kind: str, tflops: float | None, budget: Budget) -> dict[str, Any]:
    """Returns the peaks that shares refer to: as the user gave them, of the datasheet, attained."""
    peak = peak_of(device_kind)
    return {
        "given": {"tflops": tflops} if tflops else {},
        "datasheet": dict(peak._asdict()) if peak else {},
        "attained_here": attained(budget),
    }
