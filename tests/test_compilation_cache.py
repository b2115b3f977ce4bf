"""JAX's compilation cache in the user's folder: found again, kept small, never in the way."""

import os
import subprocess
import sys

import jax
from tiny_runs import TINY, finish, learned, read_rows

from mjx_qflex.runner import compilation_cache


def test_what_was_not_used_for_longest_goes_first(tmp_path, monkeypatch):
    monkeypatch.setattr(compilation_cache, "MAX_BYTES", 250)
    for age, name in enumerate("bdac"):
        (tmp_path / name).write_bytes(bytes(100))
        os.utime(tmp_path / name, (1_000 - age, 1_000 - age))
    compilation_cache._prune(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"b", "d"}


def test_caching_can_be_turned_off():
    assert not jax.config.jax_enable_compilation_cache  # as conftest says
    assert compilation_cache.enable(print) is None


def test_a_cache_folder_that_is_broken_is_one_line(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("MJX_QFLEX_CACHE", str(tmp_path / "file"))
    words: list[str] = []
    jax.config.update("jax_enable_compilation_cache", True)
    try:
        assert compilation_cache.enable(words.append) is None
    finally:
        jax.config.update("jax_enable_compilation_cache", False)
    assert len(words) == 1 and str(tmp_path / "file") in words[0]
    assert jax.config.jax_compilation_cache_dir is None


def test_a_folder_that_others_can_write_in_is_not_used(monkeypatch, tmp_path):
    monkeypatch.setenv("MJX_QFLEX_CACHE", str(tmp_path))
    words: list[str] = []
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_enable_compilation_cache", True)
    try:
        jax.config.update("jax_compilation_cache_dir", str(tmp_path / "mine"))
        (tmp_path / "mine").mkdir(mode=0o700)
        assert compilation_cache.enable(words.append) == tmp_path / "mine" and not words
        (tmp_path / "mine").chmod(0o777)
        assert compilation_cache.enable(words.append) is None
        assert not jax.config.jax_enable_compilation_cache
    finally:
        jax.config.update("jax_enable_compilation_cache", False)
        jax.config.update("jax_compilation_cache_dir", before)
    assert len(words) == 1 and "others can write" in words[0]


def test_the_second_start_of_a_command_finds_what_the_first_compiled(environment, tmp_path):
    """In a user's cache folder, which nothing but its variable names."""
    own = {key: value for key, value in environment.items() if key != "JAX_COMPILATION_CACHE_DIR"}
    cache = tmp_path / "cache"

    def train(name):
        flags = [*TINY, "--total_steps=1200", "--no-video", f"--logdir={tmp_path / name}"]
        process = subprocess.Popen(
            [sys.executable, "-m", "mjx_qflex.train", *flags],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**own, "MJX_QFLEX_CACHE": str(cache)},
        )
        code, out, err = finish(process)
        assert (code, err) == (0, ""), out + err
        return out

    assert "compiled epoch" in train("first")
    (machine,) = (cache / "compiled").iterdir()
    kept = {path.name for path in (machine / "jax").glob("*-cache")}
    assert any("epoch" in name for name in kept)
    train("second")
    assert {path.name for path in (machine / "jax").glob("*-cache")} == kept
    assert learned(read_rows(tmp_path / "first")) == learned(read_rows(tmp_path / "second"))
