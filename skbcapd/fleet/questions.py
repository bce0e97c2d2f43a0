"""Selectors as SQL, for the table of a fleet.

In: the selectors of a command line, and an engine that has the table. Out: rows of the index that can have selected
packets.

The rules: no text of a command line becomes part of a query, it is a parameter. The SQL is what all engines understand.
A pattern is matched here with the values that the table has, so it has the same results as in `extract`. A row is as
long as its granule: it can have packets outside of the selected time and direction.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Network, ip_address
from typing import Any, Self

from skbcapd.analysis.selectors import Selectors
from skbcapd.config.pattern import TextPattern
from skbcapd.errors import UsageError
from skbcapd.fleet.engines import Answer, Engine
from skbcapd.fleet.rows import Row
from skbcapd.pcapng.blocks import DIRECTION_IN, DIRECTION_OUT

COLUMNS = {
    "process": "process_name",
    "comm": "thread_name",
    "unit": "unit",
    "user": "user_name",
    "container": "container_id",
    "pod": "pod",
}
"""Selector -> column."""

BY = (
    "host_name",
    "process_name",
    "process_pid",
    "user_name",
    "unit",
    "container_id",
    "protocol",
    "peer_address",
    "peer_port",
)
"""What a line of an answer is about."""

ROWS = "SELECT directory, " + ", ".join(f'"{name}"' for name in Row._fields) + " FROM found"
"""A query on `found`: all columns of `extract`."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_TIME_MAX_US = 253402300799_999_999  # the last microsecond of the year 9999
_MATCH_S = 0.02
_ESCAPE = re.compile(r"\\(?:x([0-9a-f]{2})|\\)")
_COUNTERS = ("packets_out", "bytes_out", "packets_in", "bytes_in", "packets_unknown", "bytes_unknown")
_ANSWER = (
    f"SELECT * FROM (SELECT {', '.join(BY)}, max(peer_name) AS peer_name, min(ts_first) AS ts_first, "
    f"max(ts_last) AS ts_last, {', '.join(f'sum({name})::BIGINT AS {name}' for name in _COUNTERS)} "
    f"FROM found GROUP BY {', '.join(BY)}) AS sums ORDER BY bytes_out + bytes_in + bytes_unknown DESC, {', '.join(BY)}"
)


