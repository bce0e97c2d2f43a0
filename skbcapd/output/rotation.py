"""Writes a capture to several files: a new one begins by size, time, number of packets or on
request.

In: packets and complete blocks. Out: files, one after the other; see `series`.

The rule: each file can be opened alone, and lists all interfaces in the same order, because the
labels contain their numbers.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from skbcapd.attribution.processes import Process
from skbcapd.kernel.segments import Packet
from skbcapd.output.block_writer import QUEUE_MAX
from skbcapd.output.blocks import count_packets
from skbcapd.output.interface import Snapshot, Statistics
from skbcapd.output.series import FileSeries, Held, State
from skbcapd.pcapng.blocks import walk
from skbcapd.pcapng.comment import Label
from skbcapd.pcapng.interface import Interface, Loan

_LOG = logging.getLogger(__name__)


class RotatingOutput(FileSeries):
    """An Output that writes several files; for the arguments see FileSeries."""

    dumped = memory = None
    refused = 0, ""

    @property
    def lost(self) -> int:
        """Packets that are in no file."""
        return self._ledger.lost

    @property
    def accepted(self) -> int:
        """See Output."""
        return self._ledger.accepted

    @property
    def completed(self) -> int:
        """See Output."""
        return self._ledger.completed

    @property
    def is_busy(self) -> bool:
        """See Output; also while a finished file waits for the disk, or the next file is late."""
        return self.state is State.LATE or self.accepted - self.completed - self._ledger.borrowed > QUEUE_MAX

    @property
    def has_pending_work(self) -> bool:
        """See Output."""
        return self.state is State.LATE

    @property
    def needs_renumbering(self) -> bool:
        """See Output."""
        is_writing = self.state is State.WRITING
        return (self._prologue.is_too_long and not self._on_demand) or (self._prologue.is_unused and is_writing)

    def end_file(self, snapshot: Snapshot, why: str) -> None:
        """Finish this file on request, begin the next one, and log which one has ended.

        Args:
            snapshot: see rotate.
            why: what has requested it.
        """
        before = self.path
        self.rotate(snapshot)
        if self.path == before:
            _LOG.warning("%s ignored: no file is being written", why)
        else:
            _LOG.info("ended %s (trigger: %s)", before.removesuffix(".part"), why)

    def flush(self, snapshot: Snapshot) -> None:
        """See Output; blocks that were held for a late file are written first."""
        super().flush(snapshot)
        if self.state is State.WRITING and (held := self._ledger.release()):
            self.write_blocks(memoryview(held), snapshot)

    def restart_interfaces(self, statistics: Sequence[Statistics]) -> None:
        """Begin a file that lists only interfaces which have packets from now on."""
        self._end(statistics)
        self._prologue.clear()
        if self.state is State.WRITING:
            self._continue()

    def add_interface(self, interface: Interface) -> int:
        """Add an interface; its number is the same in all files."""
        self._prologue.interfaces.append(interface)
        if self._work:
            self._work.output.add_interface(interface)
        return len(self._prologue.interfaces) - 1

    def add_process(self, process: Process) -> None:
        """Write one packet; see PcapngOutput."""
        if self._work:
            self._work.output.add_process(process)
        else:
            self._prologue.add_process(process)

    def write_packet(self, packet: Packet, interface_id: int, stamp: Label, snapshot: Snapshot) -> None:
        """As PcapngOutput."""
        if self._work and self._work.is_full(packet.size, 1):
            self.rotate(snapshot)
        if self._work:
            self._work.output.write_packet(packet, interface_id, stamp)
            self._work.packets += 1
        elif self.state is State.LATE:
            self._held.output.write_packet(packet, interface_id, stamp)
        else:
            self._ledger.dropped += 1

    def write_blocks(self, view: memoryview, snapshot: Snapshot, loan: Loan | None = None) -> None:
        """Write complete blocks; if a file is full, the next one begins between two blocks."""
        if not self._work or not (self._counts_packets or self._work.is_full(len(view), 0)):
            self._put(view, loan)
            return
        start = 0
        for at, _, size in walk(view):
            if self._work and self._work.is_full(at + size - start, 1):
                self._put(view[start:at], loan.behind(start) if loan else None)
                self.rotate(snapshot)
                start = at
            if self._work:
                self._work.packets += 1
        self._put(view[start:], loan.behind(start) if loan else None)

    def note_memory_pressure(self) -> None:
        """See BlockSink."""
        if self._work:
            self._work.file.stream.note_memory_pressure()

    def _put(self, view: memoryview, loan: Loan | None) -> None:
        if not len(view):
            return
        if self._work:
            self._work.output.write_blocks(view, loan=loan)
        elif self.state is State.LATE:
            self._held.write(view)
        else:
            self._ledger.dropped += count_packets(view)

    @property
    def _held(self) -> Held:
        """Blocks that arrive while the next file is late."""
        self._ledger.held = self._ledger.held or Held(self._encode)
        return self._ledger.held
