"""The numbers of pcapng, and the walk over packet blocks in memory.

In: bytes of complete blocks, little endian, from the kernel program and our writer. Out: the offset
of each block. Files can have another byte order, and their content is not trusted: `reader`,
`granules` and `fleet.packets` have walks of their own. `output.blocks` repeats two types of blocks,
because it also runs as a program that imports nothing of skbcapd.

Source: draft-ietf-opsawg-pcapng, sections 3.5 and 4; docs/format.md for the blocks of local use.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from skbcapd.errors import SegmentError

# Types of blocks: section 4.
SECTION = 0x0A0D0D0A
INTERFACE = 1
OBSOLETE_PACKET = 2
SIMPLE_PACKET = 3
STATISTICS = 5
PACKET = 6
SECRETS = 0x0A
CUSTOM = 0xBAD

TLS_KEY_LOG = 0x544C534B  # "TLSK": a type of secrets

# Codes of options: section 3.5 (end, comment), then those of each block.
OPT_ENDOFOPT = 0
OPT_COMMENT = 1
SHB_HARDWARE, SHB_OS, SHB_USERAPPL = 2, 3, 4
IF_NAME, IF_DESCRIPTION, IF_MACADDR, IF_SPEED, IF_TSRESOL, IF_FILTER, IF_OS, IF_TSOFFSET = 2, 3, 6, 8, 9, 11, 12, 14
EPB_FLAGS, EPB_PACKETID, EPB_PROCESSID_THREADID = 2, 5, 8
ISB_STARTTIME, ISB_ENDTIME, ISB_IFRECV, ISB_IFDROP, ISB_FILTERACCEPT, ISB_OSDROP, ISB_USRDELIV = range(2, 9)

# Bits of epb_flags: section 4.3.1 (bit 0 is the least significant).
DIRECTION_IN, DIRECTION_OUT = 1, 2
RECEPTION_UNICAST, RECEPTION_MULTICAST, RECEPTION_BROADCAST, RECEPTION_PROMISCUOUS = (way << 2 for way in range(1, 5))
CHECKSUM_NOT_READY = 1 << 9
CHECKSUM_VALID = 1 << 10
SEGMENTATION_OFFLOADED = 1 << 11

BYTE_ORDER_MAGIC = 0x1A2B3C4D

PACKET_ID_HEAD = struct.pack("<HH", EPB_PACKETID, 8)
"""The option epb_packetid before its value."""

PACKET_HEAD = struct.Struct("<IIIIIII")
"""Start of an Enhanced Packet Block: type, length, interface id, time high and low, captured and
original length.
"""

BLOCK_MIN = PACKET_HEAD.size + 4
"""Size of the smallest packet block, in bytes; its length is repeated at the end."""


def section_body(order: str = "<") -> bytes:
    """What is before the options of a section header: version 1.0, and a length that is not specified.

    Args:
        order: byte order, `<` or `>`.

    Source: section 4.1.
    """
    return struct.pack(order + "IHHq", BYTE_ORDER_MAGIC, 1, 0, -1)


def walk(view: memoryview) -> Iterator[tuple[int, int, int]]:
    """Each block of a range as (offset, type, length in bytes).

    Args:
        view: packet blocks, all of them complete.

    Raises:
        SegmentError: an impossible length.
    """
    offset = 0
    while offset < len(view):
        kind, size = block_at(view, offset)
        yield offset, kind, size
        offset += size


def block_at(view: memoryview, offset: int) -> tuple[int, int]:
    """Type and length of a packet block inside of a range.

    Raises:
        SegmentError: an impossible length.
    """
    kind, size = struct.unpack_from("<II", view, offset) if 0 <= offset <= len(view) - BLOCK_MIN else (0, 0)
    if size < BLOCK_MIN or size & 3 or offset + size > len(view):
        raise SegmentError(f"a block at {offset} of {len(view)} bytes has the length {size}")
    return kind, size


def without_packet_id(options: bytes, order: str) -> tuple[bytes, int]:
    """Remove epb_packetid, the only option that differs between packets; also its offset, -1 if there is none."""
    at, head = 0, struct.Struct(order + "HH").unpack_from
    while at + 4 <= len(options):
        code, length = head(options, at)
        after = at + 4 + length + (-length & 3)
        if code == EPB_PACKETID:
            return options[:at] + options[after:], at
        if code == OPT_ENDOFOPT:
            break
        at = after
    return options, -1
