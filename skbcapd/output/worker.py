"""A thread that runs jobs for the drain loop, one after the other: everything that may wait for a disk.

In: jobs, which do not raise. Out: they are done in order, later.

The rule: code of a running capture never waits for a worker, except for a limited time: at the end,
and for what it cannot go on without, see Patience.
A worker that hangs in the kernel does not keep the process alive: it is a daemon thread.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from queue import SimpleQueue
from typing import Generic, Protocol, TypeAlias, TypeVar

_SWITCH_S = 0.0005  # Python's own 5 ms are what a disk needs for megabytes: a worker would wait most of its time

PATIENCE_S = 0.25

Job: TypeAlias = Callable[[], None]
T = TypeVar("T")


class Jobs(Protocol):
    """Whoever does jobs in order."""

    @property
    def waiting(self) -> int:
        """Jobs that are not done yet."""
        ...

    def do(self, job: Job) -> None:
        """Do a job when those before it are done; it must not raise."""
        ...

    def wait_below(self, count: int, timeout_s: float) -> bool:
        """Wait until fewer than so many jobs are not done yet, but no longer than so many seconds; whether it is so."""
        ...


class AtOnce:
    """Does jobs where it is asked to: for what may wait for its disk, and for tests."""

    waiting = 0

    def do(self, job: Job) -> None:
        """Do it now."""
        job()

    def wait_below(self, _count: int, _timeout_s: float) -> bool:
        """Nothing waits."""
        return True


class Worker:
    """Does jobs in a thread of its own.

    Args:
        name: of the thread.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._asked = self._done = 0
        self._changed = threading.Condition()  # _done has risen
        self._thread: threading.Thread | None = None

    @property
    def waiting(self) -> int:
        """Jobs that are not done yet."""
        return self._asked - self._done

    def do(self, job: Job) -> None:
        """Do a job when those before it are done; it must not raise."""
        if self._thread is None:
            sys.setswitchinterval(_SWITCH_S)
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()
        self._asked += 1
        self._jobs.put(job)

    def wait(self, timeout_s: float) -> bool:
        """Wait for all jobs, but no longer than so many seconds; whether they are done."""
        return self.wait_below(1, timeout_s)

    def wait_below(self, count: int, timeout_s: float) -> bool:
        """Wait until fewer than so many jobs are not done yet, but no longer than so many seconds; whether it is so."""
        if self.waiting < count:
            return True
        with self._changed:
            return self._changed.wait_for(lambda: self.waiting < count, timeout_s)

    def close(self, timeout_s: float) -> bool:
        """Do what is there, and end; whether that took no longer than so many seconds."""
        if self._thread is None:
            return True
        self._jobs.put(None)
        self._thread.join(timeout_s)
        is_over = not self._thread.is_alive()
        if is_over:
            self._thread = None
        return is_over

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()
            with self._changed:
                self._done += 1
                self._changed.notify_all()


class Patience(Generic[T]):
    """Waits for a result that a disk may hold up, but not for long: a late one is there for a later call.

    Args:
        name: of the thread.
        timeout_s: for the first call; those that ask for its result do not wait.
    """

    def __init__(self, name: str, timeout_s: float = PATIENCE_S) -> None:
        self._worker = Worker(name)
        self._timeout_s = timeout_s
        self._result: Future[T] | None = None

    def call(self, function: Callable[[], T]) -> T:
        """The result of the function; that of the call before if it was late.

        Raises:
            TimeoutError: there is none yet.
            Exception: what the function has raised.
        """
        if (result := self._result) is None:
            begun: Future[T] = Future()
            result = self._result = begun
            self._worker.do(lambda: _resolve(begun, function))
            wait([begun], self._timeout_s)
        if not result.done():
            raise TimeoutError
        self._result = None
        return result.result()

    def late(self) -> T | None:
        """The result of a call that was late, if it is there by now and no error; it is not given again."""
        if (result := self._result) is None or not result.done():
            return None
        self._result = None
        return None if result.exception() else result.result()

    @property
    def is_waiting(self) -> bool:
        """Whether a call was late, and has no result yet."""
        return self._result is not None and not self._result.done()


def _resolve(result: Future[T], function: Callable[[], T]) -> None:
    try:
        result.set_result(function())
    except Exception as error:  # noqa: BLE001  it is for the caller
        result.set_exception(error)


def wait_until(is_so: Callable[[], bool], timeout_s: float, every_s: float = 0.005) -> bool:
    """Wait for a condition, but no longer than so many seconds; whether it holds."""
    end = time.monotonic() + timeout_s
    while not is_so():
        if time.monotonic() >= end:
            return False
        time.sleep(every_s)
    return True
