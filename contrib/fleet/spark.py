#!/usr/bin/env python3
"""Questions and packets of many hosts by Spark, from the table that `skbcapd fleet compact` makes.

    spark.py URL --peer 1.2.3.4 --from 2026-11-27T10:00:00Z --to 2026-11-27T10:05:00Z [--directory DIR]

Prints a line for each process and peer. With --directory, the packets are written there, one pcapng file for each
capture: `mergecap -w found.pcapng DIR/*.pcapng` makes one of them, in the order of time. Rows of one capture are a
group, and each group is one call of skbcapd.fleet.packets on a worker, which reads ranges of the capture. Only these
packets, not the captures, travel.

The table is a directory that all workers see, or any URL that Spark reads (s3a:// needs Spark's own jars). skbcapd must
be on the PYTHONPATH of the workers.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pyspark.sql import SparkSession
from pyspark.sql import functions as F  # noqa: N812  as in all of Spark's own examples

from skbcapd.analysis.selectors import Selection, Selectors, peer
from skbcapd.analysis.when import Span, span
from skbcapd.fleet import table
from skbcapd.fleet.extraction import CAPTURES, Captures
from skbcapd.fleet.rows import Row
from skbcapd.fleet.storage import Storage

_KEY = ("host_name", "directory", "file")
_TIMES = ("ts_first", "ts_last")


def session(master: str) -> SparkSession:
    """A session; times are UTC."""
    builder = SparkSession.builder.appName("skbcapd").config("spark.sql.session.timeZone", "UTC")
    for key, value in (
        ("spark.ui.enabled", "false"),
        ("spark.ui.showConsoleProgress", "false"),
        ("spark.sql.shuffle.partitions", "8"),
        ("spark.pyspark.python", sys.executable),
    ):
        builder = builder.config(key, value)
    if master.startswith("local"):
        builder = builder.config("spark.driver.bindAddress", "127.0.0.1").config("spark.driver.host", "127.0.0.1")
    found: SparkSession = builder.master(master).getOrCreate()
    return found


def rows(spark: SparkSession, url: str, address: str, when: Span) -> Any:
    """The rows of the table that can have packets of a peer and a time, as a data frame."""
    begin_us = None if when.begin_ns is None else when.begin_ns // 1000
    end_us = None if when.end_ns is None else -(-when.end_ns // 1000)
    storage = Storage(url)
    paths = table.paths(storage, table.parts(storage, begin_us, end_us))
    if not paths:
        raise SystemExit(f"{url}: no part of the table has this time")
    found = spark.read.parquet(*paths).where(F.col("peer_address") == address)
    if begin_us is not None:
        found = found.where(F.unix_micros("ts_last") >= begin_us)
    if end_us is not None:
        found = found.where(F.unix_micros("ts_first") < end_us)
    return found


def answer(found: Any) -> list[dict[str, Any]]:
    """The processes and the sums of their packets."""
    by = ("host_name", "process_name", "process_pid", "unit", "peer_address", "peer_port")
    sums = [F.sum(name).alias(name) for name in ("packets_out", "bytes_out", "packets_in", "bytes_in")]
    return [line.asDict() for line in found.groupBy(*by).agg(*sums).orderBy(*by).collect()]


def _reading(template: str, selectors: Selectors) -> Callable[[Any, Any], Any]:
    """What a worker does with the rows of one capture."""

    def read(key: tuple[str, str, str], group: Any) -> Any:
        import pandas as pd  # noqa: PLC0415  on the worker

        wanted = [Row(**{name: _plain(values[name]) for name in Row._fields}) for values in group.to_dict("records")]
        data, count = Captures(template).packets(key[1], wanted, Selection(selectors))
        return pd.DataFrame([{"host_name": key[0], "file": key[2], "packets": count, "pcapng": data}])

    return read


def packets(found: Any, template: str, selectors: Selectors) -> Any:
    """The packets of rows: a data frame with a pcapng file for each capture."""
    for name in _TIMES:
        found = found.withColumn(name, F.unix_micros(name))
    result = "host_name string, file string, packets long, pcapng binary"
    return found.groupBy(*_KEY).applyInPandas(_reading(template, selectors), result)


def _plain(value: Any) -> Any:
    """A value of pandas: a missing one is None, and a number is whole."""
    if value is None or value != value:  # noqa: PLR0124  NaN is not itself
        return None
    return value if isinstance(value, str) else int(value)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Questions and packets of many hosts by Spark.")
    parser.add_argument("url")
    parser.add_argument("--peer", required=True)
    parser.add_argument("--from", dest="begin")
    parser.add_argument("--to", dest="end")
    parser.add_argument("--master", default="local[*]")
    parser.add_argument("--captures", default="")
    parser.add_argument("--directory", type=Path)
    options = parser.parse_args()
    when = span(options.begin, options.end, time.time_ns())
    spark = session(options.master)
    found = rows(spark, options.url, options.peer, when)
    for line in answer(found):
        print(json.dumps(line))
    if options.directory:
        template = options.captures or f"{options.url}/{CAPTURES}"
        selectors = Selectors(peers=(peer(options.peer),), span=when)
        options.directory.mkdir(parents=True, exist_ok=True)
        for made in packets(found, template, selectors).toLocalIterator():
            if made.packets:
                (options.directory / f"{made.host_name}-{made.file}").write_bytes(made.pcapng)
    spark.stop()


if __name__ == "__main__":
    main()
