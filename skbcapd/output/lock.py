"""One capture at a time writes to a directory: the lock, and the process that holds it.

In: the descriptor of a directory. Out: a lock that is held until the process ends.

The rule: a user who can only read the directory must not be able to take the lock. So the lock is
on a file that only its owner can open, and not on the directory.

Source: flock(2), proc_locks(5).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from skbcapd.errors import FileError

NAME = ".skbcapd.lock"
_PROC = Path("/proc")
_TRIES = 8  # another process can create a file there at the same time


def lock(directory: int, path: Path) -> int:
    """Lock a directory.

    Args:
        directory: descriptor of the directory.
        path: its path, for messages.

    Returns:
        The descriptor that holds the lock.

    Raises:
        FileError: another process has the lock; the message names it.
        OSError: the lock cannot be created.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    for _ in range(_TRIES):
        try:
            found = os.open(NAME, flags, 0o600, dir_fd=directory)
        except PermissionError:
            _refuse(directory, path)
            os.unlink(NAME, dir_fd=directory)  # the file of another user, which is not locked any more
            continue
        except OSError as error:
            if not error.errno or _is_regular(directory):
                raise
            os.unlink(NAME, dir_fd=directory)  # a symbolic link, a socket
            continue
        status = os.fstat(found)
        if not stat.S_ISREG(status.st_mode) or status.st_mode & 0o077 or status.st_nlink != 1:
            os.close(found)
            os.unlink(NAME, dir_fd=directory)  # other users could open it
            continue
        try:
            fcntl.flock(found, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(found)
            _refuse(directory, path)
            continue  # it was deleted in the meantime
        with contextlib.suppress(OSError):
            if os.path.samestat(os.stat(NAME, dir_fd=directory, follow_symlinks=False), status):
                return found
        os.close(found)
    raise FileError(f"{path}: another skbcapd writes to it", "each daemon needs its own directory: set files.directory")


def _is_regular(directory: int) -> bool:
    with contextlib.suppress(OSError):
        return stat.S_ISREG(os.stat(NAME, dir_fd=directory, follow_symlinks=False).st_mode)
    return True


def _refuse(directory: int, path: Path) -> None:
    """Report the process that has the lock.

    Raises:
        FileError: a process has it.
    """
    held = os.stat(NAME, dir_fd=directory, follow_symlinks=False)
    for process in _holders(held.st_ino, _PROC):
        raise FileError(
            f"{path}: another skbcapd writes to it: {_who(process, _PROC)}",
            "each daemon needs its own directory: set files.directory",
        )


def _who(process: str, proc: Path) -> str:
    if process in {"0", "-1"}:
        return "a process of another PID namespace"
    with contextlib.suppress(OSError):
        return f"process {process} ({(proc / process / 'comm').read_text().strip()})"
    return f"process {process}"


def _holders(inode: int, proc: Path) -> Iterator[str]:
    """Processes that have locked a file with this inode number. The device is not compared: on some
    file systems it differs from that of stat.
    """
    held = re.findall(r"FLOCK +ADVISORY +WRITE (-?\d+) [^:]+:[^:]+:(\d+) ", (proc / "locks").read_text())
    return (process for process, found in held if int(found) == inode)
