"""How long a strong tracker with full knowledge keeps `ms_human` on its reference gait.

    python experiments/paper/ms_human_walk/tracking.py --start reference     # 10 minutes, one core
    python experiments/paper/ms_human_walk/tracking.py --start zero

Computed muscle control: every 20 ms it reads the true state and finds, by one bounded least
squares, the activations whose accelerations are nearest to the reference's plus feedback. It knows
the body's own equations, soft contacts included, and keeps within what activation dynamics can
reach as a mean over the 20 ms; excitations then invert these dynamics. Worlds start on the
reference at evenly spaced phases, and an episode ends as the task ends it, or after 6 s.
"""

import argparse
from typing import NamedTuple

import balance
import feasibility
import jax
import jax.numpy as jnp
import numpy as np

from mjx_qflex import tasks
from mjx_qflex.motions import activations
from mjx_qflex.physics import muscle

ACTIONS = 300
CONTACT_ROUNDS = 4  # in which the set of pushing contacts is found
HALVINGS = 8  # of the search for an excitation
SCHEDULE = 0.012  # m; the reference's foot is in stance when a sole is so near the floor
HIP_REACH = 0.25  # rad, by which the swinging leg may leave the reference


class Gains(NamedTuple):
    """Feedback and weights of the tracker."""

    joints: float = 15.0  # rad/s, natural frequency of joint feedback, critically damped
    root: float = 8.0  # rad/s, of the root's
    forward_root: float = 1.0  # share of the reference's own root acceleration
    root_weight: float = 3.0  # of the root's rotation and height, against joints
    least_weight: float = 0.5  # of a joint however light what it moves
    ridge: float = 0.1  # of squared activations
    step: float = 0.6  # rad/(m/s), half of it sideways: how the swinging leg follows a fall


def errors(target, qpos):
    """Position error `[nv]` in velocity coordinates: root rotation in the body's own frame."""
    w0, v0 = qpos[3], qpos[4:7]
    w1, v1 = target[3], target[4:7]
    turn = np.array([w0 * w1 + v0 @ v1, *(w0 * v1 - w1 * v0 - np.cross(v0, v1))])
    turn *= np.sign(turn[0]) or 1.0
    return np.concatenate([target[:3] - qpos[:3], 2.0 * turn[1:], target[7:] - qpos[7:]])


def desired(gains, target, target_velocity, target_acceleration, qpos, qvel):
    """Accelerations `[nv]` that lead back to the reference."""
    of_root = np.arange(len(qvel)) < 6
    rate = np.where(of_root, gains.root, gains.joints)
    back = rate**2 * errors(target, qpos) + 2.0 * rate * (target_velocity - qvel)
    return np.where(of_root, gains.forward_root, 1.0) * target_acceleration + back


def stepped_out(gains, body, target, too_fast, in_swing):
    """`target [nq]` with the swinging leg led to where the body falls.

    `too_fast [2]` m/s along x, to the left, and y, backward; `in_swing` by side.
    """
    target = target.copy()
    for side, outward in (("r", -1.0), ("l", 1.0)):
        if in_swing[side]:
            ahead = np.clip(-gains.step * too_fast[1], -HIP_REACH, HIP_REACH)
            out = np.clip(0.5 * outward * gains.step * too_fast[0], -0.5 * HIP_REACH, HIP_REACH)
            target[body.qpos_index(f"hip_flexion_{side}")] += ahead
            target[body.qpos_index(f"hip_adduction_{side}")] -= out
    return target


def activations_for(gains, terms, wanted, low, high, before):
    """Mean activations `[nu]` in [low, high] over the next action, and their accelerations `[nv]`.

    Contacts that push are springs here, as in the port's solver, and which of them push follows
    from the accelerations: a few rounds find a set that agrees with itself.
    """
    touching = np.tile(terms.stiffness > 0, 4)
    edges, stiffness = terms.edges()[:, touching], np.tile(terms.stiffness, 4)[touching]
    reference = terms.reference.ravel()[touching]
    weight = np.maximum(np.sqrt(np.diag(terms.mass)), gains.least_weight)
    weight[2:6] *= gains.root_weight
    mass = terms.mass + 0.5 * feasibility.ACTION * np.diag(terms.damping)
    still = terms.free + terms.passive
    push = edges.T @ np.linalg.solve(mass, still + terms.pull @ before) < reference
    for _ in range(CONTACT_ROUNDS):
        spring = edges[:, push] * stiffness[push]
        force = still + spring @ reference[push]
        solved = np.linalg.solve(
            mass + spring @ edges[:, push].T, np.concatenate([terms.pull, force[:, None]], axis=1)
        )
        move, drift = solved[:, :-1], solved[:, -1]
        ridge = np.full(len(low), gains.ridge)
        found = balance.bounded_least_squares(
            weight[:, None] * move, weight * (wanted - drift), ridge, 0.0 * ridge, low, high
        )
        given = move @ found + drift
        pushed, push = push, edges.T @ given < reference
        if (push == pushed).all():
            break
    return found, given


def make_activation_dynamics(body, steps):
    """`mean(excitation, activation)` over so many physics steps, and its `inverse(goal, ...)`."""

    def mean(excitation, activation):
        def once(_, carry):
            act, total = carry
            rate = muscle.activation_rate(body.muscle_constants, excitation, act)
            return act + body.timestep * rate, total + act

        return jax.lax.fori_loop(0, steps, once, (activation, 0.0 * activation))[1] / steps

    def inverse(goal, activation):
        low, high = jnp.zeros_like(goal), jnp.ones_like(goal)
        for _ in range(HALVINGS):
            middle = 0.5 * (low + high)
            short = mean(middle, activation) < goal
            low, high = jnp.where(short, middle, low), jnp.where(short, high, middle)
        return 0.5 * (low + high)

    return jax.jit(mean), jax.jit(inverse)


