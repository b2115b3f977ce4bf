"""Models that no package ships: fetched once, verified, or served from the user's folder."""

import dataclasses
import functools
import hashlib
import http.server
import io
import os
import shutil
import subprocess
import tarfile
import threading

import mujoco_menagerie
import pytest

from mjx_qflex import port, resources
from mjx_qflex.errors import UserError
from mjx_qflex.porting import fetch, recipe

MODEL = b'<mujoco model="tiny"><worldbody><geom size="1"/></worldbody></mujoco>'
MENAGERIE_VARIABLES = ("MENAGERIE_ROOT", "MENAGERIE_BASE_URL", "MENAGERIE_CACHE_DIR")


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    monkeypatch.setenv(resources.CACHE_VARIABLE, str(tmp_path / "cache"))
    for variable in (resources.MODELS_VARIABLE, *MENAGERIE_VARIABLES):
        monkeypatch.delenv(variable, raising=False)


def cached_files(tmp_path):
    """All that fetching left, but for the empty files that lock the cache."""
    paths = (tmp_path / "cache").rglob("*")
    return [path for path in paths if path.is_file() and path.parent.name != "locks"]


# --- mujoco-menagerie --------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path):
    """A local server of release archives."""
    folder = tmp_path / "served"
    folder.mkdir()
    handler = functools.partial(QuietHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield folder, f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format, *args):
        pass


@pytest.fixture
def robot(server, monkeypatch):
    """A robot of the registry, served as an archive; returns its recipe's source."""
    folder, url = server
    monkeypatch.setenv("MENAGERIE_BASE_URL", url)
    genuine = mujoco_menagerie.get("unitree_h1")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:xz") as archive:
        member = tarfile.TarInfo("unitree_h1/h1.xml")
        member.size = len(MODEL)
        archive.addfile(member, io.BytesIO(MODEL))
    data = buffer.getvalue()
    (folder / genuine.asset).write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    listed = dataclasses.replace(genuine, sha256=digest, download_size=len(data))
    monkeypatch.setattr(mujoco_menagerie, "get", lambda name: listed)
    return {**recipe.read("unitree_h1").source, "sha256": digest}


def test_recipes_pin_what_the_installed_registry_lists():
    found = [recipe.read(name).source for name in recipe.body_names()]
    found = [source for source in found if source.get("fetch") == "menagerie"]
    assert {source["folder"] for source in found} == {"unitree_h1", "ms_human_700"}
    for source in found:
        assert source["revision"] == mujoco_menagerie.commit()
        assert source["sha256"] == mujoco_menagerie.get(source["folder"]).sha256


def test_an_archive_is_fetched_once(robot, server, tmp_path):
    path = fetch.fetch("h1", robot)
    assert path.read_bytes() == MODEL
    assert path.is_relative_to(tmp_path / "cache" / "models")
    assert fetch.locate("h1", tmp_path, robot) == path
    for served in server[0].iterdir():
        served.unlink()
    assert fetch.fetch("h1", robot) == path


def test_the_packages_own_cache_variable_is_respected(robot, tmp_path, monkeypatch):
    monkeypatch.setenv("MENAGERIE_CACHE_DIR", str(tmp_path / "theirs"))
    assert fetch.fetch("h1", robot).is_relative_to(tmp_path / "theirs")


def test_an_archive_with_a_wrong_checksum_is_refused_and_leaves_nothing(robot, server, tmp_path):
    for served in server[0].iterdir():
        data = served.read_bytes()
        served.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(UserError, match="does not match the digest"):
        fetch.fetch("h1", robot)
    assert cached_files(tmp_path) == []


def test_a_registry_that_differs_from_the_recipe_is_refused(robot, tmp_path):
    with pytest.raises(UserError, match="another checksum than the recipe") as error:
        fetch.fetch("h1", {**robot, "sha256": "0" * 64})
    assert "\n" not in str(error.value)
    assert cached_files(tmp_path) == []


# --- git ---------------------------------------------------------------------------------------


def git(folder, *arguments):
    who = ("-c", "user.name=t", "-c", "user.email=t@t")
    done = subprocess.run(
        ["git", "-C", str(folder), *who, *arguments], check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path):
    """A repository with a later commit than the pinned one; returns a recipe's source."""
    folder = tmp_path / "repository"
    (folder / "assets" / "bird").mkdir(parents=True)
    git(folder, "init", "--quiet")
    git(folder, "config", "uploadpack.allowFilter", "true")
    git(folder, "config", "uploadpack.allowAnySHA1InWant", "true")
    (folder / "assets" / "bird" / "bird.xml").write_bytes(MODEL)
    (folder / "assets" / "large.bin").write_bytes(b"not wanted")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "-m", "pinned")
    revision = git(folder, "rev-parse", "HEAD")
    (folder / "assets" / "bird" / "bird.xml").write_text("<later/>")
    git(folder, "commit", "--quiet", "-am", "later")
    return {
        "fetch": "git",
        "repository": folder.as_uri(),
        "revision": revision,
        "folder": "assets/bird",
        "file": "bird.xml",
        "licence": "MIT",
        "by_hand": ["bird/bird.xml"],
    }


