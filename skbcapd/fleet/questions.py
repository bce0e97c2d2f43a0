"""Selectors as SQL, for the table of a fleet.

In: the selectors of a command line, and Parquet files. Out: rows of the index that can have selected packets.

The rules: no text of a command line becomes part of a query, it is a parameter. A pattern is matched here with the
values that the table has, so it has the same results as in `extract`. A row is as long as its granule: it can have
packets outside of the selected time and direction.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from ipaddress import IPv4Network, ip_address
from typing import Any, Self

import duckdb

from skbcapd.analysis.selectors import Selectors
from skbcapd.attribution.fields import GROUPS
from skbcapd.config.pattern import TextPattern
from skbcapd.errors import FleetError, UsageError
from skbcapd.fleet import table
from skbcapd.fleet.rows import Row
from skbcapd.fleet.storage import Storage
from skbcapd.pcapng.blocks import DIRECTION_IN, DIRECTION_OUT
from skbcapd.text_safety import escaped

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

_MATCH_S = 0.02
_ESCAPE = re.compile(r"\\(?:x([0-9a-f]{2})|\\)")
_COUNTERS = ("packets_out", "bytes_out", "packets_in", "bytes_in", "packets_unknown", "bytes_unknown")
_ANSWER = (
    f"SELECT {', '.join(BY)}, max(peer_name) AS peer_name, min(ts_first) AS ts_first, max(ts_last) AS ts_last, "
    f"{', '.join(f'sum({name})::BIGINT AS {name}' for name in _COUNTERS)} FROM found GROUP BY {', '.join(BY)} "
    f"ORDER BY sum(bytes_out + bytes_in + bytes_unknown) DESC, {', '.join(BY)}"
)


class Questions:
    """Asks the table; a context manager.

    Args:
        storage: the storage.
        selectors: of packets; those that are not in an index are ignored.
        hosts: patterns of names of hosts; empty: all.

    Raises:
        FleetError: the table cannot be read.
        UsageError: a selector has no column.
    """

    def __init__(self, storage: Storage, selectors: Selectors, hosts: Sequence[TextPattern] = ()) -> None:
        span = selectors.span
        self._begin_us = None if span.begin_ns is None else -(-span.begin_ns // 1000)
        self._end_us = None if span.end_ns is None else -(-span.end_ns // 1000)
        self.parts = table.parts(storage, self._begin_us, self._end_us)
        self._paths = table.paths(storage, self.parts)
        self._engine: Any = duckdb.connect()
        self._engine.execute("SET TimeZone = 'UTC'").fetchall()
        if not storage.is_local:
            self._engine.register_filesystem(storage.system)
        self._terms: list[str] = []
        self._values: list[Any] = []
        if self._paths:
            self._select(selectors, hosts)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._engine.close()

    def rows(self) -> list[tuple[str, Row]]:
        """All rows that can have selected packets, each with its directory below `captures`."""
        times = {"ts_first", "ts_last"}
        columns = [f"epoch_us({name})" if name in times else f'"{name}"' for name in Row._fields]
        found = self._ask(f"SELECT directory, {', '.join(columns)} FROM found ORDER BY ALL")
        return [(directory, Row(*values)) for directory, *values in found[1]]

    def answer(self, view: str = "") -> tuple[list[str], list[tuple[Any, ...]]]:
        """Names of columns, and lines: for each process and peer, the sums; or the rows of a view.

        Args:
            view: a query on `found`; empty: the sums.
        """
        return self._ask(view or _ANSWER)

    def _ask(self, query: str) -> tuple[list[str], list[tuple[Any, ...]]]:
        if not self._paths:
            return [], []
        where = " AND ".join(self._terms) or "true"
        whole = f"WITH found AS (SELECT * FROM read_parquet(?, hive_partitioning = false) WHERE {where}) {query}"
        return self._run(whole, [self._paths, *self._values])

    def _run(self, query: str, values: Sequence[Any]) -> tuple[list[str], list[tuple[Any, ...]]]:
        try:
            result = self._engine.execute(query, values)
            return [column[0] for column in result.description], result.fetchall()
        except (duckdb.Error, OSError) as error:
            why = escaped(" ".join(str(error).split())[:300])
            raise FleetError(
                f"the table: {why}; expected to read it", "a compaction may have replaced a part: ask again"
            ) from None

    def _add(self, term: str, *values: Any) -> None:
        self._terms.append(term)
        self._values += values

    def _select(self, selectors: Selectors, hosts: Sequence[TextPattern]) -> None:
        """Add the terms of all selectors; first what leaves out most rows without a look at the values."""
        self._select_time()
        if selectors.tgids:
            self._add("process_pid IN (SELECT unnest(?))", sorted(selectors.tgids))
        if selectors.ports:
            term = " OR ".join(["peer_port BETWEEN ? AND ? OR local_port BETWEEN ? AND ?"] * len(selectors.ports))
            self._add(f"({term})", *(end for each in selectors.ports for end in (each[0], each[-1]) * 2))
        for direction, column in ((DIRECTION_IN, "packets_in"), (DIRECTION_OUT, "packets_out")):
            if selectors.directions == {direction}:
                self._add(f"{column} > 0")
        if selectors.peers:
            self._select_peers(selectors.peers)
        for name in GROUPS:
            if patterns := selectors.texts.get(name):
                if name not in COLUMNS:
                    raise UsageError(f"--{name}: not in an index; expected one of --{', --'.join(COLUMNS)}")
                self._match(COLUMNS[name], patterns)
        if selectors.interfaces:
            self._match("interface", selectors.interfaces)
        if hosts:
            self._match("host_name", hosts)

    def _select_time(self) -> None:
        if self._begin_us is not None:
            self._add("ts_last >= make_timestamptz(?)", self._begin_us)
        if self._end_us is not None:
            self._add("ts_first < make_timestamptz(?)", self._end_us)

    def _select_peers(self, networks: Sequence[Any]) -> None:
        """The peer; of packets without a direction also the other end."""
        terms: list[str] = []
        values: list[Any] = []
        for column, more in (("peer_address", ""), ("local_address", " AND packets_unknown > 0")):
            for network in networks:
                term, found = self._network(column, network)
                terms.append(f"({term}{more})")
                values += found
        self._add(f"({' OR '.join(terms)})", *values)

    def _network(self, column: str, network: Any) -> tuple[str, list[Any]]:
        """A term for a network: addresses are sorted as text, so the ranges of texts leave out row groups."""
        if network.num_addresses == 1:
            return f"{column} = ?", [str(network.network_address) if network.version == 4 else _six(network)]
        if isinstance(network, IPv4Network):
            octets = -(-network.prefixlen // 8)
            if octets == 4:
                return f"{column} IN (SELECT unnest(?))", [[str(each) for each in network]]
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
        return f"{column} IN (SELECT unnest(?))", [self._values_of(column, lambda text: _is_in(text, network), ":")]

    def _match(self, column: str, patterns: Sequence[TextPattern]) -> None:
        found = self._values_of(column, lambda text: _matches(patterns, text), "")
        self._add(f"{column} IN (SELECT unnest(?::VARCHAR[]))", found)

    def _values_of(self, column: str, takes: Callable[[str], bool], part: str) -> list[str]:
        """The values of a column that match, in the rows selected so far."""
        where = " AND ".join([*self._terms, f"contains({column}, ?)"])
        query = f"SELECT DISTINCT {column} FROM read_parquet(?, hive_partitioning = false) WHERE {where}"
        return [text for (text,) in self._run(query, [self._paths, *self._values, part])[1] if takes(text)]


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
    name = plain.encode("latin-1").decode("utf-8", "surrogateescape")
    for pattern in patterns:
        try:
            if name and pattern.matches(name, _MATCH_S):
                return True
        except TimeoutError:
            continue
    return False
