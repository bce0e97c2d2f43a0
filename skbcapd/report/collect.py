"""Collects what a report shows, in one pass over capture files.

In: packets of capture files. Out: one JSON object with everything that the page draws.

The rules not to break: the object is bounded, whatever is in the files; what is left out is said
with its sums. All text from files is escaped (printable ASCII). The sums of a process equal those
of `skbcapd top`.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence
from ipaddress import ip_address

from skbcapd.analysis.account import Account, Key, Process
from skbcapd.analysis.names import Names
from skbcapd.analysis.sources import Timed
from skbcapd.analysis.top import facts, label
from skbcapd.pcapng.blocks import DIRECTION_IN, DIRECTION_OUT
from skbcapd.pcapng.interface import NO_LOSS
from skbcapd.report.causes import Causes, Kind, kind_of
from skbcapd.report.flows import Connection, Flows
from skbcapd.report.origins import Origins
from skbcapd.report.timeline import Timeline
from skbcapd.text_safety import escaped_bytes

_SERIES_MAX = 12  # processes with a colour of their own
_INTERVALS_MAX = 240
_ROWS_MAX = 5000
_ROW_PEERS_MAX = 5
_LINKS_MAX, _LINK_PROCESSES_MAX = 40, 15
_CONNECTIONS_MAX = 250
_PROTOCOLS_MAX = 40
_REASONS_MAX = 256
_OTHERS = "others"
_TEXT_MAX = 256  # characters of an option

_DIRECTIONS = {DIRECTION_IN: "received", DIRECTION_OUT: "sent"}


class Collector:
    """Adds up packets for a report.

    Args:
        by: the field by which packets are added up; see `account.BY`.
        has_drops: as for `account.Account`.
    """

    def __init__(self, by: str, *, has_drops: bool = False) -> None:
        self._drops: dict[str, list[int]] = {}  # packets and bytes that were not added up, by the reason
        self._has_drops = has_drops
        self._by = by
        self._names = Names()
        self._account = Account(by, self._names, has_drops=has_drops)
        self._timeline: Timeline[Key] = Timeline((_OTHERS.encode(),))
        self._flows: Flows[Key] = Flows()
        self._causes: Causes[Key] = Causes()
        self.origins = Origins()
        """Takes the sections of the files."""

    def read(self, packets: Iterable[Timed]) -> None:
        """Add packets."""
        self._account.read(self._watched(packets))

    def _watched(self, packets: Iterable[Timed]) -> Iterator[Timed]:
        """Pass packets on; add them to the timeline and to the connections."""
        key_of, add_time, add_flow = self._account.key, self._timeline.add, self._flows.add
        for timed in packets:
            time_ns, (interface, stamp, _, wire_len, frame, options) = timed
            if interface.is_of_drops and not self._has_drops:
                self._leave_out(stamp.drop or b"", wire_len)
                continue
            key = key_of(stamp)
            add_time(time_ns, key, wire_len)
            connection = add_flow(
                time_ns,
                frame,
                interface.link_type,
                stamp.direction,
                wire_len,
                key,
                is_owned=not isinstance(key, tuple),
            )
            if stamp.tgid is None and stamp.name is None:
                order = interface.section.order
                kind = kind_of(stamp.via, stamp.direction, frame, interface.link_type, options, order)
                self._causes.add(kind, connection, wire_len)
            elif connection is not None:
                connection.has_process = True
            yield timed

    @property
    def left_out(self) -> int:
        """Packets that the kernel has dropped; they were not added up."""
        return sum(packets for packets, _ in self._drops.values())

    def _leave_out(self, drop: bytes, size: int) -> None:
        reason = escaped_bytes(drop)[:_TEXT_MAX]
        if reason not in self._drops and len(self._drops) >= _REASONS_MAX:
            reason = _OTHERS
        sums = self._drops.setdefault(reason, [0, 0])
        sums[0] += 1
        sums[1] += size

    def result(self) -> dict[str, object]:
        """Everything that the page draws; times are milliseconds since 1970 UTC."""
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
            **self._pairs(rows),
            "drops": [
                {"reason": reason or "(not known)", "loss": reason not in NO_LOSS, "packets": packets, "bytes": size}
                for reason, (packets, size) in sorted(self._drops.items(), key=lambda item: -item[1][0])
            ],
            "connections": [self._connection(each) for each in self._flows.connections[:_CONNECTIONS_MAX]],
            "connectionCount": len(self._flows.connections),
            "protocols": self._protocols(),
            "unattributed": [_unattributed(*row) for row in self._causes.rows()],
            **self.origins.result(),
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

    def _pairs(self, rows: Sequence[Process]) -> dict[str, object]:
        """The pairs of process and peer with most bytes, and what is said of the others."""
        every = [
            (peer.bytes, peer.packets, place, address)
            for place, row in enumerate(rows)
            for address, peer in row.peers.items()
        ]
        shown = heapq.nlargest(_ROWS_MAX, every)
        return {
            "pairs": [
                {
                    "process": _label_of(rows[place], self._by),
                    "peer": self._peer(address),
                    "packets": packets,
                    "bytes": size,
                }
                for size, packets, place, address in shown
            ],
            "morePairs": {
                "rows": len(every) - len(shown),
                "bytes": sum(size for size, *_ in every) - sum(size for size, *_ in shown),
            },
        }

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


def _unattributed(kind: Kind, why: str, packets: int, size: int) -> dict[str, object]:
    return {
        "via": None if kind.via is None else _text(kind.via),
        "direction": _DIRECTIONS.get(kind.direction, ""),
        "protocol": kind.protocol,
        "why": why,
        "packets": packets,
        "bytes": size,
    }


def _text(value: bytes) -> str:
    return escaped_bytes(value)[:_TEXT_MAX]
