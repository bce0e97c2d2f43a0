"""Collects blocks into pieces for the disk; a piece begins at a block of the disk.

In: pcapng blocks of any size. Out: pieces of a file, in order.

The rules: a piece is not changed after it was passed on: another thread writes it, maybe much later.
So the bytes after the last complete block of the disk are in two pieces: the later piece repeats
them, so that a direct write (O_DIRECT) can begin there. Lent memory is not copied, the piece refers
to it (`Loan`): many blocks, if the memory has the right offset in a page for a direct write, or fewer,
which go through the page cache.

Source: O_DIRECT in open(2).
"""

from __future__ import annotations

import contextlib
import mmap
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from skbcapd.output.blocks import PacketCounter
from skbcapd.pcapng.interface import DISK_BLOCK, Loan

BUFFER_SIZE = 1 << 21  # a huge page: for a direct write, the kernel then looks up one page instead of 512
_COPIED_MAX = 1 << 16  # a piece of at most this many bytes is copied; for a larger one, the buffer itself is passed on
_LENT_MIN = 1 << 18  # fewer bytes are too few for a direct write
_SPARE_MAX = 12


class Piece(NamedTuple):
    """A part of a file. All positions are offsets in the file.

    Args:
        parts: memory, in order; if `is_aligned`, each begins at a block of the disk.
        at: of the first part; if `is_aligned`, a multiple of DISK_BLOCK.
        start: of the first byte that is not in the piece before.
        end: end of the piece.
        starts: where a block begins, at least the first block that begins in the piece.
        is_aligned: whether it can be written directly.
        buffers: memory to give back to Buffers when the piece was written.
        loans: of lent parts, to give back then.
        lent: the number of bytes of those.
    """

    parts: tuple[memoryview, ...]
    at: int
    start: int
    end: int
    starts: tuple[int, ...]
    is_aligned: bool
    buffers: tuple[memoryview, ...] = ()
    loans: tuple[Loan, ...] = ()
    lent: int = 0

    @property
    def size(self) -> int:
        """The number of bytes that are not in the piece before."""
        return self.end - self.start

    def between(self, begin: int, end: int) -> list[memoryview]:
        """The memory of a part of the piece; an empty list if it has no bytes."""
        found, at = [], self.at
        for part in self.parts:
            first, last = max(begin - at, 0), min(end - at, len(part))
            if first < last:
                found.append(part[first:last])
            at += len(part)
        return found

    def with_next(self, piece: Piece) -> Piece:
        """This piece, which ends with lent memory, and the one after it."""
        return Piece(
            (*self.parts, *piece.parts),
            self.at,
            self.start,
            piece.end,
            (*self.starts, *piece.starts),
            self.is_aligned and piece.is_aligned,
            (*self.buffers, *piece.buffers),
            (*self.loans, *piece.loans),
            self.lent + piece.lent,
        )


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
            start = piece.starts[0]
        for part in piece.between(start, piece.end):
            counter.feed(part)
    is_torn = bool(pieces) and (not pieces[0].starts or pieces[0].starts[0] > pieces[0].start)
    return counter.packets + is_torn


