"""Compaction: each index file is in the table once, whatever happens; and what is wrong is one line."""

from __future__ import annotations

import gzip
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import duckdb
import pyarrow.parquet as pq
import pytest

from skbcapd.errors import FleetError
from skbcapd.fleet import compaction, table
from skbcapd.fleet.compaction import compact
from skbcapd.fleet.intake import RAW
from skbcapd.fleet.rows import Row
from skbcapd.fleet.storage import Storage
from tests.fleet.fleet import FILES, ROOT, arrived, make, run, stored
from tools import fleet_sizes

HOSTS = 15


@pytest.fixture(scope="module")
def _fleet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("fleet")
    make(base, HOSTS)
    return base


@pytest.fixture
def base(_fleet: Path, tmp_path: Path) -> Path:
    """A fleet of its own for each test."""
    shutil.copytree(_fleet / "index", tmp_path / "index")
    shutil.copytree(_fleet / "captures", tmp_path / "captures")
    return tmp_path


def test_the_table_has_all_rows_once(base: Path) -> None:
    """The table has the rows of all index files, also after a second run, which writes nothing."""
    report = compact(Storage(str(base)))
    assert (report.files, report.said, report.wrong) == (HOSTS * FILES, [], [])
    assert stored(base) == arrived(base)
    again = compact(Storage(str(base)))
    assert (again.files, again.rows, again.parts, again.said, again.wrong) == (0, 0, 0, [], [])


def test_parts(base: Path) -> None:
    """A part is sorted by peer and time, in the directory of its day and hour, with zstd, a bloom filter on the peer,
    microseconds and signed integers, and with the host in the row.
    """
    compact(Storage(str(base)))
    (part,) = (base / "index/day").rglob("*.parquet")
    assert part.parent.relative_to(base / "index/day").as_posix() == "date=2026-11-27/hour=09"
    read = pq.read_table(part, partitioning=None)
    order = list(zip(read["peer_address"].to_pylist(), read["ts_first"].to_pylist(), strict=True))
    assert order == sorted(order)
    assert len(set(read["host_name"].to_pylist())) == HOSTS
    kinds = {str(field.type) for field in read.schema}
    assert kinds == {"timestamp[us, tz=UTC]", "string", "int32", "int64"}
    query = "SELECT compression, bloom_filter_offset FROM parquet_metadata(?) WHERE path_in_schema = 'peer_address'"
    assert all(
        compression == "ZSTD" and offset
        for compression, offset in duckdb.connect().execute(query, [str(part)]).fetchall()
    )


def test_the_computed_page_has_the_sizes_of_the_code(tmp_path: Path) -> None:
    """What tools/fleet_sizes.py computes with is what captures, indexes and parts have."""
    assert fleet_sizes.PART_BYTES == compaction._LARGE
    found = fleet_sizes.measure(tmp_path, hosts=1, files=2, packets=20_000)
    rows_of_byte = fleet_sizes.ROWS_OF_FILE / fleet_sizes.FILE_BYTES
    assert found["ROWS_OF_FILE"] / found["FILE_BYTES"] == pytest.approx(rows_of_byte, rel=0.1)
    assert found["INDEX_BYTES_OF_ROW"] == pytest.approx(fleet_sizes.INDEX_BYTES_OF_ROW, rel=0.2)
    # Parts of few rows are larger.
    assert fleet_sizes.TABLE_BYTES_OF_ROW < found["TABLE_BYTES_OF_ROW"] < 2 * fleet_sizes.TABLE_BYTES_OF_ROW


def test_late_files(base: Path) -> None:
    """Files that arrive later are in the table with the first ones, and replaced parts are deleted after a time."""
    late = sorted((base / RAW).rglob("*.gz"))[::3]
    for path in late:
        path.rename(base / path.name)
    compact(Storage(str(base)))
    first = set((base / "index/day").rglob("*.parquet"))
    for path in late:
        (base / path.name).rename(path)
    assert compact(Storage(str(base))).files == len(late)
    assert stored(base) == arrived(base)
    assert first < set((base / "index/day").rglob("*.parquet"))
    compact(Storage(str(base)), grace_s=-60)
    assert len(list((base / "index/day").rglob("*.parquet"))) == 1
    assert stored(base) == arrived(base)


