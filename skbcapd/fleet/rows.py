"""A row of an index, and where it says that packets are; docs/index.md describes each column.

In: values. Out: lines of CSV, and back.

The rule not to break: text is one line of printable ASCII; what is not known is empty. Numbers are signed, and times
are in microseconds, because not all engines read others (Spark, Iceberg).
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
TIME_MAX_NS = 253402300799_999_999_000
"""The last microsecond of the year 9999."""


class Row(NamedTuple):
    """The packets of one process, flow and interface in one granule."""

    ts_first: int  # microseconds since 1970 UTC
    ts_last: int
    peer_address: str | None
    peer_port: int | None
    peer_name: str | None
    local_address: str | None
    local_port: int | None
    protocol: int | None
    process_name: str | None
    thread_name: str | None
    process_pid: int | None
    thread_id: int | None
    user_name: str | None
    unit: str | None
    container_id: str | None
    pod: str | None
    via: str | None
    interface: str
    netns: str
    first_at: int
    last_at: int
    packets_out: int
    bytes_out: int
    packets_in: int
    bytes_in: int
    packets_unknown: int
    bytes_unknown: int
    host_name: str
    file: str
    offset: int
    length: int
    interface_id: int
    interface_offset: int
    interface_length: int
    interface_at: int


_TIMES = {"ts_first", "ts_last"}
_NUMBERS = {name for name, kind in Row.__annotations__.items() if "int" in str(kind)} - _TIMES
HEADINGS = ",".join(Row._fields) + "\n"
"""The first line."""


def cells(values: Iterable[int | str | None]) -> str:
    """Columns of a line (RFC 4180) that follow each other."""
    return ",".join(["" if value is None else _quoted(str(value)) for value in values])


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"' if "," in text or '"' in text else text


class Seconds(dict[int, str]):
    """The beginning of a time in ISO 8601, without its microseconds, by seconds since 1970 UTC; at most TIME_MAX_NS."""

    def __missing__(self, time_s: int) -> str:
        made = self[time_s] = f"{_EPOCH + timedelta(seconds=time_s):%Y-%m-%dT%H:%M:%S}."
        return made


def read(lines: Iterable[str]) -> Iterator[Row]:
    """The rows of an index file.

    Raises:
        ValueError: it is no index.
    """
    table = csv.reader(lines)
    if tuple(next(table, ())) != Row._fields:
        raise ValueError("the first line has other columns")
    for line in table:
        if len(line) != len(Row._fields):
            raise ValueError(f"line {table.line_num} has {len(line)} columns; expected {len(Row._fields)}")
        yield Row(*map(_value, Row._fields, line))  # type: ignore[arg-type]  # types by name


def _value(name: str, text: str) -> int | str | None:
    if name in _TIMES:
        return (datetime.fromisoformat(text) - _EPOCH) // timedelta(microseconds=1)
    if name in _NUMBERS:
        return int(text) if text else None
    return text if text or name in {"interface", "netns"} else None
