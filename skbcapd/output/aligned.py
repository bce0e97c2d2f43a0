"""Collects blocks into pieces for the disk; a piece begins at a block of the disk.

In: pcapng blocks of any size. Out: pieces of a file, in order.

The rule: a piece is not changed after it was passed on: another thread writes it, maybe much later.
So the bytes after the last complete block of the disk are in two pieces: the later piece repeats
them, so that a direct write (O_DIRECT) can begin there.

Source: O_DIRECT in open(2).
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from skbcapd.output.blocks import PacketCounter

ALIGNMENT = 1 << 12  # of direct writes: no disk has larger blocks
BUFFER_SIZE = 1 << 20
_COPIED_MAX = 1 << 16  # bytes of a piece that are copied, rather than that their buffer is given away
_SPARE_MAX = 24


class Piece(NamedTuple):
    """A part of a file.

    Args:
        buffer: memory that begins where a page does, where `is_aligned`.
        at: place in the file of the buffer's first byte; a multiple of ALIGNMENT where `is_aligned`.
        start: how many bytes at the beginning are in the piece before, too.
        end: of the buffer, where the piece ends.
        starts: places in the file where a block begins, at least the first one that begins in the piece.
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
        """What no piece before this has."""
        return self.buffer[self.start : self.end]


def count_pieces(pieces: Sequence[Piece]) -> int:
    """How many packets end in pieces that follow each other, up to the end of a block."""
    counter = PacketCounter()
    is_first = True
    for piece in pieces:
        start = piece.start
        if is_first:
            if not piece.starts:
                continue  # the middle of a block
            is_first = False
            start = piece.starts[0] - piece.at
        counter.feed(piece.buffer[start : piece.end])
    is_torn = bool(pieces) and (not pieces[0].starts or pieces[0].starts[0] > pieces[0].at + pieces[0].start)
    return counter.packets + is_torn


class Buffers:
    """Memory for pieces, used again and again; page faults cost more than a copy."""

    def __init__(self) -> None:
        self._spare: list[memoryview] = []

    def get(self) -> memoryview:
        """One of BUFFER_SIZE bytes that begins where a page does."""
        try:
            return self._spare.pop()
        except IndexError:
            return memoryview(mmap.mmap(-1, BUFFER_SIZE))

    def give_back(self, piece: Piece) -> None:
        """A piece is written; any thread may say so."""
        if piece.is_aligned and len(self._spare) < _SPARE_MAX:
            self._spare.append(piece.buffer)


class AlignedTail:
    """The end of a file that is not handed on yet, of whole blocks.

    Args:
        buffers: where memory comes from.
    """

    def __init__(self, buffers: Buffers) -> None:
        self.size = 0  # of the file, with all that was added
        self._buffers = buffers
        self._buffer = buffers.get()
        self._at = self._fill = 0  # place in the file of the buffer's beginning, bytes in it
        self._done = 0  # of those, how many are in a piece already
        self._starts: list[int] = []

    @property
    def waiting(self) -> int:
        """Bytes that are in no piece yet."""
        return self._fill - self._done

    def add(self, blocks: bytes | memoryview) -> Iterator[Piece]:
        """Take one or more whole blocks; gives the pieces that are full by that."""
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
        """What is waiting; None if that is nothing.

        Args:
            is_aligned: but for what is behind the last block of the disk.
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
        """The buffer itself; the next one begins with what is behind its last block of the disk."""
        piece = Piece(self._buffer, self._at, self._done, end, self._taken_starts(self._at + end), is_aligned=True)
        kept = end // ALIGNMENT * ALIGNMENT
        buffer = self._buffers.get()
        buffer[: self._fill - kept] = self._buffer[kept : self._fill]
        self._buffer, self._at, self._fill, self._done = buffer, self._at + kept, self._fill - kept, end - kept
        return piece

    def _taken_starts(self, end: int) -> tuple[int, ...]:
        taken = tuple(start for start in self._starts if start < end)
        del self._starts[: len(taken)]
        return taken