class Tracker:
    """Excitations from true states, for a batch of worlds."""

    def __init__(self, env, gains):
        self.env, self.body, self.gains = env, env.body, gains
        self.terms = balance.make_terms(env.body)
        self.mean, self.inverse = make_activation_dynamics(env.body, env.physics_steps)
        reference = env.reference
        self.look = jax.jit(jax.vmap(lambda t, q: (reference.nearest(t, q), reference.qvel(t))))
        states, _ = feasibility.reference_states(env.body, reference)
        self.distance = self.terms(states).distance

    def in_swing(self, time):
        """Whether each leg swings in the reference at `time`; contacts: four of each foot."""
        phases = len(self.distance)
        row = self.distance[int(time / float(self.env.reference.period) * phases) % phases]
        right, left = np.split(row, 2)
        return {"r": right.min() > SCHEDULE, "l": left.min() > SCHEDULE}

    def __call__(self, physics, times, alive):
        """Excitations `[N, nu]` at `times [N]` of the reference, for the worlds that are alive."""
        terms, none = self.terms(physics), jnp.zeros_like(physics.act)
        low, high = (np.asarray(self.mean(none + x, physics.act), float) for x in (0.0, 1.0))
        target, velocity = self.look(jnp.asarray(times, jnp.float32), physics.qpos)
        target, velocity = np.asarray(target, float), np.asarray(velocity, float)
        ahead = feasibility.accelerations(self.env.reference, times + 0.5 * self.env.control_dt)
        qpos, qvel, act = (np.asarray(x, float) for x in physics[:3])
        goal = act.copy()
        for i in np.flatnonzero(alive):
            aim = stepped_out(
                self.gains, self.body, target[i], (qvel - velocity)[i], self.in_swing(times[i])
            )
            wanted = desired(self.gains, aim, velocity[i], ahead[i], qpos[i], qvel[i])
            goal[i], _ = activations_for(
                self.gains, balance.world(terms, i), wanted, low[i], high[i], act[i]
            )
        return self.inverse(jnp.asarray(goal, jnp.float32), physics.act)


def start_states(env, offsets, with_muscles):
    """States of the task on its reference at `offsets [N]`."""
    table = activations.of_body(feasibility.MOTION, env.body)

    def start(offset):
        act = with_muscles * activations.at(table, offset / env.reference.period)
        physics = env.body.initial_state()._replace(
            qpos=env.reference.qpos(offset), qvel=env.reference.qvel(offset), act=act
        )
        state = env.reset(jax.random.key(0))
        walk = state.pipeline_state._replace(physics=physics, offset=offset)
        return state.replace(pipeline_state=walk)

    return jax.jit(jax.vmap(start))(jnp.asarray(offsets, jnp.float32))


def track(env, gains, offsets, with_muscles, report=None):
    """Seconds `[N]` until the task ends each episode, up to 6 s."""
    tracker = Tracker(env, gains)
    step = jax.jit(jax.vmap(env.step), compiler_options=env.compiler_options)
    state = start_states(env, offsets, with_muscles)
    life, alive = np.full(len(offsets), ACTIONS), np.ones(len(offsets), bool)
    for action in range(ACTIONS):
        times = offsets + action * env.control_dt
        excitations = tracker(state.pipeline_state.physics, times, alive)
        state = step(state, 2.0 * excitations - 1.0)
        ended = alive & (np.asarray(state.done) > 0)
        life[ended] = action + 1
        alive &= ~ended
        for i in np.flatnonzero(ended) if report else ():
            report(tracker, state.pipeline_state.physics, times + env.control_dt, i)
        if not alive.any():
            break
    return life * env.control_dt


def print_end(tracker, physics, times, i):
    """Where a world is when its episode ends."""
    target, _ = tracker.look(jnp.asarray(times, jnp.float32), physics.qpos)
    error = errors(np.asarray(target[i], float), np.asarray(physics.qpos[i], float))
    worst = np.argsort(-np.abs(error[6:]))[:3]
    joints = ", ".join(f"{tracker.body.joint_names[1 + j]} {error[6 + j]:.2f}" for j in worst)
    print(
        f"  start {i} ended after {physics.time[i]:.2f} s: height {physics.qpos[i, 2]:.2f} m; "
        f"reference minus state: root "
        f"{np.round(error[:3], 2)} m, {np.round(error[3:6], 2)} rad; {joints}",
        flush=True,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--start", choices=("zero", "reference"), default="reference")
    parser.add_argument("--worlds", type=int, default=16)
    for name, value in Gains()._asdict().items():
        parser.add_argument(f"--{name}", type=float, default=value)
    arguments = vars(parser.parse_args())
    gains = Gains(**{name: arguments[name] for name in Gains._fields})
    env = tasks.make("ms_human_walk")
    worlds = arguments["worlds"]
    offsets = np.arange(worlds) / worlds * float(env.reference.period)
    seconds = track(env, gains, offsets, arguments["start"] == "reference", print_end)
    print(f"start {arguments['start']}, {gains}: seconds by phase {np.round(seconds, 2)}")
    print(f"mean {seconds.mean():.2f} s, least {seconds.min():.2f}, most {seconds.max():.2f}")


if __name__ == "__main__":
    main()
