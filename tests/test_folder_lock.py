"""One process a run folder."""

import os
import signal
import subprocess
import sys

import pytest

from mjx_qflex.errors import UserError
from mjx_qflex.runner import folder_lock

HOLD = """
import sys, time
from pathlib import Path
from mjx_qflex.runner import folder_lock
with folder_lock.held([Path(sys.argv[1])]):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(environment, tmp_path):
    """A process that holds a folder."""
    folder = tmp_path / "runs" / "mine"
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, folder], stdout=subprocess.PIPE, env=environment
    )
    assert process.stdout.readline() == b"held\n"
    yield process, folder
    process.kill()
    process.communicate()


def test_a_folder_in_use_is_refused_and_its_holder_named(holder):
    process, folder = holder
    other = folder.with_name("other")
    with (
        pytest.raises(UserError, match=rf"process {process.pid} on .* trains in {folder}"),
        folder_lock.held([other, folder]),
    ):
        raise AssertionError
    assert not other.exists()
    assert [path.name for path in folder.iterdir()] == [folder_lock.FILE_NAME]


def test_a_killed_holder_leaves_the_folder_free(holder):
    process, folder = holder
    process.send_signal(signal.SIGKILL)
    process.wait()
    with folder_lock.held([folder]):
        assert str(os.getpid()) in (folder / folder_lock.FILE_NAME).read_text()
    assert list(folder.iterdir()) == []


def test_an_unused_folder_goes_again_and_a_used_one_stays(tmp_path):
    folder = tmp_path / "runs" / "mine"
    with folder_lock.held([folder]):
        pass
    assert list(tmp_path.iterdir()) == []
    with folder_lock.held([folder]):
        (folder / "config.json").write_text("")
    assert [path.name for path in folder.iterdir()] == ["config.json"]


def test_a_planted_link_is_not_written_through(tmp_path):
    target = tmp_path / "target"
    target.write_text("mine")
    (tmp_path / folder_lock.FILE_NAME).symlink_to(target)
    with pytest.raises(OSError), folder_lock.held([tmp_path]):
        raise AssertionError
    assert target.read_text() == "mine"
