"""Finished files are compressed in the background, and no file is lost."""

from __future__ import annotations

import gzip
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from skbcapd.output.compressor import Compressor
from skbcapd.output.retention import DUMP_MARK
from tests.support import faults
from tests.support.deadline import until

DATA = bytes(range(256)) * 1009


def pack(compressor: Compressor, *paths: Path) -> None:
    """Compress files of one directory, to the end."""
    with opened(paths[0].parent) as directory:
        for path in paths:
            compressor.add(path)
        compressor.tick(directory)
        until(lambda: (compressor.tick(directory), compressor._at_work is None)[1], "all compressed")


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """The descriptor of a directory."""
    descriptor = os.open(path, os.O_RDONLY)
    yield descriptor
    os.close(descriptor)


@pytest.mark.parametrize("is_seekable", [False, True])
@pytest.mark.parametrize(("kind", "ending"), [("gzip", ".gz"), ("zstd", ".zst")])
def test_a_file_is_replaced_by_the_compressed_one(kind: str, ending: str, is_seekable: bool, tmp_path: Path) -> None:  # noqa: FBT001
    """The compressed file has the same content, mode and time; there is no other file."""
    paths = [tmp_path / "a.pcapng", tmp_path / "b.pcapng"]
    for path in paths:
        path.write_bytes(DATA)
        path.chmod(0o600)
        os.utime(path, (1_000_000, 1_000_000))
    pack(Compressor(kind, is_seekable=is_seekable), *paths)

    assert sorted(path.name for path in tmp_path.iterdir()) == [f"a.pcapng{ending}", f"b.pcapng{ending}"]
    compressed = tmp_path / f"a.pcapng{ending}"
    content = gzip.decompress(compressed.read_bytes()) if kind == "gzip" else zstd(compressed)
    assert content == DATA
    assert (compressed.stat().st_mode & 0o777, compressed.stat().st_mtime) == (0o600, 1_000_000)


def zstd(path: Path) -> bytes:
    """The output of the program is in a file."""
    return subprocess.run(["zstd", "-dc", str(path)], capture_output=True, check=True).stdout


def test_an_interrupted_compressor_leaves_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """If the compressor is killed, or stopped with the capture, the file is unchanged."""
    path = tmp_path / "a.pcapng"
    path.write_bytes(DATA * 101)
    compressor = Compressor("gzip")
    monkeypatch.setattr(compressor, "_command", ["sleep", "3599"])
    with opened(tmp_path) as directory:
        compressor.add(path)
        compressor.tick(directory)
        assert compressor._at_work
        compressor._at_work.process.kill()
        until(lambda: (compressor.tick(directory), compressor._at_work is None)[1], "the compressor has gone")
        assert "it is not compressed" in caplog.messages[0]
        compressor.add(path)
        compressor.tick(directory)
        compressor.close()
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.pcapng"]
    assert path.read_bytes() == DATA * 101


def test_a_deleted_file_is_ignored(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A file that retention has deleted is ignored without a message."""
    (tmp_path / "b.pcapng").write_bytes(DATA)
    pack(Compressor("gzip"), tmp_path / "a.pcapng", tmp_path / "b.pcapng")
    assert ([entry.name for entry in tmp_path.iterdir()], caplog.messages) == (["b.pcapng.gz"], [])
    shutil.rmtree(tmp_path)


def test_a_compressor_that_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """If no compressor can be started, the file stays, nothing else is left, and it is logged."""
    path = tmp_path / "a.pcapng"
    path.write_bytes(DATA)
    monkeypatch.setenv("PATH", str(tmp_path))
    with opened(tmp_path) as directory:
        compressor = Compressor("gzip")
        compressor.add(path)
        until(lambda: (compressor.tick(directory), bool(caplog.messages))[1], "it is logged")
    assert caplog.messages == [f"{path}: No such file or directory; it is not compressed"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.pcapng"]


@pytest.mark.parametrize("kind", ["link", "fifo", "file"])
def test_another_file_with_the_compressed_name(kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An existing file with the compressed name is not followed, written or waited for."""
    path, part, victim = tmp_path / "a.pcapng", tmp_path / "a.pcapng.gz.part", tmp_path / "victim"
    path.write_bytes(DATA)
    victim.write_bytes(b"precious")
    if kind == "link":
        part.symlink_to("victim")
    elif kind == "fifo":
        os.mkfifo(part)
    else:
        part.write_bytes(b"precious")
    pack(Compressor("gzip"), path)
    assert caplog.messages == [f"{path}: File exists; it is not compressed"]
    if kind == "link":
        faults.compare("a symbolic link as NAME.gz.part", 1, f"its target: {victim.read_text()}")
    assert (path.read_bytes(), victim.read_bytes()) == (DATA, b"precious")
    assert part.is_fifo() or part.read_bytes() == b"precious"


@pytest.mark.parametrize("kind", ["link", "fifo", "directory", "device", "hard link"])
def test_irregular_files_are_not_compressed(kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Something else with the name of a capture is not read or waited for."""
    path, victim = tmp_path / "a.pcapng", tmp_path / "victim"
    victim.write_bytes(b"precious")
    if kind == "link":
        path.symlink_to("victim")
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    elif kind == "device":
        os.mknod(path, 0o20600, os.makedev(1, 5))
    else:
        path.hardlink_to(victim)
    pack(Compressor("gzip"), path)
    assert len(caplog.messages) == 1
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.pcapng", "victim"]
    assert victim.read_bytes() == b"precious"


def test_the_compressed_file_is_never_more_open_than_the_plain_one(tmp_path: Path) -> None:
    """The compressed file always has the mode of the uncompressed one, whatever the umask."""
    path = tmp_path / "a.pcapng"
    path.write_bytes(DATA * 101)
    path.chmod(0o600)
    compressor, before = Compressor("gzip"), os.umask(0)
    try:
        with opened(tmp_path) as directory:
            compressor.add(path)
            compressor.tick(directory)
            assert (tmp_path / "a.pcapng.gz.part").stat().st_mode & 0o777 == 0o600
            compressor.close()
    finally:
        os.umask(before)


def test_a_replaced_file_stays(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Another file that has replaced the uncompressed one is not deleted."""
    path = tmp_path / "a.pcapng"
    path.write_bytes(DATA)
    compressor = Compressor("gzip")
    with opened(tmp_path) as directory:
        compressor.add(path)
        compressor.tick(directory)
        path.rename(tmp_path / "b.pcapng")
        path.write_bytes(b"another")
        until(lambda: (compressor.tick(directory), compressor._at_work is None)[1], "it is over")
    assert caplog.messages == [f"{path}: it was replaced; it is not compressed"]
    assert path.read_bytes() == b"another"


def test_a_dump_stays_a_dump(tmp_path: Path) -> None:
    """The mark of a dump is also on the compressed file."""
    path = tmp_path / "a.pcapng"
    path.write_bytes(DATA)
    os.setxattr(path, DUMP_MARK, b"1")
    pack(Compressor("gzip"), path)
    assert os.getxattr(tmp_path / "a.pcapng.gz", DUMP_MARK) == b"1"
