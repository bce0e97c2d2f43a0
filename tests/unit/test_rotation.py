"""Several files of one capture: where each ends, that each can be opened alone, and that disk
errors do not end the capture.
"""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path
from threading import Event

import pytest

from skbcapd.output.compressor import Compressor
from skbcapd.output.directory import CaptureDirectory
from skbcapd.output.interface import FILE_S, Statistics
from skbcapd.output.naming import CURRENT
from skbcapd.output.retention import Keep
from skbcapd.output.rotation import RotatingOutput
from skbcapd.output.series import State
from skbcapd.output.triggers import Limits
from skbcapd.pcapng.interface import Interface
from tests.support import faults
from tests.support import rig as captures
from tests.support.blocks import INTERFACE, STATISTICS, blocks, packets
from tests.support.deadline import until
from tests.support.judges import judge
from tests.support.rotation import LO, STAMP, Rig, local, small
from tests.support.writer import packet, upcall


@pytest.mark.parametrize("way", ["blocks", "packets"])
def test_a_file_is_never_larger_than_it_may_be(way: str, tmp_path: Path) -> None:
    """Files end between two packets, within their size except for statistics; no packet is missing
    or written twice.
    """
    rig = Rig(tmp_path, size=1 << 20)
    count = 40_000
    if way == "blocks":
        for start in range(0, count, 9973):
            rig.output.write_blocks(
                memoryview(b"".join(map(small, range(start, min(count, start + 9973))))), rig.snapshot
            )
    else:
        for number in range(count):
            rig.output.write_packet(local(number), 0, STAMP, rig.snapshot)
    rig.output.finish([Statistics(0, 0, 7, 7, 0, 7)])
    found = rig.finished()
    assert len(found) > 1
    assert all(path.stat().st_size <= (1 << 20) + 200 for path in found)
    assert [frame for frames in rig.frames() for frame in frames] == [n.to_bytes(4, "big") for n in range(count)]


def test_a_file_that_ends_on_request_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The log has the name that the file gets; without a file that is being written, it says so."""
    rig = Rig(tmp_path)
    caplog.set_level("INFO")
    rig.output.end_file(rig.snapshot, "SIGUSR1")
    rig.output.finish([])
    first, _ = rig.finished()
    rig.output.end_file(rig.snapshot, "SIGUSR1")
    assert caplog.messages == [f"ended {first} (trigger: SIGUSR1)", "SIGUSR1 ignored: no file is being written"]


def test_how_long_rotations_take_is_known(tmp_path: Path) -> None:
    """Each rotation is counted, not the beginning of the first file; calls of fdatasync are counted, too."""
    rig = Rig(tmp_path, size=0)
    for _ in range(2):
        rig.output.write_blocks(memoryview(small(1)), rig.snapshot)
        rig.output.rotate(rig.snapshot)
    rig.output.finish([])
    facts = rig.output.durations["rotation"].facts
    assert facts["count"] == 2
    assert 0 < facts["sum_s"] < 60
    assert rig.output.durations["flush"].facts["count"] == 0
    series = RotatingOutput(CaptureDirectory(tmp_path / "synced"), Limits(), flush_s=1)
    series.write_blocks(memoryview(small(1)), rig.snapshot)
    series.tick(rig.snapshot)
    until(lambda: series.durations["flush"].facts["count"], "the file is on the disk")
    series.close()


def test_a_quiet_capture_needs_no_look_each_second(tmp_path: Path) -> None:
    """What goes on needs one: a file that ends soon, is being finished, or cannot be written; a short `files.flush`.
    Without that, packets can wait for 5 s, and no more.
    """
    rig, disk = Rig(tmp_path / "a", every_s=60), Event()
    until(lambda: not rig.output.tick(rig.snapshot), "nothing goes on")
    rig.clock.now = 1_000_016.0
    assert rig.output.tick(rig.snapshot)
    rig.clock.now = 1_000_020.0
    rig.directory._finisher.do(disk.wait)  # type: ignore[arg-type]
    assert rig.output.tick(rig.snapshot), "the first file is being finished"
    assert rig.output.tick(rig.snapshot), "it still is"
    disk.set()
    until(lambda: not rig.output.tick(rig.snapshot), "it is finished")
    Path(rig.output.path).unlink()
    assert rig.output.tick(rig.snapshot)
    rig.resume()
    assert rig.output.latency_s == FILE_S
    rig.output.close()
    for flush_s, latency_s in ((1, 1), (5, 5), (60, 5)):
        series = RotatingOutput(CaptureDirectory(tmp_path / f"{flush_s}"), Limits(), flush_s=flush_s)
        assert series.latency_s == latency_s
        if flush_s == 1:
            assert series.tick(rig.snapshot)
        else:
            until(lambda series=series: not series.tick(rig.snapshot), "nothing goes on")  # type: ignore[misc]
        series.close()


def test_what_was_passed_on_is_written_before_fdatasync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a power failure would lose the packets of two intervals."""
    rig, disk, sizes = Rig(tmp_path / "a"), Event(), list[int]()
    monkeypatch.setattr(os, "fdatasync", lambda descriptor: sizes.append(os.fstat(descriptor).st_size))
    series = RotatingOutput(CaptureDirectory(tmp_path / "b"), Limits(), flush_s=5)
    series._directory._writer.do(disk.wait)  # type: ignore[arg-type]
    assert series._work is not None
    series._work.file.stream._flushed_s = 0.0  # long ago
    series.write_blocks(memoryview(small(1)), rig.snapshot)
    series.tick(rig.snapshot)
    assert not sizes
    disk.set()
    until(lambda: bool(sizes), "fdatasync is called")
    assert sizes[0] >= series._work.file.stream.size
    series.close()


