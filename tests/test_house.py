"""The house: imports run one way, no circle, files and functions that one can read."""

import ast
import sys
from collections import defaultdict

import pytest

from mjx_qflex import resources

# From below to above; a module imports from its own floor and from those below.
FLOORS = (
    ("errors", "resources", "lookup", "bounds", "files", "interrupt", "conditional", "devices"),
    ("types", "parallel", "sizes", "commands"),
    ("networks", "flow", "diffusion", "physics"),
    ("porting", "video"),
    ("motions",),
    ("algos", "tasks"),
    ("config",),
    ("settings",),
    ("presets",),
    ("training",),
    ("runner",),
    ("reports", "flags"),
    ("sweeps", "benchmarking"),
    ("train", "evaluate", "port", "export", "sweep", "report", "benchmark"),
)
LONG = {"on_policy.train", "brax_sac.train"}  # functions that are one call of brax's


def modules():
    package = resources.package_folder()
    for path in sorted(package.rglob("*.py")):
        name = ".".join(path.relative_to(package).with_suffix("").parts)
        yield name.removesuffix(".__init__"), path


MODULES = dict(modules())


def imports(path):
    """Names of this package's modules that a file imports, wherever it does."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mjx_qflex"):
            inside = node.module.removeprefix("mjx_qflex").strip(".")
            for alias in node.names:
                whole = f"{inside}.{alias.name}".strip(".")
                if whole in MODULES or inside:
                    yield whole if whole in MODULES else inside


def floor_of(name):
    top = name.partition(".")[0]
    (floor,) = [number for number, names in enumerate(FLOORS) if top in names]
    return floor


@pytest.mark.parametrize("name", sorted(set(MODULES) - {"__init__"}))
def test_imports_run_one_way(name):
    command = name == "motions.__main__"  # which films, as commands do
    for other in imports(MODULES[name]):
        assert command or floor_of(other) <= floor_of(name), f"{name} imports {other} upwards"


def test_no_circle():
    graph = {name: set(imports(path)) - {name} for name, path in MODULES.items()}
    sys.setrecursionlimit(10_000)
    state = defaultdict(int)  # 1: being visited, 2: done

    def visit(name, path):
        assert state[name] != 1, f"a circle: {' -> '.join([*path, name])}"
        if state[name] == 0:
            state[name] = 1
            for other in sorted(graph.get(name, ())):
                visit(other, [*path, name])
            state[name] = 2

    for name in graph:
        visit(name, [])


@pytest.mark.parametrize("name", sorted(MODULES))
def test_files_and_functions_stay_readable(name):
    text = MODULES[name].read_text()
    assert text.count("\n") <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            lines = (node.end_lineno or 0) - node.lineno + 1
            known = f"{name.rpartition('.')[2]}.{node.name}" in LONG
            assert known or lines <= 60, f"{node.name} has {lines} lines"
