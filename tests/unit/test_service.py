"""The event loop of a capture: when it drains, and everything that ends it."""

from __future__ import annotations

import errno
import itertools
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from skbcapd.daemon import loop
from skbcapd.daemon.dumps import Dumps
from skbcapd.daemon.loading import HELD_BACK
from skbcapd.daemon.loop import ACT_DRAINS, TICK_S, Service
from skbcapd.daemon.server import Server, control
from skbcapd.daemon.viewers import Viewers
from skbcapd.errors import KernelError
from skbcapd.kernel import abi
from skbcapd.kernel.abi import SEGMENT_SIZE
from skbcapd.output.interface import FILE_S, PROMPT_S
from tests.support.rig import Rig


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    """A Service handles the signals of the process; restore those of the tests."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, *HELD_BACK)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


class FakeCapture:
    """A capture that remembers what was asked of it, and does at each look what the test says.

    Args:
        looks: for each drain in turn, the bytes it moved, or what to do; after the last one the
            capture is full.
    """

    def __init__(self, *looks: int | Callable[[], int | None]) -> None:
        self.calls: list[str] = []
        self.looks = list(looks)
        self.fails_to_start = False
        self.program = self.output = self.segments = self
        self.returned: Callable[[], None] = lambda: None  # lent memory that is needed
        self.is_scarce = False
        self.is_busy = self.has_more = self.has_pending_work = self.needs_renumbering = self.has_buffered = False
        self.latency_s = PROMPT_S
        self.has_come = True  # the packet that the loop sleeps for
        self.is_detached, self.left = False, 0
        self.wakeup_fd, self.waker = os.pipe()
        os.write(self.waker, b"awake")  # the wait for the next packet ends at once

    @property
    def is_full(self) -> bool:
        """Whether the limit is reached."""
        return not self.looks

    def start(self) -> None:
        """The hooks are attached, or fail."""
        self.calls.append("start")
        if self.fails_to_start:
            raise KernelError("no hook")

    def drain(self) -> int:
        """The next drain."""
        self.calls.append("drain")
        if self.is_detached:
            self.left -= 1
            return 0
        look = self.looks.pop(0)
        return look if isinstance(look, int) else int(look() or 0)

    def request_wakeup(self, until: abi.Sleep) -> bool:
        """No packet came meanwhile."""
        self.calls.append(until.name.lower())
        return True

    def renumber(self) -> None:
        """Interfaces get new numbers."""
        self.calls.append("renumber")
        self.needs_renumbering = False

    def cancel_wakeup(self) -> bool:
        """The wait is over."""
        self.calls.append("cancel_wakeup")
        return self.has_come

    def take_wakeups(self) -> None:
        """A wakeup has come."""

    def set_clock(self) -> None:
        """Called once a second."""
        self.calls.append("set_clock")

    def detach(self) -> None:
        """No more packets are captured."""
        self.is_detached = True

    @property
    def is_complete(self) -> bool:
        """Whether everything has been drained."""
        assert self.is_detached
        return not self.left

    def finish(self, *, broken: bool) -> None:
        """The end."""
        self.calls.append("stop broken" if broken else "stop")


def run(capture: FakeCapture, **arguments: object) -> list[str]:
    """Run a capture to its end; returns the calls, including `started`."""
    service = Service(capture, **arguments)  # type: ignore[arg-type]
    try:
        service.run(lambda: capture.calls.append("started"))
    finally:
        os.close(capture.wakeup_fd)
        os.close(capture.waker)
    return capture.calls


def kill(number: int) -> Callable[[], int]:
    """Send a signal to the process."""
    return lambda: os.kill(os.getpid(), number) or 0


def fail(error: Exception) -> Callable[[], int]:
    """The output fails."""

    def drain() -> int:
        raise error

    return drain


class FakeReload:
    """Settings whose filters a child compiles until the test ends it."""

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
        """Its filters are used."""
        self.calls.append("finish")
        self.child = None

    def close(self) -> None:
        """The end."""
        self.calls.append("close")
        os.close(self._done)
        os.close(self._child)


def test_settings_are_reloaded_while_packets_are_written() -> None:
    """SIGHUP begins a reload; packets are written while filters are compiled; then the reload is
    finished.
    """
    reload = FakeReload()
    calls: list[list[str]] = []
    looks = (kill(signal.SIGHUP), 4, lambda: calls.append([*reload.calls]), reload.compiled, 4)
    run(FakeCapture(*looks), reload=reload)
    assert calls == [["begin"]]
    assert reload.calls == ["begin", "finish", "close"]


def test_a_capture_runs_from_start_to_stop() -> None:
    """`started` is called after the start of the capture, and the stop is last."""
    assert run(FakeCapture(100)) == ["start", "started", "drain", "cancel_wakeup", "stop"]


@pytest.mark.parametrize(
    ("moved", "after"),
    [
        (0, ["until_packet", "cancel_wakeup", "cancel_wakeup"]),
        (4, ["cancel_wakeup"]),
        (100 * SEGMENT_SIZE, ["cancel_wakeup"]),
    ],
)
def test_when_the_loop_waits(moved: int, after: list[str]) -> None:
    """Without packets it requests a wakeup; after packets it waits a little, also after many: a buffer that fills up
    wakes it.
    """
    assert run(FakeCapture(moved))[2:] == ["drain", *after, "stop"]


def test_a_file_lets_packets_wait_for_long() -> None:
    """Of an output that lets packets wait, the loop sleeps until one needs Python, or until its time is over; the
    first one is in the file soon.
    """
    capture = FakeCapture(4, 4)
    capture.latency_s = FILE_S
    assert run(capture)[2:] == [*("drain", "until_upcall", "cancel_wakeup", "cancel_wakeup") * 2, "stop"]
    capture = FakeCapture(0, 0)
    capture.latency_s = FILE_S
    assert run(capture)[2:] == [*("drain", "until_packet", "cancel_wakeup", "cancel_wakeup") * 2, "stop"]
    capture = FakeCapture(0, 0)
    capture.latency_s, capture.is_scarce = FILE_S, True  # what it waits for may be the memory, which is there now
    assert run(capture)[2:] == [*("drain", "until_packet", "cancel_wakeup") * 2, "stop"]
    capture = FakeCapture(4, 4)
    capture.latency_s, capture.has_come = 2 * PROMPT_S, False
    os.read(capture.wakeup_fd, 100)
    start = time.monotonic()
    assert run(capture)[2:] == ["drain", "until_upcall", "cancel_wakeup"] * 2 + ["stop"]
    assert time.monotonic() - start >= 4 * PROMPT_S


def test_only_time_makes_the_loop_patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The longer packets arrive without a pause, the longer they wait; not if many drains are due to a buffer that
    fills up.
    """
    waits: list[int] = []
    woken = [False, True, True, False, False, False, True, True, False, True]

    def wait(_self: Service, until: float) -> bool:
        waits.append(round(until - time.monotonic()))
        return woken.pop(0)

    monkeypatch.setattr(Service, "_wait", wait)
    monkeypatch.setattr(loop, "TICK_S", 1000.0)
    monkeypatch.setattr(loop, "QUIET_S", 7000.0)
    capture = FakeCapture(4, 9 * SEGMENT_SIZE, 9 * SEGMENT_SIZE, 4, 4, 4, 0, 4, 4)
    capture.latency_s, capture.has_come = 5000.0, False
    monkeypatch.setattr(Service, "_tick_if_due", lambda self, _now: setattr(self, "_next_tick", float("inf")))
    run(capture)
    assert waits == [1000, 2000, 2000, 2000, 4000, 5000, 7000, 1000, 1000]


