"""An index file that has arrived, checked.

In: the bytes of FILE.index.csv.gz, and where it was found. Out: its rows as a table of Arrow, with two columns more:
`directory` (of the index file, relative to `index/raw`; the capture is in the same one below `captures`) and `hour`
(hours since 1970 UTC of ts_first).

The rule not to break: hosts are not trusted. A file is taken whole or not at all, and one line says why; no value of it
can name a file outside of its directory, or be one that an engine cannot add up.
"""

from __future__ import annotations

import io
import re
import socket
import zlib
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from skbcapd.errors import FleetError
from skbcapd.fleet.rows import Row
from skbcapd.text_safety import escaped

RAW = "index/raw"
ENDING = ".index.csv.gz"
_BYTES_MAX = 1 << 30  # of an index file, decompressed
_COUNTER_MAX = 1 << 48
_HOURS_MAX = 1000  # of one file
_HOUR_US = 3_600_000_000
_CLOCK_US = 31 * 24 * _HOUR_US  # rows farther from the day of their file than this come from a wrong clock
_INT32 = {"peer_port", "local_port", "protocol"}
_LIMITS = {"peer_port": 0xFFFF, "local_port": 0xFFFF, "protocol": 0xFF}
_TIMES = ("ts_first", "ts_last")
_FILLED = ("interface", "netns")
_DATED = re.compile(r"(\d{4})(\d{2})(\d{2})T\d{6}")
_DAY = re.compile(r"(?:^|/)date=(\d{4}-\d{2}-\d{2})/")
_HOST = re.compile(r"(?:^|/)host=([^/]+)/")
_NAME = re.compile(r"[^/\x00-\x1f]{1,255}")


def _kind(name: str, annotation: str) -> Any:
    if name in _TIMES:
        return pa.timestamp("us", "UTC")
    if "int" in annotation:
        return pa.int32() if name in _INT32 else pa.int64()
    return pa.string()


SCHEMA = pa.schema([(name, _kind(name, str(kind))) for name, kind in Row.__annotations__.items()])
_NUMBERS = [name for name in SCHEMA.names if pa.types.is_integer(SCHEMA.field(name).type)]
_NEEDED = [name for name, kind in Row.__annotations__.items() if "int" in str(kind) and "None" not in str(kind)]


class Taken(NamedTuple):
    """A checked index file.

    Args:
        table: its rows.
        host: of all rows; empty if there are none.
        file: the capture file of all rows.
        notes: lines about what is unusual.
    """

    table: Any
    host: str
    file: str
    notes: list[str]


def day_of(path: str) -> str:
    """The day of a capture file: of its name, otherwise of its directory `date=`, otherwise 0000-00-00."""
    if found := _DATED.search(PurePosixPath(path).name):
        return "-".join(found.groups())
    found = _DAY.search(path)
    return found[1] if found else "0000-00-00"


def take(path: str, data: bytes) -> Taken:
    """Check an index file.

    Args:
        path: of the file, relative to the storage.
        data: its bytes.

    Raises:
        FleetError: it is torn, or no index.
    """
    try:
        table = _read(_decompressed(data))
        wrong = next(_wrong(table), "")
    except (zlib.error, EOFError, ValueError, pa.ArrowException) as error:
        wrong = " ".join(str(error).split())
    if wrong:
        raise FleetError(f"{escaped(path)}: {escaped(wrong[:200])}; expected a complete index file; not added")
    host, file = (table[name][0].as_py() if len(table) else "" for name in ("host_name", "file"))
    directory = str(PurePosixPath(path).parent.relative_to(RAW))
    hours = pc.divide(table["ts_first"].cast(pa.int64()), _HOUR_US)
    if len(hours.unique()) > _HOURS_MAX:
        raise FleetError(f"{escaped(path)}: rows of more than {_HOURS_MAX} hours; expected fewer; not added")
    table = table.append_column("directory", pa.array([directory] * len(table), pa.string()))
    return Taken(table.append_column("hour", hours), host, file, list(_notes(path, table, host)))


def _decompressed(data: bytes) -> bytes:
    found = bytearray()
    while data:
        unpacker = zlib.decompressobj(wbits=31)
        found += unpacker.decompress(data, _BYTES_MAX + 1 - len(found))
        if len(found) > _BYTES_MAX:
            raise ValueError(f"more than {_BYTES_MAX >> 30} GiB")
        if not unpacker.eof:
            raise EOFError("ends inside the compressed data")
        data = unpacker.unused_data
    return bytes(found)


def _read(data: bytes) -> Any:
    """The rows.

    Raises:
        ValueError: other columns.
        ArrowException: a value is of another type.
    """
    if not data.endswith(b"\n") or data[: data.find(b"\n")].decode("ascii", "replace").split(",") != SCHEMA.names:
        raise ValueError("the first line has other columns, or the last line has no end")
    if data.count(b"\n") == 1:
        return SCHEMA.empty_table()
    table = csv.read_csv(
        io.BytesIO(data),
        convert_options=csv.ConvertOptions(
            column_types=SCHEMA, strings_can_be_null=True, null_values=[""], check_utf8=True
        ),
    )
    for name in _FILLED:
        at = table.schema.get_field_index(name)
        table = table.set_column(at, SCHEMA.field(name), pc.fill_null(table[name], ""))
    return table.cast(SCHEMA)


def _wrong(table: Any) -> Iterator[str]:
    """What makes a table unusable."""
    if len(table):
        yield from _wrong_names(table)
        yield from _wrong_numbers(table)


def _wrong_names(table: Any) -> Iterator[str]:
    for name in ("host_name", "file"):
        values = table[name].unique().to_pylist()
        if len(values) > 1 or not isinstance(values[0], str) or not _NAME.fullmatch(values[0]) or values[0][0] == ".":
            yield f"{name} has {len(values)} values, the first one is {values[0]!r}"
    for name in ("peer_address", "local_address"):
        for text in table[name].unique().to_pylist():
            if text is not None and not _is_address(text):
                yield f"{name} is {text!r}"


def _wrong_numbers(table: Any) -> Iterator[str]:
    for name in _NUMBERS:
        least, most = pc.min_max(table[name]).as_py().values()
        if least is not None and not 0 <= least <= most <= _LIMITS.get(name, _COUNTER_MAX):
            yield f"{name} is between {least} and {most}"
    for name in _NEEDED:
        if table[name].null_count:
            yield f"{name} is missing"
    for first, last in (_TIMES, ("first_at", "last_at")):
        if pc.any(pc.greater(table[first], table[last])).as_py():
            yield f"{first} is after {last}"


def _is_address(text: str) -> bool:
    family = socket.AF_INET6 if ":" in text else socket.AF_INET
    try:
        return socket.inet_ntop(family, socket.inet_pton(family, text)) == text
    except (OSError, ValueError):
        return False


def _notes(path: str, table: Any, host: str) -> Iterator[str]:
    """What is unusual."""
    named = _HOST.search(path)
    if host and named and named[1] != host:
        yield f"{escaped(path)}: its rows are of host {escaped(host)}; expected that of its directory; added"
    day = day_of(path)
    if len(table) and day > "1970":
        middle = pa.scalar(f"{day}T12:00:00Z").cast(SCHEMA.field("ts_first").type).cast(pa.int64()).as_py()
        away = pc.abs(pc.subtract(table["ts_first"].cast(pa.int64()), middle))
        count = pc.sum(pc.greater(away, _CLOCK_US)).as_py()
        if count:
            yield (
                f"{escaped(path)}: {count} rows are more than 31 days from {day}: a clock was wrong; added with "
                "the times that they have"
            )
