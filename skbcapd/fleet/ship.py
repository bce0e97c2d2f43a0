"""Copies indexes, and captures, from a directory of captures to where those of many hosts are collected.

In: a directory, a remote of rclone. Out: REMOTE/index/raw/host=H/date=D/NAME.index.csv.gz, and
REMOTE/captures/host=H/date=D/NAME.

The rules: nothing is deleted from the directory. An index that retention deletes before it has arrived is kept: each
has a second name (a hard link) in the directory HELD, which is removed when the first name is gone and rclone has
copied everything without an error. So a host that was away catches up. What is kept is at most HELD_MAX bytes: then
the oldest are deleted, which is logged. Captures are not kept in this way: retention must be able to free the disk.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import stat
import subprocess
from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from skbcapd.errors import FileError
from skbcapd.output.naming import COMPRESSED, INDEX
from skbcapd.text_safety import escaped_bytes

_LOG = logging.getLogger(__name__)
HELD = ".shipping"
HELD_MAX = 1 << 30  # bytes
_DAY = re.compile(r"(\d{4})(\d{2})(\d{2})T\d{6}")  # {time} in a name
# Errors only; a server that does not answer ends the run soon: the timer starts the next one.
_LIMITS = ("--retries", "1", "--low-level-retries", "2", "--contimeout", "20s", "--timeout", "2m")
_OPTIONS = ("-q", *_LIMITS, "--exclude", "*.part")


def ship(directory: Path, remote: str, host: str, *, captures: bool = False) -> None:
    """Copy what has not arrived yet.

    Args:
        directory: of captures.
        remote: remote and path of rclone, such as `fleet:bucket`, or a directory.
        host: name of the host in the new paths.
        captures: whether finished captures are copied, too: those that have an index.

    Raises:
        FileError: the directory cannot be used, rclone is not installed, or something has not arrived.
    """
    remote = remote if remote.endswith(("/", ":")) else f"{remote}/"
    try:
        with _opened(directory / HELD) as held:
            names = _regular(directory)
            known = _hold(directory, held, [name for name in names if name.endswith(INDEX)])
            _copy(held, f"{remote}index/raw/host={host}")
            _release(known)
            if captures:
                _copy_captures(directory, f"{remote}captures/host={host}", names)
    except OSError as error:
        raise FileError(f"{_said(directory)}: {error.strerror}; expected a directory of captures") from None


@contextlib.contextmanager
def _opened(held: Path) -> Iterator[Path]:
    """The directory of what is kept, for this process alone.

    Raises:
        FileError: another process is at work.
    """
    held.mkdir(0o700, exist_ok=True)
    descriptor = os.open(held, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield held
    except BlockingIOError:
        raise FileError(f"{_said(held)}: used by another `skbcapd ship`; expected one at a time") from None
    finally:
        os.close(descriptor)


def _regular(directory: Path) -> list[str]:
    """The names of regular files, without hidden and unfinished ones."""
    with os.scandir(directory) as entries:
        found = [entry.name for entry in entries if entry.is_file(follow_symlinks=False)]
    return sorted(name for name in found if not name.startswith(".") and not name.endswith(".part"))


def _day(directory: Path, name: str) -> str:
    """The day of a file, as YYYY-MM-DD: from its name, otherwise of its last change."""
    if match := _DAY.search(name):
        return "-".join(match.groups())
    return f"{datetime.fromtimestamp((directory / name).lstat().st_mtime, UTC):%Y-%m-%d}"


def _hold(directory: Path, held: Path, names: Sequence[str]) -> dict[Path, int]:
    """Give each index a second name; all that is kept, with the numbers of inodes."""
    for name in names:
        with contextlib.suppress(FileNotFoundError):  # retention was faster
            target = held / f"date={_day(directory, name)}" / name
            if not (target.exists() and target.samefile(directory / name)):
                target.parent.mkdir(exist_ok=True)
                new = target.with_name(f"{name}.part")
                new.unlink(missing_ok=True)
                os.link(directory / name, new, follow_symlinks=False)
                new.replace(target)
    known, total = {}, 0
    for path in sorted(held.glob("date=*/*"), reverse=True):
        found = path.lstat()
        total += found.st_size if found.st_nlink == 1 else 0
        if total > HELD_MAX:
            _LOG.warning("%s: deleted before it has arrived, as more than %d bytes wait", path, HELD_MAX)
            path.unlink()
        elif stat.S_ISREG(found.st_mode):
            known[path] = found.st_ino
    return known


def _release(known: dict[Path, int]) -> None:
    """Delete what has arrived, and exists under no other name."""
    for path, inode in known.items():
        found = path.lstat()
        if found.st_ino == inode and found.st_nlink == 1:
            path.unlink()
            with contextlib.suppress(OSError):  # others are in it
                path.parent.rmdir()


def _copy_captures(directory: Path, target: str, names: Sequence[str]) -> None:
    """Copy captures, day by day."""
    days = defaultdict(list)
    for name in names:
        if name.endswith((".pcapng", *(f".pcapng{ending}" for ending in COMPRESSED))) and name + INDEX in names:
            with contextlib.suppress(FileNotFoundError):
                days[_day(directory, name)].append(name)
    for day, some in sorted(days.items()):
        _copy(directory, f"{target}/date={day}", some)


def _copy(source: Path, target: str, names: Sequence[str] | None = None) -> None:
    """Copy a directory, or some files of one.

    Raises:
        FileError: rclone is not installed, or has not copied everything.
    """
    chosen = [] if names is None else ["--files-from-raw", "-"]
    options = _OPTIONS if names is None else _OPTIONS[:-2]  # rclone allows no other filter beside a list
    text = b"".join(os.fsencode(name) + b"\n" for name in names or ())
    try:
        done = subprocess.run(["rclone", "copy", *options, *chosen, str(source), target], input=text, check=False)
    except FileNotFoundError:
        raise FileError("rclone: not installed; expected a program that copies", "apt-get install rclone") from None
    if done.returncode:
        raise FileError(
            f"rclone ended with {done.returncode}: not everything has arrived at {target}; the next run continues"
        )


def _said(path: Path) -> str:
    return escaped_bytes(os.fsencode(path))
