"""The totals of a capture: counters of the stages and of the kernel program.

The rule: every packet is counted once. When a capture has ended,
seen = written + filtered + other_interfaces + unattributed + duplicates + limited + self_test +
kernel.lost + dropped + not_dumped.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable
from dataclasses import dataclass, field

from skbcapd.kernel import abi
from skbcapd.kernel.program import Counters


@dataclass(frozen=True, slots=True)
class Totals:
    """The outcomes of all packets until now; for the equation see above.

    Args:
        written: passed to the output, and not dropped there.
        filtered: excluded by filter or rule.
        duplicates: already seen on another interface.
        self_test: packets of the self-test at start.
        dropped: in Python and by the output.
        missed: not seen by the program, so not in `seen`: the kernel did not run the program,
            because it was already running.
        kernel: counters of the kernel program.
        processes: processes that sent or received packets.
        not_dumped: in memory, or discarded from memory without a dump.
        other_interfaces: of interfaces that are not captured.
        unattributed: excluded because their process is not known, by rules that keep some processes.
        limited: dropped by the network, and not written, because there were more than the rate.
    """

    written: int
    filtered: int
    duplicates: int
    self_test: int
    dropped: int
    missed: int
    kernel: Counters
    processes: int
    not_dumped: int = 0
    other_interfaces: int = 0
    unattributed: int = 0
    limited: int = 0


_NONE = bytes(mmap.PAGESIZE)  # bits of a piece of Numbers


class Numbers:
    """A set of numbers with one bit for each, so its size is fixed.

    Args:
        most: the largest number; others are ignored.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._bits = bytearray(most // 8 + 1)
        self.count = 0

    def add(self, number: int) -> None:
        """Add a number, and count it if it is new."""
        offset, bit = number >> 3, 1 << (number & 7)
        if 0 < number <= self._most and not self._bits[offset] & bit:
            self._bits[offset] |= bit
            self.count += 1

    def count_with(self, others: Iterable[bytes]) -> int:
        """The size of the union with another set.

        Args:
            others: its bits, in pieces.
        """
        count = at = 0
        for piece in others:
            mine = self._bits[at : at + len(piece)]
            at += len(piece)
            if not piece == mine == _NONE:  # mostly they are, and a comparison is the fastest way to see it
                count += (int.from_bytes(mine, "little") | int.from_bytes(piece, "little")).bit_count()
        return count + int.from_bytes(self._bits[at:], "little").bit_count()


@dataclass(slots=True)
class Tally:
    """The counters of the stages. For the kernel program, all these packets are delivered."""

    written: int = 0  # packets that Python wrote; with a limit, all packets
    filtered: int = 0
    other_interfaces: int = 0
    unattributed: int = 0
    duplicates: int = 0  # duplicates that only Python could recognize
    self_test: int = 0
    dropped: int = 0
    processes: Numbers = field(default_factory=lambda: Numbers(abi.TGIDS))

    @property
    def not_written(self) -> int:
        """Delivered packets that were not passed to the output."""
        left_out = self.filtered + self.other_interfaces + self.unattributed + self.duplicates
        return left_out + self.self_test + self.dropped
