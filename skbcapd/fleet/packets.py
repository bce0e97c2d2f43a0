"""The packets of index rows.

In: a capture file of which ranges can be read, and rows of its index. Out: their packets in the order of time, as one
pcapng file, with the name of the host in the interface's name and description.

The rules: of a file that is not compressed, only the blocks between the first and the last packet of rows are read,
neighbours at once; of a compressed one, only the members with these blocks, if it has members. A packet is taken if its
flow, process and interface are those of a row, and it stands where the row says. Neither the file nor the rows are
trusted: each length is checked, and a file that is not the one of the index is an error. What can be read is returned
all the same. Memory is bounded by the packets that are returned, and 64 MiB.

Source: docs/index.md; draft-ietf-opsawg-pcapng.
"""

from __future__ import annotations

import struct
import tempfile
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import IO, NamedTuple, TypeAlias

from skbcapd.analysis.pcapng_file import PcapngSection
from skbcapd.analysis.records import Record, records
from skbcapd.analysis.selectors import Selection, Selectors
from skbcapd.child import memory_file
from skbcapd.errors import FileError
from skbcapd.fleet.flows import Flows, Key, address_text
from skbcapd.fleet.rows import Row
from skbcapd.fleet.windows import Unpacked, Window
from skbcapd.output.naming import COMPRESSED
from skbcapd.pcapng.blocks import IF_DESCRIPTION, IF_NAME, INTERFACE, PACKET, SECTION, section_body
from skbcapd.pcapng.granules import GRANULE
from skbcapd.pcapng.reader import Interface, Packet, Reader, walk_options

Ranges: TypeAlias = Callable[[int, int | None], bytes]
"""Reads the bytes of a file from an offset to before another one, or to its end; fewer where the file ends."""

_GAP = 1 << 16  # bytes between two ranges that are read at once
_BLOCK = 1 << 11  # bytes that are read of a last block at first
_BLOCK_MAX = 16 << 20
_RUN_MAX = 64 << 20  # bytes that are read at once
_FIRST_LABEL = Row._fields.index("process_name")
_LAST_LABEL = Row._fields.index("via")
_LABELS = _LAST_LABEL + 1 - _FIRST_LABEL
_Key: TypeAlias = tuple[int | str | None, ...]
_ALL = Selection(Selectors())


class Extracted(NamedTuple):
    """What was found.

    Args:
        data: a pcapng file; empty without packets.
        packets: how many are in it.
        wrong: why packets of the rows are missing, or are not certain; None: nothing is wrong.
    """

    data: bytes
    packets: int
    wrong: FileError | None


class _Place(NamedTuple):
    """A range of the stored file, and an interface whose packets are in it."""

    offset: int
    length: int
    interface_id: int
    described: tuple[int, int, int]  # offset, length, and where in these bytes


_Spans: TypeAlias = dict[_Key, list[tuple[int, int]]]
"""Where the first and the last block of rows begin in a place, by the columns of flow and process."""


class _Face(NamedTuple):
    """What is wanted of an interface: offsets of spans and blocks differ by `shift`."""

    number: int
    interface: Interface
    spans: _Spans
    shift: int


@dataclass(slots=True)
class _Run:
    """Blocks that follow each other: where those begin that are the first one of a row; where the last one begins; what
    is wanted.
    """

    firsts: list[int]
    last: int
    faces: dict[int, _Face]


class _BlockError(FileError):
    """There is no right block at an offset."""

    def __init__(self, message: str, at: int) -> None:
        super().__init__(message, _OTHER)
        self.at = at


def packets(name: str, ranges: Ranges, rows: Iterable[Row], selection: Selection = _ALL) -> Extracted:
    """The packets of rows of one file.

    Args:
        name: of the file, for errors; with the ending .gz or .zst, ranges are decompressed.
        ranges: reads the file.
        rows: of its index.
        selection: of these packets, only the selected ones.

    Raises:
        OSError: it cannot be read.
    """
    places: dict[_Place, _Spans] = {}
    host, expected, is_packed = "", 0, name.endswith(COMPRESSED)
    wrong = None
    for row in rows:
        host = row.host_name
        expected += row.packets_out + row.packets_in + row.packets_unknown
        if not 0 <= row.first_at <= row.last_at < row.first_at + GRANULE or not (is_packed or row.last_at < row.length):
            wrong = FileError(
                f"{name}: the index has impossible block offsets ({row.first_at} to {row.last_at})", _OTHER
            )
            continue
        described = row.interface_offset, row.interface_length, row.interface_at
        place = _Place(row.offset, row.length, row.interface_id, described)
        places.setdefault(place, {}).setdefault(_key(row), []).append((row.first_at, row.last_at))
    file = _File(name, ranges, host, is_packed=is_packed)
    file.note(wrong)
    with closing(file):
        found = list(_chosen(file.packets(places), selection))
    found.sort(key=lambda record: record[0])
    made, into = PcapngSection(), bytearray()
    for record in found:
        made.encode(record, into)
    if file.count != expected:
        file.note(FileError(f"{name}: found {file.count} packets; the index says {expected}", _OTHER))
    return Extracted(bytes(into), len(found), file.wrong)


