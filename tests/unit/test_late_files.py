"""If the disk takes long to make the next file, packets wait, and none is dropped."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from skbcapd.output.series import State
from skbcapd.worker import PATIENCE_S
from tests.support.deadline import until
from tests.support.rotation import STAMP, Rig, local, small

pytestmark = pytest.mark.late_thread


class SlowToMake:
    """A disk that makes a file when the test allows it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self._real = os.open
        monkeypatch.setattr(os, "open", self._open)

    def _open(self, path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if flags & os.O_EXCL:
            self.gate.wait()
        return self._real(path, flags, mode, dir_fd=dir_fd)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowToMake]:
    """The disk of these tests."""
    made = SlowToMake(monkeypatch)
    yield made
    made.gate.set()


def number(count: int) -> list[bytes]:
    """The frames of so many packets."""
    return [each.to_bytes(4, "big") for each in range(count)]


@pytest.mark.parametrize("limit", [0, 5])
def test_packets_wait_for_a_late_file(
    limit: int, disk: SlowToMake, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """While the next file is late, the output is busy but accepts packets; none is dropped."""
    rig = Rig(tmp_path, packets=limit)
    rig.output.write_blocks(memoryview(small(0)), rig.snapshot)
    disk.gate.clear()
    begun = time.monotonic()
    rig.output.rotate(rig.snapshot)
    for each in range(1, 23):
        if each % 2:
            rig.output.write_blocks(memoryview(small(each)), rig.snapshot)
        else:
            rig.output.write_packet(local(each), 0, STAMP, rig.snapshot)
        rig.output.flush(rig.snapshot)
        assert (rig.output.is_busy, rig.output.has_pending_work, rig.output.state) == (True, True, State.LATE)
        assert rig.output.completed < rig.output.accepted
    for _ in range(3):
        rig.output.tick(rig.snapshot)
    assert time.monotonic() - begun < 2 * PATIENCE_S + 0.5
    disk.gate.set()
    until(lambda: (rig.output.flush(rig.snapshot), rig.output.state is State.WRITING)[1], "the file is there")
    until(lambda: (rig.output.flush(rig.snapshot), rig.output.completed == rig.output.accepted)[1], "all is written")
    rig.output.finish([])
    found = rig.frames()
    assert [frame for frames in found for frame in frames] == number(23)
    assert not limit or max(map(len, found)) <= limit
    assert rig.output.lost == 0
    assert caplog.messages == [f"{tmp_path}: the disk is slow to create the next file; packets wait in memory"]


def test_waiting_packets_are_completed_when_written(disk: SlowToMake, tmp_path: Path) -> None:
    """The position of a waiting packet is completed with the packet, not with the earlier bytes of
    its file.
    """
    rig = Rig(tmp_path)
    disk.gate.clear()
    rig.output.rotate(rig.snapshot)
    rig.output.write_blocks(memoryview(small(0)), rig.snapshot)
    mark = rig.output.accepted
    hold = threading.Event()
    rig.directory._writer.do(lambda: (hold.wait(), None)[1])
    disk.gate.set()
    until(lambda: (rig.output.flush(rig.snapshot), rig.output.state is State.WRITING)[1], "the file is there")
    assert rig.output.completed < mark <= rig.output.accepted
    hold.set()
    until(lambda: (rig.output.flush(rig.snapshot), rig.output.completed >= mark)[1], "it is written")
    assert rig.output.accepted == rig.output.completed


def test_a_late_file_at_the_end(disk: SlowToMake, tmp_path: Path) -> None:
    """At the end of a capture, a late file is waited for, for a second; then its packets are
    counted as dropped.
    """
    rig = Rig(tmp_path)
    disk.gate.clear()
    rig.output.rotate(rig.snapshot)
    rig.output.write_blocks(memoryview(small(0) + small(1)), rig.snapshot)
    begun = time.monotonic()
    rig.output.finish([])
    rig.output.close()
    assert time.monotonic() - begun < 5.0
    assert rig.output.lost == 2
    assert rig.output.completed == rig.output.accepted


def test_a_late_file_that_cannot_be_made(disk: SlowToMake, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """If a late file fails, the waiting packets are counted as dropped, and it is logged."""
    rig = Rig(tmp_path)
    disk.gate.clear()
    rig.output.rotate(rig.snapshot)
    rig.output.write_blocks(memoryview(small(0) + small(1)), rig.snapshot)
    for entry in list(tmp_path.iterdir()):
        entry.unlink()
    tmp_path.rmdir()
    disk.gate.set()
    until(lambda: (rig.output.flush(rig.snapshot), rig.output.state is State.WAITING)[1], "it cannot be made")
    assert rig.output.lost == 2
    assert "No such file or directory" in caplog.messages[-1]
    assert rig.output.completed == rig.output.accepted
