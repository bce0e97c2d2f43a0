"""Packets that repeat the bytes of an earlier one, which `top` counts with one look-up."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest
from scapy.layers.inet import TCP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from skbcapd.analysis.account import Account
from skbcapd.analysis.names import Names
from skbcapd.analysis.selectors import Selection, Selectors
from skbcapd.analysis.sources import Sources
from skbcapd.analysis.top import as_json
from skbcapd.fleet.index import index
from skbcapd.pcapng.flows import flow_key
from skbcapd.pcapng.granules import limit_of
from skbcapd.pcapng.link_type import ETHERNET
from skbcapd.pcapng.reader import Reader
from skbcapd.pcapng.repeats import Repeats
from tests.support.strangers import hello, interface, options, packet, section, udp

TURN_NS = 1 << 32  # after this, the upper half of a time changes
TIME_NS = 400_000_000 * TURN_NS
START = section() + interface(opts=options((9, b"\x09"))) * 2


class Watched(Repeats):
    """Adds up the bytes that were counted by rows."""

    size = 0

    def count(self, data: bytes, at: int, before: int) -> int:
        """As in `Repeats`."""
        after = super().count(data, at, before)
        self.size += after - at
        return after


def top(path: Path, *, counts: bool, by: str = "tgid") -> tuple[str, list[str], int]:
    """The output of `top --json`, the errors, and how many bytes were counted by rows."""
    names = Names()
    account = Account(by, names)
    account.counted = watched = Watched()
    sources = Sources([path], Selection(Selectors()), counted=watched if counts else None)
    account.read(sources.unordered())
    return "".join(as_json(account.processes, by, names)), [str(error) for error in sources.wrong], watched.size


def marks(tgid: int, direction: int = 2, number: int | None = 0, more: str = "") -> bytes:
    """The options of a packet of skbcapd; `number` is its identifier."""
    return options(
        (1, f"comm=p{tgid}{more}".encode()),
        (2, struct.pack("<I", direction)),
        *(() if number is None else ((5, struct.pack("<Q", number)),)),
        (8, struct.pack("<II", tgid, tgid + 1)),
    )


def tcp6(last: int, payload: bytes = b"") -> bytes:
    """A frame of TCP and IPv6."""
    ethernet = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
    return bytes(ethernet / IPv6(src="2001:db8::1", dst=f"2001:db8::{last}") / TCP(sport=40000) / Raw(payload))


def both(frame: bytes, at: int, to: int) -> list[bytes]:
    """Frames of TCP and of UDP with the same ports; `at` and `to`: where the protocol and the ports are."""
    return [
        frame[:at] + bytes([protocol]) + frame[at + 1 : to] + struct.pack(">HH", 40000, 80) + frame[to + 4 :]
        for protocol in (6, 17)
    ]


ONE = {
    "IPv4": packet(udp("10.0.0.1", "10.0.0.2"), marks(7), time=TIME_NS),
    "IPv6": packet(tcp6(2), marks(7), time=TIME_NS),
    "no identifier": packet(udp("10.0.0.1", "10.0.0.2"), marks(7, number=None), time=TIME_NS),
}


@pytest.mark.parametrize("kind", ONE)
def test_whatever_byte_differs_sums_are_those_of_all_packets(tmp_path: Path, kind: str) -> None:
    """Beside packets that repeat, others that differ from them in one bit are counted as if they were alone."""
    one, path = ONE[kind], tmp_path / "a.pcapng"
    for at in range(len(one)):
        for bit in (0, 4, 7):
            other = one[:at] + bytes([one[at] ^ 1 << bit]) + one[at + 1 :]
            path.write_bytes(START + one * 12 + (other + one) * 7)
            every = top(path, counts=False)
            some = top(path, counts=True)
            assert some[:2] == every[:2], (at, bit)
            assert some[2] >= 4 * len(one), (at, bit)


@pytest.mark.parametrize("frames", [both(udp("10.0.0.1", "10.0.0.2"), 23, 34), both(tcp6(2), 20, 54)])
def test_protocols_with_the_same_ports_are_told_apart(tmp_path: Path, frames: list[bytes]) -> None:
    """The first packet of UDP is seen after many of TCP that have the same addresses, ports and size."""
    first, second = (packet(frame, marks(7), time=TIME_NS) for frame in frames)
    path = tmp_path / "a.pcapng"
    path.write_bytes(START + first * 12 + second * 12)
    said, _, size = top(path, counts=True)
    assert said == top(path, counts=False)[0]
    assert all(f'"{service}"' in said for service in ("tcp/80", "udp/80"))
    assert size >= 14 * len(first)


def test_only_an_identifier_is_left_out(tmp_path: Path) -> None:
    """Options whose bytes repeat in a way that an identifier seems to be at its usual place, but is before it."""
    comment, value = options((1, b"comm=p7 tgid=7"))[:-4], b"\1\0\0\0EFGH"
    identifier, incoming = struct.pack("<HH", 5, 8), struct.pack("<HHI", 2, 4, 1)
    frame, path = udp("10.0.0.1", "10.0.0.2"), tmp_path / "a.pcapng"
    outgoing = struct.pack("<HHI", 2, 4, 2)
    twice = packet(frame, comment + (identifier + value) * 2 + outgoing, time=TIME_NS)
    first = packet(frame, comment + identifier + value + incoming[:4] + value + outgoing, time=TIME_NS)
    path.write_bytes(START + (twice * 12 + first * 12) * 2)
    assert top(path, counts=True)[:2] == top(path, counts=False)[:2]


@pytest.mark.parametrize("by", ["tgid", "peer", "process"])
def test_most_packets_are_counted_by_rows(tmp_path: Path, by: str) -> None:
    """Flows of several sizes, interfaces and processes, in no order of time, have the sums of all packets."""
    chance, data = random.Random(3), START
    for number in range(4001):
        tgid = chance.randrange(100, 106)
        ends = "10.0.0.1", f"10.0.0.{tgid}"
        frame = tcp6(tgid - 99, bytes(300)) if tgid == 103 else udp(*ends, size=chance.choice((60, 61, 600)))
        opts = marks(tgid, 1 + tgid % 2, None if tgid == 104 else number, " unit=a.service" if tgid == 105 else "")
        time_ns = TIME_NS + chance.randrange(3 * TURN_NS)
        data += packet(frame, opts, number=tgid % 2, time=time_ns, wire_len=len(frame) + tgid % 3)
    path = tmp_path / "a.pcapng"
    path.write_bytes(data)
    every, some = top(path, counts=False, by=by), top(path, counts=True, by=by)
    assert some[:2] == every[:2]
    assert some[2] > len(data) * 0.9


def test_packets_that_repeat_nothing_are_counted_too(tmp_path: Path) -> None:
    """Where no packet repeats an earlier one, rows are given up for a while, and sums are right."""
    data = START
    for number in range(4001):
        data += packet(udp("10.0.0.1", "10.0.0.2", 60 + number % 1301), marks(7, number=number), time=TIME_NS + number)
    path = tmp_path / "a.pcapng"
    path.write_bytes(data)
    every, some = top(path, counts=False), top(path, counts=True)
    assert some[:2] == every[:2]
    assert some[2] < len(data) / 2


def test_more_flows_than_are_remembered(tmp_path: Path) -> None:
    """The sums of rows are in those of their flows when the flows are forgotten."""
    data, again = bytearray(START), packet(udp("10.0.0.1", "10.0.0.2"), marks(7), time=TIME_NS)
    for number in range(33_000):
        frame = udp("10.0.0.1", "10.0.0.3")
        data += packet(frame[:26] + struct.pack("<I", number) + frame[30:], marks(7), time=TIME_NS) + again * 2
    path = tmp_path / "a.pcapng"
    path.write_bytes(bytes(data) + again * 3)
    every, some = top(path, counts=False), top(path, counts=True)
    assert some[:2] == every[:2]
    assert some[2] > 1000 * len(again)


def test_a_name_in_a_packet_that_repeats_is_found(tmp_path: Path) -> None:
    """A TLS client's first packet is read, although packets of the same size and flow are counted by rows."""
    first = hello("a.example")
    other, named = (packet(tcp6(2, payload), marks(7), time=TIME_NS) for payload in (bytes(len(first)), first))
    path = tmp_path / "a.pcapng"
    path.write_bytes(START + other * 12 + named + other * 12)
    said, _, size = top(path, counts=True)
    assert '"a.example"' in said
    assert said == top(path, counts=False)[0]
    assert size >= 14 * len(other)


