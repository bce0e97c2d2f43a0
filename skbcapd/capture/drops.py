"""Packets that the kernel drops on the interfaces of a capture.

In: counts of the kernel program, for all interfaces of the machine. Out: those for the captured
interfaces.

The rule: each drop is in one of these numbers, or in that of another interface.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from skbcapd.capture.interfaces import Interfaces
from skbcapd.kernel.drops import Drop
from skbcapd.kernel.program import Program


class NetworkDrops(NamedTuple):
    """Packets that the kernel has dropped since the start of the capture.

    Args:
        rows: by reason, interface, direction and process, those with most packets first.
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
    every = program.drops.counts()
    unlisted = program.drops.total() - sum(drop.packets for drop in every)  # read last: never below 0
    rows = [drop for drop in every if interfaces.has_drop(drop.device, drop.netns)]
    return NetworkDrops(rows, max(0, unlisted), program.drops.missed())
