"""TLS secrets in capture files: where the lines of key logs are written.

In: lines of key logs (`key_log`). Out: the same lines in each capture file.

The rules: secrets must stand before the packets of their handshake, otherwise Wireshark does not use them for TLS 1.3.
So each file begins with a block that is reserved for them (`pcapng.secrets`). Lines are written over its comments, in
place, while the file is written: its length and all other blocks stay as they are, so the file is complete at any time,
also if the process is killed then. What does not fit, and what is written to a pipe, is a block of its own, before the
packets that are drained next. Mostly the packets of its handshake are among them.

A file has the lines that were read while it was written, in the OVERLAP_S before it, and up to the moment in which it
is finished: packets wait in the shared memory, so a line can be read before its handshake is drained, or after.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from typing import Protocol

from skbcapd.output.key_log import KeyLogs
from skbcapd.pcapng import secrets

_LOG = logging.getLogger(__name__)
OVERLAP_S = 10.0
_CLOSE_S = 2.0  # for a write that hangs


class ReservedBlock:
    """The block at the beginning of a file into which lines are written.

    Args:
        descriptor: of the file, open for writing until `close`.
        at: offset of the block in the file.
        rest: returns the lines that are new, at the end of the file.
        name: of the file, for messages.
    """

    def __init__(self, descriptor: int, at: int, rest: Callable[[], bytes], name: str) -> None:
        self._descriptor, self._at, self._rest, self._name = descriptor, at, rest, name
        self._text = b""  # replaced as a whole: threads read it
        self._written = 0
        self._writing = threading.Lock()
        self._is_over = False

    def add(self, lines: bytes) -> bytes:
        """Add lines; `write` writes them. Returns those that do not fit."""
        free = secrets.RESERVED_FOR_LINES - len(self._text)
        end = len(lines) if len(lines) <= free else lines.rfind(b"\n", 0, free) + 1
        self._text += secrets.filled(lines[:end])
        return lines[end:]

    def write(self) -> None:
        """Write what was added; a thread does it that may wait for the disk."""
        with self._writing:
            self._write()

    def close(self) -> None:
        """The file is complete: write the last lines. Nothing is written later."""
        left = self.add(self._rest())
        if left:
            _LOG.warning("%s: %d TLS secrets are not in the file: too many", self._name, left.count(b"\n"))
        if self._writing.acquire(timeout=_CLOSE_S):
            self._write()
            self._is_over = True
            self._writing.release()

    def _write(self) -> None:
        text, begin = self._text, self._written
        if self._is_over or begin == len(text):
            return
        self._written = len(text)
        try:
            if os.fstat(self._descriptor).st_size < self._at + secrets.RESERVED:
                return  # the disk was full before the block was written: the file was cut before it
            while begin < len(text):
                begin += os.pwrite(self._descriptor, text[begin:], self._at + secrets.RESERVED_START + begin)
        except OSError as error:
            _LOG.warning("%s: %s; TLS secrets are missing in it", self._name, error.strerror)


class _Stream(Protocol):
    """Where the blocks of a file or pipe are written."""

    def write(self, data: bytes, /) -> object:
        """Write complete blocks."""

    def do(self, job: Callable[[], None], /) -> object:
        """Start a job that may wait for the disk, after the blocks before."""


class _File(Protocol):
    """A file or a pipe."""

    @property
    def stream(self) -> _Stream:
        """Takes its blocks."""
        ...

    def reserve(self, rest: Callable[[], bytes], /) -> ReservedBlock | None:
        """Reserve a block; None: it would not be possible to write into it later."""
        ...


class Secrets:
    """The lines of key logs for one file or pipe.

    Args:
        logs: the key logs.
        file: it has a section header, and nothing else.
        since: the number of the first line.
    """

    def __init__(self, logs: KeyLogs, file: _File, since: int) -> None:
        self._logs, self._next = logs, since
        self._stream = file.stream
        self._reserved = file.reserve(self._rest)

    def put(self) -> None:
        """Write the lines that are new, before the next packets."""
        if self._next == self._logs.end:
            return
        lines, self._next = self._logs.since(self._next)
        if self._reserved:
            lines = self._reserved.add(lines)
            self._stream.do(self._reserved.write)
        if lines:
            self._stream.write(secrets.block(lines))

    def _rest(self) -> bytes:
        self._logs.catch_up()
        lines, self._next = self._logs.since(self._next)
        return lines


def secrets_for(file: _File, logs: KeyLogs | None, max_age_s: float) -> Callable[[], Secrets] | None:
    """Begins the secrets of a file, after its section header; None if there are none.

    Args:
        file: the file.
        logs: the key logs.
        max_age_s: age of the oldest lines, in seconds.
    """
    if logs is None or not logs.is_wanted:
        return None
    return lambda: Secrets(logs, file, logs.first(max_age_s))
