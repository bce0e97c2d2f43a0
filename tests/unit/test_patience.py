"""Waiting for a result that the disk may hold up: not for long, and a late one is not lost."""

from __future__ import annotations

import threading
import time
from functools import partial

import pytest

from skbcapd.output.worker import Patience, Worker
from tests.support.deadline import until


def test_a_result_in_time() -> None:
    """Each call gives the result of its own function."""
    patience: Patience[int] = Patience("test")
    assert [patience.call(partial(int, text)) for text in ("3", "5", "7")] == [3, 5, 7]
    assert not patience.is_waiting
    assert patience.late() is None


def test_without_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system has no thread left, jobs are done at once; when it has one again, by that."""

    def refused(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    worker, names = Worker("test"), list[str]()
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refused)
        worker.do(lambda: names.append(threading.current_thread().name))
        assert not worker.start()
        assert not worker.waiting
        assert Patience[int]("test").call(lambda: 7) == 7
    worker.do(lambda: names.append(threading.current_thread().name))
    assert worker.wait(5.0)
    assert names == ["MainThread", "test"]


def test_an_error() -> None:
    """What the function raises is raised, once."""
    patience: Patience[int] = Patience("test")
    with pytest.raises(ValueError, match="three"):
        patience.call(lambda: int("three"))
    assert patience.call(lambda: 5) == 5


def test_a_late_result() -> None:
    """A call that is late raises TimeoutError in time, the next one at once; its result is for the first one after."""
    patience: Patience[str] = Patience("test", timeout_s=0.05)
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
    assert patience.call(lambda: "next") == "next"


def after(disk: threading.Event, text: str) -> int:
    """A number, when the disk has answered."""
    disk.wait()
    return int(text)


def test_a_late_result_that_nobody_wants() -> None:
    """A late result is given once; an error is none."""
    patience: Patience[int] = Patience("test", timeout_s=0)
    for text, late in (("7", 7), ("x", None)):
        disk = threading.Event()
        with pytest.raises(TimeoutError):
            patience.call(partial(after, disk, text))
        disk.set()
        until(lambda: not patience.is_waiting, "the result is there")
        assert patience.late() == late
        assert patience.late() is None
