"""The intervals that a running daemon sends to `skbcapd top`; see `pcapng.live` for the stream.

In: a connection to the control socket. Out: intervals, each a capture file in memory, and its mark.

The rules not to break: a thread reads the connection, so that the daemon leaves out nothing while an
interval is added up; it waits while two intervals are not added up yet, and then the daemon leaves
packets out. The process at the other end is not trusted: lengths are checked, memory is bounded.
"""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
from pathlib import Path
from typing import IO, NamedTuple, Self

from skbcapd.child import memory_file
from skbcapd.errors import FileError
from skbcapd.pcapng.live import BLOCKS, HEAD, INTERVAL_MAX, MARK, MARK_SIZE, Mark

_DESCRIBED_MAX = 64 << 20  # bytes of descriptions of interfaces in an interval; as `pcapng.reader`
_PART = 1 << 18
_POLL_S = 0.2


class Interval(NamedTuple):
    """Packets of about a second.

    Args:
        file: a capture file in memory; empty without packets.
        mark: its end.
    """

    file: IO[bytes]
    mark: Mark

    @property
    def path(self) -> Path:
        """A path to the file, while it is open."""
        return Path(f"/proc/self/fd/{self.file.fileno()}")

    @property
    def is_empty(self) -> bool:
        """Whether it has no packets."""
        return not self.file.seek(0, 2)


class Intervals:
    """Receives intervals in a thread; a context manager.

    Args:
        sock: a connection, after the line of acceptance; closed at the end.
        name: of the daemon, for errors.
    """

    def __init__(self, sock: socket.socket, name: str) -> None:
        self._socket, self._name = sock, name
        self._received: queue.Queue[Interval | FileError] = queue.Queue(1)
        self._has_ended = False
        sock.settimeout(None)
        self._thread = threading.Thread(target=self._receive, daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._has_ended = True
        with contextlib.suppress(OSError):  # the daemon has ended
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()
        with contextlib.suppress(queue.Empty):
            if isinstance(unread := self._received.get_nowait(), Interval):
                unread.file.close()

    def next(self, timeout_s: float | None = None) -> Interval | None:
        """The next interval, which the caller closes; None: there is none within this time.

        Raises:
            FileError: the daemon has ended, or sends something else.
        """
        try:
            found = self._received.get(timeout=timeout_s)
        except queue.Empty:
            return None
        if isinstance(found, FileError):
            raise found
        return found

    def _receive(self) -> None:
        try:
            while not self._has_ended:
                with contextlib.ExitStack() as stack:
                    file = stack.enter_context(memory_file("interval"))
                    if self._put(Interval(file, self._fill(file))):
                        stack.pop_all()
        except (OSError, EOFError) as error:
            why = f"{self._name}: {error}; expected a daemon that goes on"
            self._put(FileError(why, "systemctl status skbcapd; journalctl -u skbcapd"))
        except FileError as error:
            self._put(error)

    def _put(self, item: Interval | FileError) -> bool:
        """Pass on; returns False if nobody waits any more."""
        while not self._has_ended:
            with contextlib.suppress(queue.Full):
                self._received.put(item, timeout=_POLL_S)
                return True
        return False

    def _fill(self, file: IO[bytes]) -> Mark:
        """Write the blocks of an interval to a file.

        Raises:
            EOFError: the daemon has ended.
            FileError: it sends something else.
        """
        left = INTERVAL_MAX + _DESCRIBED_MAX
        while True:
            kind, length = HEAD.unpack(self._read(HEAD.size))
            if kind == MARK and length == MARK_SIZE:
                return Mark.of(self._read(MARK_SIZE))
            if kind != BLOCKS or length > left:
                raise FileError(f"{self._name}: message {kind} of {length} bytes; expected a daemon of this version")
            left -= length
            while length:
                part = self._read(min(length, _PART))
                file.write(part)
                length -= len(part)

    def _read(self, size: int) -> bytes:
        parts = []
        while size:
            part = self._socket.recv(size)
            if not part:
                raise EOFError("the connection was closed")
            parts.append(part)
            size -= len(part)
        return b"".join(parts)
