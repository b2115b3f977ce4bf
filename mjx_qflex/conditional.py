"""A conditional that skips its work under `jax.vmap` too."""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp

Tree = TypeVar("Tree")


def when(condition: jax.Array, advance: Callable[[Tree], Tree], tree: Tree) -> Tree:
    """Returns `advance(tree)` where `condition` `[]` holds, else `tree`.

    `vmap` turns a `lax.cond` into a select, which does the work of both branches every time. A loop
    of at most one turn stays a loop: it turns while any member's condition holds, and leaves the
    others as they are.
    """

    def turn(loop: tuple[jax.Array, Tree]) -> tuple[jax.Array, Tree]:
        return jnp.zeros_like(loop[0]), advance(loop[1])

    return jax.lax.while_loop(lambda loop: loop[0], turn, (condition, tree))[1]
