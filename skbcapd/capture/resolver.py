"""Lookups for the kernel program: processes of sockets whose use it has not seen.

In: a packet of a socket without a known user, or of several sockets (candidates). Out:
the same packet with the user, with a group, or with `unknown`. The result is also stored in the
tables of the program, so the next packet needs no lookup.

The rule: the result is all candidates, or none. Of several candidates (a socket that several
processes have open, sockets that share a port) only common values are used: of threads of one
process its id, otherwise at most the names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from skbcapd.attribution.processes import NS_PER_TICK, User
from skbcapd.attribution.sockets import Flow
from skbcapd.capture.plan import Plan
from skbcapd.capture.record import Record, user_of
from skbcapd.kernel import abi
from skbcapd.kernel.program import Program
from skbcapd.kernel.segments import Upcall
from skbcapd.lru import Bounded
from skbcapd.pcapng.blocks import DIRECTION_OUT

QUESTIONS = 1024  # lookups that the program may request between two drains
GROUPS_REMEMBERED = 4096

Members = tuple[User, ...]


class Resolver:
    """Looks up the processes that the program requests.

    Args:
        program: has the tables of sockets and flows.
        find_holders: finds the processes that have a socket open, by its inode number and the time
            when it was seen (ns since 1970); None if it is not known yet.
        boot_ns: returns the boot time of the machine, ns since 1970.
    """

    def __init__(
        self, program: Program, find_holders: Callable[[int, int], Members | None], boot_ns: Callable[[], int]
    ) -> None:
        self._program = program
        self._find_holders = find_holders
        self._boot_ns = boot_ns
        self._added: dict[bytes, int] = {}  # abi.FLOW -> inode number of the socket
        self._groups: Bounded[int, Members] = Bounded(GROUPS_REMEMBERED)
        self._numbers: Bounded[Members, int] = Bounded(GROUPS_REMEMBERED)  # of these groups: both evict the same one
        self._next_group = 1

    def refill(self) -> None:
        """Allow the program to request as many lookups as a drain can do."""
        self._program.control[abi.QUESTIONS] = QUESTIONS

    def add_flows(self, flows: Iterable[Flow], holders: Mapping[int, Members]) -> None:
        """Store the owners of TCP connections and listeners that are older than the program.

        Args:
            flows: existing ones.
            holders: inode number of a socket -> processes that have it open.
        """
        sockets: dict[bytes, list[Members]] = {}
        v6_only: set[bytes] = set()
        for flow in flows:
            sockets.setdefault(_key(flow), []).append(holders.get(flow.inode, ()))
            self._added[_key(flow)] = flow.inode
            if flow.is_v6_only:
                v6_only.add(_key(flow))
        for key, of in sockets.items():  # several sockets can listen on one port (SO_REUSEPORT)
            members = _all(of)
            if len(members) == 1 and len(of) == 1:
                owner = abi.Owner(0, *_record(members[0]), inode=self._added[key], identity=int(key in v6_only))
            elif members:
                number = self._number(members)
                inode = abi.IS_GROUP | abi.MADE_BY_PYTHON | number
                self._program.set_holder(inode, abi.USER.pack(*_common(members, number)))
                owner = abi.Owner(0, *_record(_NOBODY), inode=inode, identity=int(key in v6_only))
            else:
                continue
            self._program.add_flow(key, abi.OWNER.pack(*owner))

    def remove_ended_flows(self, flows: Iterable[Flow]) -> None:
        """Remove connections that ended before the program was attached.

        Args:
            flows: those that exist after the attach.
        """
        for key in self._added.keys() - {_key(flow) for flow in flows}:
            self._program.remove_flow(key)
        self._added.clear()

    def take(self, record: Record, _plan: Plan) -> Record:
        """Stage: look up the process if the program requests it; and the members of a group."""
        if record.packet.via == abi.VIA_UNRESOLVED:
            record.packet, record.is_asked = self.resolve(record.packet), True
        if record.packet.via == abi.VIA_GROUP:
            members = self._groups.get(record.packet.start) or (user_of(record.packet),)  # the group was evicted
            record.group = [(user, None) for user in members]
        return record

    def resolve(self, packet: Upcall) -> Upcall:
        """The packet with its process, or with `unknown`. It gets no label: later packets have
        another key.
        """
        known = self._learned(packet)
        if known is not None:
            return known
        members = self._find(packet) if packet.inode else None
        if not members:
            # The process can have used the socket in the meantime, and ended.
            known = self._learned(packet)
            if known is not None:
                return known
        if members is None:
            return replace(packet, via=abi.VIA_UNKNOWN)
        if len(members) > 1 or (members and self._is_of_several(packet.inode)):
            holder = _common(members, self._number(members))
        else:
            holder = _record(members[0] if members else _NOBODY)
        if not packet.inode & abi.IS_GROUP or self._program.group(packet.inode).asked_ns <= packet.time_ns:
            # Otherwise the program has asked again, because more processes can have the sockets open.
            self._program.set_holder(packet.inode, abi.USER.pack(*holder))
        if self._is_remnant(packet.inode, members):
            return replace(packet, via=abi.VIA_UNKNOWN)
        return self._held(packet, holder)

    def _is_remnant(self, inode: int, members: Members) -> bool:
        """Whether a process is the only one that is left: a child of it can have had the sockets
        open at the packet, and have ended since.
        """
        if not inode & abi.IS_GROUP or len({member.tgid for member in members}) != 1:
            return False
        tgid = members[0].tgid
        for sk, marked in self._program.group(inode).sockets:
            learned = self._program.owner(sk)
            since = learned.time if learned and learned.tgid == tgid else 0
            if marked & abi.OPEN_IN_SEVERAL and self._program.may_have_forked(tgid, since):
                return True
        return False

    def _is_of_several(self, inode: int) -> bool:
        """Whether any of several sockets may get the packet: then no thread is certain."""
        return bool(inode & abi.IS_GROUP) and len(self._program.group(inode).sockets) > 1

    def _find(self, packet: Upcall) -> Members | None:
        """All candidates; empty if they cannot be found; None if they are not known yet."""
        if not packet.inode & abi.IS_GROUP:
            return self._find_holders(packet.inode, packet.time_ns)
        found: list[Members] = []
        group = self._program.group(packet.inode).sockets
        for sk, marked in group:
            inode, is_shared = marked & ~abi.OPEN_IN_SEVERAL, marked & abi.OPEN_IN_SEVERAL
            learned = self._program.owner(sk)
            user = _user(learned) if learned is not None and learned.tgid and learned.inode == inode else None
            members: Members | None = (user,) if user else ()
            if is_shared or not user:
                members = self._find_holders(inode, packet.time_ns)
            if user and learned and self._is_alone(members, learned, is_asked=len(group) == 1):
                members = (user,)
            if members is None:
                return None
            found.append(_without_manager(members))
        return _all(found)

    def _is_alone(self, members: Members | None, learned: abi.Owner, *, is_asked: bool) -> bool:
        """Whether the last user of a socket is the only one.

        Args:
            members: those that have it open; none where they have ended, None where that is not
                known.
            learned: the last user; nobody else had it open when they used it, unless that is
                marked.
            is_asked: whether the program asks because of this socket, for a reason.
        """
        if members:
            return {member.tgid for member in members} == {learned.tgid}
        if is_asked or learned.time == abi.SHARED_AT_USE:
            return False
        return not self._program.may_have_forked(learned.tgid, learned.time)

    def _number(self, members: Members) -> int:
        """The number of a group; the same members have the same number."""
        number = self._numbers.get(members)
        if number is None:
            number, self._next_group = self._next_group, self._next_group + 1
            self._numbers[members], self._groups[number] = number, members
        return number

    def _learned(self, packet: Upcall) -> Upcall | None:
        """The packet with the user that the program has recorded in the meantime; None if there is
        none.
        """
        learned = self._program.owner(packet.sk)
        if learned is not None and learned.tgid:
            is_same = learned.inode == packet.inode if packet.inode else learned.identity == packet.identity
            is_certain = learned.time != abi.SHARED_AT_USE or packet.direction == DIRECTION_OUT or not packet.inode
            if is_same and is_certain:
                via = abi.VIA_SOCKET if packet.direction == DIRECTION_OUT else abi.VIA_FLOW
                return _of(packet, via, learned)
        if packet.inode & abi.IS_GROUP:  # its members may have changed: that is why the program asks
            return None
        # A later socket can have the same address.
        holder = self._program.holder(packet.inode) if packet.inode else None
        return self._held(packet, holder) if holder and (holder.tgid or holder.start) else None

    def _held(self, packet: Upcall, holder: abi.User) -> Upcall:
        """The packet with the process that has its socket open; `unknown` if a process started
        after the packet.

        Such a process got the socket from another one. For a group, `start` is its number.
        """
        is_group = holder.start and not holder.tid
        starts = [user.start for user in self._groups.get(holder.start, ())] if is_group else [holder.start]
        if not (holder.tgid or is_group) or any(self._began_ns(start) > packet.time_ns for start in starts):
            return replace(packet, via=abi.VIA_UNKNOWN)
        return _of(packet, abi.VIA_GROUP if is_group else abi.VIA_INODE, holder)

    def _began_ns(self, start: int) -> int:
        """The latest possible start of a thread, ns since 1970: /proc has it in ticks, rounded
        down.
        """
        return self._boot_ns() + (start if start % NS_PER_TICK else start + NS_PER_TICK)


_NOBODY = User(0, 0, 0, b"", b"")


def _all(sockets: Iterable[Members]) -> Members:
    """The processes of all sockets; none if the process of one socket is not known."""
    found = list(sockets)
    users = {user for members in found for user in members}
    return tuple(sorted(users, key=lambda user: (user.tgid, user.tid, user.start))) if all(found) else ()


def _user(learned: abi.Owner) -> User:
    """The last user of a socket."""
    names = (name.split(b"\0")[0] for name in (learned.comm, learned.process))
    return User(learned.tgid, learned.tid, learned.start, *names)


def _without_manager(members: Members) -> Members:
    """Without systemd, which has the sockets of a service open but leaves them to the service as long as that runs."""
    others = tuple(user for user in members if (user.tgid, user.comm) != (1, b"systemd"))
    return others or members


def _common(members: Members, number: int) -> abi.User:
    """The common values of a group; `start` is its number."""

    def one(values: Iterable[bytes]) -> bytes:
        found = {value[:15] for value in values}
        return found.pop() if len(found) == 1 else b""

    tgids = {user.tgid for user in members}
    return abi.User(
        tgid=tgids.pop() if len(tgids) == 1 else 0,
        tid=0,
        start=number,
        comm=one(user.comm for user in members),
        process=one(user.process for user in members),
    )


def _of(packet: Upcall, via: int, user: abi.User | abi.Owner) -> Upcall:
    """The packet with a process."""
    comm, process = (name.split(b"\0")[0][:15] for name in (user.comm, user.process))
    return replace(packet, via=via, tgid=user.tgid, tid=user.tid, start=user.start, comm=comm, process=process)


def _record(user: User) -> abi.User:
    """The record of a user for the program."""
    return abi.User(user.tgid, user.tid, user.start, user.comm[:15], user.process[:15])


def _key(flow: Flow) -> bytes:
    """The key of a flow in the table of the program."""
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
