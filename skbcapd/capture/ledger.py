"""What became of all packets: the kernel program's counters, what the stages have counted, and the output's drops.

In: three places where packets are counted. Out: totals in which each packet stands once.

The rule: what the program has handed over counts as written, less what was counted on the way from there to the disk.
"""

from __future__ import annotations

from dataclasses import replace

from skbcapd.capture.interfaces import Interfaces
from skbcapd.capture.totals import Tally, Totals
from skbcapd.kernel import abi
from skbcapd.kernel.program import Counters, Program
from skbcapd.output.interface import Output
from skbcapd.output.worker import wait_until

_DISK_S = 0.1  # that a question for the totals waits for the disk


class Ledger:
    """Adds up.

    Args:
        program: its counters.
        output: its drops.
        tally: of the stages.
        interfaces: that have rows of counters.
        has_limit: only so many packets are wanted; then what is handed over need not be written.
    """

    def __init__(
        self, program: Program, output: Output, tally: Tally, interfaces: Interfaces, *, has_limit: bool
    ) -> None:
        self._program, self._output, self._tally, self._interfaces = program, output, tally, interfaces
        self._has_limit = has_limit
        self._certain = 0  # packets that are certain to be written, or in the output's memory
        self._uncertain: tuple[int, int] | None = None  # the output's position, and how many that will be then

    def counters(self) -> Counters:
        """The program's counters over all interfaces."""
        slots = min(self._interfaces.seen + 1, abi.SLOTS)
        return sum((self._program.counters(slot) for slot in range(slots)), Counters())

    def totals(self) -> Totals:
        """What became of the packets until now."""
        kernel, tally = self.counters(), self._tally
        output_lost = self._output.lost
        written = tally.written if self._has_limit else kernel.delivered - tally.not_written - output_lost
        dumped = self._output.dumped
        not_dumped = 0 if dumped is None else written - dumped
        return Totals(
            written=written - not_dumped,
            filtered=kernel.filtered + tally.filtered,
            duplicates=kernel.duplicate + tally.duplicates,
            self_test=tally.self_test,
            dropped=tally.dropped + output_lost,
            missed=self._program.missed(),
            kernel=kernel,
            processes=tally.processes.count,
            not_dumped=not_dumped,
        )

    def settle(self, kernel: Counters, *, is_drained: bool) -> Totals:
        """Totals of which each figure only rises.

        What the program has handed over and Python has not yet seen is not written yet: it may still be filtered, or
        dropped. So only that counts as written which was delivered before a drain that has come past it, and which the
        output has settled.

        Args:
            kernel: the program's counters before the drain.
            is_drained: whether the drain has come past what they count.
        """
        if self._uncertain is None and is_drained:
            self._uncertain = self._output.handed, kernel.delivered - self._tally.not_written
            mark = self._uncertain[0]
            wait_until(lambda: self._output.settled >= mark, _DISK_S)  # so that what is told is not a second old
        if self._uncertain is not None and self._output.settled >= self._uncertain[0]:
            self._certain = max(self._certain, self._uncertain[1] - self._output.lost)
            self._uncertain = None
        totals = self.totals()
        dumped = self._output.dumped
        written = self._certain if dumped is None else dumped
        return replace(totals, written=written, not_dumped=max(0, self._certain - written))
