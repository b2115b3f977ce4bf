"""Replay buffers behind one interface: ours, flashbax's two, and the one inside brax's SAC."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from brax.training import replay_buffers

from mjx_qflex.errors import UserError
from mjx_qflex.training import replay as ring
from mjx_qflex.training.replay import Layout
from mjx_qflex.types import Transition

EPISODE = 16  # actions, of the episodes that are added


class Buffer(NamedTuple):
    """A buffer of transitions of N environments, for batches of one shape."""

    init: Callable[[], Any]
    add: Callable[[Any, Transition, jax.Array], Any]  # fields [N, ...], and where episodes ended
    sample: Callable[[Any, jax.Array], Any]  # a key -> transitions


def random_step(spec: Transition, num_envs: int, key: jax.Array) -> Transition:
    """Returns one vector step `[N, ...]` of random numbers; no episode ends."""
    leaves, structure = jax.tree.flatten(spec)
    keys = jax.random.split(key, len(leaves))
    drawn = [
        jax.random.normal(k, (num_envs, *x.shape), x.dtype)
        for k, x in zip(keys, leaves, strict=True)
    ]
    step = jax.tree.unflatten(structure, drawn)
    return step._replace(discount=jnp.ones(num_envs))


def ours(layout: Layout, shape: tuple[int, ...]) -> Buffer:
    """The ring of this library; batches are `[*shape, ...]`."""
    valid = jnp.ones(layout.num_envs, bool)
    return Buffer(
        init=lambda: ring.init(layout),
        add=lambda state, step, ended: ring.add(state, step, ended, valid),
        sample=lambda state, key: ring.sample(state, key, shape),
    )


def flashbax_items(layout: Layout, shape: tuple[int, ...]) -> Buffer:
    """flashbax's buffer of independent items: whole transitions, next observation included."""
    buffer = import_flashbax().make_item_buffer(
        max_length=layout.rows * layout.num_envs,
        min_length=1,
        sample_batch_size=_product(shape),
        add_batches=True,
    )
    return Buffer(
        init=lambda: buffer.init(_example(layout.transition)),
        add=lambda state, step, _: buffer.add(state, step),
        sample=lambda state, key: buffer.sample(state, key).experience,
    )


def flashbax_pairs(layout: Layout, shape: tuple[int, ...]) -> Buffer:
    """flashbax's flat buffer: each observation once, a transition is two neighbours in time.

    Where an episode ends it has the first observation of the next one in place of the last.
    """
    buffer = import_flashbax().make_flat_buffer(
        max_length=layout.rows * layout.num_envs,
        min_length=layout.num_envs,
        sample_batch_size=_product(shape),
        add_batch_size=layout.num_envs,
    )

    def entry(step: Transition) -> dict[str, jax.Array]:
        kept = step._asdict()
        del kept["next_obs"]
        return kept

    def sample(state: Any, key: jax.Array) -> Transition:
        pair = buffer.sample(state, key).experience
        return Transition(**pair.first, next_obs=pair.second["obs"])

    return Buffer(
        init=lambda: buffer.init(entry(_example(layout.transition))),
        add=lambda state, step, _: buffer.add(state, entry(step)),
        sample=sample,
    )


def brax_queue(layout: Layout, shape: tuple[int, ...]) -> Buffer:
    """The buffer of brax's SAC, whose key is its own; full, it moves all of itself at each add."""
    queue = replay_buffers.UniformSamplingQueue(
        layout.rows * layout.num_envs, _example(layout.transition), _product(shape)
    )
    return Buffer(
        init=lambda: queue.init(jax.random.PRNGKey(0)),
        add=lambda state, step, _: queue.insert_internal(state, step),
        sample=lambda state, key: queue.sample_internal(state.replace(key=key))[1],
    )


BUFFERS: dict[str, Callable[..., Buffer]] = {
    "ours": ours,
    "flashbax_items": flashbax_items,
    "flashbax_pairs": flashbax_pairs,
    "brax_queue": brax_queue,
}


def ended(num_envs: int, number: jax.Array) -> jax.Array:
    """Returns where `[N]` episodes end in vector step `number`: each one's at every 16th."""
    return (jnp.arange(num_envs) + number) % EPISODE == 0


def fill(buffer: Buffer, content: Any, layout: Layout) -> Any:
    """Returns a full buffer of random numbers: what a run samples from after its first hours.

    `content` is given away.
    """

    def run(content: Any) -> Any:
        def add(state: Any, number: jax.Array) -> tuple[Any, None]:
            key = jax.random.fold_in(jax.random.PRNGKey(1), number)
            step = random_step(layout.transition, layout.num_envs, key)
            return buffer.add(state, step, ended(layout.num_envs, number)), None

        return jax.lax.scan(add, content, jnp.arange(layout.rows))[0]

    return jax.block_until_ready(jax.jit(run, donate_argnums=0)(content))


def adding(buffer: Buffer, layout: Layout) -> Callable[[Any], Any]:
    """Returns the step to repeat on (buffer's state, number) that adds a vector step.

    The number goes into the reward, so that no write repeats the one before.
    """
    step = random_step(layout.transition, layout.num_envs, jax.random.PRNGKey(3))

    def add(state: tuple[Any, jax.Array]) -> tuple[Any, jax.Array]:
        content, number = state
        changed = step._replace(reward=step.reward + number)
        return buffer.add(content, changed, ended(layout.num_envs, number)), number + 1

    return add


def sampling(buffer: Buffer) -> Callable[[Any], Any]:
    """Returns the step to repeat on (buffer's state, key, batch) that draws a new batch."""

    def sample(state: tuple[Any, jax.Array, Any]) -> tuple[Any, jax.Array, Any]:
        content, key, _ = state
        key, draw = jax.random.split(key)
        return content, key, buffer.sample(content, draw)

    return sample


def sampling_state(buffer: Buffer, content: Any) -> tuple[Any, jax.Array, Any]:
    """Returns the state that `sampling` begins with."""
    key = jax.random.PRNGKey(2)
    return content, key, jax.jit(buffer.sample)(content, key)


def _example(spec: Transition) -> Transition:
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), spec)


def _product(shape: tuple[int, ...]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size


def import_flashbax() -> Any:
    """Returns the library.

    Raises:
      UserError: it is not installed.
    """
    try:
        import flashbax
    except ImportError:
        raise UserError(
            "flashbax is not installed; run: pip install 'mjx_qflex[benchmark]'"
        ) from None
    return flashbax
