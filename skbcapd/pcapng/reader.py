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
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, NoReturn, Self, TypeAlias

from skbcapd.attribution.fields import GROUPS
from skbcapd.errors import FileError
from skbcapd.pcapng.blocks import (
    EPB_FLAGS,
    EPB_PACKETID,
    EPB_PROCESSID_THREADID,
    INTERFACE,
    OBSOLETE_PACKET,
    OPT_COMMENT,
    OPT_ENDOFOPT,
    PACKET,
    SECRETS,
    SECTION,
    SIMPLE_PACKET,
    STATISTICS,
    TLS_KEY_LOG,
)
from skbcapd.pcapng.comment import CommentError, parse
from skbcapd.pcapng.secrets import key_lines
from skbcapd.pcapng.source import Source, compressed_with

_BLOCK_MAX = 16 << 20  # bytes of one block; MAX_BLOCK_SIZE in Wireshark's wiretap/pcapng.c
_INTERFACES_MAX = 1 << 16  # interfaces of a section
_DESCRIBED_MAX = 64 << 20  # bytes of their descriptions, which are kept in memory
_SECTIONS_MAX = 1 << 12  # sections of a file whose statistics are kept
_SECRETS_MAX = 16 << 20  # bytes of TLS secrets that wait for a packet; the others are left out
_KNOWN_MAX = 1 << 15  # entries of the cache of stamps; then it is cleared
_KNOWN_BYTES_MAX = 16 << 20  # bytes of all its entries
_OPTIONS_KEPT = 1024  # bytes; longer options are not cached
_COMMENT_MAX = 1024  # bytes; a longer comment is not of skbcapd (OPTIONS_MAX)
_VALUE_MAX = 520  # bytes of a name or unit: two file names with a slash; a longer one is not of skbcapd

_ORDERS = {b"\x4d\x3c\x2b\x1a": "<", b"\x1a\x2b\x3c\x4d": ">"}
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

    @property
    def name(self) -> bytes | None:
        """The name of the process."""
        return self.comm if self.process is None else self.process

    def value(self, by: str) -> int | bytes | None:
        """The value of one of the GROUPS of attribution.fields."""
        if by == "process":
            return self.name
        found: int | bytes | None = getattr(self, by) if by in _NAMED else dict(self.more).get(by)
        return found

    @property
    def size(self) -> int:
        """Memory of its texts in bytes (an estimate)."""
        texts = (self.comm, self.unit, self.via, self.process, *(text for _, text in self.more))
        return sum(len(text) + 64 for text in texts if text is not None)


