r"""The stream of a live view: what the daemon sends to `skbcapd top` at its control socket.

In: complete blocks; once a second the end of an interval. Out: messages, each with a head.

    {"watch": 1}\n                          the daemon has accepted the request
    head (kind BLOCKS, length), blocks      the next bytes of a pcapng file
    head (kind MARK, length), struct Mark   the end of an interval, whose bytes are one complete file

The rule: an interval describes all interfaces that its packets have, so it can be read like any file.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

REQUEST = "watch"
ACCEPTED = b'{"watch": 1}\n'
BLOCKS, MARK = 1, 2
HEAD = struct.Struct("<II")  # kind, length in bytes
INTERVAL_MAX = 64 << 20
"""Bytes of packets in one interval; further ones are left out."""
_MARK = struct.Struct("<QQQ")
MARK_SIZE = _MARK.size


class Mark(NamedTuple):
    """The end of an interval.

    Args:
        duration_ns: of the interval, nanoseconds.
        passed: bytes of blocks with packets in it.
        left_out: bytes of blocks that were left out, because the reader was too slow or they were too many.
    """

    duration_ns: int
    passed: int
    left_out: int

    def message(self) -> bytes:
        """The message with its head."""
        return HEAD.pack(MARK, MARK_SIZE) + _MARK.pack(*self)

    @classmethod
    def of(cls, data: bytes) -> Mark:
        """The mark of a message, whose body has MARK_SIZE bytes."""
        return cls(*_MARK.unpack(data))
