"""The lock of a directory: one daemon at a time, and a user with read permission cannot block it."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from skbcapd.errors import FileError
from skbcapd.output.directory import CaptureDirectory
from skbcapd.output.lock import NAME, lock
from tests.support import faults

ROOT = Path(__file__).parents[2]


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[int]:
    """The descriptor of a directory."""
    descriptor = os.open(tmp_path, os.O_RDONLY)
    yield descriptor
    os.close(descriptor)


def test_a_reader_of_the_directory_cannot_block_it(tmp_path: Path) -> None:
    """A shared or exclusive lock on the directory itself, which any reader can take, has no effect."""
    for kind in (fcntl.LOCK_SH, fcntl.LOCK_EX):
        stranger = os.open(tmp_path, os.O_RDONLY)
        fcntl.flock(stranger, kind)
        directory = CaptureDirectory(tmp_path)
        faults.compare(
            "a reader's lock on the directory", 1, f"starts in a directory that is there: {directory.is_there}"
        )
        directory.close()
        os.close(stranger)


def test_others_cannot_open_the_lock(tmp_path: Path) -> None:
    """The lock file has mode 600, whatever the umask."""
    before = os.umask(0)
    try:
        held = CaptureDirectory(tmp_path)
    finally:
        os.umask(before)
    assert (tmp_path / NAME).stat().st_mode & 0o7777 == 0o600
    held.close()


@pytest.mark.parametrize("kind", ["mode", "link", "hard link", "fifo", "socket"])
def test_a_lock_file_of_another_user(kind: str, directory: int, tmp_path: Path) -> None:
    """A lock file that others can open, or that is not a file, is replaced; the target of a link is
    not changed.
    """
    victim, place = tmp_path / "victim", tmp_path / NAME
    victim.write_bytes(b"precious")
    victim.chmod(0o600)
    if kind == "mode":
        place.touch()
        place.chmod(0o666)
        fcntl.flock(os.open(place, os.O_RDONLY), fcntl.LOCK_EX)
    elif kind == "link":
        place.symlink_to("victim")
    elif kind == "hard link":
        place.hardlink_to(victim)
    elif kind == "fifo":
        os.mkfifo(place)
    else:
        os.mknod(place, 0o140600)
    held = lock(directory, tmp_path)
    found = place.lstat()
    assert os.path.samestat(found, os.fstat(held))
    assert (found.st_mode, found.st_nlink) == (0o100600, 1)
    assert victim.read_bytes() == b"precious"
    os.close(held)


def test_the_locking_process_is_named(tmp_path: Path) -> None:
    """The message names the process."""
    program = "import sys; from pathlib import Path; from skbcapd.output.directory import CaptureDirectory\n"
    program += "held = CaptureDirectory(Path(sys.argv[1])); print(flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        expected = rf"{tmp_path}: another skbcapd writes to it: process {process.pid} \(python.*\)"
        with pytest.raises(FileError, match=expected):
            CaptureDirectory(tmp_path)
        process.communicate(b"")
    CaptureDirectory(tmp_path).close()