def test_exactly_the_pinned_commit_is_fetched(repository, tmp_path):
    path = fetch.fetch("bird", repository)
    assert path.read_bytes() == MODEL
    assert cached_files(tmp_path) == [path]
    assert fetch.locate("bird", tmp_path, repository) == path


def test_an_unknown_commit_is_refused_and_leaves_nothing(repository, tmp_path):
    with pytest.raises(UserError, match="fetching failed"):
        fetch.fetch("bird", {**repository, "revision": "1" * 40})
    assert cached_files(tmp_path) == []
    assert list((tmp_path / "cache" / "models").iterdir()) == []


def test_a_missing_folder_is_refused(repository):
    with pytest.raises(UserError, match="has no folder assets/fish"):
        fetch.fetch("bird", {**repository, "folder": "assets/fish"})


def test_a_cache_that_cannot_be_written_is_refused_in_one_line(repository, tmp_path, capsys):
    (tmp_path / "cache").write_text("a file where a folder should be")
    with pytest.raises(UserError, match="fetching failed") as error:
        fetch.fetch("bird", repository)
    assert "\n" not in str(error.value)
    assert port.main(["--fetch", "unitree_h1"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_another_process_may_be_faster(repository, tmp_path, monkeypatch):
    replace = os.replace

    def too_late(source, target):
        shutil.copytree(source, target)
        replace(source, target)

    monkeypatch.setattr(os, "replace", too_late)
    path = fetch.fetch("bird", repository)
    assert path.read_bytes() == MODEL
    assert cached_files(tmp_path) == [path]


# --- without a network -------------------------------------------------------------------------


def test_the_users_folder_wins(repository, tmp_path, monkeypatch):
    fetch.fetch("bird", repository)
    mine = tmp_path / "mine" / "bird" / "bird.xml"
    mine.parent.mkdir(parents=True)
    mine.write_text("<mujoco/>")
    monkeypatch.setenv(resources.MODELS_VARIABLE, str(tmp_path / "mine"))
    assert fetch.locate("bird", tmp_path, repository) == mine


def test_a_missing_model_names_the_command_and_the_place(monkeypatch):
    with pytest.raises(UserError) as error:
        recipe.source_spec(recipe.read("unitree_h1"))
    for part in ("unitree_h1:", "--fetch unitree_h1", resources.MODELS_VARIABLE, "h1.xml"):
        assert part in str(error.value)
    assert "\n" not in str(error.value)


def test_offline_the_command_says_where_to_put_files_by_hand(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("MENAGERIE_BASE_URL", "file:///nowhere")
    assert port.main(["--fetch", "unitree_h1"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    for part in ("fetching failed", "by hand", "cda5236f9838", resources.MODELS_VARIABLE):
        assert part in error
    assert cached_files(tmp_path) == []


def test_offline_git_leaves_nothing(repository, tmp_path):
    gone = {**repository, "repository": (tmp_path / "gone").as_uri()}
    with pytest.raises(UserError, match="by hand"):
        fetch.fetch("bird", gone)
    assert cached_files(tmp_path) == []


def test_a_body_that_ships_needs_nothing_fetched(capsys):
    assert port.main(["--fetch", "arm"]) == 2
    assert "needs nothing fetched" in capsys.readouterr().err


def test_the_command_says_what_came(robot, monkeypatch, capsys):
    instructions = dataclasses.replace(recipe.read("unitree_h1"), source=robot)
    monkeypatch.setattr(recipe, "read", lambda name: instructions)
    assert port.main(["--fetch", "unitree_h1"]) == 0
    said = capsys.readouterr().out
    assert "h1.xml" in said and "BSD-3-Clause" in said and robot["revision"] in said


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("revision", "--upload-pack=touch ran"),
        ("revision", "main"),
        ("revision", "a" * 39),
        ("revision", 3),
        ("repository", "--upload-pack=touch ran"),
        ("repository", "ext::sh -c touch% ran"),
        ("repository", "-x"),
        ("folder", "--stdin"),
        ("folder", "/etc"),
        ("folder", "a/../../b"),
        ("file", "../bird.xml"),
        ("file", "/etc/passwd"),
    ],
)
def test_what_git_would_take_for_an_option_is_refused(
    repository, tmp_path, monkeypatch, key, value
):
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=f"bird: its recipe has {key} = ") as caught:
        fetch.fetch("bird", {**repository, key: value})
    assert "\n" not in str(caught.value)
    assert set(tmp_path.rglob("*")) == before