def test_killed_at_any_moment(base: Path) -> None:
    """20 runs are killed at random moments, with files that arrive in between: nothing is lost or counted twice."""
    everything = arrived(base)
    waiting = sorted((base / RAW).rglob("*.gz"))
    for path in waiting:
        path.rename(base / path.name)
    program = "import sys; from skbcapd.fleet.compaction import compact; from skbcapd.fleet.storage import Storage; "
    program += "storage = Storage(sys.argv[1]); print(flush=True); compact(storage)"
    chance = random.Random(os.getpid())
    killed = 0
    before: set[Row] = set()
    for _ in range(20):
        for path in waiting[:2]:
            (base / path.name).rename(path)
        del waiting[:2]
        running = subprocess.Popen([sys.executable, "-c", program, str(base)], cwd=ROOT, stdout=subprocess.PIPE)
        with running:
            assert running.stdout
            running.stdout.readline()
            time.sleep(chance.uniform(0, 0.4))  # the moment is what is tried
            running.send_signal(signal.SIGKILL)
            killed += running.wait() == -signal.SIGKILL
        seen = stored(base)
        assert len(seen) == len(set(seen))
        assert before <= set(seen) <= set(everything)
        before = set(seen)
    for path in waiting:
        (base / path.name).rename(path)
    compact(Storage(str(base)))
    assert stored(base) == everything
    assert killed > 0