@pytest.mark.parametrize("has_more", [False, True])
def test_an_action_comes_after_the_packets_before_its_signal(*, has_more: bool) -> None:
    """The action of a signal waits for a complete drain that began after the signal, but not for ever."""
    drained: list[int] = []
    capture = FakeCapture(kill(signal.SIGUSR2), *[4] * 7)
    capture.has_more = has_more
    run(capture, actions={signal.SIGUSR2: lambda: drained.append(capture.calls.count("drain"))})
    assert drained == [1 + ACT_DRAINS if has_more else 2]


def test_very_many_signals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the action of a signal is done, the same signal does not interrupt the loop again; afterwards it does."""
    monkeypatch.setattr(loop, "ACT_S", 0.0)
    waits: list[bool] = []
    actions: list[int] = []

    def storm() -> int:
        for _ in range(1009):
            os.kill(os.getpid(), signal.SIGUSR2)
        waits.append(signal.SIGUSR2 in signal.sigpending())
        return 4

    run(FakeCapture(storm, *[4] * 7), actions={signal.SIGUSR2: lambda: actions.append(len(actions))})
    assert waits == [True]
    assert actions == [0, 1]
    os.kill(os.getpid(), signal.SIGUSR2)  # late: it is ignored
    assert not HELD_BACK & signal.pthread_sigmask(signal.SIG_BLOCK, ())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it(number: signal.Signals) -> None:
    """After a signal there is no further drain; the rest is written by the stop."""
    capture = FakeCapture(kill(number), fail(AssertionError("looked again")))
    os.read(capture.wakeup_fd, 100)  # nothing but the signal ends the wait
    assert run(capture)[2:] == ["drain", "until_packet", "cancel_wakeup", "stop"]


def test_a_second_signal_has_no_effect() -> None:
    """A signal during the stop does not interrupt it."""
    capture = FakeCapture(kill(signal.SIGINT))
    finish = capture.finish

    def interrupted(*, broken: bool) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        finish(broken=broken)

    capture.finish = interrupted  # type: ignore[method-assign]
    assert run(capture)[-1] == "stop"


def test_the_end_is_drained_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the end, drains and the other work of the loop alternate, for a limited time."""
    capture = FakeCapture(100)
    capture.left = 3
    assert run(capture)[-4:] == ["drain", "drain", "drain", "stop"]
    monkeypatch.setattr(loop, "TICK_S", 0.01)
    monkeypatch.setattr(loop, "QUIET_S", 0.01)
    ticks: list[int] = []
    capture = FakeCapture(100)
    capture.left = 10**9
    run(capture, tick=lambda _seconds: bool(ticks.append(capture.left)), final_drain_s=0.05)
    assert capture.calls[-1] == "stop"
    assert ticks
    assert capture.left > 10**8


