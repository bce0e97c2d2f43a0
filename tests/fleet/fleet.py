"""A small fleet for tests: captures, their indexes as they arrive, and the truth."""

from __future__ import annotations

import gzip
import importlib.util
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import duckdb

from skbcapd.fleet import index_file, rows, table
from skbcapd.fleet.intake import RAW
from skbcapd.fleet.rows import Row
from skbcapd.fleet.storage import Storage
from tests.support import stored_files
from tools import synthetic_fleet
from tools.synthetic_fleet import Seen

ROOT = Path(__file__).parents[2]
FILES = 3


def ship(base: Path, capture: Path) -> Path:
    """Index a capture, and put the index where a host sends it."""
    place = capture.parent.relative_to(base / "captures")
    host = place.parts[0].removeprefix("host=")
    index_file.write(capture, host)
    written = index_file.path_of(capture)
    target = base / RAW / place / written.name
    target.parent.mkdir(parents=True, exist_ok=True)
    return written.replace(target)


def make(base: Path, hosts: int = 15, packets: int = 401, kinds: Sequence[str] = ("plain",)) -> list[Seen]:
    """A fleet whose indexes have arrived; files are stored in turn as `kinds` says (see `stored_files.KINDS`)."""
    truth = synthetic_fleet.make(base, hosts, FILES, packets)
    for number, capture in enumerate(sorted((base / "captures").rglob("*.pcapng"))):
        stored = stored_files.store(capture, kinds[number % len(kinds)])
        if stored != capture:
            capture.unlink()
        ship(base, stored)
    return truth


def arrived(base: Path) -> list[Row]:
    """The rows of all index files, read without the package under test's table."""
    found = []
    for path in filter(Path.is_file, (base / RAW).rglob("*.index.csv.gz")):
        with gzip.open(path, "rt") as lines:
            found += list(rows.read(lines))
    return sorted(found, key=str)


def stored(base: Path) -> list[Row]:
    """All rows of the valid parts."""
    paths = table.paths(Storage(str(base)), table.parts(Storage(str(base))))
    if not paths:
        return []
    columns = [f"epoch_us({name})" if name.startswith("ts_") else f'"{name}"' for name in Row._fields]
    query = f"SELECT {', '.join(columns)} FROM read_parquet(?)"  # noqa: S608  names of columns
    return sorted((Row(*values) for values in duckdb.connect().execute(query, [paths]).fetchall()), key=str)


def job(name: str) -> Any:
    """The module contrib/NAME/fleet.py."""
    found = importlib.util.spec_from_file_location(f"contrib_{name}", ROOT / f"contrib/{name}/fleet.py")
    assert found
    assert found.loader
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def run(*words: str | Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run `skbcapd fleet`."""
    command = [sys.executable, "-m", "skbcapd", "fleet", *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done
