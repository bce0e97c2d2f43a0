"""Packets as lines of text: what `capture` prints without a file.

In: packets. Out: lines; see `frames.line`.

The rule: process and `via` are those that the comment of the packet would have.
"""

from __future__ import annotations

from skbcapd.attribution.processes import Process
from skbcapd.frames.line import Lines
from skbcapd.kernel.segments import Packet, Upcall
from skbcapd.output.interface import PROMPT_S, Snapshot
from skbcapd.output.pipe import PipeSink
from skbcapd.pcapng.comment import Label
from skbcapd.pcapng.interface import Interface, Loan
from skbcapd.pcapng.reader import Section


class TextOutput:
    """Prints packets; see Output in interface.py.

    Args:
        sink: takes the lines.
        lines: makes them.
    """

    labels = False

    def __init__(self, sink: PipeSink, lines: Lines) -> None:
        self._sink, self._lines = sink, lines
        self._section = Section("<", b"")
        self._interfaces: list[Interface] = []

    def add_interface(self, interface: Interface) -> int:
        """Store name and link type of an interface."""
        self._interfaces.append(interface)
        return len(self._interfaces) - 1

    def add_process(self, process: Process) -> None:
        """Does nothing: each line has the name of its process."""

    def write_packet(self, packet: Packet, interface_id: int, stamp: Label, _snapshot: Snapshot) -> None:
        """Print one packet."""
        if not isinstance(packet, Upcall):
            raise TypeError("a packet with a label; expected none")
        found = self._section.stamp(stamp.options)._replace(direction=packet.direction)
        if found.name is None and packet.tgid:  # comment: none
            found = found._replace(process=packet.process or packet.comm)
        link_type = self._interfaces[interface_id].link_type
        frame = bytes(packet.frame)
        self._sink.write(
            self._lines.line(packet.time_ns, found, packet.interface_name, frame, link_type, packet.original_len)
        )

    def write_blocks(self, view: memoryview, _snapshot: Snapshot, _loan: Loan | None = None) -> None:
        """Never called: without labels, the kernel program writes no complete blocks."""
        raise AssertionError(f"{len(view)} bytes of complete blocks; expected none")

    dumped = None
    has_pending_work = needs_renumbering = False
    latency_s = PROMPT_S

    @property
    def lost(self) -> int:
        """See Output."""
        return self._sink.lost

    @property
    def is_busy(self) -> bool:
        """See Output."""
        return self._sink.is_busy

    @property
    def accepted(self) -> int:
        """See Output."""
        return self._sink.accepted

    @property
    def completed(self) -> int:
        """See Output."""
        return self._sink.completed

    def restart_interfaces(self, _statistics: object) -> None:
        """Never called: lines have names, no numbers."""
        raise AssertionError("new numbers for lines of text")

    def finish(self, _statistics: object) -> None:
        """Does nothing: lines have no statistics."""

    def note_memory_pressure(self) -> None:
        """Does nothing: lines are written as fast as they are read."""

    def flush(self, _snapshot: Snapshot) -> None:
        """Write the buffered lines."""
        self._sink.flush()
