"""Writes to a pipe, a terminal or whatever stdout is; its reader can be slow or stop reading.

In: complete blocks, or lines of text. Out: their bytes, in order.

The rules: a thread writes, so a reader that does not read never stops the event loop: from
QUEUE_MAX on, packets wait in the shared memory. At the end the reader has STALL_S for each next
byte, and END_S for all: what it has not taken by then is counted as dropped, packet by packet.

Source: pipe(7), O_NONBLOCK in open(2); poll(2).
"""

from __future__ import annotations

import errno
import os
import select
import stat
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from skbcapd.errors import FileError
from skbcapd.output.block_writer import QUEUE_MAX
from skbcapd.output.blocks import count_packets as packets_in
from skbcapd.output.blocks import whole
from skbcapd.worker import Jobs, Worker, wait_until

STALL_S = 0.4
END_S = 2.0
_CHUNK = 1 << 18  # small writes are collected to chunks of this size
_PIPE_BUF = 4096  # poll guarantees that a pipe takes so many bytes
_POLL_S = 0.05
_GONE = {errno.EPIPE, errno.ETIMEDOUT}  # the reader has ended, or does not read

Count: TypeAlias = Callable[[bytes, int], int]
"""The number of packets in complete blocks, or in lines, that do not end in the first so many bytes."""


def count_packets(blocks: bytes, written: int) -> int:
    """The number of packets that do not end in the first `written` bytes of complete blocks."""
    view = memoryview(blocks)
    return packets_in(view[whole(view[:written]) :])


def count_lines(text: bytes, written: int) -> int:
    """The number of lines that do not end in the first `written` bytes."""
    return text.count(b"\n", written)


class PipeSink:
    """Takes complete blocks or lines. After an error it raises it, and counts the packets of all that follows.

    Args:
        descriptor: where to write.
        count: counts the packets that were not written.
        jobs: runs the writes; they can wait for the reader.
    """

    def __init__(self, descriptor: int, count: Count = count_packets, jobs: Jobs | None = None) -> None:
        self.accepted = self.completed = 0
        self.error: OSError | None = None
        self._count, self._jobs = count, jobs or Worker("writer")
        self._pipe = _Pipe(descriptor)
        self._chunk = bytearray()
        self._waiting: deque[tuple[int, bytes]] = deque()  # chunks that are not written yet, and their positions
        self._dropped = 0
        self._abandoned: int | None = None

    @property
    def lost(self) -> int:
        """Packets that were not written."""
        return self._dropped if self._abandoned is None else self._abandoned

    @property
    def is_busy(self) -> bool:
        """See Output."""
        return self.accepted - self.completed > QUEUE_MAX

    def note_memory_pressure(self) -> None:
        """Does nothing: only the reader can be faster."""

    def write(self, data: bytes | memoryview) -> None:
        """Write one or more complete blocks, or lines."""
        self._chunk += data
        self.accepted += len(data)
        if len(self._chunk) >= _CHUNK:
            self._put()
        self._raise()

    def flush(self) -> None:
        """Write the buffered bytes."""
        self._put()
        self._raise()

    def do(self, job: Callable[[], None]) -> None:
        """Do something in the thread that writes."""
        self._jobs.do(job)

    def close(self) -> None:
        """Wait for the reader, but not longer than the module says; count what it has not taken."""
        self._put()
        begun = last = time.monotonic()
        before = -1
        while self.completed < self.accepted and (now := time.monotonic()) < begun + END_S:
            if self._pipe.written != before:
                before, last = self._pipe.written, now
            elif now >= last + STALL_S:
                break
            time.sleep(0.005)
        self._pipe.is_given_up = True
        wait_until(lambda: self.completed >= self.accepted, 3 * _POLL_S)
        # If the thread is in a write that never ends, it does not count these.
        waiting, written = list(self._waiting), self._pipe.written
        if not waiting:
            self._pipe.close()
        else:
            self._abandoned = self._dropped + sum(
                self._count(chunk, max(0, written - start)) for start, chunk in waiting
            )

    def _put(self) -> None:
        if self._chunk:
            chunk, self._chunk = bytes(self._chunk), bytearray()
            start = self.accepted - len(chunk)
            self._waiting.append((start, chunk))
            self._jobs.do(lambda: self._write(start, chunk))

    def _write(self, start: int, chunk: bytes) -> None:
        """Write a chunk, or count its packets; called by the thread."""
        try:
            if self.error is None:
                self._pipe.write(chunk)
        except OSError as error:
            self.error = error
        if self.error is not None:
            self._dropped += self._count(chunk, max(0, self._pipe.written - start))
        self._waiting.popleft()
        self.completed += len(chunk)

    def _raise(self) -> None:
        if self.error is not None:
            raise self.error


class _Pipe:
    """A descriptor that is written without waiting for long, if the kind of file permits this.

    Args:
        descriptor: it is not closed.
    """

    def __init__(self, descriptor: int) -> None:
        self.written = 0
        self.is_given_up = False  # set by others: write nothing more
        kind = os.fstat(descriptor).st_mode
        self._given = self._descriptor = descriptor
        self._most = 1 << 20 if stat.S_ISREG(kind) else _PIPE_BUF
        if stat.S_ISFIFO(kind):
            try:
                # An open file of its own: O_NONBLOCK does not change the one that is shared with others.
                how = os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC
                self._descriptor, self._most = os.open(f"/proc/self/fd/{descriptor}", how), 1 << 20
            except OSError:
                pass  # without /proc, or the reader has ended
        self._poll = select.poll()
        self._poll.register(self._descriptor, select.POLLOUT)

    def close(self) -> None:
        """Close what was opened here; nothing is written any more."""
        if self._descriptor != self._given:
            os.close(self._descriptor)
            self._descriptor = self._given

    def write(self, data: bytes) -> None:
        """Write all of the data.

        Raises:
            OSError: a write has failed; ETIMEDOUT: it was given up.
        """
        left = memoryview(data)
        while left:
            if self.is_given_up:
                raise OSError(errno.ETIMEDOUT, "the reader does not read")
            if not self._poll.poll(_POLL_S * 1000):
                continue
            try:
                size = os.write(self._descriptor, left[: self._most])
            except BlockingIOError:
                continue
            self.written += size
            left = left[size:]


class PipeTarget:
    """Replaces a capture file if packets are written to a pipe or a terminal.

    Args:
        descriptor: where to write.
        count: counts the packets that were not written.
    """

    def __init__(self, descriptor: int = 1, count: Count = count_packets) -> None:
        self.path = Path("standard output")
        self.descriptor = descriptor
        self.stream = PipeSink(descriptor, count)

    def reserve(self, _rest: Callable[[], bytes]) -> None:
        """Nothing: what was written cannot be changed."""

    def close(self) -> None:
        """Write the buffered bytes; a reader that has ended, or does not read, wants no more of them.

        Raises:
            FileError: a write has failed.
        """
        self.stream.close()
        error = self.stream.error
        if error is not None and error.errno not in _GONE:
            raise FileError(f"{self.path}: {error.strerror} while finishing it") from None
