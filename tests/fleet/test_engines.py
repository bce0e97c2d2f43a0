"""The table in object storage, and on other engines: the same rows, and the same packets, on the real ones."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from contrib.fleet import clickhouse, spark
from skbcapd.analysis.selectors import Selectors, peer
from skbcapd.analysis.when import Span
from skbcapd.fleet import table
from skbcapd.fleet.compaction import compact
from skbcapd.fleet.extraction import CAPTURES
from skbcapd.fleet.questions import Questions
from skbcapd.fleet.storage import Storage
from tests.fleet.fleet import ROOT, judged, make, run
from tools.fleet import BUCKET, s3_server
from tools.synthetic_fleet import NEEDLE, Seen

_SUMS = ("packets_out", "bytes_out", "packets_in", "bytes_in")
_BY = ("host_name", "process_name", "process_pid", "unit", "peer_port")


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Seen]]:
    """A compacted fleet in the directory of a bucket, and the truth."""
    base = tmp_path_factory.mktemp("store") / BUCKET
    truth = make(base)
    compact(Storage(str(base)))
    return base, truth


@pytest.fixture(scope="module")
def session() -> Iterator[SparkSession]:
    """Spark on this machine."""
    os.environ["PYTHONPATH"] = str(ROOT)
    made = spark.session("local[2]")
    yield made
    made.stop()


def by_duckdb(base: Path) -> list[tuple[object, ...]]:
    """Sums of the needle."""
    with Questions(Storage(str(base)), Selectors(peers=(peer(NEEDLE),))) as questions:
        columns, lines = questions.answer()
    return sorted(tuple(line[columns.index(name)] for name in (*_BY, *_SUMS)) for line in lines)


def test_spark(fleet: tuple[Path, list[Seen]], session: SparkSession, tmp_path: Path) -> None:
    """Spark answers as DuckDB does, and its workers return the packets of the truth."""
    base, truth = fleet
    found = spark.rows(session, str(base), NEEDLE, Span())
    assert sorted(tuple(line[name] for name in (*_BY, *_SUMS)) for line in spark.answer(found)) == by_duckdb(base)
    when = Span(truth[3].time_ns, truth[-3].time_ns)
    found = spark.rows(session, str(base), NEEDLE, when)
    selectors = Selectors(peers=(peer(NEEDLE),), span=when)
    got = []
    for number, made in enumerate(spark.packets(found, f"{base}/{CAPTURES}", selectors).collect()):
        (tmp_path / f"{number}.pcapng").write_bytes(made.pcapng)
        got += judged(tmp_path / f"{number}.pcapng") if made.packets else []
    assert sorted(got) == [tuple(seen) for seen in truth[3:-3]]


def test_clickhouse(fleet: tuple[Path, list[Seen]]) -> None:
    """ClickHouse answers as DuckDB does."""
    base, _ = fleet
    storage = Storage(str(base))
    lines = clickhouse.answer(table.paths(storage, table.parts(storage)), NEEDLE)
    assert sorted(tuple(line[name] for name in (*_BY, *_SUMS)) for line in lines) == by_duckdb(base)


def test_object_storage(fleet: tuple[Path, list[Seen]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compaction, questions and packets over S3 are those of the directory; a bucket that is gone is one line."""
    base, truth = fleet
    store = tmp_path / "store" / BUCKET
    shutil.copytree(base / "captures", store / "captures")
    shutil.copytree(base / "index/raw", store / "index/raw")
    with s3_server(store.parent) as variables:
        _set(monkeypatch, variables)
        run("compact", f"s3://{BUCKET}")
        assert "0 index files" in run("compact", f"s3://{BUCKET}").stderr
        assert by_duckdb(store) == by_duckdb(base)
        words = ("--peer", NEEDLE, "--format", "csv")
        assert run("query", f"s3://{BUCKET}", *words).stdout == run("query", base, *words).stdout
        run("extract", f"s3://{BUCKET}", "--peer", NEEDLE, "-w", tmp_path / "out.pcapng")
        assert judged(tmp_path / "out.pcapng") == [tuple(seen) for seen in truth]
    assert "expected to reach it" in run("query", f"s3://{BUCKET}", code=1).stderr


def _set(monkeypatch: pytest.MonkeyPatch, variables: Mapping[str, str]) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
