"""Packets that the kernel drops on the interfaces of a capture: their counts, and a stage.

In: counts of the kernel program, for all interfaces of the machine. Out: those for the captured
interfaces. As a stage: a packet that the kernel dropped gets the name of the reason, and of the function
that dropped it.

The rule: each drop is in one of these numbers, or in that of another interface.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from skbcapd.attribution.fields import Dropped
from skbcapd.capture.interfaces import Interfaces
from skbcapd.capture.plan import Plan
from skbcapd.capture.record import Record
from skbcapd.kernel.drops import Drop
from skbcapd.kernel.program import Program
from skbcapd.kernel.symbols import Symbols


class NetworkDrops(NamedTuple):
    """Packets that the kernel has dropped since the start of the capture.

    Args:
        rows: by reason, interface, direction and process, those with most packets first. Their packets
            never decrease.
        unlisted: those for which there was no space, on all interfaces.
        missed: those for which the kernel did not run the program, on all interfaces.
    """

    rows: Sequence[Drop]
    unlisted: int
    missed: int

    @property
    def lost(self) -> int:
        """Packets that somebody has lost."""
        return sum(row.packets for row in self.rows if row.is_loss)

    @property
    def no_loss(self) -> int:
        """The other packets of `rows`."""
        return sum(row.packets for row in self.rows if not row.is_loss)

    def by_reason(self) -> dict[tuple[str, bool], int]:
        """The packets of each reason, and whether it is a loss; those with most packets first."""
        sums: Counter[tuple[str, bool]] = Counter()
        for row in self.rows:
            sums[row.reason, row.is_loss] += row.packets
        return dict(sums.most_common())


def drops_of(program: Program, interfaces: Interfaces) -> NetworkDrops | None:
    """The drops on the interfaces of a capture; None: they are not counted (drops: none)."""
    if program.drops is None:
        return None
    return NetworkDrops(interfaces.drops(), program.drops.unlisted(), program.drops.missed())


class DropNames:
    """Finds the names of the reason and of the function of a dropped packet.

    Args:
        program: knows the reasons of this kernel.
    """

    def __init__(self, program: Program) -> None:
        self._program = program
        self._symbols = Symbols() if program.drops is not None and program.drops.captures else None

    def take(self, record: Record, _plan: Plan) -> Record:
        """Stage: set why a packet was dropped."""
        found, drops = record.packet.dropped, self._program.drops
        if found is not None and drops is not None:
            function = self._symbols.function(found.location) if self._symbols is not None else b""
            record.dropped = Dropped(drops.reason(found.reason).encode(), function)
        return record
