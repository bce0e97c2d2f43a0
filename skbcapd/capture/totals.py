"""What became of the packets: counted by the stages, added up with the kernel program's counters.

The rule: every packet is counted once. When a capture has ended,
seen = written + filtered + duplicates + self_test + kernel.lost + dropped + not_dumped.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from skbcapd.kernel.program import Counters

_TGID_MAX = 4 << 20  # PID_MAX_LIMIT of include/linux/threads.h


@dataclass(frozen=True, slots=True)
class Totals:
    """What became of the packets until now; for the equation see above.

    Args:
        written: to the output.
        filtered: not wanted, by filter, rule or interface.
        duplicates: seen before, on another interface.
        self_test: of the self-test at start.
        dropped: in Python and by the output.
        missed: never seen by the program, so not in `seen`: the kernel would not run it inside itself.
        kernel: the program's counters.
        processes: that sent or received.
        not_dumped: only in memory, or no longer there, as nobody asked for a dump.
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


class Numbers:
    """A set of numbers, a bit for each: however many there are, it is no larger.

    Args:
        most: numbers from 1 to this one are counted, no others.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._bits = bytearray(most // 8 + 1)
        self.count = 0

    def add(self, number: int) -> None:
        """Count a number, unless it has been."""
        offset, bit = number >> 3, 1 << (number & 7)
        if 0 < number <= self._most and not self._bits[offset] & bit:
            self._bits[offset] |= bit
            self.count += 1


@dataclass(slots=True)
class Tally:
    """What the stages count. The kernel program counts as delivered all that comes to them."""

    written: int = 0  # through Python; with a limit on packets, all
    filtered: int = 0
    duplicates: int = 0  # that the program could not tell: nothing was decided about the packet elsewhere yet
    self_test: int = 0
    dropped: int = 0
    processes: Numbers = field(default_factory=lambda: Numbers(_TGID_MAX))

    @property
    def not_written(self) -> int:
        """Of what the program has delivered, what was not handed to the output."""
        return self.filtered + self.duplicates + self.self_test + self.dropped
