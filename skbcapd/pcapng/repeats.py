"""Packets that repeat the bytes of an earlier one: a flow has many of the same size.

In: blocks of packets. Out: sums in the counters of `Counted`.

The rule not to break: packets with the same row belong to one flow, have one size, and their blocks have been checked.
A row is all bytes of a block that show this: type and lengths, interface, headers, options. What differs between
packets of a flow is left out: time, identifiers, checksum, payload.

Little work for each packet: its block is unpacked at once, as others with these lengths were, and looked up.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

from skbcapd.pcapng.flows import (
    BYTES,
    FIRST_NS,
    HANDSHAKE,
    HELLO_MIN,
    LAST_AT,
    LAST_NS,
    PACKETS,
    TLS_AT,
    Counted,
    Counter,
)

_FRAME_AT = 28
_HEAD = struct.Struct("<4xI4x3I16xH").unpack_from
"""Of a packet block: length, time (high and low), captured length, EtherType (its bytes exchanged)."""
_WIRE_LEN = struct.Struct("<24xI").unpack_from
"""The length of the complete frame."""
_HEADERS = {0x0008: ("12s8x24s4x4s2x12s", 38), 0xDD86: ("12s8x24s4xcx36s", 58)}
"""By EtherType: what a row has of a block up to the ports (see FLOW4, FLOW6), and the size of the frame up to there."""
_TAIL = 20  # bytes of a block after the value of its identifier, if that is at its usual place
_ROWS_MAX = 1 << 14
_LEARNED = 4  # of so many packets without a known row, one is learned: frequent ones soon, others seldom
_JUDGED = 1 << 16  # bytes of packets
_PAUSE_MAX = 255  # windows

_Row: TypeAlias = tuple[bytes, ...]
_Unpack: TypeAlias = Callable[[bytes, int], _Row]


@dataclass(eq=False, slots=True)
class _Repeat:
    """The packets with the same row that are not yet in the counter of their flow."""

    counter: Counter
    wire_len: int
    first_ns: int
    last_ns: int
    tls_at: int
    packets: int = 0


class Repeats(Counted):
    """Counted flows; most of their packets cost one look-up. Offsets of packets are not counted."""

    def __init__(self) -> None:
        super().__init__()
        self._rows: dict[_Row, _Repeat] = {}
        self._shapes: dict[tuple[int, int, int], _Unpack] = {}  # what makes a row of a block, by its lengths
        self._paused = self._pause = 0  # windows
        self._known = self._unknown = self._missed = 0  # bytes of packets with a known row; bytes and number of others

    def begins(self) -> bool:
        """Whether rows are used for a new window: not for some time after few packets had a known one."""
        if self._known + self._unknown >= _JUDGED:
            self._paused = self._pause = min(2 * self._pause + 1, _PAUSE_MAX) if self._unknown > self._known else 0
            self._known = self._unknown = 0
        self._paused -= 1
        return self._paused < 0

    def count(self, data: bytes, at: int, before: int) -> int:  # noqa: ARG002  offsets are not counted
        """Count packets of a window; returns the offset of the first one without a known row.

        Args:
            data: the window.
            at: offset of the first packet in it.
            before: offset of the window in the file.
        """
        begin = at
        heads, shapes, rows, turn, begin_ns = _HEAD, self._shapes, self._rows, 0, 0
        try:
            while True:
                length, high, low, cap_len, kind = heads(data, at)
                repeat = rows[shapes[length, cap_len, kind](data, at)]
                if cap_len >= HELLO_MIN and repeat.tls_at:
                    tls = at + _FRAME_AT + repeat.tls_at
                    if data[tls + (data[tls + 12] >> 4 << 2)] == HANDSHAKE:
                        break
                if high != turn:
                    turn, begin_ns = high, high << 32
                repeat.packets += 1
                time_ns = begin_ns + low
                if time_ns > repeat.last_ns:
                    repeat.last_ns = time_ns
                elif time_ns < repeat.first_ns:
                    repeat.first_ns = time_ns
                at += length
        except (KeyError, struct.error):  # no known row, or the end of the window
            pass
        self._known += at - begin
        return at

    def learn(self, data: bytes, at: int, after: int, counter: Counter | None, *, has_id: bool) -> None:
        """Note a packet without a known row; from now on, some of those like it have one.

        Args:
            data: a window.
            at: offset of its block, which has been checked.
            after: offset of the next block.
            counter: of its flow; None: it is not counted.
            has_id: whether its options have an identifier at the usual place; otherwise, they have none.
        """
        self._unknown += after - at
        self._missed += 1
        if counter is None or self._missed % _LEARNED:
            return
        if len(self._rows) >= _ROWS_MAX:
            self._settle()
        length, _, _, cap_len, kind = _HEAD(data, at)
        (wire_len,) = _WIRE_LEN(data, at)
        unpack = self._shapes[length, cap_len, kind] = _unpack(length, cap_len, kind, has_id=has_id)
        repeat = _Repeat(counter, wire_len, counter[FIRST_NS], counter[LAST_NS], counter[TLS_AT])
        self._rows.setdefault(unpack(data, at), repeat)

    def forget(self) -> None:
        """Add all that was counted to the counters of the flows, and count no flow."""
        self._settle()
        super().forget()

    def _settle(self) -> None:
        for repeat in self._rows.values():
            if not repeat.packets:
                continue
            counter = repeat.counter
            counter[PACKETS] += repeat.packets
            counter[BYTES] += repeat.packets * repeat.wire_len
            counter[FIRST_NS] = min(counter[FIRST_NS], repeat.first_ns)
            counter[LAST_NS] = max(counter[LAST_NS], repeat.last_ns)
        self._rows.clear()
        self._shapes.clear()


class LocatedRepeats(Repeats):
    """The same with offsets of blocks and up to `limit`, for counters that can have no packet: see `Counted.begun`.

    Packets are in their counters at once. For `top`, which needs no offsets, this took 12 % more time.
    """

    def count(self, data: bytes, at: int, before: int) -> int:
        """As in `Repeats`."""
        heads, shapes, rows, begun = _HEAD, self._shapes, self._rows, self.begun.append
        begin, end = at, self.limit - before
        try:
            while at < end:
                length, high, low, cap_len, kind = heads(data, at)
                repeat = rows[shapes[length, cap_len, kind](data, at)]
                if cap_len >= HELLO_MIN and repeat.tls_at:
                    tls = at + _FRAME_AT + repeat.tls_at
                    if data[tls + (data[tls + 12] >> 4 << 2)] == HANDSHAKE:
                        break
                counter, time_ns = repeat.counter, high << 32 | low
                if counter[PACKETS]:
                    counter[PACKETS] += 1
                    counter[BYTES] += repeat.wire_len
                    counter[LAST_AT] = before + at
                    if time_ns > counter[LAST_NS]:
                        counter[LAST_NS] = time_ns
                    elif time_ns < counter[FIRST_NS]:
                        counter[FIRST_NS] = time_ns
                else:
                    counter[:TLS_AT] = 1, repeat.wire_len, time_ns, time_ns, before + at, before + at
                    begun(counter)
                at += length
        except (KeyError, struct.error):  # no known row, or the end of the window
            pass
        self._known += at - begin
        return at


@lru_cache(1 << 12)
def _unpack(length: int, cap_len: int, kind: int, *, has_id: bool) -> _Unpack:
    """What makes a row of a block."""
    headers, size = _HEADERS[kind]
    padded = cap_len + 3 & -4
    left = length - _FRAME_AT - padded
    options = f"{left - _TAIL - 8}s8x{_TAIL}s" if has_id else f"{left}s"
    return struct.Struct(f"<{headers}{padded - size}x{options}").unpack_from