class Buffers:
    """Reusable memory for pieces, because page faults cost more than a copy."""

    def __init__(self) -> None:
        self._spare: dict[int, list[memoryview]] = {BUFFER_SIZE: [], _COPIED_MAX: []}

    def get(self, size: int = BUFFER_SIZE) -> memoryview:
        """A buffer, aligned to a page, of BUFFER_SIZE or _COPIED_MAX bytes."""
        try:
            return self._spare[size].pop()
        except IndexError:
            memory = mmap.mmap(-1, size)
            if size == BUFFER_SIZE:
                with contextlib.suppress(OSError):  # a kernel without them
                    memory.madvise(mmap.MADV_HUGEPAGE)
            return memoryview(memory)

    def give_back(self, piece: Piece) -> None:
        """Return the buffers of a piece that was written; any thread can call this."""
        for buffer in piece.buffers:
            spare = self._spare[len(buffer)]
            if len(spare) < _SPARE_MAX:
                spare.append(buffer)


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
        self._lent: tuple[memoryview, Loan] | None = None  # behind the buffer: few bytes, copied if more follow

    def add(self, blocks: bytes | memoryview, loan: Loan | None = None) -> Iterator[Piece]:
        """Add one or more complete blocks; returns the pieces that are full now.

        Args:
            blocks: the blocks.
            loan: their memory; None: they must be copied.
        """
        begin = self.size
        self._starts.append(begin)
        self.size += len(blocks)
        self._copy_lent()
        left = memoryview(blocks)
        if loan is not None:
            drift = (begin - loan.at) % DISK_BLOCK
            loan.wish(drift)
            if not drift and len(left) >= _LENT_MIN:
                head = -begin % DISK_BLOCK
                end = head + (len(left) - head) // DISK_BLOCK * DISK_BLOCK
                self._copy(left[:head])  # it fits: the buffer ends with a block of the disk
                loan.take()
                yield self._give(self._fill, left[head:end], loan)
                left = left[end:]
            elif _COPIED_MAX <= len(left) < min(_LENT_MIN, BUFFER_SIZE - self._fill):
                loan.take()
                self._lent = left, loan
                return
        while left:
            left = left[self._copy(left) :]
            if self._fill == BUFFER_SIZE:
                yield self._give(BUFFER_SIZE)

    def _copy(self, blocks: memoryview) -> int:
        """Copy as many bytes as the buffer has space for; returns how many."""
        size = min(len(blocks), BUFFER_SIZE - self._fill)
        self._buffer[self._fill : self._fill + size] = blocks[:size]
        self._fill += size
        return size

    def _copy_lent(self) -> None:
        """Copy the lent memory, for which the buffer has space."""
        if self._lent is not None:
            blocks, loan = self._lent
            self._lent = None
            self._copy(blocks)
            loan.give_back()

    def _lend(self, blocks: memoryview, loan: Loan) -> Piece:
        """Pass on the bytes that wait and lent memory, which goes through the page cache, wherever it is in a page.

        Not while more blocks follow: a direct write waits until the pages that it overlaps are on the disk.
        """
        begin, behind = self._at + self._done, self._at + self._fill + len(blocks)
        copy, kept = memoryview(bytes(self._buffer[self._done : self._fill])), behind % DISK_BLOCK
        self._buffer[:kept] = blocks[len(blocks) - kept :]  # what a direct write after it repeats
        self._at, self._fill, self._done = behind - kept, kept, kept
        parts, starts = (copy, blocks) if copy else (blocks,), self._taken_starts(behind)
        return Piece(parts, begin, begin, behind, starts, is_aligned=False, loans=(loan,), lent=len(blocks))

    def take(self, *, is_aligned: bool, are_many_waiting: bool = False) -> Piece | None:
        """The waiting bytes as a piece; None if there are none.

        Args:
            is_aligned: without the bytes after the last complete block of the disk.
            are_many_waiting: many pieces wait for the disk: this one keeps no buffer that is less than half full.
        """
        if self._lent is not None and not is_aligned and self._fill - self._done <= _COPIED_MAX:
            (blocks, loan), self._lent = self._lent, None
            return self._lend(blocks, loan)
        self._copy_lent()
        end = self._fill // DISK_BLOCK * DISK_BLOCK if is_aligned else self._fill
        if end <= self._done:
            return None
        if end - self._done > (BUFFER_SIZE // 2 if are_many_waiting else _COPIED_MAX):
            return self._give(end)
        copy, begin = memoryview(bytes(self._buffer[self._done : end])), self._at + self._done
        self._done = end
        end += self._at
        return Piece((copy,), begin, begin, end, self._taken_starts(end), is_aligned=False)

    def _give(self, end: int, lent: memoryview | None = None, loan: Loan | None = None) -> Piece:
        """Pass on the buffer itself; the next buffer begins with the bytes after its last complete
        block of the disk.

        Args:
            end: end of the piece in the buffer.
            lent: what follows it in the file, if `end` is the end of a block of the disk.
            loan: the memory of `lent`.
        """
        at, start, buffer = self._at, self._at + self._done, self._buffer
        behind = at + end + (len(lent) if lent is not None else 0)
        kept = end // DISK_BLOCK * DISK_BLOCK
        if lent is not None and end <= _COPIED_MAX:  # mostly one block of the disk
            buffer = self._buffers.get(_COPIED_MAX)
            buffer[:end] = self._buffer[:end]
        else:
            self._buffer = self._buffers.get()
            self._buffer[: self._fill - kept] = buffer[kept : self._fill]
        self._fill, self._done = self._fill - kept, end - kept
        self._at = behind - self._done
        parts = (buffer[:end],) if lent is None else (buffer[:end], lent) if end else (lent,)
        loans, size = ((loan,), len(lent)) if lent is not None and loan is not None else ((), 0)
        return Piece(
            parts,
            at,
            start,
            behind,
            self._taken_starts(behind),
            is_aligned=True,
            buffers=(buffer,),
            loans=loans,
            lent=size,
        )

    def _taken_starts(self, end: int) -> tuple[int, ...]:
        count = bisect_left(self._starts, end)
        taken = tuple(self._starts[:count])
        del self._starts[:count]
        return taken
