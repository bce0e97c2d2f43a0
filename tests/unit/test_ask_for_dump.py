"""How `skbcapd dump` finds the daemon of a directory: by its lock, as /proc shows it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from skbcapd.errors import FileError
from skbcapd.output.directory import ask_for_dump

# Locks a directory; on the signal it acts as its argument says.
DAEMON = """
import fcntl, os, pathlib, signal, sys
place = pathlib.Path(sys.argv[1])
def dump(*_):
    for name in ("a.pcapng.part", "b.pcapng"):
        new = place / ".new"
        new.symlink_to(name)
        new.rename(place / "current.pcapng")
if sys.argv[2] != "nothing":
    signal.signal(signal.SIGUSR2, dump if sys.argv[2] == "dump" else lambda *_: None)
fcntl.flock(os.open(place, os.O_RDONLY), fcntl.LOCK_EX)
print(flush=True)
while True:
    signal.pause()
"""


@contextmanager
def daemon(path: Path, does: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that has the lock."""
    with subprocess.Popen([sys.executable, "-c", DAEMON, str(path), does], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


def test_the_locking_process_makes_the_dump(tmp_path: Path) -> None:
    """The file to which current.pcapng points after the signal is returned; an unfinished file is
    waited for.
    """
    with daemon(tmp_path, "dump"):
        assert ask_for_dump(tmp_path) == tmp_path / "b.pcapng"


def test_a_dump_that_is_refused(tmp_path: Path) -> None:
    """The reason of the daemon ends the wait at once."""
    reasons = iter(["", "no space"])
    with daemon(tmp_path, "refuse"), pytest.raises(FileError, match="no dump: no space; the packets stay in memory"):
        ask_for_dump(tmp_path, lambda: next(reasons))
    assert next(reasons, None) is None


def test_a_process_that_would_die_is_left_alone(tmp_path: Path) -> None:
    """A process that has the lock but no handler for the signal gets no signal."""
    with daemon(tmp_path, "nothing") as process:
        with pytest.raises(FileError, match="no process writes to it"):
            ask_for_dump(tmp_path)
        assert process.poll() is None


def test_a_lock_on_something_else(tmp_path: Path) -> None:
    """A process with a lock on the same inode number of another file system gets no signal."""
    proc = tmp_path / "proc"
    place = tmp_path / "captures"
    place.mkdir()
    (proc / "7" / "fd").mkdir(parents=True)
    (proc / "locks").write_text(f"1: FLOCK  ADVISORY  WRITE 7 08:01:{place.stat().st_ino} 0 EOF\n")
    (proc / "7" / "status").write_text("SigCgt:\tffffffffffffffff\n")
    (proc / "7" / "fd" / "3").symlink_to(tmp_path)
    with pytest.raises(FileError, match="no process writes to it"):
        ask_for_dump(place, proc=proc)


@pytest.mark.parametrize("name", ["missing", "file/missing"])
def test_no_directory(name: str, tmp_path: Path) -> None:
    """The error names a missing directory."""
    (tmp_path / "file").touch()
    with pytest.raises(FileError, match=f"{tmp_path / name}: .*; expected a directory that skbcapd writes to"):
        ask_for_dump(tmp_path / name)
