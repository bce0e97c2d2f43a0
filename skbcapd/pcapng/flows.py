"""Flows of packets, told apart by bytes at fixed offsets; the reader counts packets of flows that are known.

In: frames. Out: keys of flows, and counters.

The rule not to break: a key is opaque, and equal for packets that have the same options, interface, addresses and
ports. It is made of the usual headers only: Ethernet, IPv4 without options or IPv6, a transport header. It says nothing
about other bytes: who registers a counter has read the headers of one frame, and knows that others do not matter.

Little work for each packet: one whose flow is known costs one look-up and three additions, and is not returned.
"""

from __future__ import annotations

import struct
from collections.abc import Hashable
from typing import TypeAlias

from skbcapd.pcapng.link_type import ETHERNET

FLOW4 = struct.Struct("<12xI4xI2x12s")
"""EtherType, version, length of the header and type of service; fragment, TTL and protocol; addresses and ports."""
FLOW6 = struct.Struct("<20xBx36s")
"""Next header, addresses and ports."""
PLAIN = {
    "<": (0x00FFFFFF, 0x00450008, 0x00F0FFFF, 0x0060DD86),
    ">": (0xFFFFFF00, 0x08004500, 0xFFFFF000, 0x86DD6000),
}
"""EtherType and version as FLOW4 reads them in a byte order: bits and value of IPv4 without options, and of IPv6."""
HELLO_MIN = 115
"""Bytes of a frame: the first record of a TLS client with a name does not fit a shorter one, and the payload of TCP
begins before, whatever the lengths of the headers are.
"""
HANDSHAKE = 22  # a record of TLS
_PLAIN6_NEXT = {6, 17, 58}  # TCP, UDP, ICMPv6: no extension header
_KNOWN_MAX = 1 << 15  # flows; then all are forgotten

FlowKey: TypeAlias = tuple[int, bytes]
Counter: TypeAlias = list[int]
PACKETS, BYTES, FIRST_NS, LAST_NS, FIRST_AT, LAST_AT, TLS_AT, OWNER = range(8)
"""What a counter has: sums, times, offsets of blocks; the offset of the TCP header in frames whose payload can begin
with a handshake of TLS: these packets are returned (0: none is); a number of who registers it.
"""


def flow_key(frame: memoryview, link_type: int) -> FlowKey | None:
    """The addresses, ports and protocol of a frame; None if its headers are others than usual."""
    if link_type != ETHERNET or len(frame) < FLOW4.size:
        return None
    start, middle, ends = FLOW4.unpack_from(frame)
    mask4, plain4, mask6, plain6 = PLAIN["<"]
    if start & mask4 == plain4:
        return middle, ends
    if start & mask6 == plain6 and len(frame) >= FLOW6.size and frame[20] in _PLAIN6_NEXT:
        return FLOW6.unpack_from(frame)
    return None


class Counted:
    """The flows whose packets the reader counts.

    A packet that belongs to none of them is returned, and `key` is its flow: `add` counts the next ones.
    """

    def __init__(self) -> None:
        self.counters: dict[Hashable, Counter] = {}
        """Counters by key. One without packets begins with the next packet: who counts granules sets PACKETS to 0."""
        self.begun: list[Counter] = []
        """The counters that have begun so."""
        self.key: Hashable = None
        """The flow of the last packet that was returned; None: such packets cannot be counted."""
        self.limit = 1 << 64
        """The first packet from this offset on is returned, also of a known flow."""

    def add(self, counter: Counter) -> None:
        """Count further packets of the last one's flow, if `Interface.is_countable`."""
        if self.key is not None:
            if self.is_full:
                self.counters.clear()
            self.counters[self.key] = counter

    @property
    def is_full(self) -> bool:
        """Whether it has so many flows that they must be forgotten."""
        return len(self.counters) >= _KNOWN_MAX

    def forget(self) -> None:
        """Count no flow: each is returned again."""
        self.counters.clear()
