"""The payloads of frames: datagrams reassembled from IP fragments, and the bytes of a TCP stream.

Frames go in, in any order; payloads come out, to be compared with what a sender said it sent. This
judges the recorder and us alike: it shares no code with either. Only what the tests send is
understood: Ethernet, IPv4, IPv6 without extension headers.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple

ETHERNET_BYTES = 14
ETH_P_IP = 0x0800
ETH_P_IPV6 = 0x86DD
ICMP, TCP, UDP = 1, 6, 17
UDP_HEADER_BYTES = ICMP_HEADER_BYTES = 8
SYN = 0x02


class Packet(NamedTuple):
    """The IP payload of one frame, and its offset among the fragments of `identity`."""

    protocol: int
    identity: int
    offset: int
    last: bool
    data: bytes


def ip_packet(frame: bytes) -> Packet | None:
    """The IP payload of a frame; None if it has no IP."""
    (ethertype,) = struct.unpack_from("!H", frame, 12)
    body = frame[ETHERNET_BYTES:]
    if ethertype == ETH_P_IP:
        length, identity, fragment = struct.unpack_from("!HHH", body, 2)
        data = body[(body[0] & 15) * 4 : length]
        return Packet(body[9], identity, (fragment & 0x1FFF) * 8, not fragment & 0x2000, data)
    if ethertype == ETH_P_IPV6:
        return Packet(body[6], 0, 0, last=True, data=body[40:])
    return None


def datagrams(frames: Iterable[bytes], protocol: int) -> list[bytes]:
    """Give the payloads of the complete UDP datagrams or ICMP messages, in the order in which they
    were completed.
    """
    parts: dict[int, dict[int, bytes]] = {}
    done = []
    for packet in _packets(frames, protocol):
        fragments = parts.setdefault(packet.identity, {}) if packet.offset or not packet.last else {}
        fragments[packet.offset] = packet.data
        if packet.last:  # the kernel sends the fragments in order
            whole = b"".join(fragments[offset] for offset in sorted(fragments))
            done.append(whole[UDP_HEADER_BYTES:])
            parts.pop(packet.identity, None)
    return done


def stream(frames: Iterable[bytes]) -> bytes:
    """Give the bytes of the one TCP connection in the frames, up to the first gap."""
    first = None
    segments: dict[int, bytes] = {}
    for packet in _packets(frames, TCP):
        (sequence,) = struct.unpack_from("!I", packet.data, 4)
        if packet.data[13] & SYN:
            first = sequence + 1
        segments[sequence] = max(segments.get(sequence, b""), packet.data[(packet.data[12] >> 4) * 4 :], key=len)
    if first is None:
        return b""
    whole = bytearray()
    for place, data in sorted(((sequence - first) & 0xFFFFFFFF, data) for sequence, data in segments.items()):
        if place <= len(whole):
            whole += data[len(whole) - place :]
    return bytes(whole)


def _packets(frames: Iterable[bytes], protocol: int) -> Iterator[Packet]:
    """Give the IP packets of one protocol."""
    return (packet for frame in frames if (packet := ip_packet(frame)) and packet.protocol == protocol)
