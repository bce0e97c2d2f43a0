"""The other end of a packet: its IP address, and the service between both ends.

In: a frame, its link type and direction. Out: an address, and a protocol with a port.

The rule not to break: this runs for many packets, so it reads the usual headers only (Ethernet with VLAN tags or raw
IP, IPv4 and IPv6, TCP and UDP without extension headers). Who needs it for each packet remembers it by `flow_key`.
"""

from __future__ import annotations

from typing import TypeAlias

from skbcapd.frames.headers import IPV4, IPV6, TCP, UDP, WITH_PORTS, Headers
from skbcapd.pcapng.blocks import DIRECTION_IN, DIRECTION_OUT
from skbcapd.pcapng.flows import HANDSHAKE, HELLO_MIN, FlowKey
from skbcapd.pcapng.link_type import ETHERNET, RAW

_IP = {RAW, 228, 229}  # LINKTYPE_RAW, _IPV4, _IPV6
_IPV4, _IPV6, _TAGS = 0x0800, 0x86DD, {0x8100, 0x88A8}

_DNS = (53).to_bytes(2, "big")
_LINK = 14  # bytes of the Ethernet header
_TCP4_AT, _TCP6_AT = 34, 54

Peer: TypeAlias = tuple[bytes, int]


def names_at(key: FlowKey | None, frame: memoryview) -> int:
    """Where frames of a flow can have names of addresses (see `names`).

    Args:
        key: see `flow_key`.
        frame: of that flow.

    Returns:
        0: nowhere; the offset of the TCP header: where `starts_tls`; -1: it is not known.
    """
    if key is None:
        return -1
    is_six = frame[_LINK] >> 4 == 6
    protocol, transport = (frame[20], _TCP6_AT) if is_six else (frame[23], _TCP4_AT)
    if not is_six and (frame[20] & 0x1F or frame[21]):  # a later fragment
        return 0
    if protocol == TCP:
        return transport
    return -1 if protocol == UDP and frame[transport : transport + 2] == _DNS else 0


def starts_tls(frame: memoryview, at: int) -> bool:
    """Whether the payload of a TCP header begins like a handshake of TLS that can have a name."""
    return len(frame) >= HELLO_MIN and frame[at + (frame[at + 12] >> 4 << 2)] == HANDSHAKE


def is_regular(key: FlowKey | None, frame: memoryview, read: Headers) -> bool:
    """Whether all that was read of the headers of a frame, except lengths, depends on the bytes of its key only.

    Args:
        key: see `flow_key`.
        frame: of that flow.
        read: its headers.
    """
    if key is None or read.protocol not in {TCP, UDP} or read.network != _LINK:
        return False
    if read.kind == IPV4:
        return frame[23] == read.protocol and not (frame[20] & 0x3F or frame[21])
    return read.kind == IPV6 and frame[20] == read.protocol


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
