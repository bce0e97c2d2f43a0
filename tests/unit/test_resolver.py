"""What the kernel program asks about sockets, answered from what it learned meanwhile, or by who holds them."""

from __future__ import annotations

import struct

import pytest

from skbcapd import layout
from skbcapd.resolver import QUESTIONS, Resolver, User
from skbcapd.segments import Upcall, read_local
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

    def owner(self, sk: int) -> tuple[int, int, int, bytes, int, int] | None:
        """What was learned."""
        return self.owners.get(sk)

    def set_holder(self, inode: int, user: bytes) -> None:
        """Remember it."""
        self.holders[inode] = user


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
    found = Resolver(tables, lambda _: None).resolve(asked(inode=inode, direction=direction))  # type: ignore[arg-type]

    expected = (via, 7, 8, 9, b"late") if is_same else (layout.VIA_UNKNOWN, 0, 0, 59_000_000_000, b"")
    assert (found.via, found.tgid, found.tid, found.start, found.comm) == expected


def test_the_holder_is_told_to_the_program() -> None:
    """The only holder of a socket names the packet, and from then on the program knows it."""
    tables = Tables()
    found = Resolver(tables, {INODE: CHRONYD}.get).resolve(asked())  # type: ignore[arg-type]

    assert (found.via, found.tgid, found.tid, found.comm) == (layout.VIA_INODE, 1058, 1058, b"chronyd")
    assert tables.holders == {INODE: struct.pack("<IIQ16s", 1058, 1058, 59_000_000_000, b"chronyd")}


def test_nobody_is_told_to_the_program() -> None:
    """A socket without an only holder is unknown, and the program asks no more; one without an inode may get one."""
    tables = Tables()
    resolver = Resolver(tables, lambda _: None)  # type: ignore[arg-type]

    assert resolver.resolve(asked()).via == layout.VIA_UNKNOWN
    assert resolver.resolve(asked(inode=0)).via == layout.VIA_UNKNOWN
    assert tables.holders == {INODE: bytes(layout.USER.size)}


def test_questions_are_rationed() -> None:
    """Each refill allows the same number of questions, whatever was left."""
    tables = Tables()
    Resolver(tables, lambda _: None).refill()  # type: ignore[arg-type]

    assert tables.control[layout.QUESTIONS] == QUESTIONS
