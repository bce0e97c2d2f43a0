"""Lookups for the kernel program: processes of sockets whose use it has not seen.

In: a packet of a socket without a known user. Out: the same packet with the user, or with
`unknown`. The result is also stored in the tables of the program, so the next packet of the socket
needs no lookup.

The rule: the result is one process, or none. If several processes have a socket open, none is named
until one uses it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from skbcapd.attribution.processes import NS_PER_TICK, User
from skbcapd.attribution.sockets import NOBODY, Flow
from skbcapd.capture.plan import Plan
from skbcapd.capture.record import Record
from skbcapd.kernel import abi
from skbcapd.kernel.program import Program
from skbcapd.kernel.segments import Upcall
from skbcapd.pcapng.blocks import DIRECTION_OUT

QUESTIONS = 1024  # that the program may ask from one drain to the next


class Resolver:
    """Answers the program's questions.

    Args:
        program: its tables.
        find_holder: the only process that holds the socket with an inode number, seen at a time (ns since 1970); tgid 0
            where there is none or more; None where that is not known yet.
        boot_ns: when the machine was started, in ns since 1970.
    """

    def __init__(
        self, program: Program, find_holder: Callable[[int, int], User | None], boot_ns: Callable[[], int]
    ) -> None:
        self._program = program
        self._find_holder = find_holder
        self._boot_ns = boot_ns
        self._told: dict[bytes, int] = {}  # abi.FLOW to the socket's inode

    def refill(self) -> None:
        """Allow the program as many questions as a drain can answer."""
        self._program.control[abi.QUESTIONS] = QUESTIONS

    def tell(self, flows: Iterable[Flow], holders: Mapping[int, User]) -> None:
        """Tell the program whose the connections and listeners are that were there before it.

        Args:
            flows: that exist.
            holders: inode of a socket to the only process that holds it; tgid 0 where several do.
        """
        users: dict[bytes, set[User]] = {}
        for flow in flows:
            users.setdefault(_key(flow), set()).add(holders.get(flow.inode, NOBODY))
            self._told[_key(flow)] = flow.inode
        for key, of in users.items():
            # Several processes may listen at one port (SO_REUSEPORT).
            if len(of) == 1 and NOBODY not in of:
                user = of.pop()
                owner = abi.Owner(*_record(user), inode=self._told[key], identity=0)
                self._program.add_flow(key, abi.OWNER.pack(*owner))

    def retell(self, flows: Iterable[Flow]) -> None:
        """Make the program forget what it was told of connections that have ended before it could see that.

        Args:
            flows: that exist now that the program is attached.
        """
        for key in self._told.keys() - {_key(flow) for flow in flows}:
            self._program.remove_flow(key)
        self._told.clear()

    def take(self, record: Record, _plan: Plan) -> Record:
        """Stage: the packet with its process, where the program has asked for it."""
        if record.packet.via != abi.VIA_UNRESOLVED:
            return record
        record.packet, record.is_asked = self.resolve(record.packet), True
        return record

    def resolve(self, packet: Upcall) -> Upcall:
        """The packet with its process, or with `unknown`. It needs no label: later packets ask with another key."""
        known = self._learned(packet)
        if known is not None:
            return known
        user = self._find_holder(packet.inode, packet.time_ns) if packet.inode else None
        if user is None or not user.tgid:
            # Its process may have used it meanwhile, and be gone.
            known = self._learned(packet)
            if known is not None:
                return known
        if user is None:
            return replace(packet, via=abi.VIA_UNKNOWN)
        holder = _record(user)
        self._program.set_holder(packet.inode, abi.USER.pack(*holder))
        return self._held(packet, holder)

    def _learned(self, packet: Upcall) -> Upcall | None:
        """The packet with the user that the program has learned since it passed; None when there is none."""
        learned = self._program.owner(packet.sk)
        if learned is not None and learned.tgid:
            is_same = learned.inode == packet.inode if packet.inode else learned.identity == packet.identity
            if is_same:
                via = abi.VIA_SOCKET if packet.direction == DIRECTION_OUT else abi.VIA_FLOW
                return _of(packet, via, learned)
        # A later socket may lie at the same address by now.
        holder = self._program.holder(packet.inode) if packet.inode else None
        return self._held(packet, holder) if holder and holder.tgid else None

    def _held(self, packet: Upcall, holder: abi.User) -> Upcall:
        """The packet with the holder of its socket, but that of another time: one that began behind the packet.

        Such a one has the socket from another process. /proc tells a process's start in ticks, rounded down.
        """
        began = holder.start if holder.start % NS_PER_TICK else holder.start + NS_PER_TICK
        if not holder.tgid or self._boot_ns() + began > packet.time_ns:
            return replace(packet, via=abi.VIA_UNKNOWN)
        return _of(packet, abi.VIA_INODE, holder)


def _of(packet: Upcall, via: int, user: abi.User | abi.Owner) -> Upcall:
    """The packet with a process."""
    comm, process = (name.split(b"\0")[0][:15] for name in (user.comm, user.process))
    return replace(packet, via=via, tgid=user.tgid, tid=user.tid, start=user.start, comm=comm, process=process)


def _record(user: User) -> abi.User:
    """A user as the program has it."""
    return abi.User(user.tgid, user.tid, user.start, user.comm[:15], user.process[:15])


def _key(flow: Flow) -> bytes:
    """What the program knows a flow by."""
    return abi.FLOW.pack(
        *abi.Flow(
            net=flow.net,
            local=flow.local,
            remote=flow.remote,
            local_port=flow.local_port,
            remote_port=flow.remote_port,
            protocol=flow.protocol,
            family=flow.family,
        )
    )
