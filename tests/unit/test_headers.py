"""The offsets of headers, compared with scapy."""

from __future__ import annotations

import struct
from collections.abc import Callable
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt
from scapy.layers.l2 import CookedLinux, Loopback
from scapy.layers.sctp import SCTP
from scapy.packet import Packet, Raw

from skbcapd.frames import headers
from skbcapd.pcapng import link_type
from tests.support.headers import ETHER, FRAMES, V4, V6, header_end


@pytest.mark.parametrize("name", FRAMES)
def test_the_payload_begins_where_scapy_says(name: str) -> None:
    """All headers are recognized to their last byte; the rest is payload."""
    frame = bytes(FRAMES[name])
    size = len(FRAMES[name].lastlayer())
    found = headers.read(frame, link_type.ETHERNET)
    assert found.payload == len(frame) - size
    assert name == "authenticated" or found.payload == header_end(frame)  # scapy does not look behind AH
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
    header = struct.pack(">HHBBH", 7, 8, 4, 0, 0) + bytes(8)
    frame = bytes(ETHER / IP(src="10.0.0.1", dst="10.0.0.2", proto=33) / Raw(header + b"secret"))
    assert headers.read(frame, link_type.ETHERNET).payload == 14 + 20 + 16


@pytest.mark.parametrize("ip", [V4, V6], ids=["IPv4", "IPv6"])
def test_no_header_ends_after_its_packet(ip: Packet) -> None:
    """What follows the IP packet in a frame is no part of a header, whatever a header says."""
    tcp = bytearray(bytes(TCP(sport=7, dport=8)))
    tcp[12] = 0xF0  # 60 bytes
    for carried, kept in ((bytes(tcp), 0), (bytes(tcp)[:8], 8)):  # a wrong header; a fragment that ends in its header
        packet = ip.copy()
        packet.setfieldval("proto" if ip is V4 else "nh", 6)
        frame = bytes(ETHER / packet / Raw(carried))
        end = len(frame) - len(carried) + kept
        assert headers.read(frame + b"secret in the trailer".ljust(60), link_type.ETHERNET).payload == end


def test_no_extension_header_ends_after_its_packet() -> None:
    """An extension header that claims more bytes than its packet has is none."""
    frame = bytearray(bytes(ETHER / V6 / IPv6ExtHdrDestOpt() / UDP(sport=7, dport=8) / Raw(b"secret")))
    frame[14 + 40 + 1] = 9
    assert headers.read(bytes(frame) + bytes(200), link_type.ETHERNET).payload == 14 + 40


def test_a_packet_shorter_than_its_header_has_none() -> None:
    """An IPv4 packet whose length is smaller than its header is no packet."""
    frame = bytearray(bytes(FRAMES["ip options"]))
    frame[14 + 3] = 20
    frame[14 + 2] = 0
    assert headers.read(bytes(frame), link_type.ETHERNET).payload == 14


def _padded(text: bytes) -> bytes:
    return text + bytes(-len(text) % 4)


def _extension(kind: int, data: bytes) -> tuple[int, bytes]:
    """An IPv6 extension header without its first byte: its number, and the rest."""
    if kind == 44:
        return kind, bytes(7)
    if kind == 51:  # AH counts words of four bytes, without two of them
        data = data + bytes(-(2 + len(data)) % 4) + bytes(8)
        return kind, bytes([(2 + len(data)) // 4 - 2]) + data
    data = data + bytes(-(2 + len(data)) % 8)
    data = data or bytes(6)
    return kind, bytes([(2 + len(data)) // 8 - 1]) + data


TRANSPORTS: dict[int, Callable[[bytes], bytes]] = {
    6: lambda more: bytes(TCP(sport=7, dport=8, dataofs=5 + len(more) // 4)) + more,
    17: lambda _: bytes(UDP(sport=7, dport=8, len=99)),
    136: lambda _: bytes(UDP(sport=7, dport=8, len=99)),
    132: lambda _: bytes(SCTP(sport=7, dport=8)),
    33: lambda more: struct.pack(">HHBBH", 7, 8, 3 + len(more) // 4, 0, 0) + bytes(4) + more,
    1: lambda _: bytes(8),
    58: lambda _: bytes(8),
    47: lambda _: b"",
    50: lambda _: b"",
    4: lambda _: b"",
}
options = st.binary(max_size=40).map(_padded)
tags = st.lists(st.sampled_from([b"\x81\x00", b"\x88\xa8", b"\x91\x00"]), max_size=4)


@pytest.mark.fuzz
@given(
    tags=tags,
    ip=st.one_of(
        options,
        st.lists(
            st.builds(_extension, st.sampled_from([0, 43, 51, 60, 135, 139, 140]), st.binary(max_size=20)), max_size=5
        ),
    ),
    transport=st.sampled_from(sorted(TRANSPORTS)),
    more=options,
    fragment=st.sampled_from([0, 1, 9]),
    payload=st.binary(max_size=80),
    trailer=st.binary(max_size=30),
)
def test_headers_of_any_length(
    tags: list[bytes],
    ip: bytes | list[tuple[int, bytes]],
    transport: int,
    more: bytes,
    fragment: int,
    payload: bytes,
    trailer: bytes,
) -> None:
    """Whatever tags, options and extension headers a frame has, all headers and no byte more are recognized.

    `fragment` is 0, 1 for a first fragment, or the offset of a later one, which has no transport header.
    """
    made = TRANSPORTS[transport](more) if fragment < 9 else b""
    carried = made + payload
    link = bytes(ETHER)[:12] + b"".join(tag + b"\x00\x07" for tag in tags)
    if isinstance(ip, bytes):
        fields = {"flags": "MF"} if fragment == 1 else {"frag": fragment}
        header = bytes(
            IP(
                src="10.0.0.1",
                dst="10.0.0.2",
                ihl=5 + len(ip) // 4,
                len=20 + len(ip) + len(carried),
                proto=transport,
                **fields,
            )
        )
        frame = link + b"\x08\x00" + (headers_part := header + ip) + carried + trailer
    else:
        chain = [
            *ip,
            *([(44, b"\x00" + (fragment // 9 * 72 | fragment % 9).to_bytes(2, "big") + bytes(4))] if fragment else []),
        ]
        following = [kind for kind, _ in chain[1:]] + [transport]
        extensions = (
            b"".join(bytes([after]) + rest for (_, rest), after in zip(chain, following, strict=True)) if chain else b""
        )
        first = chain[0][0] if chain else transport
        header = bytes(IPv6(src="fd00::1", dst="fd00::2", nh=first, plen=len(extensions) + len(carried)))
        frame = (
            link
            + b"\x86\xdd"
            + (headers_part := header + extensions)
            + carried
            + (trailer if extensions or carried else b"")
        )
    assert headers.read(frame, link_type.ETHERNET).payload == len(link) + 2 + len(headers_part) + len(made)


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
