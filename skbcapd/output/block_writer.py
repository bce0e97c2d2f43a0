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
import stat
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from skbcapd.errors import FileError, UsageError
from skbcapd.output.aligned import AlignedTail, Buffers, Piece, count_pieces
from skbcapd.output.disk import DIRECT_MIN, DiskFile, WriteMode
from skbcapd.output.secrets import ReservedBlock
from skbcapd.pcapng.interface import Loan
from skbcapd.pcapng.secrets import reserved_block
from skbcapd.worker import InlineJobs, Jobs, wait_until

MODE = 0o640
SELF = (-1, -1)  # as owner: user and group of the process
QUEUE_MAX = 1 << 24  # bytes that wait for a disk, without lent memory; with more, a file is busy
# Time to wait for a disk that keeps up: then few buffers are in use, and they stay in the CPU's cache.
_WAIT_S = 0.05
_AT_ONCE = 1 << 24  # bytes after which no more lent pieces are added to one write
_RARE_S = 0.5  # with more time between two calls of `flush`, the packets of the last one have waited long enough
_JOBS_MAX = 2  # if so many jobs wait, small pieces are collected and not passed on
_BUFFER = 1 << 16  # of standard output
STOP_S = 2.0  # time to wait for the disk after the capture has ended


def owner_ids(text: str) -> tuple[int, int]:
    """User and group ids of `USER`, `USER:GROUP` or `:GROUP`, names or numbers; -1 if one is missing,
    SELF for `self`.

    Raises:
        UsageError: there is no such user or group.
    """
    user, _, group = ("", "", "") if text == "self" else text.partition(":")
    try:
        return _number(user, lambda: pwd.getpwnam(user).pw_uid), _number(group, lambda: grp.getgrnam(group).gr_gid)
    except KeyError:
        raise UsageError(
            f"files.owner is {text}: no such user or group on this machine",
            "getent passwd; getent group",
        ) from None


def _number(name: str, looked_up: Callable[[], int]) -> int:
    """The id of a user or group; a number that is no name is the id itself."""
    if not name:
        return -1
    try:
        return looked_up()
    except KeyError:
        if name.isdecimal():
            return int(name)
        raise


