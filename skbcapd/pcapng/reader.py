"""Reads capture files: pcapng and pcap, of skbcapd and others, also compressed with gzip or zstd.

In: a path. Out: packets, each with its interface and its stamp: the process and direction from its
options. `top` and `split` use it. It does not use scapy: its raw reader takes four times as long,
and version 2.5 in Debian 12 cannot read comments.

The rule not to break: the file is not trusted. Each length is compared with the available bytes
before it is used, memory is bounded independently of the file, and every error is a FileError with
the offset. All packets before that offset have been returned by then, so an incomplete file still
gives results.

Source: draft-ietf-opsawg-pcapng; draft-ietf-opsawg-pcap for the older format.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, NoReturn, Self, TypeAlias

from skbcapd.attribution.fields import GROUPS
from skbcapd.errors import FileError
from skbcapd.pcapng.blocks import (
    EPB_FLAGS,
    EPB_PROCESSID_THREADID,
    IF_DESCRIPTION,
    IF_NAME,
    INTERFACE,
    OBSOLETE_PACKET,
    OPT_COMMENT,
    OPT_ENDOFOPT,
    PACKET,
    PACKET_ID_HEAD,
    SECRETS,
    SECTION,
    SIMPLE_PACKET,
    STATISTICS,
    TLS_KEY_LOG,
    without_packet_id,
)
from skbcapd.pcapng.comment import CommentError, parse
from skbcapd.pcapng.flows import (
    BYTES,
    FIRST_NS,
    FLOW4,
    FLOW6,
    HANDSHAKE,
    HELLO_MIN,
    LAST_AT,
    LAST_NS,
    PACKETS,
    PLAIN,
    TLS_AT,
    Counted,
)
from skbcapd.pcapng.interface import DROPS, OF_DROPS
from skbcapd.pcapng.link_type import ETHERNET
from skbcapd.pcapng.repeats import Repeats
from skbcapd.pcapng.secrets import key_lines
from skbcapd.pcapng.source import Source, compressed_with

_BLOCK_MAX = 16 << 20  # bytes of one block; MAX_BLOCK_SIZE in Wireshark's wiretap/pcapng.c
_INTERFACES_MAX = 1 << 16  # interfaces of a section
_DESCRIBED_MAX = 64 << 20  # bytes of their descriptions, which are kept in memory
_SECRETS_MAX = 16 << 20  # bytes of TLS secrets that wait for a packet; the others are left out
_KNOWN_MAX = 1 << 15  # entries of the cache of stamps; then it is cleared
_KNOWN_BYTES_MAX = 16 << 20  # bytes of all its entries
_OPTIONS_KEPT = 1024  # bytes; longer options are not cached
_ID_MARK = int.from_bytes(PACKET_ID_HEAD, "little")
# Where skbcapd writes an identifier: before the option with the process (12 bytes) and the end (4 bytes).
_ID_AT, _ID_VALUE, _ID_END = -28, -24, -16
_COMMENT_MAX = 1024  # bytes; a longer comment is not of skbcapd (OPTIONS_MAX)
_VALUE_MAX = 520  # bytes of a name or unit: two file names with a slash; a longer one is not of skbcapd

_ORDERS = {b"\x4d\x3c\x2b\x1a": "<", b"\x1a\x2b\x3c\x4d": ">"}
_READS = {
    order: (
        struct.Struct(order + "7I").unpack_from,
        struct.Struct(order + "I").unpack_from,
        struct.Struct(order + "7I" + FLOW4.format[1:]).unpack_from,
        plain,
        struct.Struct(order + "I24xI").unpack_from,
    )
    for order, plain in PLAIN.items()
}
"""By byte order: the head of a packet block, the length at the end of a block, the head with the flow of a frame,
what shows its kind, and of the end of a block (32 bytes) where an option with an identifier begins, and the length.
"""
_HEAD_SIZE = 28 + FLOW4.size
_LENGTHS = {order: struct.Struct(order + "3I8xI").unpack_from for order in _READS}
"""By byte order: type, length, interface and captured length of a packet block."""
_flow6 = FLOW6.unpack_from
_PCAP = {
    b"\xd4\xc3\xb2\xa1": ("<", 10**6),
    b"\xa1\xb2\xc3\xd4": (">", 10**6),
    b"\x4d\x3c\xb2\xa1": ("<", 10**9),
    b"\xa1\xb2\x3c\x4d": (">", 10**9),
}

# The first comment of a packet of ptcpdump (internal/writer/pcapng.go there).
_PTCPDUMP = re.compile(rb"PID: ([0-9]{1,10})(?:\nCmd: ([^\n]*))?(?:\n|\Z)")


class TruncatedError(FileError):
    """The file ends inside a block: it is truncated, or still being written."""


class Stamp(NamedTuple):
    """The process and direction from the options of a packet; None: not known.

    The process comes from the comment, if it is in the grammar of skbcapd or ptcpdump, otherwise
    from option 8.
    """

    tgid: int | None = None
    comm: bytes | None = None
    unit: bytes | None = None
    via: bytes | None = None
    direction: int = 0  # epb_flags bits 0 and 1: 0 not known, 1 in, 2 out
    process: bytes | None = None  # name of the process, if it differs from comm
    more: tuple[tuple[str, bytes], ...] = ()  # other fields by which packets can be grouped
    drop: bytes | None = None  # why the kernel has dropped the packet
    at: bytes | None = None  # the function of the kernel that has dropped it

    @property
    def name(self) -> bytes | None:
        """The name of the process."""
        return self.comm if self.process is None else self.process

    def value(self, by: str) -> int | bytes | None:
        """The value of one of the GROUPS of attribution.fields, or of `drop` or `at`."""
        if by == "process":
            return self.name
        found: int | bytes | None = getattr(self, by) if by in _NAMED else dict(self.more).get(by)
        return found

    @property
    def size(self) -> int:
        """Memory of its texts in bytes (an estimate)."""
        named = self.comm, self.unit, self.via, self.process, self.drop, self.at
        texts = (*named, *(text for _, text in self.more))
        return sum(len(text) + 64 for text in texts if text is not None)


Known: TypeAlias = tuple[Stamp, bytes | None]
"""A stamp, and the options that say it."""

_NAMED = {"tgid", "comm", "unit", "drop", "at"}
_MORE = tuple(name for name in GROUPS if name not in _NAMED | {"process"})
_TEXTS = (*(name for name in GROUPS if name != "tgid"), "via", "drop", "at")


@dataclass(eq=False, slots=True)
class Section:
    """A section of a pcapng file; a pcap file is a section without a header block.

    Args:
        order: byte order, `<` or `>` as in struct.
        block: its header block, which can be copied to another file. Empty for pcap.
        interfaces: interfaces described so far.
        secrets: lines of key logs that were found since they were last taken; only if they are wanted.
        statistics: the last Interface Statistics Block of each interface, by its number; only if they are wanted.
    """

    order: str
    block: bytes
    interfaces: list[Interface] = field(default_factory=list)
    secrets: bytes = b""
    statistics: dict[int, bytes] = field(default_factory=dict)
    described: int = 0  # bytes of all descriptions
    known: dict[bytes, Known] = field(default_factory=dict)  # what `find` has returned, by options
    # Those whose identifier is at _ID_AT, by all other bytes. The bytes before _ID_AT are equal then, so the identifier
    # of other options with the same bytes, and PACKET_ID_HEAD at this place, is an option there, too.
    linked: dict[bytes, tuple[Stamp, bytes]] = field(default_factory=dict)
    _known_size: int = 0  # bytes of all its entries

    def stamp(self, options: bytes) -> Stamp:
        """The stamp for the options of a packet."""
        return self.find(options)[0]

    def keep_statistics(self, block: bytes) -> None:
        """Keep an Interface Statistics Block, instead of the one before."""
        (number,) = struct.unpack_from(self.order + "I", block, 8)
        if number < len(self.interfaces):
            self.statistics[number] = block

    def find(self, options: bytes) -> Known:
        """The stamp for the options of a packet, cached by all options except epb_packetid, and these options, one
        object for equal ones; None if they are too long for the cache.
        """
        found = self.known.get(options)
        if found is None and options[_ID_AT:_ID_VALUE] == PACKET_ID_HEAD:
            found = self.linked.get(options[:_ID_AT] + options[_ID_END:])
        return found or self._read(options)

    def _read(self, options: bytes) -> Known:
        """As `find`, for options whose bytes are not cached."""
        same, at = without_packet_id(options, self.order)
        found = self.known.get(same)
        if found is None:
            stamp = _read_stamp(same, self.order)
            if len(same) > _OPTIONS_KEPT:
                return stamp, None
            if len(self.known) >= _KNOWN_MAX or self._known_size > _KNOWN_BYTES_MAX:
                self.known.clear()
                self.linked.clear()
                self._known_size = 0
            found = self.known[same] = stamp, same
            self._known_size += len(same) + stamp.size + 128
        if self.order == "<" and at >= 0 and at == len(options) + _ID_AT and options[at:_ID_VALUE] == PACKET_ID_HEAD:
            self.linked[same] = found[0], same
        return found


@dataclass(eq=False, slots=True)
class Interface:
    """An interface of a section.

    Args:
        section: the section.
        link_type: LINKTYPE_ value.
        snaplen: maximum number of bytes kept of a frame; 0: no limit.
        block: its description block, which can be copied to another file. Empty for pcap.
        ticks: units of time per second.
        offset_s: seconds to add to each time.
        number: its number in the section.
        at: offset of its description block in the (decompressed) file.
        is_of_drops: whether its packets are those that the kernel has dropped on other interfaces. They may have been
            captured before, and are no further traffic.
    """

    section: Section
    link_type: int
    snaplen: int
    block: bytes
    ticks: int = 10**6
    offset_s: int = 0
    number: int = 0
    at: int = 0
    is_of_drops: bool = False
    portable: tuple[bytes, bytes] | None = None  # kept for who writes it to another file

    @property
    def is_plain(self) -> bool:
        """Whether times are nanoseconds since 1970 UTC, as in the files of skbcapd."""
        return self.ticks == 10**9 and not self.offset_s

    @property
    def is_countable(self) -> bool:
        """Whether `Counted` may have its packets."""
        return self.link_type == ETHERNET and self.is_plain

    def options(self) -> Iterator[tuple[int, bytes]]:
        """Code and value of each option of its description, in the section's byte order."""
        return walk_options(self.block[16:-4], self.section.order)

    def time_ns(self, time: int) -> int:
        """The time of a packet in nanoseconds since 1970 UTC; can be outside of the calendar."""
        return time * 10**9 // self.ticks + self.offset_s * 10**9


