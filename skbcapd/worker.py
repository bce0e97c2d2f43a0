"""A thread that runs jobs for the drain loop, one after the other: everything that may wait for a
disk.

In: jobs, which do not raise. Out: they are done in order, later.

The rule: a running capture never waits for a worker, except for a limited time: at its end, and for
results that it needs, see TimedCall. If the system cannot start a thread, the caller runs the jobs:
that must not end a capture. A worker that hangs in the kernel does not keep the process alive: it is
a daemon thread.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Generic, Protocol, TypeAlias, TypeVar

_LOG = logging.getLogger(__name__)
_SWITCH_S = 0.0005  # a disk writes megabytes in the 5 ms that are Python's default: a worker would mostly wait

PATIENCE_S = 0.15  # the loop waits for a file and for a look at the directory in one turn
SIGNALS = {signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2}
"""Signals that the drain loop handles: only its thread receives them."""

Job: TypeAlias = Callable[[], None]
T = TypeVar("T")


class Jobs(Protocol):
    """Runs jobs in order."""

    @property
    def waiting(self) -> int:
        """Number of jobs that are not done yet."""
        ...

    def do(self, job: Job) -> None:
        """Run a job after the jobs before it; it must not raise."""
        ...

    def wait_below(self, count: int, timeout_s: float) -> bool:
        """Wait until fewer than so many jobs are not done yet, but no longer than so many seconds; whether it is so."""
        ...


class InlineJobs:
    """Runs jobs in the thread of the caller: for code that may wait for its disk, and for tests."""

    waiting = 0

    def do(self, job: Job) -> None:
        """Run it now."""
        job()

    def wait_below(self, _count: int, _timeout_s: float) -> bool:
        """Nothing waits."""
        return True


class Worker:
    """Runs jobs in a thread.

    Args:
        name: name of the thread.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._asked = self._done = 0
        self._is_awaited = False  # the loop waits for _done
        self._changed = threading.Condition()  # _done has risen
        self._thread: threading.Thread | None = None

    @property
    def waiting(self) -> int:
        """Number of jobs that are not done yet."""
        return self._asked - self._done

    def start(self) -> bool:
        """Start the thread if it does not run; whether it runs: the system may have no thread left."""
        if self._thread is None:
            sys.setswitchinterval(_SWITCH_S)
            try:
                self._thread = start_thread(self._run, name=self._name)
            except RuntimeError:
                return False
        return True

    def do(self, job: Job) -> None:
        """Run a job after the jobs before it; it must not raise. Without a thread it runs now."""
        if self._thread is None and not self.start():
            job()
            return
        self._asked += 1
        self._jobs.put(job)

    def wait(self, timeout_s: float) -> bool:
        """Wait until all jobs are done, but at most so many seconds; returns whether they are."""
        return self.wait_below(1, timeout_s)

    def wait_below(self, count: int, timeout_s: float) -> bool:
        """Wait until fewer than so many jobs are left, but at most so many seconds.

        Returns:
            Whether fewer are left.
        """
        if self.waiting < count:
            return True
        self._is_awaited = True  # before the look at _done: the worker looks at both in the other order
        with self._changed:
            is_below = self._changed.wait_for(lambda: self.waiting < count, timeout_s)
        self._is_awaited = False
        return is_below

    def close(self, timeout_s: float) -> bool:
        """Run the remaining jobs, and end; returns whether it ended within so many seconds."""
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
            try:
                job()
            except Exception:  # noqa: BLE001  later jobs must not wait for ever
                _LOG.exception("%s: unexpected error", self._name)
            self._done += 1  # only here
            if self._is_awaited:
                with self._changed:
                    self._changed.notify_all()


def start_thread(work: Callable[..., None], *arguments: object, name: str | None = None) -> threading.Thread:
    """A running thread that does not keep the process alive and receives no signal of the drain loop.

    Raises:
        RuntimeError: the system has no thread left.
    """
    thread = threading.Thread(target=work, args=arguments, name=name, daemon=True)
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # a thread inherits it
    try:
        thread.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    return thread


class TimedCall(Generic[T]):
    """Waits for a result with a time limit; a late result is returned by a later call.

    Args:
        name: name of the thread.
        timeout_s: time limit of the first call; later calls do not wait.
    """

    def __init__(self, name: str, timeout_s: float = PATIENCE_S) -> None:
        self._worker = Worker(name)
        self._timeout_s = timeout_s
        self._result: Future[T] | None = None

    def call(self, function: Callable[[], T], timeout_s: float | None = None) -> T:
        """The result of the function, or the late result of the call before.

        Args:
            function: called in the thread, unless the call before is late.
            timeout_s: for this call; None: the timeout of all calls.

        Raises:
            TimeoutError: there is no result yet.
            Exception: from the function.
        """
        if (result := self._result) is None:
            begun: Future[T] = Future()
            result = self._result = begun
            self._worker.do(lambda: _resolve(begun, function))
            with contextlib.suppress(TimeoutError):
                begun.exception(self._timeout_s if timeout_s is None else timeout_s)
        if not result.done():
            raise TimeoutError
        self._result = None
        return result.result()

    def late(self) -> T | None:
        """The late result of a call, once; None if there is none, or if it is an error."""
        if (result := self._result) is None or not result.done():
            return None
        self._result = None
        return None if result.exception() else result.result()

    @property
    def is_used(self) -> bool:
        """Whether a late call has no result yet, or one that was not taken."""
        return self._result is not None

    @property
    def is_waiting(self) -> bool:
        """Whether a late call has no result yet."""
        return self._result is not None and not self._result.done()

    def end_thread(self) -> None:
        """End the thread, unless a call is late; the next call starts it again."""
        if not self.is_waiting:
            self._worker.close(self._timeout_s)


def _resolve(result: Future[T], function: Callable[[], T]) -> None:
    try:
        result.set_result(function())
    except Exception as error:  # noqa: BLE001  it is for the caller
        result.set_exception(error)


def wait_until(is_so: Callable[[], bool], timeout_s: float, every_s: float = 0.005) -> bool:
    """Wait for a condition, but at most so many seconds; returns whether it is true."""
    end = time.monotonic() + timeout_s
    while not is_so():
        if time.monotonic() >= end:
            return False
        time.sleep(every_s)
    return True
