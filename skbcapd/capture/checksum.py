"""Compute the checksum that the hardware would have computed (`checksums: fill`).

In: a frame, and where the checksum begins and is stored. Out: the frame as it is on the wire.

Source: Documentation/networking/checksum-offloads.rst, "TX Checksum Offload": the field holds the
sum of the pseudo header, and the result is the ones' complement of the sum from csum_start to the
end of the packet. RFC 768: a UDP checksum of 0 is sent as 0xffff; TCP's may be sent so, too: both
mean the same number.
"""

from __future__ import annotations


def fill(frame: memoryview, original_len: int, place: int) -> bytes | None:
    """The frame with its checksum.

    Args:
        frame: complete, from its link-layer header on.
        original_len: length of the frame on the wire, in bytes.
        place: from the kernel program. Low 16 bits: offset in the frame at which the sum begins.
            High 16 bits: offset of the checksum field from there.

    Returns:
        The frame; None if bytes are missing, or an offset is outside of the frame.
    """
    begin, field = place & 0xFFFF, (place & 0xFFFF) + (place >> 16)
    if len(frame) < original_len or field + 2 > len(frame):
        return None
    return bytes(frame[:field]) + inverted(ones_complement_sum(frame[begin:])) + bytes(frame[field + 2 :])


def ones_complement_sum(data: bytes | bytearray | memoryview) -> int:
    """The ones' complement sum of the 16-bit words of some bytes; a zero is added to an odd number of them."""
    # 2^16 is 1 modulo 2^16 - 1: the remainder of the whole number is the ones' complement sum of
    # its words.
    return int.from_bytes(bytes(data) + bytes(len(data) % 2), "big") % 0xFFFF


def inverted(total: int) -> bytes:
    """A sum as it stands in the field of a header: never 0, which means 'no checksum' in UDP."""
    return ((0xFFFF - total % 0xFFFF) or 0xFFFF).to_bytes(2, "big")
