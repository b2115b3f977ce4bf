"""Observations by the names of their terms."""

import numpy as np


def split(obs, sizes):
    """The observation's terms by name, of these sizes in this order."""
    edges = np.cumsum([0, *sizes.values()])
    assert edges[-1] == obs.shape[-1]
    return {n: np.asarray(obs[a:b]) for n, a, b in zip(sizes, edges, edges[1:], strict=False)}


def human_terms(env, obs):
    """Those of the tasks of `mjx_qflex.tasks.ms_human`."""
    nq, nv, nu = env.body.nq, env.body.nv, env.body.nu
    sizes = {"qpos": nq, "qvel": nv, "qacc": nv, "act": nu, "force": nu, "length": nu}
    sizes |= {"velocity": nu, "time": 1, "phase": 1, "pelvis": 3, "sternum": 3, "miss": nq}
    return split(obs, sizes)
