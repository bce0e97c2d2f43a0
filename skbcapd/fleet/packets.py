"""The packets of index rows.

In: a capture file of which ranges can be read, and rows of its index. Out: their packets in the order of time, as one
pcapng file, with the name of the host in the interface's name and description.

The rules: of a file that is not compressed, only the blocks between the first and the last packet of rows are read,
neighbours at once. A packet is taken if its flow, process and interface are those of a row, and it stands where the
row says. The file is not trusted: each length is checked, and a file that is not the one of the index is an error.

Source: docs/index.md; draft-ietf-opsawg-pcapng.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

from skbcapd.analysis.pcapng_file import PcapngSection
from skbcapd.analysis.records import Record, records
from skbcapd.analysis.selectors import Selection, Selectors
from skbcapd.child import memory_file
from skbcapd.errors import FileError
from skbcapd.fleet.flows import Flows, Found, address_text
from skbcapd.fleet.rows import Row
from skbcapd.output.naming import COMPRESSED
from skbcapd.pcapng.blocks import BYTE_ORDER_MAGIC, IF_DESCRIPTION, IF_NAME, INTERFACE, PACKET, SECTION
from skbcapd.pcapng.reader import Interface, Packet, Reader, walk_options
from skbcapd.pcapng.source import Source

Ranges: TypeAlias = Callable[[int, int | None], bytes]
"""Reads the bytes of a file from an offset to before another one, or to its end; fewer where the file ends."""

_GAP = 1 << 16  # bytes between two ranges that are read at once
_BLOCK = 1 << 11  # bytes that are read of a last block at first
_BLOCK_MAX = 16 << 20
_FIRST_LABEL = Row._fields.index("process_name")
_LAST_LABEL = Row._fields.index("via")
_Key: TypeAlias = tuple[int | str | None, ...]
_ALL = Selection(Selectors())


class _Place(NamedTuple):
    """A range of the stored file, and an interface whose packets are in it."""

    offset: int
    length: int
    interface_id: int
    described: tuple[int, int, int]  # offset, length, and where in these bytes


_Spans: TypeAlias = dict[_Key, list[tuple[int, int]]]
"""Where the first and the last block of rows begin in a place, by the columns of flow and process."""


class _Data(NamedTuple):
    """The blocks of a place.

    Args:
        place: the place.
        spans: what is wanted.
        data: bytes that have its blocks.
        shift: where the first byte of the place is, or would be, in `data`.
    """

    place: _Place
    spans: _Spans
    data: bytes
    shift: int


def packets(name: str, ranges: Ranges, rows: Iterable[Row], selection: Selection = _ALL) -> tuple[bytes, int]:
    """The packets of rows of one file.

    Args:
        name: of the file, for errors; with the ending .gz or .zst, ranges are decompressed.
        ranges: reads the file.
        rows: of its index.
        selection: of these packets, only the selected ones.

    Returns:
        A pcapng file, and the number of packets in it; empty without packets.

    Raises:
        FileError: the file is torn, or is not that of the index.
        OSError: it cannot be read.
    """
    places: dict[_Place, _Spans] = {}
    host = ""
    for row in rows:
        host = row.host_name
        described = row.interface_offset, row.interface_length, row.interface_at
        place = _Place(row.offset, row.length, row.interface_id, described)
        places.setdefault(place, {}).setdefault(_key(row), []).append((row.first_at, row.last_at))
    found: list[Record] = []
    file = _File(name, ranges, is_packed=name.endswith(COMPRESSED))
    for read in file.read(places):
        found += _chosen(_walk(name, read, file.interface(read.place, host)), selection)
    found.sort(key=lambda record: record[0])
    made, into = PcapngSection(), bytearray()
    for record in found:
        made.encode(record, into)
    return bytes(into), len(found)


def _key(row: Row) -> _Key:
    return (
        *row[_FIRST_LABEL : _LAST_LABEL + 1],
        row.protocol,
        row.local_address,
        row.local_port,
        row.peer_address,
        row.peer_port,
    )


def _chosen(packets_: Iterator[Packet], selection: Selection) -> list[Record]:
    timed = ((packet[0].time_ns(packet[2]), packet) for packet in selection.chosen(packets_))
    return [(time, face, stamp, size, bytes(frame), opts) for time, face, stamp, size, frame, opts in records(timed)]


class _File:
    """Reads ranges of a stored file.

    Args:
        name: as for `packets`.
        ranges: as for `packets`.
        is_packed: whether ranges are compressed.
    """

    def __init__(self, name: str, ranges: Ranges, *, is_packed: bool) -> None:
        self.name = name
        self._ranges = ranges
        self._is_packed = is_packed
        self._read: dict[tuple[int, int], bytes] = {}

    def read(self, places: dict[_Place, _Spans]) -> Iterator[_Data]:
        """The bytes of all places."""
        if self._is_packed:
            for place, spans in sorted(places.items()):
                yield _Data(place, spans, self._bytes(place.offset, place.length), 0)
            return
        group: list[tuple[int, int, _Place]] = []
        bounds = [(place.offset + _first(spans), place.offset + _last(spans), place) for place, spans in places.items()]
        for bound in sorted(bounds):
            if group and bound[0] - max(last for _, last, _ in group) > _GAP:
                yield from self._read_group(group, places)
                group = []
            group.append(bound)
        yield from self._read_group(group, places)

    def _read_group(self, group: Sequence[tuple[int, int, _Place]], places: dict[_Place, _Spans]) -> Iterator[_Data]:
        """The bytes of neighbours."""
        if not group:
            return
        start, last = group[0][0], max(last for _, last, _ in group)
        data = self._ranges(start, last + _BLOCK)
        field = data[last - start + 4 : last - start + 8]
        # One of both byte orders gives a possible length.
        size = min(int.from_bytes(field, "little"), int.from_bytes(field, "big"))
        if len(field) == 4 and _BLOCK < size <= _BLOCK_MAX:
            data += self._ranges(last + _BLOCK, last + size)
        for _, _, place in group:
            yield _Data(place, places[place], data, place.offset - start)

    def interface(self, place: _Place, host: str) -> Interface:
        """The interface of a place, with the host in its name.

        Raises:
            FileError: it is not described there.
        """
        offset, length, at = place.described
        data = self._bytes(offset, length)[at:]
        order = "<" if data[:4] == struct.pack("<I", INTERFACE) else ">"
        kind, size = struct.unpack_from(order + "II", data.ljust(8, b"\xff"))
        if kind != INTERFACE or not 20 <= size <= len(data) or size & 3:
            raise FileError(f"{self.name}: no description of an interface at byte {offset + at}", _OTHER)
        return _parsed(_with_host(data[:size], order, host), order)

    def _bytes(self, offset: int, length: int) -> bytes:
        """Bytes, decompressed and remembered."""
        data = self._read.get((offset, length))
        if data is None:
            data = self._ranges(offset, offset + length if length else None)
            data = self._read[offset, length] = self._unpacked(data) if self._is_packed else data
        return data

    def _unpacked(self, data: bytes) -> bytes:
        """Decompressed bytes."""
        with memory_file("range") as file:
            file.write(data)
            file.flush()
            source = Source(Path(f"/proc/self/fd/{file.fileno()}"))
            try:
                size = 0
                while len(source.data) >= size:
                    size = len(source.data) + (1 << 20)
                    source.read_on(0, size)
                return source.data
            finally:
                source.close()


_OTHER = "it is torn, or has changed since it was indexed: skbcapd index FILE"


def _first(spans: _Spans) -> int:
    return min(begin for found in spans.values() for begin, _ in found)


def _last(spans: _Spans) -> int:
    return max(end for found in spans.values() for _, end in found)


def _parsed(block: bytes, order: str) -> Interface:
    """An interface as the reader of capture files returns it."""
    header = struct.pack(order + "IIIHHqI", SECTION, 28, BYTE_ORDER_MAGIC, 1, 0, -1, 28)
    empty = struct.pack(order + "8I", PACKET, 32, 0, 0, 0, 0, 0, 32)
    with memory_file("description") as file:
        file.write(header + block + empty)
        with Reader(Path(f"/proc/self/fd/{file.fileno()}")) as reader:
            return next(reader.packets())[0]


def _with_host(block: bytes, order: str, host: str) -> bytes:
    """A description whose name and description begin with the name of the host."""
    named = host.encode()
    texts = {IF_NAME: b"", IF_DESCRIPTION: b""}
    others = b""
    for code, value in walk_options(block[16:-4], order):
        if code in texts:
            texts[code] = value
        else:
            others += _option(order, code, value)
    for code, value in texts.items():
        others = _option(order, code, named + b": " + value if value else named) + others
    others = others + bytes(4) if not others.endswith(bytes(4)) else others
    length = 20 + len(others)
    return struct.pack(order + "II", INTERFACE, length) + block[8:16] + others + struct.pack(order + "I", length)


def _option(order: str, code: int, value: bytes) -> bytes:
    value = value[:0xFFFF]
    return struct.pack(order + "HH", code, len(value)) + value + bytes(-len(value) & 3)


def _walk(name: str, read: _Data, interface: Interface) -> Iterator[Packet]:
    """The wanted packets of a place, in the order of the file."""
    _, spans, data, shift = read
    order = interface.section.order
    head, body = struct.Struct(order + "II"), struct.Struct(order + "5I")
    flows, view = Flows(), memoryview(data)
    at, last = _first(spans) + shift, _last(spans) + shift
    while at <= last:
        kind, length = head.unpack_from(data, at) if at + 12 <= len(data) else (0, 0)
        is_whole = 12 <= length <= len(data) - at and not length & 3
        if kind == SECTION or not is_whole or data[at + 4 : at + 8] != data[at + length - 4 : at + length]:
            raise FileError(f"{name}: no block at byte {at - shift} of a granule; expected one", _OTHER)
        if kind == PACKET and length >= 32:
            number, high, low, cap_len, wire_len = body.unpack_from(data, at + 8)
            if cap_len > length - 32:
                raise FileError(f"{name}: a block of {length} bytes has a frame of {cap_len}", _OTHER)
            if number == read.place.interface_id:
                frame = view[at + 28 : at + 28 + cap_len]
                options = data[at + 28 + cap_len + (-cap_len & 3) : at + length - 4]
                stamp = interface.section.stamp(options)
                found, _ = flows.find((), interface, stamp, frame, options)
                wanted = spans.get(_columns(found), ())
                if any(begin <= at - shift <= end for begin, end in wanted):
                    yield interface, stamp, high << 32 | low, wire_len, frame, options
        at += length


def _columns(found: Found) -> _Key:
    """What distinguishes rows of an interface."""
    flow = found.key.flow
    local, peer = (None if address is None else address_text(address) for address in (flow.local, flow.peer))
    ends = local, flow.local_port, peer, flow.peer_port
    return (*found.key.label, flow.protocol, *ends)
