"""The loop of a running capture: when it looks for packets, and everything that ends it."""

from __future__ import annotations

import errno
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from skbcapd.daemon.loop import TICK_S, Service
from skbcapd.daemon.server import Server, control
from skbcapd.errors import KernelError
from skbcapd.kernel.abi import SEGMENT_SIZE


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    """A Service takes the signals of the process; the tests want theirs back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


class FakeCapture:
    """A capture that remembers what was asked of it, and does at each look what the test says.

    Args:
        looks: for each drain in turn, the bytes it moved, or what to do; after the last one the capture is full.
    """

    def __init__(self, *looks: int | Callable[[], int | None]) -> None:
        self.calls: list[str] = []
        self.looks = list(looks)
        self.fails_to_start = False
        self.program = self.output = self
        self.is_busy = self.is_cut_short = self.wants_turn = self.wants_new_numbers = False
        self.is_detached, self.left = False, 0
        self.wakeup_fd, self.waker = os.pipe()
        os.write(self.waker, b"awake")  # the wait for the next packet is over at once

    @property
    def is_full(self) -> bool:
        """Whether there is nothing more to do."""
        return not self.looks

    def start(self) -> None:
        """The hooks are there, or not."""
        self.calls.append("start")
        if self.fails_to_start:
            raise KernelError("no hook")

    def drain(self) -> int:
        """The next look."""
        self.calls.append("drain")
        if self.is_detached:
            self.left -= 1
            return 0
        look = self.looks.pop(0)
        return look if isinstance(look, int) else int(look() or 0)

    def fall_asleep(self) -> bool:
        """No packet came meanwhile."""
        self.calls.append("fall_asleep")
        return True

    def renumber(self) -> None:
        """Interfaces get new numbers."""
        self.calls.append("renumber")
        self.wants_new_numbers = False

    def wake_up(self) -> None:
        """The wait is over."""
        self.calls.append("wake_up")

    def set_clock(self) -> None:
        """Once a second."""
        self.calls.append("set_clock")

    def detach(self) -> None:
        """The last packet has been seen."""
        self.is_detached = True

    @property
    def is_settled(self) -> bool:
        """Whether all has been drained."""
        assert self.is_detached
        return not self.left

    def finish(self, *, broken: bool) -> None:
        """The end."""
        self.calls.append("stop broken" if broken else "stop")


def run(capture: FakeCapture, **arguments: object) -> list[str]:
    """Run a capture to its end; what was asked of it, `started` among it."""
    service = Service(capture, **arguments)  # type: ignore[arg-type]
    try:
        service.run(lambda: capture.calls.append("started"))
    finally:
        os.close(capture.wakeup_fd)
        os.close(capture.waker)
    return capture.calls


def kill(number: int) -> Callable[[], int]:
    """The process gets a signal."""
    return lambda: os.kill(os.getpid(), number) or 0


def fail(error: Exception) -> Callable[[], int]:
    """The output fails."""

    def drain() -> int:
        raise error

    return drain


class FakeReload:
    """Other settings, whose filters a child compiles until the test lets it end."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.child: int | None = None
        self._done, self._child = os.pipe()

    def begin(self) -> None:
        """A child begins."""
        self.calls.append("begin")
        self.child = self._done

    def compiled(self) -> None:
        """The child is done."""
        os.write(self._child, b"done")

    def finish(self) -> None:
        """Its filters are taken."""
        self.calls.append("finish")
        self.child = None

    def close(self) -> None:
        """The end."""
        self.calls.append("close")
        os.close(self._done)
        os.close(self._child)


def test_settings_are_reloaded_while_packets_are_written() -> None:
    """SIGHUP begins a reload; packets are written while it is compiled; it is finished when that is done."""
    reload = FakeReload()
    calls: list[list[str]] = []
    looks = (kill(signal.SIGHUP), 4, lambda: calls.append([*reload.calls]), reload.compiled, 4)
    run(FakeCapture(*looks), reload=reload)
    assert calls == [["begin"]]
    assert reload.calls == ["begin", "finish", "close"]


def test_a_capture_runs_from_start_to_stop() -> None:
    """The start is told once the capture has started, and the stop comes last."""
    assert run(FakeCapture(100)) == ["start", "started", "drain", "wake_up", "stop"]


