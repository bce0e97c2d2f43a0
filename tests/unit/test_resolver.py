"""What the kernel program asks about sockets, answered from what it learned meanwhile, or by who holds them."""

from __future__ import annotations

import struct

import pytest

from skbcapd import layout
from skbcapd.process import User
from skbcapd.resolver import QUESTIONS, Resolver
from skbcapd.segments import Upcall, read_local
from skbcapd.sockets import NOBODY, Flow
from tests.frames import NTP_FRAME
from tests.unit.writer import upcall

SK, INODE, IDENTITY = 0xFFFF888000000000, 4711, 1 << 60
CHRONYD = User(1058, 1058, 59_000_000_000, b"chronyd")


class Tables:
    """A program's tables."""

    def __init__(self) -> None:
        self.control = memoryview(bytearray(8 * layout.STATES)).cast("Q")
        self.owners: dict[int, tuple[int, int, int, bytes, int, int]] = {}
        self.holders: dict[int, bytes] = {}
        self.flows: dict[bytes, bytes] = {}

    def owner(self, sk: int) -> tuple[int, int, int, bytes, int, int] | None:
        """What was learned."""
        return self.owners.get(sk)

    def set_holder(self, inode: int, user: bytes) -> None:
        """Remember it."""
        self.holders[inode] = user

    def add_flow(self, flow: bytes, owner: bytes) -> None:
        """Remember it."""
        self.flows.setdefault(flow, owner)

    def remove_flow(self, flow: bytes) -> None:
        """Forget it."""
        self.flows.pop(flow, None)


def asked(*, inode: int = INODE, direction: int = layout.OUT) -> Upcall:
    """A packet of a socket whose user is not known."""
    made = upcall(
        NTP_FRAME,
        direction=direction,
        via=layout.VIA_UNRESOLVED,
        tgid=0,
        tid=0,
        comm=b"",
        sk=SK,
        inode=inode,
        identity=IDENTITY,
    )
    found = read_local(memoryview(made), 0)
    assert isinstance(found, Upcall)
    return found


@pytest.mark.parametrize(("direction", "via"), [(layout.OUT, layout.VIA_SOCKET), (layout.IN, layout.VIA_FLOW)])
@pytest.mark.parametrize(
    ("inode", "learned", "is_same"),
    [
        (INODE, (INODE, 5), True),
        (INODE, (INODE + 1, IDENTITY), False),
        (0, (INODE, IDENTITY), True),
        (0, (INODE, 5), False),
    ],
)
def test_what_was_learned_meanwhile(
    inode: int, learned: tuple[int, int], *, is_same: bool, direction: int, via: int
) -> None:
    """A socket used since the packet names it: the very socket, by its inode, or by its flow where it had none yet."""
    tables = Tables()
    tables.owners[SK] = (7, 8, 9, b"late\0rest", *learned)
    found = Resolver(tables, lambda *_: None).resolve(asked(inode=inode, direction=direction))  # type: ignore[arg-type]

    expected = (via, 7, 8, 9, b"late") if is_same else (layout.VIA_UNKNOWN, 0, 0, 59_000_000_000, b"")
    assert (found.via, found.tgid, found.tid, found.start, found.comm) == expected


@pytest.mark.parametrize("found", [None, NOBODY])
def test_what_was_learned_during_the_search(found: User | None) -> None:
    """A process that uses the socket while its holder is looked for, and then ends, is named all the same."""
    tables = Tables()

    def search(inode: int, seen_ns: int) -> User | None:
        assert (inode, seen_ns) == (INODE, asked().time_ns)
        tables.owners[SK] = (7, 8, 9, b"quick", INODE, IDENTITY)
        return found

    named = Resolver(tables, search).resolve(asked())  # type: ignore[arg-type]

    assert (named.via, named.tgid, named.comm) == (layout.VIA_SOCKET, 7, b"quick")
    assert tables.holders == {}


