"""A capture with something for every selector, put together by scapy and by hand."""

from __future__ import annotations

import random
import struct
from pathlib import Path

from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment, IPv6ExtHdrHopByHop
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.packet import Raw

from tests.support.strangers import comment, interface, options, packet, process, section

BEGIN_NS = 1_622_469_600_000_000_000
STEP_NS = 1_000_003
COUNT = 1009
PROCESSES = (
    (7, "curl", " unit=ssh.service user=root"),
    (8, "nginx", " container=web pod=prod/web/nginx"),
    (9, "isc-net-0000", " process=dig user=me"),
    (4294967, "curlew", ""),
)
NAMES = (("eth0", "network namespace of init"), ("eth0", "network namespace web"), ("wg0", "network namespace of init"))


def described(name: str, namespace: str, link_type: int = 1) -> bytes:
    """An interface of ours."""
    return interface(link_type=link_type, opts=options((2, name.encode()), (3, namespace.encode()), (9, b"\x09")))


def frames() -> list[bytes]:
    """One frame of each kind, with an Ethernet header."""
    ether, text = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02"), Raw(b"payload")
    ipv4 = [IP(src="10.0.0.1", dst=f"10.0.{number}.2") for number in range(3)]
    ipv6 = IPv6(src="fd00::1", dst="fd00:0:0:1::2")
    made = [
        ether / ipv4[0] / TCP(sport=40000, dport=443) / text,
        ether / ipv4[1] / TCP(sport=80, dport=40001, options=[("Timestamp", (1, 2))]) / text,
        ether / ipv4[2] / UDP(sport=53, dport=5353) / text,
        ether / ipv6 / TCP(sport=443, dport=8005),
        ether / ipv6 / IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt() / UDP(sport=9, dport=443) / text,
        ether / ipv6 / IPv6ExtHdrFragment(offset=3, id=7, nh=17) / Raw(b"\x01\xbb\x01\xbbxxxx"),
        ether / Dot1Q(vlan=7) / ipv4[0] / UDP(sport=8010, dport=53) / text,
        ether / Dot1Q(vlan=7) / Dot1Q(vlan=8) / ipv6 / TCP(sport=1, dport=2) / text,
        ether / ipv4[0] / ICMP() / text,
        ether / ipv6 / ICMPv6EchoRequest() / text,
        ether / IP(src="10.0.0.1", dst="10.0.1.2", frag=9, proto=6) / Raw(b"\x01\xbb\x01\xbb" * 4),
        ether / ARP(psrc="10.0.0.1", pdst="10.0.0.2", hwsrc="02:00:00:00:00:01"),
        Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02", type=0x88B5) / text,
    ]
    return [bytes(one) for one in made]


def write(path: Path, *, first: int = 0, count: int = COUNT, step_ns: int = STEP_NS, begin_ns: int = BEGIN_NS) -> None:
    """A file with these packets of the capture."""
    kinds = frames()
    chosen = random.Random(7)
    content = [section(), *(described(*names) for names in NAMES[:2]), described(*NAMES[2], link_type=101)]
    for number in range(first + count):
        frame, who, direction = chosen.choice(kinds), chosen.randrange(len(PROCESSES) + 1), chosen.randrange(3)
        place = chosen.randrange(3)
        if place == 2:
            frame = bytes(IP(src="10.0.0.1", dst="10.0.2.2") / UDP(sport=53, dport=number) / Raw(bytes(number % 97)))
        if who < len(PROCESSES):
            tgid, comm, more = PROCESSES[who]
            opts = process(tgid, comm, direction, more)
        else:
            opts = comment(b"via=kernel", (2, struct.pack("<I", direction)))
        if number >= first:
            content.append(packet(frame, opts, number=place, time=begin_ns + number * step_ns))
    path.write_bytes(b"".join(content))
