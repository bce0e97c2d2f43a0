"""The daemon makes an index of each finished file, and no fault of it touches the captures."""

from __future__ import annotations

import gzip
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from skbcapd.fleet import child, rows
from skbcapd.fleet.rows import Row
from skbcapd.output.compressor import Compressor
from skbcapd.output.directory import CaptureDirectory
from skbcapd.output.naming import INDEX
from skbcapd.output.retention import Keep
from skbcapd.output.rotation import RotatingOutput
from skbcapd.output.triggers import Limits
from tests.support import captures, stored_files
from tests.support.deadline import DEADLINE_S, until
from tests.support.strangers import interface, options, packet, process, section, udp

DATA = (
    section()
    + interface(opts=options((2, b"eth0"), (9, b"\x09")))
    + b"".join(packet(udp("10.0.0.1", f"192.0.2.{number}"), process(7, "ping")) for number in range(1, 102))
)


def work(path: Path, compressor: Compressor) -> CaptureDirectory:
    """Let a daemon process the files of a directory."""
    directory = CaptureDirectory(path)
    output = RotatingOutput(directory, Limits(), compressor=compressor, on_demand=True)
    until(lambda: (output.tick(tuple), not (compressor._at_work or compressor._waiting))[1], "all files are processed")
    return directory


def put(path: Path, data: bytes = DATA) -> Path:
    """A finished file of an earlier run."""
    directory = CaptureDirectory(path)
    made = captures.write(directory, data)
    directory.close()
    return made


def read(path: Path) -> list[Row]:
    """The rows of an index."""
    with gzip.open(path, "rt") as file:
        return list(rows.read(file))


@pytest.mark.parametrize(("kind", "ending"), [("none", ""), ("gzip", ".gz"), ("zstd", ".zst")])
def test_a_finished_file_gets_an_index(kind: str, ending: str, tmp_path: Path) -> None:
    """Its rows are those of the file as it is stored; it has the file's owner, mode and time; nothing else is left."""
    path = put(tmp_path)
    path.chmod(0o640)
    os.utime(path, (1_000_000, 1_000_000))
    compressor = Compressor(kind, child.command())
    directory = work(tmp_path, compressor)
    final = path.name + ending
    assert captures.names(tmp_path) == [final, final + INDEX]
    index = tmp_path / (final + INDEX)
    found = read(index)
    assert len(found) == 101
    assert {row.file for row in found} == {final}
    assert {(row.offset, row.length) for row in found} == {(0, 0) if ending else (found[0].offset, found[0].length)}
    assert (index.stat().st_mode & 0o777, index.stat().st_mtime) == (0o640, 1_000_000)
    assert (compressor.indexed, compressor.index_errors) == (1, 0)
    assert directory.unprocessed(compressor) == []
    directory.close()


def test_a_file_without_an_index_when_the_daemon_is_killed(tmp_path: Path) -> None:
    """If the daemon is killed when a file is compressed but not indexed, there is no empty index: the next start makes
    it.
    """
    path = put(tmp_path)
    compressor = Compressor("gzip", child.command())
    descriptor = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    compressor.add(path)
    compressor.tick(descriptor)
    assert compressor._at_work
    compressor._at_work.process.wait()
    compressor.kill()
    compressor.tick(descriptor)
    os.close(descriptor)
    assert captures.names(tmp_path) == [path.name + ".gz"]
    work(tmp_path, Compressor("gzip", child.command())).close()
    assert len(read(tmp_path / f"{path.name}.gz{INDEX}")) == 101


@pytest.mark.parametrize(("kind", "ending"), [("gzip", ".gz"), ("zstd", ".zst")])
def test_a_seekable_file_gets_an_index_of_its_members(kind: str, ending: str, tmp_path: Path) -> None:
    """With files.seekable, the rows have the members of the compressed file; so has an index that is made later."""
    path = put(tmp_path)
    work(tmp_path, Compressor(kind, child.command(), is_seekable=True)).close()
    stored = tmp_path / (path.name + ending)
    index = stored.with_name(stored.name + INDEX)
    assert captures.names(tmp_path) == [stored.name, index.name]
    found = read(index)
    assert stored_files.unpacked(stored, 0, 0) == DATA
    assert {stored_files.unpacked(stored, row.offset, row.length) for row in found} == {DATA[DATA.index(b"\6\0\0\0") :]}
    assert {stored_files.unpacked(stored, row.interface_offset, row.interface_length) for row in found} == {
        DATA[: DATA.index(b"\6\0\0\0")]
    }
    index.unlink()
    work(tmp_path, Compressor("none", child.command())).close()
    assert read(index) == found


def test_a_compressed_file_of_an_earlier_run_gets_an_index(tmp_path: Path) -> None:
    """`files.index` is turned on later: compressed files are indexed, too."""
    path = put(tmp_path)
    subprocess.run(["gzip", str(path)], check=True)
    work(tmp_path, Compressor("gzip", child.command())).close()
    assert captures.names(tmp_path) == [f"{path.name}.gz", f"{path.name}.gz{INDEX}"]
    assert len(read(tmp_path / f"{path.name}.gz{INDEX}")) == 101


def test_compression_turned_on_later(tmp_path: Path) -> None:
    """An index of the uncompressed file is replaced with the file."""
    path = put(tmp_path)
    work(tmp_path, Compressor("none", child.command())).close()
    assert captures.names(tmp_path) == [path.name, path.name + INDEX]
    work(tmp_path, Compressor("gzip", child.command())).close()
    assert captures.names(tmp_path) == [f"{path.name}.gz", f"{path.name}.gz{INDEX}"]


