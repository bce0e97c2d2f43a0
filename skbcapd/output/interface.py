"""The interface of an output: it receives packets, and the statistics of their interfaces at the end.

In: packets and ready blocks, in order. Out: a file, files, memory or a terminal.

The rules: an output never stops a capture: packets that it cannot take are counted. It calls
nothing of the capture except what it gets with a call: statistics are an argument of each method
that may end a file. Properties say what an output wants from the capture (`is_busy`,
`wants_new_numbers`), and the event loop acts on them between two drains.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from skbcapd.attribution.processes import Process
from skbcapd.kernel.segments import Packet
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


Snapshot: TypeAlias = Callable[[], Sequence[Statistics]]
"""Tells what became of the packets of each interface since the capture began, at the time of the call."""


class Told:
    """The statistics that are in files already: each packet is counted in one of them.

    An interface that is not in a snapshot, as it has no number now, is remembered. No counter goes back: where a
    snapshot is older than the one before it the difference is 0, and the next one makes up for it.
    """

    def __init__(self) -> None:
        self._told: dict[int, tuple[int, ...]] = {}  # by device

    def advance(self, statistics: Sequence[Statistics]) -> list[Statistics]:
        """What a snapshot adds to those before it."""
        added = []
        for one in statistics:
            before = self._told.get(one.device, (0, 0, 0, 0))
            now = tuple(map(max, before, (one.received, one.accepted, one.lost, one.delivered)))
            self._told[one.device] = now
            added.append(Statistics(one.interface_id, one.device, *map(operator.sub, now, before)))
        return added


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

    @property
    def is_busy(self) -> bool:
        """Whether it has more to write than it wants to hold: then no further range is to be taken from the segments.

        It takes what it is given all the same, so it is asked before each range, not within one.
        """
        ...

    @property
    def wants_turn(self) -> bool:
        """Whether `flush` has something to do soon, also when no packet comes."""
        ...

    @property
    def handed(self) -> int:
        """A position in the stream of all that it was given; rises with each write."""
        ...

    @property
    def settled(self) -> int:
        """Up to which position each packet is written, or counted in `lost`; to be read before `lost` is."""
        ...

    @property
    def wants_new_numbers(self) -> bool:
        """Whether interfaces shall be numbered anew; `restart_interfaces` must follow, between two drains."""
        ...

    def restart_interfaces(self, statistics: Sequence[Statistics]) -> None:
        """Forget all interfaces: no packet with an old number comes any more, and `add_interface` begins at 0.

        Args:
            statistics: with the old numbers, made after the last packet that carries one.
        """
        ...

    def add_interface(self, interface: Interface) -> int:
        """A device is seen for the first time; returns the number that its packets will carry."""
        ...

    def add_process(self, process: Process) -> None:
        """A process is known, or known better; its next packet comes after this."""
        ...

    def write_packet(self, packet: Packet, interface_id: int, stamp: Label, snapshot: Snapshot) -> None:
        """One packet through Python; `snapshot` is for a file that ends with it."""
        ...

    def write_blocks(self, view: memoryview, snapshot: Snapshot) -> None:
        """Ready blocks; `snapshot` is for a file that ends within them."""
        ...

    def flush(self, snapshot: Snapshot) -> None:
        """Hand on what was written; what is behind the last block of a disk may wait for the next call."""
        ...

    def note_memory_pressure(self) -> None:
        """Half of the segments wait to be read: what is written next should not wait for a disk."""
        ...

    def finish(self, statistics: Sequence[Statistics]) -> None:
        """The capture has ended; what became of the packets of each interface since its start."""
        ...
