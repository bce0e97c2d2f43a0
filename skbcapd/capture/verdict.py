"""Two stages: the process of a packet, and the verdict of the rules.

In: a packet with its interface and socket owner. Out: what /proc says about its process, and the
verdict of the rules.

The rule: /proc is read only if a setting needs more than the kernel program knows.
"""

from __future__ import annotations

from skbcapd.attribution.fields import needs_process
from skbcapd.attribution.processes import Process
from skbcapd.capture.plan import Plan
from skbcapd.capture.record import VIA, Record, user_of
from skbcapd.capture.rules import Subject
from skbcapd.kernel.segments import Upcall
from skbcapd.pcapng.blocks import DIRECTION_OUT


def find_process(record: Record, plan: Plan) -> Record:
    """Stage: what /proc knows of the packet's process."""
    packet = record.packet
    is_wanted = plan.process_blocks or plan.rules.needs_process or needs_process(plan.comment)
    if packet.tgid and is_wanted and not record.is_decided:
        record.process = plan.processes.find(packet.tgid, packet.tid, packet.start, packet.comm)
    return record


def decide(record: Record, plan: Plan) -> Record:
    """Stage: the verdict of the first rule that matches."""
    if not record.is_decided and not plan.rules.is_empty:
        record.verdict = plan.rules.decide(_subject(record.packet, record.process))
    return record


def _subject(packet: Upcall, process: Process | None) -> Subject:
    """What the rules may ask of a packet."""
    return Subject(
        interface=packet.device,
        netns=packet.netns,
        direction="out" if packet.direction == DIRECTION_OUT else "in",
        via=VIA[packet.via] or "current",
        user=user_of(packet),
        process=process,
    )