def test_a_torn_file_is_indexed_up_to_the_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The index has what is before the error; one line, counted."""
    path = put(tmp_path, DATA + b"\x06\0\0\0\7\0\0\0garbage at the end")
    compressor = Compressor("none", child.command())
    work(tmp_path, compressor).close()
    assert len(read(tmp_path / (path.name + INDEX))) == 101
    assert (compressor.indexed, compressor.index_errors) == (1, 1)
    (line,) = caplog.messages
    assert line.startswith(f"{path}: indexed up to an error: ")
    assert "length 7" in line


def test_a_name_that_is_not_ascii(tmp_path: Path) -> None:
    """The setting files.name may have any letter: it is escaped in the rows, as by `skbcapd index`."""
    path = tmp_path / "b\u00fcro.pcapng"
    path.write_bytes(DATA)
    with path.open("rb") as source, (tmp_path / "index").open("wb") as target:
        command = [*child.command(), path.name, "0"]
        subprocess.run(command, stdin=source, stdout=target, check=True, timeout=DEADLINE_S)
    assert {row.file for row in read(tmp_path / "index")} == {"b\\xc3\\xbcro.pcapng"}


@pytest.mark.parametrize("data", [b"garbage", b""])
def test_a_file_that_is_no_capture(data: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It has no index, and stays; one line, counted."""
    path = put(tmp_path)
    path.write_bytes(data)
    compressor = Compressor("none", child.command())
    work(tmp_path, compressor).close()
    assert captures.names(tmp_path) == [path.name]
    assert (compressor.indexed, compressor.index_errors) == (0, 1)
    (line,) = caplog.messages
    assert line.startswith(f"{path}: ")
    assert line.endswith("; it has no index")


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["/nonexistent/program"], "No such file"),
        (["sh", "-c", "kill -9 $$"], "ended with -9"),
        (["sh", "-c", "echo No space left on device >&2; exit 1"], "No space left on device"),
    ],
)
@pytest.mark.parametrize("kind", ["none", "gzip"])
def test_a_failing_index_stops_nothing(
    command: Sequence[str], said: str, kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The file is compressed as without it; one line, counted; no part of an index is left."""
    path = put(tmp_path)
    compressor = Compressor(kind, command)
    work(tmp_path, compressor).close()
    assert captures.names(tmp_path) == [path.name + (".gz" if kind == "gzip" else "")]
    assert (compressor.indexed, compressor.index_errors) == (0, 1)
    (line,) = caplog.messages
    assert said in line
    assert line.endswith("; it has no index")


def test_a_full_disk(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The index cannot be written: one line with the reason, counted; the capture stays."""
    path = put(tmp_path)
    limited = ["sh", "-c", 'ulimit -f 0; exec "$@"', "sh", *child.command()]
    compressor = Compressor("none", limited)
    work(tmp_path, compressor).close()
    assert captures.names(tmp_path) == [path.name]
    assert (compressor.indexed, compressor.index_errors) == (0, 1)
    assert len(caplog.messages) == 1


def test_a_missing_program_of_compression(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that cannot be compressed is indexed as it is."""
    path = put(tmp_path)
    compressor = Compressor("zstd", child.command())
    monkeypatch.setattr(compressor, "_command", ["false"])
    directory = CaptureDirectory(tmp_path)
    compressor.add(path)
    until(lambda: (directory.tick(compressor), bool(compressor.indexed))[1], "it has an index")
    directory.close()
    assert captures.names(tmp_path) == [path.name, path.name + INDEX]
    assert caplog.messages == [f"{path}: zstd ended with 1; it is not compressed"]


def test_retention_deletes_both(tmp_path: Path) -> None:
    """A file is deleted with its index; the size of both counts."""
    path = put(tmp_path)
    work(tmp_path, Compressor("none", child.command())).close()
    index = tmp_path / (path.name + INDEX)
    both = path.stat().st_size + index.stat().st_size
    for size, left in ((both, 1), (both - 1, 0)):
        directory = CaptureDirectory(tmp_path, keep=Keep(size=size))
        directory.clean()
        assert len(captures.names(tmp_path)) == 2 * left
        directory.close()


def test_what_a_crash_leaves(tmp_path: Path) -> None:
    """Half an index, and an index without its file, are deleted at the next start; files of others are not."""
    path = put(tmp_path)
    half = tmp_path / f"{path.name}{INDEX}.part"
    lost = tmp_path / f"{path.name}.gz{INDEX}"
    other = tmp_path / f"mine.pcapng{INDEX}"
    for each in (half, lost, other):
        each.write_bytes(b"x")
    CaptureDirectory(tmp_path).close()
    assert captures.names(tmp_path) == sorted([other.name, path.name])


def test_a_file_repaired_after_a_crash_gets_an_index(tmp_path: Path) -> None:
    """NAME.part of a killed daemon is finished, and indexed."""
    path = put(tmp_path)
    path.rename(f"{path}.part")
    work(tmp_path, Compressor("none", child.command())).close()
    assert captures.names(tmp_path) == [path.name, path.name + INDEX]


def test_a_stopped_daemon_leaves_no_half_index(tmp_path: Path) -> None:
    """A stop does not wait for an index; the next start makes it."""
    path = put(tmp_path)
    directory = CaptureDirectory(tmp_path)
    compressor = Compressor("none", ["sleep", "3599"])
    compressor.add(path)
    until(lambda: (directory.tick(compressor), compressor._at_work is not None)[1], "it has begun")
    directory.close(compressor)
    assert captures.names(tmp_path) == [path.name]
