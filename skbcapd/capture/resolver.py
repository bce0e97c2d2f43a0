"""Whose socket is it? What the kernel program asks about sockets whose use it has not seen.

In: a packet of a socket without a known user, or of several sockets of which any may get it. Out: the same packet with
the user, as one of a group, or with `unknown`; and the answer in the program's tables, so that the next packet needs no
question.

The rule: an answer is all who may be meant, or nobody. Of several (a socket that several processes hold, sockets
that share a port) only what they have in common is ever said: of threads of one process its id, else at most the name.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from skbcapd.attribution.processes import NS_PER_TICK, User
from skbcapd.attribution.sockets import Flow
from skbcapd.kernel import abi
from skbcapd.kernel.program import Program
from skbcapd.kernel.segments import Upcall

QUESTIONS = 1024  # that the program may ask from one drain to the next
GROUPS_REMEMBERED = 4096
_GROUP = 1 << 63  # numbers of several sockets; with the next bit those that are made here
_MADE_HERE = 1 << 62

Members = tuple[User, ...]


class Resolver:
    """Answers the program's questions.

    Args:
        program: its tables.
        find_holders: the processes that hold the socket with an inode number, seen at a time (ns since 1970); None
            where that is not known yet.
        boot_ns: when the machine was started, in ns since 1970.
    """

    def __init__(
        self, program: Program, find_holders: Callable[[int, int], Members | None], boot_ns: Callable[[], int]
    ) -> None:
        self._program = program
        self._find_holders = find_holders
        self._boot_ns = boot_ns
        self._told: dict[bytes, int] = {}  # layout.FLOW to the socket's inode
        self._groups: OrderedDict[int, Members] = OrderedDict()
        self._numbers: dict[Members, int] = {}
        self._next_group = 1

    def refill(self) -> None:
        """Allow the program as many questions as a drain can answer."""
        self._program.control[abi.QUESTIONS] = QUESTIONS

    def members(self, number: int) -> Members:
        """Who may be meant where the program says that it is one of several; none where that is forgotten."""
        return self._groups.get(number, ())

    def tell(self, flows: Iterable[Flow], holders: Mapping[int, Members]) -> None:
        """Tell the program whose the connections and listeners are that were there before it.

        Args:
            flows: that exist.
            holders: inode of a socket to the processes that hold it.
        """
        sockets: dict[bytes, list[Members]] = {}
        for flow in flows:
            sockets.setdefault(_key(flow), []).append(holders.get(flow.inode, ()))
            self._told[_key(flow)] = flow.inode
        for key, of in sockets.items():  # several may listen at one port (SO_REUSEPORT)
            members = _all(of)
            if len(members) == 1 and len(of) == 1:
                [user] = members
                owner = (user.tgid, user.tid, user.start, user.comm[:15], self._told[key], 0, 0, 0)
                self._program.add_flow(key, abi.OWNER.pack(*owner))
            elif members:
                number = self._number(members)
                self._program.set_holder(_GROUP | _MADE_HERE | number, abi.USER.pack(*_common(members, number)))
                owner = (0, 0, 0, b"", _GROUP | _MADE_HERE | number, 0, 0, 0)
                self._program.add_flow(key, abi.OWNER.pack(*owner))

    def retell(self, flows: Iterable[Flow]) -> None:
        """Make the program forget what it was told of connections that have ended before it could see that.

        Args:
            flows: that exist now that the program is attached.
        """
        for key in self._told.keys() - {_key(flow) for flow in flows}:
            self._program.remove_flow(key)
        self._told.clear()

    def resolve(self, packet: Upcall) -> Upcall:
        """The packet with its process, or with `unknown`. It needs no label: later packets ask with another key."""
        known = self._learned(packet)
        if known is not None:
            return known
        members = self._find(packet) if packet.inode else None
        if not members:
            # Its process may have used it meanwhile, and be gone.
            known = self._learned(packet)
            if known is not None:
                return known
        if members is None:
            return replace(packet, via=abi.VIA_UNKNOWN)
        if len(members) > 1 or (members and packet.inode & _GROUP):
            number = self._number(members)
            common = _common(members, number)
            self._program.set_holder(packet.inode, abi.USER.pack(*common))
            return self._shared(packet, *common)
        user = members[0] if members else _NOBODY
        self._program.set_holder(packet.inode, abi.USER.pack(user.tgid, user.tid, user.start, user.comm[:15]))
        return self._held(packet, user.tgid, user.tid, user.start, user.comm)

    def _find(self, packet: Upcall) -> Members | None:
        """All who may be meant; none where that cannot be told; None where it cannot be told yet."""
        if not packet.inode & _GROUP:
            return self._find_holders(packet.inode, packet.time_ns)
        found: list[Members] = []
        for sk, inode in self._program.group(packet.inode):
            learned = self._program.owner(sk)
            if learned is not None and learned[0] and learned[4] == inode:
                found.append((User(*learned[:3], learned[3].split(b"\0")[0]),))
                continue
            members = self._find_holders(inode, packet.time_ns)
            if members is None:
                return None
            found.append(members)
        return _all(found)

    def _number(self, members: Members) -> int:
        """The number of a group, the same for the same ones."""
        number = self._numbers.get(members)
        if number is None:
            number, self._next_group = self._next_group, self._next_group + 1
            self._numbers[members], self._groups[number] = number, members
            if len(self._groups) > GROUPS_REMEMBERED:
                del self._numbers[self._groups.popitem(last=False)[1]]
        return number

    def _learned(self, packet: Upcall) -> Upcall | None:
        """The packet with the user that the program has learned since it passed; None when there is none."""
        learned = self._program.owner(packet.sk)
        if learned is not None:
            tgid, tid, start, comm, inode, identity = learned
            if tgid and (inode == packet.inode if packet.inode else identity == packet.identity):
                via = abi.VIA_SOCKET if packet.direction == abi.OUT else abi.VIA_FLOW
                return _of(packet, via, tgid, tid, start, comm)
        # A later socket may lie at the same address by now.
        holder = self._program.holder(packet.inode) if packet.inode else None
        if holder and holder[2] and not holder[1]:
            return self._shared(packet, *holder)
        return self._held(packet, *holder) if holder and holder[0] else None

    def _shared(self, packet: Upcall, tgid: int, tid: int, number: int, comm: bytes) -> Upcall:
        """The packet as one of a group, but that of another time: where one of the group began behind the packet."""
        if any(self._began(user.start) > packet.time_ns for user in self.members(number)):
            return replace(packet, via=abi.VIA_UNKNOWN)
        return _of(packet, abi.VIA_GROUP, tgid, tid, number, comm)

    def _held(self, packet: Upcall, tgid: int, tid: int, start: int, comm: bytes) -> Upcall:
        """The packet with the holder of its socket, but that of another time: one that began behind the packet.

        Such a one has the socket from another process.
        """
        if not tgid or self._began(start) > packet.time_ns:
            return replace(packet, via=abi.VIA_UNKNOWN)
        return _of(packet, abi.VIA_INODE, tgid, tid, start, comm)

    def _began(self, start: int) -> int:
        """When a thread began, ns since 1970, at the latest: /proc tells its start in ticks, rounded down."""
        return self._boot_ns() + (start if start % NS_PER_TICK else start + NS_PER_TICK)


_NOBODY = User(0, 0, 0, b"")


def _all(sockets: Iterable[Members]) -> Members:
    """Who may be meant where any of several sockets may be; none where a socket is of nobody known."""
    found = list(sockets)
    return tuple(sorted({user for members in found for user in members}, key=_order)) if all(found) else ()


def _order(user: User) -> tuple[int, int, int, bytes]:
    return user.tgid, user.tid, user.start, user.comm


def _common(members: Members, number: int) -> tuple[int, int, int, bytes]:
    """What the program shall say of a group: tgid, tid, start, comm, as in struct user; with its number for a start."""
    tgids, comms = {user.tgid for user in members}, {user.comm[:15] for user in members}
    return tgids.pop() if len(tgids) == 1 else 0, 0, number, comms.pop() if len(comms) == 1 else b""


def _of(packet: Upcall, via: int, tgid: int, tid: int, start: int, comm: bytes) -> Upcall:
    return replace(packet, via=via, tgid=tgid, tid=tid, start=start, comm=comm.split(b"\0")[0][:15])


def _key(flow: Flow) -> bytes:
    return abi.FLOW.pack(*flow[:7], 0)
