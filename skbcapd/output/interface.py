"""What an output is: where packets go, and what it is told of their interfaces at the end.

In: packets and ready blocks, in order. Out: a file, files, memory or a terminal, as the output decides.

The rule: an output never stops a capture. What it cannot take it counts as lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from skbcapd.attribution.processes import Process
from skbcapd.kernel.segments import Cut, Upcall
from skbcapd.pcapng.comment import Label
from skbcapd.pcapng.interface import Interface


@dataclass(frozen=True, slots=True)
class Statistics:
    """What became of an interface's packets, since the capture began or, as a difference, since some time.

    `device` is a number that the interface keeps when it gets another id.
    """

    interface_id: int
    device: int = 0
    received: int = 0
    accepted: int = 0
    lost: int = 0
    delivered: int = 0

    def __sub__(self, earlier: Statistics) -> Statistics:
        return Statistics(
            self.interface_id,
            self.device,
            self.received - earlier.received,
            self.accepted - earlier.accepted,
            self.lost - earlier.lost,
            self.delivered - earlier.delivered,
        )


class Output(Protocol):
    """Where packets go."""

    labels: bool  # whether blocks that the kernel wrote can be taken as they are

    @property
    def lost(self) -> int:
        """Packets that it could not take."""
        ...

    @property
    def dumped(self) -> int | None:
        """Packets in files, where it keeps others in memory; None: all that were not lost."""
        ...

    def add_interface(self, interface: Interface) -> int:
        """A device is seen for the first time; returns the number that its packets will carry."""
        ...

    def add_process(self, process: Process) -> None:
        """A process is known, or known better; its next packet comes after this."""
        ...

    def write_packet(self, packet: Upcall | Cut, interface_id: int, stamp: Label) -> None:
        """One packet through Python."""
        ...

    def write_blocks(self, view: memoryview) -> None:
        """Ready blocks."""
        ...

    def flush(self) -> None:
        """Hand on what was written; what is behind the last block of a disk may wait for the next call."""
        ...

    def hurry(self) -> None:
        """Memory fills up: what is written next should not wait for a disk."""
        ...

    def finish(self, statistics: Sequence[Statistics]) -> None:
        """The capture has ended; what became of the packets of each interface since its start."""
        ...
