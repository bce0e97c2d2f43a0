"""Free space: writing stops, and no file of this run is deleted for it."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from skbcapd.output.directory import CaptureDirectory
from skbcapd.output.retention import DUMP_MARK, AgeClock, Keep, Retention
from skbcapd.output.rotation import RotatingOutput
from skbcapd.output.series import State
from skbcapd.output.triggers import Limits
from skbcapd.pcapng.interface import Interface
from skbcapd.worker import PATIENCE_S
from tests.support import faults
from tests.support.blocks import packets
from tests.support.captures import names, write
from tests.support.deadline import until
from tests.support.writer import packet

ALL = 1 << 60  # more bytes than any disk has free
LO = Interface(b"lo", "", 1, 0, None, None, None)


def earlier_run(path: Path, count: int) -> list[Path]:
    """Finished files of an earlier run."""
    directory = CaptureDirectory(path)
    made = [write(directory, bytes(100)) for _ in range(count)]
    directory.close()
    return made


def test_free_space_deletes_files_of_earlier_runs_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """For free space, files of earlier runs are deleted, each logged and counted; dumps and files
    of this run are not.
    """
    made = earlier_run(tmp_path, 7)
    os.setxattr(made[2], DUMP_MARK, b"1")
    directory = CaptureDirectory(tmp_path, keep=Keep(free=ALL))
    file = directory.new_file()
    directory.finish(file)
    directory.wait()
    for _ in range(3):
        directory.clean()
    assert names(tmp_path) == [made[2].name, file.path.name]
    gone = made[:2] + made[3:]
    assert caplog.messages == [f"{path}: deleted (100 bytes), as free space is below files.keep_free" for path in gone]
    assert (directory.retention.deleted_files, directory.retention.deleted_bytes) == (6, 600)


def test_the_use_of_the_disk_is_known(tmp_path: Path) -> None:
    """Number and size of the finished files, and the disk, as statvfs tells them."""
    directory = CaptureDirectory(tmp_path)
    assert directory.retention.usage == (0, 0, 0, 0)
    for _ in range(3):
        write(directory, bytes(100))
    directory.clean()
    found, disk = directory.retention.usage, os.statvfs(tmp_path)
    assert (found.number, found.size, found.disk_size) == (3, 300, disk.f_blocks * disk.f_frsize)
    assert 0 < found.disk_free < found.disk_size
    directory.close()


def test_the_newest_file_is_never_deleted_for_free_space(tmp_path: Path) -> None:
    """Before this run has a file, the last file of the earlier run stays."""
    made = earlier_run(tmp_path, 3)
    CaptureDirectory(tmp_path, keep=Keep(free=ALL)).clean()
    assert names(tmp_path) == [made[-1].name]


@pytest.mark.parametrize(
    ("keep", "left"),
    [(Keep(number=2, free=ALL), 2), (Keep(size=399, free=ALL), 3), (Keep(number=2, size=399, free=ALL), 2)],
)
def test_other_limits_apply_to_this_run_too(keep: Keep, left: int, tmp_path: Path) -> None:
    """Number and size delete files of this run, too; free space deletes nothing more."""
    directory = CaptureDirectory(tmp_path)
    made = [write(directory, bytes(100)) for _ in range(5)]
    directory.retention.keep = keep
    directory.clean()
    assert names(tmp_path) == [path.name for path in made[5 - left :]]
    assert directory.retention.deleted_files == 5 - left


@pytest.mark.parametrize("keep", [Keep(number=2), Keep(size=200), Keep(age_s=3600)])
def test_files_that_cannot_be_deleted(
    keep: Keep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A limit deletes other files although the oldest cannot be deleted (`chattr +i`), and none for these."""
    made, unlink = earlier_run(tmp_path, 7), os.unlink
    locked = {path.name for path in made[:3]}
    for path in made[:5]:
        os.utime(path, (0, 0))

    def refuse(name: str, *, dir_fd: int | None = None) -> None:
        if name in locked:
            raise PermissionError(1, "Operation not permitted")
        unlink(name, dir_fd=dir_fd)

    monkeypatch.setattr(os, "unlink", refuse)
    directory = CaptureDirectory(tmp_path, keep=keep)
    for _ in range(3):
        directory.clean()
    assert names(tmp_path) == [path.name for path in made[:3] + made[5:]]
    assert directory.retention.deleted_files == 2
    assert len(caplog.messages) == 3
    now = f"{directory.retention.deleted_files} of the others deleted, {len(made[5:])} kept"
    faults.compare("the oldest file cannot be deleted", 1, now)


class Times:
    """The system clock, and the time that passes."""

    wall, running = 1e9, 1000.0

    def pass_s(self, seconds: float) -> None:
        """Let time pass."""
        self.wall += seconds
        self.running += seconds


