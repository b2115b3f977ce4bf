"""Compartments: their number, their share of force, their torque together, their difference."""

import tomllib

import mujoco
import myo_sim
import numpy as np
import pytest

from mjx_qflex.errors import UserError
from mjx_qflex.porting import compartments
from mjx_qflex.porting.compartments import Fan
from mjx_qflex.resources import data_folder

FOLDER = data_folder("models") / "ms_human"
RECIPE = tomllib.loads((FOLDER / "recipe.toml").read_text())
DROP = RECIPE["actuators"]["drop"]


@pytest.fixture(scope="module")
def parent():
    return myo_sim.load_spec("myofullbody").compile()


@pytest.fixture(scope="module")
def fans():
    return compartments.read_fans(FOLDER / RECIPE["actuators"]["fans"])


@pytest.fixture(scope="module")
def divided(fans):
    spec = myo_sim.load_spec("myofullbody")
    return compartments.divide(spec, 700, fans, DROP).compile()


def independent_joints(model):
    coupled = set(model.eq_obj1id.tolist())
    lock = RECIPE["joints"]["lock"]
    return [j for j in range(1, model.njnt) if j not in coupled and model.joint(j).name not in lock]


def random_poses(model, count, seed):
    """Uniform over the joints' limits, or the recipe's fitting range where it is narrower."""
    rng = np.random.default_rng(seed)
    qpos = np.tile(model.qpos0, (count, 1))
    for j in independent_joints(model):
        low, high = RECIPE["ranges"].get(model.joint(j).name, model.jnt_range[j])
        qpos[:, model.jnt_qposadr[j]] = rng.uniform(low, high, size=count)
    return [compartments.satisfy_couplings(model, q) for q in qpos]


def coupling_jacobian(model, qpos):
    """d(velocity) / d(independent velocity) `[nv, J]`, by differences through the couplings."""
    columns = []
    for j in independent_joints(model):
        moved = []
        for step in (-1e-5, 1e-5):
            q = qpos.copy()
            q[model.jnt_qposadr[j]] += step
            moved.append(compartments.satisfy_couplings(model, q))
        column = np.zeros(model.nv)
        mujoco.mj_differentiatePos(model, column, 2e-5, *moved)
        columns.append(column)
    return np.stack(columns, axis=1)


def muscle_torque(model, qpos, activation, qvel=None):
    """C MuJoCo's torque of all muscles on the source model's coordinates `[nv]`."""
    data = mujoco.MjData(model)
    data.qpos[:], data.act[:] = qpos, activation
    if qvel is not None:
        data.qvel[:] = qvel
    mujoco.mj_fwdPosition(model, data)
    mujoco.mj_fwdVelocity(model, data)
    mujoco.mj_fwdActuation(model, data)
    return data.qfrc_actuator.copy()


def parent_name(actuator):
    return actuator.split("#")[0]


def test_there_are_700_muscles_and_none_idles(parent, divided):
    assert divided.nu == 700
    names = {parent_name(divided.actuator(i).name) for i in range(700)}
    assert len(names) == parent.nu - 28
    poses = random_poses(divided, 25, seed=1)
    data = mujoco.MjData(divided)
    largest = np.zeros(divided.nu)
    dense = np.zeros((divided.ntendon, divided.nv))
    for qpos in poses:
        data.qpos[:] = qpos
        compartments.forward_paths(divided, data)
        mujoco.mju_sparse2dense(
            dense,
            data.ten_J.ravel(),
            divided.ten_J_rownnz,
            divided.ten_J_rowadr,
            divided.ten_J_colind,
        )
        arms = dense[divided.actuator_trnid[:, 0]] @ coupling_jacobian(divided, qpos)
        largest = np.maximum(largest, np.abs(arms).max(axis=1))
    assert largest.min() > 1e-3  # m


def test_dropped_muscles_move_no_independent_joint(parent):
    data = mujoco.MjData(parent)
    dense = np.zeros((parent.ntendon, parent.nv))
    rows = [parent.actuator_trnid[parent.actuator(name).id, 0] for name in DROP]
    assert len(DROP) == 28
    for qpos in random_poses(parent, 10, seed=2):
        data.qpos[:] = qpos
        compartments.forward_paths(parent, data)
        mujoco.mju_sparse2dense(
            dense, data.ten_J.ravel(), parent.ten_J_rownnz, parent.ten_J_rowadr, parent.ten_J_colind
        )
        assert np.abs(dense[rows] @ coupling_jacobian(parent, qpos)).max() < 1e-9


def torque_error(parent, model, poses=80):
    """Relative RMS difference of joint torque `[J]`, all compartments activated like the parent."""
    rng = np.random.default_rng(5)
    names = [parent.actuator(i).name for i in range(parent.nu)]
    children = [names.index(parent_name(model.actuator(i).name)) for i in range(model.nu)]
    dropped = [names.index(name) for name in DROP]
    expected, found = [], []
    for qpos in random_poses(parent, poses, seed=4):
        activation = rng.uniform(size=parent.nu)
        jacobian = coupling_jacobian(parent, qpos)
        # Dropped muscles must not pull here: they also act on the finger joints alone.
        whole = muscle_torque(
            parent, qpos, np.where(np.isin(range(parent.nu), dropped), 0, activation)
        )
        expected.append(whole @ jacobian)
        found.append(muscle_torque(model, qpos, activation[children]) @ jacobian)
    expected, found = np.array(expected), np.array(found)
    return np.sqrt(np.mean((found - expected) ** 2, axis=0) / np.mean(expected**2, axis=0))


def test_equal_activation_reproduces_the_parents_torque(parent, divided):
    assert torque_error(parent, divided).max() < 0.02