def _torn(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _text(change: Callable[[str], str]) -> Callable[[bytes], bytes]:
    return lambda data: gzip.compress(change(gzip.decompress(data).decode()).encode())


HOSTILE = {
    "torn": _torn,
    "empty": lambda _: b"",
    "no gzip": lambda _: b"hello\n",
    "noise inside": lambda data: data[:40] + random.Random(1).randbytes(200) + data[240:],
    "cut line": _text(lambda text: text[:-9]),
    "other columns": _text(lambda text: text.replace("peer_port", "port", 1)),
    "negative": _text(lambda text: re.sub(r",eth0,(.*?),\d+,", r",eth0,\1,-5,", text, count=1)),
    "huge": _text(lambda text: re.sub(r",eth0,(.*?),\d+,", rf",eth0,\1,{1 << 62},", text, count=1)),
    "no number": _text(lambda text: re.sub(r",\d+,(\d+,\d+)\n", r",,\1\n", text, count=1)),
    "path": _text(lambda text: text.replace("skbcapd-web", "../../etc/skbcapd-web")),
    "two hosts": _text(lambda text: text.replace(",web-00005,", ",web-00006,", 1)),
    "address": _text(lambda text: text.replace(",10.0.5.1,", ",10.0.5.01,", 1)),
    "time": _text(lambda text: re.sub(r"\n\d{4}-", "\n9999-", text, count=1)),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_wrong_index_file(kind: str, base: Path) -> None:
    """An index file that is torn or hostile is one line, and not in the table; all others are. When it comes whole, it
    is added.
    """
    (path,) = (base / RAW).rglob("*web-00005*-000001.pcapng.index.csv.gz")
    good = path.read_bytes()
    path.write_bytes(HOSTILE[kind](good))
    done = run("compact", base, code=1)
    lines = [line for line in done.stderr.splitlines() if path.name in line]
    assert len(lines) == 1, done.stderr
    assert "not added" in lines[0]
    path.write_bytes(good)
    os.utime(path, ns=(7, 7))
    run("compact", base)
    assert stored(base) == arrived(base)


def test_a_gzip_bomb(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An index file that is too large when decompressed is one line."""
    monkeypatch.setattr("skbcapd.fleet.intake._BYTES_MAX", 1 << 20)
    path = next((base / RAW).rglob("*.gz"))
    path.write_bytes(gzip.compress(bytes(1 << 24)))
    (line,) = compact(Storage(str(base))).wrong
    assert path.name in line


def test_sent_twice(base: Path) -> None:
    """The same file again, also under another directory, is counted once."""
    compact(Storage(str(base)))
    path = min((base / RAW).rglob("*.gz"))
    before = stored(base)
    os.utime(path, ns=(7, 7))
    other = base / RAW / "again" / path.name
    other.parent.mkdir()
    shutil.copyfile(path, other)
    report = compact(Storage(str(base)))
    assert len(report.said) == 1
    assert "counted once" in report.said[0]
    assert report.wrong == []
    assert stored(base) == before


@pytest.mark.parametrize("is_late", [False, True], ids=["compressed later", "plain one arrives later"])
def test_compressed_after_it_was_indexed(base: Path, *, is_late: bool) -> None:
    """A capture that was indexed, and again when it was compressed, is counted once: as it is now."""
    plain = min((base / RAW).rglob("*.gz"))
    name = plain.name.removesuffix(".index.csv.gz")
    data = plain.read_bytes()
    compressed = plain.with_name(f"{name}.gz.index.csv.gz")
    compressed.write_bytes(gzip.compress(gzip.decompress(data).replace(f",{name},".encode(), f",{name}.gz,".encode())))
    late = plain if is_late else compressed
    content = late.read_bytes()
    late.unlink()
    compact(Storage(str(base)))
    late.write_bytes(content)
    assert compact(Storage(str(base))).wrong == []
    plain.unlink()
    assert stored(base) == arrived(base)
    plain.write_bytes(data)
    assert compact(Storage(str(base))).wrong == []
    plain.unlink()
    assert stored(base) == arrived(base)


def test_other_content(base: Path) -> None:
    """A file with the same name and host, but other content, is one line in each run; with --replace, its rows take
    the place of the first ones.
    """
    compact(Storage(str(base)))
    before = stored(base)
    path = min((base / RAW).rglob("*.gz"))
    with gzip.open(path, "rt") as lines:
        changed = lines.read().replace(",www-data,", ",nobody,")
    path.write_bytes(gzip.compress(changed.encode()))
    for _ in range(2):
        done = run("compact", base, code=1)
        assert "Do two hosts have the same name?" in done.stderr
        assert stored(base) == before
    run("compact", base, "--replace")
    assert stored(base) == arrived(base) != before


def test_two_hosts_of_one_name(base: Path) -> None:
    """Of two hosts with one name, that send to different directories, all files with different names are in the
    table; those with the same name are one line.
    """
    path = min((base / RAW).rglob("*web-00001*.gz"))
    twin = base / RAW / "host=twin" / path.name
    twin.parent.mkdir()
    with gzip.open(path, "rt") as lines:
        twin.write_bytes(gzip.compress(lines.read().replace(",10.0.1.1,", ",10.9.9.9,").encode()))
    done = run("compact", base, code=1)
    assert done.stderr.count("Do two hosts have the same name?") == 1
    twin.unlink()
    assert len(stored(base)) == len(arrived(base))


def test_a_wrong_clock(base: Path) -> None:
    """Rows of 1970 or of the future are in the table, and one line says so."""
    path = min((base / RAW).rglob("*.gz"))
    with gzip.open(path, "rt") as lines:
        path.write_bytes(gzip.compress(lines.read().replace("2026-11-27T", "1970-01-02T").encode()))
    done = run("compact", base)
    assert done.stderr.count("a clock was wrong") == 1
    assert stored(base) == arrived(base)
    assert (base / "index/day/date=1970-01-02/hour=09").is_dir()


def test_two_compactions(base: Path) -> None:
    """A second compaction beside a first one is an error; one elsewhere is noticed before it is valid."""
    storage = Storage(str(base))
    first = table.load(storage, "2026-11-27", has_sources=True)
    second = table.load(storage, "2026-11-27", has_sources=True)
    table.commit(storage, first)
    with pytest.raises(FleetError, match="one compaction at a time"):
        table.commit(storage, second)


@pytest.mark.parametrize("step", range(1, 6))
def test_a_storage_that_fails(step: int, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A storage that fails at any write loses nothing: one line, and the next run does all."""
    storage = Storage(str(base))
    real, calls = Storage.put, 0

    def put(self: Storage, source: Path, path: str) -> None:
        nonlocal calls
        calls += 1
        if calls == step:
            raise FleetError("the bucket: 503 Slow Down; expected to reach it")
        real(self, source, path)

    monkeypatch.setattr(Storage, "put", put)
    report = compact(storage)
    assert len(report.wrong) == (1 if step <= 3 else 0)
    assert stored(base) in ([], arrived(base))
    monkeypatch.undo()
    compact(Storage(str(base)))
    assert stored(base) == arrived(base)


_PART = {"path": "index/day/a.parquet", "hour": 1, "rows": 1, "bytes": 1, "first_us": 0, "last_us": 1}
_MANIFEST = {"version": 1, "generation": 1, "parts": [_PART], "sources": "2026-11-27.sources-1.json.gz"}


@pytest.mark.parametrize(
    "said",
    [
        *([], None, 5, {**_MANIFEST, "parts": 5}, {**_MANIFEST, "generation": "1"}),
        *({**_MANIFEST, "sources": name} for name in (5, "a", "../../../../etc/passwd")),
        *({**_MANIFEST, "parts": [{**_PART, "path": path}]} for path in (7, "../a", "index/day/../../../etc/passwd")),
        *({**_MANIFEST, "parts": [{**_PART, name: "1"}]} for name in ("hour", "first_us", "last_us")),
    ],
    ids=repr,
)
def test_a_wrong_manifest(said: object, tmp_path: Path) -> None:
    """A manifest that is none is one line, for questions and for compaction, and names no file elsewhere."""
    path = tmp_path / "index/day/manifest/2026-11-27.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(said))
    with pytest.raises(FleetError, match="expected a manifest"):
        table.parts(Storage(str(tmp_path)), 0, 1)
    with pytest.raises(FleetError, match="expected a manifest"):
        table.load(Storage(str(tmp_path)), "2026-11-27", has_sources=True)


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"{}", gzip.compress(b"[]"), gzip.compress(b'{"a": 5}'), gzip.compress(b"{}")[:-9]),
        gzip.compress(b"{}")[:10] + b"\xff" * 9,
    ],
    ids=repr,
)
def test_a_wrong_list_of_sources(data: bytes, tmp_path: Path) -> None:
    """It is one line, too."""
    place = tmp_path / "index/day/manifest"
    place.mkdir(parents=True)
    (place / "2026-11-27.json").write_text(json.dumps(_MANIFEST))
    (place / str(_MANIFEST["sources"])).write_bytes(data)
    with pytest.raises(FleetError, match="expected a manifest"):
        table.load(Storage(str(tmp_path)), "2026-11-27", has_sources=True)


