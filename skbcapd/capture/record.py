"""A packet without a label, on its way through the stages of this package.

In: a packet from the kernel program. Out: the same packet, with the results of the stages.

The rule: a stage takes a record and returns the next one. It returns None if it ends the way of the
packet; then it has counted the packet. A stage uses only the record and the plan, which is the same
for all stages of one packet. `capture` has the stages in their order; a new stage is a function in
a module here, or a new module.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

from skbcapd.attribution.fields import Dropped
from skbcapd.attribution.processes import Process, User
from skbcapd.capture.plan import Plan
from skbcapd.capture.rules import Verdict
from skbcapd.kernel.segments import Repeated, Upcall
from skbcapd.pcapng.comment import Label
from skbcapd.pcapng.interface import Interface

VIA = ("", "socket", "flow", "inode", "path", "kernel", "forwarded", "unknown", "group")
"""Words for enum via of bpf/layout.h; the plain case, the current process, has no `via` in the
comment.
"""


class KnownInterface:
    """An interface under one name.

    Args:
        slot: row of counters.
        description: its description for the file; None: it is not captured.
        interface_id: its number in the current section; -1: it needs a new number.
        has_drops: whether its packets are those that the kernel has dropped.
    """

    __slots__ = ("description", "early", "early_bytes", "has_drops", "interface_id", "slot", "told", "told_ns")

    def __init__(
        self, slot: int, description: Interface | None = None, interface_id: int = -1, *, has_drops: bool = False
    ) -> None:
        self.slot = slot
        self.description = description
        self.interface_id = interface_id
        self.told = -1  # generation of labels for which the program was told the number,
        self.told_ns = 0  # and when
        self.has_drops = has_drops
        self.early = self.early_bytes = 0  # packets that were written before the program knew the slot

    def note_early(self, packet: Upcall | Repeated) -> None:
        """Count a packet without a label, if the program has counted it in another slot."""
        if packet.slot != self.slot:
            self.early += 1
            self.early_bytes += packet.original_len


NOWHERE = KnownInterface(0)
KEPT = Verdict()


class Decision(NamedTuple):
    """The decision for all packets with the same key and names."""

    interface: KnownInterface
    verdict: Verdict
    stamp: Label


@dataclass(slots=True)
class Record:
    """One packet with the results of the stages; each stage adds its result.

    Args:
        packet: from the kernel program; the owner stage replaces its process.
        interface: on which it was captured.
        is_asked: the process was looked up; so the key belongs to this packet only, and gets no
            label.
        process: record from /proc; None: not known, or not needed.
        group: all candidates if there are several: user (without a thread) and process.
        roots: process id of a candidate -> the process of a rule with `children` that it descends from.
        dropped: why the kernel dropped the packet; None: it did not.
        verdict: verdict of the rules.
        stamp: its options.
    """

    packet: Upcall
    interface: KnownInterface = NOWHERE
    is_asked: bool = False
    process: Process | None = None
    group: Sequence[tuple[User, Process | None]] = ()
    roots: Mapping[int, int] = field(default_factory=dict)
    dropped: Dropped | None = None
    verdict: Verdict = KEPT
    stamp: Label | None = None


Stage: TypeAlias = Callable[[Record, Plan], Record | None]


def user_of(packet: Upcall) -> User:
    """The thread that a packet belongs to."""
    return User(packet.tgid, packet.tid, packet.start, packet.comm, packet.process)
