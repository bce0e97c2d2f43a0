"""The other end of a packet: its IP address, and the service between both ends.

In: a frame, its link type and direction. Out: an address, and a protocol with a port.

The rule not to break: this runs for each packet, so it reads the usual headers only (Ethernet with VLAN tags or raw IP,
IPv4 and IPv6, TCP and UDP without extension headers), and remembers the peer of a flow.
"""

from __future__ import annotations

import struct
from typing import TypeAlias

from skbcapd.frames.headers import TCP, UDP, WITH_PORTS
from skbcapd.pcapng.blocks import DIRECTION_IN, DIRECTION_OUT
from skbcapd.pcapng.link_type import ETHERNET, RAW

_IP = {RAW, 228, 229}  # LINKTYPE_RAW, _IPV4, _IPV6
_IPV4, _IPV6, _TAGS = 0x0800, 0x86DD, {0x8100, 0x88A8}


# All that `peer_of` reads of an Ethernet frame with IPv4 without options: type, version and length of the header;
# fragment; protocol; addresses and ports.
_FLOW = struct.Struct(">12x3s5xHxB2x12s")
_PLAIN = b"\x08\x00\x45"
_FLOWS_MAX = 1 << 16  # of one direction

Peer: TypeAlias = tuple[bytes, int]


class Peers:
    """The peers of frames, remembered by flow."""

    def __init__(self) -> None:
        self._known: tuple[dict[tuple[bytes, int, int, bytes], Peer | None], ...] = ({}, {}, {}, {})

    def of(self, frame: memoryview, link_type: int, direction: int) -> Peer | None:
        """As `peer_of`; `direction` is 0 to 3."""
        if link_type != ETHERNET or len(frame) < _FLOW.size:
            return peer_of(frame, link_type, direction)
        flow = _FLOW.unpack_from(frame)
        known = self._known[direction]
        if flow in known:
            return known[flow]
        found = peer_of(frame, link_type, direction)
        if flow[0] == _PLAIN:
            if len(known) >= _FLOWS_MAX:
                known.clear()
            known[flow] = found
        return found


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
