"""Command lines of processes that let the reader wait."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from skbcapd.attribution import command_lines
from skbcapd.attribution.budget import SHARE
from skbcapd.attribution.command_lines import AHEAD_S, PATIENCE_S, READERS_MAX, CommandLines
from tests.support.deadline import DEADLINE_S, until


class Kernel:
    """Lets those wait who read the command line of a process in `slow`."""

    def __init__(self) -> None:
        self.slow: set[str] = set()
        self.reads = 0
        self.goes_on = threading.Event()

    def read(self, directory: int) -> bytes:
        """The name of the directory."""
        name = Path(f"/proc/self/fd/{directory}").readlink().name
        self.reads += 1
        if name in self.slow:
            self.goes_on.wait()
        return name.encode()


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    """A kernel; in the end nobody waits."""
    made = Kernel()
    yield made
    made.goes_on.set()


def get(lines: CommandLines, proc: Path, tgid: int) -> bytes:
    """As Processes does: the descriptor is closed behind it."""
    place = proc / str(tgid)
    place.mkdir(exist_ok=True)
    directory = os.open(place, os.O_RDONLY)
    try:
        return lines.get(directory, tgid)
    finally:
        os.close(directory)


def descriptors() -> int:
    """The number of open descriptors."""
    return len([*Path("/proc/self/fd").iterdir()])


def test_each_process_has_its_own(kernel: Kernel, tmp_path: Path) -> None:
    """The command lines of processes one after the other, by one reader."""
    lines = CommandLines(kernel.read)
    threads = threading.active_count()
    assert [get(lines, tmp_path, tgid) for tgid in range(1, 24)] == [b"%d" % tgid for tgid in range(1, 24)]
    assert threading.active_count() == threads + 1


@pytest.mark.late_thread
def test_one_that_waits_holds_up_nobody_else(kernel: Kernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is waited for once; others are read meanwhile; a late result is nobody's; then it is read again."""
    lines = CommandLines(kernel.read, lambda: 0.0)  # the time limit has its own test
    kernel.slow = {"7"}
    assert get(lines, tmp_path, 7) == b""
    monkeypatch.setattr(command_lines, "PATIENCE_S", DEADLINE_S)  # for the next reader
    begun = time.monotonic()
    for _ in range(101):
        assert get(lines, tmp_path, 7) == b""
        assert get(lines, tmp_path, 8) == b"8"
    assert time.monotonic() - begun < 101 * PATIENCE_S / 2
    assert kernel.reads == 102
    kernel.goes_on.set()
    until(lambda: get(lines, tmp_path, 7) == b"7", "it is read")
    until(lambda: get(lines, tmp_path, 8) == b"8", "the other one, too")


@pytest.mark.late_thread
def test_many_that_wait(kernel: Kernel, tmp_path: Path) -> None:
    """However many processes let the reader wait, the threads are few, and so is the time."""
    now = 0.0
    lines = CommandLines(kernel.read, lambda: now)
    kernel.slow = {str(tgid) for tgid in range(1, 101)}
    threads, before = threading.active_count(), descriptors()
    for tgid in range(1, 101):
        assert get(lines, tmp_path, tgid) == b""
    assert threading.active_count() == threads + READERS_MAX
    until(lambda: kernel.reads == READERS_MAX, "all of them read")
    kernel.goes_on.set()
    until(lambda: get(lines, tmp_path, 1) == b"1", "it is read")
    until(lambda: descriptors() <= before, "all readers have closed their descriptors")
    before = descriptors()
    until(lambda: get(lines, tmp_path, 2) == b"2", "it is read")
    until(lambda: descriptors() == before, "its reader has closed its descriptor")


@pytest.mark.late_thread
def test_the_time_is_limited(kernel: Kernel, tmp_path: Path) -> None:
    """After half a second of waiting, only a tenth of the time is spent on it."""
    lines = CommandLines(kernel.read)
    kernel.slow = {str(tgid) for tgid in range(1, 101)}
    begun = time.monotonic()
    for tgid in range(1, 101):
        assert get(lines, tmp_path, tgid) == b""
    spent_s = (kernel.reads - 1) * PATIENCE_S
    assert 0 <= spent_s <= AHEAD_S + (time.monotonic() - begun) / SHARE
