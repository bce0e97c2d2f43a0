"""Checksums of IPv4, TCP and UDP in complete frames.

In: a frame and its headers. Out: the same frame with checksums as on the wire.

Source: RFC 1071; RFC 768 and 8200 section 8.1 for UDP, where 0 is sent as 0xffff.
"""

from __future__ import annotations

from skbcapd.capture.checksum import inverted, ones_complement_sum
from skbcapd.frames.headers import IPV4, TCP, UDP, Headers, addresses

_FIELDS = {TCP: 16, UDP: 6}  # where the field is in the transport header


def fill_network(frame: bytearray, found: Headers) -> None:
    """Compute the checksum of an IPv4 header, in place."""
    if found.kind == IPV4:
        at = found.network
        end = at + 4 * (frame[at] & 15)
        frame[at + 10 : at + 12] = bytes(2)
        frame[at + 10 : at + 12] = inverted(ones_complement_sum(frame[at:end]))


def fill_transport(frame: bytearray, found: Headers) -> bool:
    """Compute the checksum of TCP or UDP, in place.

    Args:
        frame: complete; it may have padding behind the packet.
        found: its headers.

    Returns:
        Whether it was done: not for a fragment, another protocol, or a header that is not complete.
    """
    ends = addresses(frame, found)
    if ends is None or found.protocol not in _FIELDS or found.is_fragment:
        return False
    field, end = found.transport + _FIELDS[found.protocol], packet_end(frame, found)
    if field + 2 > end:
        return False
    size = end - found.transport
    pseudo = b"".join(ends) + size.to_bytes(4, "big") + found.protocol.to_bytes(4, "big")
    frame[field : field + 2] = bytes(2)
    frame[field : field + 2] = inverted(ones_complement_sum(pseudo) + ones_complement_sum(frame[found.transport : end]))
    return True


def packet_end(frame: bytes | bytearray, found: Headers) -> int:
    """Where the IP packet ends: behind it there may be padding. A length of 0 (BIG TCP) means: the end of the frame."""
    at = found.network
    if found.kind == IPV4:
        length = frame[at + 2] << 8 | frame[at + 3]
    else:
        length = frame[at + 4] << 8 | frame[at + 5]
        length += 40 if length else 0
    return min(len(frame), at + length) if length else len(frame)
