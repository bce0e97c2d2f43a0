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
from skbcapd.pcapng.interface import Loan

_Local = TypeVar("_Local", Upcall, Repeated, Cut)


class Sampler(Protocol):
    """Samples the delivered packets; it decides how many."""

    def sample_blocks(self, view: memoryview) -> None:
        """Sample complete blocks from the kernel program."""
        ...

    def sample_packet(self, packet: Packet, interface_id: int, stamp: Label) -> None:
        """Sample a packet that Python has written."""
        ...


class Delivery:
    """Passes packets to the output.

    Args:
        output: takes the packets.
        tally: counts them.
        snapshot: returns the statistics of the interfaces, for the end of a file.
        ask_for_dump: called with the name of a rule with `action: dump`, and its `dump_after` in seconds.
    """

    def __init__(
        self, output: Output, tally: Tally, snapshot: Snapshot, ask_for_dump: Callable[[str, int], None]
    ) -> None:
        self._output, self._tally, self._snapshot, self._ask_for_dump = output, tally, snapshot, ask_for_dump
        # identifiers of written packets, with `dedup: first`
        self._written: Bounded[int, None] = Bounded(2 * abi.SIGHTINGS)
        self.sampler: Sampler | None = None
        """Samples the delivered packets; None: no sampling."""
        self.viewers: Sampler | None = None
        """The same for people who watch; None: nobody does."""

    def take(self, record: Record, plan: Plan) -> Record | None:
        """Stage: write the packet if its rule and the filter of the rule keep it."""
        packet = record.packet
        if record.stamp is None:
            raise ValueError("a packet without the results of the earlier stages")
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
        decision.interface.note_early(packet)
        if self._is_kept(filled := _filled(packet), decision, plan):
            self._write_decided(filled, decision, plan)

    def _is_kept(self, packet: Upcall | Repeated, decision: Decision, plan: Plan) -> bool:
        """Whether a packet is written; if not, it is counted."""
        verdict, description = decision.verdict, decision.interface.description
        if description is None:
            raise ValueError("a packet of an interface that is not captured")
        if verdict.is_unattributed:
            self._tally.unattributed += 1
            return False
        is_taken = verdict.keeps and plan.matcher.takes(
            verdict.filter, description.link_type, packet.frame, packet.original_len
        )
        self._tally.filtered += not is_taken
        may_repeat = plan.dedup and packet.packet_id and not decision.interface.has_drops
        if is_taken and may_repeat and not self._is_first(packet.packet_id):
            self._tally.duplicates += 1
            return False
        return is_taken

    def _write_decided(self, packet: Upcall | Repeated, decision: Decision, plan: Plan) -> None:
        verdict = decision.verdict
        if len(packet.frame) > (kept := plan.kept(verdict, packet.payload)):
            packet = replace(packet, frame=packet.frame[:kept])
        self._write(
            packet, decision.interface.interface_id, decision.stamp, is_traffic=not decision.interface.has_drops
        )
        if verdict.dump:
            self._ask_for_dump(f"rules[{verdict.dump}]", verdict.dump_after_s)

    def _is_first(self, packet_id: int) -> bool:
        """Whether this is the first packet with its identifier."""
        if packet_id in self._written:
            return False
        self._written[packet_id] = None
        return True

    def take_cut(self, packet: Cut) -> None:
        """Write a packet with a label that the program could not write itself."""
        self._write(_filled(packet), packet.interface_id, packet.stamp)

    def take_blocks(self, view: memoryview, loan: Loan | None) -> None:
        """Write complete blocks from the kernel program, unchanged; `loan`: see Output.write_blocks."""
        self._output.write_blocks(view, self._snapshot, loan)
        if self.sampler is not None:
            self.sampler.sample_blocks(view)
        if self.viewers is not None:
            self.viewers.sample_blocks(view)

    def _write(self, packet: Packet, interface_id: int, stamp: Label, *, is_traffic: bool = True) -> None:
        self._output.write_packet(packet, interface_id, stamp, self._snapshot)
        self._tally.written += 1
        if self.sampler is not None and is_traffic:
            self.sampler.sample_packet(packet, interface_id, stamp)
        if self.viewers is not None:
            self.viewers.sample_packet(packet, interface_id, stamp)


def _described(packet: Upcall, process: Process | None) -> Process:
    """The record for a process block; without a record from /proc, what the packet itself says."""
    if process is None:
        start = packet.start // NS_PER_TICK * NS_PER_TICK if packet.tid == packet.tgid else 0
        return Process(packet.tgid, start, packet.process or packet.comm, None, None, b"", b"", b"", b"")
    return replace(process, cgroup=b"")  # a process block has no cgroup


def _filled(packet: _Local) -> _Local:
    """The packet with its checksum, if it was not computed yet."""
    if not packet.checksum:
        return packet
    frame = checksum.fill(packet.frame, packet.original_len, packet.checksum)
    if frame is None:
        return packet
    return replace(packet, frame=memoryview(frame), flags=packet.flags & ~CHECKSUM_NOT_READY)
