"""Collects what a report shows, in one pass over capture files.

In: packets and sections of capture files. Out: one JSON object with everything that the page draws.

The rules not to break: the object is bounded, whatever is in the files; what is left out is said
with its sums. All text from files is escaped (printable ASCII). The sums of a process equal those
of `skbcapd top`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from ipaddress import ip_address

from skbcapd.analysis.account import Account, Key, Process
from skbcapd.analysis.names import Names
from skbcapd.analysis.sources import Timed
from skbcapd.analysis.top import facts, label
from skbcapd.pcapng.blocks import (
    IF_DESCRIPTION,
    IF_FILTER,
    IF_NAME,
    ISB_FILTERACCEPT,
    ISB_IFDROP,
    ISB_IFRECV,
    ISB_OSDROP,
    SHB_HARDWARE,
    SHB_OS,
    SHB_USERAPPL,
)
from skbcapd.pcapng.reader import Section, walk_options
from skbcapd.report.flows import Connection, Flows
from skbcapd.report.timeline import Timeline
from skbcapd.text_safety import escaped_bytes

_SERIES_MAX = 12  # processes with a colour of their own
_INTERVALS_MAX = 240
_ROWS_MAX = 5000
_ROW_PEERS_MAX = 5
_LINKS_MAX, _LINK_PROCESSES_MAX = 40, 15
_CONNECTIONS_MAX = 250
_PROTOCOLS_MAX = 40
_INTERFACES_MAX = 500
_OTHERS = "others"
_TEXT_MAX = 256  # characters of an option

_STATISTICS = {"received": ISB_IFRECV, "matched": ISB_FILTERACCEPT, "dropped": ISB_OSDROP, "interface": ISB_IFDROP}
_WHY = {
    "kernel": "made by the kernel itself; no process has sent it",
    "forwarded": "passed through this machine; its sender and its receiver are elsewhere",
    "unknown": "it could not be proven whose packet it is",
    "group": "one of several processes that share a socket",
}
_NO_COMMENT = "the file says nothing about its process"


class Collector:
    """Adds up packets for a report.

    Args:
        by: the field by which packets are added up; see `account.BY`.
    """

    def __init__(self, by: str) -> None:
        self._by = by
        self._names = Names()
        self._account = Account(by, self._names)
        self._timeline: Timeline[Key] = Timeline((_OTHERS.encode(),))
        self._flows: Flows[Key] = Flows()

    def read(self, packets: Iterable[Timed]) -> None:
        """Add packets."""
        self._account.read(self._watched(packets))

    def _watched(self, packets: Iterable[Timed]) -> Iterator[Timed]:
        """Pass packets on; add them to the timeline and to the connections."""
        key_of, add_time, add_flow = self._account.key, self._timeline.add, self._flows.add
        for timed in packets:
            time_ns, (interface, stamp, _, wire_len, frame, _) = timed
            key = key_of(stamp)
            add_time(time_ns, key, wire_len)
            add_flow(
                time_ns,
                frame,
                interface.link_type,
                stamp.direction,
                wire_len,
                key,
                is_owned=not isinstance(key, tuple),
            )
            yield timed

    def result(self, sections: Sequence[Section]) -> dict[str, object]:
        """Everything that the page draws; times are milliseconds since 1970 UTC.

        Args:
            sections: with statistics.
        """
        rows = self._account.processes
        return {
            "by": self._by,
            "packets": sum(row.packets for row in rows),
            "bytes": sum(row.bytes for row in rows),
            "first": min((row.first_ns for row in rows), default=0) / 10**6,
            "last": max((row.last_ns for row in rows), default=0) / 10**6,
            "timeline": self._series(),
            "rows": [self._row(row) for row in rows[:_ROWS_MAX]],
            "more": _sums(rows[_ROWS_MAX:]),
            "links": self._links(rows),
            "connections": [self._connection(each) for each in self._flows.connections[:_CONNECTIONS_MAX]],
            "connectionCount": len(self._flows.connections),
            "protocols": self._protocols(),
            "unattributed": [_unattributed(row) for row in rows if row.via is not None or not row.says_anything],
            "captures": _captures(sections),
            "interfaces": list(_interfaces(sections))[:_INTERFACES_MAX],
        }

    def _label(self, key: Key) -> str:
        row = self._account.rows.get(key)
        return _OTHERS if row is None else _label_of(row, self._by)

    def _series(self) -> dict[str, object]:
        keys = self._timeline.keys()
        groups = [[key] for key in keys[:_SERIES_MAX]]
        names = [self._label(key) for key in keys[:_SERIES_MAX]]
        if keys[_SERIES_MAX:]:
            groups.append(keys[_SERIES_MAX:])
            names.append(f"{len(keys) - _SERIES_MAX} others")
        begin_ns, sums = self._timeline.series(groups, _INTERVALS_MAX)
        return {
            "begin": begin_ns / 10**6,
            "width": self._timeline.width_ns / 10**6,
            "series": [
                {"name": name, "packets": packets, "bytes": sizes}
                for name, (packets, sizes) in zip(names, sums, strict=True)
            ],
        }

    def _row(self, row: Process) -> dict[str, object]:
        peers = [self._peer(address) for address, _ in row.busiest(_ROW_PEERS_MAX)]
        return facts(row, self._by) | {"label": _label_of(row, self._by), "peers": len(row.peers), "busiest": peers}

    def _peer(self, address: bytes) -> str:
        """A peer as text: its first name, and its address."""
        known = self._names.of(address)
        return f"{known[0]} ({ip_address(address)})" if known else str(ip_address(address))

    def _links(self, rows: Sequence[Process]) -> list[dict[str, object]]:
        """The busiest pairs of process and peer."""
        found = [
            (peer.bytes, _label_of(row, self._by), self._peer(address))
            for row in rows[:_LINK_PROCESSES_MAX]
            for address, peer in row.busiest(_LINKS_MAX)
        ]
        found.sort(key=lambda link: -link[0])
        return [{"bytes": size, "process": process, "peer": peer} for size, process, peer in found[:_LINKS_MAX]]

    def _connection(self, each: Connection[Key]) -> dict[str, object]:
        names = self._names.of(each.remote.address)
        return {
            "protocol": each.protocol,
            "local": str(each.local),
            "remote": str(each.remote),
            "name": names[0] if names else None,
            "process": self._label(each.owner),
            "first": each.first_ns / 10**6,
            "last": each.last_ns / 10**6,
            "packets": each.packets,
            "bytes": each.bytes,
        }

    def _protocols(self) -> list[dict[str, object]]:
        found = sorted(self._flows.protocols.items(), key=lambda item: -item[1][1])
        shown = [{"name": name, "packets": sums[0], "bytes": sums[1]} for name, sums in found[:_PROTOCOLS_MAX]]
        if rest := found[_PROTOCOLS_MAX:]:
            packets, size = (sum(sums[at] for _, sums in rest) for at in (0, 1))
            shown.append({"name": f"{len(rest)} others", "packets": packets, "bytes": size})
        return shown


def _label_of(row: Process, by: str) -> str:
    """The name of a row for people; two rows can have the same, so processes have their tgid."""
    text = label(row, by)
    return f"{text or '-'} ({row.tgid})" if by == "tgid" and row.tgid is not None else text or "(none)"


def _sums(rows: Sequence[Process]) -> dict[str, int]:
    """What is said of the rows that are not shown."""
    return {"rows": len(rows), "packets": sum(row.packets for row in rows), "bytes": sum(row.bytes for row in rows)}


def _unattributed(row: Process) -> dict[str, object]:
    via = None if row.via is None else escaped_bytes(row.via)
    why = _NO_COMMENT if via is None else _WHY.get(via, "")
    return {"via": via, "why": why, "packets": row.packets, "bytes": row.bytes}


def _captures(sections: Sequence[Section]) -> list[dict[str, object]]:
    """The programs and systems that wrote the files, each once."""
    found: dict[tuple[str, ...], int] = {}
    for section in sections:
        options = dict(walk_options(section.block[24:-4], section.order))
        key = tuple(_text(options.get(code, b"")) for code in (SHB_HARDWARE, SHB_OS, SHB_USERAPPL))
        found[key] = found.get(key, 0) + 1
    return [
        {"hardware": hardware, "os": system, "application": application, "sections": count}
        for (hardware, system, application), count in list(found.items())[:_INTERFACES_MAX]
    ]


def _interfaces(sections: Sequence[Section]) -> Iterator[dict[str, object]]:
    """The interfaces, with the sums of their statistics; the sections of one capture are added up."""
    found: dict[tuple[str, str, str, int], dict[str, int | None]] = {}
    for section in sections:
        for interface in section.interfaces:
            options = dict(interface.options())
            name, description = (_text(options.get(code, b"")) for code in (IF_NAME, IF_DESCRIPTION))
            rule = options.get(IF_FILTER, b"")
            key = name, description, _text(rule[1:]) if rule[:1] == b"\0" else "", interface.link_type
            sums = found.setdefault(key, dict.fromkeys(_STATISTICS))
            numbers = dict(walk_options(section.statistics.get(interface.number, b"")[20:-4], section.order))
            for name, code in _STATISTICS.items():
                if len(value := numbers.get(code, b"")) == 8:
                    sums[name] = (sums[name] or 0) + struct.unpack(section.order + "Q", value)[0]
    for (name, description, expression, link_type), sums in found.items():
        yield {"name": name, "description": description, "filter": expression, "linkType": link_type, **sums}


def _text(value: bytes) -> str:
    return escaped_bytes(value)[:_TEXT_MAX]
