"""Where the blocks of a capture file are, as it is stored.

In: offsets in the pcapng file. Out: a range of bytes to read. A range, decompressed if the name of the file ends in
.gz or .zst, holds whole blocks.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from itertools import accumulate
from typing import NamedTuple, Protocol

from skbcapd.pcapng.members import Member, members


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

    def find(self, begin: int, end: int) -> Place:
        """Where the bytes from `begin` to `end` of the pcapng file are."""


class Plain:
    """A file that is not compressed."""

    def find(self, begin: int, end: int) -> Place:
        """See Places."""
        return Place(begin, end - begin, begin)


class Members:
    """A compressed file of which members can be decompressed alone.

    Args:
        found: the members from the beginning of the file on. What stands behind the last one can only be decompressed
            as a whole.
    """

    def __init__(self, found: Iterable[Member]) -> None:
        self._members = list(found)
        self._begins = [0, *accumulate(member.size for member in self._members)]
        """Where each member begins in the pcapng file; where the last one ends."""

    def find(self, begin: int, end: int) -> Place:
        """See Places."""
        first = bisect_right(self._begins, begin) - 1
        last = bisect_right(self._begins, max(begin, end - 1)) - 1
        offset = self._members[first].offset if first < len(self._members) else self._end
        length = self._members[last].offset + self._members[last].length - offset if last < len(self._members) else 0
        return Place(offset, length, self._begins[first])

    @property
    def _end(self) -> int:
        """Where the last member ends."""
        return sum(self._members[-1][:2]) if self._members else 0


def stored(descriptor: int) -> Places:
    """How a compressed file is stored.

    Args:
        descriptor: of the file.

    Raises:
        OSError: it cannot be read.
    """
    return Members(members(descriptor))
