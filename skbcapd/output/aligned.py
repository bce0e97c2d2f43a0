"""Collects blocks into pieces for the disk; a piece begins at a block of the disk.

In: pcapng blocks of any size. Out: pieces of a file, in order.

The rule: a piece is not changed after it was passed on: another thread writes it, maybe much later.
So the bytes after the last complete block of the disk are in two pieces: the later piece repeats
them, so that a direct write (O_DIRECT) can begin there.

Source: O_DIRECT in open(2).
"""

from __future__ import annotations

import contextlib
import mmap
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from skbcapd.output.blocks import PacketCounter

ALIGNMENT = 1 << 12  # of direct writes: no disk has larger blocks
BUFFER_SIZE = 1 << 21  # a huge page: for a direct write, the kernel then looks up one page instead of 512
_COPIED_MAX = 1 << 16  # a piece of at most this many bytes is copied; for a larger one, the buffer itself is passed on
_SPARE_MAX = 12


class Piece(NamedTuple):
    """A part of a file.

    Args:
        buffer: memory; if `is_aligned`, it begins at a page.
        at: offset of the buffer in the file; if `is_aligned`, a multiple of ALIGNMENT.
        start: number of bytes at the beginning that are also in the piece before.
        end: end of the piece in the buffer.
        starts: offsets in the file at which a block begins, at least that of the first block that
            begins in the piece.
        is_aligned: whether it can be written directly.
    """

    buffer: memoryview
    at: int
    start: int
    end: int
    starts: tuple[int, ...]
    is_aligned: bool

    @property
    def data(self) -> memoryview:
        """The bytes that are not in the piece before."""
        return self.buffer[self.start : self.end]


def count_pieces(pieces: Sequence[Piece]) -> int:
    """The number of packets that end in consecutive pieces. The last piece ends with a block."""
    counter = PacketCounter()
    is_first = True
    for piece in pieces:
        start = piece.start
        if is_first:
            if not piece.starts:
                continue  # it is in the middle of a block
            is_first = False
            start = piece.starts[0] - piece.at
        counter.feed(piece.buffer[start : piece.end])
    is_torn = bool(pieces) and (not pieces[0].starts or pieces[0].starts[0] > pieces[0].at + pieces[0].start)
    return counter.packets + is_torn


class Buffers:
    """Reusable memory for pieces, because page faults cost more than a copy."""

    def __init__(self) -> None:
        self._spare: list[memoryview] = []

    def get(self) -> memoryview:
        """A buffer of BUFFER_SIZE bytes, aligned to a page."""
        try:
            return self._spare.pop()
        except IndexError:
            memory = mmap.mmap(-1, BUFFER_SIZE)
            with contextlib.suppress(OSError):  # a kernel without them
                memory.madvise(mmap.MADV_HUGEPAGE)
            return memoryview(memory)

    def give_back(self, piece: Piece) -> None:
        """Return the buffer of a piece that was written; any thread can call this."""
        if piece.is_aligned and len(self._spare) < _SPARE_MAX:
            self._spare.append(piece.buffer)


class AlignedTail:
    """The end of a file that was not passed on yet; it consists of complete blocks.

    Args:
        buffers: reusable memory.
    """

    def __init__(self, buffers: Buffers) -> None:
        self.size = 0  # of the file, with all blocks that were added
        self._buffers = buffers
        self._buffer = buffers.get()
        self._at = self._fill = 0  # offset of the buffer in the file, bytes in the buffer
        self._done = 0  # bytes of the buffer that are in a piece already
        self._starts: list[int] = []

    @property
    def waiting(self) -> int:
        """Bytes that are in no piece yet."""
        return self._fill - self._done

    def add(self, blocks: bytes | memoryview) -> Iterator[Piece]:
        """Add one or more complete blocks; returns the pieces that are full now."""
        self._starts.append(self.size)
        self.size += len(blocks)
        left = memoryview(blocks)
        while left:
            size = min(len(left), BUFFER_SIZE - self._fill)
            self._buffer[self._fill : self._fill + size] = left[:size]
            self._fill += size
            left = left[size:]
            if self._fill == BUFFER_SIZE:
                yield self._give(BUFFER_SIZE)

    def take(self, *, is_aligned: bool) -> Piece | None:
        """The waiting bytes as a piece; None if there are none.

        Args:
            is_aligned: without the bytes after the last complete block of the disk.
        """
        end = self._fill // ALIGNMENT * ALIGNMENT if is_aligned else self._fill
        if end <= self._done:
            return None
        if end - self._done > _COPIED_MAX:
            return self._give(end)
        copy = memoryview(bytes(self._buffer[self._done : end]))
        piece = Piece(copy, self._at + self._done, 0, len(copy), self._taken_starts(self._at + end), is_aligned=False)
        self._done = end
        return piece

    def _give(self, end: int) -> Piece:
        """Pass on the buffer itself; the next buffer begins with the bytes after its last complete
        block of the disk.
        """
        piece = Piece(self._buffer, self._at, self._done, end, self._taken_starts(self._at + end), is_aligned=True)
        kept = end // ALIGNMENT * ALIGNMENT
        buffer = self._buffers.get()
        buffer[: self._fill - kept] = self._buffer[kept : self._fill]
        self._buffer, self._at, self._fill, self._done = buffer, self._at + kept, self._fill - kept, end - kept
        return piece

    def _taken_starts(self, end: int) -> tuple[int, ...]:
        count = bisect_left(self._starts, end)
        taken = tuple(self._starts[:count])
        del self._starts[:count]
        return taken