Packet: TypeAlias = tuple[Interface, Stamp, int, int, memoryview, bytes]
"""Interface, stamp, time (in the interface's ticks), the original length, the captured bytes (valid
until the next packet), the options (in the byte order of the section). A plain tuple, because a
file of 1 GB has five million.
"""


class Reader:
    """An open capture file; a context manager.

    Args:
        path: a regular file, or STDIN.
        progress: called from time to time with the number of bytes that were read from the disk.
        has_secrets: whether TLS secrets are wanted.
        ended: takes each section that has been read, with its statistics; None: they are not wanted.
        counted: flows whose packets are counted there, and not returned; None: all are returned.

    Raises:
        FileError: it cannot be opened, is not regular, or the program that decompresses it is not
            installed.
    """

    def __init__(
        self,
        path: Path,
        progress: Callable[[int], None] = lambda _read: None,
        *,
        has_secrets: bool = False,
        ended: Callable[[Section], None] | None = None,
        counted: Counted | None = None,
    ) -> None:
        self._source = Source(path, progress)
        self._counted, self._counts = counted or Counted(), counted is not None
        self._has_secrets, self._ended = has_secrets, ended
        self.name = self._source.name
        self._section = Section("<", b"")  # until the first section header
        self.at = 0
        """Offset of the current packet's block in the (decompressed) file; in the end, of the first byte after it."""

    @property
    def is_compressed(self) -> bool:
        """Whether the file is compressed; offsets are those of the decompressed one."""
        return self._source.is_compressed

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._source.close()

    def packets(self) -> Iterator[Packet]:
        """All packets in the order of the file; can be called once.

        Raises:
            FileError: the file cannot be read further; all packets before that offset have been returned.
        """
        packets = self._begin()
        try:  # a `finally` after the 256th instruction is an endless loop in CPython 3.11 if there is no memory
            yield from packets
        finally:
            self._end_section()

    def _begin(self) -> Iterator[Packet]:
        """Read the first bytes; returns what reads a file of that kind."""
        self._source.read_on(0, 24)
        start = self._source.data[:4]
        if not self._source.data:
            raise FileError(f"{self._source.name}: empty; expected pcapng or pcap")
        if start in _PCAP:
            self._counted.key = None
            order, ticks = _PCAP[start]
            self._section = Section(order, b"")
            return _records(self._source, self._section, ticks)
        if start == struct.pack("<I", SECTION):
            return self._blocks()
        raise _other_format(self._source)

    def _blocks(self) -> Iterator[Packet]:
        """Walk through a pcapng file."""
        at, section = 0, self._section
        while True:
            at = yield from (self._uncounted if self._counts else self._usual)(section, at)
            data, self.at = self._source.data, self._source.before + at
            if len(data) - at < 12:
                data, at = self._source.read_on(at, 12), 0
                if len(data) < 12:
                    break
            kind, length = struct.unpack_from(section.order + "II", data, at)
            if kind == SECTION:
                order = _order(self._source, at)
                self._end_section()
                section = self._section = Section(order, b"")
                self._counted.forget()
                kind, length = struct.unpack_from(section.order + "II", data, at)
            if not 12 <= length <= len(data) - at or length & 3:
                if not 12 <= length <= _BLOCK_MAX or length & 3:
                    self._source.fail(at, f"a block has length {length}", f"12 to {_BLOCK_MAX}, a multiple of 4")
                data, at = self._source.read_on(at, length), 0
                if len(data) < length:
                    break
            after = at + length
            if data[at + 4 : at + 8] != data[after - 4 : after]:
                self._source.fail(at, f"a block of {length} bytes ends with another length", "the same at both ends")
            if kind in {PACKET, OBSOLETE_PACKET, SIMPLE_PACKET}:
                self._counted.key = None
                yield self._other_packet(at, section, data[at:after])
            else:
                self._describe(at, section, data[at:after])
            at = after
        self.at = self._source.before + at
        _expect_end(self._source, len(data) - at, at, "a block")

    def _usual(self, section: Section, at: int) -> Generator[Packet, None, int]:
        """The packets from an offset of the window on; returns the offset of the first block that is something else
        than a right and complete packet.
        """
        data, before, find_stamp, linked = self._source.data, self._source.before, section.find, section.linked.get
        view, end, known, interfaces = memoryview(data), len(data), section.known.get, section.interfaces
        head, _, _, _, tail = _READS[section.order]
        last = end - 32
        while at <= last:
            kind, length, number, high, low, cap_len, wire_len = head(data, at)
            after = at + length
            if kind != PACKET or cap_len > length - 32 or after > end or length & 3 or number >= len(interfaces):
                break
            mark, again = tail(data, after - 32)
            if again != length:
                break
            frame = at + 28
            options = data[frame + (cap_len + 3 & -4) : after - 4]
            found = linked(options[:_ID_AT] + options[_ID_END:]) if mark == _ID_MARK and len(options) >= 28 else None
            stamp, _ = found or known(options) or find_stamp(options)
            self.at = before + at
            yield interfaces[number], stamp, high << 32 | low, wire_len, view[frame : frame + cap_len], options
            at = after
        return at

    def _uncounted(self, section: Section, at: int) -> Generator[Packet, None, int]:  # noqa: C901, PLR0912, PLR0915  calls cost too much
        """As `_usual`, without the packets that are counted, and up to `Counted.limit`."""
        data, before, find_stamp, counted = self._source.data, self._source.before, section.find, self._counted
        view, end, interfaces, counters = memoryview(data), len(data), section.interfaces, counted.counters
        counter_of, begun, linked = counters.get, counted.begun.append, section.linked.get
        _, _, head, (mask4, plain4, mask6, plain6), tail = _READS[section.order]
        size4, size6, last = FLOW4.size, FLOW6.size, min(end - _HEAD_SIZE, counted.limit - before - 1)
        repeats = counted if isinstance(counted, Repeats) and section.order == "<" and counted.begins() else None
        at = repeats.count(data, at, before) if repeats else at
        while at <= last:
            kind, length, number, high, low, cap_len, wire_len, start, middle, ends = head(data, at)
            after = at + length
            if kind != PACKET or cap_len > length - 32 or after > end or length & 3:
                break
            mark, again = tail(data, after - 32)
            if again != length:
                break
            frame, key = at + 28, None
            found, begin = None, frame + (cap_len + 3 & -4)
            if mark == _ID_MARK and begin <= after - 32:
                found = linked(data[begin : after - 32] + data[after - 20 : after - 4])  # as `Section.find`
            stamp, same = found or (None, data[begin : after - 4])
            if start & mask4 == plain4 and cap_len >= size4:
                key = same, number, middle, ends
            elif start & mask6 == plain6 and cap_len >= size6:
                key = same, number, *_flow6(data, frame)
            counter = counter_of(key)
            if counter is None and stamp is None:
                stamp, kept = find_stamp(same)
                key = None if key is None or kept is None else (kept, *key[1:])
                counter = counter_of(key)  # the options may have had an epb_packetid
            tls = counter and counter[TLS_AT] and cap_len >= HELLO_MIN and frame + counter[TLS_AT]
            if not counter or (tls and data[tls + (data[tls + 12] >> 4 << 2)] == HANDSHAKE):
                if number >= len(interfaces):
                    break
                self.at, counted.key = before + at, key
                options = data[begin : after - 4]
                stamp = stamp or find_stamp(options)[0]
                yield interfaces[number], stamp, high << 32 | low, wire_len, view[frame : frame + cap_len], options
                last, counter = min(end - _HEAD_SIZE, counted.limit - before - 1), counter_of(key)
            else:
                time = high << 32 | low
                if counter[PACKETS]:
                    counter[PACKETS] += 1
                    counter[BYTES] += wire_len
                    counter[LAST_AT] = before + at
                    if time > counter[LAST_NS]:
                        counter[LAST_NS] = time
                    elif time < counter[FIRST_NS]:
                        counter[FIRST_NS] = time
                else:
                    counter[:TLS_AT] = 1, wire_len, time, time, before + at, before + at
                    begun(counter)
            if repeats:
                repeats.learn(data, at, after, counter if found or stamp is None else None, has_id=found is not None)
            at = repeats.count(data, after, before) if repeats else after
        return at

    def _other_packet(self, at: int, section: Section, block: bytes) -> Packet:
        """Read a packet block of any kind: a Simple Packet Block has no time and no interface."""
        kind, length = struct.unpack_from(section.order + "II", block)
        number, time, first = 0, 0, 12 if kind == SIMPLE_PACKET else 28
        if length < first + 4:
            _refuse(self._source, at, section, 0, length, length)
        if kind == SIMPLE_PACKET:
            (wire_len,) = struct.unpack_from(section.order + "I", block, 8)
            snaplen = section.interfaces[0].snaplen if section.interfaces else 0
            cap_len = min(wire_len, snaplen or wire_len, length - 16)
        else:
            numbers = "I" if kind == PACKET else "HH"
            number, *_, high, low, cap_len, wire_len = struct.unpack_from(section.order + numbers + "4I", block, 8)
            time = high << 32 | low
        if cap_len > length - first - 4 or number >= len(section.interfaces):
            _refuse(self._source, at, section, number, cap_len, length)
        options = block[first + cap_len + (-cap_len & 3) : -4] if kind != SIMPLE_PACKET else b""
        frame = memoryview(block)[first : first + cap_len]
        return section.interfaces[number], section.stamp(options), time, wire_len, frame, options

    def _end_section(self) -> None:
        if self._ended and (self._section.block or self._section.interfaces):
            self._ended(self._section)

    def _describe(self, at: int, section: Section, block: bytes) -> None:
        """Read a block without a packet; names and unknown blocks are skipped."""
        kind, length = struct.unpack_from(section.order + "II", block)
        if kind == SECTION:
            if length < 28:
                self._source.fail(at, f"a section header has {length} bytes", "28 or more")
            major, _ = struct.unpack_from(section.order + "HH", block, 12)
            if major != 1:
                self._source.fail(at, f"a section of pcapng version {major}", "1")
            section.block = block[:16] + struct.pack("<q", -1) + block[24:]
        elif kind == SECRETS and self._has_secrets:
            section.secrets = (section.secrets + _read_secrets(block, section.order))[:_SECRETS_MAX]
        elif kind == STATISTICS and self._ended and length >= 24:
            section.keep_statistics(block)
        elif kind == INTERFACE:
            self._describe_interface(at, section, block)

    def _describe_interface(self, at: int, section: Section, block: bytes) -> None:
        length = len(block)
        if length < 20:
            self._source.fail(at, f"an interface description has {length} bytes", "20 or more")
        if len(section.interfaces) >= _INTERFACES_MAX:
            self._source.fail(at, f"more than {_INTERFACES_MAX} interfaces in a section", f"at most {_INTERFACES_MAX}")
        section.described += length
        if section.described > _DESCRIBED_MAX:
            self._source.fail(at, f"interfaces described by {section.described} bytes", f"at most {_DESCRIBED_MAX}")
        link_type, _, snaplen = struct.unpack_from(section.order + "HHI", block, 8)
        interface = Interface(section, link_type, snaplen, block, number=len(section.interfaces), at=self.at)
        for code, value in interface.options():
            if code == 9 and len(value) == 1:  # if_tsresol
                interface.ticks = 1 << (value[0] & 0x7F) if value[0] & 0x80 else int(10 ** value[0])
            elif code == 14 and len(value) == 8:  # if_tsoffset
                (interface.offset_s,) = struct.unpack(section.order + "q", value)
        texts = dict(interface.options())
        is_named = texts.get(IF_NAME, b"").startswith(DROPS)
        interface.is_of_drops = is_named and OF_DROPS.encode() in texts.get(IF_DESCRIPTION, b"")
        section.interfaces.append(interface)


