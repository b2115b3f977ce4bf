"""A jitted function that is traced and compiled once, with the time that took."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.export


class Program:
    """Compiles `function` ahead of its first call, for the one signature it is ever called with.

    `jax.jit` alone would compile again, silently, whenever a dtype or a weak type changes; a
    compiled program raises instead. Compile time is kept apart from run time.

    Attributes:
      compile_seconds: time spent tracing and compiling; None until that has happened.
      compiled: the `jax.stages.Compiled`, for its memory and cost analysis; None until compiled.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        donate: tuple[int, ...] = (),
        compiler_options: dict[str, Any] | None = None,
        jit: Callable[..., Any] = jax.jit,
    ):
        """Wraps `function`; `compiler_options` are XLA's and apply to this program alone.

        `jit` may be `jax.pmap` with its options.
        """
        self._jitted = jit(function, donate_argnums=donate)
        self._options = compiler_options or None
        self.compile_seconds: float | None = None
        self.compiled: Any = None

    def compile(self, *args: Any) -> float:
        """Compiles for arguments of these shapes (arrays or `ShapeDtypeStruct`s), if not yet done.

        Returns:
          The seconds that compiling took, now or earlier.
        """
        if self.compile_seconds is None:
            start = time.perf_counter()
            self.compiled = self._jitted.lower(*args).compile(self._options)
            self.compile_seconds = time.perf_counter() - start
        return self.compile_seconds

    def shapes(self, *args: Any) -> Any:
        """Returns the `ShapeDtypeStruct`s of what a call would return."""
        if self.compiled is not None:
            return jax.tree.map(
                lambda out: jax.ShapeDtypeStruct(out.shape, out.dtype), self.compiled.out_info
            )
        return jax.eval_shape(self._jitted, *args)

    def export(self, platforms: Sequence[str], *args: Any) -> jax.export.Exported:
        """Lowers for other `platforms`, such as "cuda" and "tpu", without compiler options.

        Raises:
          Exception: something in the function has no such lowering.
        """
        return jax.export.export(self._jitted, platforms=platforms)(*args)

    def __call__(self, *args: Any) -> Any:
        """Runs the program, compiling it first where needed."""
        self.compile(*args)
        return self.compiled(*args)


def stepping_options(env: Any) -> dict[str, Any]:
    """Returns the XLA options of programs that step `env`; they are for the CPU backend only."""
    if jax.default_backend() != "cpu":
        return {}
    return dict(getattr(env, "compiler_options", {}))
