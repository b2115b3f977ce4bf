"""Nothing that is read is run: no pickle, eval, yaml or shell; pages escape what they show."""

import ast
import json
import os
import pickle
import shutil
import zlib

import pytest

from mjx_qflex import files, report, resources
from mjx_qflex.runner import program_store

RUNS_WHAT_IT_READS = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "yaml"}
EXECUTABLES = "runner/program_store.py"  # reads its own folder, which nobody else can write in


def parsed():
    for path in sorted(resources.package_folder().rglob("*.py")):
        yield path.relative_to(resources.package_folder()).as_posix(), ast.parse(path.read_text())


def called(node):
    """The dotted name of what a call calls."""
    parts, function = [], node.func
    while isinstance(function, ast.Attribute):
        parts.append(function.attr)
        function = function.value
    return ".".join([getattr(function, "id", ""), *parts[::-1]])


def test_no_module_runs_what_it_reads():
    seen = 0
    for name, tree in parsed():
        for node in ast.walk(tree):
            imported = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            imported += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for module in imported:
                seen += 1
                top = module.partition(".")[0]
                assert top not in RUNS_WHAT_IT_READS or name == EXECUTABLES, (name, module)
            if isinstance(node, ast.Call):
                assert called(node) not in ("eval", "exec", "os.system", "os.popen"), name
                flags = {word.arg: word.value for word in node.keywords}
                for flag in ("shell", "allow_pickle"):
                    assert flag not in flags or not getattr(flags[flag], "value", True), name
    assert seen > 500


def test_pages_escape_what_runs_are_called(tmp_path):
    evil = "<script>alert(1)</script>"
    for number in range(2):
        folder = tmp_path / f"{number} {evil.replace('/', '_')}"
        folder.mkdir()
        settings = {"task": evil, "algo": evil, "seed": 0, "loop": {evil: f"{evil}{number}"}}
        (folder / "config.json").write_text(json.dumps(settings))
        (folder / "metrics.csv").write_text(
            "transitions,seconds,episode/return,evaluation/return\n1,1,1,1\n2,2,2,2\n"
        )
        (folder / "summary.json").write_text(json.dumps({"device": evil}))
    output = tmp_path / "page.html"
    assert report.main([*map(str, tmp_path.iterdir()), f"--output={output}"]) == 0
    page = output.read_text()
    assert "<script>alert" not in page and "&lt;script&gt;alert(1)" in page


class Planted:
    def __reduce__(self):
        return os.system, ("touch ran",)


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """A store with a planted executable; what is run would leave a file `ran`."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "kept"
    folder.mkdir(mode=0o700)
    name = "0" * 32 + program_store.EXECUTABLE
    program_store._write(folder / name, zlib.compress(pickle.dumps(Planted())))
    store = program_store.ProgramStore(folder, "these", lambda line: None)
    program_store._write(store._leads(()), name.encode())
    return store, folder / name


@pytest.mark.parametrize(
    "name", ["../evil.executable", "/tmp/evil.executable", "a/b", "", "x" * 32]
)
def test_a_pointer_leads_to_a_file_beside_it_only(kept, tmp_path, name):
    store, place = kept
    shutil.copy(place, tmp_path / "evil.executable")
    program_store._write(store._leads(()), name.encode())
    assert store.load(()) is None
    assert not (tmp_path / "ran").exists()


def test_a_file_that_others_can_write_is_not_run(kept, tmp_path):
    store, place = kept
    place.chmod(0o666)
    assert store.load(()) is None
    place.chmod(0o600)
    place.rename(place.with_name("elsewhere"))
    place.symlink_to(place.with_name("elsewhere"))
    assert store.load(()) is None
    assert not (tmp_path / "ran").exists()


def test_a_folder_that_others_can_write_in_holds_no_programs(tmp_path, monkeypatch):
    place = tmp_path / "shared" / "cache"
    place.mkdir(parents=True, mode=0o700)
    assert files.who_else_writes(place) is None
    place.chmod(0o777)
    assert files.who_else_writes(place) == f"others can write in {place}"
    place.chmod(0o1777)  # names are kept apart here, but anybody's file may be there
    assert files.who_else_writes(place) == f"others can write in {place}"
    place.chmod(0o700)
    place.parent.chmod(0o777)
    assert files.who_else_writes(place) == f"others can write in {place.parent}"
    place.parent.chmod(0o1777)
    assert files.who_else_writes(place) is None
    if os.getuid() == 0:
        os.chown(place, 12345, 12345)
        assert files.who_else_writes(place) == f"{place} belongs to another user"
