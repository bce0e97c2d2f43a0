"""A strict pcapng reader for the tests, without code of our writer or of scapy.

In: the bytes of a file. Out: packets with all fields of their blocks. What the draft forbids is a
failure: different lengths, options that are too long, an interface without a description, an
incomplete end. tshark also reads the files (tests/support/judges.py), but it cannot show option 8
and accepts many errors. Source: draft-ietf-opsawg-pcapng.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

SECTION = 0x0A0D0D0A
INTERFACE = 1
STATISTICS = 5
PACKET = 6

OPT_COMMENT = 1
EPB_FLAGS = 2
EPB_PACKETID = 5
EPB_PROCESSID_THREADID = 8
IF_NAME = 2
IF_DESCRIPTION = 3
IF_TSRESOL = 9

DIRECTIONS = {0: "", 1: "in", 2: "out"}

_FIELD = re.compile(r'([a-z_]+)=(?:"((?:[^"\\]|\\.)*)"|([^ ]*))(?: |$)')
_ESCAPE = re.compile(r"\\(?:x(..)|(.))")


class Block(NamedTuple):
    """One block: its offset in the file, its type and its body."""

    at: int
    kind: int
    body: bytes


class Label(NamedTuple):
    """The process in the comment of a packet; the bytes of its name as latin-1 text.

    With several candidates, the common values; an id is 0 if there is none.
    """

    comm: str
    tgid: int
    tid: int


@dataclass(frozen=True)
class Packet:
    """One Enhanced Packet Block."""

    interface: str
    link_type: int
    description: str
    """Name of the interface."""
    time_ns: int
    data: bytes
    original_len: int
    flags: int
    comment: str
    process: tuple[int, int] | None
    """Option 8: tgid and tid."""
    packet_id: int | None
    """Option 5."""

    @property
    def direction(self) -> str:
        """`in`, `out`, or empty if the block has no direction."""
        return DIRECTIONS[self.flags & 3]

    @cached_property
    def label(self) -> Label | None:
        """The sender; None if the comment says that it is not known."""
        fields = comment_fields(self.comment)
        if not {"comm", "tgid", "pid"} <= fields.keys() and not ("comm" in fields and fields.get("via") == "group"):
            return None
        return Label(fields["comm"], int(fields.get("tgid", 0)), int(fields.get("pid", 0)))


def blocks(data: bytes) -> Iterator[Block]:
    """Walk over the blocks of a little-endian file, from the first byte to the last."""
    at = 0
    while at < len(data):
        kind, length = struct.unpack_from("<II", data, at)
        assert length >= 12, f"block at {at} has length {length}"
        assert length % 4 == 0, f"block at {at} has length {length}"
        assert at + length <= len(data), f"block at {at} has length {length} of {len(data) - at} left"
        (again,) = struct.unpack_from("<I", data, at + length - 4)
        assert again == length, f"block at {at} has length {length} in front and {again} behind"
        yield Block(at, kind, data[at + 8 : at + length - 4])
        at += length


def options(raw: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Walk over options: (offset of the value in `raw`, code, value); the end option is required."""
    at = 0
    while raw:
        code, length = struct.unpack_from("<HH", raw, at)
        value = raw[at + 4 : at + 4 + length]
        assert len(value) == length, f"option {code} runs over its block"
        if code == 0:
            assert (length, at + 4) == (0, len(raw)), f"end of options at {at} of {len(raw)}"
            return
        yield at + 4, code, value
        padded = length + -length % 4
        assert not any(raw[at + 4 + length : at + 4 + padded]), f"option {code} is not padded with zeros"
        at += 4 + padded


def packets(data: bytes) -> list[Packet]:
    """Read all packets of a file."""
    found = []
    interfaces: list[tuple[str, int, str]] = []
    for number, block in enumerate(blocks(data)):
        if number == 0:
            assert block.kind == SECTION, f"the file starts with a block of type {block.kind:#x}"
            assert block.body[:4] == struct.pack("<I", 0x1A2B3C4D), "the file is not little-endian"
        if block.kind == SECTION:
            interfaces = []
            list(options(block.body[16:]))
        elif block.kind == INTERFACE:
            said = {code: value for _, code, value in options(block.body[8:])}
            assert said[IF_TSRESOL] == b"\x09", "times are in nanoseconds"
            (link_type,) = struct.unpack_from("<H", block.body)
            interfaces.append((said[IF_NAME].decode(), link_type, said.get(IF_DESCRIPTION, b"").decode()))
        elif block.kind == STATISTICS:
            assert struct.unpack_from("<I", block.body)[0] < len(interfaces)
            list(options(block.body[12:]))
        elif block.kind == PACKET:
            found.append(_packet(block.body, interfaces))
    return found


def comment_fields(comment: str) -> dict[str, str]:
    """Parse a comment by the grammar of docs/format.md; values are bytes as latin-1 text."""
    fields: dict[str, str] = {}
    at = 0
    while at < len(comment):
        field = _FIELD.match(comment, at)
        assert field, f"{comment!r} is no field at {at}"
        key, quoted, bare = field.groups()
        assert key not in fields, f"{comment!r} says {key} twice"
        fields[key] = bare if quoted is None else _ESCAPE.sub(_unescape, quoted)
        at = field.end()
    return fields


def _unescape(escape: re.Match[str]) -> str:
    hexadecimal, plain = escape.groups()
    return chr(int(hexadecimal, 16)) if hexadecimal else plain


def _packet(body: bytes, interfaces: list[tuple[str, int, str]]) -> Packet:
    interface, high, low, captured, original = struct.unpack_from("<5I", body)
    assert interface < len(interfaces), f"a packet of interface {interface} of {len(interfaces)}"
    assert captured <= original
    padded = captured + -captured % 4
    assert len(body) >= 20 + padded, f"a packet of {captured} bytes in a body of {len(body)}"
    assert not any(body[20 + captured : 20 + padded]), "a frame is not padded with zeros"
    said = {code: value for _, code, value in options(body[20 + padded :])}
    return Packet(
        interface=interfaces[interface][0],
        link_type=interfaces[interface][1],
        description=interfaces[interface][2],
        time_ns=high << 32 | low,
        data=body[20 : 20 + captured],
        original_len=original,
        flags=int.from_bytes(said.get(EPB_FLAGS, b""), "little"),
        comment=said.get(OPT_COMMENT, b"").decode("ascii"),
        process=struct.unpack("<II", said[EPB_PROCESSID_THREADID]) if EPB_PROCESSID_THREADID in said else None,
        packet_id=int.from_bytes(said[EPB_PACKETID], "little") if EPB_PACKETID in said else None,
    )
