"""Strict time order in bounded memory."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from skbcapd.analysis import order
from skbcapd.analysis.order import in_order
from skbcapd.analysis.records import Record
from skbcapd.errors import FileError
from skbcapd.pcapng.reader import Interface, Section, Stamp

INTERFACE = Interface(Section("<", b""), 1, 0, b"")


def records(times: list[int]) -> Iterator[Record]:
    """A record at each time; its frame is its place, and is gone when the next one comes."""
    frame = bytearray(4)
    for number, time in enumerate(times):
        frame[:] = number.to_bytes(4, "little")
        yield time, INTERFACE, Stamp(), 4, memoryview(frame), b""


def test_late_packets_are_put_in_their_place() -> None:
    """However many packets there are, those that are late by less than half a window are in order; equal ones stay."""
    chosen = random.Random(7)
    times = [number - chosen.randrange(997) for number in range(3 * order._RECORDS_MAX + 7)]
    found = [(record[0], int.from_bytes(record[4], "little")) for record in in_order(records(times))]
    assert found == sorted((time, number) for number, time in enumerate(times))


def test_a_packet_that_is_too_late() -> None:
    """A packet that is older than what is written already is an error with a way out, never out of order."""
    times = [*range(order._RECORDS_MAX), 7]
    with pytest.raises(FileError, match="a packet at 7 ns since 1970 is later than 65536 packets behind it") as raised:
        list(in_order(records(times)))
    assert "reordercap" in raised.value.hint


def test_bytes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large frames make the window smaller."""
    monkeypatch.setattr(order, "_BYTES_MAX", 64)
    seen = 0

    def counted() -> Iterator[Record]:
        nonlocal seen
        for record in records(list(range(100))):
            seen += 1
            yield record

    first = next(iter(in_order(counted())))
    assert (first[0], seen) == (0, 16)
