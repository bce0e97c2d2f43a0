"""Where captures come from: programs, systems and interfaces, with their settings and statistics.

In: sections of capture files, when they have been read. Out: rows for a table.

The rules not to break: memory is bounded, however many sections there are; the statistics of interfaces beyond the
first 500 are added up. All text from files is escaped. Files say nothing of a host but its system and the addresses of
its interfaces: these tell hosts apart.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from skbcapd.pcapng.blocks import (
    IF_DESCRIPTION,
    IF_FILTER,
    IF_MACADDR,
    IF_NAME,
    IF_OS,
    IF_SPEED,
    ISB_ENDTIME,
    ISB_FILTERACCEPT,
    ISB_IFDROP,
    ISB_IFRECV,
    ISB_OSDROP,
    ISB_STARTTIME,
    OPT_COMMENT,
    SHB_HARDWARE,
    SHB_OS,
    SHB_USERAPPL,
)
from skbcapd.pcapng.reader import Interface, Section, walk_options
from skbcapd.text_safety import escaped_bytes

_ROWS_MAX = 500
_TEXT_MAX = 256  # characters of an option
_ADDRESS_SIZE = 6  # bytes of an Ethernet address
_CAPTURE = {"hardware": SHB_HARDWARE, "os": SHB_OS, "application": SHB_USERAPPL, "comment": OPT_COMMENT}
_STATISTICS = {"received": ISB_IFRECV, "matched": ISB_FILTERACCEPT, "dropped": ISB_OSDROP, "interface": ISB_IFDROP}
_OTHERS = "others"
_PCAP = "(a pcap file: it does not say)"


class Origins:
    """Adds up sections."""

    def __init__(self) -> None:
        self._captures: dict[tuple[object, ...], dict[str, object]] = {}
        self._times: dict[tuple[object, ...], list[int]] = {}
        self._counts: dict[tuple[object, ...], int] = {}
        self._interfaces: dict[tuple[object, ...], dict[str, object]] = {}
        self._sums: dict[tuple[object, ...], dict[str, int | None]] = {}

    def add(self, section: Section) -> None:
        """Add a section."""
        options = dict(walk_options(section.block[24:-4], section.order))
        capture: dict[str, object] = {name: _text(options.get(code, b"")) for name, code in _CAPTURE.items()}
        if not section.block:
            capture["application"] = _PCAP
        if _key(capture) not in self._captures and len(self._captures) >= _ROWS_MAX:
            capture = dict.fromkeys(_CAPTURE, _OTHERS)
        key = _key(capture)
        self._captures[key] = capture
        self._counts[key] = self._counts.get(key, 0) + 1
        times = self._times.setdefault(key, [])
        for interface in section.interfaces:
            statistics = dict(walk_options(section.statistics.get(interface.number, b"")[20:-4], section.order))
            times += _times(interface, statistics)
            self._add_interface(interface, statistics)
        times[:] = [min(times), max(times)] if times else []

    def _add_interface(self, interface: Interface, statistics: dict[int, bytes]) -> None:
        settings = _settings(interface)
        if _key(settings) not in self._interfaces and len(self._interfaces) >= _ROWS_MAX:
            settings = {"name": _OTHERS}
        self._interfaces[_key(settings)] = settings
        sums = self._sums.setdefault(_key(settings), dict.fromkeys(_STATISTICS))
        for name, code in _STATISTICS.items():
            if len(value := statistics.get(code, b"")) == 8:
                sums[name] = (sums[name] or 0) + struct.unpack(interface.section.order + "Q", value)[0]

    def result(self) -> dict[str, object]:
        """Rows of captures, and of interfaces; times are milliseconds since 1970 UTC."""
        return {
            "captures": [
                {**capture, **_span(self._times[key]), "sections": self._counts[key]}
                for key, capture in self._captures.items()
            ],
            "interfaces": [settings | self._sums[key] for key, settings in self._interfaces.items()],
        }


def _key(settings: dict[str, object]) -> tuple[object, ...]:
    return tuple(settings.values())


def _span(times: list[int]) -> dict[str, float | None]:
    return {"first": times[0] / 10**6 if times else None, "last": times[-1] / 10**6 if times else None}


def _times(interface: Interface, statistics: dict[int, bytes]) -> Iterator[int]:
    """Start and end of the capture, in nanoseconds since 1970 UTC."""
    for code in (ISB_STARTTIME, ISB_ENDTIME):
        if len(value := statistics.get(code, b"")) == 8:
            high, low = struct.unpack(interface.section.order + "II", value)
            yield interface.time_ns(high << 32 | low)


def _settings(interface: Interface) -> dict[str, object]:
    """What the description of an interface has."""
    options = dict(interface.options())
    name, description, system = (_text(options.get(code, b"")) for code in (IF_NAME, IF_DESCRIPTION, IF_OS))
    rule, address, speed = (options.get(code, b"") for code in (IF_FILTER, IF_MACADDR, IF_SPEED))
    return {
        "name": name,
        "description": description,
        "filter": _text(rule[1:]) if rule[:1] == b"\0" else "",
        "linkType": interface.link_type,
        "snaplen": interface.snaplen or None,
        "address": address.hex(":") if len(address) == _ADDRESS_SIZE else "",
        "speed": struct.unpack(interface.section.order + "Q", speed)[0] if len(speed) == 8 else None,
        "os": system,
    }


def _text(value: bytes) -> str:
    return escaped_bytes(value)[:_TEXT_MAX]