class BlockSink:
    """Writes complete blocks to a descriptor. After an error it writes no more, and counts the
    dropped packets.

    Args:
        descriptor: an empty file, or a pipe.
        strict: also raise the error, at the next call.
        clock: seconds.
        jobs: runs the writes; it can be slow and has no size limit: see `is_busy`.
        keep_free: free space to leave on the disk, in bytes.
        buffers: memory that successive files share.
        write_mode: what is known about the disk; successive files share it, too.
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
        write_mode: WriteMode | None = None,
    ) -> None:
        self._strict = strict
        self._jobs = jobs or InlineJobs()
        self._buffers = buffers or Buffers()
        self._tail = AlignedTail(self._buffers)
        self._unflushed = 0  # bytes that were passed since the last flush
        self._clock, self._flushed_s = clock, float("-inf")
        self._borrowed = self._given_back = 0  # bytes of lent memory; the second is changed by the thread of the disk
        self._is_late = False  # the disk did not keep up: it is not waited for until it has caught up
        self.disk = DiskFile(descriptor, clock, keep_free, write_mode)
        self._waiting: deque[Piece] = deque()  # pieces that are not written yet
        self._abandoned: int | None = None

    @property
    def error(self) -> OSError | None:
        """The error that ended writing; None if there was none."""
        return self.disk.error

    @property
    def lost(self) -> int:
        """Packets that were not written because of an error."""
        return self.disk.lost if self._abandoned is None else self._abandoned

    @property
    def size(self) -> int:
        """Bytes of complete blocks that were passed; after an error, those in the file."""
        return self._tail.size if self.disk.error is None else self.disk.size

    @property
    def accepted(self) -> int:
        """Bytes that were passed; see Output."""
        return self._tail.size

    @property
    def completed(self) -> int:
        """Bytes that are in the file, or whose packets are counted as dropped; see Output."""
        return self.disk.completed

    @property
    def is_busy(self) -> bool:
        """Whether too many bytes wait for the disk; see Output."""
        return self._tail.size - self.disk.completed - self.borrowed > QUEUE_MAX

    @property
    def borrowed(self) -> int:
        """Bytes of lent memory that wait for the disk."""
        return self._borrowed - self._given_back

    def write(self, blocks: bytes | memoryview, loan: Loan | None = None) -> None:
        """Write one or more complete blocks.

        Args:
            blocks: the blocks.
            loan: their memory; None: they must be copied.
        """
        self._unflushed += len(blocks)
        for piece in self._tail.add(blocks, loan):
            self._put(piece)
        if self.disk.error is not None:
            self.flush(whole=True)  # so that they are counted now
            self._raise()

    def note_memory_pressure(self) -> None:
        """Half of the segments are full: use the page cache for a while, unless it is slower than
        the disk.
        """
        self.disk.mode.note_memory_pressure()

    def flush(self, *, whole: bool = False) -> None:
        """Pass on the collected blocks; of a large amount, not the bytes after the last complete
        block of the disk, if the last call was a moment ago.

        Args:
            whole: pass on all bytes, even if other jobs wait. Otherwise a later call can do it.
        """
        now = self._clock()
        whole, self._flushed_s = whole or now - self._flushed_s >= _RARE_S, now
        are_many_waiting = self._jobs.waiting >= _JOBS_MAX
        if whole or not are_many_waiting:
            is_much = self._unflushed >= DIRECT_MIN
            self._unflushed = 0
            for is_aligned in (True, False) if whole and is_much else (is_much,):
                if piece := self._tail.take(is_aligned=is_aligned, are_many_waiting=are_many_waiting):
                    self._put(piece)
        if self.disk.error is not None:
            self._raise()

    def wait(self, timeout_s: float) -> None:
        """Wait for the disk, about as long as the timeout; then the packets that are not written
        are counted as dropped.
        """
        if not wait_until(lambda: self.completed >= self.accepted, timeout_s):
            self.disk.is_given_up = True
            wait_until(lambda: self.completed >= self.accepted, timeout_s / 2)

    def do(self, job: Callable[[], None]) -> None:
        """Do something in the thread of the disk, after the pieces that were passed on; it must not raise."""
        self._jobs.do(job)

    def abandon(self) -> None:
        """Wait for the disk no longer: count all packets that are not written by now as lost."""
        self.disk.is_given_up = True
        waiting = list(self._waiting)
        self._abandoned = self.disk.lost + count_pieces(waiting)

    def close(self) -> None:
        """Close everything but the descriptor; called by the writer thread, after the last piece."""
        self.disk.close()

    def _put(self, piece: Piece) -> None:
        self._waiting.append(piece)
        self._borrowed += piece.lent
        self._jobs.do(self._write)
        if piece.lent or not piece.buffers:
            return
        if self._is_late:
            self._is_late = self._jobs.waiting >= _JOBS_MAX
        else:
            self._is_late = not self._jobs.wait_below(_JOBS_MAX, _WAIT_S)

    def _write(self) -> None:
        """Write the next piece, if it was not written with the one before: the disk is faster if it gets more lent
        pieces at once.
        """
        waiting = self._waiting
        if not waiting:
            return
        piece, count = waiting[0], 1
        most = 0 if self.disk.mode.tries_cache else _AT_ONCE
        while piece.lent and piece.size < most and count < len(waiting):
            following = waiting[count]
            if not following.lent or following.at != piece.end or following.is_aligned != piece.is_aligned:
                break
            piece = piece.with_next(following)
            count += 1
        self.disk.put(piece)
        for _ in range(count):
            waiting.popleft()
        self._buffers.give_back(piece)
        self._given_back += piece.lent
        for loan in piece.loans:
            loan.give_back()

    def _raise(self) -> None:
        if self._strict and self.disk.error is not None:
            raise self.disk.error


class CaptureFile:
    """One file that is written.

    Args:
        path: its final name.
        part: write to NAME.part until it is closed, and never replace a file. False for files that
            the user named on the command line.
        mode: permission bits, limited by the umask.
        directory: descriptor of the directory of the path, which can be moved.
        jobs: as for BlockSink, like the next three.
        owner: user and group ids of a file that is not there yet; -1: of the process.

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
        write_mode: WriteMode | None = None,
        owner: tuple[int, int] = SELF,
    ) -> None:
        self.path = path
        self.working_path = path.with_name(path.name + ".part") if part else path
        self.header_size = 0  # size of the file while it has no packets
        self.is_gone = False  # at the time of the last `check`
        self.reserved: ReservedBlock | None = None  # for TLS secrets
        self._directory = directory
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | (os.O_EXCL | os.O_NOFOLLOW if part else os.O_TRUNC)
        try:
            self.descriptor = self._open(flags, mode, owner)
        except OSError as error:
            raise FileError(f"{self.working_path}: {error.strerror}; expected a file to write to") from None
        self.stream = BlockSink(
            self.descriptor, strict=not part, jobs=jobs, keep_free=keep_free, buffers=buffers, write_mode=write_mode
        )

    def _open(self, flags: int, mode: int, owner: tuple[int, int]) -> int:
        """Open the file. One that exists keeps its owner: it may be a file of the system."""
        place = self._place(self.working_path)
        if owner != SELF:
            with contextlib.suppress(FileExistsError):
                made = os.open(place, flags | os.O_EXCL | os.O_NOFOLLOW, mode, dir_fd=self._directory)
                with contextlib.suppress(OSError):  # a file system without owners
                    os.fchown(made, *owner)
                return made
        return os.open(place, flags, mode, dir_fd=self._directory)

    def _place(self, path: Path) -> str:
        return str(path) if self._directory is None else path.name

    @property
    def is_there(self) -> bool:
        """Whether the name still refers to the file, which can be moved or deleted."""
        try:
            named, own = self.working_path.lstat(), os.fstat(self.descriptor)
        except OSError:
            return False
        return (named.st_dev, named.st_ino) == (own.st_dev, own.st_ino)

    def check(self) -> None:
        """Check whether the file is there; the disk can be slow."""
        self.is_gone = not self.is_there

    def reserve(self, rest: Callable[[], bytes]) -> ReservedBlock | None:
        """Reserve a block for TLS secrets, if this is a regular file.

        Args:
            rest: returns the last lines, when the file is closed.
        """
        if stat.S_ISREG(os.fstat(self.descriptor).st_mode):
            self.reserved = ReservedBlock(self.descriptor, self.stream.accepted, rest, str(self.path))
            self.stream.write(reserved_block())
            self.stream.flush(whole=True)
        return self.reserved

    def close(self) -> bool:
        """Wait for all pieces, call fsync and rename the file. A file without a block because of an
        error is deleted.

        Returns:
            Whether the file exists.

        Raises:
            FileError: a write has failed, now or before.
        """
        with contextlib.suppress(OSError):
            self.stream.flush(whole=True)
        self.stream.wait(STOP_S)
        if self.stream.completed < self.stream.accepted:  # a write that hangs: do not touch the file
            self.stream.abandon()
            raise FileError(f"{self.working_path}: the disk has not written all of it; the rest is dropped")
        self.stream.close()
        if self.reserved:
            self.reserved.close()
        error = self.stream.error
        is_kept = True
        try:
            if self.path != self.working_path:
                is_kept = self._name()
        except OSError as late:
            error = error or late
        try:
            os.close(self.descriptor)
        except OSError as late:  # a network file system
            error = error or late
        if error is not None:
            raise FileError(f"{self.working_path}: {error.strerror} while finishing it") from None
        return is_kept

    def _name(self) -> bool:
        """Rename the file, or delete it if it has no block because of an error; returns whether it
        exists.
        """
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
    """Bytes or lines of a command that does not capture; it waits for its reader.

    Args:
        descriptor: descriptor to write to.
    """

    def __init__(self, descriptor: int = 1) -> None:
        self.descriptor = descriptor
        self.stream: BinaryIO = io.BufferedWriter(io.FileIO(descriptor, "wb", closefd=False), _BUFFER)
        self.text = io.TextIOWrapper(self.stream, "ascii", newline="\n")

    def close(self) -> None:
        """Write the buffered bytes; if the reader has ended, discard them.

        Raises:
            FileError: a write has failed.
        """
        try:
            self.text.flush()
        except OSError as error:
            # Otherwise Python writes the buffers again when they are deleted, and prints the error.
            with Path(os.devnull).open("wb") as nothing:
                os.dup2(nothing.fileno(), self.descriptor)
            self.text.flush()
            if not isinstance(error, BrokenPipeError):
                raise FileError(f"standard output: {error.strerror} while finishing it") from None