@pytest.mark.slow
@pytest.mark.parametrize(("count", "limit"), [(388, 1e-9), (1000, 0.02), (2800, 0.02)])
def test_equal_activation_at_other_counts(parent, fans, count, limit):
    spec = myo_sim.load_spec("myofullbody")
    model = compartments.divide(spec, count, fans, DROP).compile()
    assert model.nu == count
    assert torque_error(parent, model).max() < limit


def test_peak_force_is_shared_and_length_ranges_follow(parent, divided):
    data = {m: compartments.neutral_data(m) for m in (parent, divided)}
    share = {}
    for i in range(divided.nu):
        child = divided.actuator(i)
        whole = parent.actuator(parent_name(child.name))
        share.setdefault(whole.name, []).append(child.gainprm[2] / whole.gainprm[2])
        assert child.biasprm[2] / whole.biasprm[2] == pytest.approx(share[whole.name][-1])
        length = data[divided].ten_length[child.trnid[0]] - child.lengthrange[0]
        parent_length = data[parent].ten_length[whole.trnid[0]] - whole.lengthrange[0]
        assert length == pytest.approx(parent_length, abs=1e-9)
        assert np.ptp(child.lengthrange) == pytest.approx(np.ptp(whole.lengthrange))
    for parts in share.values():
        assert parts == pytest.approx([1 / len(parts)] * len(parts))


def test_compartments_differ_and_odd_numbers_keep_the_parents_path(parent, divided):
    groups = {}
    for i in range(divided.nu):
        groups.setdefault(parent_name(divided.actuator(i).name), []).append(i)
    data, whole = mujoco.MjData(divided), mujoco.MjData(parent)
    lengths, parent_lengths = [], []
    for qpos in random_poses(divided, 30, seed=6):
        data.qpos[:] = whole.qpos[:] = qpos
        compartments.forward_paths(divided, data)
        compartments.forward_paths(parent, whole)
        lengths.append(data.ten_length[divided.actuator_trnid[:, 0]])
        parent_lengths.append(whole.ten_length[parent.actuator_trnid[:, 0]])
    lengths, parent_lengths = np.array(lengths), np.array(parent_lengths)
    odd = 0
    for name, members in groups.items():
        if len(members) > 1:
            change = lengths[:, members] - lengths[:1, members]
            assert np.abs(change[:, 0] - change[:, -1]).max() > 1e-4, name  # m
        if len(members) % 2:
            odd += 1
            middle = members[len(members) // 2]
            np.testing.assert_allclose(
                lengths[:, middle], parent_lengths[:, parent.actuator(name).id], atol=1e-9
            )
    assert odd > 100


def test_allocation_serves_the_widest_first():
    assert compartments.allocate([4.0, 1.0, 2.0], 3) == [1, 1, 1]
    assert compartments.allocate([4.0, 1.0, 2.0], 4) == [2, 1, 1]
    assert compartments.allocate([4.0, 1.0, 2.0], 7) == [4, 1, 2]
    assert compartments.allocate([9.0, 1e-9], 20) == [16, 4]


def test_offsets_are_symmetric():
    np.testing.assert_allclose(compartments.lateral_offsets(6.0, 3), [-2.0, 0.0, 2.0])
    np.testing.assert_allclose(compartments.lateral_offsets(6.0, 1), [0.0])
    np.testing.assert_allclose(compartments.lateral_offsets(8.0, 4), [-3.0, -1.0, 1.0, 3.0])
    np.testing.assert_allclose(compartments.lateral_offsets(8.0, 7), np.arange(-3.0, 4.0))


def test_left_and_right_are_divided_alike(divided):
    counts = {}
    for i in range(divided.nu):
        name = parent_name(divided.actuator(i).name)
        counts[name] = counts.get(name, 0) + 1
    pairs = 0
    for name, count in counts.items():
        stem = name.removesuffix("_l")
        if stem != name:
            right = f"{stem}_r" if f"{stem}_r" in counts else stem
            pairs += counts[right] == count
    assert pairs == len(counts) // 2


@pytest.mark.parametrize("count", [387, 100_000])
def test_impossible_numbers_are_refused(fans, count):
    with pytest.raises(UserError, match="from 388 to"):
        compartments.divide(myo_sim.load_spec("myofullbody"), count, fans, DROP)


def test_unknown_muscles_are_named(fans):
    with pytest.raises(UserError, match="tail_wagger"):
        compartments.divide(myo_sim.load_spec("myofullbody"), 700, fans, ["tail_wagger"])
    few = {name: fan for name, fan in fans.items() if name != "soleus_r"}
    with pytest.raises(UserError, match="soleus_r"):
        compartments.divide(myo_sim.load_spec("myofullbody"), 700, few, DROP)


def test_couplings_are_followed_through_chains():
    model = mujoco.MjModel.from_xml_string(
        """<mujoco><worldbody><body><inertial mass="1" pos="0 0 0" diaginertia="1 1 1"/>
        <joint name="a"/><joint name="b" axis="1 0 0"/><joint name="c" axis="0 1 0"/></body>
        </worldbody><equality>
        <joint joint1="c" joint2="b" polycoef="0.1 2 0 0 0"/>
        <joint joint1="b" joint2="a" polycoef="0 0 3 0 0"/></equality></mujoco>"""
    )
    np.testing.assert_allclose(
        compartments.satisfy_couplings(model, np.array([0.5, 9.0, 9.0])), [0.5, 0.75, 1.6]
    )


def test_fan_table(tmp_path):
    table = tmp_path / "fans.csv"
    table.write_text("muscle,width_mm,x,y,z\nm,12,0,1,0\n")
    assert compartments.read_fans(table) == {"m": Fan(0.012, (0.0, 1.0, 0.0))}
