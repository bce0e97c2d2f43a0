"""Puts records of several capture files into one pcapng section.

In: records. Out: bytes. Interfaces with the same name, description (network namespace), link type and snaplen are one;
each is described before its first packet, and those without packets are not. TLS secrets, where they are wanted, stand
before the next packet of their file.

The rule not to break: a section holds no interface of a file that was read. There may be thousands of sections, and
each of those files would stay in memory.

Source: draft-ietf-opsawg-pcapng sections 4.1 to 4.3.
"""

from __future__ import annotations

import hashlib
import struct

from skbcapd import __version__
from skbcapd.analysis.records import Record, join, swapped
from skbcapd.errors import FileError
from skbcapd.pcapng import secrets
from skbcapd.pcapng.blocks import (
    IF_DESCRIPTION,
    IF_NAME,
    IF_SPEED,
    IF_TSOFFSET,
    IF_TSRESOL,
    INTERFACE,
    PACKET,
    PACKET_HEAD,
    SECTION,
    SHB_HARDWARE,
    SHB_OS,
    SHB_USERAPPL,
    section_body,
)
from skbcapd.pcapng.reader import Interface, Section, walk_options

_IF_TZONE, _IF_TXSPEED, _IF_RXSPEED = 10, 16, 17
_TIMING = {IF_TSRESOL, IF_TSOFFSET, _IF_TZONE}
_NUMBERS = {IF_SPEED: "Q", _IF_TXSPEED: "Q", _IF_RXSPEED: "Q"}
_INTERFACES_MAX = 1 << 16
_DESCRIBED_MAX = 64 << 20  # bytes of all descriptions
_UNITS = {"ns": (1, b"\x09"), "us": (1000, b"\x06")}


class PcapngSection:
    """A section.

    Args:
        unit: of times: ns or us.
    """

    def __init__(self, unit: str = "ns") -> None:
        self._unit_ns, self._resolution = _UNITS[unit]
        self._numbers: dict[bytes, int] = {}  # of interfaces
        self.described = 0
        """Bytes of all descriptions."""

    @property
    def interfaces(self) -> int:
        """How many are described."""
        return len(self._numbers)

    def encode(self, record: Record, into: bytearray) -> None:
        """Add the block of a packet, and all that must stand before it.

        Args:
            record: the packet.
            into: where the bytes are added.

        Raises:
            FileError: its time fits no file, or there are too many interfaces.
        """
        time_ns, interface, _, wire_len, frame, options = record
        key, block = interface.portable or self._describe(interface)
        number = self._numbers.get(key)
        if number is None:
            if not self._numbers:
                into += _header(interface.section)
            number = self._add(key, block)
            into += block
        if interface.section.secrets:
            into += secrets.block(interface.section.secrets)
            interface.section.secrets = b""
        time = time_ns // self._unit_ns
        size = len(frame)
        pad = -size & 3
        length = 32 + size + pad + len(options)
        if not 0 <= time < 1 << 64:
            raise FileError(f"a packet at {time_ns} ns since 1970; expected a time that a file can hold")
        into += PACKET_HEAD.pack(PACKET, length, number, time >> 32, time & 0xFFFFFFFF, size, wire_len)
        into += frame
        into += bytes(pad) + options + length.to_bytes(4, "little")

    def end(self) -> bytes:
        """What a file without packets consists of; nothing if there are packets."""
        return b"" if self._numbers else _header(None)

    def _add(self, key: bytes, block: bytes) -> int:
        self.described += len(block)
        if len(self._numbers) >= _INTERFACES_MAX or self.described > _DESCRIBED_MAX:
            raise FileError(
                f"more than {_INTERFACES_MAX} interfaces, or very long descriptions; expected fewer",
                "select some of them with --interface",
            )
        number = self._numbers[key] = len(self._numbers)
        return number

    def _describe(self, interface: Interface) -> tuple[bytes, bytes]:
        """What distinguishes an interface from others, and its block: kept with it."""
        is_big = interface.section.order == ">"
        names = {IF_NAME: b"", IF_DESCRIPTION: b""}
        options = []
        for code, value in interface.options():
            if code in names:
                names[code] = value
            if code not in _TIMING:
                options.append((code, swapped(value, _NUMBERS[code]) if is_big and code in _NUMBERS else value))
        options.append((IF_TSRESOL, self._resolution))
        fixed = struct.pack("<HHI", interface.link_type, 0, interface.snaplen)
        key = hashlib.blake2b(fixed + join(names.items()), digest_size=16).digest()
        interface.portable = key, _block(INTERFACE, fixed + join(options))
        return interface.portable


def _header(source: Section | None) -> bytes:
    """A section header; the machine and the program are those of the first packet's file, if that says them."""
    kept = {SHB_HARDWARE, SHB_OS, SHB_USERAPPL}
    pairs = walk_options(source.block[24:-4], source.order) if source else ()
    options = [(code, value) for code, value in pairs if code in kept]
    if source is None or not source.block:
        options = [(SHB_USERAPPL, f"skbcapd {__version__}".encode())]
    return _block(SECTION, section_body() + join(options))


def _block(kind: int, body: bytes) -> bytes:
    length = len(body) + 12
    return struct.pack("<II", kind, length) + body + struct.pack("<I", length)
