"""Physics steps per second of a ported body, of raw MJX and of C MuJoCo, on the same machine.

Each raw MJX measurement runs in a process of its own with a time limit, because some of them do
not come back: `python -m mjx_qflex.porting.speed RECIPE_FOLDER NUM_ACTUATORS BATCH OPTIONS`.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from mujoco import rollout

from mjx_qflex.physics.body import PortedBody
from mjx_qflex.porting import library, parity

CONTROL_STEPS = 10  # physics steps under one excitation
OWN, SAME = "raw MJX, its own contacts and options", "raw MJX, the port's contacts and iterations"
RAW = {OWN: "own", SAME: "same"}


def measure_port(body: PortedBody, batch: int, num_steps: int = 200) -> dict[str, float]:
    """Steps/s of `batch` environments under random excitations, compile time apart."""
    state = jax.tree.map(lambda x: jnp.broadcast_to(x, (batch, *x.shape)), body.initial_state())

    def advance(state, key):
        def control_step(carry, key):
            return body.advance(carry, jax.random.uniform(key, (body.nu,)), CONTROL_STEPS)[0], None

        return jax.lax.scan(control_step, state, jax.random.split(key, num_steps // CONTROL_STEPS))[
            0
        ]

    keys = jax.random.split(jax.random.key(0), batch)
    return _time(jax.vmap(advance), (state, keys), body.compiler_options, batch * num_steps)


def raw_model(body: PortedBody, reduced: bool) -> Any:
    """Returns `mjx.put_model` of the source model.

    `reduced` gives it the port's contacts and solver steps; else it keeps its own.
    """
    from mujoco import mjx

    model = body.source.__copy__()
    model.geom_margin[:] = 0  # mjx refuses margins of planes with meshes
    if reduced:
        parity.keep_contacts(model, body.recipe)
        model.opt.iterations = body.recipe.iterations
        model.opt.ls_iterations = body.recipe.ls_iterations
    return mjx.put_model(model)


def measure_raw(
    body: PortedBody, batch: int, reduced: bool, num_steps: int = 20
) -> dict[str, float]:
    """The same for `raw_model`."""
    from mujoco import mjx

    raw = raw_model(body, reduced)
    data = jax.vmap(lambda _: mjx.make_data(raw))(jnp.arange(batch))

    def advance(data, key):
        def step(carry, key):
            return mjx.step(raw, carry.replace(ctrl=jax.random.uniform(key, (body.nu,)))), None

        return jax.lax.scan(step, data, jax.random.split(key, num_steps))[0]

    keys = jax.random.split(jax.random.key(0), batch)
    return _time(jax.vmap(advance), (data, keys), body.compiler_options, batch * num_steps)


def _time(function: Callable, args: tuple, options: dict, steps: int) -> dict[str, float]:
    start = time.perf_counter()
    cpu = jax.default_backend() == "cpu"
    compiled = jax.jit(function, compiler_options=options if cpu else {}).lower(*args).compile()
    compile_seconds = time.perf_counter() - start
    jax.block_until_ready(compiled(*args))
    best = np.inf
    for _ in range(3):
        start = time.perf_counter()
        result = jax.block_until_ready(compiled(*args))
        best = min(best, time.perf_counter() - start)
    finite = bool(jnp.isfinite(jax.tree.leaves(result)[0]).all())
    return {"steps/s": steps / best, "compile s": compile_seconds, "finite": finite}


def measure_c(body: PortedBody, threads: int, num_steps: int = 200) -> dict[str, float]:
    """C MuJoCo's `rollout` of the source model on `threads` threads."""
    model = body.source
    data = [mujoco.MjData(model) for _ in range(threads)]
    full = mujoco.mjtState.mjSTATE_FULLPHYSICS
    start_state = np.zeros(mujoco.mj_stateSize(model, full))
    mujoco.mj_getState(model, data[0], start_state, full)
    environments = 4 * threads
    rng = np.random.default_rng(0)
    excitation = rng.uniform(size=(environments, num_steps // CONTROL_STEPS, model.nu))
    control = np.repeat(excitation, CONTROL_STEPS, axis=1)
    best = np.inf
    with rollout.Rollout(nthread=threads) as pool:
        for _ in range(3):
            start = time.perf_counter()
            pool.rollout(
                [model] * environments, data, np.tile(start_state, (environments, 1)), control
            )
            best = min(best, time.perf_counter() - start)
    return {"steps/s": environments * num_steps / best, "threads": threads}


def compare(
    body: PortedBody, raw_limit_s: float, batches: Sequence[int], raw_batches: Sequence[int]
) -> dict[str, Any]:
    """Runs all sides, at each of `batches` environments; C MuJoCo on one core and on all of them.

    A raw measurement that takes longer than `raw_limit_s` is reported so.
    """
    port = {batch: measure_port(body, batch) for batch in batches}
    cores = sorted({1, os.cpu_count() or 1})
    result: dict[str, Any] = {
        "C MuJoCo": [measure_c(body, threads) for threads in cores],
        "port": port,
    }
    for title, options in RAW.items():
        result[title] = {
            batch: _measure_raw_apart(body, batch, options, raw_limit_s) for batch in raw_batches
        }
    # The machine may have sped up or slowed down meanwhile: the port once more, the mean counts.
    again = {batch: measure_port(body, batch) for batch in batches}
    for batch in batches:
        port[batch]["steps/s"] = 0.5 * (port[batch]["steps/s"] + again[batch]["steps/s"])
    return result


def _measure_raw_apart(body: PortedBody, batch: int, options: str, limit: float) -> dict[str, Any]:
    command = [sys.executable, "-m", "mjx_qflex.porting.speed"]
    command += [str(body.recipe.folder), str(body.nu), str(batch), options]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=True)
        return json.loads(run.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        return {"failed": f"not done in {limit:.0f} s"}
    except subprocess.CalledProcessError as error:
        reason = (error.stderr.strip().splitlines() or [f"exit {error.returncode}"])[-1]
        return {"failed": reason[:200]}


def best(measurements: dict[int, dict[str, Any]]) -> float:
    """Highest steps/s over the batches that finished; 0 if none did."""
    return max((m.get("steps/s", 0.0) for m in measurements.values()), default=0.0)


def _raw_command(folder: str, num_actuators: str, batch: str, options: str) -> None:
    body = library.load(folder, int(num_actuators))
    print(json.dumps(measure_raw(body, int(batch), reduced=options == RAW[SAME])))


if __name__ == "__main__":
    _raw_command(*sys.argv[1:])
