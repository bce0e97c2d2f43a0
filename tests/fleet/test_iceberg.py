"""The Iceberg table has the rows of the valid parts, each once, whatever happens; pyiceberg and DuckDB read it."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import pytest
from pyiceberg.catalog import load_catalog
from pyiceberg.expressions import And, EqualTo, GreaterThanOrEqual, LessThan

from skbcapd.errors import FleetError
from skbcapd.fleet import table
from skbcapd.fleet.compaction import compact
from skbcapd.fleet.intake import RAW
from skbcapd.fleet.storage import Storage
from tests.fleet.fleet import ROOT, job, ship
from tools import synthetic_fleet
from tools.synthetic_fleet import NEEDLE

NAME = "skbcapd.rows"
COLUMNS = 'host_name, file, "offset", ts_first, ts_last, peer_address, process_name, packets_out, bytes_in, directory'
TRIES = 20
# Forks a run for each line that it reads: what pyiceberg imports takes longer than a run.
RUNS = """
import os, runpy, sys
sys.argv = ["fleet.py", sys.argv[2], "--catalog", "fleet"]
program = runpy.run_path("contrib/iceberg/fleet.py")
while sys.stdin.readline():
    pid = os.fork()
    if not pid:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # it says what it has added
        program["main"]()
        os._exit(0)
    print(pid, flush=True)
    sys.stdin.readline()
    _, status = os.waitpid(pid, 0)
    print(status, flush=True)
"""


@pytest.fixture(scope="module")
def _fleet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Captures of two hours, with their indexes."""
    base = tmp_path_factory.mktemp("fleet")
    synthetic_fleet.make(base, hosts=5, files=7, packets=101)
    for capture in sorted((base / "captures").rglob("*.pcapng")):
        ship(base, capture)
    return base


@pytest.fixture
def base(_fleet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Indexes of a test, and its catalog."""
    shutil.copytree(_fleet / "index", tmp_path / "index")
    (tmp_path / "iceberg").mkdir()
    for name, value in properties(tmp_path).items():
        monkeypatch.setenv(f"PYICEBERG_CATALOG__FLEET__{name.upper()}", value)  # for runs that are killed
    return tmp_path


def properties(base: Path) -> dict[str, str]:
    """Of a catalog."""
    return {"uri": f"sqlite:///{base}/catalog.db", "warehouse": f"file://{base}/iceberg"}


def opened(base: Path) -> Any:
    """The Iceberg table, loaded now."""
    return job("iceberg").opened(load_catalog("fleet", **properties(base)), NAME)


def commit(base: Path) -> tuple[int, int]:
    """A run of the job."""
    added, removed = job("iceberg").commit(Storage(str(base)), opened(base))
    return added, removed


def scanned(base: Path, **options: Any) -> list[tuple[Any, ...]]:
    """Rows of the Iceberg table, as DuckDB gets them from pyiceberg."""
    engine = opened(base).scan(**options).to_duckdb("rows")
    engine.execute("SET TimeZone = 'UTC'").fetchall()
    return sorted(engine.execute(f"SELECT {COLUMNS} FROM rows").fetchall(), key=str)  # noqa: S608  names of columns


def stored(base: Path, where: str = "true") -> list[tuple[Any, ...]]:
    """Rows of the valid parts."""
    storage = Storage(str(base))
    engine: Any = duckdb.connect()
    engine.execute("SET TimeZone = 'UTC'").fetchall()
    paths = table.paths(storage, table.parts(storage))
    query = f"SELECT {COLUMNS} FROM read_parquet(?, hive_partitioning = false) WHERE {where}"  # noqa: S608  our words
    return sorted(engine.execute(query, [paths]).fetchall(), key=str)


def held_back(base: Path) -> list[Path]:
    """Index files that have not arrived yet: all of them, at random places."""
    waiting = sorted((base / RAW).rglob("*.gz"))
    for path in waiting:
        path.rename(base / path.name)
    random.Random(7).shuffle(waiting)
    return waiting


def arrive(base: Path, paths: list[Path]) -> None:
    """They arrive."""
    for path in paths:
        (base / path.name).rename(path)


def test_a_second_run_adds_nothing(base: Path) -> None:
    """The Iceberg table has all rows of the valid parts once, also after a second run, and after parts were replaced
    and deleted.
    """
    late = held_back(base)
    arrive(base, late[:17])
    compact(Storage(str(base)))
    assert commit(base) == (2, 0)
    assert scanned(base) == stored(base) != []
    snapshot = opened(base).current_snapshot()
    assert commit(base) == (0, 0)
    assert opened(base).current_snapshot() == snapshot
    before = len(scanned(base))
    arrive(base, late[17:])
    compact(Storage(str(base)))
    assert commit(base) == (2, 2)
    compact(Storage(str(base)), grace_s=-60)
    assert scanned(base) == stored(base)
    assert len(scanned(base)) > before


def test_only_matching_parts_are_opened(base: Path) -> None:
    """A question of some minutes plans the part of its hour only, and has the rows that DuckDB finds."""
    compact(Storage(str(base)))
    commit(base)
    begin, end = (datetime(2026, 11, 27, 10, minute, tzinfo=UTC) for minute in (0, 6))
    term = And(
        EqualTo("peer_address", NEEDLE),
        And(GreaterThanOrEqual("ts_last", begin.isoformat()), LessThan("ts_first", end.isoformat())),
    )
    [planned] = opened(base).scan(row_filter=term).plan_files()
    assert "hour=10" in planned.file.file_path
    found = stored(base, f"peer_address = '{NEEDLE}' AND ts_last >= '{begin}' AND ts_first < '{end}'")
    assert scanned(base, row_filter=term) == found != []


def test_two_committers(base: Path) -> None:
    """Of two runs at the same time, the second one fails, and changes nothing."""
    compact(Storage(str(base)))
    first, second = opened(base), opened(base)
    job("iceberg").commit(Storage(str(base)), first)
    with pytest.raises(FleetError, match="one run at a time"):
        job("iceberg").commit(Storage(str(base)), second)
    assert scanned(base) == stored(base)


def test_killed_at_any_moment(base: Path) -> None:
    """20 runs are killed at random moments, with compactions in between: readers see the table before a run or after
    it, no row twice, and the next run does the rest.
    """
    waiting = held_back(base)
    chance = random.Random(os.getpid())
    killed = 0
    command = [sys.executable, "-c", RUNS, "runs", str(base)]
    pipe = subprocess.PIPE
    seen: list[tuple[Any, ...]] = []
    with subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True) as runs:
        assert runs.stdin
        assert runs.stdout
        for _ in range(TRIES):
            arrive(base, waiting[:1])
            del waiting[:1]
            compact(Storage(str(base)))
            print(file=runs.stdin, flush=True)
            pid = int(runs.stdout.readline())
            time.sleep(chance.uniform(0, 0.4))  # the moment is what is tried
            os.kill(pid, signal.SIGKILL)
            print(file=runs.stdin, flush=True)
            killed += int(runs.stdout.readline()) == signal.SIGKILL
            now = scanned(base)
            assert now in (seen, stored(base))
            seen = now
        runs.stdin.close()
    arrive(base, waiting)
    compact(Storage(str(base)))
    commit(base)
    assert scanned(base) == stored(base)
    assert killed > 0
