"""Granules of a pcapng file: runs of whole blocks, about 1 MiB each.

In: a file. Out: its bytes in granules.

The rule not to break: the bytes of all granules are those of the file, whatever it holds: from the first wrong block
on, they are cut at any place. Memory is bounded by one granule and one block.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import BinaryIO

from skbcapd.pcapng.blocks import BYTE_ORDER_MAGIC, OBSOLETE_PACKET, PACKET, SECTION, SIMPLE_PACKET

GRANULE = 1 << 20  # bytes
_MOST = 2 * GRANULE  # bytes of a granule, if something else than packets makes it longer
_BLOCK_MAX = 16 << 20
_PACKETS = {PACKET, OBSOLETE_PACKET, SIMPLE_PACKET}
_ORDERS = {struct.pack(order + "I", BYTE_ORDER_MAGIC): order for order in "<>"}


def limit_of(at: int) -> int:
    """A granule that begins at this offset has the packets whose blocks begin before the result."""
    return at - at % GRANULE + GRANULE


def granules(file: BinaryIO) -> Iterator[bytes]:
    """Read a file to its end.

    Returns:
        What stands before the first packet; then the granules. Each begins with a packet: the first one of a section,
        or the first one after the end of the granule before.

    Raises:
        OSError: it cannot be read.
    """
    data, at, begin, before, limit, order = b"", 0, 0, 0, 0, "<"
    while True:
        kind, length = struct.unpack_from(order + "II", data, at) if at + 12 <= len(data) else (0, 12)
        if kind == SECTION:
            order = _ORDERS.get(data[at + 8 : at + 12], "")
            length = struct.unpack_from(order + "I", data, at + 4)[0] if order else 0
            limit = 0
        if not 12 <= length <= _BLOCK_MAX or length & 3:
            break
        if at + length > len(data):
            if not (more := file.read(max(GRANULE, length))):
                break
            before += begin
            data, at, begin = data[begin:] + more, at - begin, 0
            continue
        if kind in _PACKETS and before + at >= limit:
            limit = limit_of(before + at)
            if at > begin:
                yield data[begin:at]
            begin = at
        at += length
        if at - begin >= _MOST:
            yield data[begin:at]
            begin = at
    if at > begin:
        yield data[begin:at]
    data = data[at:]
    while data:
        yield data
        data = file.read(GRANULE)