def test_what_is_no_file(base: Path) -> None:
    """A FIFO, a directory and links among the index files do not stop compaction; all others are in the table."""
    place = base / RAW
    os.mkfifo(place / "fifo.index.csv.gz")
    (place / "directory.index.csv.gz").mkdir()
    (place / "nowhere.index.csv.gz").symlink_to("/nonexistent")
    (place / "loop").symlink_to("..")
    linked = min(path for path in place.rglob("*.index.csv.gz") if path.is_file())
    elsewhere = base / "elsewhere.gz"
    linked.rename(elsewhere)
    linked.symlink_to(elsewhere)
    said = run("compact", base, code=1).stderr
    assert said.count("not a regular file; expected an index file; not added") == 2
    for name in ("fifo.index.csv.gz", "nowhere.index.csv.gz"):
        (place / name).unlink()
    assert stored(base) == arrived(base)


def test_no_directory(tmp_path: Path) -> None:
    """A directory that does not exist is an error, and is not made."""
    for action in ("compact", "query"):
        assert "no such directory" in run(action, tmp_path / "typo", code=1).stderr
    assert not (tmp_path / "typo").exists()


def test_an_index_of_a_new_host(base: Path) -> None:
    """An index without rows is added, and is no error."""
    path = base / RAW / "host=new/date=2026-11-27/skbcapd-new-20261127T100000.000Z-000001.pcapng.index.csv.gz"
    path.parent.mkdir(parents=True)
    path.write_bytes(gzip.compress((",".join(Row._fields) + "\n").encode()))
    run("compact", base)
    assert stored(base) == arrived(base)