@pytest.mark.parametrize("way", ["blocks", "packets"])
def test_a_file_has_no_more_packets_than_it_may(way: str, tmp_path: Path) -> None:
    """All files but the last have exactly as many packets as the setting."""
    rig = Rig(tmp_path, packets=7)
    if way == "blocks":
        for start in (0, 5, 10):
            rig.output.write_blocks(memoryview(b"".join(map(small, range(start, start + 5)))), rig.snapshot)
    else:
        for number in range(15):
            rig.output.write_packet(local(number), 0, STAMP, rig.snapshot)
    rig.output.finish([])
    assert [len(frames) for frames in rig.frames()] == [7, 7, 1]


def test_a_file_ends_at_a_multiple_of_its_time(tmp_path: Path) -> None:
    """A new file begins at aligned times, also without packets; a clock that is set, in either
    direction, begins one.
    """
    rig = Rig(tmp_path, every_s=10)
    for now, finished in [
        (9.9, 0),
        (10.0, 1),
        (19.9, 1),
        (20.1, 2),
        (500.0, 3),
        (500.9, 3),
        (17.0, 4),
        (18.0, 4),
        (20.0, 5),
    ]:
        rig.clock.now = 1_000_000 + now
        rig.output.tick(rig.snapshot)
        assert len(rig.finished()) == finished, now


def test_every_file_stands_for_itself(tmp_path: Path) -> None:
    """Each file lists all interfaces, and ends with the statistics of its own time."""
    rig = Rig(tmp_path)
    rig.output.add_interface(Interface(b"eth0", "", 1, 0, None, None, None))
    rig.statistics = [Statistics(0, 1, 5, 4, 1, 3), Statistics(1, 2, 1, 1, 0, 1)]
    rig.output.rotate(rig.snapshot)
    rig.output.finish([Statistics(0, 1, 9, 6, 1, 5), Statistics(1, 2, 1, 1, 0, 1)])
    found = [list(blocks(path.read_bytes())) for path in rig.finished()]
    assert [[block.kind for block in file] for file in found] == [[0x0A0D0D0A, 1, 1, 5, 5]] * 2
    assert [counts(path) for path in rig.finished()] == [
        [(0, [5, 4, 1, 3]), (1, [1, 1, 0, 1])],
        [(0, [4, 2, 0, 2]), (1, [0, 0, 0, 0])],
    ]
    assert "Number of stat entries = 1" in judge(rig.finished()[0], "capinfos")


def counts(path: Path) -> list[tuple[int, list[int]]]:
    """Received, accepted, dropped and delivered packets of each interface of a file."""
    found = [block for block in blocks(path.read_bytes()) if block.kind == STATISTICS]
    words = [[int.from_bytes(one.body[at : at + 8], "little") for at in (40, 52, 64, 76)] for one in found]
    return [(int.from_bytes(one.body[:4], "little"), each) for one, each in zip(found, words, strict=True)]


