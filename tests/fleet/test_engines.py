"""Spark and ClickHouse give the answers of DuckDB, and Spark the packets of the truth."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from skbcapd.analysis.selectors import Selection, Selectors
from skbcapd.cli import selecting
from skbcapd.fleet import extraction, table
from skbcapd.fleet.compaction import compact
from skbcapd.fleet.engines import DuckDB, Engine
from skbcapd.fleet.questions import Questions, span_us
from skbcapd.fleet.storage import Storage
from tests.fleet.fleet import ROOT, job, make
from tools.fleet_trial import judged
from tools.synthetic_fleet import NEEDLE, Seen

SELECTORS = {
    "time": ["--peer", NEEDLE, "--from", "2026-11-27T09:43:00Z", "--to", "2026-11-27T09:47:00.5Z"],
    "patterns": ["--comm", "/^(java|curl)$/", "--port", "443", "--unit", "*.service", "--direction", "in"],
    "networks": ["--peer", "12.0.0.0/7", "--peer", "1.2.3.0/29", "--peer", "2001:db8::/32"],
    "none": ["--peer", "8.8.8.8", "--process", "nothing*"],
}


def chosen(words: list[str]) -> Selectors:
    """Selectors of a command line."""
    parser = argparse.ArgumentParser()
    selecting.add_all(parser.add_argument_group())
    return selecting.selectors_of(parser.parse_args(words))


def answered(engine: Engine, selectors: Selectors) -> tuple[list[str], list[tuple[Any, ...]]]:
    """An answer, sorted."""
    with Questions(engine, selectors) as questions:
        columns, lines = questions.answer()
    return columns, sorted(lines, key=str)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> tuple[Storage, list[Seen]]:
    """A compacted fleet, and the truth."""
    base = tmp_path_factory.mktemp("fleet")
    truth = make(base)
    storage = Storage(str(base))
    compact(storage)
    return storage, truth


@pytest.fixture(scope="module")
def spark() -> Iterator[Any]:
    """Spark on this machine; its workers find skbcapd."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(ROOT)
    session = job("spark").session("local[2]")
    session.sparkContext.setLogLevel("ERROR")
    yield session
    session.stop()
    os.environ.pop("PYTHONPATH")
    if before is not None:
        os.environ["PYTHONPATH"] = before


def duckdb(storage: Storage, selectors: Selectors) -> DuckDB:
    """DuckDB, as `skbcapd fleet query` uses it."""
    return DuckDB(storage, table.parts(storage, *span_us(selectors)))


@pytest.mark.parametrize("name", SELECTORS)
def test_clickhouse(name: str, fleet: tuple[Storage, list[Seen]]) -> None:
    """ClickHouse gives the answer of DuckDB."""
    storage, _ = fleet
    selectors = chosen(SELECTORS[name])
    wanted = answered(duckdb(storage, selectors), selectors)
    assert answered(job("clickhouse").engine(storage, selectors), selectors) == wanted
    assert bool(wanted[1]) == (name != "none")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SELECTORS)
def test_spark(name: str, fleet: tuple[Storage, list[Seen]], spark: Any) -> None:
    """Spark gives the answer of DuckDB."""
    storage, _ = fleet
    selectors = chosen(SELECTORS[name])
    wanted = answered(duckdb(storage, selectors), selectors)
    assert answered(job("spark").engine(spark, storage, selectors), selectors) == wanted


@pytest.mark.filterwarnings("ignore")
def test_spark_extracts(fleet: tuple[Storage, list[Seen]], spark: Any, tmp_path: Path) -> None:
    """Spark writes the packets of the truth, and reads at most 8 % of the files; a missing capture is one line."""
    storage, truth = fleet
    selectors = chosen(["--peer", NEEDLE])
    module = job("spark")
    template = f"{storage.url}/{extraction.CAPTURES}"
    out = tmp_path / "out.pcapng"
    engine = module.engine(spark, storage, selectors)
    with Questions(engine, selectors) as questions:
        said, wrong = module.extract(engine, questions, template, Selection(selectors), out)
        assert wrong == []
        assert judged(out) == [tuple(seen) for seen in truth]
        read, of = (int(word) for word in said[-1].partition("ranges, ")[2].split()[:3:2])
        assert 0 < read <= 0.08 * of
        host = truth[0].host
        (gone,) = Path(storage.url).glob(f"captures/host={host}/*/*2.pcapng")
        gone.rename(tmp_path / gone.name)
        _, wrong = module.extract(engine, questions, template, Selection(selectors), out)
    assert len(wrong) == 1
    assert gone.name in wrong[0]
    assert judged(out) == [tuple(seen) for seen in truth if seen.host != host]
