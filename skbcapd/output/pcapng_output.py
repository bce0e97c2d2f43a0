"""Packets into one pcapng stream, through scapy's writer.

In: packets and ready blocks. Out: bytes of a section that stands for itself.

The rule: a packet that passes through Python has the same bytes as one that the kernel program wrote.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Sequence

from skbcapd import __version__
from skbcapd.attribution.processes import Process, boot_ns
from skbcapd.kernel.segments import Cut, Upcall
from skbcapd.output.interface import Statistics
from skbcapd.pcapng.comment import Label
from skbcapd.pcapng.interface import Sink

PROCESSES_REPEATED = 4096


class PcapngOutput:
    """Packets into a pcapng stream, through scapy's writer.

    Args:
        stream: takes bytes, keeps order.
        encode: "kernel", or "scapy" for every packet through Python.
        hurry: tells the stream that memory fills up.
    """

    lost = 0
    dumped = None

    def __init__(self, stream: Sink, encode: str = "kernel", hurry: Callable[[], None] = lambda: None) -> None:
        self.labels = encode == "kernel"
        self.hurry = hurry
        self._start_ns = time.time_ns()
        from skbcapd.pcapng.writer import PcapngWriter  # noqa: PLC0415  see kernel.load: it comes while the compiler works

        self._writer = PcapngWriter(stream)
        self._writer.write_section(
            hardware=platform.machine(),
            os=f"{platform.system()} {platform.release()}",
            application=f"skbcapd {__version__}",
        )
        self.add_interface = self._writer.write_interface
        self.write_blocks = self._writer.write_blocks
        self.flush = self._writer.flush
        self.processes: dict[Process, None] = {}  # the last ones described, in order

    def add_process(self, process: Process) -> None:
        """One process block, unless it has been written."""
        if process in self.processes:
            return
        self._writer.write_process(process, boot_ns())
        self.processes[process] = None
        if len(self.processes) > PROCESSES_REPEATED:
            del self.processes[next(iter(self.processes))]

    def finish(self, statistics: Sequence[Statistics]) -> None:
        """An Interface Statistics Block for each interface."""
        now = time.time_ns()
        for one in statistics:
            self._writer.write_statistics(
                one.interface_id,
                now,
                start_ns=self._start_ns,
                end_ns=now,
                received=one.received,
                filter_accepted=one.accepted,
                os_dropped=one.lost,
                delivered=one.delivered,
            )
        self._writer.flush()

    def write_packet(self, packet: Upcall | Cut, interface_id: int, stamp: Label) -> None:
        """One Enhanced Packet Block, built by scapy; the same bytes as the kernel's of a labelled packet."""
        options = bytearray(stamp.options)
        at = stamp.flags_at
        flags = int.from_bytes(options[at : at + 4], "little") | packet.flags
        options[at : at + 4] = flags.to_bytes(4, "little")
        if stamp.linked:
            options[at + 8 : at + 16] = packet.packet_id.to_bytes(8, "little")
        self._writer.write_packet(interface_id, packet.time_ns, packet.frame, packet.original_len, bytes(options))
