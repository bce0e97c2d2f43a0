"""A table of many rows, to measure questions.

    .venv-fleet/bin/python -m tools.fleet_rows DIRECTORY [ROWS]

In: a directory, which keeps the table for the next run, and a number of rows (30 million). Out: a table of one
day and 200 hosts, made by DuckDB in the format of compaction, and the least and the median seconds of some questions
to it. No captures belong to it.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import duckdb

from skbcapd.cli import selecting
from skbcapd.fleet import compaction, intake, table
from skbcapd.fleet.engines import DuckDB
from skbcapd.fleet.questions import Questions, span_us
from skbcapd.fleet.storage import Storage
from skbcapd.fleet.table import Manifest, Part

DAY = "2026-11-27"
HOUR = 1_795_737_600 // 3600  # of its midnight
HOURS = 24
# hash() of DuckDB makes numbers that look random; a third of the flows are with a few peers.
_VALUES = {
    "ts_first": "make_timestamptz({hour} * 3600000000 + r(i, 1) % 3540000000)",
    "ts_last": "ts_first + INTERVAL (r(i, 2) % 20000) MILLISECONDS",
    "peer_address": "CASE WHEN i % 2000 = 7 THEN '1.2.3.4' ELSE concat_ws('.', 11 + r(p, 3) % 200, "
    "r(p, 4) % 256, r(p, 5) % 256, r(p, 6) % 256) END",
    "peer_port": "[443, 80, 53, 5432, 6379, 22, 8080][1 + r(i, 7) % 7]",
    "local_address": "concat('10.0.', h, '.1')",
    "local_port": "32768 + r(i, 8) % 28000",
    "protocol": "6",
    "process_name": "concat('program-', r(i, 9) % 48)",
    "thread_name": "concat('program-', r(i, 9) % 48)",
    "process_pid": "300 + r(h, i % 48) % 400000",
    "thread_id": "300 + r(h, i % 48) % 400000",
    "user_name": "'www-data'",
    "unit": "concat(i % 48, '.service')",
    "interface": "'eth0'",
    "netns": "'network namespace of init'",
    "host_name": "printf('web-%05d', h)",
    "file": f"printf('skbcapd-web-%05d-{DAY.replace('-', '')}T%02d0000.000Z-%06d.pcapng', h, {{hour}} % 24, i % 12)",
    "offset": "1000 + (i % 100) * 1048576",
    "length": "1048576",
    "first_at": "r(i, 10) % 500000",
    "last_at": "first_at + r(i, 11) % 500000",
}
_MINUTES = ("--from", f"{DAY}T10:00:00Z", "--to", f"{DAY}T10:05:00Z")
QUESTIONS = (("--peer", "1.2.3.4", *_MINUTES), ("--peer", "8.8.8.8", *_MINUTES), ("--peer", "1.2.3.4"))
_EMPTY = {"peer_name", "container_id", "pod", "via"}


def make(storage: Storage, place: Path, rows: int) -> None:
    """Make the table."""
    engine = duckdb.connect()
    engine.execute("SET TimeZone = 'UTC'").fetchall()
    engine.execute("CREATE MACRO r(a, b) AS (hash(a, b) >> 2)::BIGINT").fetchall()
    manifest = Manifest(DAY)
    for hour in range(HOUR, HOUR + HOURS):
        columns = []
        for name, field in zip(intake.SCHEMA.names, intake.SCHEMA, strict=True):
            kind = {"int32": "INTEGER", "int64": "BIGINT", "string": "VARCHAR"}.get(str(field.type), "TIMESTAMPTZ")
            value = _VALUES.get(name, "NULL" if name in _EMPTY else "r(i, 12) % 1000").format(hour=hour)
            columns.append(f'({value})::{kind} AS "{name}"')
        path = f"{table.TABLE}/date={DAY}/hour={hour % 24:02}/part-{DAY}-made-0.parquet"
        made = place / path
        made.parent.mkdir(parents=True, exist_ok=True)
        begin = (hour - HOUR) * (rows // HOURS)
        engine.execute(
            f"COPY (SELECT {', '.join(columns)}, concat('host=', host_name, '/date={DAY}') AS directory FROM "  # noqa: S608
            f"(SELECT range AS i, range % 200 AS h, least(r(range, 0) % 50000, r(range, 13) % 5000) AS p "
            f"FROM range({begin}, {begin + rows // HOURS})) ORDER BY peer_address, ts_first) TO '{made}' "
            f"(FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE {compaction._GROUP}, "
            f"DICTIONARY_SIZE_LIMIT {compaction._GROUP // 2})"
        ).fetchall()
        ends_us = hour * 3_600_000_000, (hour + 1) * 3_600_000_000
        manifest.parts.append(Part(path, hour, rows // HOURS, made.stat().st_size, *ends_us))
    table.commit(storage, manifest)


def ask(storage: Storage, words: Sequence[str], times: int = 11) -> tuple[int, list[float]]:
    """Ask a question some times: the number of lines of the answer, and the seconds of each."""
    reader = argparse.ArgumentParser()
    selecting.add_all(reader.add_argument_group())
    chosen = selecting.selectors_of(reader.parse_args(words))
    seconds, count = [], 0
    for _ in range(times):
        begin_s = time.monotonic()
        with Questions(DuckDB(storage, table.parts(storage, *span_us(chosen))), chosen) as questions:
            count = len(questions.answer()[1])
        seconds.append(time.monotonic() - begin_s)
    return count, seconds


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python3 -m tools.fleet_rows")
    parser.add_argument("directory", type=Path)
    parser.add_argument("rows", type=int, nargs="?", default=30_000_000)
    options = parser.parse_args()
    storage = Storage(str(options.directory))
    if not table.parts(storage):
        make(storage, options.directory, options.rows)
    parts = table.parts(storage)
    print(f"{sum(part.rows for part in parts):,} rows, {sum(part.bytes for part in parts) / 1e6:.0f} MB")
    for words in QUESTIONS:
        count, seconds = ask(storage, words)
        least, middle = min(seconds), statistics.median(seconds)
        print(f"{' '.join(words)}: {count} lines; least {least:.3f} s, median {middle:.3f} s", flush=True)


if __name__ == "__main__":
    main()
