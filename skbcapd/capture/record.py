"""A packet without a label, on its way through the stages of this package.

In: a packet from the kernel program. Out: the same packet, with the results of the stages.

The rule: a stage takes a record and returns the next one. It returns None if it ends the way of the
packet; then it has counted the packet. A stage uses only the record and the plan, which is the same
for all stages of one packet. `capture` has the stages in their order; a new stage is a function in
a module here, or a new module.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from skbcapd.attribution.processes import Process, User
from skbcapd.capture.plan import Plan
from skbcapd.capture.rules import Verdict
from skbcapd.kernel.segments import Upcall
from skbcapd.pcapng.comment import Label
from skbcapd.pcapng.interface import Interface

VIA = ("", "socket", "flow", "inode", "path", "kernel", "forwarded", "unknown", "group")
"""Words of enum via of bpf/layout.h; the plain case, the current process, is not mentioned in a comment."""


class KnownInterface:
    """An interface under one name, and where its packets go.

    Args:
        slot: row of counters.
        description: for the file; None: it is not captured.
        interface_id: of the section in work; -1: to be numbered anew.
    """

    __slots__ = ("description", "early", "interface_id", "slot")

    def __init__(self, slot: int, description: Interface | None = None, interface_id: int = -1) -> None:
        self.slot = slot
        self.description = description
        self.interface_id = interface_id
        self.early = 0  # packets written before the program knew its slot


NOWHERE = KnownInterface(0)
KEPT = Verdict()


class Decision(NamedTuple):
    """What holds for all packets with the same key and names."""

    interface: KnownInterface
    verdict: Verdict
    stamp: Label


@dataclass(slots=True)
class Record:
    """What is known of one packet; each stage fills in its part and hands the record on.

    Args:
        packet: as the kernel program saw it; its process, where that had to be asked for.
        interface: it was captured on.
        is_asked: its process was asked for, so its key is of no other packet, and gets no label.
        process: what /proc says; None: nothing, or nobody wants to know.
        group: where the packet may be any one's of several, all of them: user (its thread is not known) and process.
        verdict: of the rules.
        stamp: what is written beside its frame.
    """

    packet: Upcall
    interface: KnownInterface = NOWHERE
    is_asked: bool = False
    process: Process | None = None
    group: Sequence[tuple[User, Process | None]] = ()
    verdict: Verdict = KEPT
    stamp: Label | None = None


Stage: TypeAlias = Callable[[Record, Plan], Record | None]


def user_of(packet: Upcall) -> User:
    """The thread that a packet belongs to."""
    return User(packet.tgid, packet.tid, packet.start, packet.comm, packet.process)