def test_the_list_of_interfaces_starts_again(tmp_path: Path) -> None:
    """When most of more than 64 interfaces had no packets, the next file lists only those with
    packets.
    """
    rig = Rig(tmp_path)
    for number in range(64):
        rig.output.add_interface(Interface(b"v%d" % number, "", 1, 0, None, None, None))
    rig.statistics = [Statistics(0, 1, 5, 5, 0, 5), *(Statistics(n, n + 1) for n in range(1, 65))]
    assert not rig.output.needs_renumbering
    rig.output.rotate(rig.snapshot)
    assert rig.output.needs_renumbering
    rig.output.restart_interfaces(rig.statistics)
    assert not rig.output.needs_renumbering
    assert rig.output.add_interface(LO) == 0
    rig.output.finish([])
    listed = [sum(block.kind == INTERFACE for block in blocks(path.read_bytes())) for path in rig.finished()]
    assert listed == [65, 65, 1]


def test_statistics_of_all_files_add_up(tmp_path: Path) -> None:
    """An older snapshot after a newer one, or an interface without a number in a file, is counted
    once.
    """
    rig = Rig(tmp_path)
    first, second = [Statistics(0, 1, 5, 4, 1, 3)], [Statistics(0, 1, 9, 6, 1, 5)]
    rig.output.rotate(lambda: second)
    rig.output.restart_interfaces(first)  # it was made before a rotation in between
    assert rig.output.add_interface(LO) == 0
    rig.output.rotate(list)  # the interface has not been seen again
    rig.output.finish([Statistics(0, 1, 11, 8, 1, 7)])
    assert [counts(path) for path in rig.finished()] == [
        [(0, [9, 6, 1, 5])],
        [(0, [0, 0, 0, 0])],
        [],
        [(0, [2, 2, 0, 2])],
    ]


def test_a_file_that_ends_while_interfaces_lose_their_numbers(tmp_path: Path) -> None:
    """Packets during a renumbering have the old numbers, in files that list them, also if a file
    ends then.
    """
    output = RotatingOutput(CaptureDirectory(tmp_path), Limits(packets=2))
    rig = captures.Rig(output)
    for number in range(5):
        rig.drain(upcall(b"%d" % number, device=b"v%d" % number, ifindex=number + 2, tid=number + 1), slot=0)
    rig.program.put(*(upcall(b"%d" % n, device=b"v%d" % (n % 5), ifindex=n % 5 + 2, tid=n) for n in range(5, 12)))
    rig.capture.renumber()
    rig.capture.drain()
    rig.drain(upcall(b"12", device=b"v4", ifindex=6, tid=5), slot=0)
    rig.capture.stop()
    output.collect_finished(wait=True)
    files = sorted(tmp_path.glob("skbcapd-*.pcapng"))
    for path in files:
        judge(path, "capinfos")
    found = [[(one.interface, one.data) for one in packets(path.read_bytes())] for path in files]
    now = f"{sum(map(len, found))} of 13 packets in {len(files)} files"
    faults.compare("rotation inside a renumbering", 1, now)
    assert [one for file in found for one in file] == [(f"v{n % 5 if n < 12 else 4}", b"%d" % n) for n in range(13)]
    assert max(len(file) for file in found) == 2
    assert sum(row[3] for path in files for _, row in counts(path)) == 13


