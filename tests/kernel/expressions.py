"""Packet filter expressions: those of pcap-filter(7), by kind, and random ones; and frames for
them.

The frames are made by scapy: some that each kind of expression takes, all of them also cut short at
every place where a header may begin or end.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

from scapy.contrib.mpls import MPLS
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
)
from scapy.layers.l2 import ARP, LLC, STP, Dot1AD, Dot1Q, Dot3, Ether
from scapy.layers.ppp import PPPoE, PPPoED
from scapy.layers.sctp import SCTP
from scapy.packet import Packet, Raw

from tests.support.amount import tries

ETHERNET, RAW = 1, 101
RANDOM = tries(211, 100)


class Frame(NamedTuple):
    """A frame, or its first bytes."""

    link_type: int
    data: bytes
    wire_len: int


HOSTS = ("10.0.0.1", "10.0.0.2", "192.168.178.24", "224.0.0.251", "255.255.255.255")
HOSTS6 = ("2001:db8::1", "2001:db8::2", "fe80::1", "ff02::fb")
MACS = ("02:00:00:00:00:01", "02:00:00:00:00:02", "ff:ff:ff:ff:ff:ff", "01:00:5e:00:00:fb")
PORTS = (22, 53, 443, 5432, 51207)

# Parts of pcap-filter(7): TYPE, DIR and PROTO, combined; then expressions without a qualifier.
_QUALIFIED = [
    *(f"{way}host {host}" for way, host in product(("", "src ", "dst ", "src and dst "), (*HOSTS[:3], *HOSTS6[:2]))),
    *(f"{proto} host {host}" for proto, host in product(("ip", "arp", "rarp"), HOSTS[:2])),
    *(f"ip6 src host {host}" for host in HOSTS6),
    *(f"{way}net {net}" for way, net in product(("", "src ", "dst "), ("10.0.0.0/8", "192.168", "2001:db8::/32"))),
    "net 10.0.0.0 mask 255.0.0.0",
    "net 10",
    *(
        f"{proto}{way}port {port}"
        for proto, way, port in product(("", "tcp ", "udp ", "sctp "), ("", "src "), PORTS[:3])
    ),
    *(f"{proto}{way}portrange 50-500" for proto, way in product(("", "tcp ", "udp "), ("", "src ", "dst "))),
    *(f"{way} {mac}" for way, mac in product(("ether host", "ether src", "ether dst"), MACS[:3])),
    *(f"{proto} proto {number}" for proto, number in product(("ip", "ip6"), ("1", "6", "17", "0", "44", "\\icmp"))),
    *(f"{proto} protochain {number}" for proto, number in product(("ip", "ip6"), ("6", "17", "51", "58"))),
    *(f"ether proto {number}" for number in ("0x0800", "0x86dd", "0x0806", "0x8100", "\\ip", "\\arp", "0x42", "\\stp")),
    "proto 17",
    "protochain 6",
]
_ALONE = [
    *("ip", "ip6", "arp", "rarp", "tcp", "udp", "icmp", "icmp6", "igmp", "sctp", "ah", "esp", "pim", "vrrp", "igrp"),
    *("ip broadcast", "ether broadcast", "broadcast", "multicast", "ip multicast", "ip6 multicast", "ether multicast"),
    *("atalk", "aarp", "decnet", "iso", "stp", "ipx", "netbeui", "lat", "moprc", "mopdl", "llc", "llc u", "llc i"),
    *("llc s", "llc ui", "llc rr", "is-is", "esis", "clnp"),
    *("less 60", "greater 60", "len > 100", "len = 42", "len & 1 = 0", "less 0", "greater 9000"),
    *("vlan", "vlan 5", "vlan 100", "vlan 5 and ip", "vlan and vlan", "vlan 100 and vlan 5", "vlan and tcp port 443"),
    *("not vlan", "ip or (vlan and ip)", "vlan 5 or vlan 100", "tcp port 443 or (vlan and tcp port 443)"),
    *("mpls", "mpls 1024", "mpls and mpls 1025", "mpls 1024 and host 10.0.0.1", "mpls and ip6"),
    *("pppoed", "pppoes", "pppoes 7", "pppoes and ip", "pppoes and tcp port 443", "vlan 5 and pppoes"),
    *("geneve", "geneve 7"),
    *("tcp[tcpflags] & (tcp-syn|tcp-fin) != 0", "tcp[tcpflags] == tcp-ack", "icmp[icmptype] == icmp-echo"),
    *("icmp[icmptype] != icmp-echoreply", "icmp[icmpcode] = 0", "icmp6[icmp6type] = icmp6-echo", "icmp6[0] = 128"),
    *("tcp[13] = 2", "ip[6:2] & 0x1fff = 0", "ip[0] & 0xf != 5", "ip6[6] = 17", "ether[0] & 1 = 0 and ip[16] >= 224"),
    "tcp port 443 and (((ip[2:2] - ((ip[0]&0xf)<<2)) - ((tcp[12]&0xf0)>>2)) != 0)",
    "tcp[((tcp[12:1] & 0xf0) >> 2):4] = 0x47455420",
    "udp[8:4] = 0x78787878",
    "udp[4:2] > 30",
    "ether[12:2] = 0x8100 and ether[16:2] = 0x0800",
    "ether[len - 1] = 0x78",
    "ether[len - 4:4] = 0x78787878",
    "ether[len] = 0",
    "ip[ip[2:2] - 1] = 0x78",
    "ip[0xffffffff] = 0",
    "ip[len - len - 2:2] = 0x0800",  # X + k beyond 32 bits
    "ip[ip[8] - ip[8] - 2:2] != 0x0800",
    "ip[65535:4] = 0",
    "1 = 1",
    "1 = 0",
    "len / 2 * 2 = len",
    "len % 7 = 3",
    "len << 33 = 0",
    "len / (ip[0] & 0) = 1",
    "1 << ip[8] = 0",
    "ip[8] >> ip[9] = 0",
    "-ip[8] > 0",
    "link[0] = 2",
    "",
    "tcp port 443 and not host 10.0.0.1",
    "host 10.0.0.1 and (port 22 or 443)",
    "not (tcp or udp)",
    "! arp && ! ip6",
    "tcp src port 443 or dst port 53 and udp",
    "gateway 10.0.0.1",
    "ip host 10.0.0.1 and not 10.0.0.2",
    "(udp or tcp) and (src portrange 1-1023 or dst portrange 1-1023)",
    "src net 10.0.0.0/30 and dst net 192.168.178.0/24",
    " or ".join(f"host 10.0.0.{number}" for number in range(1, 101)),
    " and ".join(f"not port {number}" for number in range(50, 90)),
]
WRITTEN = (*_QUALIFIED, *_ALONE)


def drawn(seed: int) -> Iterator[str]:
    """Random expressions, endlessly."""
    dice = random.Random(seed)
    while True:
        yield _boolean(dice, 3)


def _boolean(dice: random.Random, depth: int) -> str:
    if depth and dice.random() < 0.6:
        left, right = _boolean(dice, depth - 1), _boolean(dice, depth - 1)
        return f"({left}) {dice.choice(('and', 'or', 'and not', 'or not'))} ({right})"
    if dice.random() < 0.5:
        return dice.choice(_QUALIFIED + _ALONE[:45])
    comparison = dice.choice(("=", "!=", "<", ">", "<=", ">="))
    return f"{_number(dice, 2)} {comparison} {_number(dice, 1)}"


def _number(dice: random.Random, depth: int) -> str:
    kind = dice.random()
    if depth and kind < 0.5:
        operation = dice.choice(("+", "-", "*", "/", "%", "&", "|", "^", "<<", ">>"))
        return f"({_number(dice, depth - 1)} {operation} {_number(dice, depth - 1)})"
    if kind < 0.8:
        proto = dice.choice(("ether", "ip", "ip6", "tcp", "udp", "icmp", "link", "arp"))
        at = str(dice.choice((*range(24), 40, 63, 64, 200))) if dice.random() < 0.8 else _number(dice, 1)
        return f"{proto}[{at}:{dice.choice((1, 2, 4))}]"
    if kind < 0.85:
        return "len"
    return str(dice.choice((0, 1, 2, 3, 5, 8, 15, 31, 32, 33, 64, 255, 0x800, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)))


def _addressed() -> Iterator[Packet]:
    """IP packets between the hosts, of all protocols."""
    payload = Raw(b"x" * 43)
    inner = [UDP(sport=PORTS[4], dport=53) / payload, TCP(sport=443, dport=PORTS[4], flags="SA"), ICMP() / payload]
    for source, target in product(HOSTS[:3], HOSTS):
        yield from (IP(src=source, dst=target) / each for each in inner)
    yield IP(src=HOSTS[0], dst=HOSTS[2]) / SCTP(sport=22, dport=443)
    yield (
        IP(src=HOSTS[0], dst=HOSTS[2]) / TCP(sport=60, dport=443, flags="PA", options=[("NOP", 0)] * 20) / Raw(b"GET /")
    )
    yield IP(src=HOSTS[0], dst=HOSTS[2], options=[b"\x01"] * 40) / inner[1]
    yield IP(src=HOSTS[0], dst=HOSTS[2], flags="MF") / inner[0]
    yield IP(src=HOSTS[0], dst=HOSTS[2], frag=185) / Raw(bytes(range(64)))
    yield from (IP(src=HOSTS[1], dst=HOSTS[0], proto=number) / payload for number in (0, 2, 9, 50, 51, 103, 112))
    yield IP(src=HOSTS[0], dst=HOSTS[2], proto=51) / Raw(b"\x11\x04" + bytes(22) + bytes(inner[0]))
    for source, target in product(HOSTS6[:3], HOSTS6):
        yield from (IPv6(src=source, dst=target) / each for each in inner[:2])
        yield IPv6(src=source, dst=target) / ICMPv6EchoRequest(data=b"x")
    for header in (IPv6ExtHdrHopByHop(), IPv6ExtHdrDestOpt(), IPv6ExtHdrRouting(addresses=[HOSTS6[2]])):
        yield IPv6(src=HOSTS6[0], dst=HOSTS6[1]) / header / inner[0]
        yield IPv6(src=HOSTS6[0], dst=HOSTS6[1]) / header / IPv6ExtHdrDestOpt() / inner[1]
    yield IPv6(src=HOSTS6[0], dst=HOSTS6[1]) / IPv6ExtHdrFragment(m=1) / inner[0]


def frames() -> list[Frame]:
    """Frames of both link types, complete and cut."""
    dice = random.Random(59)
    packets = list(_addressed())
    raw = [bytes(packet) for packet in packets] + [b"", b"\x45", b"\x60" * 40, bytes(64), dice.randbytes(97)]
    ether = [Ether(src=MACS[0], dst=dice.choice(MACS)) / packet for packet in packets]
    first = packets[0]
    tcp = IP(src=HOSTS[0], dst=HOSTS[1]) / TCP(sport=443, dport=22, flags="S")
    ether += [
        Ether(src=MACS[1], dst=MACS[2]) / each
        for each in (
            *(ARP(psrc=HOSTS[0], pdst=HOSTS[1]), ARP(psrc=HOSTS[2], pdst=HOSTS[0], op=2)),
            *(
                Dot1Q(vlan=5) / first,
                Dot1Q(vlan=100) / tcp,
                Dot1Q(vlan=5) / ARP(),
                Dot1Q(vlan=100) / Dot1Q(vlan=5) / tcp,
            ),
            *(Dot1AD(vlan=100) / Dot1Q(vlan=5) / first, Dot1Q(vlan=5) / IPv6(src=HOSTS6[0]) / TCP(dport=443)),
            *(MPLS(label=1024, s=1) / first, MPLS(label=1024, s=0) / MPLS(label=1025, s=1) / tcp),
            MPLS(label=7, s=1) / IPv6(src=HOSTS6[0]) / UDP(),
            *(PPPoE(sessionid=7) / Raw(b"\x00\x21" + bytes(tcp)), PPPoED(), Dot1Q(vlan=5) / PPPoE() / Raw(b"\x00\x57")),
            *(
                Raw(bytes(50)),
                IP(dst=HOSTS[3]) / UDP(dport=6081) / Raw(b"\0\0\x65\x58\0\0\x07\0" + bytes(Ether() / tcp)),
            ),
        )
    ]
    ether += [
        Dot3(src=MACS[0], dst=MACS[1]) / LLC(dsap=dsap, ssap=dsap, ctrl=control) / STP()
        for dsap, control in product((0x42, 0xFE, 0xAA, 0xE0, 0xF0), (3, 0, 1, 5))
    ]
    whole = [(RAW, data) for data in raw] + [(ETHERNET, bytes(packet)) for packet in ether]
    whole += [(ETHERNET, data) for data in (b"", b"\x02", bytes(14), dice.randbytes(14), dice.randbytes(1514))]
    found = [Frame(link, data, len(data)) for link, data in whole]
    places = (1, 4, 9, 12, 13, 14, 19, 20, 21, 23, 24, 33, 34, 35, 37, 38, 41, 47, 54, 58, 60)
    for link, data in whole[:: len(whole) // 12]:
        found += [Frame(link, data[:place], len(data)) for place in places if place < len(data)]
    return found
