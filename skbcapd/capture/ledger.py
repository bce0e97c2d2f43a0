"""The outcomes of all packets: counters of the kernel program, of the stages, and of the output.

In: these counters. Out: totals that count each packet once.

The rule: a packet that the program has delivered counts as written, unless it was counted on its
way to the disk.
"""

from __future__ import annotations

from dataclasses import replace

from skbcapd.capture.interfaces import Interfaces
from skbcapd.capture.totals import Tally, Totals
from skbcapd.kernel import abi
from skbcapd.kernel.program import Counters, Program
from skbcapd.output.interface import Output
from skbcapd.worker import wait_until

_DISK_S = 0.1  # a request for totals waits so long for the disk


class Ledger:
    """Adds up the counters of program, stages and output.

    Args:
        program: counters of the kernel program.
        output: packets that it dropped.
        tally: counters of the stages.
        interfaces: have rows of counters in the program.
        has_limit: whether the number of packets is limited; then delivered packets need not be
            written.
    """

    def __init__(
        self, program: Program, output: Output, tally: Tally, interfaces: Interfaces, *, has_limit: bool
    ) -> None:
        self._program, self._output, self._tally, self._interfaces = program, output, tally, interfaces
        self._has_limit = has_limit
        self._elsewhere = 0  # packets over the rate of drops on interfaces that were not captured then
        self._certain = 0  # packets that are certainly written, or in the memory of the output
        # position of the output, and the value of `_certain` when it is reached
        self._uncertain: tuple[int, int] | None = None
        self._counted = (0, 0), 0  # labels and processes when the processes were counted, and how many there were

    def counters(self) -> Counters:
        """The counters of the program, added up over all interfaces."""
        slots = min(self._interfaces.seen + 1, abi.SLOTS)
        return sum((self._program.counters(slot) for slot in range(slots)), Counters())

    def totals(self) -> Totals:
        """The totals until now."""
        kernel, tally = self.counters(), self._tally
        output_lost = self._output.lost
        written = tally.written if self._has_limit else kernel.delivered - tally.not_written
        written -= output_lost
        dumped = self._output.dumped
        not_dumped = 0 if dumped is None else written - dumped
        found = self._interfaces.limited_elsewhere() if kernel.limited else 0
        # An interface can become a captured one, when its namespace gets its name: a counter does not decrease.
        elsewhere = self._elsewhere = max(self._elsewhere, min(kernel.limited, found))
        return Totals(
            written=written - not_dumped,
            filtered=kernel.filtered + tally.filtered,
            duplicates=kernel.duplicate + tally.duplicates,
            self_test=tally.self_test,
            dropped=tally.dropped + output_lost,
            missed=self._program.missed(),
            kernel=kernel,
            processes=self._processes(kernel.labels),
            not_dumped=not_dumped,
            other_interfaces=kernel.other_interfaces + tally.other_interfaces + elsewhere,
            unattributed=kernel.unattributed + tally.unattributed,
            limited=kernel.limited - elsewhere,
        )

    def _processes(self, labels: int) -> int:
        """The number of processes that have a label of the program, or a packet that Python has written.

        Args:
            labels: number of labels that the program has made.
        """
        seen = labels, self._tally.processes.count
        if seen != self._counted[0]:
            self._counted = seen, self._tally.processes.count_with(self._program.labelled())
        return self._counted[1]

    def monotonic_totals(self, kernel: Counters, *, is_drained: bool) -> Totals:
        """Totals that never decrease.

        A packet that the program has delivered can still be filtered or dropped by Python. So a
        packet counts as written only after a drain has passed it and the output has finished it.

        Args:
            kernel: counters of the program before the drain.
            is_drained: whether the drain has processed all packets that they count.
        """
        if self._uncertain is None and is_drained:
            self._uncertain = self._output.accepted, kernel.delivered - self._tally.not_written
            mark = self._uncertain[0]
            wait_until(lambda: self._output.completed >= mark, _DISK_S)  # so that the totals are not a second old
        if self._uncertain is not None and self._output.completed >= self._uncertain[0]:
            self._certain = max(self._certain, self._uncertain[1] - self._output.lost)
            self._uncertain = None
        totals = self.totals()
        dumped = self._output.dumped
        written = self._certain if dumped is None else dumped
        return replace(totals, written=written, not_dumped=max(0, self._certain - written))
