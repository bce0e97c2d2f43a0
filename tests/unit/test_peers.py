"""The peer of a frame, and what can be remembered of its flow."""

from __future__ import annotations

import random
from collections.abc import Hashable

from scapy.layers.dns import DNS, DNSQR, DNSRR
from scapy.layers.inet import IP, TCP, UDP, IPOption
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Raw

from skbcapd.analysis.names import Names
from skbcapd.analysis.peers import names_at, peer_of, starts_tls
from skbcapd.pcapng.flows import flow_key
from skbcapd.pcapng.link_type import ETHERNET, RAW
from tests.support.strangers import hello

ETHER = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")  # otherwise scapy asks the network


def frame(choice: random.Random) -> bytes:
    """A frame of few flows, with random other fields: IPv4 with and without options, IPv6, VLAN, ARP, or cut."""
    kind, start = choice.choice([(b"\x08\x00", 0x45), (b"\x08\x00", 0x46), (b"\x86\xdd", 0x60), (b"\x81\x00", 0x45)])
    header = bytearray(choice.randbytes(60))
    header[0], header[9] = start, choice.choice([1, 6, 17])
    header[6:8] = choice.choice([b"\x00\x00", b"\x40\x00", b"\x20\x00", b"\x20\x01", b"\x00\x07"])
    if start == 0x60:
        header[6] = choice.choice([6, 17, 58, 44])
    for at in (12, 16):
        header[at : at + 4] = bytes([10, 0, 0, choice.randrange(3)])
    header[20:24] = choice.choice([b"\x00\x35\x80\x00", b"\x80\x00\x00\x35", b"\x00\x00\x00\x07"])
    return (bytes(12) + kind + header)[: choice.choice([10, 33, 34, 37, 38, 39, 74])]


def test_the_bytes_of_a_flow_decide_about_its_peer() -> None:
    """Frames with the same bytes and direction have the same peer, whatever else is in them."""
    choice = random.Random(7)
    known: dict[Hashable, tuple[object, int]] = {}
    for _ in range(20_011):
        data, link_type, direction = memoryview(frame(choice)), choice.choice([ETHERNET, RAW]), choice.randrange(4)
        if (raw := flow_key(data, link_type)) is not None:
            found = peer_of(data, link_type, direction), names_at(raw, data)
            assert known.setdefault((raw, direction), found) == found
    assert len(known) > 100
    assert len({peer for peer, _ in known.values()}) > 20


def test_no_frame_with_a_name_is_left_out() -> None:
    """Where `names_at` says that there are none, `Names` finds none."""
    choice = random.Random(9)
    asked = {"qr": 1, "qdcount": 1, "ancount": 1, "qd": DNSQR(qname="example.com")}
    payloads = [
        bytes(DNS(an=DNSRR(rrname="example.com", rdata="192.0.2.1"), **asked)),
        hello("example.com"),
        b"nothing",
    ]
    found = 0
    for _ in range(1009):
        network = choice.choice(
            [
                IP(src="10.0.0.1", dst="192.0.2.9"),
                IP(src="10.0.0.1", dst="192.0.2.9", options=[IPOption(b"\x01")]),
                IPv6(src="::1", dst="::9"),
            ]
        )
        ports = {"sport": choice.choice([53, 9]), "dport": choice.choice([53, 9])}
        transport = choice.choice([UDP(**ports), TCP(**ports), TCP(**ports, options=[("Timestamp", (1, 2))])])
        head = ETHER / Dot1Q(vlan=3) / network if choice.random() < 0.3 else ETHER / network
        data = memoryview(bytes(head / transport / Raw(choice.choice(payloads)))[: choice.choice([60, 9999, 9999])])
        names = Names()
        names.see(data, ETHERNET)
        at = names_at(flow_key(data, ETHERNET), data)
        if names._found:
            found += 1
            assert at
            assert at < 0 or starts_tls(data, at)
    assert found > 50
