"""Index files: FILE.index.csv.gz beside each capture file.

In: paths of capture files. Out: index files, each complete or not there.

The rules: an index has its name only when it is complete and on the disk. It has the modification time of its capture
file: with another one it is stale. A capture file that changes while it is read gets none.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import IO

from skbcapd.errors import FileError
from skbcapd.fleet import rows
from skbcapd.fleet.index import texts
from skbcapd.output.naming import INDEX
from skbcapd.pcapng.reader import TruncatedError
from skbcapd.text_safety import escaped_bytes

_PART = ".part"
_LEVEL = 5  # with Z_FILTERED, which leaves out short matches: smaller than level 8 without it, in half the time
_GZIP = 31  # window bits
_MAKE = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
_RUNS_MAX = 1000  # that write the same index at the same time


def path_of(capture: Path) -> Path:
    """The path of the index of a capture file."""
    return capture.with_name(capture.name + INDEX)


def is_fresh(capture: Path) -> bool:
    """Whether a capture file has an index that belongs to it as it is now."""
    try:
        return path_of(capture).stat().st_mtime_ns == capture.stat().st_mtime_ns
    except OSError:
        return False


def write(capture: Path, host: str = "") -> FileError | None:
    """Write the index of a capture file.

    Args:
        capture: the file.
        host: name of the host in the rows; empty: of this one.

    Returns:
        The error that ended the file early, if there is one: the index has the packets before it.

    Raises:
        FileError: there is no index: the capture has no packet before an error, it has changed while it was read, or
            the index cannot be written.
    """
    target = path_of(capture)
    part = target.with_name(target.name + _PART)
    try:
        before = capture.stat()
    except OSError as problem:
        raise FileError(f"{_said(capture)}: {problem.strerror}; expected a capture file") from None
    try:
        if not stat.S_ISREG(before.st_mode):
            raise FileError(f"{_said(capture)}: not a regular file; expected a capture file")
        with _open_alone(part) as file:
            if is_fresh(capture):  # another run has just written it
                part.unlink()
                return None
            try:
                error = write_to(texts(capture, host), file)
                _expect_unchanged(capture, before)
                _finish(file, before)
                part.rename(target)
            except BaseException:  # also interrupted
                part.unlink()
                raise
    except OSError as problem:
        raise FileError(f"{_said(target)}: {problem.strerror}; expected to write the index") from None
    return error


def _open_alone(part: Path) -> IO[bytes]:
    """Open the file of an unfinished index, empty and locked; waits for other runs that write it.

    Raises:
        OSError: it cannot be opened.
    """
    for _ in range(_RUNS_MAX):
        file = os.fdopen(os.open(part, _MAKE, 0o600), "wb")
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            if os.path.samestat(os.fstat(file.fileno()), part.lstat()):
                file.truncate()  # of a run that was killed
                return file
        except FileNotFoundError:
            pass  # the other run has renamed or deleted it
        except BaseException:
            file.close()
            raise
        file.close()
    raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))


def write_to(found: Iterable[str], file: IO[bytes]) -> FileError | None:
    """Write rows, compressed; returns the error that ended them early, if there is one.

    Args:
        found: see `index.texts`.
        file: where to.

    Raises:
        FileError: there is no row before the error.
        OSError: the file cannot be written.
    """
    # The same rows are the same bytes: there is no time in the header.
    packer = zlib.compressobj(_LEVEL, zlib.DEFLATED, _GZIP, strategy=zlib.Z_FILTERED)
    file.write(packer.compress(rows.HEADINGS.encode("ascii")))
    error, has_rows = None, False
    try:
        for text in found:
            file.write(packer.compress(text.encode("ascii")))
            has_rows = has_rows or bool(text)
    except FileError as problem:
        if not (has_rows or isinstance(problem, TruncatedError)):
            raise
        error = problem
    file.write(packer.flush())
    return error


def _finish(file: IO[bytes], like: os.stat_result) -> None:
    """Give an index the owner, permissions and time of its capture; it is on the disk then."""
    file.flush()
    with contextlib.suppress(OSError):
        os.fchown(file.fileno(), like.st_uid, like.st_gid)
    os.fchmod(file.fileno(), like.st_mode & 0o666)
    os.utime(file.fileno(), ns=(like.st_mtime_ns, like.st_mtime_ns))
    os.fsync(file.fileno())


def _expect_unchanged(capture: Path, before: os.stat_result) -> None:
    """Check that a capture file is as it was.

    Raises:
        FileError: it is not.
    """
    after = capture.stat()
    if not os.path.samestat(before, after) or (before.st_size, before.st_mtime_ns) != (
        after.st_size,
        after.st_mtime_ns,
    ):
        raise FileError(f"{_said(capture)}: changed while it was read; expected a finished file")


def _said(path: Path) -> str:
    return escaped_bytes(os.fsencode(path))
