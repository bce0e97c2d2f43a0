"""Where the headers of a frame end: frames made with scapy, and scapy as the judge of any frame.

Shares no code with skbcapd/frames/headers.py and bpf/payload.h. What the judge knows as headers is
what docs/privacy.md says: link layer, ARP, one IP header with its extension headers, a transport header.
"""

from __future__ import annotations

from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_RR
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    _IPv6ExtHdr,
)
from scapy.layers.ipsec import AH
from scapy.layers.l2 import ARP, Dot1AD, Dot1Q, Dot3, Ether
from scapy.layers.sctp import SCTP
from scapy.packet import Packet, Raw

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

_ETHERNET, _RAW = 1, 101
_LONGEST = 600  # bytes of a frame that have its headers
_ICMP_LEN = 8


def header_end(frame: bytes, link_type: int = _ETHERNET) -> int:
    """The number of bytes before the payload of a frame, as scapy dissects it (but not behind AH).

    Args:
        frame: captured completely.
        link_type: Ethernet or raw IP.
    """
    start = frame[:_LONGEST]
    layer: Packet = Ether(start) if link_type == _ETHERNET else {4: IP, 6: IPv6}[frame[0] >> 4](start)
    assert link_type in {_ETHERNET, _RAW}
    end, has_network = 0, False
    while isinstance(layer, (Ether, Dot3, Dot1Q, ARP, IP, IPv6, _IPv6ExtHdr, TCP, UDP, SCTP, ICMP)) or _is_icmp6(layer):
        if isinstance(layer, (IP, IPv6)):
            if has_network:  # in a tunnel
                return end
            has_network = True
        if isinstance(layer, ICMP) or _is_icmp6(layer):
            return min(len(frame), end + _ICMP_LEN)
        end += len(layer.raw_packet_cache)
        is_later = (isinstance(layer, IP) and layer.frag) or (isinstance(layer, IPv6ExtHdrFragment) and layer.offset)
        if is_later or isinstance(layer, (ARP, Dot3, TCP, UDP, SCTP)):
            return end
        if isinstance(layer, IPv6) and not layer.plen:  # longer than 64 KiB: scapy takes the rest for a trailer
            return header_end(start[: end - 36] + b"\xff\xff" + start[end - 34 :], link_type)
        layer = layer.payload
    return end


def _is_icmp6(layer: Packet) -> bool:
    return type(layer).__name__.startswith("ICMPv6")