class CountingReader(Reader):
    """A reader that counts packets and does not read what is in them. It returns only some; the others are in
    `passed_over`.
    """

    passed_over = 0

    def _usual(self, section: Section, at: int) -> Generator[Packet, None, int]:
        yield from ()
        data, lengths, (_, tail, *_) = self._source.data, _LENGTHS[section.order], _READS[section.order]
        end, count, passed = len(data), len(section.interfaces), 0
        last = end - 32
        while at <= last:
            kind, length, number, cap_len = lengths(data, at)
            after = at + length
            if kind != PACKET or cap_len > length - 32 or after > end or length & 3 or number >= count:
                break
            if tail(data, after - 4)[0] != length:
                break
            passed += 1
            at = after
        self.passed_over += passed
        return at


def _other_format(source: Source) -> FileError:
    tool = compressed_with(source.data[:4])
    return FileError(
        f"{source.name}: begins with {source.data[:8].hex(' ')}; expected pcapng or pcap",
        f"{tool} -dc FILE | skbcapd ..." if tool else "",
    )


def _order(source: Source, at: int) -> str:
    """The byte order of a section."""
    magic = source.data[at + 8 : at + 12]
    if magic not in _ORDERS:
        source.fail(at, f"a section has byte-order magic {magic.hex(' ')}", "4d 3c 2b 1a or 1a 2b 3c 4d")
    return _ORDERS[magic]