def test_packets_wait_the_longer_the_longer_they_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who tries something sees it at once; a host that always has packets is not woken more often than it must."""
    monkeypatch.setattr(loop, "TICK_S", 0.1)
    monkeypatch.setattr(loop, "QUIET_S", 60.0)
    times: list[float] = []

    def look(moved: int) -> Callable[[], int]:
        def drain() -> int:
            times.append(time.monotonic())
            if not moved:
                os.write(capture.waker, b"awake")  # nothing for a while, and then a packet
            return moved

        return drain

    capture = FakeCapture(*map(look, (4, 4, 4, 4, 0, 4, 4)))
    capture.latency_s, capture.has_come = 1.0, False
    capture.take_wakeups = lambda: os.read(capture.wakeup_fd, 100)  # type: ignore[assignment, method-assign]
    os.read(capture.wakeup_fd, 100)
    run(capture)
    waits = [after - before for before, after in itertools.pairwise(times)]
    assert all(wait >= least for wait, least in zip(waits, (0.1, 0.2, 0.4, 0.8, 0.0, 0.1), strict=True)), waits
    assert waits[5] < waits[3], waits


def test_a_step_of_the_clock_counts_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the system clock is set, the program gets its offset without waiting for a tick."""
    begin, end = os.pipe()
    taken: list[bytes] = []

    class Steps:
        def fileno(self) -> int:
            return begin

        def take(self) -> None:
            taken.append(os.read(begin, 100))

        def close(self) -> None:
            os.close(begin)

    monkeypatch.setattr(loop, "ClockSteps", Steps)
    capture = FakeCapture(lambda: os.write(end, b"step") * 0, 0)
    os.read(capture.wakeup_fd, 100)
    capture.latency_s, capture.has_come = FILE_S, False
    start = time.monotonic()
    calls = run(capture)
    os.close(end)
    assert taken == [b"step"]
    assert calls[2:6] == ["drain", "until_packet", "set_clock", "cancel_wakeup"]
    assert time.monotonic() - start >= TICK_S - 0.1, "the tick after it"


def test_ticks_are_rare_while_nothing_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tick is told how many seconds have passed; it comes each second while it has something to do, and soon after
    something has begun.
    """
    monkeypatch.setattr(loop, "TICK_S", 0.1)
    monkeypatch.setattr(loop, "QUIET_S", 1.5)
    capture = FakeCapture(*[0] * 6)
    os.read(capture.wakeup_fd, 100)
    capture.latency_s, capture.has_come = FILE_S, False
    ticks: list[tuple[int, float]] = []
    answers = [True, False, False, False]

    def tick(seconds: int) -> bool:
        ticks.append((seconds, time.monotonic() - start))
        if len(ticks) == 3:
            os.write(capture.waker, b"awake")  # a packet without a label
        return answers.pop(0)

    capture.take_wakeups = lambda: os.read(capture.wakeup_fd, 100)  # type: ignore[assignment, method-assign]
    start = time.monotonic()
    run(capture, tick=tick)
    begins = [0.1, 0.2, 1.7, 1.8]
    assert [seconds for seconds, _ in ticks] == [1, 1, 2, 1]
    assert all(begin <= at for begin, (_, at) in zip(begins, ticks, strict=True)), ticks
    assert ticks[3][1] - ticks[2][1] < 1.5, ticks


def test_memory_that_comes_back_wakes_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the buffer is full of memory that the disk still needs, nothing but its return can wake the loop; after the
    end a late return has no effect.
    """
    long_s = 20.0
    for name in ("TICK_S", "QUIET_S"):
        monkeypatch.setattr(loop, name, long_s)
    capture = FakeCapture(
        lambda: threading.Timer(0.1, capture.returned).start() or 4, lambda: os.write(capture.waker, b"awake")
    )
    os.read(capture.wakeup_fd, 100)
    capture.latency_s, capture.has_come = long_s, False
    start = time.monotonic()
    run(capture)
    assert capture.calls.count("drain") == 2
    assert time.monotonic() - start < long_s
    capture.returned()


