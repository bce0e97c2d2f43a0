"""The other end of a packet: its IP address, and the service between both ends.

In: a frame, its link type and direction. Out: an address, and a protocol with a port.

The rule not to break: this runs for many packets, so it reads the usual headers only (Ethernet with VLAN tags or raw
IP, IPv4 and IPv6, TCP and UDP without extension headers). Who needs it for each packet remembers it by `flow_bytes`.
"""

from __future__ import annotations

import struct
from collections.abc import Hashable
from typing import TypeAlias

from skbcapd.frames.headers import ICMPV6, TCP, UDP, WITH_PORTS
from skbcapd.pcapng.blocks import DIRECTION_IN, DIRECTION_OUT
from skbcapd.pcapng.link_type import ETHERNET, RAW

_IP = {RAW, 228, 229}  # LINKTYPE_RAW, _IPV4, _IPV6
_IPV4, _IPV6, _TAGS = 0x0800, 0x86DD, {0x8100, 0x88A8}


# All that `peer_of` reads of an Ethernet frame with IPv4 without options: type, version and length of the header;
# fragment; protocol; addresses and ports. And with IPv6: type; next header; addresses; ports.
_FLOW4 = struct.Struct(">12x3s5xHxB2x12s")
_FLOW6 = struct.Struct(">12xH6xBx32s4s")
_PLAIN = b"\x08\x00\x45"
_OFFSET = 0x1FFF  # of a fragment
_DNS = 53
_TCP4_AT, _TCP6_AT = 34, 54
_HANDSHAKE = 22  # a record of TLS

Peer: TypeAlias = tuple[bytes, int]


def flow_bytes(frame: memoryview, link_type: int) -> Hashable:
    """The bytes of a frame on which `peer_of` and `names_at` depend; None if that are others than usual."""
    if link_type != ETHERNET or len(frame) < _FLOW4.size:
        return None
    raw = _FLOW4.unpack_from(frame)
    if raw[0] == _PLAIN:
        return raw
    if raw[0][:2] == b"\x86\xdd" and len(frame) >= _FLOW6.size:
        return _FLOW6.unpack_from(frame)
    return None


def names_at(raw: Hashable) -> int:
    """Where frames of a flow can have names of addresses (see `names`).

    Args:
        raw: from `flow_bytes`.

    Returns:
        0: nowhere; the offset of the TCP header: where `starts_tls`; -1: it is not known.
    """
    match raw:
        case (bytes(), int() as fragment, int() as protocol, bytes() as ends):
            transport, ports = _TCP4_AT, ends[8:]
            if fragment & _OFFSET:
                return 0
        case (int(), int() as protocol, bytes(), bytes() as ports):
            transport = _TCP6_AT
            if protocol not in {TCP, UDP, ICMPV6}:
                return -1
        case _:
            return -1
    if protocol == TCP:
        return transport
    return -1 if protocol == UDP and ports[:2] == _DNS.to_bytes(2, "big") else 0


def starts_tls(frame: memoryview, at: int) -> bool:
    """Whether the payload of a TCP header begins like a handshake of TLS."""
    if len(frame) <= at + 12:
        return False
    at += frame[at + 12] >> 4 << 2
    return at < len(frame) and frame[at] == _HANDSHAKE


def peer_of(frame: memoryview, link_type: int, direction: int) -> Peer | None:
    """The IP address of the other end, packed, and the service.

    Returns:
        None if there is no address, or if the direction is not known. The service is the protocol,
        shifted left by 16, and the lower one of both ports: in most cases that of the server; 0 if
        it is not known.
    """
    at, kind, length = 0, 0, len(frame)
    if link_type == ETHERNET:
        if length < 34:
            return None
        at, kind = 14, frame[12] << 8 | frame[13]
        while kind in _TAGS and at + 4 <= length:
            at, kind = at + 4, frame[at + 2] << 8 | frame[at + 3]
    elif link_type in _IP and length:
        kind = {4: _IPV4, 6: _IPV6}.get(frame[0] >> 4, 0)
    if kind == _IPV4 and at + 20 <= length:
        address, size, protocol = at + 12, 4, frame[at + 9]
        is_later = frame[at + 6] & 0x1F or frame[at + 7]
        ports = length if is_later else at + 4 * (frame[at] & 15)
    elif kind == _IPV6 and at + 40 <= length:
        address, size, protocol, ports = at + 8, 16, frame[at + 6], at + 40
    else:
        return None
    if direction == DIRECTION_OUT:
        address += size
    elif direction != DIRECTION_IN:
        return None
    service = 0
    if (protocol in {TCP, UDP}) and ports + 4 <= length:
        source, destination = frame[ports] << 8 | frame[ports + 1], frame[ports + 2] << 8 | frame[ports + 3]
        lower = min(source, destination)
        service = protocol << 16 | lower if lower else 0
    return bytes(frame[address : address + size]), service


def service_name(service: int) -> str:
    """A service for people, such as tcp/443."""
    return f"{WITH_PORTS[service >> 16]}/{service & 0xFFFF}"
