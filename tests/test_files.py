"""Files that are written whole or not at all, and what a command may write over."""

import contextlib
import os
import shutil
import stat
import subprocess
import sys

import pytest

from mjx_qflex import benchmark, commands, files, port, report
from mjx_qflex.errors import UserError
from mjx_qflex.interrupt import Interrupt


def test_a_file_is_replaced_whole_or_stays(tmp_path):
    path = tmp_path / "page.html"
    files.write(path, "old ±")
    assert path.read_bytes() == "old ±".encode()
    with pytest.raises(KeyboardInterrupt), files.beside(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert path.read_bytes() == "old ±".encode()
    with files.beside(path) as temporary:
        temporary.unlink()
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
    before = os.umask(0)
    os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~before


def test_a_planted_link_is_replaced_and_not_written_through(tmp_path):
    target = tmp_path / "target"
    target.write_text("mine")
    for name in ("config.json", "config.json.partial"):
        (tmp_path / name).symlink_to(target)
    files.write(tmp_path / "config.json", "{}")
    assert target.read_text() == "mine"
    assert not (tmp_path / "config.json").is_symlink()


def places(tmp_path):
    """Paths that no file can be written at."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    os.mkfifo(tmp_path / "pipe")
    names = ("folder", "link", "pipe", "file/page", "none/page", "x" * 300, "a\0b")
    return [*(tmp_path / name for name in names), "/dev/null", "/proc/page"]


def test_no_page_is_written_over_what_is_no_file(tmp_path, capsys):
    for place in places(tmp_path):
        assert report.main([str(tmp_path), f"--output={place}"]) == 2
        err = capsys.readouterr().err
        assert err.startswith("error: ") and err.count("\n") == 1 and "--output" in err
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    assert (tmp_path / "link").is_symlink()
    assert len(list(tmp_path.iterdir())) == 4


def test_a_benchmark_that_cannot_be_kept_is_not_made(tmp_path, capsys):
    for place in places(tmp_path)[1:]:
        if str(place).endswith("none/page"):
            continue  # this folder is made
        assert benchmark.main(["--task=chain_reach", f"--output={place}"]) == 2
        err = capsys.readouterr().err
        assert err.startswith("error: ") and err.count("\n") == 1 and "--output" in err


def test_a_port_that_cannot_be_kept_or_measured_is_not_begun(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for flags, says in (
        (["--batches", "0"], "--batches is 0; give a whole number from 1"),
        (["--raw_batches", "8", "-1"], "--raw_batches is -1"),
        (["--raw_limit=nan"], "--raw_limit is nan"),
        ([f"--output={tmp_path / 'file'}"], "--output"),
        (["--output=/dev/null"], "--output"),
    ):
        assert port.main(["--body=arm", *flags]) == 2
        err = capsys.readouterr().err
        assert err.startswith("error: ") and says in err and err.count("\n") == 1


def test_what_a_killed_process_left_goes_an_hour_later(tmp_path):
    with contextlib.suppress(SystemExit), files.beside(tmp_path / "video.mp4") as temporary:
        shutil.copy(__file__, tmp_path / f"{temporary.name[:-4]}.new")
        old = temporary.rename(tmp_path / f".{'0' * 16}.mp4")
        raise SystemExit
    new = next(path for path in tmp_path.iterdir() if path.suffix == ".new")
    for name in (".lock", ".hidden", "." + "0" * 16 + "x"):
        (tmp_path / name).write_text("")
        os.utime(tmp_path / name, (0, 0))
    os.utime(old, (0, 0))
    files.remove_leftovers(tmp_path)
    assert not old.exists() and new.exists() and len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize("data", [b"\xff\xfe", b"[1]", b"3", b"{", b"", b"[" * 100_000])
def test_damaged_json_is_one_line(tmp_path, data):
    path = tmp_path / "summary.json"
    path.write_bytes(data)
    with pytest.raises(UserError, match="summary.json") as caught:
        files.read_json(path, "remove it")
    assert "\n" not in str(caught.value)


def test_a_byte_order_mark_is_no_damage(tmp_path):
    path = tmp_path / "summary.json"
    path.write_bytes(b"\xef\xbb\xbf" + b'{"task": "a"}')
    assert files.read_json(path, "remove it", task=str) == {"task": "a"}
    for kind in (int, list):
        with pytest.raises(UserError, match="'task' of the right type"):
            files.read_json(path, "remove it", task=kind)


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError(13, "Permission denied", "a.csv"), "Permission denied for a.csv"),
        (OSError(28, "No space left on device"), "make room"),
        (MemoryError(), "out of memory; lower"),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating"), "out of memory; lower"),
        (UserError("one\ntwo"), "one two"),
    ],
)
def test_what_the_user_can_mend_takes_one_line(capsys, error, says):
    def command(arguments, interrupt):
        raise error

    assert commands.run(command, []) == 2
    err = capsys.readouterr().err
    assert says in err and err.count("\n") == 1


def test_a_fault_of_ours_keeps_its_traceback():
    def command(arguments, interrupt: Interrupt):
        raise KeyError("x")

    with pytest.raises(KeyError):
        commands.run(command, [])


SAY = """
import sys, time
from mjx_qflex import commands
def command(arguments, interrupt):
    commands.say("begins")
    while not interrupt.requested:
        time.sleep(0.1)
        commands.say("±")
    sys.stderr.write("saved")
commands.run(command, [])
"""


def test_words_that_nobody_reads_ask_to_stop(environment):
    """A closed pipe: what runs can still save. An encoding without "±" is no reason to stop."""
    with subprocess.Popen(
        [sys.executable, "-c", SAY],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**environment, "PYTHONIOENCODING": "ascii"},
    ) as process:
        lines = [process.stdout.readline() for _ in range(3)]
        assert b"begins" in lines[0] and rb"\xb1" in lines[2]
        process.stdout.close()
        assert process.wait(20) == 0
        assert process.stderr.read() == b"saved"
