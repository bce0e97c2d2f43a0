"""One file on its disk: pieces are written directly or through the page cache, and failed ones are
counted.

In: pieces, in order, from one thread. Out: a file that ends with a complete block at any time,
unless the process is killed.

The rules: after an error nothing more is written, and `lost` counts each packet that is not in the
file. A disk with less free space than it should keep is treated as full.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from collections import deque
from collections.abc import Callable, Sequence

from skbcapd.output import blocks
from skbcapd.output.aligned import Piece
from skbcapd.pcapng.interface import DISK_BLOCK

DIRECT_MIN = 1 << 18  # smaller writes are not worth waiting for the disk
_CACHED_S = 5.0
_CACHE_SPEEDUP = 2.0  # the cache costs CPU time, so it is used only if it is so many times faster
_QUICK = 1.1e9  # bytes per second: beside such a disk the cache is not tried, which can cost more than it saves
_BEHIND_S = 5.0  # seconds of the disk: the page cache must not get further behind, because fsync cannot be interrupted
_DIRECT_KNOWN = 1 << 25  # bytes after which the throughput is known: the first writes of a burst are slower
_CACHED_KNOWN = 1 << 22  # so few, also if they took _KNOWN_S: a slow disk must not be waited for
_KNOWN_S = 0.1
_TELLING = 1 << 20  # smaller direct writes show how long a disk takes to answer, not its throughput
_AVERAGED = 2 * _DIRECT_KNOWN  # bytes over which a throughput is averaged; it stays known when they are halved


class Throughput:
    """The recent throughput of one way of writing.

    Args:
        known: bytes after which it is known.
    """

    def __init__(self, known: int) -> None:
        self._known = known
        self._bytes = self._seconds = 0.0

    def add(self, size: int, seconds: float) -> None:
        """Add a measurement."""
        self._bytes += size
        self._seconds += seconds
        if self._bytes > _AVERAGED:
            self._bytes /= 2
            self._seconds /= 2

    @property
    def rate(self) -> float:
        """Bytes per second; infinite if not known yet, so that this way is tried."""
        is_known = self._bytes >= (self._known if self._seconds < _KNOWN_S else _CACHED_KNOWN)
        return self._bytes / self._seconds if is_known and self._seconds else float("inf")


class WriteMode:
    """Decides how a piece is written.

    Large pieces are written with O_DIRECT, which costs a fraction of the CPU time of the page
    cache. Small pieces are written through the page cache. After memory pressure, all pieces are
    written through the cache for some seconds, if it is much faster than the disk (a hypervisor can
    be slow to provide pages), and if the disk can write the cached bytes soon. Otherwise the end of
    a capture would have to wait for them.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._cached_until = 0.0
        self._behind, self._behind_at = 0.0, clock()  # estimated bytes in the page cache that are not on the disk yet
        self.direct, self.cached = Throughput(_DIRECT_KNOWN), Throughput(_CACHED_KNOWN)

    def note_memory_pressure(self) -> None:
        """Half of the segments are full."""
        self._cached_until = self._clock() + _CACHED_S

    def is_direct(self, piece: Piece) -> bool:
        """Whether a piece is written with O_DIRECT, if that is possible."""
        if not piece.is_aligned or piece.size < DIRECT_MIN:
            return False
        is_quicker = self.tries_cache or _CACHE_SPEEDUP * self.direct.rate <= self.cached.rate < float("inf")
        if self._clock() >= self._cached_until or not is_quicker:
            return True
        return self._catch_up() + piece.size > _BEHIND_S * self.direct.rate

    @property
    def tries_cache(self) -> bool:
        """Whether the speed of the cache is being measured: it can be a tenth of that of the disk."""
        is_known = self.cached.rate < float("inf")
        return self._clock() < self._cached_until and not is_known and self.direct.rate < _QUICK

    def note_cached(self, size: int) -> None:
        """So many bytes were written to the page cache."""
        self._behind = self._catch_up() + size

    def _catch_up(self) -> float:
        """Estimate the bytes that are only in the page cache: the disk is as fast as for direct
        writes.
        """
        now = self._clock()
        taken = (now - self._behind_at) * self.direct.rate if now > self._behind_at else 0.0
        self._behind, self._behind_at = max(0.0, self._behind - taken), now
        return self._behind


class DirectWriter:
    """Writes with O_DIRECT; after an error it is never used again for this file.

    Args:
        descriptor: a regular file.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = -1
        with contextlib.suppress(OSError):
            self._descriptor = os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC)

    def write(self, parts: Sequence[memoryview], at: int) -> int:
        """Write complete blocks of the disk; returns the number of bytes: 0 if O_DIRECT is not
        possible, or if the disk is full.

        Args:
            parts: memory that begins and ends at a block.
            at: offset in the file.
        """
        if self._descriptor < 0:
            return 0
        try:
            return os.pwritev(self._descriptor, parts, at)
        except OSError:
            self.close()  # a write through the cache reports the error, if there is one
            return 0

    def close(self) -> None:
        """Close its descriptor."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1


