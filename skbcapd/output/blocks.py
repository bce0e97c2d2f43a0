"""What an output needs to know about pcapng blocks: the number of packets, and where an incomplete block begins.

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
_TAIL_AND_HEAD = struct.Struct("<III")  # length of a block, type and length of the next
_PACKET, _SECTION = 6, 0x0A0D0D0A
_BLOCK_MIN, _BLOCK_MAX = 12, 16 << 20
_CHUNK = 1 << 20


def count_packets(blocks: bytes | bytearray | memoryview) -> int:
    """How many Enhanced Packet Blocks are among whole blocks."""
    counter = PacketCounter()
    counter.feed(blocks)
    return counter.packets


class Times(NamedTuple):
    """Packets among blocks, and the time stamps of the first and the last one, in nanoseconds since 1970."""

    packets: int
    first_ns: int
    last_ns: int


def packet_times(blocks: bytes | memoryview) -> Times:
    """Count the Enhanced Packet Blocks among whole blocks, and see when they are from."""
    packets = at = 0
    first = last = -1
    while at < len(blocks):
        kind, size = _HEAD.unpack_from(blocks, at)
        if kind == _PACKET:
            packets += 1
            first, last = (at if first < 0 else first), at
        at += size
    return Times(packets, *(_time_ns(blocks, each) if each >= 0 else 0 for each in (first, last)))


def _time_ns(blocks: bytes | memoryview, at: int) -> int:
    high, low = _HEAD.unpack_from(blocks, at + 12)
    return int(high << 32 | low)


def whole(blocks: bytes | memoryview) -> int:
    """How many of these bytes are whole blocks; the rest is the beginning of one."""
    at = 0
    while at + _HEAD.size <= len(blocks):
        size = _HEAD.unpack_from(blocks, at)[1]
        if size < _BLOCK_MIN or at + size > len(blocks):
            break
        at += size
    return at


class PacketCounter:
    """Counts packets in a stream of blocks, which is cut into parts anywhere."""

    def __init__(self) -> None:
        self.packets = 0
        self._skip = 0  # bytes to the next block's head
        self._head = b""  # what is there of it

    def feed(self, part: bytes | bytearray | memoryview) -> None:
        """Count the packets whose heads end in this part."""
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
    """Look for the end of the last whole block of a file, from its first one on.

    There is no shorter way that is right. A crash of the machine leaves holes in the middle, and a packet's frame may
    hold what looks like blocks: only who comes from the beginning knows where one begins.

    Args:
        descriptor: of the file, open for reading.
        at: where a block begins, such as an earlier call's end.
        until_s: time of the monotonic clock to stop at.

    Returns:
        Bytes from the section header to the end of the last whole block seen; 0 where the file does not begin with one.
        And whether that is all: False if time was over first.
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
    """How many of these bytes are whole blocks, each with its length at both ends."""
    if len(part) < _BLOCK_MIN:
        return 0
    kind, size = _HEAD.unpack_from(part)
    if is_first and kind != _SECTION:
        return 0
    at, end, unpack = 0, len(part), _TAIL_AND_HEAD.unpack_from
    while True:
        behind = at + size
        if size < _BLOCK_MIN or size % 4 or size > _BLOCK_MAX or behind > end:
            return at
        if behind + _HEAD.size > end:
            return behind if int.from_bytes(part[behind - 4 : behind], "little") == size else at
        again, _, following = unpack(part, behind - 4)
        if again != size:
            return at
        at, size = behind, following


if __name__ == "__main__":  # what a crash has left, in a process of its own: see repair.py
    print(whole_in(0, int(sys.argv[1]))[0])
