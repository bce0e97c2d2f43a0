"""The description of an interface in a capture file, shared by the writer and all modules before it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


class Sink(Protocol):
    """Where blocks go: what a buffered binary file and BytesIO offer."""

    def write(self, data: bytes | memoryview, /) -> object:
        """Take all of `data`, unlike an unbuffered file, which may take a part."""

    def flush(self) -> object:
        """Hand on what is held back."""


@dataclass(frozen=True, slots=True)
class Interface:
    """One device of one network namespace, as an interface block describes it.

    Args:
        name: the device's name, any bytes that Linux allows.
        description: for people: the namespace, what kind of device; may be empty.
        link_type: LINKTYPE_ value, u16.
        snaplen: most bytes kept of a frame, u32; 0 is no limit.
        mac: the six bytes of an EUI-48 address; None when the device has none.
        speed_bps: bits per second; None when not known.
        filter: the capture filter in pcap-filter syntax; None for none.
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
