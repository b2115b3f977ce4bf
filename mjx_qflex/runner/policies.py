"""Trained policies that ship: plain arrays by name, which no change of the code breaks unseen.

    FOLDER/policy.json    configuration, card (how it was trained, what it reaches), arrays' shapes
    FOLDER/acting.npz     what it acts with, and observations [16, O] with its actions [16, A]
    FOLDER/learning.npz   what it learns on with besides, such as critics

Optimisers' averages are left out: they are two thirds of a learner, and training that goes on
makes them anew. A policy is refused where the code of today gives other actions than those that
were recorded with it.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mjx_qflex import config as configs
from mjx_qflex import files, resources
from mjx_qflex.config import Config
from mjx_qflex.errors import UserError
from mjx_qflex.lookup import unknown_name
from mjx_qflex.types import Acted, Algorithm, Learner

FOLDER = "policies"  # of assets
ABOUT = "policy.json"
FORMAT = 2
OLD_NAMES = {1: (".moments.", ".batch_stats.")}  # of arrays, by format
EXAMPLES = 16
TOLERANCE = 1e-4  # of actions, between machines
OPTIMIZER = "opt_state"  # the part of a leaf's path that belongs to an optimiser
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Shipped:
    """A policy as it was read.

    Attributes:
      folder: where it lies.
      config: of the run that it comes from.
      card: how it was trained and what it reaches, JSON values by name.
      arrays: leaves of the learner by path.
      examples: `observations [16, O]`, and the `actions [16, A]` that it takes there in evaluation.
    """

    folder: Path
    config: Config
    card: dict[str, Any]
    arrays: Arrays
    examples: Arrays


def names() -> list[str]:
    """Returns the names of the policies that ship with the package."""
    root = resources.data_folder("assets") / FOLDER
    return sorted(path.parent.name for path in root.glob(f"*/{ABOUT}"))


def find(name: str) -> Path:
    """Returns the folder of a shipped policy, or of the user's own (a path).

    Raises:
      UserError: there is none.
    """
    if (Path(name) / ABOUT).is_file():
        return Path(name)
    if name in names():
        return resources.data_folder("assets") / FOLDER / name
    raise unknown_name("policy", name, names())


def write(
    folder: Path,
    config: Config,
    algorithm: Algorithm,
    learner: Learner,
    observations: np.ndarray,
    card: dict[str, Any],
) -> None:
    """Writes a policy.

    Args:
      folder: made where missing; what it holds of an older policy is replaced.
      config: of the run.
      algorithm: whose learner it is.
      learner: the trained one.
      observations: `[16, O]`, at which its actions are recorded.
      card: JSON values by name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {name: np.asarray(leaf) for name, leaf in _kept(learner).items()}
    acts = acting(algorithm, learner, observations.shape[1])
    contents = {
        "acting.npz": {name: x for name, x in arrays.items() if name in acts}
        | {
            "example.observations": observations,
            "example.actions": actions(algorithm, learner, observations),
        },
        "learning.npz": {name: x for name, x in arrays.items() if name not in acts},
    }
    for name, held in contents.items():
        with files.beside(folder / name) as temporary, temporary.open("wb") as stream:
            np.savez_compressed(stream, allow_pickle=False, **held)
    about = {
        "format": FORMAT,
        "card": card,
        "config": json.loads(configs.to_json(config)),
        "files": {name: files.digest(folder / name) for name in contents},
        "arrays": {
            name: {array: f"{x.dtype}{list(x.shape)}" for array, x in held.items()}
            for name, held in contents.items()
        },
    }
    files.write(folder / ABOUT, json.dumps(about, indent=1) + "\n")


def read(folder: Path) -> Shipped:
    """Reads a policy.

    Raises:
      UserError: it is damaged, or of another version.
    """
    try:
        about = json.loads((folder / ABOUT).read_text())
        old, new = OLD_NAMES.get(about["format"], ("", ""))
        if about["format"] not in (*OLD_NAMES, FORMAT):
            raise UserError(
                f"the policy {folder} has format {about['format']}; this version reads {FORMAT}"
            )
        arrays: Arrays = {}
        for name, digest in about["files"].items():
            if files.digest(folder / name) != digest:
                raise UserError(f"the policy {folder} is damaged ({name}); get it anew")
            with np.load(folder / name, allow_pickle=False) as file:
                arrays |= {
                    (array.replace(old, new) if old else array): file[array] for array in file.files
                }
        examples = {k: arrays.pop(f"example.{k}") for k in ("observations", "actions")}
        config = configs.from_json(json.dumps(about["config"]))
        return Shipped(folder, config, about["card"], arrays, examples)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"the policy {folder} is damaged ({error}); get it anew") from error


