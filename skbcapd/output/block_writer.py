"""Capture files: where bytes go, and under which name.

In: bytes of whole pcapng blocks. Out: a file that has its real name only when it is whole.

The rule: a file in work is called NAME.part; it is complete to its last flushed block at any time, and gets its name by
fsync and rename when it is closed. What the disk refuses is counted in packets, and cut off at a block's end.
"""

from __future__ import annotations

import contextlib
import grp
import io
import mmap
import os
import pwd
import stat
import struct
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from skbcapd.errors import FileError

MODE = 0o640
SELF = (-1, -1)  # as owner: the process's user and group
_BUFFER = 1 << 16  # of standard output
_GATHERED = 1 << 20
_DIRECT_MIN = 1 << 18  # bytes at once that are worth a wait for the disk
_THROUGH_MIN = 1 << 16  # bytes at once that need not be gathered
_ALIGNMENT = 1 << 12  # of direct writes: no disk has larger blocks
_CACHED_S = 5.0
_PACE_MIN, _PACE_MAX = 1 << 22, 1 << 25  # bytes from which on a pace is known, and of which it is made
_PACKET = 6


def count_packets(blocks: bytes | memoryview) -> int:
    """How many Enhanced Packet Blocks are among whole blocks."""
    packets = at = 0
    while at < len(blocks):
        kind, size = struct.unpack_from("<II", blocks, at)
        packets += kind == _PACKET
        at += size
    return packets


def owner_ids(text: str) -> tuple[int, int]:
    """User and group ids of `USER`, `USER:GROUP` or `:GROUP`; -1 for what is not said, SELF for `self`.

    Raises:
        FileError: there is no such user or group.
    """
    user, _, group = ("", "", "") if text == "self" else text.partition(":")
    try:
        return pwd.getpwnam(user).pw_uid if user else -1, grp.getgrnam(group).gr_gid if group else -1
    except KeyError:
        raise FileError(f"files.owner is {text}: no such user or group on this machine") from None


class _Pace:
    """How fast one way of writing has been of late."""

    def __init__(self) -> None:
        self._bytes = self._seconds = 0.0

    def add(self, size: int, seconds: float) -> None:
        """So many bytes have taken so long."""
        self._bytes += size
        self._seconds += seconds
        if self._bytes > _PACE_MAX:
            self._bytes /= 2
            self._seconds /= 2

    @property
    def rate(self) -> float:
        """Bytes per second; without end while not known, so that it is tried."""
        return self._bytes / self._seconds if self._bytes >= _PACE_MIN and self._seconds else float("inf")


