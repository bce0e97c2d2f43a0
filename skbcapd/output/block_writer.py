"""Capture files: where bytes are written, and the name of the file.

In: bytes of complete pcapng blocks. Out: a file that gets its final name only when it is complete.

The rule: while it is written, a file has the name NAME.part, and is complete up to its last flushed
block. When it is closed, fsync and rename give it its name. Packets that the disk does not accept
are counted, and the file is cut at the end of a block.

Bytes pass three parts: `aligned` collects them, a `worker` passes them to another thread, `disk`
writes them.
"""

from __future__ import annotations

import contextlib
import errno
import grp
import io
import os
import pwd
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from skbcapd.errors import FileError, UsageError
from skbcapd.output.aligned import AlignedTail, Buffers, Piece
from skbcapd.output.disk import DIRECT_MIN, DiskFile
from skbcapd.output.worker import AtOnce, Jobs, wait_until

MODE = 0o640
SELF = (-1, -1)  # as owner: the process's user and group
QUEUE_MAX = 1 << 24  # bytes that wait for a disk; beyond, a file is busy
_WAIT_S = 0.05  # for a disk that is as fast as packets come: fewer buffers are used then, and stay in the CPU's cache
_JOBS_MAX = 2  # as many wait, and small pieces are gathered rather than handed on
_BUFFER = 1 << 16  # of standard output
STOP_S = 2.0  # for the disk, when the capture has ended


def owner_ids(text: str) -> tuple[int, int]:
    """User and group ids of `USER`, `USER:GROUP` or `:GROUP`; -1 for what is not said, SELF for `self`.

    Raises:
        UsageError: there is no such user or group.
    """
    user, _, group = ("", "", "") if text == "self" else text.partition(":")
    try:
        return pwd.getpwnam(user).pw_uid if user else -1, grp.getgrnam(group).gr_gid if group else -1
    except KeyError:
        raise UsageError(
            f"files.owner is {text}: no such user or group on this machine",
            "getent passwd; getent group",
        ) from None


class BlockSink:
    """Takes whole blocks to a descriptor. After an error it takes no more, and counts the packets that it refuses.

    Args:
        descriptor: of an empty file, or of a pipe.
        strict: raise the error, too: at the next call.
        clock: seconds.
        jobs: whoever writes; it may take as long as it likes, and as much as it is given: see `is_busy`.
        keep_free: bytes of the disk that stay free.
        buffers: to be shared by files that follow each other.
    """

    def __init__(
        self,
        descriptor: int,
        *,
        strict: bool = False,
        clock: Callable[[], float] = time.monotonic,
        jobs: Jobs | None = None,
        keep_free: int = 0,
        buffers: Buffers | None = None,
    ) -> None:
        self._strict = strict
        self._jobs = jobs or AtOnce()
        self._buffers = buffers or Buffers()
        self._tail = AlignedTail(self._buffers)
        self._is_late = False  # the disk did not keep up: it is not waited for until it has caught up
        self.disk = DiskFile(descriptor, clock, keep_free)

    @property
    def error(self) -> OSError | None:
        """Why the disk takes no more."""
        return self.disk.error

    @property
    def lost(self) -> int:
        """Packets that the disk did not take."""
        return self.disk.lost

    @property
    def size(self) -> int:
        """Bytes of whole blocks that it was given; after an error those in the file."""
        return self._tail.size if self.disk.error is None else self.disk.size

    @property
    def handed(self) -> int:
        """Bytes that it was given; see Output."""
        return self._tail.size

    @property
    def settled(self) -> int:
        """Bytes of these that are in the file, or whose packets are counted; see Output."""
        return self.disk.settled

    @property
    def is_busy(self) -> bool:
        """Whether more waits for the disk than should; see Output."""
        return self._tail.size - self.disk.settled > QUEUE_MAX

    def write(self, blocks: bytes | memoryview) -> None:
        """Take one or more whole blocks."""
        for piece in self._tail.add(blocks):
            self._put(piece)
        if self.disk.error is not None:
            self.flush(whole=True)  # to be counted now
        self._raise()

    def note_memory_pressure(self) -> None:
        """Too much waits: have the cache take what comes now, unless it is slower than the disk."""
        self.disk.choice.note_memory_pressure()

    def flush(self, *, whole: bool = False) -> None:
        """Hand on what is gathered; of much, all but what is behind its last block of the disk.

        Args:
            whole: also that, and while others wait. Without, a later call will do it.
        """
        is_much = self._tail.waiting >= DIRECT_MIN
        if (whole or self._jobs.waiting < _JOBS_MAX) and (piece := self._tail.take(is_aligned=is_much)):
            self._put(piece)
            if whole and is_much and (piece := self._tail.take(is_aligned=False)):
                self._put(piece)
        self._raise()

    def wait(self, timeout_s: float) -> None:
        """Wait for the disk, for so long and not much longer: what it has not taken by then is counted."""
        if not wait_until(lambda: self.settled >= self.handed, timeout_s):
            self.disk.is_given_up = True
            wait_until(lambda: self.settled >= self.handed, timeout_s / 2)

    def close(self) -> None:
        """Let go of what is held beside the descriptor, which stays open; by whoever writes, after the last piece."""
        self.disk.close()

    def _put(self, piece: Piece) -> None:
        self._jobs.do(lambda: self._write(piece))
        if self._is_late:
            self._is_late = self._jobs.waiting > 0
        else:
            self._is_late = not self._jobs.wait_below(_JOBS_MAX, _WAIT_S)

    def _write(self, piece: Piece) -> None:
        self.disk.put(piece)
        self._buffers.give_back(piece)

    def _raise(self) -> None:
        if self._strict and self.disk.error is not None:
            raise self.disk.error