@pytest.mark.parametrize(
    ("moved", "after"),
    [(0, ["fall_asleep", "wake_up", "wake_up"]), (4, ["wake_up"]), (SEGMENT_SIZE - 4, ["wake_up"]), (SEGMENT_SIZE, [])],
)
def test_when_the_loop_waits(moved: int, after: list[str]) -> None:
    """With no packets it asks to be woken; then, and while some come, it waits a little; after a segment, not."""
    assert run(FakeCapture(moved, SEGMENT_SIZE))[2:] == ["drain", *after, "drain", "stop"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it(number: signal.Signals) -> None:
    """After a signal there is no further look; what is left is written by the stop."""
    capture = FakeCapture(kill(number), fail(AssertionError("looked again")))
    os.read(capture.wakeup_fd, 100)  # nothing but the signal ends the wait
    assert run(capture)[2:] == ["drain", "fall_asleep", "wake_up", "stop"]


def test_a_second_signal_is_no_harm() -> None:
    """A signal while the capture is being stopped does not stop the stopping."""
    capture = FakeCapture(kill(signal.SIGINT))
    finish = capture.finish

    def interrupted(*, broken: bool) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        finish(broken=broken)

    capture.finish = interrupted  # type: ignore[method-assign]
    assert run(capture)[-1] == "stop"


def test_the_end_is_drained_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left at the end is drained with the loop's duties in between, and no longer than is allowed."""
    capture = FakeCapture(100)
    capture.left = 3
    assert run(capture)[-4:] == ["drain", "drain", "drain", "stop"]
    monkeypatch.setattr("skbcapd.daemon.loop.TICK_S", 0.01)
    ticks: list[int] = []
    capture = FakeCapture(100)
    capture.left = 10**9
    run(capture, tick=lambda: ticks.append(capture.left), settle_s=0.05)
    assert capture.calls[-1] == "stop"
    assert ticks
    assert capture.left > 10**8


@pytest.mark.parametrize("moved", [0, 4])
def test_a_drain_that_is_cut_short_goes_on_at_once(moved: int) -> None:
    """After a drain that had no time for all that waits, the loop looks after its duties and drains again."""
    capture = FakeCapture(moved, moved, moved)
    capture.is_cut_short = True
    assert run(capture)[2:] == ["drain"] * 3 + ["stop"]


def test_an_output_at_work_keeps_the_loop_awake() -> None:
    """An output that waits for its disk, or wants a turn, is asked again soon, packets or not."""
    capture = FakeCapture(0, 0, 0)
    os.read(capture.wakeup_fd, 100)  # nothing wakes the loop
    capture.wants_turn = True
    start = time.monotonic()
    assert run(capture)[2:] == ["drain"] * 3 + ["stop"]
    assert time.monotonic() - start < TICK_S


def test_new_numbers_are_given_between_two_drains() -> None:
    """An output says that it wants new numbers; the loop has the capture give them when a drain is over."""
    capture = FakeCapture(4, 4)
    capture.wants_new_numbers = True
    assert [call for call in run(capture) if call in {"drain", "renumber"}] == ["drain", "renumber", "drain"]


def test_a_deadline_ends_it() -> None:
    """A duration that is over ends the capture, without waiting for packets."""
    capture = FakeCapture(0, 0, fail(AssertionError("looked again")))
    os.read(capture.wakeup_fd, 100)
    assert run(capture, duration_s=0.001)[-1] == "stop"


@pytest.mark.parametrize("moved", [0, 100])
def test_a_reader_that_goes_ends_it(moved: int) -> None:
    """When the pipe's reader is gone the capture ends, and what is left is lost, not written."""
    reading, writing = os.pipe()
    os.close(reading)
    assert run(FakeCapture(moved, fail(AssertionError("looked again"))), output_fd=writing)[-1] == "stop broken"
    os.close(writing)


def test_a_regular_file_never_hangs_up() -> None:
    """A file has no reader that could go: its descriptor is not waited for."""
    descriptor = os.open(__file__, os.O_RDONLY)
    assert run(FakeCapture(0, 0), output_fd=descriptor)[-1] == "stop"
    os.close(descriptor)


def test_a_broken_pipe_ends_it_in_peace() -> None:
    """A write into a pipe without a reader is an ordinary end; what is left is lost."""
    assert run(FakeCapture(fail(BrokenPipeError())))[-2:] == ["drain", "stop broken"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KernelError("odd")])
def test_an_output_that_fails_ends_it(error: Exception) -> None:
    """Any other error reaches the caller, after the stop."""
    capture = FakeCapture(fail(error))
    with pytest.raises(type(error)):
        run(capture)
    assert capture.calls[-1] == "stop broken"


def test_a_start_that_fails() -> None:
    """A capture that cannot start is stopped all the same, and never said to have started."""
    capture = FakeCapture(0)
    capture.fails_to_start = True
    with pytest.raises(KernelError, match="no hook"):
        run(capture)
    assert capture.calls == ["start", "stop broken"]


def test_nothing_is_left_open() -> None:
    """When the service has ended it holds no descriptor, and signals no longer write anywhere."""
    capture = FakeCapture(0)
    before = len(list(Path("/proc/self/fd").iterdir()))
    run(capture)
    assert len(list(Path("/proc/self/fd").iterdir())) == before - 2  # the fake's own
    assert signal.set_wakeup_fd(-1) == -1


@pytest.mark.parametrize("moved", [0, 4, SEGMENT_SIZE])
def test_who_asks_is_answered(moved: int, tmp_path: Path) -> None:
    """Idle, at work or with too much to do: the loop serves the control socket, and looks for packets before."""
    path = tmp_path / "control"
    server = Server()
    capture = FakeCapture()
    os.read(capture.wakeup_fd, 100)  # nothing but the client wakes it

    def facts() -> dict[str, object]:
        capture.calls.append("asked")
        capture.looks.clear()
        return {"moved": moved}

    server.listen_unix(str(path), control(facts))
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        client.sendall(b"status\n")
        capture.looks = [moved] * 101
        calls = run(capture, server=server)
        assert client.recv(100) == f'{{"moved": {moved}}}\n'.encode()
    assert calls.index("drain") < calls.index("asked")
    assert calls.count("drain") < 7
    server.close()
