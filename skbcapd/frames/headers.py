"""The headers of a frame: their offsets, addresses and ports.

In: bytes of a frame and its link type. Out: offsets. Nothing is copied.

The rule not to break: frames are not trusted. An offset is never beyond the captured bytes. A wrong
header (such as an IP header of less than 20 bytes) is treated as unknown, so all bytes after it are
payload. So is one that would end after its IP packet; what follows the packet is a trailer.

bpf/payload.h finds the end of the last header in the same way; a change here is made there, too.

Source: RFC 791, 8200, 9293, 768, 3828, 9260, 4340, 792, 4443, 4302, 826; IEEE 802.1Q; the registry
of link types that libpcap keeps (LINKTYPE_*).
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from skbcapd.pcapng import link_type as links

Bytes: TypeAlias = bytes | bytearray | memoryview

IPV4, IPV6, ARP = 0x0800, 0x86DD, 0x0806
ICMP, TCP, UDP, DCCP, AH, ICMPV6, SCTP, UDPLITE = 1, 6, 17, 33, 51, 58, 132, 136
WITH_PORTS = {TCP: "tcp", UDP: "udp", DCCP: "dccp", SCTP: "sctp", UDPLITE: "udplite"}
FRAGMENT = 44

_TAGS = {0x8100, 0x88A8, 0x9100}
_TAGS_MAX = 8
_EXTENSIONS = {0, 43, FRAGMENT, AH, 60, 135, 139, 140}  # IPv6 headers whose length is known
_EXTENSIONS_MAX = 16
_NO_END = 1 << 32  # of a packet longer than 64 KiB (BIG TCP), whose length field is 0
_SIZES = {UDP: 8, UDPLITE: 8, SCTP: 12, ICMP: 8, ICMPV6: 8}


class Headers(NamedTuple):
    """Offsets in a frame; each is at most the number of captured bytes.

    Args:
        network: offset of the network header: the end of the link header.
        kind: EtherType of the network header, 0 if it is not known.
        protocol: IP protocol after the extension headers; -1 if there is none.
        transport: offset of the transport header; the end of the network header if there is none.
        payload: the end of the last known header.
        is_later: a fragment other than the first: it has no transport header.
        is_fragment: one of several fragments.
    """

    network: int
    kind: int
    protocol: int = -1
    transport: int = 0
    payload: int = 0
    is_later: bool = False
    is_fragment: bool = False


def read(frame: Bytes, link_type: int) -> Headers:
    """Find the headers of a frame; in a tunnel, those of the outermost packet."""
    at, kind = _link(frame, link_type)
    if at >= len(frame):
        return Headers(len(frame), 0, -1, len(frame), len(frame))
    network = _NETWORKS.get(kind)
    found = network(frame, at) if network else None
    return found or Headers(at, 0, -1, at, at)


def _ipv4(frame: Bytes, at: int) -> Headers | None:
    size, captured = 4 * (frame[at] & 15), len(frame)
    if frame[at] >> 4 != 4 or size < 20:
        return None
    if at + 20 > captured:
        return Headers(at, IPV4, -1, captured, captured)
    total = frame[at + 2] << 8 | frame[at + 3]
    if 0 < total < size:
        return None
    packet_end = at + total if total else _NO_END
    end = at + size
    if end > captured:
        return Headers(at, IPV4, -1, captured, captured)
    protocol = frame[at + 9]
    flags = (frame[at + 6] << 8 | frame[at + 7]) & 0x3FFF
    is_later = bool(flags & 0x1FFF)
    if protocol == AH and not is_later:
        protocol, end, _ = _extensions(frame, end, packet_end, protocol, {AH})
    payload = end if is_later else _behind(frame, end, packet_end, protocol)
    return Headers(at, IPV4, protocol, end, payload, is_later, bool(flags))


def _ipv6(frame: Bytes, at: int) -> Headers | None:
    if frame[at] >> 4 != 6:
        return None
    captured = len(frame)
    if at + 40 > captured:
        return Headers(at, IPV6, -1, captured, captured)
    protocol, end, flags = frame[at + 6], at + 40, 0
    size = frame[at + 4] << 8 | frame[at + 5]
    packet_end = end + size if size else _NO_END
    if protocol in _EXTENSIONS:
        protocol, end, flags = _extensions(frame, end, packet_end, protocol, _EXTENSIONS)
    is_later = bool(flags & 0xFFF8)
    payload = end if is_later else _behind(frame, end, packet_end, protocol)
    return Headers(at, IPV6, protocol, end, payload, is_later, bool(flags))


def _arp(frame: Bytes, at: int) -> Headers:
    size = len(frame)
    end = min(size, at + 8 + 2 * (frame[at + 4] + frame[at + 5])) if at + 8 <= size else size
    return Headers(at, ARP, -1, end, end)


_NETWORKS = {IPV4: _ipv4, IPV6: _ipv6, ARP: _arp}


def addresses(frame: Bytes, headers: Headers) -> tuple[bytes, bytes] | None:
    """Source and destination, packed; None without an IP header."""
    at = headers.network
    if headers.kind == IPV4 and at + 20 <= len(frame):
        return bytes(frame[at + 12 : at + 16]), bytes(frame[at + 16 : at + 20])
    if headers.kind == IPV6 and at + 40 <= len(frame):
        return bytes(frame[at + 8 : at + 24]), bytes(frame[at + 24 : at + 40])
    return None


def ports(frame: Bytes, headers: Headers) -> tuple[int, int] | None:
    """Source and destination port; None if there is no header with ports, or if they were not
    captured completely.
    """
    at = headers.transport
    if headers.protocol not in WITH_PORTS or headers.is_later or at + 4 > len(frame):
        return None
    return frame[at] << 8 | frame[at + 1], frame[at + 2] << 8 | frame[at + 3]


def _link(frame: Bytes, link_type: int) -> tuple[int, int]:
    """The end of the link header, and the EtherType after it."""
    if link_type == links.ETHERNET:
        return _ethernet(frame)
    if link_type in {links.RAW, links.IPV4, links.IPV6}:
        return 0, _version(frame, 0)
    if link_type in {links.NULL, links.LOOP}:
        return 4, _version(frame, 4)
    end, place = _COOKED.get(link_type, (0, 0))
    if end and len(frame) >= end:
        return end, frame[place] << 8 | frame[place + 1]
    return 0, 0


_COOKED = {links.LINUX_SLL: (16, 14), links.LINUX_SLL2: (20, 0)}  # size, and offset of the EtherType


def _ethernet(frame: Bytes) -> tuple[int, int]:
    size = len(frame)
    if size < 14:
        return size, 0
    at, kind = 14, frame[12] << 8 | frame[13]
    for _ in range(_TAGS_MAX):
        if kind not in _TAGS or at + 4 > size:
            break
        at, kind = at + 4, frame[at + 2] << 8 | frame[at + 3]
    return at, kind


def _version(frame: Bytes, at: int) -> int:
    return {4: IPV4, 6: IPV6}.get(frame[at] >> 4, 0) if at < len(frame) else 0


def _extensions(frame: Bytes, at: int, packet_end: int, protocol: int, known: set[int]) -> tuple[int, int, int]:
    """Skip extension headers: the protocol behind them, its offset, and the word of a fragment header.

    That word is 0 in a packet that is not fragmented; behind a later fragment's header is no other one.
    """
    flags, captured = 0, len(frame)
    for _ in range(_EXTENSIONS_MAX):
        if protocol not in known:
            return protocol, at, flags
        if at + 8 > min(packet_end, captured):
            return -1, at if at + 8 > packet_end else captured, flags
        if protocol == FRAGMENT:
            size = 8
            flags = (frame[at + 2] << 8 | frame[at + 3]) & 0xFFF9
            if flags & 0xFFF8:
                return frame[at], at + 8, flags
        else:
            size = 4 * (frame[at + 1] + 2) if protocol == AH else 8 * (frame[at + 1] + 1)
        if at + size > packet_end:
            return -1, at, flags
        protocol, at = frame[at], at + size
        if at > captured:
            return -1, captured, flags
    return -1, at, flags


def _behind(frame: Bytes, at: int, packet_end: int, protocol: int) -> int:
    """The end of the transport header; its beginning if it is not known, or longer than the packet."""
    limit = min(len(frame), packet_end)
    if protocol in _SIZES:
        return min(limit, at + _SIZES[protocol])
    place = {TCP: at + 12, DCCP: at + 4}.get(protocol)
    if place is None:
        return at
    if place >= limit:
        return limit
    words, least = (frame[place] >> 4, 5) if protocol == TCP else (frame[place], 3)
    end = at + 4 * words
    return at if words < least or end > packet_end else min(limit, end)
