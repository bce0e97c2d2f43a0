"""The index of a capture file: which process of this host exchanged packets with whom, when, and where in the file.

In: a pcapng file, also compressed with gzip or zstd. Out: rows, one for each granule, interface, process and flow. A
granule is a run of whole blocks of about 1 MiB: what must be read to get the packets of its rows.

The rules not to break: the sums of all rows are those of `skbcapd top`. A row has all packets of its flow in its
granule: where no row matches a question, no packet does. Memory is bounded by the rows of two granules, whatever the
file holds. Little work for each packet: one whose headers and options were seen in the granule costs one look-up.

Source: docs/index.md.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

from skbcapd.analysis.names import Names
from skbcapd.errors import FileError
from skbcapd.fleet.flows import FLOW4, FLOW6, Bytes, Flows, Key
from skbcapd.fleet.places import Place, Places, Plain, Whole
from skbcapd.fleet.rows import Row
from skbcapd.frames.headers import IPV6
from skbcapd.output.naming import harmless
from skbcapd.pcapng.blocks import DIRECTION_IN, DIRECTION_OUT
from skbcapd.pcapng.link_type import ETHERNET
from skbcapd.pcapng.reader import Interface, Reader, Stamp
from skbcapd.text_safety import escaped_bytes

GRANULE = 1 << 20  # bytes

_Counter: TypeAlias = list[int]
_PACKETS, _BYTES, _FIRST_NS, _LAST_NS, _FIRST_AT, _LAST_AT, _LOOKS = range(7)
"""What a counter has; the last one: packets in which names are still looked for."""
_NOTHING = [0, 0]
_SHORT = 60  # bytes; neither an answer of DNS nor the hello of a TLS client fits such a frame

_Rows: TypeAlias = dict[Key, dict[int, _Counter]]
"""The counters of the rows of a granule, by direction."""


def index(path: Path, host: str = "", places: Places | None = None, name: str = "") -> Iterator[Row]:
    """The rows of a capture file, granule by granule.

    Args:
        path: a pcapng file.
        host: name of the host; empty: of this one.
        places: how the file will be stored; None: as it is.
        name: name of the file in the rows; empty: its own one.

    Raises:
        FileError: it is no pcapng file, or cannot be read to its end; the rows of all packets before that offset have
            been returned.
    """
    with Reader(path) as reader:
        places = places or (Whole() if reader.is_compressed else Plain())
        host = host or harmless(socket.gethostname())
        yield from _Index(reader, places, host, name or escaped_bytes(os.fsencode(path.name))).rows()


class _Index:
    """Reads one file."""

    def __init__(self, reader: Reader, places: Places, host: str, name: str) -> None:
        self._reader = reader
        self._places = places
        self._file = host, name
        self._names = Names()
        self._flows = Flows()
        self._begin = -1  # offset of the first packet of the granule
        self._rows: _Rows = {}
        self._by_bytes: dict[Bytes, _Counter] = {}  # the same counters
        self._stamps: list[Stamp] = []  # whose ids are keys there
        self._waiting: tuple[Place, _Rows] = Place(0, 0, 0), {}  # of the granule before

    def rows(self) -> Iterator[Row]:
        """See `index`."""
        try:
            yield from self._read()
        except FileError:
            yield from self._end()
            raise
        yield from self._end()

    def _read(self) -> Iterator[Row]:
        reader, see, get = self._reader, self._names.see, self._by_bytes.get
        current, section, is_plain, layer, number, limit = None, None, False, 0, 0, 0
        unpack = FLOW4.unpack_from
        for interface, stamp, time, wire_len, frame, options in reader.packets():
            at = reader.at
            if interface is not current:
                if not interface.block:
                    raise FileError(
                        f"{reader.name}: pcap; expected pcapng",
                        "skbcapd extract FILE -w OUT writes pcapng",
                    )
                if interface.section is not section:
                    section, limit = interface.section, 0
                    self._flows.clear()  # numbers of interfaces begin again
                current, is_plain, layer, number = interface, interface.is_plain, interface.link_type, interface.number
            if at >= limit:
                limit = at - at % GRANULE + GRANULE
                yield from self._next(at)
            time_ns = time if is_plain else interface.time_ns(time)
            counter = None
            raw: Bytes = ()
            if layer == ETHERNET and len(frame) >= FLOW4.size:
                raw = (*unpack(frame), id(stamp), number)
                counter = get(raw)
                if counter is None and raw[0] == IPV6 and len(frame) >= FLOW6.size:
                    raw = (*FLOW6.unpack_from(frame), id(stamp), number)
                    counter = get(raw)
            if counter is None:
                counter = self._counter(raw, interface, stamp, frame, options, time_ns)
            counter[_PACKETS] += 1
            counter[_BYTES] += wire_len
            counter[_LAST_AT] = at
            if time_ns > counter[_LAST_NS]:
                counter[_LAST_NS] = time_ns
            elif time_ns < counter[_FIRST_NS]:
                counter[_FIRST_NS] = time_ns
            if counter[_LOOKS] and len(frame) > _SHORT:
                counter[_LOOKS] -= 1
                see(frame, layer)

    def _counter(
        self, raw: Bytes, interface: Interface, stamp: Stamp, frame: memoryview, options: bytes, time_ns: int
    ) -> _Counter:
        """The counter of a packet that is not found by `raw`."""
        found, is_regular = self._flows.known.get(raw), True
        if found is None:
            found, is_regular = self._flows.find(raw, interface, stamp, frame, options)
        ways = self._rows.get(found.key)
        if ways is None:
            ways = self._rows[found.key] = {}
        counter = ways.get(found.direction)
        if counter is None:
            at = self._reader.at
            counter = ways[found.direction] = [0, 0, time_ns, time_ns, at, at, found.looks]
        if is_regular:
            self._by_bytes[raw] = counter
            self._stamps.append(stamp)
        return counter

    def _next(self, begin: int) -> Iterator[Row]:
        """End the granule, and begin the next one; returns the rows of the one before."""
        if self._begin < 0:
            self._places.add(0, begin)  # section and interfaces
        else:
            yield from self._take(begin)
        self._begin = begin

    def _end(self) -> Iterator[Row]:
        """The rows that are left."""
        if self._begin >= 0:
            yield from self._take(self._reader.at)
            yield from self._made()

    def _take(self, end: int) -> Iterator[Row]:
        """End the granule: its rows wait, those of the one before are returned: by now, names of their peers were
        seen, also where the first packets of a connection are at the end of a granule.
        """
        yield from self._made()
        self._waiting = self._places.add(self._begin, end), self._rows
        self._rows = {}
        self._by_bytes.clear()
        self._stamps.clear()
        self._flows.forget()

    def _made(self) -> Iterator[Row]:
        place, waiting = self._waiting
        start = *self._file, place.offset, place.length
        described: dict[Interface, tuple[int, ...]] = {}
        names_of, make = self._names.of, Row._make
        for key, ways in waiting.items():
            described_at = described.get(key.interface) or described.setdefault(
                key.interface, self._described(key.interface)
            )
            first_ns, last_ns, first_at, last_at = _span(ways)
            sent, received, other = (ways.get(way, _NOTHING) for way in (DIRECTION_OUT, DIRECTION_IN, 0))
            peer = key.flow.peer
            names = names_of(peer) if peer else ()
            yield make(
                (
                    first_ns // 1000,
                    -(-last_ns // 1000),
                    *key.columns[0],
                    " ".join(names) if names else None,
                    *key.columns[1],
                    sent[_PACKETS],
                    sent[_BYTES],
                    received[_PACKETS],
                    received[_BYTES],
                    other[_PACKETS],
                    other[_BYTES],
                    *start,
                    first_at - place.begin,
                    last_at - place.begin,
                    *described_at,
                )
            )
        self._waiting = place, {}

    def _described(self, interface: Interface) -> tuple[int, ...]:
        """Its number, and where its description is."""
        place = self._places.find(interface.at, len(interface.block))
        return interface.number, place.offset, place.length, interface.at - place.begin


def _span(ways: dict[int, _Counter]) -> tuple[int, int, int, int]:
    """First and last time, offset of the first and last block."""
    first, *others = ways.values()
    _, _, first_ns, last_ns, first_at, last_at, _ = first
    for counter in others:
        first_ns, last_ns = min(first_ns, counter[_FIRST_NS]), max(last_ns, counter[_LAST_NS])
        first_at, last_at = min(first_at, counter[_FIRST_AT]), max(last_at, counter[_LAST_AT])
    return first_ns, last_ns, first_at, last_at
