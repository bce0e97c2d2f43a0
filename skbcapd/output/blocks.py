"""Functions on pcapng blocks for outputs: the number of packets, and the offset of an incomplete
block.

In: bytes of blocks, or a file. Out: numbers. The rule: nothing is written, and nothing of skbcapd
is imported, so that this module can also run as a program.
"""

from __future__ import annotations

import os
import struct
import sys
import time
from typing import NamedTuple

_HEAD = struct.Struct("<II")  # type, length
_TAIL_AND_HEAD = struct.Struct("<III")  # length at the end of a block, type and length of the next one
_PACKET, _SECTION = 6, 0x0A0D0D0A
_BLOCK_MIN, _BLOCK_MAX = 12, 16 << 20
_CHUNK = 1 << 20
_EQUAL = 16  # after so many blocks of equal length, more are expected


def count_packets(blocks: bytes | bytearray | memoryview) -> int:
    """The number of Enhanced Packet Blocks among complete blocks."""
    counter = PacketCounter()
    counter.feed(blocks)
    return counter.packets


class Times(NamedTuple):
    """Number of packets among blocks, and the times of the first and the last one, in ns since
    1970.
    """

    packets: int
    first_ns: int
    last_ns: int


def packet_times(blocks: bytes | memoryview) -> Times:
    """Number and times of the Enhanced Packet Blocks among complete blocks."""
    packets = at = 0
    first = last = -1
    while at < len(blocks):
        kind, size = _HEAD.unpack_from(blocks, at)
        if kind == _PACKET:
            packets += 1
            first, last = (at if first < 0 else first), at
        at += size
    return Times(packets, *(_time_ns(blocks, each) if each >= 0 else 0 for each in (first, last)))


def edge_times(blocks: bytes | bytearray | memoryview) -> tuple[int, int] | None:
    """Times of the first and the last Enhanced Packet Block among complete blocks, in ns since 1970;
    None without one. Only the blocks at the edges are read.
    """
    at, end = 0, len(blocks)
    while at < end and _HEAD.unpack_from(blocks, at)[0] != _PACKET:
        at += _HEAD.unpack_from(blocks, at)[1]
    if at >= end:
        return None
    last = end
    while last > at:
        last -= max(_BLOCK_MIN, int.from_bytes(blocks[last - 4 : last], "little"))
        if last > at and _HEAD.unpack_from(blocks, last)[0] == _PACKET:
            return _time_ns(blocks, at), _time_ns(blocks, last)
    return _time_ns(blocks, at), _time_ns(blocks, at)


def utc(time_ns: int) -> str:
    """A time in UTC, with milliseconds."""
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(time_ns // 1_000_000_000))
    return f"{stamp}.{time_ns // 1_000_000 % 1000:03}Z"


def _time_ns(blocks: bytes | bytearray | memoryview, at: int) -> int:
    high, low = _HEAD.unpack_from(blocks, at + 12)
    return int(high << 32 | low)


def whole(blocks: bytes | memoryview) -> int:
    """How many of these bytes are complete blocks; the rest is the beginning of one."""
    at = 0
    while at + _HEAD.size <= len(blocks):
        size = _HEAD.unpack_from(blocks, at)[1]
        if size < _BLOCK_MIN or at + size > len(blocks):
            break
        at += size
    return at


class PacketCounter:
    """Counts packets in a stream of blocks that is split at any bytes."""

    def __init__(self) -> None:
        self.packets = 0
        self._skip = 0  # bytes until the header of the next block
        self._head = b""  # the first bytes of that header

    def feed(self, part: bytes | bytearray | memoryview) -> None:
        """Count the packets whose headers end in this part."""
        if self._head:
            part = self._head + bytes(part)
            self._head = b""
        at, end, unpack = self._skip, len(part) - _HEAD.size, _HEAD.unpack_from
        packets = 0
        while at <= end:
            kind, size = unpack(part, at)
            packets += kind == _PACKET
            at += max(size, _BLOCK_MIN)
        self.packets += packets
        self._skip = max(0, at - len(part))
        if at < len(part):
            self._head = bytes(part[at:])


def whole_in(descriptor: int, at: int = 0, until_s: float = float("inf")) -> tuple[int, bool]:
    """Find the end of the last complete block of a file, by a walk from the first block.

    No shorter way is correct: a crash of the machine can leave holes in the middle, and a frame can
    contain bytes that look like blocks.

    Args:
        descriptor: descriptor, open for reading.
        at: offset of a block, such as the end from an earlier call.
        until_s: time of the monotonic clock at which to stop.

    Returns:
        Bytes from the section header to the end of the last complete block; 0 if the file does not
        begin with one. And whether the walk is complete: False if it was stopped.
    """
    size = _CHUNK
    while True:
        part = os.pread(descriptor, size, at)
        seen = _checked(part, is_first=not at)
        at += seen
        if not seen:
            wanted = _HEAD.unpack_from(part)[1] if len(part) >= _HEAD.size else 0
            if len(part) < size or not size < wanted <= _BLOCK_MAX:
                return at, True
            size = wanted
        else:
            size = _CHUNK
        if time.monotonic() >= until_s:
            return at, False


def _checked(part: bytes, *, is_first: bool) -> int:
    """How many of these bytes are complete blocks, each with the same length at both ends."""
    if len(part) < _BLOCK_MIN:
        return 0
    kind, size = _HEAD.unpack_from(part)
    if is_first and kind != _SECTION:
        return 0
    at: int = 0
    end, unpack, equal = len(part), _TAIL_AND_HEAD.unpack_from, 0
    while True:
        behind = at + size
        if size < _BLOCK_MIN or size % 4 or size > _BLOCK_MAX or behind > end:
            return at
        if behind + _HEAD.size > end:
            return behind if int.from_bytes(part[behind - 4 : behind], "little") == size else at
        again, _, following = unpack(part, behind - 4)
        if again != size:
            return at
        at = behind
        if following != size:
            size, equal = following, 0
            continue
        equal += 1
        if equal == _EQUAL:
            at += _equal(part, at, size) * size
            if at + _HEAD.size > end:
                return at
            size, equal = _HEAD.unpack_from(part, at)[1], 0


def _equal(part: bytes, at: int, size: int) -> int:
    """How many blocks from an offset on have the same length, at both ends. Bytes of many blocks are compared at once:
    packets of one kind have equal lengths, and a walk over small ones takes long.
    """
    word, found, wanted = size.to_bytes(4, "little"), 0, _EQUAL
    while True:
        same = min(wanted, (len(part) - at) // size)
        for number in range(4):
            for offset in (4 + number, size - 4 + number):  # a byte of the length, at both ends
                column = part[at + offset : at + same * size : size]
                same -= len(column.lstrip(word[number : number + 1]))
        found, at = found + same, at + same * size
        if same < wanted:
            return found
        wanted *= 4


if __name__ == "__main__":  # a file from before a crash, in a separate process: see crashed.py
    print(whole_in(0, int(sys.argv[1]))[0])