def learner_of(policy: Shipped, algorithm: Algorithm) -> Learner:
    """Returns the learner, its optimisers as before their first step.

    Raises:
      UserError: the algorithm has other arrays, or acts differently from what was recorded.
    """
    fresh = jax.jit(algorithm.init)(jax.random.PRNGKey(0))
    flat, structure = jax.tree_util.tree_flatten_with_path(fresh)
    missing = set(_kept(fresh)) ^ set(policy.arrays)
    if missing:
        raise UserError(f"the policy {policy.folder} does not fit: {min(missing)} is on one side")
    leaves = [_filled(policy, _name(path), leaf) for path, leaf in flat]
    learner = jax.tree.unflatten(structure, leaves)
    now = actions(algorithm, learner, policy.examples["observations"])
    wrong = float(np.abs(now - policy.examples["actions"]).max())
    if not wrong < TOLERANCE:
        raise UserError(
            f"the policy {policy.folder} acts differently here: up to {wrong:.2g} from the actions "
            "recorded with it; use the version that its card names"
        )
    return learner


def actions(algorithm: Algorithm, learner: Learner, observations: np.ndarray) -> np.ndarray:
    """Returns the actions [N, A] of evaluation at observations [N, O], each from a fresh start."""
    obs = jnp.asarray(observations)

    def act(learner: Learner) -> jax.Array:
        policy = algorithm.policy(learner)
        return policy.mode(obs, policy.init(len(obs))).action

    return np.asarray(jax.jit(act)(learner))


def acting(algorithm: Algorithm, learner: Learner, observation_size: int) -> set[str]:
    """Returns the paths of the learner's leaves that its actions depend on, noisy or not."""
    flat, structure = jax.tree_util.tree_flatten_with_path(learner)
    paths, leaves = zip(*flat, strict=True)
    obs, key = jnp.zeros((1, observation_size)), jax.random.PRNGKey(0)

    def act(*leaves: Any) -> tuple[Acted, Acted]:
        policy = algorithm.policy(jax.tree.unflatten(structure, leaves))
        state = policy.init(1)
        return policy.sample(obs, state, key), policy.mode(obs, state)

    return {_name(paths[i]) for i in _inputs_used(act, leaves)}


def _inputs_used(function: Callable, inputs: Iterable[Any]) -> list[int]:
    """Returns which inputs the outputs of a function depend on, going back through its trace."""
    traced = jax.make_jaxpr(function)(*inputs).jaxpr
    needed = {id(var) for var in traced.outvars}
    for equation in reversed(traced.eqns):
        if any(id(var) in needed for var in equation.outvars):
            needed |= {id(var) for var in equation.invars}
    return [i for i, var in enumerate(traced.invars) if id(var) in needed]


def _filled(policy: Shipped, name: str, leaf: jax.Array) -> jax.Array:
    """Returns the array of that name, or the fresh leaf where it belongs to an optimiser."""
    if name not in policy.arrays:
        return leaf
    array = policy.arrays[name]
    if (array.shape, array.dtype) != (leaf.shape, leaf.dtype):
        raise UserError(
            f"the policy {policy.folder} does not fit: {name} is {array.dtype}{list(array.shape)}, "
            f"not {leaf.dtype}{list(leaf.shape)}"
        )
    return jnp.asarray(array)


def _kept(learner: Learner) -> dict[str, Any]:
    """Returns the leaves of a learner by path, but for those of optimisers."""
    flat, _ = jax.tree_util.tree_flatten_with_path(learner)
    named = {_name(path): leaf for path, leaf in flat}
    return {name: leaf for name, leaf in named.items() if OPTIMIZER not in name.split(".")}


def _name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")