class CaptureFile:
    """One file being written.

    Args:
        path: its name when whole.
        part: write to NAME.part until closed, and take no name that is in use (not for files that a user named on the
            command line).
        mode: permission bits, less what the umask takes.
        directory: descriptor of the directory that the path is in; it may have been moved since.
        jobs: as for BlockSink; so the next two.

    Raises:
        FileError: it cannot be opened.
    """

    def __init__(
        self,
        path: Path,
        *,
        part: bool,
        mode: int = MODE,
        directory: int | None = None,
        jobs: Jobs | None = None,
        keep_free: int = 0,
        buffers: Buffers | None = None,
    ) -> None:
        self.path = path
        self.working_path = path.with_name(path.name + ".part") if part else path
        self.header_size = 0  # of what is worth nothing by itself
        self._directory = directory
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | (os.O_EXCL | os.O_NOFOLLOW if part else os.O_TRUNC)
        try:
            self.descriptor = os.open(self._place(self.working_path), flags, mode, dir_fd=directory)
        except OSError as error:
            raise FileError(f"{self.working_path}: {error.strerror}; expected a file to write to") from None
        self.stream = BlockSink(self.descriptor, strict=not part, jobs=jobs, keep_free=keep_free, buffers=buffers)

    def _place(self, path: Path) -> str:
        return str(path) if self._directory is None else path.name

    @property
    def is_there(self) -> bool:
        """Whether the name still leads to the file: it may have been moved or removed."""
        try:
            named, own = self.working_path.lstat(), os.fstat(self.descriptor)
        except OSError:
            return False
        return (named.st_dev, named.st_ino) == (own.st_dev, own.st_ino)

    def close(self) -> bool:
        """Make the file whole and give it its name, when all pieces are written. One that got only an error is deleted.

        Returns:
            Whether there is a file.

        Raises:
            FileError: the disk refuses, now or at a write before.
        """
        with contextlib.suppress(OSError):
            self.stream.flush(whole=True)
        self.stream.wait(STOP_S)
        self.stream.close()
        error = self.stream.error
        is_kept = True
        try:
            if self.path != self.working_path:
                is_kept = self._name()
        except OSError as late:
            error = error or late
        os.close(self.descriptor)
        if error is not None:
            raise FileError(f"{self.working_path}: {error.strerror} while finishing it") from None
        return is_kept

    def _name(self) -> bool:
        """Give it its name, where that is worth it; whether it has one."""
        if not self.is_there:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        place = self._place(self.working_path)
        if self.stream.error is not None and self.stream.size <= self.header_size:
            os.unlink(place, dir_fd=self._directory)
            return False
        os.fsync(self.descriptor)
        os.rename(place, self._place(self.path), src_dir_fd=self._directory, dst_dir_fd=self._directory)
        return True


class StandardOutput:
    """Stands for a capture file where blocks, or lines of text, go to a pipe or a terminal.

    Args:
        descriptor: where to write.
    """

    def __init__(self, descriptor: int = 1) -> None:
        self.path = Path("standard output")
        self.descriptor = descriptor
        self.stream: BinaryIO = io.BufferedWriter(io.FileIO(descriptor, "wb", closefd=False), _BUFFER)
        self.text = io.TextIOWrapper(self.stream, "ascii", newline="\n")

    def close(self) -> None:
        """Hand on what is buffered; a reader that has gone wants none of it.

        Raises:
            FileError: what reads it refuses.
        """
        try:
            self.text.flush()
        except OSError as error:
            # The buffers still hold bytes, and Python would try again, aloud, when they are collected.
            with Path(os.devnull).open("wb") as nothing:
                os.dup2(nothing.fileno(), self.descriptor)
            self.text.flush()
            if not isinstance(error, BrokenPipeError):
                raise FileError(f"{self.path}: {error.strerror} while finishing it") from None
