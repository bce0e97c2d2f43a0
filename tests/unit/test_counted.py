"""Packets of known flows, which the reader counts without returning them."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from skbcapd.analysis.account import Account
from skbcapd.analysis.names import Names
from skbcapd.analysis.selectors import Selection, Selectors
from skbcapd.analysis.sources import Sources, Timed
from skbcapd.analysis.top import as_json
from skbcapd.fleet.index import index
from skbcapd.pcapng.reader import Reader
from tests.support.strangers import block, hello, interface, options, packet, process, section, udp

NANOSECONDS = options((9, b"\x09"))
TIME_NS = 1_622_469_600_123_456_789


def tcp(source: str, destination: str, payload: bytes) -> bytes:
    """A frame of a TCP connection."""
    ethernet = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
    return bytes(ethernet / IP(src=source, dst=destination) / TCP(sport=40000, dport=443) / Raw(payload))


def top(path: Path, by: str, *, counts: bool) -> tuple[str, int]:
    """The output of `top --json`, and how many packets were returned."""
    names = Names()
    account = Account(by, names)
    sources = Sources([path], Selection(Selectors()), counted=account.counted if counts else None)
    returned = 0

    def seen() -> Iterator[Timed]:
        nonlocal returned
        for timed in sources.unordered():
            returned += 1
            yield timed

    account.read(seen())
    return "".join(as_json(account.processes, by, names)), returned


def capture(path: Path, order: str) -> int:
    """Packets of few flows and processes on two interfaces and in two sections, with and without epb_packetid, in no
    order of time, with frames cut anywhere; returns how many.
    """
    chance, count = random.Random(7), 2003
    data = b""
    for _ in range(2):
        data += section(order) + interface(order, opts=options((9, b"\x09"), order=order)) * 2
        for number in range(count):
            direction, tgid = chance.choice((1, 2)), chance.randrange(100, 104)
            made = udp("10.0.0.1", f"10.0.0.{chance.randrange(2, 7)}", size=chance.choice((60, 600)))
            made = made[: chance.choice((len(made),) * 9 + (chance.randrange(60),))]
            opts = process(tgid, f"p{tgid}", direction) if order == "<" else options((1, b"none"), order=order)
            if chance.random() < 0.3 and order == "<":
                opts = options((5, struct.pack("<Q", number))) + opts
            time_ns = TIME_NS + chance.randrange(10**12)
            data += packet(made, opts, order, number=chance.randrange(2), time=time_ns)
            if number % 97 == 0:
                data += block(99, b"", order)
    path.write_bytes(data)
    return 2 * count


@pytest.mark.parametrize("order", ["<", ">"])
def test_sums_are_those_of_all_packets(tmp_path: Path, order: str) -> None:
    """`top` has the same output whether the reader counts or returns the packets, and most are counted."""
    path = tmp_path / "a.pcapng"
    count = capture(path, order)
    for by in ("tgid", "peer", "process"):
        every, returned = top(path, by, counts=False)
        assert returned == count
        some, returned = top(path, by, counts=True)
        assert some == every
        assert returned < count // 2


def test_a_packet_with_a_name_is_returned(tmp_path: Path) -> None:
    """The name that a TLS client asks for is found in any packet of a known flow, by `top` and in an index."""
    ends = "10.0.0.1", "192.0.2.7"
    start = section() + interface(opts=NANOSECONDS)
    others = packet(tcp(*ends, b""), process(7, "curl")) * 11 + packet(tcp(*ends, bytes(200)), process(7, "curl")) * 13
    path = tmp_path / "a.pcapng"
    path.write_bytes(start + others + packet(tcp(*ends, hello("a.example")), process(7, "curl")) + others)
    said, returned = top(path, "tgid", counts=True)
    assert '"a.example"' in said
    assert returned < 11
    assert [row.peer_name for row in index(path)] == ["a.example"]


def test_a_torn_file_is_counted_up_to_the_error(tmp_path: Path) -> None:
    """Wherever a file ends, and whatever length is wrong, the packets before the error are counted, and no others."""
    ends = "10.0.0.1", "192.0.2.7"
    start = section() + interface(opts=NANOSECONDS)
    one = packet(udp(*ends, size=100), process(7, "curl"))
    path = tmp_path / "a.pcapng"
    for bad in (one[:-1], one[:40], one[:8], one[:-4] + bytes(4), one[:4] + struct.pack("<I", len(one) + 2) + one[8:]):
        path.write_bytes(start + one * 23 + bad)
        for counts in (False, True):
            account = Account()
            sources = Sources([path], Selection(Selectors()), counted=account.counted if counts else None)
            account.read(sources.unordered())
            assert [each.packets for each in account.processes] == [23]
            assert [f"at byte {len(start) + 23 * len(one)}" in str(error) for error in sources.wrong] == [True]


def test_selected_packets_are_all_returned(tmp_path: Path) -> None:
    """With a selector, no packet is counted by the reader."""
    path = tmp_path / "a.pcapng"
    capture(path, "<")
    account = Account()
    sources = Sources([path], Selection(Selectors(tgids=frozenset({101}))), counted=account.counted)
    account.read(sources.unordered())
    with Reader(path) as reader:
        wanted = sum(stamp.tgid == 101 for _, stamp, *_ in reader.packets())
    assert [(each.tgid, each.packets) for each in account.processes] == [(101, wanted)]
