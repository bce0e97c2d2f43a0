"""The offsets of headers, compared with scapy."""

from __future__ import annotations

import struct
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_RR
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
)
from scapy.layers.ipsec import AH
from scapy.layers.l2 import ARP, CookedLinux, Dot1AD, Dot1Q, Ether, Loopback
from scapy.layers.sctp import SCTP
from scapy.packet import Packet, Raw

from skbcapd.frames import headers
from skbcapd.pcapng import link_type

TEXT = Raw(b"secret!")
# Both addresses are given: scapy would look them up on the network.
ETHER = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
V4, V6 = IP(src="10.0.0.1", dst="10.0.0.2"), IPv6(src="fd00::1", dst="fd00::2")
FRAMES: dict[str, Packet] = {
    "tcp": ETHER / V4 / TCP(sport=7, dport=8) / TEXT,
    "tcp options": ETHER / V4 / TCP(sport=7, dport=8, options=[("MSS", 1460), ("SAckOK", b"")]) / TEXT,
    "ip options": ETHER / IP(src="10.0.0.1", dst="10.0.0.2", options=[IPOption_RR()]) / UDP(sport=7, dport=8) / TEXT,
    "vlan": ETHER / Dot1Q(vlan=7) / V4 / TCP(sport=7, dport=8) / TEXT,
    "qinq": ETHER / Dot1AD(vlan=7) / Dot1Q(vlan=8) / V6 / UDP(sport=7, dport=8) / TEXT,
    "udp": ETHER / V4 / UDP(sport=7, dport=8) / TEXT,
    "icmp": ETHER / V4 / ICMP() / TEXT,
    "sctp": ETHER / V4 / SCTP(sport=7, dport=8) / Raw(b"chunk"),
    "v6": ETHER / V6 / TCP(sport=7, dport=8) / TEXT,
    "extensions": ETHER / V6 / IPv6ExtHdrHopByHop() / IPv6ExtHdrRouting(addresses=["fd00::3"]) / IPv6ExtHdrDestOpt()
    / UDP(sport=7, dport=8) / TEXT,
    "first fragment": ETHER / V6 / IPv6ExtHdrFragment(m=1) / UDP(sport=7, dport=8) / TEXT,
    "icmp6": ETHER / V6 / ICMPv6EchoRequest(data=b"") / TEXT,
    "authenticated": ETHER
    / IP(src="10.0.0.1", dst="10.0.0.2", proto=51)
    / AH(nh=17, payloadlen=4, spi=1, seq=1, icv=b"x" * 12) / UDP(sport=7, dport=8) / TEXT,
    "no transport header": ETHER / IP(src="10.0.0.1", dst="10.0.0.2", proto=253) / TEXT,
    "gre": ETHER / IP(src="10.0.0.1", dst="10.0.0.2", proto=47) / TEXT,
    "arp": ETHER / ARP(psrc="10.0.0.1", pdst="10.0.0.2", hwsrc="02:00:00:00:00:01") / TEXT,
    "other": Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02", type=0x88B5) / TEXT,
    "later fragment": ETHER / IP(src="10.0.0.1", dst="10.0.0.2", frag=9, proto=17) / TEXT,
    "later fragment of v6": ETHER / V6 / IPv6ExtHdrFragment(offset=9, nh=17) / TEXT,
}  # fmt: skip


@pytest.mark.parametrize("name", FRAMES)
def test_the_payload_begins_where_scapy_says(name: str) -> None:
    """All headers are recognized to their last byte; the rest is payload."""
    frame = bytes(FRAMES[name])
    size = len(FRAMES[name].lastlayer())
    found = headers.read(frame, link_type.ETHERNET)
    assert frame[found.payload :] == frame[len(frame) - size :]
    with_ports = any(FRAMES[name].haslayer(each) for each in (TCP, UDP, SCTP))
    assert headers.ports(frame, found) == ((7, 8) if with_ports else None)
    assert found.is_later == name.startswith("later")
    inner = FRAMES[name].getlayer(IP) or FRAMES[name].getlayer(IPv6)
    if inner is None:
        assert headers.addresses(frame, found) is None
    else:
        ends = headers.addresses(frame, found)
        assert ends is not None
        assert [str(ip_address(end)) for end in ends] == [inner.src, inner.dst]


