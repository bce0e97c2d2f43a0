"""Members of a compressed file: parts that can be decompressed alone.

In: an open file. Out: where its members are, and how many bytes each has, without decompressing them.

A member is a member of gzip, or a frame of zstd. One of gzip says its length in a field of its header, which
decompressors skip; those of other programs have none. A frame of zstd consists of blocks with lengths.

The rule not to break: the file is not trusted. It is read in small pieces, their number is bounded, and what is not
certain is no member.

Source: RFC 1952 (2.3.1.1 extra field); RFC 8878 (3.1.1 frames, 3.1.2 skippable frames).
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

_GZIP = struct.Struct("<4sIBBH2sHII")
"""Magic, method and flags; time; further flags; system; extra field: its length; a subfield: its name and length; the
length of the member, and of what it holds.
"""
_GZIP_MAGIC = b"\x1f\x8b\x08\x04"  # deflate; an extra field, and nothing else
_NAME = b"SK"
_GZIP_END = struct.Struct("<II")  # CRC-32 and length
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_SKIPPABLE = 0x184D2A50
_LEVEL = 6  # as the program gzip
_READS_MAX = 1 << 20
_MEMBERS_MAX = 1 << 18


class Member(NamedTuple):
    """A part of a compressed file.

    Args:
        offset: of its first byte.
        length: bytes.
        size: bytes that it holds.
    """

    offset: int
    length: int
    size: int


def gzip_member(data: bytes) -> bytes:
    """A member of gzip."""
    deflate = zlib.compressobj(_LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
    body = deflate.compress(data) + deflate.flush()
    size = len(data) & 0xFFFFFFFF
    length = _GZIP.size + len(body) + _GZIP_END.size
    head = _GZIP.pack(_GZIP_MAGIC, 0, 0, 3, 12, _NAME, 8, length, size)
    return head + body + _GZIP_END.pack(zlib.crc32(data), size)


def members(descriptor: int) -> Iterator[Member]:
    """The members from the beginning of a file on, up to one that is not certain.

    Args:
        descriptor: of a file that can be read at any offset.

    Raises:
        OSError: it cannot be read.
    """
    file = _File(descriptor)
    at = 0
    for _ in range(_MEMBERS_MAX):
        found = file.member(at)
        if found is None:
            return
        if found.size:
            yield found
        at = found.offset + found.length


class _File:
    """Reads a file in small pieces.

    Args:
        descriptor: as for `members`.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._size = os.fstat(descriptor).st_size
        self._left = _READS_MAX

    def member(self, at: int) -> Member | None:
        """The member at an offset; one of size 0 has nothing. None: there is none, or it is not certain."""
        start = self._read(at, _GZIP.size)
        if start.startswith(_GZIP_MAGIC):
            return self._gzip(at, start)
        if start.startswith(_ZSTD_MAGIC):
            return self._zstd(at, start)
        if len(start) >= 8 and int.from_bytes(start[:4], "little") & ~15 == _SKIPPABLE:
            length = 8 + int.from_bytes(start[4:8], "little")
            return Member(at, length, 0) if at + length <= self._size else None
        return None

    def _gzip(self, at: int, start: bytes) -> Member | None:
        if len(start) < _GZIP.size:
            return None
        *_, extra, name, name_length, length, size = _GZIP.unpack(start)
        least = _GZIP.size + _GZIP_END.size
        if (extra, name, name_length) != (12, _NAME, 8) or not least < length <= self._size - at:
            return None
        end = self._read(at + length - _GZIP_END.size, _GZIP_END.size)
        return Member(at, length, size) if end[4:] == start[-4:] else None

    def _zstd(self, at: int, start: bytes) -> Member | None:
        """A frame; the sizes of its blocks lead to its end."""
        flags = start[4] if len(start) > 4 else 0
        has_checksum, is_single, kind = flags >> 2 & 1, flags >> 5 & 1, flags >> 6
        field = 6 - is_single
        width = (is_single, 2, 4, 8)[kind]
        if not width or flags & 0x0B or len(start) < field + width:  # size not known, reserved bit, or a dictionary
            return None
        size = int.from_bytes(start[field : field + width], "little") + (256 if kind == 1 else 0)
        end, is_last = at + field + width, 0
        while not is_last:
            head = self._read(end, 3)
            if len(head) < 3:
                return None
            value = int.from_bytes(head, "little")
            is_last, block, length = value & 1, value >> 1 & 3, value >> 3
            if block == 3:
                return None
            end += 3 + (1 if block == 1 else length)
        end += 4 * has_checksum
        return Member(at, end - at, size) if end <= self._size else None

    def _read(self, at: int, size: int) -> bytes:
        """Bytes at an offset; fewer where the file ends, none after too many calls."""
        self._left -= 1
        return os.pread(self._descriptor, size, at) if self._left >= 0 else b""