def _records(source: Source, section: Section, ticks: int) -> Iterator[Packet]:
    """Walk through a pcap file."""
    order = section.order
    if len(source.data) < 24:
        source.fail(0, f"the file ends {len(source.data)} bytes into its header", "24 bytes")
    snaplen, link_type = struct.unpack_from(order + "II", source.data, 16)
    # the other bits are the length of an FCS
    interface = Interface(section, link_type & 0xFFFF, snaplen, b"", ticks)
    section.interfaces.append(interface)
    record, nothing = struct.Struct(order + "4I"), Stamp()
    at, data = 24, source.data
    while True:
        length = 16
        if len(data) - at >= 16:
            seconds, fraction, cap_len, wire_len = record.unpack_from(data, at)
            if cap_len > _BLOCK_MAX:
                source.fail(at, f"a packet has captured length {cap_len}", f"at most {_BLOCK_MAX}")
            length += cap_len
        if len(data) - at < length:
            data, at = source.read_on(at, length), 0
            if len(data) < length:
                break
            continue
        frame = memoryview(data)[at + 16 : at + length]
        yield interface, nothing, seconds * ticks + fraction, wire_len, frame, b""
        at += length
    _expect_end(source, len(data), 0, "a packet")


def _refuse(source: Source, at: int, section: Section, number: int, cap_len: int, length: int) -> NoReturn:
    """Report a packet block with a wrong length or interface."""
    if cap_len > length - 16:
        source.fail(at, f"a packet of {cap_len} bytes in a block of {length}", "a packet that fits its block")
    count = len(section.interfaces)
    source.fail(at, f"a packet of interface {number}, where {count} are described", "a description before it")


