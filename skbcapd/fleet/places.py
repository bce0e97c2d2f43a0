"""Where the blocks of a capture file are, as it is stored.

In: offsets in the pcapng file. Out: a range of bytes to read. A range, decompressed if the name of the file ends in
.gz or .zst, holds whole blocks.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol


class Place(NamedTuple):
    """A range of bytes of a stored file.

    Args:
        offset: of the first byte.
        length: bytes; 0: to the end of the file.
        begin: offset in the pcapng file of the first byte that the range holds.
    """

    offset: int
    length: int
    begin: int


class Places(Protocol):
    """How a file is stored."""

    def add(self, begin: int, end: int) -> Place:
        """Where the bytes from `begin` to `end` of the pcapng file are; called in their order, without gaps."""

    def find(self, at: int, length: int) -> Place:
        """Where a block is, of bytes that were added or are next."""


class Plain:
    """A file that is not compressed."""

    def add(self, begin: int, end: int) -> Place:
        """See Places."""
        return Place(begin, end - begin, begin)

    def find(self, at: int, length: int) -> Place:
        """See Places."""
        return Place(at, length, at)


class Whole:
    """A file that can only be decompressed from its beginning."""

    def add(self, begin: int, end: int) -> Place:  # noqa: ARG002  the same for all
        """See Places."""
        return Place(0, 0, 0)

    def find(self, at: int, length: int) -> Place:  # noqa: ARG002
        """See Places."""
        return Place(0, 0, 0)