@pytest.mark.parametrize("moved", [0, 4])
def test_an_unfinished_drain_continues_at_once(moved: int) -> None:
    """After a drain that did not finish in time, the loop does its other work and drains again."""
    capture = FakeCapture(moved, moved, moved)
    capture.has_more = True
    assert run(capture)[2:] == ["drain"] * 3 + ["stop"]


def test_an_output_at_work_keeps_the_loop_awake() -> None:
    """An output that waits for its disk, or has pending work, is called again soon, with or without
    packets.
    """
    capture = FakeCapture(0, 0, 0)
    os.read(capture.wakeup_fd, 100)  # nothing wakes the loop
    capture.has_pending_work = True
    start = time.monotonic()
    assert run(capture)[2:] == ["drain"] * 3 + ["stop"]
    assert time.monotonic() - start < TICK_S


def test_new_numbers_are_given_between_two_drains() -> None:
    """An output requests new numbers; the loop makes the capture renumber between two drains."""
    capture = FakeCapture(4, 4)
    capture.needs_renumbering = True
    assert [call for call in run(capture) if call in {"drain", "renumber"}] == ["drain", "renumber", "drain"]


def test_a_deadline_ends_it() -> None:
    """A duration ends the capture, without waiting for packets."""
    capture = FakeCapture(0, 0, fail(AssertionError("looked again")))
    os.read(capture.wakeup_fd, 100)
    assert run(capture, duration_s=0.001)[-1] == "stop"


@pytest.mark.parametrize("moved", [0, 100])
def test_a_reader_that_ends_ends_the_capture(moved: int) -> None:
    """When the reader of the pipe has ended, the capture ends, and the rest is dropped."""
    reading, writing = os.pipe()
    os.close(reading)
    assert run(FakeCapture(moved, fail(AssertionError("looked again"))), output_fd=writing)[-1] == "stop broken"
    os.close(writing)


def test_a_regular_file_never_hangs_up() -> None:
    """A file has no reader: its descriptor is not polled."""
    descriptor = os.open(__file__, os.O_RDONLY)
    assert run(FakeCapture(0, 0), output_fd=descriptor)[-1] == "stop"
    os.close(descriptor)


def test_a_broken_pipe_ends_it_in_peace() -> None:
    """A write to a pipe without a reader is a normal end; the rest is dropped."""
    assert run(FakeCapture(fail(BrokenPipeError())))[-2:] == ["drain", "stop broken"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KernelError("odd")])
def test_an_output_that_fails_ends_it(error: Exception) -> None:
    """Any other error is raised after the stop."""
    capture = FakeCapture(fail(error))
    with pytest.raises(type(error)):
        run(capture)
    assert capture.calls[-1] == "stop broken"


def test_a_start_that_fails() -> None:
    """A capture that cannot start is stopped, and `started` is not called."""
    capture = FakeCapture(0)
    capture.fails_to_start = True
    with pytest.raises(KernelError, match="no hook"):
        run(capture)
    assert capture.calls == ["start", "stop broken"]


def test_nothing_is_left_open() -> None:
    """After the end no descriptor is open, and signals write nowhere."""
    capture = FakeCapture(0)
    before = len(list(Path("/proc/self/fd").iterdir()))
    run(capture)
    assert len(list(Path("/proc/self/fd").iterdir())) == before - 2  # the descriptor of the fake
    assert signal.set_wakeup_fd(-1) == -1


@pytest.mark.parametrize(("moved", "has_more"), [(0, False), (4, False), (SEGMENT_SIZE, True)])
def test_clients_are_served(moved: int, tmp_path: Path, *, has_more: bool) -> None:
    """Idle, at work or with too much to do: the loop serves the control socket, and drains before."""
    path = tmp_path / "control"
    server = Server()
    capture = FakeCapture()
    capture.has_more = has_more
    os.read(capture.wakeup_fd, 100)  # only the client wakes it

    def facts() -> dict[str, object]:
        capture.calls.append("asked")
        capture.looks.clear()
        return {"moved": moved}

    server.listen_unix(str(path), control(facts, Dumps(None), Viewers(Rig().capture)))
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        client.sendall(b"status\n")
        capture.looks = [moved] * 101
        calls = run(capture, server=server)
        assert client.recv(100) == f'{{"moved": {moved}}}\n'.encode()
    assert calls.index("drain") < calls.index("asked")
    assert calls.count("drain") < 7
    server.close()
