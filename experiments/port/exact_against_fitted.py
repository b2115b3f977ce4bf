"""Exact against fitted muscle paths: parity on the states that worlds visit, and speed.

    python experiments/port/exact_against_fitted.py --body myo_legs

with `exact = false` in the body's recipe, whose paths are then fitted first.
Visited states are those of `parity.rollout_poses`: worlds near the reference pose under random
excitations, for 0.4 s.
"""

import argparse
import dataclasses
import time

import jax
import jax.numpy as jnp
import numpy as np

from mjx_qflex import porting
from mjx_qflex.physics import tendons
from mjx_qflex.porting import fitting, parity, speed

BATCH = {"myo_legs": 64, "ms_human": 32}


def bodies(name):
    """The body with its paths fitted, and with exact ones."""
    loaded = porting.load(name)
    if not loaded.path_groups:
        raise SystemExit(f"{name} has exact paths already, and no fit to compare them with")
    paths = tendons.from_model(loaded.source, loaded.tree, range(loaded.nu))
    exact = dataclasses.replace(loaded, path_groups=(), tendons=paths)
    return {"fitted": loaded, "exact": exact}


def visited_starts(body, number=16, seed=0):
    """States `[number]` with random joints out of the visited ones, velocities and activations."""
    rng = np.random.default_rng(seed)
    poses = rng.permutation(parity.rollout_poses(body))[:number]
    first = 7 * body.tree.num_free
    return [
        state._replace(qpos=state.qpos.at[first:].set(jnp.asarray(pose, jnp.float32)))
        for state, pose in zip(parity.random_states(body, rng, number), poses, strict=True)
    ]


def report(name, kind, body, starts):
    q = np.stack([np.asarray(start.qpos)[7 * body.tree.num_free :] for start in starts])
    q = np.concatenate([q, parity.rollout_poses(body)]).astype(np.float64)
    errors = parity.path_errors(body, fitting.sample(body.source, body.tree, q))
    torque = errors.torque_relative[~np.isnan(errors.torque_relative)]
    begin = time.perf_counter()
    step = jax.jit(jax.vmap(lambda state, ctrl: body.step(state, ctrl)[0]))
    batch = jax.tree.map(lambda *x: jnp.stack(x), *starts)
    step.lower(batch, jnp.zeros((len(starts), body.nu))).compile(body.compiler_options)
    seconds = time.perf_counter() - begin
    motion = parity.motion_error(body, True, starts, 10)
    longer = parity.motion_error(body, True, starts, 50)
    contacts = parity.contact_change(body)["port against cut model"]
    print(
        f"{name}, {kind} paths, visited states: joint torque {np.median(torque):.2%} (median), "
        f"{torque.max():.2%} (worst joint); length {1e3 * errors.length_rms.max():.3f} mm (worst "
        f"muscle); 10 steps of free motion {motion:.2%}, 50 steps {longer:.2%}; 50 steps from "
        f"touch-down {contacts:.2%}; a step compiles in {seconds:.1f} s",
        flush=True,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--body", choices=BATCH, required=True)
    name = parser.parse_args().body
    kinds = bodies(name)
    starts = visited_starts(kinds["exact"])
    for kind, body in kinds.items():
        report(name, kind, body, starts)
    for kind, body in tuple(kinds.items()) * 2:
        rate = speed.measure_port(body, BATCH[name])["steps/s"]
        print(
            f"{name}, {BATCH[name]} worlds, {kind} paths: {rate:,.0f} physics steps/s", flush=True
        )


if __name__ == "__main__":
    main()
