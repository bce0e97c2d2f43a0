#!/usr/bin/env python3
"""Questions of many hosts by ClickHouse (here chdb, ClickHouse in a process), from the table of `fleet compact`.

    clickhouse.py URL --peer 1.2.3.4

For a year of many hosts, load the parts into a MergeTree table instead, sorted by peer and time; SCHEMA makes it, and
INSERT fills it from files. The same query runs on it. New parts: insert those that the manifest has, once each.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

import chdb

from skbcapd.fleet import table
from skbcapd.fleet.storage import Storage

SCHEMA = """CREATE TABLE fleet ENGINE = MergeTree PARTITION BY toDate(ts_first) ORDER BY (peer_address, ts_first)
SETTINGS allow_nullable_key = 1 AS SELECT * FROM {source}"""

QUESTION = """SELECT host_name, process_name, process_pid, unit, peer_address, peer_port,
sum(packets_out) AS packets_out, sum(bytes_out) AS bytes_out, sum(packets_in) AS packets_in, sum(bytes_in) AS bytes_in
FROM {source} WHERE peer_address = {{peer:String}} GROUP BY ALL ORDER BY ALL"""


def source(paths: Sequence[str]) -> str:
    """The parts of the table as a table function."""
    listed = ",".join(path.replace("\\", "\\\\").replace("'", "\\'") for path in paths)
    return f"file('{{{listed}}}', Parquet)" if len(paths) > 1 else f"file('{listed}', Parquet)"


def answer(paths: Sequence[str], peer: str) -> list[dict[str, Any]]:
    """The processes that exchanged packets with a peer."""
    settings = "SETTINGS output_format_json_quote_64bit_integers = 0"
    query = f"{QUESTION.format(source=source(paths))} {settings}"
    said = chdb.query(query, "JSONEachRow", params={"peer": peer})
    return [json.loads(line) for line in str(said).splitlines() if line]


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Questions of many hosts by ClickHouse.")
    parser.add_argument("url")
    parser.add_argument("--peer", required=True)
    options = parser.parse_args()
    storage = Storage(options.url)
    for line in answer(table.paths(storage, table.parts(storage)), options.peer):
        print(json.dumps(line))


if __name__ == "__main__":
    main()
