"""A part of the table that is damaged is one line with its name, and what to do about it helps."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from skbcapd.errors import FleetError
from skbcapd.fleet import engines, table
from skbcapd.fleet.compaction import compact
from skbcapd.fleet.storage import Storage
from tests.fleet.fleet import arrived, run, ship, stored
from tools import synthetic_fleet

DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda data: data[:-1000],
    "empty": lambda _: b"",
    "footer": lambda data: data[:-300] + b"\xff" * 292 + data[-8:],
    "rows": lambda data: data[:4] + b"\xff" * 2000 + data[2004:],
}
MANIFEST = "index/day/manifest/2026-11-27.json"


@pytest.fixture(scope="module")
def _fleet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two hosts with captures of more than two hours, so there are three parts."""
    base = tmp_path_factory.mktemp("fleet")
    synthetic_fleet.make(base, 2, 23, 101)
    for capture in sorted((base / "captures").rglob("*.pcapng")):
        ship(base, capture)
    compact(Storage(str(base)))
    return base


@pytest.fixture
def base(_fleet: Path, tmp_path: Path) -> Path:
    """A fleet of its own for each test."""
    shutil.copytree(_fleet, tmp_path / "fleet")
    return tmp_path / "fleet"


def parts(base: Path) -> list[Path]:
    """The valid parts."""
    storage = Storage(str(base))
    return [base / part.path for part in table.parts(storage)]


def expect_line(said: str, path: Path) -> None:
    """One message, about this file and no other, with the hint."""
    assert said.count("expected a part of the table") == 1, said
    assert said.count(".parquet:") == said.count(f"{path}: ") == 1, said
    assert MANIFEST in said


@pytest.mark.parametrize(("kind", "at"), [("truncated", 1), ("empty", 0), ("footer", 2), ("rows", 0), ("rows", 1)])
def test_questions(kind: str, at: int, base: Path) -> None:
    """A query and an extraction name the part, whichever of them it is; other hours can be read."""
    path = parts(base)[at]
    path.write_bytes(DAMAGE[kind](path.read_bytes()))
    expect_line(run("query", base, code=1).stderr, path)
    expect_line(run("extract", base, "-w", base / "out.pcapng", code=1).stderr, path)
    assert not (base / "out.pcapng").exists()
    other = ["--to", "2026-11-27T09:59:00Z"] if at else ["--from", "2026-11-27T10:01:00Z"]
    assert run("query", base, *other).stdout


def test_a_query_that_fails_by_itself(base: Path) -> None:
    """No part is named, if all of them can be read."""
    storage = Storage(str(base))
    engine = engines.DuckDB(storage, table.parts(storage))
    with pytest.raises(FleetError, match=r"^the table: ") as raised:
        engine.ask(f"SELECT error('no memory') FROM {engine.source}", ())  # noqa: S608  its own text
    engine.close()
    assert ".parquet" not in raised.value.message


def test_a_missing_part(base: Path) -> None:
    """It is one line, too, also for a compaction that must read it."""
    path = parts(base)[0]
    path.unlink()
    expect_line(run("query", base, code=1).stderr, path)
    late(base)
    expect_line(run("compact", base, code=1).stderr, path)


def late(base: Path) -> None:
    """The index of one more host arrives."""
    place = base / "captures/host=late/date=2026-11-27"
    place.mkdir(parents=True)
    for number, capture in enumerate(sorted((base / "captures/host=web-00000").rglob("*.pcapng"))):
        if number % 10 == 0:
            ship(base, Path(shutil.copy(capture, place / capture.name.replace("web-00000", "late"))))


@pytest.mark.parametrize("kind", DAMAGE)
def test_compaction(kind: str, base: Path) -> None:
    """A compaction that must read it leaves the table as it was, and says so in one line. What the hint says makes the
    table complete again.
    """
    path, manifest = parts(base)[1], base / MANIFEST
    before = manifest.read_bytes()
    path.write_bytes(DAMAGE[kind](path.read_bytes()))
    late(base)
    expect_line(run("compact", base, code=1).stderr, path)
    assert manifest.read_bytes() == before
    manifest.unlink()
    run("compact", base)
    assert stored(base) == arrived(base)
    assert len({row.host_name for row in stored(base)}) == 3