def _key(row: Row) -> _Key:
    return (
        *row[_FIRST_LABEL : _LAST_LABEL + 1],
        row.protocol,
        row.local_address,
        row.local_port,
        row.peer_address,
        row.peer_port,
    )


def _chosen(packets_: Iterator[Packet], selection: Selection) -> Iterator[Record]:
    timed = ((packet[0].time_ns(packet[2]), packet) for packet in selection.chosen(packets_))
    return ((time, face, stamp, size, bytes(frame), opts) for time, face, stamp, size, frame, opts in records(timed))


class _File:
    """Reads ranges of a stored file.

    Args:
        name: as for `packets`.
        ranges: as for `packets`.
        host: name of the host.
        is_packed: whether ranges are compressed.
    """

    def __init__(self, name: str, ranges: Ranges, host: str, *, is_packed: bool) -> None:
        self.wrong: FileError | None = None
        """The first error."""
        self.count = 0
        """Packets so far."""
        self._name, self._ranges, self._host, self._is_packed = name, ranges, host, is_packed
        self._interfaces: dict[tuple[int, int, int], Interface | None] = {}
        self._copy: tuple[tuple[int, int], IO[bytes]] | None = None  # the last range that was copied

    def close(self) -> None:
        """Delete the last copy of a range."""
        if self._copy:
            self._copy[1].close()
        self._copy = None

    def note(self, error: FileError | None) -> None:
        """Remember an error."""
        self.wrong = self.wrong or error

    def packets(self, places: dict[_Place, _Spans]) -> Iterator[Packet]:
        """The wanted packets of all places, as far as they can be read."""
        for window, runs in self._members(places) if self._is_packed else self._neighbours(places):
            for run in runs:
                yield from self._packets(window, run)

    def _packets(self, window: Window, run: _Run) -> Iterator[Packet]:
        """The wanted packets of a run; behind an error, from the next row on."""
        first: int | None = run.firsts[0]
        while first is not None:
            try:
                for packet in _walk(self._name, window, run, first):
                    self.count += 1
                    yield packet
                first = None
            except _BlockError as error:
                self.note(error)
                at = bisect_right(run.firsts, error.at)
                first = run.firsts[at] if at < len(run.firsts) else None

    def _faces(self, places: dict[_Place, _Spans]) -> Iterator[tuple[_Place, _Face]]:
        """The places whose interfaces are described, those of one range together."""
        for place, spans in sorted(places.items(), key=lambda each: each[0]):
            try:
                if place.described not in self._interfaces:
                    self._interfaces[place.described] = None
                    self._interfaces[place.described] = self._interface(*place.described)
            except FileError as error:
                self.note(error)
            if interface := self._interfaces[place.described]:
                yield place, _Face(place.interface_id, interface, spans, 0 if self._is_packed else place.offset)

    def _members(self, places: dict[_Place, _Spans]) -> Iterator[tuple[Window, list[_Run]]]:
        """Decompress each range once."""
        for (offset, length), group in groupby(self._faces(places), lambda each: each[0][:2]):
            runs = _runs(face for _, face in group)
            with self._unpacked(offset, length) as window:
                yield window, runs
                window.check()
                self.note(window.wrong)

    def _neighbours(self, places: dict[_Place, _Spans]) -> Iterator[tuple[Window, list[_Run]]]:
        """Read the blocks of runs that are near to each other at once."""
        group: list[_Run] = []
        for run in _runs(face for _, face in self._faces(places)):
            if group and (run.firsts[0] - group[-1].last > _GAP or run.last - group[0].firsts[0] > _RUN_MAX):
                yield self._read(group[0].firsts[0], group[-1].last), group
                group = []
            group.append(run)
        if group:
            yield self._read(group[0].firsts[0], group[-1].last), group

    def _read(self, first: int, last: int) -> Window:
        """The bytes of blocks."""
        data = self._ranges(first, last + _BLOCK)
        field = data[last - first + 4 : last - first + 8]
        # One of both byte orders gives a possible length.
        size = min(int.from_bytes(field, "little"), int.from_bytes(field, "big"))
        if len(field) == 4 and _BLOCK < size <= _BLOCK_MAX:
            data += self._ranges(last + _BLOCK, last + size)
        return Window(data, first)

    def _interface(self, offset: int, length: int, at: int) -> Interface:
        """An interface, with the host in its name.

        Raises:
            FileError: it is not described there.
        """
        if self._is_packed:
            with self._unpacked(offset, length) as window:
                data = window.block(at)
        else:
            data = self._ranges(offset, offset + min(length, _BLOCK_MAX))[at:]
        order = "<" if data[:4] == struct.pack("<I", INTERFACE) else ">"
        kind, size = struct.unpack_from(order + "II", data.ljust(8, b"\xff"))
        if kind != INTERFACE or not 20 <= size <= len(data) or size & 3:
            raise FileError(f"{self._name}: no description of an interface at byte {offset + at}", _OTHER)
        return _parsed(_with_host(data[:size], order, self._host), order)

    @contextmanager
    def _unpacked(self, offset: int, length: int) -> Iterator[Unpacked]:
        """A decompressed range."""
        window = Unpacked(self._name, self._copied(offset, length).fileno())
        try:
            yield window
        finally:
            window.close()

    def _copied(self, offset: int, length: int) -> IO[bytes]:
        """A file with a range. The last one is kept: of a file that was compressed as a whole, all ranges are the same:
        it is read once, however many interfaces it has.
        """
        if self._copy and self._copy[0] == (offset, length):
            return self._copy[1]
        self.close()
        file = tempfile.TemporaryFile()  # noqa: SIM115  closed by `close`
        self._copy = (-1, -1), file  # not complete yet
        begin, end = offset, offset + length if length else None
        while end is None or begin < end:
            data = self._ranges(begin, min(begin + _RUN_MAX, end or 1 << 63))
            try:
                file.write(data)
                file.flush()
            except OSError as error:
                raise FileError(f"{tempfile.gettempdir()}: {error.strerror}; expected to write a work file") from None
            if len(data) < _RUN_MAX:
                break
            begin += len(data)
        self._copy = (offset, length), file
        return file


