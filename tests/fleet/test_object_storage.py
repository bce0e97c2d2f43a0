"""Over S3: a real server, and one that fails half way. Nothing is lost, nothing is counted twice."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fleet.fleet import FILES, ROOT, make, run
from tools.fleet_trial import judged
from tools.object_storage import Bucket, serving
from tools.synthetic_fleet import NEEDLE, Seen

HOSTS = 15
URL = "s3://captures"


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Seen]]:
    """A fleet whose indexes have arrived, and the truth."""
    base = tmp_path_factory.mktemp("fleet")
    return base, make(base, HOSTS)


@pytest.fixture
def bucket(
    fleet: tuple[Path, list[Seen]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Bucket, Path, list[Seen]]]:
    """The fleet in a bucket, and the truth."""
    base, truth = fleet
    place = tmp_path / "captures"
    shutil.copytree(base, place)
    with serving(tmp_path) as found:
        wanted = found.environment()
        for name in os.environ.keys() - wanted.keys():
            monkeypatch.delenv(name)
        for name, value in wanted.items():
            monkeypatch.setenv(name, value)
        yield found, place, truth


def counted(storage: str | Path) -> list[dict[str, object]]:
    """All rows of a table."""
    said = run("query", storage, "--names", "rows", "--format", "json").stdout
    return [json.loads(line) for line in said.splitlines()]


def test_object_storage(bucket: tuple[Bucket, Path, list[Seen]], tmp_path: Path) -> None:
    """Compaction, questions and extraction over S3 give the rows of a directory, and the packets of the truth; of
    captures, only ranges are read.
    """
    server, place, truth = bucket
    run("compact", URL)
    rows = counted(URL)
    assert rows == counted(place)
    files = {row["file"] for row in rows}
    assert len(files) == HOSTS * FILES
    server.traffic()
    out = tmp_path / "out.pcapng"
    run("extract", URL, "--peer", NEEDLE, "-w", out)
    assert judged(out) == [tuple(seen) for seen in truth]
    read = {path: count for path, count in server.traffic().read.items() if path.endswith(".pcapng")}
    size = sum((tmp_path / path.removeprefix("/")).stat().st_size for path in read)
    assert len(read) == len({seen.host for seen in truth})
    assert 0 < sum(read.values()) <= 0.08 * size


@pytest.mark.parametrize("requests", [1, 19, 53])
def test_a_bucket_that_fails_half_way(requests: int, bucket: tuple[Bucket, Path, list[Seen]]) -> None:
    """Compaction on a bucket that fails is one line; the next run adds all, once."""
    server, place, _ = bucket
    server.fail_after(requests)
    said = run("compact", URL, code=1).stderr.splitlines()
    assert sum("Service Unavailable" in line for line in said) == 1
    server.fail_after(None)
    assert len(counted(URL)) in {0, 600 + 1203}
    run("compact", URL)
    run("compact", URL)
    rows = counted(place)
    assert len({json.dumps(row) for row in rows}) == len(rows)
    assert len({row["file"] for row in rows}) == HOSTS * FILES


def test_questions_to_a_bucket_that_fails(bucket: tuple[Bucket, Path, list[Seen]], tmp_path: Path) -> None:
    """A question or an extraction is one line, whenever the bucket fails; the packets that were read are right."""
    server, _, truth = bucket
    run("compact", URL)
    out = tmp_path / "out.pcapng"
    for requests, of in ((1, ""), (1, ".parquet"), (4, ".pcapng")):
        server.fail_after(requests, of)
        command = [sys.executable, "-m", "skbcapd", "fleet", "extract", URL, "--peer", NEEDLE, "-w", str(out)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert done.stderr.count("Service Unavailable") == 1, done.stderr
        assert "Traceback" not in done.stderr
        assert out.exists() == (of == ".pcapng")
    assert 0 < len(judged(out)) < len(truth)
    assert set(judged(out)) < {tuple(seen) for seen in truth}
    server.fail_after(None)
    run("extract", URL, "--peer", NEEDLE, "-w", out)
    assert judged(out) == [tuple(seen) for seen in truth]


def test_a_capture_that_is_shorter_than_its_index(bucket: tuple[Bucket, Path, list[Seen]], tmp_path: Path) -> None:
    """A capture in the bucket that was cut is one line, and costs no packet of another one."""
    _, place, truth = bucket
    run("compact", URL)
    out = tmp_path / "out.pcapng"
    first = min({seen.host for seen in truth})
    for capture in (place / "captures").rglob(f"*{first}*.pcapng"):
        os.truncate(capture, 300)
    said = run("extract", URL, "--peer", NEEDLE, "-w", out, code=1).stderr
    assert "missing" not in said, said
    found = judged(out)
    assert {tuple(seen) for seen in truth if seen.host != first} <= set(found)


def test_shipping_to_a_bucket_that_fails(bucket: tuple[Bucket, Path, list[Seen]], tmp_path: Path) -> None:
    """Shipping ends with one line of skbcapd; the next run sends the rest, and compaction counts all of it once."""
    server, place, _ = bucket
    waiting = tmp_path / "waiting"
    waiting.mkdir()
    for index in (place / "index/raw").rglob("*web-0000[12]*.gz"):
        shutil.move(index, waiting)
    count = len(list(waiting.iterdir()))
    for path in waiting.iterdir():  # the capture needs only to be there
        (waiting / path.name.removesuffix(".index.csv.gz")).write_bytes(b"")
    command = [sys.executable, "-m", "skbcapd", "ship", str(waiting), "fleet:captures", "--host", "web-00001"]
    server.fail_after(9)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.count("the next run continues") == 1
    server.fail_after(None)
    for _ in range(2):
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    assert len(list((place / "index/raw/host=web-00001").rglob("*.gz"))) == count == 2 * FILES
    run("compact", URL)
    rows = counted(place)
    assert len({row["file"] for row in rows}) == HOSTS * FILES
    assert len({json.dumps(row) for row in rows}) == len(rows)
