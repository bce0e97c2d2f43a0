"""Names of addresses, from real DNS messages (scapy's) and real TLS clients (OpenSSL's)."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.dns import DNS, DNSQR, DNSRR
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Packet, Raw

from skbcapd.analysis.names import Names
from tests.support.strangers import hello

ETHER = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
V4, V6 = IP(src="10.0.0.53", dst="10.0.0.1"), IPv6(src="fd00::1", dst="fd00::2")


def seen(*frames: Packet | bytes) -> Names:
    """The names in some frames."""
    names = Names()
    for frame in frames:
        names.see(memoryview(bytes(frame)), 1)
    return names


def of(names: Names, address: str) -> list[str]:
    """The names of an address."""
    return names.of(ip_address(address).packed)


def answer(*records: Packet, name: str = "Example.com", **flags: int) -> Packet:
    """A DNS answer."""
    message = DNS(qr=1, qd=DNSQR(qname=name), **flags)
    if records:
        chain = records[0]
        for record in records[1:]:
            chain /= record
        message.an, message.ancount = chain, len(records)
    return ETHER / V4 / UDP(sport=53, dport=40000) / message


def record(name: str, kind: str, value: str) -> Packet:
    """A resource record."""
    return DNSRR(rrname=name, type=kind, rdata=value, ttl=60)


def test_dns_answers() -> None:
    """An address has the name that was asked for, also over aliases, for IPv4 and IPv6."""
    names = seen(
        answer(
            record("example.com", "CNAME", "cdn.example.net"),
            record("cdn.example.net", "A", "192.0.2.1"),
            record("CDN.example.net", "A", "192.0.2.2"),
        ),
        answer(record("example.com", "AAAA", "2001:db8::1")),
        answer(record("other.example", "A", "192.0.2.1"), name="other.example"),
    )
    assert of(names, "192.0.2.1") == ["example.com", "other.example"]
    assert of(names, "192.0.2.2") == of(names, "2001:db8::1") == ["example.com"]
    assert of(names, "192.0.2.3") == []


@pytest.mark.parametrize(
    "frame",
    [
        answer(record("evil.example", "A", "192.0.2.1")),
        answer(record("example.com", "A", "192.0.2.1"), rcode=3),
        answer(record("example.com", "A", "192.0.2.1"), tc=1),
        answer(record("a b", "A", "192.0.2.1"), name="a b"),
        answer(),
        ETHER
        / V4
        / UDP(sport=53, dport=9)
        / DNS(qd=DNSQR(qname="example.com"), an=record("example.com", "A", "192.0.2.1"), ancount=1),
        ETHER / V4 / UDP(sport=54, dport=53) / bytes(answer(record("example.com", "A", "192.0.2.1"))[DNS]),
    ],
    ids=["another name", "an error", "truncated", "no host name", "empty", "a question", "from another port"],
)
def test_what_names_nothing(frame: Packet) -> None:
    """An answer to something else, an error, a question: none of these names an address."""
    assert of(seen(frame), "192.0.2.1") == []


@pytest.mark.parametrize("network", [V4, V6, Dot1Q(vlan=7) / V6], ids=["IPv4", "IPv6", "VLAN"])
def test_server_names(network: Packet) -> None:
    """The server of a TLS client has the name that the client asks for."""
    frame = ETHER / network / TCP(sport=40000, dport=8443) / Raw(hello("WWW.example.com"))
    assert of(seen(frame), frame.lastlayer().underlayer.underlayer.dst) == ["www.example.com"]
    assert of(seen(ETHER / network / TCP(dport=443) / Raw(hello(None))), frame[TCP].underlayer.dst) == []


def test_what_is_kept_is_bounded() -> None:
    """An address has eight names at most."""
    frames = [answer(record(f"{n}.example", "A", "192.0.2.1"), name=f"{n}.example") for n in range(17)]
    assert of(seen(*frames), "192.0.2.1") == [f"{n}.example" for n in range(8)]


def test_frames_that_were_cut() -> None:
    """However short a message is, there is the right name or none."""
    frames = [
        bytes(answer(record("example.com", "A", "192.0.2.1"))),
        bytes(ETHER / V4 / TCP(dport=443) / Raw(hello("example.com"))),
    ]
    for frame, address in zip(frames, ("192.0.2.1", "10.0.0.1"), strict=True):
        for size in range(len(frame)):
            assert of(seen(frame[:size]), address) in ([], ["example.com"])


@pytest.mark.fuzz
@given(
    st.binary(max_size=300),
    st.sampled_from([bytes(ETHER / V4 / UDP(sport=53, dport=9)), bytes(ETHER / V4 / TCP(dport=443)) + b"\x16\x03"]),
)
def test_any_message(message: bytes, head: bytes) -> None:
    """Bytes that are no message harm nobody."""
    seen(head + message)


def test_pointers_that_lead_in_a_circle() -> None:
    """A name that never ends is none."""
    frame = bytes(
        ETHER / V4 / UDP(sport=53, dport=9) / Raw(bytes.fromhex("000080000001000100000000") + b"\xc0\x0c\0\1\0\1")
    )
    assert of(seen(frame), "192.0.2.1") == []