_NAMED = {"tgid", "comm", "unit"}
_MORE = tuple(name for name in GROUPS if name not in _NAMED | {"process"})
_TEXTS = (*(name for name in GROUPS if name != "tgid"), "via")


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
    known: dict[bytes, Stamp] = field(default_factory=dict)  # what `stamp` has returned, by options
    _known_size: int = 0  # bytes of all its entries

    def stamp(self, options: bytes) -> Stamp:
        """The stamp for the options of a packet; cached by all options except epb_packetid."""
        found = self.known.get(options)
        if found is None:
            same = _without_packet_id(options, self.order)
            found = self.known.get(same)
            if found is None:
                found = _read_stamp(same, self.order)
                if len(same) <= _OPTIONS_KEPT:
                    if len(self.known) >= _KNOWN_MAX or self._known_size > _KNOWN_BYTES_MAX:
                        self.known.clear()
                        self._known_size = 0
                    self.known[same] = found
                    self._known_size += len(same) + found.size + 128
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
    """

    section: Section
    link_type: int
    snaplen: int
    block: bytes
    ticks: int = 10**6
    offset_s: int = 0
    number: int = 0
    at: int = 0
    portable: tuple[bytes, bytes] | None = None  # kept for who writes it to another file

    @property
    def is_plain(self) -> bool:
        """Whether times are nanoseconds since 1970 UTC, as in the files of skbcapd."""
        return self.ticks == 10**9 and not self.offset_s

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
        has_statistics: whether `sections` and their statistics are wanted.

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
        has_statistics: bool = False,
    ) -> None:
        self._source = Source(path, progress)
        self._has_secrets, self._has_statistics = has_secrets, has_statistics
        self.name = self._source.name
        self.sections: list[Section] = []
        """The sections so far, at most the first _SECTIONS_MAX; only if they are wanted."""
        self.at = 0
        """Offset of the current packet's block in the (decompressed) pcapng file; at the end, or after an error, of
        the first byte that was not read as a block.
        """

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
            FileError: the file cannot be read further; all packets before that offset have been
                returned.
        """
        self._source.read_on(0, 24)
        start = self._source.data[:4]
        if not self._source.data:
            raise FileError(f"{self._source.name}: empty; expected pcapng or pcap")
        if start in _PCAP:
            yield from self._records(*_PCAP[start])
        elif start == struct.pack("<I", SECTION):
            yield from self._blocks()
        else:
            tool = compressed_with(start)
            raise FileError(
                f"{self._source.name}: begins with {self._source.data[:8].hex(' ')}; expected pcapng or pcap",
                f"{tool} -dc FILE | skbcapd ..." if tool else "",
            )

    def _blocks(self) -> Iterator[Packet]:
        """Walk through a pcapng file."""
        at, data, before = 0, self._source.data, 0
        view, end = memoryview(data), len(data)
        section = Section("<", b"")  # until the first section header
        head, body = struct.Struct("<II").unpack_from, struct.Struct("<5I").unpack_from
        known = section.known
        while True:
            if end - at < 12:
                at, data = 0, self._source.read_on(at, 12)
                view, end, before = memoryview(data), len(data), self._source.before
                if end < 12:
                    break
            self.at = before + at
            kind, length = head(data, at)
            if kind == SECTION:
                section = Section(self._order(at), b"")
                known = section.known
                head, body = (
                    struct.Struct(section.order + "II").unpack_from,
                    struct.Struct(section.order + "5I").unpack_from,
                )
                kind, length = head(data, at)
            if not 12 <= length <= end - at or length & 3:
                if not 12 <= length <= _BLOCK_MAX or length & 3:
                    self._source.fail(at, f"a block has length {length}", f"12 to {_BLOCK_MAX}, a multiple of 4")
                at, data = 0, self._source.read_on(at, length)
                view, end, before = memoryview(data), len(data), self._source.before
                if end < length:
                    break
            after = at + length
            if data[at + 4 : at + 8] != data[after - 4 : after]:
                self._source.fail(at, f"a block of {length} bytes ends with another length", "the same at both ends")
            if kind == PACKET and length >= 32:
                number, high, low, cap_len, wire_len = body(data, at + 8)
                if cap_len > length - 32 or number >= len(section.interfaces):
                    self._refuse(at, section, number, cap_len, length)
                frame = at + 28
                options = data[frame + cap_len + (-cap_len & 3) : after - 4]
                stamp = known.get(options) or section.stamp(options)
                captured = view[frame : frame + cap_len]
                yield section.interfaces[number], stamp, high << 32 | low, wire_len, captured, options
            elif kind in {PACKET, OBSOLETE_PACKET, SIMPLE_PACKET}:
                yield self._other_packet(at, section, data[at:after])
            else:
                self._describe(at, section, data[at:after])
            at = after
        self.at = before + at
        self._expect_end(end - at, at, "a block")

    def _order(self, at: int) -> str:
        """The byte order of a section."""
        magic = self._source.data[at + 8 : at + 12]
        if magic not in _ORDERS:
            self._source.fail(at, f"a section has byte-order magic {magic.hex(' ')}", "4d 3c 2b 1a or 1a 2b 3c 4d")
        return _ORDERS[magic]

    def _other_packet(self, at: int, section: Section, block: bytes) -> Packet:
        """Read a Simple Packet Block, which has no time and no interface, or an obsolete Packet
        Block.
        """
        kind, length = struct.unpack_from(section.order + "II", block)
        number, time, first = 0, 0, 12 if kind == SIMPLE_PACKET else 28
        if length < first + 4:
            self._refuse(at, section, 0, length, length)
        if kind == SIMPLE_PACKET:
            (wire_len,) = struct.unpack_from(section.order + "I", block, 8)
            snaplen = section.interfaces[0].snaplen if section.interfaces else 0
            cap_len = min(wire_len, snaplen or wire_len, length - 16)
        else:
            number, _, high, low, cap_len, wire_len = struct.unpack_from(section.order + "HH4I", block, 8)
            time = high << 32 | low
        if cap_len > length - first - 4 or number >= len(section.interfaces):
            self._refuse(at, section, number, cap_len, length)
        options = block[first + cap_len + (-cap_len & 3) : -4] if kind != SIMPLE_PACKET else b""
        frame = memoryview(block)[first : first + cap_len]
        return section.interfaces[number], section.stamp(options), time, wire_len, frame, options

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
            if self._has_statistics and len(self.sections) < _SECTIONS_MAX:
                self.sections.append(section)
        elif kind == SECRETS and self._has_secrets:
            section.secrets = (section.secrets + _read_secrets(block, section.order))[:_SECRETS_MAX]
        elif kind == STATISTICS and self._has_statistics and length >= 24:
            (number,) = struct.unpack_from(section.order + "I", block, 8)
            if number < len(section.interfaces):
                section.statistics[number] = block
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
        section.interfaces.append(interface)

    def _records(self, order: str, ticks: int) -> Iterator[Packet]:
        """Walk through a pcap file."""
        if len(self._source.data) < 24:
            self._source.fail(0, f"the file ends {len(self._source.data)} bytes into its header", "24 bytes")
        snaplen, link_type = struct.unpack_from(order + "II", self._source.data, 16)
        # the other bits are the length of an FCS
        interface = Interface(Section(order, b""), link_type & 0xFFFF, snaplen, b"", ticks)
        record, nothing = struct.Struct(order + "4I"), Stamp()
        at, data = 24, self._source.data
        while True:
            length = 16
            if len(data) - at >= 16:
                seconds, fraction, cap_len, wire_len = record.unpack_from(data, at)
                if cap_len > _BLOCK_MAX:
                    self._source.fail(at, f"a packet has captured length {cap_len}", f"at most {_BLOCK_MAX}")
                length += cap_len
            if len(data) - at < length:
                data, at = self._source.read_on(at, length), 0
                if len(data) < length:
                    break
                continue
            frame = memoryview(data)[at + 16 : at + length]
            yield interface, nothing, seconds * ticks + fraction, wire_len, frame, b""
            at += length
        self._expect_end(len(data), 0, "a packet")

    def _refuse(self, at: int, section: Section, number: int, cap_len: int, length: int) -> NoReturn:
        """Report a packet block with a wrong length or interface."""
        if cap_len > length - 16:
            self._source.fail(at, f"a packet of {cap_len} bytes in a block of {length}", "a packet that fits its block")
        count = len(section.interfaces)
        self._source.fail(at, f"a packet of interface {number}, where {count} are described", "a description before it")

    def _expect_end(self, left: int, at: int, what: str) -> None:
        if left:
            expected = "a complete one: it is truncated, or still being written"
            self._source.fail(at, f"the file ends {left} bytes into {what}", expected, TruncatedError)


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


def _without_packet_id(options: bytes, order: str) -> bytes:
    """Remove epb_packetid, the only option that differs between packets."""
    at, head = 0, struct.Struct(order + "HH").unpack_from
    while at + 4 <= len(options):
        code, length = head(options, at)
        after = at + 4 + length + (-length & 3)
        if code == EPB_PACKETID:
            return options[:at] + options[after:]
        if code == OPT_ENDOFOPT:
            break
        at = after
    return options


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
        more=tuple((key, said[key]) for key in _MORE if key in said),
    )


def _id(text: bytes) -> int | None:
    """A process id; None for 0, and for values that are no u32."""
    return int(text) if text.isdigit() and len(text) <= 10 and 0 < int(text) < 1 << 32 else None
