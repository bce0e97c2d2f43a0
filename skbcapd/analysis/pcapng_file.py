"""Writes records of several capture files into one pcapng section.

In: records. Out: bytes for a target. Interfaces with the same name, description (network
namespace), link type and snaplen become one. Each is described before its first packet; those
without packets are not described.

Source: draft-ietf-opsawg-pcapng sections 4.1 to 4.3.
"""

from __future__ import annotations

import io
import struct

from skbcapd import __version__
from skbcapd.analysis.records import Record, join, swapped
from skbcapd.analysis.target import Target
from skbcapd.errors import FileError
from skbcapd.pcapng.blocks import (
    IF_DESCRIPTION,
    IF_NAME,
    IF_SPEED,
    IF_TSOFFSET,
    IF_TSRESOL,
    INTERFACE,
    PACKET,
    PACKET_HEAD,
)
from skbcapd.pcapng.reader import Interface

_IF_TZONE, _IF_TXSPEED, _IF_RXSPEED = 10, 16, 17
_TIMING = {IF_TSRESOL, IF_TSOFFSET, _IF_TZONE}
_NUMBERS = {IF_SPEED: "Q", _IF_TXSPEED: "Q", _IF_RXSPEED: "Q"}
_INTERFACES_MAX = 1 << 16
_DESCRIBED_MAX = 64 << 20  # bytes of all descriptions
_UNITS = {"ns": (1, b"\x09"), "us": (1000, b"\x06")}


class PcapngFile:
    """Writes the section.

    Args:
        target: target of the bytes.
        unit: unit of times: ns or us.
    """

    def __init__(self, target: Target, unit: str = "ns") -> None:
        from skbcapd.pcapng.writer import PcapngWriter  # noqa: PLC0415  scapy takes a while

        header = io.BytesIO()
        PcapngWriter(header).write_section(hardware="", os="", application=f"skbcapd {__version__}")
        target.write(header.getvalue())
        self.packets = 0
        self.links: dict[int, int] = {}
        """Link types of interfaces with packets."""
        self._target = target
        self._unit_ns, self._resolution = _UNITS[unit]
        self._numbers: dict[bytes, int] = {}  # by description
        self._described = 0
        self._known: tuple[Interface | None, int] = None, 0
        self._by_interface: dict[Interface, int] = {}

    def put(self, record: Record) -> None:
        """Write a packet.

        Raises:
            FileError: it cannot be written, its time is out of range, or there are too many
                interfaces.
        """
        time_ns, interface, wire_len, frame, options = record
        known, number = self._known
        if interface is not known:
            number = self._number(interface)
            self._known = interface, number
        time = time_ns // self._unit_ns
        size = len(frame)
        pad = -size & 3
        length = 32 + size + pad + len(options)
        if not 0 <= time < 1 << 64:
            raise FileError(f"a packet at {time_ns} ns since 1970; expected a time from 1970 on that fits into a file")
        self._target.write(
            PACKET_HEAD.pack(PACKET, length, number, time >> 32, time & 0xFFFFFFFF, size, wire_len),
            frame,
            bytes(pad) + options + length.to_bytes(4, "little"),
        )
        self.packets += 1
        self.links[interface.link_type] += 1

    def _number(self, interface: Interface) -> int:
        """The number of an interface; new interfaces are described."""
        number = self._by_interface.get(interface)
        if number is not None:
            return number
        self.links.setdefault(interface.link_type, 0)
        key, block = self._description(interface)
        number = self._numbers.get(key)
        if number is None:
            self._described += len(block) + len(key)
            if len(self._numbers) >= _INTERFACES_MAX or self._described > _DESCRIBED_MAX:
                raise FileError(
                    f"more than {_INTERFACES_MAX} interfaces, or very long descriptions; expected fewer",
                    "select some of them with --interface",
                )
            number = self._numbers[key] = len(self._numbers)
            self._target.write(block)
        if len(self._by_interface) >= _INTERFACES_MAX:
            self._by_interface.clear()  # it has the sections of files that are closed
        self._by_interface[interface] = number
        return number

    def _description(self, interface: Interface) -> tuple[bytes, bytes]:
        """The key of an interface, and its block."""
        order = interface.section.order
        options = []
        names = {IF_NAME: b"", IF_DESCRIPTION: b""}
        for code, value in interface.options():
            if code in names:
                names[code] = value
            if code not in _TIMING:
                options.append((code, swapped(value, _NUMBERS[code]) if order == ">" and code in _NUMBERS else value))
        options.append((IF_TSRESOL, self._resolution))
        fixed = struct.pack("<HHI", interface.link_type, 0, interface.snaplen)
        body = fixed + join(options)
        length = len(body) + 12
        return (
            fixed + join(names.items()),
            struct.pack("<II", INTERFACE, length) + body + struct.pack("<I", length),
        )