def rows_of_all_packets(path: Path) -> list[list[int]]:
    """What `index` says of each granule, process and flow, computed from all packets: first and last time in
    microseconds, first and last offset, packets and bytes.
    """
    found: dict[object, list[int]] = {}
    limit = begin = 0
    with Reader(path) as reader:
        for _, stamp, time_ns, wire_len, frame, _ in reader.packets():
            if reader.at >= limit:
                limit, begin = limit_of(reader.at), reader.at
            at, key = reader.at - begin, (begin, stamp.tgid, flow_key(frame, ETHERNET))
            row = found.setdefault(key, [time_ns, time_ns, at, at, 0, 0])
            row[:] = min(row[0], time_ns), max(row[1], time_ns), row[2], at, row[4] + 1, row[5] + wire_len
    return [[first // 1000, -(-last // 1000), *others] for first, last, *others in found.values()]


@pytest.mark.parametrize("seed", range(5))
def test_rows_of_an_index_are_those_of_all_packets(tmp_path: Path, seed: int) -> None:
    """Packets that repeat, in several granules, in no order of time, with and without identifiers, have the rows that
    follow from reading each packet.
    """
    chance, data = random.Random(seed), START
    frames = [udp("10.0.0.1", f"10.0.0.{number}", size) for number in range(2, 7) for size in (60, 601, 900)]
    frames += [tcp6(number, bytes(300)) for number in range(1, 4)]
    while len(data) < 3 << 20:
        tgid, frame = chance.randrange(100, 106), chance.choice(frames)
        opts = marks(tgid, 2, chance.choice((None, len(data))))
        time_ns = TIME_NS + chance.randrange(3 * TURN_NS)
        data += packet(frame, opts, time=time_ns, wire_len=len(frame) + tgid % 3) * chance.choice((1, 1, 5))
    path = tmp_path / "a.pcapng"
    path.write_bytes(data)
    made = [
        [row.ts_first, row.ts_last, row.first_at, row.last_at, row.packets_out, row.bytes_out] for row in index(path)
    ]
    assert made == rows_of_all_packets(path)