def _expect_end(source: Source, left: int, at: int, what: str) -> None:
    if left:
        expected = "a complete one: it is truncated, or still being written"
        source.fail(at, f"the file ends {left} bytes into {what}", expected, TruncatedError)


def _read_secrets(block: bytes, order: str) -> bytes:
    """The lines of a key log in a Decryption Secrets Block; nothing if it has other secrets, or a wrong length."""
    if len(block) < 20:
        return b""
    kind, size = struct.unpack_from(order + "II", block, 8)
    return b"".join(key_lines(block[16 : 16 + size])) if kind == TLS_KEY_LOG and size <= len(block) - 20 else b""


def walk_options(raw: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """Walk through options until the end, or until one is too long."""
    at, head = 0, struct.Struct(order + "HH").unpack_from
    while at + 4 <= len(raw):
        code, length = head(raw, at)
        if code == OPT_ENDOFOPT or at + 4 + length > len(raw):
            return
        yield code, raw[at + 4 : at + 4 + length]
        at += 4 + length + (-length & 3)


def _read_stamp(options: bytes, order: str) -> Stamp:
    said = numbered = None
    direction = 0
    for code, value in walk_options(options, order):
        if code == OPT_COMMENT and said is None:
            said = _read_comment(value)
        elif code == EPB_FLAGS and len(value) == 4:
            direction = struct.unpack(order + "I", value)[0] & 3
        elif code == EPB_PROCESSID_THREADID and len(value) == 8:
            numbered = struct.unpack_from(order + "I", value)[0] or None
    said = said or Stamp()
    return said._replace(tgid=numbered if said.tgid is None else said.tgid, direction=direction)


def _read_comment(text: bytes) -> Stamp | None:
    """The process in a comment; None if the comment is in no known grammar."""
    if found := _PTCPDUMP.match(text):
        return Stamp(_id(found[1]), found[2] and found[2].rpartition(b"/")[2][:_VALUE_MAX])
    if len(text) > _COMMENT_MAX:
        return None
    try:
        said = dict(parse(text.decode("latin-1")))
    except CommentError:
        return None
    if not said.keys() & {"tgid", *_TEXTS}:
        return None
    if any(len(said.get(key, b"")) > _VALUE_MAX for key in _TEXTS):
        return None
    return Stamp(
        _id(said.get("tgid", b"")),
        said.get("comm"),
        said.get("unit"),
        said.get("via"),
        process=said.get("process"),
        drop=said.get("drop"),
        at=said.get("at"),
        more=tuple((key, said[key]) for key in _MORE if key in said),
    )


def _id(text: bytes) -> int | None:
    """A process id; None for 0, and for values that are no u32."""
    return int(text) if text.isdigit() and len(text) <= 10 and 0 < int(text) < 1 << 32 else None
