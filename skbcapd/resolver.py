"""Whose socket is it? What the kernel program asks about sockets whose use it has not seen.

In: a packet of a socket without a known user. Out: the same packet with the user, or with `unknown`; and the answer
in the program's tables, so that the next packet of the socket needs no question.

The rule: an answer is one process, or none. A socket that several processes hold is of nobody known until one uses it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from skbcapd import layout
from skbcapd.kernel import Program
from skbcapd.segments import Upcall

QUESTIONS = 1024  # that the program may ask from one drain to the next
_NOBODY = bytes(layout.USER.size)


@dataclass(frozen=True, slots=True)
class User:
    """A process that holds a socket, and the thread that stands for it: the main one.

    Args:
        tgid: process.
        tid: thread.
        start: of the thread, ns since boot as /proc tells them (hundredths of a second).
        comm: of the thread.
    """

    tgid: int
    tid: int
    start: int
    comm: bytes


class Resolver:
    """Answers the program's questions.

    Args:
        program: its tables.
        find_holder: the only process that holds the socket with an inode number; None where there is none or more.
    """

    def __init__(self, program: Program, find_holder: Callable[[int], User | None]) -> None:
        self._program = program
        self._find_holder = find_holder

    def refill(self) -> None:
        """Allow the program as many questions as a drain can answer."""
        self._program.control[layout.QUESTIONS] = QUESTIONS

    def resolve(self, packet: Upcall) -> Upcall:
        """The packet with its process, or with `unknown`. It needs no label: later packets ask with another key."""
        learned = self._program.owner(packet.sk)
        if learned is not None:
            tgid, tid, start, comm, inode, identity = learned
            if tgid and (inode == packet.inode if packet.inode else identity == packet.identity):
                via = layout.VIA_SOCKET if packet.direction == layout.OUT else layout.VIA_FLOW
                return replace(packet, via=via, tgid=tgid, tid=tid, start=start, comm=comm.split(b"\0")[0])
        user = self._find_holder(packet.inode) if packet.inode else None
        if user is None:
            if packet.inode:
                self._program.set_holder(packet.inode, _NOBODY)
            return replace(packet, via=layout.VIA_UNKNOWN)
        self._program.set_holder(packet.inode, layout.USER.pack(user.tgid, user.tid, user.start, user.comm[:15]))
        return replace(
            packet, via=layout.VIA_INODE, tgid=user.tgid, tid=user.tid, start=user.start, comm=user.comm[:15]
        )
