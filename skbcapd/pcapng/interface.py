"""The description of an interface in a capture file, shared by the writer and the modules that use
it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

DROPS = b"drops@"
"""Begin of the name of an interface with the packets that the kernel has dropped in a network namespace: drops@host."""
OF_DROPS = "dropped packets"
"""In its description, after the namespace. Others can name an interface drops@host, but do not choose this text."""
NO_LOSS = frozenset(
    {
        "CONSUMED",
        "NOT_DROPPED_YET",
        "OTHERHOST",
        "IPV6_NDISC_NS_OTHERHOST",
        "PACKET_SOCK_ERROR",
        "DUP_FRAG",
        "TCP_OLD_DATA",
        "TCP_OLD_SEQUENCE",
        "TCP_OLD_ACK",
        "TCP_TOO_OLD_ACK",
        "TCP_OFOMERGE",
        "TCP_RFC7323_PAWS_ACK",
    }
)
"""Reasons for which nobody has lost anything, if the kernel has them; docs/drops.md says why."""


DISK_BLOCK = 1 << 12
"""Direct writes (O_DIRECT) begin and end at a multiple of it, in memory and in the file: no disk has larger blocks."""


class Loan(Protocol):
    """Memory that its owner needs back; who takes it may use it after the call."""

    @property
    def at(self) -> int:
        """Offset of the bytes in the memory, which begins at a page."""

    def take(self) -> None:
        """Keep the memory until `give_back`."""

    def give_back(self) -> None:
        """The memory is not used any more; any thread can call this, once for each `take`."""

    def behind(self, size: int) -> Loan:
        """The same memory, from so many bytes later on."""

    def wish(self, drift: int) -> None:
        """Say where the next bytes should be: `at` plus so many bytes is the right offset in a block of the disk."""


class Sink(Protocol):
    """Takes blocks."""

    def write(self, data: bytes | memoryview, /) -> object:
        """Write all of `data`, unlike an unbuffered file, which can write a part of it."""

    def flush(self) -> object:
        """Write the buffered bytes."""


@dataclass(frozen=True, slots=True)
class Interface:
    """One interface of one network namespace, as in an Interface Description Block.

    Args:
        name: name of the interface, any bytes that Linux allows.
        description: text with the namespace; may be empty.
        link_type: LINKTYPE_ value, u16.
        snaplen: maximum number of bytes kept of a frame, u32; 0: no limit.
        mac: the six bytes of its Ethernet address; None if it has none.
        speed_bps: bits per second; None if not known.
        filter: the packet filter in pcap-filter syntax; None: no filter.
    """

    name: bytes
    description: str
    link_type: int
    snaplen: int
    mac: bytes | None
    speed_bps: int | None
    filter: str | None

    def __post_init__(self) -> None:
        if self.mac is not None and len(self.mac) != 6:
            raise ValueError(f"mac of {self.name!r} has {len(self.mac)} bytes; expected 6 or None")