class BlockSink:
    """Takes whole blocks to a descriptor. After an error it takes no more, and counts the packets that it refuses.

    Blocks are gathered in `_gathered`, which stands for the end of the file from `_at` on, a multiple of the disk's
    blocks. Much at once goes to the disk directly (O_DIRECT), which costs a fraction of what the page cache does.
    Little and the end go through the cache, from where they lie if nothing waits before them. So does all for some time
    after memory pressure, while that is the faster way: mostly, but not where a hypervisor is slow to give the pages.

    Args:
        descriptor: of an empty file, or of a pipe.
        strict: raise the error, too.
        clock: seconds.

    Source: O_DIRECT in open(2).
    """

    def __init__(self, descriptor: int, *, strict: bool = False, clock: Callable[[], float] = time.monotonic) -> None:
        self._strict, self._clock = strict, clock
        self.error: OSError | None = None
        self.lost = 0
        self.size = 0  # bytes of whole blocks, those gathered among them
        self._descriptor = descriptor
        self._is_file = stat.S_ISREG(os.fstat(descriptor).st_mode)
        self._direct = _open_direct(descriptor) if self._is_file else -1
        self._gathered = memoryview(mmap.mmap(-1, _GATHERED))  # begins where a page does, as O_DIRECT needs it
        self._at = self._fill = 0
        self._written = 0  # of `_gathered`, bytes that are in the file already
        self._starts: deque[int] = deque([0])  # of blocks: one at or before `_at`, and those of later writes
        self._cached_until = 0.0
        self._direct_pace, self._cached_pace = _Pace(), _Pace()

    def write(self, blocks: bytes | memoryview) -> None:
        """Take one or more whole blocks."""
        if self.error is not None:
            self.lost += count_packets(blocks)
            return
        self._starts.append(self.size)
        self.size += len(blocks)
        left = memoryview(blocks)
        waiting = self._fill - self._written
        is_little = _THROUGH_MIN <= len(left) < _GATHERED and waiting < _ALIGNMENT
        if is_little or (len(left) >= _DIRECT_MIN and not self._is_direct):
            if waiting:
                self._put(left, is_end=True)
            self._put_through(left)
            return
        while left and self.error is None:
            size = min(len(left), _GATHERED - self._fill)
            self._gathered[self._fill : self._fill + size] = left[:size]
            self._fill += size
            left = left[size:]
            if self._fill == _GATHERED:
                self._put(left)

    def note_memory_pressure(self) -> None:
        """Too much waits: have the cache take what comes now, unless it is slower than the disk."""
        self._cached_until = self._clock() + _CACHED_S

    def flush(self, *, whole: bool = False) -> None:
        """Hand on what is gathered; of much, all but what is behind its last block of the disk.

        Args:
            whole: also that. Without, the next call will do it.
        """
        if self._fill - self._written >= _DIRECT_MIN:
            self._put()
            if not whole:
                return
        if self._fill > self._written:
            self._put(is_end=True)

    def close(self) -> None:
        """Let go of what is held beside the descriptor, which stays open."""
        self._close_direct()
        self._gathered.release()

    def _close_direct(self) -> None:
        if self._direct >= 0:
            os.close(self._direct)
        self._direct = -1

    def _put(self, left: bytes | memoryview = b"", *, is_end: bool = False) -> None:
        """Write what is gathered, but for a part of a block of the disk that the next call begins with.

        Args:
            left: what of the last write is not gathered yet, to be counted if it cannot be written.
            is_end: write that part as well, and keep it all the same.
        """
        if self.error is not None:
            return
        end = self._fill if is_end else self._fill // _ALIGNMENT * _ALIGNMENT
        try:
            if not is_end and self._is_direct:
                self._put_directly(end)
            while self._written < end:
                self._written += self._write_at(self._gathered[self._written : end], self._at + self._written)
        except OSError as error:
            self._fail(error, self._at + self._written, self._gathered[self._written : self._fill], left)
            return
        done = end // _ALIGNMENT * _ALIGNMENT
        rest = self._fill - done
        self._gathered[:rest] = bytes(self._gathered[done : self._fill])
        self._go_on(self._at + done, rest, max(0, self._written - done))

    def _put_through(self, left: memoryview) -> None:
        """Write blocks from where they lie, when nothing is gathered but what is written."""
        if self.error is not None:
            return
        end, whole, begun = self._at + self._fill, left, self._clock()
        rest = (end + len(left)) % _ALIGNMENT
        try:
            while left:
                written = self._write_at(left, end)
                end, left = end + written, left[written:]
        except OSError as error:
            self._fail(error, end, left)
            return
        self._cached_pace.add(len(whole), self._clock() - begun)
        self._gathered[:rest] = whole[len(whole) - rest :]
        self._go_on(end - rest, rest, rest)

    def _go_on(self, at: int, fill: int, written: int) -> None:
        self._at, self._fill, self._written = at, fill, written
        while len(self._starts) > 1 and self._starts[1] <= at:
            self._starts.popleft()

    def _write_at(self, part: memoryview, at: int) -> int:
        return os.pwrite(self._descriptor, part, at) if self._is_file else os.write(self._descriptor, part)

    @property
    def _is_direct(self) -> bool:
        if self._direct < 0:
            return False
        return self._clock() >= self._cached_until or self._cached_pace.rate < self._direct_pace.rate

    def _put_directly(self, end: int) -> None:
        """Write up to `end` without the cache; what the file system does not take is left to it."""
        begun = self._clock()
        try:
            written = os.pwrite(self._direct, self._gathered[:end], self._at)
        except OSError:
            self._close_direct()  # it cannot be had here, or the disk is full: then the other way will say so
            return
        self._direct_pace.add(written, self._clock() - begun)
        self._written = max(self._written, written)

    def _fail(self, error: OSError, done: int, *missing: bytes | memoryview) -> None:
        """Count what is lost, and cut the file behind its last whole block: a torn one ends it for every reader.

        Args:
            error: why.
            done: bytes that are in the file.
            missing: what should come behind them.
        """
        self.error = error
        start = max(start for start in self._starts if start <= done)
        there = _read_back(self._descriptor, start, done) if self._is_file else b""
        if len(there) < done - start:
            start, there = self._first_behind(done), b""
        blocks, kept = b"".join((there, *missing))[max(0, start - done) :], 0
        while kept < len(there):
            size = int.from_bytes(blocks[kept + 4 : kept + 8], "little")
            if kept + size > len(there):
                break
            kept += size
        self.lost += count_packets(blocks[kept:])
        self.size = start + kept
        with contextlib.suppress(OSError):
            os.ftruncate(self._descriptor, self.size)
        if self._strict:
            raise error

    def _first_behind(self, done: int) -> int:
        """The first write of which nothing is there: what a pipe got in part cannot be taken back."""
        return next((start for start in self._starts if start >= done), self.size)