def test_the_holder_is_told_to_the_program() -> None:
    """The only holder of a socket names the packet, and from then on the program knows it."""
    tables = Tables()
    found = Resolver(tables, {INODE: CHRONYD}.get).resolve(asked())  # type: ignore[arg-type]

    assert (found.via, found.tgid, found.tid, found.comm) == (layout.VIA_INODE, 1058, 1058, b"chronyd")
    assert tables.holders == {INODE: struct.pack("<IIQ16s", 1058, 1058, 59_000_000_000, b"chronyd")}


def test_nobody_is_told_to_the_program() -> None:
    """A socket without an only holder is unknown, and the program asks no more; one without an inode may get one."""
    tables = Tables()
    resolver = Resolver(tables, lambda *_: NOBODY)  # type: ignore[arg-type]

    assert resolver.resolve(asked()).via == layout.VIA_UNKNOWN
    assert resolver.resolve(asked(inode=0)).via == layout.VIA_UNKNOWN
    assert tables.holders == {INODE: bytes(layout.USER.size)}


def test_what_is_not_known_yet_is_asked_again() -> None:
    """While nobody has looked who holds the socket, the packet is unknown, and the program goes on asking."""
    tables = Tables()
    found = Resolver(tables, lambda *_: None).resolve(asked())  # type: ignore[arg-type]

    assert (found.via, found.tgid) == (layout.VIA_UNKNOWN, 0)
    assert tables.holders == {}


def test_questions_are_rationed() -> None:
    """Each refill allows the same number of questions, whatever was left."""
    tables = Tables()
    Resolver(tables, lambda *_: None).refill()  # type: ignore[arg-type]

    assert tables.control[layout.QUESTIONS] == QUESTIONS


def flow(local_port: int, inode: int, remote_port: int = 7) -> Flow:
    """A connection on the loopback."""
    address = bytes([127, 0, 0, 1]).ljust(16, b"\0")
    return Flow(3, address, address, local_port, remote_port, 6, 2, inode)


def test_connections_older_than_the_program() -> None:
    """The program is told of those that one process holds; listeners that two processes share are nobody's."""
    other = User(7, 7, 5, b"x" * 15)
    tables = Tables()
    resolver = Resolver(tables, lambda *_: None)  # type: ignore[arg-type]
    shared = [flow(11, 101, 0), flow(11, 103, 0)]
    alone = [flow(13, 107, 0), flow(13, 109, 0)]
    resolver.tell(
        [flow(22, 4711), flow(23, 5), flow(24, 113), *shared, *alone],
        {4711: CHRONYD, 5: NOBODY, 101: CHRONYD, 103: other, 107: other, 109: other},
    )

    address = bytes([127, 0, 0, 1]) + bytes(12)
    key = struct.pack("<Q16s16sHHBBH", 3, address, address, 22, 7, 6, 2, 0)
    owner = struct.pack("<IIQ16sQQQQ", 1058, 1058, 59_000_000_000, b"chronyd", 4711, 0, 0, 0)
    assert tables.flows[key] == owner
    assert sorted(struct.unpack_from("<H", told, 40)[0] for told in tables.flows) == [13, 22]


def test_connections_that_ended_meanwhile() -> None:
    """What had ended before the program could see it is forgotten again; what it has learned itself stands."""
    tables = Tables()
    resolver = Resolver(tables, lambda *_: None)  # type: ignore[arg-type]
    holders = dict.fromkeys((101, 103), CHRONYD)
    resolver.tell([flow(22, 101), flow(23, 103)], holders)
    learned = struct.pack("<Q16s16sHHBBH", 3, *[bytes([127, 0, 0, 1]) + bytes(12)] * 2, 24, 7, 6, 2, 0)
    tables.flows[learned] = b"learned"
    resolver.retell([flow(23, 103), flow(25, 107)])

    assert sorted(struct.unpack_from("<H", told, 40)[0] for told in tables.flows) == [23, 24]