@pytest.mark.parametrize("fault", ["moved", "removed"])
def test_a_file_that_was_deleted(fault: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A file that was moved or deleted is reported once; a second later the next file is written."""
    rig = Rig(tmp_path)
    rig.output.write_blocks(memoryview(small(1)), rig.snapshot)
    part = Path(rig.output.path)
    part.rename(tmp_path / "elsewhere") if fault == "moved" else part.unlink()
    rig.output.tick(rig.snapshot)
    rig.output.write_blocks(memoryview(small(2) + small(3)), rig.snapshot)
    rig.resume()
    rig.output.write_blocks(memoryview(small(4)), rig.snapshot)
    rig.output.finish([])
    assert [line.partition(": ")[2] for line in caplog.messages] == [
        "it was moved or removed; packets are dropped until files can be written again",
        "writing again; 2 packets were dropped",
    ]
    assert (rig.output.lost, rig.frames()[-1]) == (2, [(4).to_bytes(4, "big")])


def test_a_directory_that_cannot_be_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """If no file can be created, packets are counted; later writing continues, and all interfaces
    are listed.
    """
    rig = Rig(tmp_path / "captures")
    (tmp_path / "captures").rename(tmp_path / "gone")
    (tmp_path / "captures").write_bytes(b"in the way")
    rig.output.tick(rig.snapshot)
    rig.output.add_interface(LO)
    rig.output.write_blocks(memoryview(small(1)), rig.snapshot)
    rig.output._outage.retry_at = 0.0
    rig.output.tick(rig.snapshot)
    assert rig.output.lost == 1
    (tmp_path / "captures").unlink()
    rig.resume()
    rig.output.write_packet(local(2), 1, STAMP, rig.snapshot)
    rig.output.finish([])
    assert rig.frames() == [[(2).to_bytes(4, "big")]]
    assert len(caplog.messages) == 2


def test_a_slow_disk_is_not_waited_for(tmp_path: Path) -> None:
    """While a finished file waits for the disk, the next one is written; renames are in order,
    later.
    """
    rig = Rig(tmp_path)
    disk = Event()

    def wait() -> None:
        disk.wait()

    rig.directory._finisher.do(wait)
    for number in range(3):
        rig.output.write_blocks(memoryview(small(number)), rig.snapshot)
        rig.output.rotate(rig.snapshot)
    assert list(tmp_path.glob("skbcapd-*.pcapng")) == []
    disk.set()
    rig.output.close()
    assert rig.frames() == [[number.to_bytes(4, "big")] for number in range(3)] + [[]]
    assert (tmp_path / CURRENT).resolve() == rig.finished()[-1]


def test_files_of_an_earlier_run_are_compressed(tmp_path: Path) -> None:
    """An uncompressed file is compressed at the next start; `current.pcapng` still points to a
    file.
    """
    Rig(tmp_path).output.close()
    directory = CaptureDirectory(tmp_path)
    output = RotatingOutput(directory, Limits(), compressor=Compressor("gzip"), on_demand=True)
    assert (tmp_path / CURRENT).is_file()
    until(lambda: (output.tick(tuple), bool(list(tmp_path.glob("*.gz"))))[1], "it is compressed")
    assert directory.unprocessed(Compressor("gzip")) == []
    assert (tmp_path / CURRENT).is_file()
    output.close()


def test_retention_runs_during_the_capture(tmp_path: Path) -> None:
    """Old files are deleted while the capture runs, at each new file and each second."""
    rig = Rig(tmp_path)
    rig.directory.retention.keep = Keep(number=2)
    for _ in range(5):
        rig.output.rotate(rig.snapshot)
    rig.output.collect_finished(wait=True)
    rig.output.tick(rig.snapshot)
    assert len(rig.finished()) == 2


def test_each_outage_counts_its_own(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The message at the end of an outage has the packets of this outage, however it began."""
    away = tmp_path / "captures"
    rig = Rig(away)
    for count in (3, 5):
        until((away / CURRENT).is_symlink, "a thread has made the link")
        for entry in away.iterdir():
            entry.unlink()
        away.rmdir()
        away.touch()
        rig.output.rotate(rig.snapshot)  # the current file cannot be renamed, and no other one can be created
        for number in range(count):
            rig.output.write_blocks(memoryview(small(number)), rig.snapshot)
        away.unlink()
        until(lambda: (rig.output.tick(rig.snapshot), "writing again" in caplog.messages[-1])[1], "it writes again")
        assert caplog.messages[-1].endswith(f"writing again; {count} packets were dropped")
    assert rig.output.lost == 8
    rig.output.close()


@pytest.mark.parametrize("is_full", [False, True])
def test_many_interfaces_begin_a_new_list(is_full: bool, tmp_path: Path) -> None:  # noqa: FBT001
    """With 4,096 interfaces listed a file ends, used or not, so the list does not grow much longer."""
    rig = Rig(tmp_path)
    if is_full:
        Path(rig.output.path).unlink()
        rig.output.tick(rig.snapshot)
        rig.output._outage.retry_at = float("inf")
    for number in range(4094):  # in addition to the existing one
        rig.output.add_interface(Interface(b"v%d" % number, "", 1, 0, None, None, None))
    rig.output.tick(rig.snapshot)
    assert not rig.output.needs_renumbering
    rig.output.add_interface(LO)
    assert rig.output.needs_renumbering
    rig.output.restart_interfaces([])
    assert not rig.output.needs_renumbering
    assert rig.output.add_interface(LO) == 0


def test_a_disk_that_is_full_where_a_file_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A file without a block is deleted; the link and the reported path stay with the last good
    file.
    """
    rig = Rig(tmp_path)
    rig.output.write_blocks(memoryview(small(1)), rig.snapshot)
    real = os.pwritev

    def full(_descriptor: int, _data: memoryview, _at: int) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    until(lambda: (rig.output.flush(rig.snapshot), rig.output.completed == rig.output.accepted)[1], "it is written")
    first = Path(rig.output.path.removesuffix(".part"))
    monkeypatch.setattr(os, "pwritev", full)
    rig.output.rotate(rig.snapshot)
    for number in (2, 3):
        rig.output.write_blocks(memoryview(small(number)), rig.snapshot)
    until(lambda: (rig.output.flush(rig.snapshot), rig.output.state is State.WAITING)[1], "it says that it cannot")
    empty = [path for path in rig.finished() if not path.stat().st_size]
    now = f"{len(empty)} empty files, current.pcapng on the last good one: {(tmp_path / CURRENT).resolve() == first}"
    faults.compare("a full disk at the begin of a file", 1, now)
    assert rig.finished() == [first]
    assert (tmp_path / CURRENT).resolve() == first
    assert rig.output.path == str(first)
    assert rig.output.lost == 2
    monkeypatch.setattr(os, "pwritev", real)
    rig.resume()
    rig.output.write_blocks(memoryview(small(4)), rig.snapshot)
    rig.output.finish([])
    assert [frame for frames in rig.frames() for frame in frames] == [n.to_bytes(4, "big") for n in (1, 4)]
    assert caplog.messages[-1].endswith("writing again; 2 packets were dropped")


class SlowDisk:
    """A disk that does a write when the test allows it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.gate = Event()
        self._real = os.pwritev
        monkeypatch.setattr(os, "pwritev", self._pwrite)

    def _pwrite(self, descriptor: int, data: list[memoryview], at: int) -> int:
        self.gate.wait()
        return self._real(descriptor, data, at)


def test_a_disk_that_hangs_delays_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the disk hangs no call waits; from 16 MiB on the output is busy; later everything is in
    files.
    """
    disk = SlowDisk(monkeypatch)
    rig = Rig(tmp_path, size=4 << 20)
    count, block = 0, packet(0, bytes(1000), STAMP.options)
    begun = time.monotonic()
    while not rig.output.is_busy:
        rig.output.write_blocks(memoryview(block * 101), rig.snapshot)
        rig.output.flush(rig.snapshot)
        rig.output.tick(rig.snapshot)
        count += 101
        assert count * len(block) < 20 << 20
    assert time.monotonic() - begun < 5.0
    assert count * len(block) > 16 << 20
    assert rig.output.completed < rig.output.accepted
    disk.gate.set()
    rig.output.finish([])
    until(lambda: rig.output.completed == rig.output.accepted, "all is written")
    assert not rig.output.is_busy
    assert sum(map(len, rig.frames())) == count
    assert rig.output.lost == 0


def test_a_disk_that_hangs_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not written some seconds after the end is counted: each packet is in a file, or
    dropped.
    """
    real, monkey = os.pwritev, Event()

    def slow(descriptor: int, data: list[memoryview], at: int) -> int:
        monkey.wait(0.5)
        return real(descriptor, data, at)

    monkeypatch.setattr(os, "pwritev", slow)
    rig = Rig(tmp_path)
    block, count = packet(0, bytes(1000), STAMP.options), 0
    while not rig.output.is_busy:
        rig.output.write_blocks(memoryview(block * 101), rig.snapshot)
        count += 101
    begun = time.monotonic()
    rig.output.finish([])
    rig.output.close()
    assert time.monotonic() - begun < 8.0
    found = sorted(tmp_path.glob("skbcapd-*.pcapng"))
    kept = sum(len(packets(path.read_bytes())) for path in found)
    assert 0 < rig.output.lost < count
    assert kept + rig.output.lost == count
    judge(found[-1], "capinfos")