class DiskFile:
    """One file or pipe that is written piece by piece. One thread calls the methods; all threads
    can read the attributes.

    Args:
        descriptor: open for writing, empty.
        clock: seconds.
        keep_free: free space to leave on the disk, in bytes.
        mode: what is known about its disk; None: nothing yet.
    """

    def __init__(
        self,
        descriptor: int,
        clock: Callable[[], float] = time.monotonic,
        keep_free: int = 0,
        mode: WriteMode | None = None,
    ) -> None:
        self.error: OSError | None = None
        self.completed = 0  # bytes that are in the file, or whose packets are counted as dropped
        self.is_given_up = False  # set by another thread: write no more
        self.mode = mode or WriteMode(clock)
        self._descriptor, self._clock, self._keep_free = descriptor, clock, keep_free
        self._is_file = stat.S_ISREG(os.fstat(descriptor).st_mode)
        self._direct = DirectWriter(descriptor) if self._is_file else None
        self._size = 0  # bytes in the file
        self._starts: deque[int] = deque([0])  # offsets of blocks: one at or before `_size`, and later ones
        self._lost = blocks.PacketCounter()

    @property
    def lost(self) -> int:
        """Packets that are not in the file."""
        return self._lost.packets

    @property
    def size(self) -> int:
        """Bytes in the file; after an error, of complete blocks."""
        return self._size

    def put(self, piece: Piece) -> None:
        """Write a piece, or count its packets; never raises."""
        if self.error is None:
            self._starts.extend(piece.starts)
            try:
                if self.is_given_up or self._keep_free:
                    self._refuse(piece.size)
                self._write(piece)
            except OSError as error:
                self._repair(error, memoryview(b"".join(piece.between(self._size, piece.end))))
        else:
            for part in piece.between(piece.start, piece.end):
                self._lost.feed(part)
        self.completed += piece.size

    def close(self) -> None:
        """Close everything but the descriptor."""
        if self._direct is not None:
            self._direct.close()

    def _refuse(self, size: int) -> None:
        """Fail like a full disk if free space is too low, or if writing was given up."""
        if self.is_given_up:
            raise OSError(errno.ETIMEDOUT, "the disk is too slow to wait for it at the end")
        if self._keep_free and self._is_file:
            found = os.fstatvfs(self._descriptor)
            if found.f_bavail * found.f_frsize < self._keep_free + size:
                raise OSError(errno.ENOSPC, "free space is down to files.keep_free")

    def _write(self, piece: Piece) -> None:
        begun = self._clock()
        if self._direct is not None and self.mode.is_direct(piece):
            end = piece.end // DISK_BLOCK * DISK_BLOCK
            written = self._direct.write(piece.between(piece.at, end), piece.at)
            if written >= _TELLING:
                self.mode.direct.add(written, self._clock() - begun)
            self._advance(piece.at + written)
            begun = self._clock()
        size = piece.end - self._size
        while left := piece.between(self._size, piece.end):
            written = (
                os.pwritev(self._descriptor, left, self._size) if self._is_file else os.writev(self._descriptor, left)
            )
            self._advance(self._size + written)
        self.mode.note_cached(size)
        if size >= DIRECT_MIN:
            self.mode.cached.add(size, self._clock() - begun)

    def _advance(self, size: int) -> None:
        self._size = max(self._size, size)
        while len(self._starts) > 1 and self._starts[1] <= self._size:
            self._starts.popleft()

    def _repair(self, error: OSError, missing: memoryview) -> None:
        """Cut the file after its last complete block, and count the missing packets: readers stop
        at an incomplete block.
        """
        start = self._starts[0]
        there = _read_back(self._descriptor, start, self._size) if self._is_file else b""
        if len(there) == self._size - start:
            kept = blocks.whole(there)
            self._lost.feed(there[kept:])
            self._size = start + kept
        else:
            # If it cannot be read back, or is a pipe, the blocks are not known: count from the
            # first one that is missing.
            behind = next((each for each in self._starts if each >= self._size), self._size + len(missing))
            missing = missing[behind - self._size :]
            self._size = start
        self._lost.feed(missing)
        if self._is_file:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, self._size)
        self.error = error


def _read_back(descriptor: int, start: int, end: int) -> bytes:
    """Read back a part of a file that is open for writing; less if it cannot be read."""
    try:
        with open(f"/proc/self/fd/{descriptor}", "rb", buffering=0) as reader:  # noqa: PTH123  no path, a descriptor
            return os.pread(reader.fileno(), end - start, start)
    except OSError:
        return b""
