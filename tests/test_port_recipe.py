"""Recipes and the port command: what they refuse, and how they say it."""

import importlib.metadata
import subprocess
import sys

import pytest

from mjx_qflex import porting, resources
from mjx_qflex.errors import UserError
from mjx_qflex.porting import library, recipe

MINIMAL = """
[source]
file = "arm.xml"
[actuators]
count = 6
[solver]
timestep = 0.002
iterations = 2
ls_iterations = 6
"""

SERVO = "{kp = 1, kv = 1, limit = 1}"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "recipe.toml").write_text(MINIMAL)
    arm = resources.data_folder("models") / "arm" / "arm.xml"
    (tmp_path / "arm.xml").write_text(arm.read_text())
    return tmp_path


def test_sections_come_from_the_base_and_its_files_from_beside_it(tmp_path):
    (tmp_path / "mat.xml").write_text(
        "<mujoco><worldbody><geom name='mat' size='1'/></worldbody></mujoco>"
    )
    (tmp_path / "recipe.toml").write_text(
        'base = "arm"\n[attach]\nfiles = ["mat.xml"]\n'
        "[solver]\ntimestep = 0.003\niterations = 2\nls_iterations = 6\n"
    )
    arm, mine = recipe.read("arm"), recipe.read(str(tmp_path))
    assert (mine.name, mine.folder) == (tmp_path.name, tmp_path)
    assert (mine.timestep, mine.count, mine.lock) == (0.003, arm.count, arm.lock)
    model, plain = recipe.source_model(mine), recipe.source_model(arm)
    assert model.geom("mat").size[0] == 1.0
    assert (model.nu, model.nv, model.ngeom) == (plain.nu, plain.nv, plain.ngeom + 1)


def test_a_bases_section_is_replaced_as_a_whole():
    run, balance = recipe.read("unitree_h1"), recipe.read("unitree_h1_board")
    assert balance.floor is None and balance.with_floor == () and balance.pairs
    same = ("source", "joint_range", "position", "count", "timestep")
    assert all(getattr(run, name) == getattr(balance, name) for name in same)
    assert [path.parent for path in balance.attach] == [balance.folder]


def test_an_unknown_body_names_the_nearest():
    with pytest.raises(UserError, match="myo_legs"):
        porting.load("myo_leg")


@pytest.mark.parametrize(
    ("edit", "what"),
    [
        (("[source]", "[sorce]"), "source"),
        (("iterations = 2", "iteration = 2"), "iterations"),
        (("timestep = 0.002\n", ""), "timestep"),
        (("count = 6", "count = [6"), "TOML"),
        (('file = "arm.xml"', 'file = "leg.xml"'), resources.MODELS_VARIABLE),
        (("count = 6", "count = 7"), "multiple of 6"),
        (("[solver]", '[joints]\nlock = ["wrist"]\n[solver]'), "wrist"),
        (("[source]", 'base = "unitree_h2"\n[source]'), "base .*'unitree_h1'"),
        (("[source]", 'base = "unitree_h1_board"\n[source]'), "name 'unitree_h1'"),
        (("[source]", 'bas = "arm"\n[source]'), "did you mean 'base'"),
        (("[solver]", '[contacts]\nfloor = "ground"\n[solver]'), "ground"),
        (('file = "arm.xml"', 'package = "myo_sin"\nmodel = "x"'), "did you mean 'myo_sim'"),
        (('file = "arm.xml"', 'package = "myo_sim"\nmodel = "myoleg"'), "Unknown model 'myoleg'"),
        (('file = "arm.xml"', 'package = "myo_sim"'), "needs a .model."),
        (('file = "arm.xml"', "file = 3"), "file is 3; give a text"),
        (('file = "arm.xml"', 'file = "arm.xml"\nfloor_height = 0.1'), "needs a floor"),
        (("count = 6", 'count = "6"'), "count is '6'; give a whole number"),
        (("count = 6", "count = true"), "count is True"),
        (("count = 6", "count = 0"), "multiple of 6"),
        (("count = 6", 'count = 6\ndrop = ["bicep"]'), "unknown muscle .* 'bicep'"),
        (("count = 6", 'count = 6\nfans = "no.csv"'), "no.csv"),
        (("0.002", "0"), "timestep is 0; give a number above 0"),
        (("0.002", "-1"), "timestep is -1"),
        (("0.002", "nan"), "timestep is nan"),
        (("0.002", '"fast"'), "timestep is 'fast'"),
        (("iterations = 2", "iterations = 2.5"), "iterations is 2.5; give a whole number"),
        (("[solver]", '[joints]\nlock = "elbow"\n[solver]'), "give a list of names"),
        (("[solver]", '[joints]\nlock = ["elbows"]\n[solver]'), "did you mean 'elbow'"),
        (("[solver]", '[joints]\nlock = ["elbow", "shoulder"]\n[solver]'), "no joints"),
        (("[solver]", "[joints.range]\nelbow = [2, 1]\n[solver]"), "two numbers"),
        (("[solver]", "[ranges]\nelbows = [1, 2]\n[solver]"), "did you mean 'elbow'"),
        (("[solver]", '[ranges]\nelbow = [1, "2"]\n[solver]'), "two numbers"),
        (("[solver]", '[contacts]\npairs = ["a", "b"]\n[solver]'), "list of pairs"),
        (("[solver]", '[contacts]\nwith_floor = ["a"]\n[solver]'), "needs a floor"),
        (("[solver]", "[repairs]\nelbow_flexor = 3\n[solver]"), "a table each"),
        (("[solver]", '[paths]\nexact = "all"\n[solver]'), "true, false or a list"),
        (("[solver]", "[paths]\nmax_degree = 1\n[solver]"), "from 2 on"),
        (("[solver]", f"[actuators.position]\nelbow = {SERVO}\n[solver]"), "give .* count = 1"),
        (("[solver]", "[actuators.position]\nelbow = 3\n[solver]"), "a table each"),
        (("[solver]", '[attach]\nfiles = ["arm.xml"]\n[solver]'), "repeated name"),
        (('[source]\nfile = "arm.xml"', "source = 3"), "give a table"),
    ],
)
def test_a_broken_recipe_is_refused_in_one_line(folder, edit, what):
    (folder / "recipe.toml").write_text(MINIMAL.replace(*edit))
    with pytest.raises(UserError, match=what) as error:
        library.load(str(folder))
    assert "\n" not in str(error.value)