class Questions:
    """Asks the table; a context manager.

    Args:
        engine: has the table.
        selectors: of packets; those that are not in an index are ignored.
        hosts: patterns of names of hosts; empty: all.

    Raises:
        FleetError: the table cannot be read.
        UsageError: a selector has no column.
    """

    def __init__(self, engine: Engine, selectors: Selectors, hosts: Sequence[TextPattern] = ()) -> None:
        self._engine = engine
        self._terms: list[str] = []
        self._values: list[Any] = []
        self._peers: list[tuple[str, list[Any]]] = [("true", [])]  # alternatives, of which a row has only one
        if engine.source:
            self._select(selectors, hosts)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._engine.close()

    def rows(self) -> list[tuple[str, Row]]:
        """All rows that can have selected packets, each with its directory below `captures`."""
        return [(directory, row(values)) for directory, *values in self._ask(ROWS)[1]]

    def answer(self, view: str = "") -> Answer:
        """Names of columns, and lines: for each process and peer, the sums; or the rows of a view.

        Args:
            view: a query on `found`; empty: the sums.
        """
        return self._ask(view or _ANSWER)

    def query(self, query: str) -> tuple[str, list[Any]]:
        """A query on the selected rows as a query on the table, and its values.

        Args:
            query: on `found`.
        """
        rows, values = self._rows("*")
        return f"WITH found AS ({rows}) {query}", values

    def _rows(self, columns: str, more: str = "true") -> tuple[str, list[Any]]:
        """The rows selected so far as a query, and its values. Each alternative has a query of its own: of one with OR,
        engines read all rows, whatever bloom filters and statistics say.
        """
        terms = " AND ".join([more, *self._terms])
        each = [f"SELECT {columns} FROM {self._engine.source} WHERE {terms} AND {term}" for term, _ in self._peers]
        return " UNION ALL ".join(each), [value for _, found in self._peers for value in (*self._values, *found)]

    def _ask(self, query: str) -> Answer:
        return self._engine.ask(*self.query(query)) if self._engine.source else ([], [])

    def _add(self, term: str, *values: Any) -> None:
        self._terms.append(term)
        self._values += values

    def _select(self, selectors: Selectors, hosts: Sequence[TextPattern]) -> None:
        """Add the terms of all selectors; first what leaves out most rows without a look at the values."""
        self._select_time(selectors)
        if selectors.tgids:
            self._add(*_one_of("process_pid", sorted(selectors.tgids)))
        if selectors.ports:
            term = " OR ".join(["peer_port BETWEEN ? AND ? OR local_port BETWEEN ? AND ?"] * len(selectors.ports))
            self._add(f"({term})", *(end for each in selectors.ports for end in (each[0], each[-1]) * 2))
        for direction, column in ((DIRECTION_IN, "packets_in"), (DIRECTION_OUT, "packets_out")):
            if selectors.directions == {direction}:
                self._add(f"{column} > 0")
        if selectors.peers:
            self._select_peers(selectors.peers)
        for name, patterns in selectors.texts.items():
            if name not in COLUMNS:
                raise UsageError(f"--{name}: not in an index; expected one of --{', --'.join(COLUMNS)}")
            self._match(COLUMNS[name], patterns)
        if selectors.interfaces:
            self._match("interface", selectors.interfaces)
        if hosts:
            self._match("host_name", hosts)

    def _select_time(self, selectors: Selectors) -> None:
        begin_us, end_us = span_us(selectors)
        if begin_us is not None:
            self._add("ts_last >= ?", _time(begin_us))
        if end_us is not None:
            self._add("ts_first < ?", _time(end_us))

    def _select_peers(self, networks: Sequence[Any]) -> None:
        """The peer; of packets without a direction also the other end."""
        peer, values = self._ends("peer_address", networks)
        local, others = self._ends("local_address", networks, " AND packets_unknown > 0")
        self._peers = [
            (peer, values),
            (f"packets_unknown > 0 AND {local} AND NOT coalesce({peer}, false)", [*others, *values]),
        ]

    def _ends(self, column: str, networks: Sequence[Any], more: str = "") -> tuple[str, list[Any]]:
        """A term for one of some networks, and its values."""
        found = [self._network(column, network, more) for network in networks]
        return f"({' OR '.join(term for term, _ in found)})", [value for _, values in found for value in values]

    def _network(self, column: str, network: Any, more: str) -> tuple[str, list[Any]]:
        """A term for a network: addresses are sorted as text, so the ranges of texts leave out row groups."""
        if network.num_addresses == 1:
            return f"{column} = ?", [str(network.network_address) if network.version == 4 else _six(network)]
        if isinstance(network, IPv4Network):
            octets = -(-network.prefixlen // 8)
            if octets == 4:
                term, *found = _one_of(column, [str(each) for each in network])
                return term, found
            starts = (
                [
                    ".".join(str(subnet.network_address).split(".")[:octets]) + "."
                    for subnet in network.subnets(new_prefix=octets * 8)
                ]
                if octets
                else [""]
            )
            term = " OR ".join([f"({column} >= ? AND {column} < ?)"] * len(starts))
            ends = [start[:-1] + "/" if start else ":" for start in starts]  # the character after "."
            return f"({term})", [value for pair in zip(starts, ends, strict=True) for value in pair]
        term, *found = _one_of(
            column, self._values_of(column, lambda text: _is_in(text, network), f"{column} LIKE '%:%'{more}")
        )
        return term, found

    def _match(self, column: str, patterns: Sequence[TextPattern]) -> None:
        found = self._values_of(column, lambda text: _matches(patterns, text), f"{column} IS NOT NULL")
        self._add(*_one_of(column, found))

    def _values_of(self, column: str, takes: Callable[[str], bool], term: str) -> list[str]:
        """The values of a column that match, in the rows selected so far."""
        rows, values = self._rows(column, term)
        return [
            text
            for (text,) in self._engine.ask(f"SELECT DISTINCT {column} FROM ({rows}) AS rows", values)[1]
            if takes(text)
        ]


def span_us(selectors: Selectors) -> tuple[int | None, int | None]:
    """The selected time: from when on, and before when, in microseconds since 1970 UTC; None: open."""
    span = selectors.span
    begin_us, end_us = (None if end is None else -(-end // 1000) for end in (span.begin_ns, span.end_ns))
    return begin_us, end_us


def row(values: Sequence[Any]) -> Row:
    """A row of the index, of its columns; times can be datetimes."""
    found = Row(*values)
    first, last = (
        time if isinstance(time, int) else (time - _EPOCH) // timedelta(microseconds=1)
        for time in (found.ts_first, found.ts_last)
    )
    return found._replace(ts_first=first, ts_last=last)


def _time(time_us: int) -> datetime:
    return _EPOCH + timedelta(microseconds=min(max(time_us, 0), _TIME_MAX_US))


def _one_of(column: str, values: Sequence[Any]) -> tuple[Any, ...]:
    """A term, and its values."""
    return (f"{column} IN ({', '.join('?' * len(values))})" if values else "false", *values)


def _six(network: Any) -> str:
    """An IPv6 address as in an index."""
    address = network.network_address
    mapped = address.ipv4_mapped
    return f"::ffff:{mapped}" if mapped else str(address)


def _is_in(text: str, network: Any) -> bool:
    try:
        return ip_address(text) in network
    except ValueError:
        return False


def _matches(patterns: Sequence[TextPattern], text: str) -> bool:
    plain = _ESCAPE.sub(lambda found: chr(int(found[1], 16)) if found[1] else "\\", text)
    name = plain.encode("latin-1", "replace").decode("utf-8", "surrogateescape")
    for pattern in patterns:
        try:
            if name and pattern.matches(name, _MATCH_S):
                return True
        except TimeoutError:
            continue
    return False
