"""Can the muscles of `ms_human` hold its reference gait? Static optimisation along one cycle.

    python experiments/paper/ms_human_walk/feasibility.py            # 2 minutes on one core
    python experiments/paper/ms_human_walk/feasibility.py --write    # and the start activations

At each phase the accelerations of the reference are given, and activations in [0, 1] and forces of
the soles' contacts that are near the floor come as near as they can to what the equations of motion
ask for. What is left over is the residual: of joints in N m, of the root in N and N m.
"""

import argparse

import balance
import jax
import jax.numpy as jnp
import numpy as np

from mjx_qflex import motions, porting, resources
from mjx_qflex.motions import activations

BODY, MOTION = "ms_human", "human_walk"
PHASES = 57  # of 20 ms, one of an action
ACTION = 0.02  # s
NEAR_FLOOR = 0.015  # m; heels and toes of the reference that should bear are as far above it
ROOT_SCALE = 0.5  # N or N m of the root weigh as much as 1 N m of a joint
ACTIVATION_RIDGE = 0.1  # (N m)^2 that a fully active muscle costs
FORCE_UNIT = 1000.0  # N, of the unknown contact forces
FORCE_RIDGE = 1.0  # (N m)^2 that this force costs, on each edge
SATURATED = 0.99


def reference_states(body, motion, phases=PHASES):
    """States on the reference `[P]`, without activation, and its accelerations `[P, nv]`."""
    times = np.arange(phases) / phases * float(motion.period)
    start = body.initial_state()
    states = jax.vmap(lambda t: start._replace(qpos=motion.qpos(t), qvel=motion.qvel(t)))(
        jnp.asarray(times, jnp.float32)
    )
    return states, accelerations(motion, times)


def accelerations(motion, times):
    """Accelerations `[T, nv]` of the reference, by central differences over its tables' knots."""
    velocity = np.asarray(motion.qvel_table, float)[:-1]
    knots, period = len(velocity), float(motion.period)
    change = np.roll(velocity, -1, axis=0) - np.roll(velocity, 1, axis=0)
    table = change * (knots / (2.0 * period))
    place = np.mod(np.asarray(times) / period, 1.0) * knots
    below = np.floor(place).astype(int) % knots
    part = (place - np.floor(place))[..., None]
    return (1.0 - part) * table[below] + part * table[(below + 1) % knots]


def fit(terms, acceleration, passive=True, contacts_within=NEAR_FLOOR):
    """Activations `[nu]`, contact force `[3]` in N and residual `[nv]` of one phase."""
    near = np.flatnonzero(np.tile(terms.distance < contacts_within, 4))
    edges = terms.edges()[:, near] * FORCE_UNIT
    needed = terms.mass @ acceleration - terms.free - passive * terms.passive
    scale = np.where(np.arange(len(needed)) < 6, ROOT_SCALE, 1.0)
    matrix = np.concatenate([terms.pull, edges], axis=1)
    num, touching = terms.pull.shape[1], edges.shape[1]
    ridge = np.repeat([ACTIVATION_RIDGE, FORCE_RIDGE], [num, touching])
    high = np.repeat([1.0, np.inf], [num, touching])
    x = balance.bounded_least_squares(
        matrix / scale[:, None], needed / scale, ridge, np.zeros(len(ridge)), 0.0 * high[:1], high
    )
    return x[:num], edges[:3] @ x[num:], needed - matrix @ x


def fit_all(terms, acceleration, **options):
    """`fit` at all phases: arrays `[P, ...]`."""
    found = [fit(balance.world(terms, p), a, **options) for p, a in enumerate(acceleration)]
    return tuple(np.stack(x) for x in zip(*found, strict=True))


def report(title, activation, force, residual):
    print(f"\n{title}")
    root, joints = np.abs(residual[:, :6]), np.abs(residual[:, 6:])
    print(
        f"  residual: joints {np.sqrt(np.mean(joints**2)):.2f} N m RMS, {joints.max():.1f} worst; "
        f"root {root[:, :3].max():.2f} N and {root[:, 3:].max():.2f} N m worst"
    )
    print(
        f"  sum of activations {activation.sum(1).mean():.1f} (mean; {activation.sum(1).min():.1f} "
        f"to {activation.sum(1).max():.1f}), mean activation {activation.mean():.3f}; saturated "
        f"{np.mean(activation > SATURATED):.2%}, at zero {np.mean(activation < 1e-6):.1%}"
    )
    print(
        f"  foot force: vertical {force[:, 2].mean():.0f} N mean, {force[:, 2].min():.0f} to "
        f"{force[:, 2].max():.0f}; largest share across {np.max(across(force)):.2f}"
    )


def across(force):
    """Horizontal over vertical force, where feet bear at least 50 N."""
    bears = force[:, 2] > 50.0
    return np.linalg.norm(force[bears, :2], axis=1) / force[bears, 2]


def report_joints(body, terms, acceleration, activation, force_residual):
    """Each joint's needed torque, what its muscles can give, and where they fall short."""
    low = np.minimum(terms.pull, 0.0).sum(2) + terms.passive
    high = np.maximum(terms.pull, 0.0).sum(2) + terms.passive
    given = np.einsum("pvu,pu->pv", terms.pull, activation) + terms.passive
    print("\n  joint                 muscles' torque     can give alone     passive      residual")
    print("                        (N m, min to max)   (least of max)   (min to max)  (RMS, worst)")
    for j, name in enumerate(body.joint_names[1:], start=6):
        left = force_residual[:, j]
        print(
            f"  {name:18} {given[:, j].min():8.1f} {given[:, j].max():8.1f} "
            f"{low[:, j].max():8.1f} {high[:, j].min():8.1f} {terms.passive[:, j].min():8.1f} "
            f"{terms.passive[:, j].max():7.1f} {np.sqrt(np.mean(left**2)):7.2f} "
            f"{np.abs(left).max():7.2f}"
        )


def most_active(body, activation, count=12):
    """The muscles with the largest mean activation."""
    order = np.argsort(-activation.mean(0))[:count]
    return ", ".join(f"{body.actuator_names[m]} {activation[:, m].mean():.2f}" for m in order)


def write(body, activation):
    """Stores the start activations `[P, nu]` beside the motion."""
    folder = resources.data_folder("assets") / "motions"
    path = folder / activations.file_name(MOTION, body.name, body.nu)
    names = np.array(body.actuator_names)
    np.savez_compressed(path, activation=activation.astype(np.float16), muscles=names)
    print(f"\nwrote {path.name}, {path.stat().st_size / 1e3:.0f} kB")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    body = porting.load(BODY)
    motion = motions.of_body(MOTION, body)
    states, acceleration = reference_states(body, motion)
    terms = balance.make_terms(body)(states)
    fitted = fit_all(terms, acceleration)
    report("the reference gait", *fitted)
    report_joints(body, terms, acceleration, fitted[0], fitted[2])
    print("\n  most active (mean):", most_active(body, fitted[0]))
    report("without passive tension", *fit_all(terms, acceleration, passive=False))
    report("held still at each phase", *fit_all(terms, 0.0 * acceleration))
    report("contacts within 6 mm alone", *fit_all(terms, acceleration, contacts_within=6e-3))
    if arguments.write:
        write(body, fitted[0])


if __name__ == "__main__":
    main()