def _open_direct(descriptor: int) -> int:
    """The same file once more, around the cache; -1 where there is no such way."""
    try:
        return os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC)
    except OSError:
        return -1


def _read_back(descriptor: int, start: int, end: int) -> bytes:
    """What a file that is open for writing holds; less if it cannot be read."""
    try:
        with open(f"/proc/self/fd/{descriptor}", "rb", buffering=0) as reader:  # noqa: PTH123  no path, a descriptor
            return os.pread(reader.fileno(), end - start, start)
    except OSError:
        return b""


class CaptureFile:
    """One file being written.

    Args:
        path: its name when whole.
        part: write to NAME.part until closed, and take no name that is in use (not for files that a user named on the
            command line).
        mode: permission bits, less what the umask takes.

    Raises:
        FileError: it cannot be opened.
    """

    def __init__(self, path: Path, *, part: bool, mode: int = MODE) -> None:
        self.path = path
        self.working_path = path.with_name(path.name + ".part") if part else path
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | (os.O_EXCL if part else os.O_TRUNC)
        try:
            self.descriptor = os.open(self.working_path, flags, mode)
        except OSError as error:
            raise FileError(f"{self.working_path}: {error.strerror}; expected a file to write to") from None
        self.stream = BlockSink(self.descriptor, strict=not part)

    @property
    def is_there(self) -> bool:
        """Whether the name still leads to the file: it may have been moved or removed."""
        try:
            named, own = self.working_path.stat(), os.fstat(self.descriptor)
        except OSError:
            return False
        return (named.st_dev, named.st_ino) == (own.st_dev, own.st_ino)

    def close(self) -> None:
        """Make the file whole and give it its name.

        Raises:
            FileError: the disk refuses, now or at a write before.
        """
        with contextlib.suppress(OSError):
            self.stream.flush(whole=True)
        self.stream.close()
        error = self.stream.error
        try:
            if self.path != self.working_path:
                os.fsync(self.descriptor)
                self.working_path.rename(self.path)
        except OSError as late:
            error = error or late
        os.close(self.descriptor)
        if error is not None:
            raise FileError(f"{self.working_path}: {error.strerror} while finishing it") from None


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