def test_muscles_that_the_recipe_drops_leave_without_a_table_of_widths(folder):
    text = MINIMAL.replace("count = 6", 'count = 5\ndrop = ["elbow_flexor"]')
    (folder / "recipe.toml").write_text(text)
    model = recipe.source_model(recipe.read(str(folder)))
    assert model.nu == model.ntendon == 5
    assert "elbow_flexor" not in [model.actuator(a).name for a in range(5)]


def test_paths_are_exact_unless_the_recipe_says_otherwise(folder):
    def exact(line):
        (folder / "recipe.toml").write_text(MINIMAL + line)
        instructions = recipe.read(str(folder))
        return library.exact_muscles(instructions, recipe.source_model(instructions))

    assert exact("") == exact("[paths]\nexact = true") == list(range(6))
    assert (
        exact("[paths]\nexact = false") == []
        and len(exact("[paths]\nexact = ['elbow_flexor']")) == 1
    )


def test_a_fit_that_misses_its_tolerance_is_refused_by_the_muscles_name(folder, monkeypatch):
    monkeypatch.setenv(resources.CACHE_VARIABLE, str(folder / "cache"))
    fit = "[paths]\nexact = false\nnum_poses = 300\nmax_degree = 2\nlength = 1e-6\n"
    (folder / "recipe.toml").write_text(MINIMAL + fit)
    for _ in range(2):  # it is not kept
        with pytest.raises(UserError, match="path of .*_flexor .*exact = true"):
            library.load(str(folder))


def test_a_broken_model_file_is_refused(folder):
    (folder / "arm.xml").write_text("<mujoco><worldbody>")
    with pytest.raises(UserError, match="not a model that MuJoCo reads"):
        recipe.source_spec(recipe.read(str(folder)))


@pytest.mark.parametrize("count", [5, 7, 702])
def test_an_impossible_number_of_actuators_is_refused(count):
    with pytest.raises(UserError, match=r"arm (cannot have|needs a multiple)"):
        porting.load("arm", count)


def test_mujoco_and_mjx_are_the_same_release(monkeypatch):
    library.refuse_unmatched_releases()
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: "4.0.0" if name == "mujoco" else "3.17.0"
    )
    with pytest.raises(UserError, match="pip install mujoco==3.17.0"):
        library.refuse_unmatched_releases()


def run_port(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "mjx_qflex.port", *arguments], capture_output=True, text=True
    )


def test_the_command_prints_the_parity_report():
    result = run_port("--body=arm", "--no-speed")
    assert result.returncode == 0, result.stderr
    for line in ("joint torque, relative RMS, worst joint", "terms", "muscles left exact"):
        assert line in result.stdout
    assert result.stdout.splitlines()[-1].startswith("Within tolerance")


def test_the_command_refuses_an_unknown_body_in_one_line():
    result = run_port("--body=armm")
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1 and "'arm'" in result.stderr