@pytest.mark.parametrize("name", [name for name in FRAMES if name not in {"arp", "other", "vlan", "qinq"}])
@pytest.mark.parametrize("link", [link_type.RAW, link_type.LINUX_SLL, link_type.LOOP, link_type.LINUX_SLL2])
def test_link_types(link: int, name: str) -> None:
    """The same packet is found after each link-layer header."""
    ip = bytes(FRAMES[name])[14:]
    kind = 0x0800 if ip[0] >> 4 == 4 else 0x86DD
    head = {
        link_type.RAW: b"",
        link_type.LINUX_SLL: bytes(CookedLinux(proto=kind)),
        link_type.LOOP: bytes(Loopback(type=2 if kind == 0x0800 else 24)),
        link_type.LINUX_SLL2: kind.to_bytes(2, "big") + bytes(18),
    }[link]
    plain, found = headers.read(ip, link_type.RAW), headers.read(head + ip, link)
    assert (found.kind, found.protocol, found.is_later) == (plain.kind, plain.protocol, plain.is_later)
    assert (found.network, found.payload) == (len(head), len(head) + plain.payload)


@pytest.mark.parametrize("name", FRAMES)
def test_a_frame_that_was_cut(name: str) -> None:
    """In a frame that was cut, no offset is outside of it, and payload is not read as a header."""
    frame = bytes(FRAMES[name])
    whole = headers.read(frame, link_type.ETHERNET)
    for size in range(len(frame)):
        found = headers.read(frame[:size], link_type.ETHERNET)
        assert 0 <= found.network <= size
        assert 0 <= found.transport <= size or found.protocol == -1
        assert found.payload <= min(size, whole.payload)


def test_headers_that_make_no_sense_are_payload() -> None:
    """An IP or TCP header of wrong length is not a header: its content can be anything."""
    ip, tcp = bytearray(bytes(FRAMES["tcp"])), bytearray(bytes(FRAMES["tcp"]))
    ip[14] = 0x44
    assert headers.read(bytes(ip), link_type.ETHERNET).payload == 14
    tcp[14 + 20 + 12] = 0x40
    assert headers.read(bytes(tcp), link_type.ETHERNET).payload == 14 + 20
    assert headers.read(bytes(tcp), 105).payload == 0


def test_dccp_says_its_length() -> None:
    """The length of a DCCP header is in words of four bytes."""
    frame = (
        bytes(ETHER / IP(src="10.0.0.1", dst="10.0.0.2", proto=33))
        + struct.pack(">HHBBH", 7, 8, 4, 0, 0)
        + bytes(8)
        + b"secret"
    )
    assert headers.read(frame, link_type.ETHERNET).payload == 14 + 20 + 16


@pytest.mark.fuzz
@given(frame=st.binary(max_size=200), link=st.sampled_from([*link_type.LINK_TYPES, *link_type.FOREIGN]))
def test_any_bytes(frame: bytes, link: int) -> None:
    """Bytes that are no frame raise nothing, and no offset is outside of them."""
    found = headers.read(frame, link)
    assert 0 <= found.network <= found.payload <= len(frame)
    assert found.transport <= len(frame)
    headers.addresses(frame, found)
    headers.ports(frame, found)


@pytest.mark.fuzz
@given(tail=st.binary(max_size=120), kind=st.sampled_from([b"\x08\x00", b"\x86\xdd", b"\x08\x06", b"\x81\x00"]))
def test_any_bytes_after_a_type(tail: bytes, kind: bytes) -> None:
    """The same after an Ethernet header, where more of them are read."""
    test_any_bytes.hypothesis.inner_test(bytes(12) + kind + tail, link_type.ETHERNET)
