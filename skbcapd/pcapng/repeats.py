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

from skbcapd.pcapng.blocks import PACKET_ID_HEAD, without_packet_id
from skbcapd.pcapng.flows import (
    BYTES,
    FIRST_NS,
    HANDSHAKE,
    HELLO_MIN,
    LAST_NS,
    PACKETS,
    TLS_AT,
    Counted,
    Counter,
    flow_key,
)
from skbcapd.pcapng.link_type import ETHERNET

_FRAME_AT = 28
_HEAD = struct.Struct("<4xI4x3I16xH").unpack_from
"""Of a packet block: length, time (high and low), captured length, EtherType (its bytes exchanged)."""
_NUMBERS = struct.Struct("<8xI12xI").unpack_from
"""The interface, and the length of the complete frame."""
_HEADERS = {0x0008: ("12s8x24s4x4s2x12s", 38), 0xDD86: ("12s8x24s4xcx36s", 58)}
"""By EtherType: what a row has of a block up to the ports (see FLOW4, FLOW6), and the size of the frame up to there."""
_ID_SIZE, _TAIL = 12, 16  # bytes of an identifier at its usual place, and of the options after it
_ROWS_MAX = 1 << 14
_LEARNED = 4  # of so many packets without a known row, one is learned: frequent ones soon, others seldom
_JUDGED = 1 << 16  # bytes of packets
_PAUSE_MAX = 63  # windows

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

    def count(self, data: bytes, at: int) -> int:
        """Count packets of a window from an offset on; returns the offset of the first one without a known row."""
        heads, shapes, rows, turn, begin_ns = _HEAD, self._shapes, self._rows, 0, 0
        try:
            while True:
                length, high, low, cap_len, kind = heads(data, at)
                repeat = rows[shapes[length, cap_len, kind](data, at)]
                if cap_len >= HELLO_MIN and repeat.tls_at:
                    tls = at + _FRAME_AT + repeat.tls_at
                    if data[tls + (data[tls + 12] >> 4 << 2)] == HANDSHAKE:
                        return at
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
            return at

    def after(self, data: bytes, at: int, after: int, find: Callable[[bytes], tuple[object, bytes | None]]) -> int:
        """As `count`, after a packet without a known row.

        Args:
            data: a window.
            at: offset of its block, which has been checked.
            after: offset of the next block.
            find: returns the options that `Counted` has in its keys; see `Section.find`.
        """
        self._unknown += after - at
        self._missed += 1
        if not self._missed % _LEARNED:
            self._learn(data, at, find)
        found = self.count(data, after)
        self._known += found - after
        return found

    def _learn(self, data: bytes, at: int, find: Callable[[bytes], tuple[object, bytes | None]]) -> None:
        """Count further packets like this one, if it belongs to a flow that is counted."""
        length, _, _, cap_len, kind = _HEAD(data, at)
        number, wire_len = _NUMBERS(data, at)
        frame = at + _FRAME_AT
        begin = frame + (cap_len + 3 & -4)
        options = data[begin : at + length - 4]
        flow, (_, same) = flow_key(memoryview(data)[frame : frame + cap_len], ETHERNET), find(options)
        counter = None if flow is None or same is None else self.counters.get((same, number, *flow))
        if counter is None:
            return
        _, id_at = without_packet_id(options, "<")
        if id_at < 0:
            form = f"{len(options) + 4}s"
        elif id_at == len(options) - _TAIL - _ID_SIZE and options[id_at : id_at + 4] == PACKET_ID_HEAD:
            form = f"{len(options) - _TAIL - 8}s8x{_TAIL + 4}s"
        else:
            return
        if len(self._rows) >= _ROWS_MAX:
            self._settle()
        headers, size = _HEADERS[kind]
        unpack = self._shapes[length, cap_len, kind] = _unpack(f"<{headers}{begin - frame - size}x{form}")
        repeat = _Repeat(counter, wire_len, counter[FIRST_NS], counter[LAST_NS], counter[TLS_AT])
        self._rows.setdefault(unpack(data, at), repeat)

    def forget(self) -> None:
        """Add all that was counted to the counters of the flows, and count no flow."""
        self._settle()
        super().forget()

    def _settle(self) -> None:
        for repeat in self._rows.values():
            counter = repeat.counter
            counter[PACKETS] += repeat.packets
            counter[BYTES] += repeat.packets * repeat.wire_len
            counter[FIRST_NS] = min(counter[FIRST_NS], repeat.first_ns)
            counter[LAST_NS] = max(counter[LAST_NS], repeat.last_ns)
        self._rows.clear()
        self._shapes.clear()


@lru_cache(1 << 12)
def _unpack(form: str) -> _Unpack:
    return struct.Struct(form).unpack_from
