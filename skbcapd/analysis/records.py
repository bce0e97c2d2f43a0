"""Converts packets of capture files to records for another file.

In: packets in the order of time (`sources`). Out: records, with times in nanoseconds and
little-endian options, so packets of all files can be in one section.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import TypeAlias

from skbcapd.analysis.sources import Timed
from skbcapd.frames.headers import Bytes
from skbcapd.pcapng.blocks import EPB_FLAGS, EPB_PACKETID, EPB_PROCESSID_THREADID, OPT_ENDOFOPT
from skbcapd.pcapng.comment import option
from skbcapd.pcapng.reader import Interface, Stamp, walk_options

Record: TypeAlias = tuple[int, Interface, Stamp, int, Bytes, bytes]
"""Time (nanoseconds since 1970 UTC), interface, stamp, the frame's true length, the bytes captured of it (valid until
the next record), its options (little endian)."""

# Options of packets that contain numbers; all others are texts or bytes. Section 4.3 of the draft.
_NUMBERS = {EPB_FLAGS: "I", 4: "Q", EPB_PACKETID: "Q", 6: "I", EPB_PROCESSID_THREADID: "II"}


def records(packets: Iterable[Timed]) -> Iterator[Record]:
    """Packets as records."""
    for time_ns, (interface, stamp, _, wire_len, frame, options) in packets:
        if interface.section.order != "<" and options:
            options = _little(options)  # noqa: PLW2901  the same option, as the loop means it
        yield time_ns, interface, stamp, wire_len, frame, options


def _little(options: bytes) -> bytes:
    """Convert options of a big endian section to little endian."""
    return join(
        (code, swapped(value, _NUMBERS[code]) if code in _NUMBERS else value)
        for code, value in walk_options(options, ">")
    )


def swapped(value: bytes, form: str) -> bytes:
    """Swap the bytes of numbers; values of other sizes are unchanged."""
    if len(value) != struct.calcsize("<" + form):
        return value
    return struct.pack("<" + form, *struct.unpack(">" + form, value))


def join(pairs: Iterable[tuple[int, bytes]]) -> bytes:
    """Options by code and value, including the end option; nothing if there are none."""
    raw = b"".join(option(code, value) for code, value in pairs)
    return raw + option(OPT_ENDOFOPT, b"") if raw else b""
