"""Nothing that is read is run: no pickle, eval, yaml or shell; pages escape what they show."""

import ast
import json
import os

from mjx_qflex import files, report, resources

RUNS_WHAT_IT_READS = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "yaml"}


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
                assert top not in RUNS_WHAT_IT_READS, (name, module)
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
