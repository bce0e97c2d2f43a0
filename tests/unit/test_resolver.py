"""Lookups for the kernel program, from its own tables and from processes that have the socket open."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace

import pytest

from skbcapd.attribution.processes import NS_PER_TICK, User
from skbcapd.attribution.sockets import Flow
from skbcapd.capture.plan import Plan
from skbcapd.capture.record import Record
from skbcapd.capture.resolver import GROUPS_REMEMBERED, QUESTIONS, Resolver
from skbcapd.kernel import abi
from skbcapd.kernel.program import Group
from skbcapd.kernel.segments import Upcall, read_local
from skbcapd.pcapng.blocks import DIRECTION_IN, DIRECTION_OUT
from tests.support.frames import NTP_FRAME
from tests.support.writer import upcall

SK, INODE, IDENTITY = 0xFFFF888000000000, 4711, 1 << 60
BOOT_NS, SEEN_NS = 1_795_392_000_000_000_000, 61_000_000_000  # since 1970, since boot
CHRONYD = User(1058, 1058, 59_000_000_000, b"chronyd", b"chronyd")


class Tables:
    """The tables of a program."""

    def __init__(self) -> None:
        self.control = memoryview(bytearray(8 * abi.STATES)).cast("Q")
        self.owners: dict[int, abi.Owner] = {}
        self.holders: dict[int, bytes] = {}
        self.flows: dict[bytes, bytes] = {}
        self.groups: dict[int, list[tuple[int, int]]] = {}
        self.asked: dict[int, int] = {}
        self.forks: dict[int, int] = {}

    def holder(self, inode: int) -> abi.User | None:
        """The process that has a socket open."""
        return abi.USER.unpack(self.holders[inode]) if inode in self.holders else None

    def owner(self, sk: int) -> abi.Owner | None:
        """The recorded owner."""
        return self.owners.get(sk)

    def set_holder(self, inode: int, user: bytes) -> None:
        """Store it."""
        self.holders[inode] = user

    def group(self, number: int) -> Group:
        """The candidate sockets of a group."""
        return Group(self.asked.get(number, 0), self.groups.get(number, []))

    def may_have_forked(self, tgid: int, since: int) -> bool:
        """Whether a process may have forked; without a record, not here."""
        return self.forks.get(tgid, 0) > since

    def add_flow(self, flow: bytes, owner: bytes) -> None:
        """Store it."""
        self.flows.setdefault(flow, owner)

    def remove_flow(self, flow: bytes) -> None:
        """Delete it."""
        self.flows.pop(flow, None)


def made(tables: Tables, search: Callable[[int, int], tuple[User, ...] | None] = lambda *_: None) -> Resolver:
    """The resolver under test."""
    return Resolver(tables, search, lambda: BOOT_NS)  # type: ignore[arg-type]


def asked(*, inode: int = INODE, direction: int = DIRECTION_OUT) -> Upcall:
    """A packet of a socket whose user is not known."""
    made = upcall(
        NTP_FRAME,
        time_ns=BOOT_NS + SEEN_NS,
        direction=direction,
        via=abi.VIA_UNRESOLVED,
        tgid=0,
        tid=0,
        comm=b"",
        process=b"",
        sk=SK,
        inode=inode,
        identity=IDENTITY,
    )
    found = read_local(memoryview(made), 0)
    assert isinstance(found, Upcall)
    return found


@pytest.mark.parametrize(("direction", "via"), [(DIRECTION_OUT, abi.VIA_SOCKET), (DIRECTION_IN, abi.VIA_FLOW)])
@pytest.mark.parametrize(
    ("inode", "learned", "is_same"),
    [
        (INODE, (INODE, 5), True),
        (INODE, (INODE + 1, IDENTITY), False),
        (0, (INODE, IDENTITY), True),
        (0, (INODE, 5), False),
    ],
)
def test_a_user_recorded_after_the_packet(
    inode: int, learned: tuple[int, int], *, is_same: bool, direction: int, via: int
) -> None:
    """A user recorded after the packet is used for the same socket, recognized by its inode, or by
    its flow without one.
    """
    tables = Tables()
    tables.owners[SK] = abi.Owner(SK, 7, 8, 9, b"late\0rest", b"lead\0rest", *learned)
    found = made(tables).resolve(asked(inode=inode, direction=direction))

    expected = (via, 7, 8, 9, b"late", b"lead") if is_same else (abi.VIA_UNKNOWN, 0, 0, 59_000_000_000, b"", b"")
    assert (found.via, found.tgid, found.tid, found.start, found.comm, found.process) == expected


@pytest.mark.parametrize("found", [None, ()])
def test_a_user_recorded_during_the_lookup(found: tuple[User, ...] | None) -> None:
    """A process that uses the socket during the lookup, and then ends, is named."""
    tables = Tables()

    def search(inode: int, seen_ns: int) -> tuple[User, ...] | None:
        assert (inode, seen_ns) == (INODE, asked().time_ns)
        tables.owners[SK] = abi.Owner(SK, 7, 8, 9, b"quick", b"quick", INODE, IDENTITY)
        return found

    named = made(tables, search).resolve(asked())

    assert (named.via, named.tgid, named.comm) == (abi.VIA_SOCKET, 7, b"quick")
    assert tables.holders == {}


def test_the_owner_is_stored_in_the_program() -> None:
    """The only process that has the socket open is named, and stored in the program."""
    tables = Tables()
    found = made(tables, lambda *_: (CHRONYD,)).resolve(asked())

    assert (found.via, found.tgid, found.tid, found.comm) == (abi.VIA_INODE, 1058, 1058, b"chronyd")
    assert tables.holders == {INODE: struct.pack("<IIQ16s16s", 1058, 1058, 59_000_000_000, b"chronyd", b"chronyd")}


def test_an_unknown_owner_is_stored_in_the_program() -> None:
    """A socket that no single process has open is unknown, and stored as such; one without an inode
    can be used later.
    """
    tables = Tables()
    resolver = made(tables, lambda *_: ())

    assert resolver.resolve(asked()).via == abi.VIA_UNKNOWN
    assert resolver.resolve(asked(inode=0)).via == abi.VIA_UNKNOWN
    assert tables.holders == {INODE: bytes(abi.USER.size)}


def test_a_later_socket_at_the_same_address() -> None:
    """The owner of a socket is still found by its inode when another socket has its address."""
    tables = Tables()
    tables.owners[SK] = abi.Owner(SK, 7, 8, 9, b"later", b"later", INODE + 1, 5)
    tables.holders[INODE] = struct.pack("<IIQ16s16s", 1058, 1059, 59_000_000_123, b"chronyd", b"leader")
    found = made(tables).resolve(asked())

    assert (found.via, found.tgid, found.tid) == (abi.VIA_INODE, 1058, 1059)
    assert (found.comm, found.process) == (b"chronyd", b"leader")


@pytest.mark.parametrize(
    ("start", "is_named"),
    [
        (SEEN_NS - NS_PER_TICK, True),
        (SEEN_NS - NS_PER_TICK + 1, True),
        (SEEN_NS, False),  # a tick, rounded down: up to a tick later
        (SEEN_NS + 1, False),
    ],
)
def test_a_process_that_started_after_the_packet(start: int, *, is_named: bool) -> None:
    """A process that started after the packet did not have the socket: only later packets are its
    own.
    """
    tables = Tables()
    worker = made(tables, lambda *_: (User(1060, 1060, start, b"worker", b"master"),))

    for _ in range(2):  # searched, and cached
        found = worker.resolve(asked())
        assert (found.via, found.tgid) == ((abi.VIA_INODE, 1060) if is_named else (abi.VIA_UNKNOWN, 0))
    assert tables.holders == {INODE: struct.pack("<IIQ16s16s", 1060, 1060, start, b"worker", b"master")}


def test_unknown_sockets_are_looked_up_again() -> None:
    """While the processes are not known yet, the packet is unknown, and the next packet asks again."""
    tables = Tables()
    found = made(tables).resolve(asked())

    assert (found.via, found.tgid) == (abi.VIA_UNKNOWN, 0)
    assert tables.holders == {}


def test_questions_are_rationed() -> None:
    """Each refill allows the same number of lookups."""
    tables = Tables()
    made(tables).refill()

    assert tables.control[abi.QUESTIONS] == QUESTIONS


def flow(local_port: int, inode: int, remote_port: int = 7) -> Flow:
    """A connection on loopback."""
    address = bytes([127, 0, 0, 1]).ljust(16, b"\0")
    return Flow(3, address, address, local_port, remote_port, 6, 2, inode)


def in_group(number: int) -> Record:
    """A packet of a group, from the program."""
    return Record(replace(asked(), via=abi.VIA_GROUP, start=number))


def test_connections_older_than_the_program() -> None:
    """The program gets the connections of single processes, and the groups of shared listeners."""
    other = User(7, 7, 5, b"x" * 15, b"x" * 15)
    tables = Tables()
    resolver = made(tables)
    shared = [flow(11, 101, 0), flow(11, 103, 0)]
    alone = [flow(13, 107, 0), flow(13, 109, 0)]
    resolver.add_flows(
        [flow(22, 4711), flow(23, 5), flow(24, 113), *shared, *alone],
        {4711: (CHRONYD,), 5: (), 101: (CHRONYD,), 103: (other,), 107: (other,), 109: (other,)},
    )

    address = bytes([127, 0, 0, 1]) + bytes(12)
    key = struct.pack("<Q16s16sHHBBH", 3, address, address, 22, 7, 6, 2, 0)
    owner = struct.pack("<QIIQ16s16sQQQQQ", 0, 1058, 1058, 59_000_000_000, b"chronyd", b"chronyd", 4711, 0, 0, 0, 0)
    assert tables.flows[key] == owner
    told = {struct.unpack_from("<H", key, 40)[0]: abi.OWNER.unpack(owner) for key, owner in tables.flows.items()}
    assert sorted(told) == [11, 13, 22]
    assert [told[port][1:5] for port in (11, 13)] == [(0, 0, 0, bytes(16))] * 2
    users = [abi.USER.unpack(tables.holders[told[port].inode]) for port in (11, 13)]
    assert [(tgid, tid, comm.rstrip(b"\0")) for tgid, tid, _, comm, _ in users] == [(0, 0, b""), (7, 0, b"x" * 15)]
    people = [resolver.take(in_group(start), Plan()).group for _, _, start, _, _ in users]
    assert people == [[(other, None), (CHRONYD, None)], [(other, None)]]


MASTER, WORKER = User(80, 80, 57_000_000_000, b"nginx", b"nginx"), User(81, 81, 58_000_000_000, b"nginx", b"nginx")


def test_a_socket_that_several_processes_have_open() -> None:
    """If several processes have a socket open, their common values are used, never the id of one;
    later packets need no lookup.
    """
    tables = Tables()
    resolver = made(tables, lambda *_: (MASTER, WORKER))

    for _ in range(2):  # searched, and cached
        found = resolver.resolve(asked())
        assert (found.via, found.tgid, found.tid, found.comm) == (abi.VIA_GROUP, 0, 0, b"nginx")
        group = resolver.take(in_group(found.start), Plan()).group
        assert group == [(MASTER, None), (WORKER, None)]
    assert tables.holders == {INODE: struct.pack("<IIQ16s16s", 0, 0, found.start, b"nginx", b"nginx")}


def test_the_oldest_groups_are_evicted() -> None:
    """The latest groups keep their numbers; those before them are forgotten, and get others."""
    resolver = made(Tables())
    groups = [(MASTER, replace(WORKER, tid=tid)) for tid in range(1, GROUPS_REMEMBERED + 8)]
    numbers = [resolver._number(group) for group in groups]
    assert len(set(numbers)) == len(groups)
    assert [resolver._number(group) for group in groups[7:]] == numbers[7:]
    assert [len(resolver.take(in_group(number), Plan()).group) for number in (numbers[6], numbers[7])] == [1, 2]
    assert resolver._number(groups[6]) not in numbers


GROUP = 1 << 63 | 4711
MANAGER = User(1, 1, 7_000_000_000, b"systemd", b"systemd")


@pytest.mark.parametrize(
    ("holders", "learned", "expected"),
    [
        ({101: (MASTER,), 103: (MASTER,)}, {}, (abi.VIA_GROUP, 80, b"nginx")),
        ({101: (MASTER,), 103: (WORKER,)}, {}, (abi.VIA_GROUP, 0, b"nginx")),
        ({101: (MASTER,), 103: (CHRONYD,)}, {}, (abi.VIA_GROUP, 0, b"")),
        ({101: (MASTER,), 103: ()}, {}, (abi.VIA_UNKNOWN, 0, b"")),
        ({101: (MASTER,)}, {}, (abi.VIA_UNKNOWN, 0, b"")),
        ({101: (MASTER,)}, {2: abi.Owner(2, 81, 82, 5, b"nginx\0", b"nginx\0", 103, 0)}, (abi.VIA_GROUP, 0, b"nginx")),
        ({101: (MASTER,)}, {2: abi.Owner(2, 81, 82, 5, b"nginx\0", b"nginx\0", 107, 0)}, (abi.VIA_UNKNOWN, 0, b"")),
    ],
)
def test_sockets_of_which_any_may_get_a_packet(
    holders: dict[int, tuple[User, ...]],
    learned: dict[int, abi.Owner],
    expected: tuple[int, int, bytes],
) -> None:
    """Threads of one process give the process; several processes their common values; with one
    unknown, none.
    """
    tables = Tables()
    tables.groups[GROUP] = [(1, 101), (2, 103)]
    tables.owners |= learned
    found = made(tables, lambda inode, _: holders.get(inode)).resolve(asked(inode=GROUP, direction=DIRECTION_IN))

    assert (found.via, found.tgid, found.comm) == expected
    assert found.tid == 0


@pytest.mark.parametrize(
    ("holders", "learned", "expected"),
    [
        ((MASTER, WORKER), MASTER, (abi.VIA_GROUP, 0, b"nginx")),
        ((MASTER,), MASTER, (abi.VIA_INODE, 80, b"nginx")),
        ((WORKER,), MASTER, (abi.VIA_INODE, 81, b"nginx")),
        ((MANAGER, WORKER), MANAGER, (abi.VIA_INODE, 81, b"nginx")),
        ((MANAGER,), MANAGER, (abi.VIA_INODE, 1, b"systemd")),
        ((), MASTER, (abi.VIA_UNKNOWN, 0, b"")),
        (None, MASTER, (abi.VIA_UNKNOWN, 0, b"")),
    ],
)
def test_a_socket_that_several_may_have_open(
    holders: tuple[User, ...] | None, learned: User, expected: tuple[int, int, bytes]
) -> None:
    """Its last user is no more certain than any other process that has it open; systemd leaves it to its service."""
    tables = Tables()
    tables.groups[GROUP] = [(2, 103 | abi.OPEN_IN_SEVERAL)]
    names = (learned.comm, learned.process)
    tables.owners[2] = abi.Owner(2, learned.tgid, learned.tid, learned.start, *names, 103, 0, SEEN_NS)
    tables.holders[GROUP] = struct.pack("<IIQ16s16s", 80, 80, 5, b"nginx", b"nginx")  # of before: there are more by now
    found = made(tables, lambda *_: holders).resolve(asked(inode=GROUP, direction=DIRECTION_IN))

    assert (found.via, found.tgid, found.comm) == expected


@pytest.mark.parametrize("members", [None, (), (MASTER,)])
@pytest.mark.parametrize(
    ("forked_ns", "found"), [(SEEN_NS - 1, (abi.VIA_GROUP, 80)), (SEEN_NS + 1, (abi.VIA_UNKNOWN, 0))]
)
def test_the_last_user_has_forked(members: tuple[User, ...] | None, forked_ns: int, found: tuple[int, int]) -> None:
    """The last user of shared sockets is certain only if it has not forked since: while scans of /proc are put off,
    and also if nobody else is left, because its children can have ended (nginx with `reuseport`).
    """
    tables = Tables()
    tables.groups[GROUP] = [(number, 100 + number | abi.OPEN_IN_SEVERAL) for number in (1, 2)]
    tables.forks[MASTER.tgid] = forked_ns
    for number in (1, 2):
        tables.owners[number] = abi.Owner(number, 80, 80, 5, b"nginx", b"nginx", 100 + number, 0, SEEN_NS)
    resolved = made(tables, lambda *_: members).resolve(asked(inode=GROUP, direction=DIRECTION_IN))

    assert (resolved.via, resolved.tgid) == found


@pytest.mark.parametrize("later_ns", [0, 1])
def test_the_answer_to_an_older_question(later_ns: int) -> None:
    """If the program has asked again for the same sockets, the answer to its first question is not stored."""
    tables = Tables()
    tables.groups[GROUP] = [(2, 103 | abi.OPEN_IN_SEVERAL)]
    tables.asked[GROUP] = BOOT_NS + SEEN_NS + later_ns
    made(tables, lambda *_: (MASTER,)).resolve(asked(inode=GROUP, direction=DIRECTION_IN))

    assert (GROUP in tables.holders) == (not later_ns)


def test_a_candidate_that_started_after_the_packet() -> None:
    """A worker that started after the packet did not have the socket: the packet is unknown."""
    late = User(83, 83, SEEN_NS + 1, b"nginx", b"nginx")
    found = made(Tables(), lambda *_: (MASTER, late)).resolve(asked())

    assert (found.via, found.tgid) == (abi.VIA_UNKNOWN, 0)


def test_connections_that_ended_before_the_attach() -> None:
    """Connections that ended before the attach are removed; owners that the program recorded itself
    stay.
    """
    tables = Tables()
    resolver = made(tables)
    holders = dict.fromkeys((101, 103), (CHRONYD,))
    resolver.add_flows([flow(22, 101), flow(23, 103)], holders)
    learned = struct.pack("<Q16s16sHHBBH", 3, *[bytes([127, 0, 0, 1]) + bytes(12)] * 2, 24, 7, 6, 2, 0)
    tables.flows[learned] = b"learned"
    resolver.remove_ended_flows([flow(23, 103), flow(25, 107)])

    assert sorted(struct.unpack_from("<H", told, 40)[0] for told in tables.flows) == [23, 24]
