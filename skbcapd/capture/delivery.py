"""The last stage: passes a packet to the output.

In: a packet with all results of the other stages, a packet with a label that Python must write
again, or blocks from the kernel program. Out: they are in the output, or counted as filtered or
dropped.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol, TypeVar

from skbcapd.attribution.processes import NS_PER_TICK, Process
from skbcapd.capture import checksum
from skbcapd.capture.plan import Plan
from skbcapd.capture.record import Decision, Record
from skbcapd.capture.totals import Tally
from skbcapd.kernel import abi
from skbcapd.kernel.segments import Cut, Packet, Repeated, Upcall
from skbcapd.lru import Bounded
from skbcapd.output.interface import Output, Snapshot
from skbcapd.pcapng.blocks import CHECKSUM_NOT_READY
from skbcapd.pcapng.comment import Label

_Local = TypeVar("_Local", Upcall, Repeated, Cut)


class Sampler(Protocol):
    """Samples packets on their way to the output; how many is its own affair."""

    def look_at(self, view: memoryview) -> None:
        """Ready blocks."""
        ...

    def look_at_one(self, options: bytes, original_len: int) -> None:
        """A packet through Python."""
        ...


class Delivery:
    """Hands packets to the output.

    Args:
        output: where they go.
        tally: counts them.
        snapshot: what became of the packets, for a file that ends.
        ask_for_dump: told which rule wants what is in memory to be written.
    """

    def __init__(self, output: Output, tally: Tally, snapshot: Snapshot, ask_for_dump: Callable[[str], None]) -> None:
        self._output, self._tally, self._snapshot, self._ask_for_dump = output, tally, snapshot, ask_for_dump
        self._written: Bounded[int, None] = Bounded(2 * abi.SIGHTINGS)  # identifiers, with `dedup: first`
        self.sampler: Sampler | None = None
        """Samples what passes; None: nobody does."""

    def take(self, record: Record, plan: Plan) -> Record | None:
        """Stage: written, where its rule and the rule's filter keep it."""
        packet = record.packet
        if record.stamp is None:
            raise ValueError("a packet that has not come through the stages before")
        decision = Decision(record.interface, record.verdict, record.stamp)
        if not self._is_kept(filled := _filled(packet), decision, plan):
            return None
        if plan.process_blocks and packet.tgid and packet.tid:
            self._output.add_process(_described(packet, record.process))
        self._write_decided(filled, decision, plan)
        self._tally.processes.add(packet.tgid)
        return record

    def take_repeated(self, packet: Repeated, decision: Decision, plan: Plan) -> None:
        """A packet without a label that is decided, as an earlier one of this drain has the same key and names."""
        decision.interface.early += packet.slot != decision.interface.slot
        if self._is_kept(filled := _filled(packet), decision, plan):
            self._write_decided(filled, decision, plan)

    def _is_kept(self, packet: Upcall | Repeated, decision: Decision, plan: Plan) -> bool:
        """Whether a packet is written; if not, it is counted."""
        verdict, description = decision.verdict, decision.interface.description
        if description is None:
            raise ValueError("a packet of an interface that is not captured")
        is_taken = verdict.keeps and plan.matcher.takes(
            verdict.filter, description.link_type, packet.frame, packet.original_len
        )
        self._tally.filtered += not is_taken
        if is_taken and plan.dedup and packet.packet_id and not self._is_first(packet.packet_id):
            self._tally.duplicates += 1
            return False
        return is_taken

    def _write_decided(self, packet: Upcall | Repeated, decision: Decision, plan: Plan) -> None:
        verdict = decision.verdict
        if len(packet.frame) > (snaplen := verdict.snaplen or plan.snaplen):
            packet = replace(packet, frame=packet.frame[:snaplen])
        self._write(packet, decision.interface.interface_id, decision.stamp)
        if verdict.dump:
            self._ask_for_dump(f"rules[{verdict.dump}]")

    def _is_first(self, packet_id: int) -> bool:
        """Whether no packet with this identifier has come through here; then this one is written."""
        if packet_id in self._written:
            return False
        self._written[packet_id] = None
        return True

    def take_cut(self, packet: Cut, known: tuple[int, Label] | None) -> None:
        """A labelled packet that the program could not write itself.

        Args:
            packet: as it lies in the segments.
            known: interface number and stamp of its label; None where it is forgotten.
        """
        if known is None:
            self._tally.dropped += 1
        else:
            self._write(_filled(packet), *known)

    def take_blocks(self, view: memoryview) -> None:
        """Ready blocks, as they are."""
        self._output.write_blocks(view, self._snapshot)
        if self.sampler is not None:
            self.sampler.look_at(view)

    def _write(self, packet: Packet, interface_id: int, stamp: Label) -> None:
        self._output.write_packet(packet, interface_id, stamp, self._snapshot)
        self._tally.written += 1
        if self.sampler is not None:
            self.sampler.look_at_one(stamp.options, packet.original_len)


def _described(packet: Upcall, process: Process | None) -> Process:
    """What a process block shall say: at least what the packet does."""
    if process is None:
        start = packet.start // NS_PER_TICK * NS_PER_TICK if packet.tid == packet.tgid else 0
        return Process(packet.tgid, start, packet.process or packet.comm, None, None, b"", b"", b"", b"")
    return replace(process, cgroup=b"")  # not in a block


def _filled(packet: _Local) -> _Local:
    """The packet with its checksum, where the kernel program says that one is to be completed."""
    if not packet.checksum:
        return packet
    frame = checksum.fill(packet.frame, packet.original_len, packet.checksum)
    if frame is None:
        return packet
    return replace(packet, frame=memoryview(frame), flags=packet.flags & ~CHECKSUM_NOT_READY)