def test_a_clock_that_is_set_forward(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A clock that is a year ahead for an hour deletes nothing; a right one deletes what is old, in time."""
    times, year_s = Times(), 31_536_000.0
    made = earlier_run(tmp_path, 3)
    for path, age_s in zip(made, (90_000, 50_000, 10), strict=True):
        os.utime(path, (0, times.wall - age_s))
    clock = AgeClock(lambda: times.wall, lambda: times.running)
    directory = CaptureDirectory(tmp_path)
    directory.retention = Retention(tmp_path, Keep(age_s=86_400), clock)
    directory.clean()
    assert names(tmp_path) == [path.name for path in made[1:]]
    times.wall += year_s
    for _ in range(360):
        times.pass_s(10)
        directory.clean()
    faults.compare("the clock is set forward by a year", 1, f"{len(names(tmp_path))} of 2 younger files kept")
    assert names(tmp_path) == [path.name for path in made[1:]]
    times.wall -= year_s
    times.pass_s(86_400 - 50_000 - 3600)
    directory.clean()
    assert names(tmp_path) == [path.name for path in made[1:]]
    times.pass_s(20)
    directory.clean()
    assert names(tmp_path) == [made[2].name]
    assert caplog.messages == ["the clock was set forward by 31535990 s; files.keep_age follows it slowly"]


def test_a_clock_that_was_wrong(tmp_path: Path) -> None:
    """A file from the time of a wrong clock does not keep older files behind it."""
    made = earlier_run(tmp_path, 3)
    os.utime(made[0], (0, time.time() + 1e9))
    os.utime(made[1], (0, 0))
    CaptureDirectory(tmp_path, keep=Keep(age_s=3600)).clean()
    assert names(tmp_path) == [made[0].name, made[2].name]


def test_no_more_is_deleted_than_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Deleting for free space stops when there is enough of it."""
    made = earlier_run(tmp_path, 7)
    directory = CaptureDirectory(tmp_path, keep=Keep(free=1000))
    monkeypatch.setattr(
        directory.retention, "has_room", lambda _directory, _size: len(list(tmp_path.glob("skbcapd-*"))) < 5
    )
    directory.clean()
    assert names(tmp_path) == [path.name for path in made[3:]]


def test_writing_stops_where_free_space_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """No write uses the free space to be left; each packet is in a file or counted; writing
    continues later.
    """
    free = 1 << 20

    def fstatvfs(_descriptor: int) -> os.statvfs_result:
        used = sum(entry.stat().st_size for entry in tmp_path.glob("skbcapd-*"))
        return os.statvfs_result((1, 1, ALL, ALL, max(0, free - used), 0, 0, 0, 0, 255, 0))

    monkeypatch.setattr(os, "fstatvfs", fstatvfs)
    output = RotatingOutput(CaptureDirectory(tmp_path, keep=Keep(free=1 << 19)), Limits())
    output.add_interface(LO)
    blocks = [packet(0, number.to_bytes(1000, "big")) for number in range(1009)]
    for start in range(0, 1009, 50):
        output.write_blocks(memoryview(b"".join(blocks[start : start + 50])), tuple)
        until(lambda: (output.flush(tuple), output.completed == output.accepted)[1], "all is written or counted")
    assert output.state is State.WAITING
    lost = output.lost
    assert "free space is down to files.keep_free; packets are dropped until" in caplog.messages[0]
    free += 8 << 20

    def is_writing() -> bool:
        output._outage.retry_at = 0.0
        output.tick(tuple)
        return output.state is State.WRITING

    until(is_writing, "it writes again")
    output.write_blocks(memoryview(packet(0, b"last" * 250)), tuple)
    output.finish([])
    output.close()
    found = [one.data for path in sorted(tmp_path.glob("skbcapd-*.pcapng")) for one in packets(path.read_bytes())]
    assert 0 < lost < 1009
    assert output.lost == lost
    assert found == [number.to_bytes(1000, "big") for number in range(1009 - lost)] + [b"last" * 250]
    assert caplog.messages[1:] == [
        f"{max(tmp_path.glob('skbcapd-*.pcapng'))}.part: writing again; {lost} packets were dropped"
    ]


@pytest.mark.late_thread
@pytest.mark.parametrize("free", [0, ALL])
def test_a_deletion_that_the_disk_delays(
    free: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The loop does not wait for a deletion; it is counted and logged when the file is deleted."""
    made, disk, unlink = earlier_run(tmp_path, 3), threading.Event(), os.unlink

    def held_up(path: str, *, dir_fd: int | None = None) -> None:
        disk.wait()
        unlink(path, dir_fd=dir_fd)

    directory = CaptureDirectory(tmp_path, keep=Keep(number=0 if free else 1, free=free))
    monkeypatch.setattr(os, "unlink", held_up)
    begun = time.monotonic()
    for _ in range(101):
        directory.clean()
    assert time.monotonic() - begun < 101 * PATIENCE_S
    assert names(tmp_path) == [path.name for path in made]
    assert (directory.retention.deleted_files, caplog.messages) == (0, [])
    disk.set()
    until(lambda: (directory.clean(), len(names(tmp_path)) == 1)[1], "all but one are deleted")
    until(lambda: not directory._keeper.is_waiting, "they are counted")
    assert (directory.retention.deleted_files, directory.retention.deleted_bytes) == (2, 200)
    assert len(caplog.messages) == (2 if free else 0)
    directory.close()
