"""Reads key logs (SSLKEYLOGFILE) while programs write them.

In: paths. Out: the well-formed lines that are new since the start, in order, for the capture files.

The rules: a thread reads, never the drain loop. Programs of other users write these files: nothing in them, and nothing
that is done to them, ends a capture, or uses more than a bounded amount of memory and time. Only regular files are
read: what the path leads to is examined before it is opened. Each kind of trouble is logged once for each file.

The thread is woken by inotify, so lines are mostly known before the packets of their handshake are drained. Where there
is no inotify (a network file system, a file that has just been replaced), it looks once a second.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import stat
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Self

from skbcapd.output.watch import MODIFIED, Watch
from skbcapd.pcapng.secrets import LINE_MAX, key_lines
from skbcapd.text_safety import escaped
from skbcapd.worker import PATIENCE_S, Worker, wait_until

_LOG = logging.getLogger(__name__)
READ_MAX = 1 << 18  # bytes of a file that are read in one go
BEHIND_MAX = 1 << 22  # bytes that may wait to be read; of more, the oldest are skipped
KEPT_MAX = 1 << 20  # bytes of lines in memory
_EVERY_S = 1.0
_PAUSE_S = 0.02  # at least, between two looks
CATCH_UP_S = 0.5


class KeyLog:
    """One key log.

    Args:
        path: its path; the file may be missing, and may be replaced or truncated at any time.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = -1
        self._at = 0  # bytes that were read
        self._line = b""  # the beginning of the last line
        self._is_long = False  # the line is too long: it is skipped to its end
        self._lines = self._other = 0  # well-formed, other bytes
        self._said: set[str] = set()
        self.watch: Watch | None = None
        """Reports that it was written; None: not known."""

    def begin(self) -> None:
        """Open it, and skip what is in it: secrets of connections before the capture."""
        with self._logged():
            if not self._open():
                self._warn("it does not exist yet; it is read as soon as it does")
                return
            self._at = os.fstat(self._descriptor).st_size

    def read(self) -> list[bytes]:
        """The lines that are new since the last call; of much text, only a part."""
        found: list[bytes] = []
        if self.watch:
            for _ in self.watch.changes():
                pass  # what was written before is read now
        with self._logged():
            if self._descriptor >= 0:
                found += self._read_on()
            if not self.is_behind and self._is_replaced() and self._open():
                found += self._read_on()
        return found

    @property
    def is_behind(self) -> bool:
        """Whether there is more to read."""
        with contextlib.suppress(OSError):  # on a network file system
            return self._descriptor >= 0 and os.fstat(self._descriptor).st_size > self._at
        return False

    def close(self) -> None:
        """Close it."""
        if self.watch:
            self.watch.close()
            self.watch = None
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1

    def _is_replaced(self) -> bool:
        """Whether the path leads to another file than the open one."""
        try:
            found = self._path.stat()
        except FileNotFoundError:
            return False  # there may be a new one later
        return self._descriptor < 0 or not os.path.samestat(found, os.fstat(self._descriptor))

    def _open(self) -> bool:
        """Open what the path leads to now, from its beginning; whether there is something.

        Raises:
            OSError: it is no regular file, or cannot be read.
        """
        try:
            handle = os.open(self._path, os.O_PATH | os.O_CLOEXEC)  # opening a device or a FIFO would do something
        except FileNotFoundError:
            return False
        try:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise OSError(0, "not a regular file")
            new = os.open(f"/proc/self/fd/{handle}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        finally:
            os.close(handle)
        self.close()
        self._descriptor, self._at, self._line, self._is_long = new, 0, b"", False
        with contextlib.suppress(OSError):  # without inotify: once a second
            self.watch = Watch(new, MODIFIED)
        return True

    def _read_on(self) -> list[bytes]:
        size = os.fstat(self._descriptor).st_size
        if size < self._at:  # truncated: a program writes it again
            self._at, self._line, self._is_long = 0, b"", False
        if size - self._at > BEHIND_MAX:
            self._warn(f"more than {BEHIND_MAX} bytes were added at once; the oldest are skipped")
            self._at, self._line, self._is_long = size - BEHIND_MAX, b"", True
        part = os.pread(self._descriptor, min(READ_MAX, size - self._at), self._at)
        self._at += len(part)
        whole, newline, rest = (self._line + part).rpartition(b"\n")
        if newline and self._is_long:
            whole, self._is_long = whole.partition(b"\n")[2], False
        self._line = rest
        if len(self._line) > LINE_MAX:
            self._line, self._is_long = b"", True
        lines = list(key_lines(whole))
        self._note(len(lines), sum(not line.startswith(b"#") for line in whole.split(b"\n") if line) - len(lines))
        return lines

    def _note(self, lines: int, other: int) -> None:
        self._lines += lines
        self._other += other
        if self._other and not self._lines:
            self._warn("found lines that are no secrets; expected a key log such as SSLKEYLOGFILE")

    @contextlib.contextmanager
    def _logged(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            self._warn(f"{getattr(error, 'strerror', error)}; expected a key log that can be read")
            self.close()

    def _warn(self, what: str) -> None:
        if what not in self._said:
            self._said.add(what)
            _LOG.warning("secrets: %s: %s", escaped(str(self._path)), what)


class _Line(NamedTuple):
    """A line, its number, and the time when it was read."""

    text: bytes
    number: int
    time_s: float


class KeyLogs:
    """All key logs of a capture; a context manager, in which a thread reads them.

    Args:
        paths: of the key logs; with none, nothing happens.
        clock: seconds.
    """

    def __init__(self, paths: Sequence[str], clock: Callable[[], float] = time.monotonic) -> None:
        self.end = 0
        """The number of the next line."""
        self._logs = [KeyLog(Path(path)) for path in paths]
        self._clock = clock
        self._kept: deque[_Line] = deque()
        self._known: set[bytes] = set()  # lines in `_kept`
        self._size = 0  # bytes of lines in `_kept`
        self._keeping = threading.Lock()  # held for moments only
        self._worker = Worker("key log")
        self._wake = -1  # eventfd
        self._asked = self._answered = 0  # calls of `catch_up`
        self._is_over = False

    @property
    def is_wanted(self) -> bool:
        """Whether there are key logs."""
        return bool(self._logs)

    def __enter__(self) -> Self:
        if self._logs:
            self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            if self._worker.start():
                self._worker.do(self._begin)
                self._worker.wait(PATIENCE_S)  # so that a line right after the start is not taken for an old one
                self._worker.do(self._run)
            else:
                _LOG.warning("secrets: no thread can be started; key logs are not read")
        return self

    def __exit__(self, *_: object) -> None:
        if self._wake < 0:
            return
        self._is_over = True
        os.eventfd_write(self._wake, 1)
        if self._worker.close(PATIENCE_S):  # otherwise it hangs in a file system, and may still use them
            os.close(self._wake)
            for log in self._logs:
                log.close()
        self._wake = -1

    def first(self, max_age_s: float) -> int:
        """The number of the first line that was read at most so many seconds ago."""
        begin_s = self._clock() - max_age_s
        with self._keeping:
            return next((line.number for line in self._kept if line.time_s >= begin_s), self.end)

    def since(self, number: int) -> tuple[bytes, int]:
        """The lines from a number on, and the number of the next one."""
        with self._keeping:
            found = []
            for line in reversed(self._kept):
                if line.number < number:
                    break
                found.append(line.text)
            return b"".join(reversed(found)), self.end

    def catch_up(self) -> None:
        """Wait until all that was written before is read, but not long: the file system can hang."""
        if self._wake >= 0 and self._worker.waiting and not self._is_over:
            self._asked += 1
            asked = self._asked
            os.eventfd_write(self._wake, 1)
            wait_until(lambda: self._answered >= asked, CATCH_UP_S)

    def _begin(self) -> None:
        for log in self._logs:
            log.begin()

    def _run(self) -> None:
        """The thread."""
        wake = self._wake
        while not self._is_over:
            asked = self._asked
            for log in self._logs:
                self._keep(log.read())
            if any(log.is_behind for log in self._logs):
                time.sleep(_PAUSE_S)
                continue
            self._answered = asked
            poll = select.poll()
            poll.register(wake, select.POLLIN)
            for log in self._logs:
                if log.watch:
                    poll.register(log.watch, select.POLLIN)
            # A program that writes all the time does not keep the thread busy.
            if not self._is_over and wake not in dict(poll.poll(_EVERY_S * 1000)):
                time.sleep(_PAUSE_S)
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(wake)

    def _keep(self, lines: Sequence[bytes]) -> None:
        with self._keeping:
            now = self._clock()
            for text in lines:
                if text in self._known:
                    continue
                self._kept.append(_Line(text, self.end, now))
                self._known.add(text)
                self._size += len(text)
                self.end += 1
            while self._size > KEPT_MAX:
                oldest = self._kept.popleft()
                self._known.discard(oldest.text)
                self._size -= len(oldest.text)
