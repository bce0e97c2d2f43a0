"""The interface of an output: it receives packets, and the statistics of their interfaces at the
end.

In: packets and ready blocks, in order. Out: a file, files, memory or a terminal.

The rules: an output never stops a capture: packets that it cannot take are counted. It calls
nothing of the capture except what it gets with a call: statistics are an argument of each method
that may end a file. Properties say what an output wants from the capture (`is_busy`,
`needs_renumbering`), and the event loop acts on them between two drains.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from skbcapd.attribution.processes import Process
from skbcapd.kernel.segments import Packet
from skbcapd.pcapng.comment import Label
from skbcapd.pcapng.interface import Interface, Loan

PROMPT_S = 0.09  # the longest wait of packets for a pipe, a terminal, or their label
FILE_S = 5.0  # of packets for a file
MEMORY_S = 1.0  # of packets for the memory of a recorder


@dataclass(frozen=True, slots=True)
class Statistics:
    """The statistics of one interface, since the start of the capture or, as a difference, since
    some time.

    `slot` is its row of counters, which it keeps when it is renumbered.
    """

    interface_id: int
    slot: int = 0
    received: int = 0
    accepted: int = 0
    lost: int = 0
    delivered: int = 0


Snapshot: TypeAlias = Callable[[], Sequence[Statistics]]
"""Returns the statistics of all interfaces since the start of the capture."""


class StatisticsDelta:
    """The statistics that were written to files: each packet is counted in one file.

    An interface that is missing in a snapshot, because it has no number now, is kept. Counters
    never decrease: if a snapshot is older than the last one, the difference is 0, and the next one
    includes it.
    """

    def __init__(self) -> None:
        self._written: dict[int, tuple[int, ...]] = {}  # by slot

    def advance(self, statistics: Sequence[Statistics]) -> list[Statistics]:
        """The difference to the snapshots before."""
        added = []
        for one in statistics:
            before = self._written.get(one.slot, (0, 0, 0, 0))
            now = tuple(map(max, before, (one.received, one.accepted, one.lost, one.delivered)))
            self._written[one.slot] = now
            added.append(Statistics(one.interface_id, one.slot, *map(operator.sub, now, before)))
        return added


class Output(Protocol):
    """Takes packets."""

    labels: bool  # whether it accepts blocks that the kernel program wrote

    @property
    def lost(self) -> int:
        """Packets that it could not write."""
        ...

    @property
    def dumped(self) -> int | None:
        """Packets in files, if others are kept in memory; None: all packets that were not dropped."""
        ...

    @property
    def is_busy(self) -> bool:
        """Whether too many bytes wait in it: then no further range is taken from the segments.

        It still accepts packets, so this is checked before each range, not within one.
        """
        ...

    latency_s: float
    """Seconds that packets may wait in the segments before they are written."""

    @property
    def has_pending_work(self) -> bool:
        """Whether `flush` must be called soon, even without packets."""
        ...

    @property
    def accepted(self) -> int:
        """The position in the stream of all packets and blocks it got; increases with each write."""
        ...

    @property
    def completed(self) -> int:
        """All packets up to this position are written, or counted in `lost`; read it before `lost`."""
        ...

    @property
    def needs_renumbering(self) -> bool:
        """Whether interfaces need new numbers; then `restart_interfaces` must be called between two
        drains.
        """
        ...

    def restart_interfaces(self, statistics: Sequence[Statistics]) -> None:
        """Discard all interfaces: no packet has an old number any more, and `add_interface` starts
        at 0.

        Args:
            statistics: statistics with the old numbers, made after the last packet with one.
        """
        ...

    def add_interface(self, interface: Interface) -> int:
        """Add an interface; returns the number for its packets."""
        ...

    def add_process(self, process: Process) -> None:
        """Add or update a process, before its next packet."""
        ...

    def write_packet(self, packet: Packet, interface_id: int, stamp: Label, snapshot: Snapshot) -> None:
        """Write one packet; `snapshot` is used if a file ends with it."""
        ...

    def write_blocks(self, view: memoryview, snapshot: Snapshot, loan: Loan | None = None) -> None:
        """Write complete blocks; `snapshot` is used if a file ends within them.

        Args:
            view: the blocks.
            snapshot: see Snapshot.
            loan: their memory, which the output may use after the call; None: it must copy them.
        """
        ...

    def flush(self, snapshot: Snapshot) -> None:
        """Write the buffered packets; the bytes after the last complete block of the disk may wait
        for the next call.
        """
        ...

    def note_memory_pressure(self) -> None:
        """Half of the segments are full: the next writes should not wait for a disk."""
        ...

    def finish(self, statistics: Sequence[Statistics]) -> None:
        """The capture has ended; `statistics` are those since its start."""
        ...
