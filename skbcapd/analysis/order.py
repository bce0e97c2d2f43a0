"""Strict time order: packets that are late by a little are put in their place.

In: records that are nearly in order. Out: the same, in order of their times.

The rule: memory is bounded, so a packet that is later than the window is an error, never written in the wrong place.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from skbcapd.analysis.records import Record
from skbcapd.errors import FileError

_RECORDS_MAX = 1 << 17
_BYTES_MAX = 64 << 20


def in_order(records: Iterable[Record]) -> Iterator[Record]:
    """Records in time order; those of the same time stay in their order.

    Raises:
        FileError: a packet is later than the window.
    """
    window: list[Record] = []
    size, last_ns = 0, -(1 << 100)
    for time_ns, interface, stamp, wire_len, frame, options in records:
        if time_ns < last_ns:
            raise FileError(
                f"a packet at {time_ns} ns since 1970 is later than {_RECORDS_MAX // 2} packets behind it; expected "
                "files whose packets are nearly in order",
                "reordercap, of Wireshark, sorts any file",
            )
        window.append((time_ns, interface, stamp, wire_len, bytes(frame), options))
        size += len(frame)
        if len(window) >= _RECORDS_MAX or size >= _BYTES_MAX:
            window.sort(key=_time)  # nearly in order: this takes little more than one look at each
            half = len(window) // 2 + 1
            last_ns = window[half - 1][0]
            yield from window[:half]
            del window[:half]
            size = sum(len(record[4]) for record in window)
    window.sort(key=_time)
    yield from window


def _time(record: Record) -> int:
    return record[0]
