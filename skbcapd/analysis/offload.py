"""Frames as the wire would carry them: large ones cut, checksums computed.

A host hands large frames to its network card, or gets them from it, and leaves checksums to it. In a capture they are
as the kernel saw them. Programs that send captures again, or check them, need them as on the wire.

In: records. Out: records with other frames and flags.

The rules: a frame that cannot be cut, or whose checksum cannot be computed, as it is not complete or has no header that
is known, stays as it is and is counted. Lengths on the wire stay true also where bytes were not captured.

A file does not say how large the segments were. TCP is cut to the MTU. All else is cut into IP fragments, as nobody
knows how a large UDP frame was cut.

Source: Documentation/networking/segmentation-offloads.rst; RFC 791, 8200 (section 4.5), 9293, 2675 (jumbo payload).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator

from skbcapd.analysis import checksums
from skbcapd.analysis.records import Record, join
from skbcapd.frames import headers
from skbcapd.frames.headers import IPV4, IPV6, TCP, Bytes, Headers
from skbcapd.pcapng.blocks import CHECKSUM_NOT_READY, EPB_FLAGS, SEGMENTATION_OFFLOADED
from skbcapd.pcapng.reader import walk_options

_FIN, _PSH, _CWR = 0x01, 0x08, 0x80
_MORE, _DONT = 0x2000, 0x4000
_HOP_BY_HOP, _JUMBO, _FRAGMENT = 0, 0xC2, 44
_TCP_MIN = 20  # bytes of a header without options
_TOTAL_MAX = 1 << 20  # bytes of payload: BIG TCP has half as much
_OFFSET_MAX = 1 << 16  # bytes that an offset of 13 bits, in units of 8 bytes, reaches
_Piece = tuple[bytearray, int, bool]  # a frame, its length on the wire, whether its checksum is computed


class ChecksumFiller:
    """Computes the checksums that the network card would have computed."""

    def __init__(self) -> None:
        self.left = 0
        """Packets whose checksum could not be computed."""

    def apply(self, records: Iterable[Record]) -> Iterator[Record]:
        """The records; those that are marked as having no checksum yet get one."""
        for record in records:
            time_ns, interface, stamp, wire_len, frame, options = record
            if not _flags(options) & CHECKSUM_NOT_READY:
                yield record
                continue
            made = bytearray(frame)
            if len(made) >= wire_len and checksums.fill_transport(made, headers.read(made, interface.link_type)):
                yield time_ns, interface, stamp, wire_len, made, _without(options, CHECKSUM_NOT_READY)
            else:
                self.left += 1
                yield record


class Segmenter:
    """Cuts frames that are larger than the wire takes.

    Args:
        mtu: bytes of the largest IP packet.
    """

    def __init__(self, mtu: int) -> None:
        self._mtu = mtu
        self._identification = 0
        self.left = 0
        """Frames that are too large and could not be cut."""

    def apply(self, records: Iterable[Record]) -> Iterator[Record]:
        """The records, with several in place of one that is too large."""
        for record in records:
            time_ns, interface, stamp, wire_len, frame, options = record
            if wire_len <= self._mtu:
                yield record
                continue
            found = headers.read(frame, interface.link_type)
            pieces = self._cut(frame, wire_len, found)
            if pieces is None:
                yield record
                continue
            for piece, length, is_filled in pieces:
                done = SEGMENTATION_OFFLOADED | (CHECKSUM_NOT_READY if is_filled else 0)
                yield time_ns, interface, stamp, length, piece, _without(options, done)

    def _cut(self, frame: Bytes, wire_len: int, found: Headers) -> list[_Piece] | None:
        """The pieces of a frame; None if it stays as it is."""
        if wire_len - found.network <= self._mtu:
            return None
        if found.protocol == TCP and not found.is_fragment and found.payload - found.transport >= _TCP_MIN:
            return self._segments(*_without_jumbo(frame, wire_len, found))
        if found.kind == IPV4 and found.transport - found.network == 20:
            return self._fragments(frame, wire_len, found, b"")
        if found.kind == IPV6 and found.transport - found.network == 40 and found.protocol >= 0:
            self._identification += 1
            head = struct.pack(">BBHI", found.protocol, 0, 0, self._identification)
            return self._fragments(frame, wire_len, found, head)
        self.left += 1
        return None

    def _segments(self, frame: Bytes, wire_len: int, found: Headers) -> list[_Piece] | None:
        """TCP segments, each with all headers."""
        network, payload = found.network, found.payload
        size = self._mtu - (payload - network)
        total = _wire_end(frame, wire_len, found) - payload
        if size < 1 or not 1 <= total <= _TOTAL_MAX:
            self.left += 1
            return None
        (sequence,) = struct.unpack_from(">I", frame, found.transport + 4)
        flags = frame[found.transport + 13]
        pieces = []
        for number, begin in enumerate(range(0, total, size)):
            length = min(size, total - begin)
            piece = bytearray(frame[:payload]) + frame[payload + begin : payload + begin + length]
            _set_length(piece, found, payload - network + length, number)
            struct.pack_into(">I", piece, found.transport + 4, (sequence + begin) & 0xFFFFFFFF)
            is_last = begin + length == total
            kept = 0xFF & ~(0 if is_last else _FIN | _PSH) & ~(_CWR if number else 0)
            piece[found.transport + 13] = flags & kept
            is_complete = len(piece) == payload + length
            pieces.append((piece, payload + length, is_complete and checksums.fill_transport(piece, found)))
        return pieces

    def _fragments(self, frame: Bytes, wire_len: int, found: Headers, head: bytes) -> list[_Piece] | None:
        """IP fragments.

        Args:
            frame: what was captured.
            wire_len: its true length.
            found: its headers, without IP options and extension headers.
            head: the fragment header; empty for IPv4.
        """
        network, begin_of_data = found.network, found.transport
        size = (self._mtu - (begin_of_data - network) - len(head)) // 8 * 8
        total = _wire_end(frame, wire_len, found) - begin_of_data
        (before,) = struct.unpack_from(">H", frame, network + 6) if found.kind == IPV4 else (0,)
        if size < 8 or not 1 <= total <= _OFFSET_MAX - 8 * (before & 0x1FFF):
            self.left += 1
            return None
        whole = bytearray(frame)
        is_filled = len(frame) >= wire_len and checksums.fill_transport(whole, found)
        pieces = []
        for begin in range(0, total, size):
            length = min(size, total - begin)
            more = begin + length < total
            data = whole[begin_of_data + begin : begin_of_data + begin + length]
            piece = whole[:begin_of_data] + head + data
            if found.kind == IPV4:
                offset = (before & 0x1FFF) + begin // 8
                struct.pack_into(">H", piece, network + 6, before & ~_DONT & 0xE000 | (_MORE if more else 0) | offset)
            else:
                piece[network + 6] = _FRAGMENT
                struct.pack_into(">H", piece, begin_of_data + 2, begin | more)
            _set_length(piece, found, begin_of_data - network + len(head) + length, 0)
            pieces.append((piece, begin_of_data + len(head) + length, is_filled))
        return pieces


def _wire_end(frame: Bytes, wire_len: int, found: Headers) -> int:
    """Where the IP packet ends on the wire: behind it there may be padding."""
    place = found.network + (2 if found.kind == IPV4 else 4)
    (length,) = struct.unpack_from(">H", frame, place)
    length += 40 if length and found.kind == IPV6 else 0
    return min(wire_len, found.network + length) if length else wire_len


def _without_jumbo(frame: Bytes, wire_len: int, found: Headers) -> tuple[Bytes, int, Headers]:
    """A packet without the header by which IPv6 tells a length above 65535: no segment has it."""
    at = found.network + 40
    is_jumbo = found.kind == IPV6 and frame[found.network + 6] == _HOP_BY_HOP and frame[at + 1] == 0
    if not is_jumbo or frame[at + 2] != _JUMBO:
        return frame, wire_len, found
    made = bytearray(frame[:at]) + frame[at + 8 :]
    made[found.network + 6] = frame[at]
    shorter = found._replace(transport=found.transport - 8, payload=found.payload - 8)
    return made, wire_len - 8, shorter


def _set_length(piece: bytearray, found: Headers, length: int, number: int) -> None:
    """Set the lengths of an IP packet, and what each of several has as its own."""
    at = found.network
    if found.kind == IPV4:
        (identification,) = struct.unpack_from(">H", piece, at + 4)
        struct.pack_into(">HH", piece, at + 2, length, (identification + number) & 0xFFFF)
        checksums.fill_network(piece, found)
    else:
        struct.pack_into(">H", piece, at + 4, length - 40)


def _flags(options: bytes) -> int:
    """The flags of a packet; 0 where there are none."""
    for code, value in walk_options(options, "<"):
        if code == EPB_FLAGS and len(value) == 4:
            return int.from_bytes(value, "little")
    return 0


def _without(options: bytes, flags: int) -> bytes:
    """Options with some of the flags cleared."""
    return join(
        (code, (int.from_bytes(value, "little") & ~flags).to_bytes(4, "little"))
        if code == EPB_FLAGS and len(value) == 4
        else (code, value)
        for code, value in walk_options(options, "<")
    )
