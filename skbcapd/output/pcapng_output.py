"""Writes packets to one pcapng stream, with the writer of scapy.

In: packets and ready blocks. Out: the bytes of a self-contained section.

The rule: a packet that Python writes has the same bytes as one that the kernel program writes.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Sequence

from skbcapd import __version__
from skbcapd.attribution.processes import Process, boot_ns
from skbcapd.kernel.segments import Packet
from skbcapd.lru import Bounded
from skbcapd.output.block_writer import BlockSink, CaptureFile
from skbcapd.output.interface import FILE_S, PROMPT_S, Snapshot, Statistics
from skbcapd.output.key_log import KeyLogs
from skbcapd.output.pipe import PipeTarget
from skbcapd.output.secrets import OVERLAP_S, Secrets, secrets_for
from skbcapd.pcapng.comment import Label
from skbcapd.pcapng.interface import Loan, Sink

PROCESSES_REPEATED = 4096


class PcapngOutput:
    """Writes packets to a pcapng stream, with the writer of scapy.

    Args:
        stream: takes bytes, in order.
        encode: "kernel", or "scapy": Python writes all packets.
        secrets: makes the TLS secrets for it; None: there are none.
    """

    def __init__(self, stream: Sink, encode: str = "kernel", secrets: Callable[[], Secrets] | None = None) -> None:
        self.labels = encode == "kernel"
        self._start_ns = time.time_ns()
        from skbcapd.pcapng.writer import PcapngWriter  # noqa: PLC0415  see kernel.load: it comes while the compiler works

        self._stream, self._writer = stream, PcapngWriter(stream)
        self._borrower = stream if isinstance(stream, BlockSink) else None
        self._writer.write_section(
            hardware=platform.machine(),
            os=f"{platform.system()} {platform.release()}",
            application=f"skbcapd {__version__}",
        )
        self._secrets = secrets() if secrets else None
        self.add_interface = self._writer.write_interface
        # the last ones that were described, in order
        self.processes: Bounded[Process, None] = Bounded(PROCESSES_REPEATED)

    dumped = None
    has_pending_work = needs_renumbering = False
    latency_s = PROMPT_S

    @property
    def lost(self) -> int:
        """None: an error of the stream is raised, and ends the capture."""
        return 0

    @property
    def is_busy(self) -> bool:
        """False: it waits for its stream."""
        return False

    @property
    def accepted(self) -> int:
        """False: nothing is waiting."""
        return 0

    completed = accepted

    def note_memory_pressure(self) -> None:
        """Does nothing: it is as fast as its stream."""

    def restart_interfaces(self, _statistics: Sequence[Statistics]) -> None:
        """Never called: the interfaces of a section are numbered once."""
        raise AssertionError("new numbers for the interfaces of a section")

    def add_process(self, process: Process) -> None:
        """Write a process block, unless it has been written."""
        if process in self.processes:
            return
        self._writer.write_process(process, boot_ns())
        self.processes[process] = None

    def finish(self, statistics: Sequence[Statistics]) -> None:
        """Write an Interface Statistics Block for each interface."""
        if self._secrets is not None:
            self._secrets.put()
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

    def write_blocks(self, view: memoryview, _snapshot: Snapshot = tuple, loan: Loan | None = None) -> None:
        """Write complete blocks unchanged."""
        if self._secrets is not None:
            self._secrets.put()
        if self._borrower is not None:
            self._borrower.write(view, loan)
        else:
            self._stream.write(view)

    def flush(self, _snapshot: Snapshot = tuple) -> None:
        """Write the buffered bytes."""
        if self._secrets is not None:
            self._secrets.put()
        self._stream.flush()

    def write_packet(self, packet: Packet, interface_id: int, stamp: Label, _snapshot: Snapshot = tuple) -> None:
        """Write one Enhanced Packet Block, built by scapy; the same bytes as the kernel program
        writes for a packet with this label.
        """
        if self._secrets is not None:
            self._secrets.put()
        options = packet_options(packet, stamp)
        self._writer.write_packet(interface_id, packet.time_ns, packet.frame, packet.original_len, options)


def packet_options(packet: Packet, stamp: Label) -> bytes:
    """The options of a packet: those of its label, with its own flags and identifier."""
    options = bytearray(stamp.options)
    at = stamp.flags_at
    flags = int.from_bytes(options[at : at + 4], "little") | packet.flags
    options[at : at + 4] = flags.to_bytes(4, "little")
    if stamp.linked:
        options[at + 8 : at + 16] = packet.packet_id.to_bytes(8, "little")
    return bytes(options)


class FileOutput(PcapngOutput):
    """Writes packets to one file.

    Args:
        file: the file; the caller closes it.
        encode: as for PcapngOutput.
        key_logs: their TLS secrets are written, too.
    """

    def __init__(self, file: CaptureFile | PipeTarget, encode: str = "kernel", key_logs: KeyLogs | None = None) -> None:
        self.latency_s = PROMPT_S if isinstance(file, PipeTarget) else FILE_S
        super().__init__(file.stream, encode, secrets_for(file, key_logs, OVERLAP_S))
        self._file = file

    @property
    def lost(self) -> int:
        """Packets that were not written; then the capture ends."""
        return self._file.stream.lost

    @property
    def is_busy(self) -> bool:
        """See BlockSink."""
        return self._file.stream.is_busy

    @property
    def accepted(self) -> int:
        """As BlockSink."""
        return self._file.stream.accepted

    @property
    def completed(self) -> int:
        """As BlockSink."""
        return self._file.stream.completed

    def note_memory_pressure(self) -> None:
        """As BlockSink."""
        self._file.stream.note_memory_pressure()
