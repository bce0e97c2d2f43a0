"""Writing to a pipe: its bytes, and a reader that is slow, stops or goes away. No write waits for it."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import socket
import threading
import time
import tty
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from skbcapd.errors import FileError
from skbcapd.output.pipe import END_S, STALL_S, PipeSink, PipeTarget, count_lines, count_packets
from tests.support.deadline import until
from tests.support.writer import packet

BLOCK = packet(0, bytes(1000))
ENDS_WITHIN_S = 1.0


class Ends:
    """Both ends of something that takes bytes.

    Args:
        kind: pipe, FIFO, socket or terminal.
        path: for a FIFO.
    """

    def __init__(self, kind: str, path: Path) -> None:
        if kind == "pipe":
            self.reading, self.writing = os.pipe()
        elif kind == "fifo":
            os.mkfifo(path)
            self.reading = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
            self.writing = os.open(path, os.O_WRONLY)
            os.set_blocking(self.reading, True)
        elif kind == "socket":
            self.reading, self.writing = (end.detach() for end in socket.socketpair())
        else:
            self.reading, self.writing = pty.openpty()
            tty.setraw(self.writing)

    def read(self) -> bytes:
        """All that is there until the other end is closed."""
        found = []
        try:
            while part := os.read(self.reading, 1 << 16):
                found.append(part)
        except OSError:  # a terminal
            pass
        return b"".join(found)

    def close_reading(self) -> None:
        """Nobody reads any more."""
        os.close(self.reading)
        self.reading = -1

    def close(self) -> None:
        """Close both."""
        for end in (self.reading, self.writing):
            if end >= 0:
                os.close(end)
        self.reading = self.writing = -1


@pytest.fixture(params=["pipe", "fifo", "socket", "terminal"])
def ends(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ends]:
    """Each kind of them."""
    made = Ends(request.param, tmp_path / "fifo")
    yield made
    made.close()


def fill(target: PipeTarget, block: bytes = BLOCK) -> int:
    """Write until it is busy; how many blocks that took."""
    count = 0
    while not target.stream.is_busy:
        target.stream.write(block * 101)
        target.stream.flush()
        count += 101
        assert count * len(block) < 20 << 20
    return count


def test_all_bytes_arrive_in_order(ends: Ends) -> None:
    """Whatever it is, a reader that is slow gets every byte."""
    target = PipeTarget(ends.writing)
    found: list[bytes] = []
    reader = threading.Thread(target=lambda: found.append(ends.read()))
    reader.start()
    count = 3001
    for number in range(count):
        target.stream.write(packet(0, number.to_bytes(1000, "big")))
    target.close()
    assert target.stream.completed == target.stream.accepted
    os.close(ends.writing)
    ends.writing = -1
    reader.join()
    assert b"".join(found) == b"".join(packet(0, number.to_bytes(1000, "big")) for number in range(count))
    assert target.stream.lost == 0


@pytest.mark.parametrize(("count", "block"), [(count_packets, BLOCK), (count_lines, b"x" * 999 + b"\n")])
def test_a_reader_that_stalls(count: Callable[[bytes, int], int], block: bytes, ends: Ends) -> None:
    """No call waits for a reader that does not read; at the end each packet is in the pipe, or counted."""
    target = PipeTarget(ends.writing, count)
    begun = time.monotonic()
    written = fill(target, block)
    assert time.monotonic() - begun < ENDS_WITHIN_S
    begun = time.monotonic()
    target.close()
    assert time.monotonic() - begun < ENDS_WITHIN_S
    lost = target.stream.lost
    if ends.writing >= 0 and not os.isatty(ends.writing):
        os.close(ends.writing)
        ends.writing = -1
        found = ends.read()
        assert 0 < len(found) < written * len(block)
        assert lost == written - len(found) // len(block)
    assert 0 < lost <= written


def test_a_reader_that_is_slow_at_the_end(ends: Ends) -> None:
    """A reader that goes on reading has more time than one that has stopped, and not without end."""
    target = PipeTarget(ends.writing)
    written, stopped, found = fill(target), threading.Event(), bytearray()

    def read() -> None:
        while not stopped.wait(STALL_S / 4):
            if select.select([ends.reading], [], [], 0)[0]:
                found.extend(os.read(ends.reading, 1 << 15))

    reader = threading.Thread(target=read)
    reader.start()
    begun = time.monotonic()
    target.close()
    took = time.monotonic() - begun
    stopped.set()
    reader.join()
    assert STALL_S < took < END_S + ENDS_WITHIN_S
    assert 0 < target.stream.lost < written


@pytest.mark.parametrize("ends", ["pipe", "fifo", "socket"], indirect=True)
def test_a_reader_that_has_gone(ends: Ends) -> None:
    """It is an error of the next call, and none at the end; all packets that follow are counted."""
    target = PipeTarget(ends.writing)
    ends.close_reading()

    def write() -> bool:
        target.stream.write(BLOCK)
        target.stream.flush()
        return False

    with pytest.raises(BrokenPipeError):
        until(write, "it is an error")
    target.close()
    assert target.stream.lost * len(BLOCK) == target.stream.accepted


def test_a_device_that_is_full() -> None:
    """Another error is one of the end, too."""
    descriptor = os.open("/dev/full", os.O_WRONLY)
    target = PipeTarget(descriptor)
    target.stream.write(BLOCK)
    with pytest.raises(FileError, match="standard output: No space left on device while finishing it"):
        target.close()
    assert target.stream.lost == 1
    os.close(descriptor)


def test_a_file_is_written_where_its_end_is(tmp_path: Path) -> None:
    """A shell's >> appends, and what was written to the descriptor before stays."""
    path = tmp_path / "file"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    os.write(descriptor, b"before")
    target = PipeTarget(descriptor)
    target.stream.write(BLOCK)
    target.close()
    os.close(descriptor)
    assert path.read_bytes() == b"before" + BLOCK


def test_others_keep_their_way_of_waiting() -> None:
    """The pipe is not made non-blocking for the shell's other programs."""
    ends = Ends("pipe", Path())
    PipeTarget(ends.writing).close()
    assert not fcntl.fcntl(ends.writing, fcntl.F_GETFL) & os.O_NONBLOCK
    ends.close()


def test_a_write_that_never_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where not even the thread comes back what it has is counted."""
    gate = threading.Event()
    monkeypatch.setattr(os, "write", lambda _descriptor, data: (gate.wait(), len(data))[1])
    ends = Ends("pipe", Path())
    sink = PipeSink(ends.writing)
    for _ in range(7):
        sink.write(BLOCK)
        sink.flush()
    begun = time.monotonic()
    sink.close()
    assert time.monotonic() - begun < ENDS_WITHIN_S
    assert sink.lost == 7
    gate.set()
    until(lambda: sink.completed == sink.accepted, "it comes back late")
    assert sink.lost == 7
    ends.close()
