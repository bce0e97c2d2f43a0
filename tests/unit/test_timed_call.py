"""Waiting for a result with a time limit; a late result is not lost."""

from __future__ import annotations

import signal
import threading
import time
from functools import partial

import pytest

from skbcapd.worker import SIGNALS, TimedCall, Worker
from tests.support.deadline import DEADLINE_S, until


def test_a_result_in_time() -> None:
    """Each call returns the result of its own function."""
    patience: TimedCall[int] = TimedCall("test")
    assert [patience.call(partial(int, text)) for text in ("3", "5", "7")] == [3, 5, 7]
    assert not patience.is_waiting
    assert patience.late() is None


def test_without_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """If no thread can be started, jobs run at once; later in a thread again."""

    def refused(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    worker, names = Worker("test"), list[str]()
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refused)
        worker.do(lambda: names.append(threading.current_thread().name))
        assert not worker.start()
        assert not worker.waiting
        assert TimedCall[int]("test").call(lambda: 7) == 7
    worker.do(lambda: names.append(threading.current_thread().name))
    assert worker.wait(5.0)
    assert names == ["MainThread", "test"]


def test_a_job_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    """An unexpected error in a job is logged, and the jobs after it are done."""
    worker, done = Worker("test"), list[int]()
    worker.do(lambda: done.append(int("x")))
    worker.do(lambda: done.append(7))
    assert worker.wait(5.0)
    assert done == [7]
    assert caplog.messages == ["test: unexpected error"]


def test_a_thread_receives_no_signal() -> None:
    """Signals of the drain loop are blocked in a worker, and not in the thread that starts it."""
    worker, found = Worker("test"), list[set[int]]()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    worker.do(lambda: found.append(set(signal.pthread_sigmask(signal.SIG_BLOCK, ()))))
    assert worker.wait(5.0)
    assert found == [before | SIGNALS]
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


def test_an_error() -> None:
    """An exception of the function is raised once."""
    patience: TimedCall[int] = TimedCall("test")
    with pytest.raises(ValueError, match="three"):
        patience.call(lambda: int("three"))
    assert patience.call(lambda: 5) == 5


def test_a_late_result() -> None:
    """A late call raises TimeoutError in time, the next one at once; its result is returned by the
    first call after it.
    """
    patience: TimedCall[str] = TimedCall("test", timeout_s=0.05)
    disk = threading.Event()
    with pytest.raises(TimeoutError):
        patience.call(lambda: "late" if disk.wait() else "")
    start = time.monotonic()
    for _ in range(101):
        with pytest.raises(TimeoutError):
            patience.call(lambda: "never called")
    assert time.monotonic() - start < 101 * 0.05
    assert patience.is_waiting
    disk.set()
    until(lambda: not patience.is_waiting, "the result is there")
    assert patience.call(lambda: "never called") == "late"
    assert patience.call(lambda: "next", DEADLINE_S) == "next"


def after(disk: threading.Event, text: str) -> int:
    """A number, when the disk has answered."""
    disk.wait()
    return int(text)


def test_a_late_result_is_returned_once() -> None:
    """A late result is returned once; an error is not."""
    patience: TimedCall[int] = TimedCall("test", timeout_s=0)
    for text, late in (("7", 7), ("x", None)):
        disk = threading.Event()
        with pytest.raises(TimeoutError):
            patience.call(partial(after, disk, text))
        disk.set()
        until(lambda: not patience.is_waiting, "the result is there")
        assert patience.late() == late
        assert patience.late() is None
