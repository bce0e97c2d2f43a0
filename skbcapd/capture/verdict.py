"""Two stages: the process of a packet, and the verdict of the rules.

In: a packet with its interface and socket owner. Out: what /proc says about its process, and the
verdict of the rules.

The rule: /proc is read only if a setting needs more than the kernel program knows.
"""

from __future__ import annotations

from dataclasses import replace

from skbcapd.attribution.fields import needs_process
from skbcapd.attribution.processes import Process, User
from skbcapd.capture.plan import Plan
from skbcapd.capture.record import VIA, Record, user_of
from skbcapd.capture.rules import Subject
from skbcapd.pcapng.blocks import DIRECTION_OUT


def find_process(record: Record, plan: Plan) -> Record:
    """Stage: read the record of the process from /proc, if a setting needs it."""
    if record.group:
        record.group = [(replace(user, tid=0), _process(user, plan)) for user, _ in record.group]
    else:
        record.process = _process(user_of(record.packet), plan)
    return record


def decide(record: Record, plan: Plan) -> Record:
    """Stage: find the first rule that matches."""
    if not plan.rules.is_empty:
        record.verdict = plan.rules.decide(_subject(record))
    return record


def _process(user: User, plan: Plan) -> Process | None:
    is_wanted = plan.process_blocks or plan.rules.needs_process or needs_process(plan.comment)
    return plan.processes.find(user.tgid, user.tid, user.start, user.comm) if user.tgid and is_wanted else None


def _subject(record: Record) -> Subject:
    """The values of the packet for the rules."""
    packet = record.packet
    return Subject(
        interface=packet.dropped.device.split(b"\0")[0] if packet.dropped else packet.interface_name,
        netns=packet.netns,
        direction="out" if packet.direction == DIRECTION_OUT else "in",
        via=VIA[packet.via] or "current",
        user=user_of(packet),
        process=record.process,
        group=record.group,
        roots=record.roots,
        dropped=record.dropped,
    )