_OTHER = "the file is damaged, or has changed since it was indexed; run: skbcapd index FILE"


def _runs(faces: Iterable[_Face]) -> list[_Run]:
    """What is wanted, in the order of the file; rows that overlap are read together."""
    found = []
    for face in faces:
        found += [(face.shift + begin, face.shift + end, face) for spans in face.spans.values() for begin, end in spans]
    runs: list[_Run] = []
    for first, last, face in sorted(found, key=lambda each: each[:2]):
        if not runs or first > runs[-1].last:
            runs.append(_Run([], last, {}))
        runs[-1].firsts.append(first)
        runs[-1].last = max(runs[-1].last, last)
        runs[-1].faces[id(face)] = face
    return runs


def _parsed(block: bytes, order: str) -> Interface:
    """An interface as the reader of capture files returns it."""
    header = struct.pack(order + "II", SECTION, 28) + section_body(order) + struct.pack(order + "I", 28)
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


def _walk(name: str, window: Window, run: _Run, first: int) -> Iterator[Packet]:
    """The wanted packets of a run from an offset on, in the order of the file.

    Raises:
        _BlockError: a block is missing or wrong; the packets before that have been returned.
    """
    faces = list(run.faces.values())
    order = faces[0].interface.section.order
    head, body = struct.Struct(order + "II"), struct.Struct(order + "5I")
    flows = Flows()
    at = window.skip(first)
    while window.before + at <= run.last:
        at = window.need(at, 12)
        kind, length = head.unpack_from(window.data, at) if at + 12 <= len(window.data) else (0, 0)
        if _BLOCK_MAX >= length > len(window.data) - at:
            at = window.need(at, length)
        data = window.data
        is_whole = 12 <= length <= len(data) - at and not length & 3
        if kind == SECTION or not is_whole or data[at + 4 : at + 8] != data[at + length - 4 : at + length]:
            said = f"{name}: no block at byte {window.before + at}{window.where}; expected one"
            raise _BlockError(said, window.before + at)
        if kind == PACKET and length >= 32:
            number, high, low, cap_len, wire_len = body.unpack_from(data, at + 8)
            if cap_len > length - 32:
                said = f"{name}: a block of {length} bytes has a frame of {cap_len}"
                raise _BlockError(said, window.before + at)
            for face in faces:
                if number == face.number:
                    frame = memoryview(data)[at + 28 : at + 28 + cap_len]
                    options = data[at + 28 + cap_len + (-cap_len & 3) : at + length - 4]
                    stamp = face.interface.section.stamp(options)
                    found = flows.find(None, face.interface, stamp, frame, options)
                    where = window.before + at - face.shift
                    spans = face.spans.get(_columns(flows.owners[found.owner][0]), ())
                    if any(begin <= where <= end for begin, end in spans):
                        yield face.interface, stamp, high << 32 | low, wire_len, frame, options
                        break
        at += length


def _columns(row: Key) -> _Key:
    """What distinguishes rows of an interface; in the order of `_key`."""
    protocol, local, local_port, peer, peer_port = row.flow
    ends = address_text(local) if local else None, local_port, address_text(peer) if peer else None, peer_port
    return *row.label, protocol, *ends
