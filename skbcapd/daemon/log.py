"""Logging: to the systemd journal with fields, otherwise to stderr as plain lines. Only this module
sets it up.

In: records of `logging` below the logger `skbcapd`; `extra=Event.X.extra(...)` gives the kind of a
record. Out: one journal entry with MESSAGE_ID, PRIORITY and a SKBCAPD_ field for each value, or one
line.

The rules not to break:

- The log stays short: at most BURST lines of each kind are written in WINDOW_S. The others are
  counted, and the count is logged. Replies to actions of an administrator are always written.
- Log lines cannot harm a terminal: the formatter escapes them, because others choose names of
  interfaces and files.
- A line that cannot be written is dropped and counted; it never stops the capture. The journal is
  waited for no longer than stderr is. The library of systemd would wait without a limit.

Source: systemd.journal-fields(7), sd_journal_stream_fd(3) for JOURNAL_STREAM; "Native Journal Protocol"
(https://systemd.io/JOURNAL_NATIVE_PROTOCOL/).
"""

from __future__ import annotations

import importlib.util
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, TextIO

from skbcapd import standard_streams
from skbcapd.events import Event
from skbcapd.text_safety import escaped

WINDOW_S = 30.0
BURST = 20

_LOGGER = logging.getLogger("skbcapd")
_KINDS = {logging.ERROR: Event.FAILED, logging.WARNING: Event.WARNING}  # for records without a kind
_ALWAYS = {Event.RELOADED.value, Event.NOT_RELOADED.value, Event.FAILED.value}

Send = Callable[[Mapping[str, str]], None]
"""Sends the fields of a journal entry."""


class Log:
    """The log of the process.

    Args:
        level: minimum severity that is written; one of settings.Level.
        send: to the journal; None: write lines to stderr.
        clock: seconds.
    """

    def __init__(
        self, level: str = "info", send: Send | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.is_journal = send is not None
        """Whether the log is the journal; then no status line is printed."""
        self._counter = _Counter()
        self._handler = _journal_handler(send, self._counter) if send else _StderrHandler(self._counter)
        self._handler.setFormatter(EscapingFormatter("%(message)s" if send else "skbcapd: %(message)s"))
        self._bursts = BurstFilter(self._handler.emit, clock)
        self._handler.addFilter(self._bursts)
        self.level = level

    @property
    def level(self) -> str:
        """Minimum severity that is logged."""
        return self._level

    @level.setter
    def level(self, level: str) -> None:
        self._level = level
        self._handler.setLevel(level.upper())

    @property
    def dropped(self) -> int:
        """Number of lines that could not be written."""
        return self._counter.dropped + standard_streams.dropped()

    def install(self) -> None:
        """Become the only handler of the logger `skbcapd`."""
        for handler in list(_LOGGER.handlers):
            _LOGGER.removeHandler(handler)
        _LOGGER.addHandler(self._handler)
        _LOGGER.setLevel(logging.DEBUG)  # the handler filters by level

    def tick(self) -> None:
        """Called from time to time: log how many lines were suppressed, when their window is over."""
        self._bursts.end_windows()

    def close(self) -> None:
        """Log how many lines were suppressed."""
        self._bursts.end_windows(everything=True)


class EscapingFormatter(logging.Formatter):
    """Escapes messages. The last message of a program that fails keeps its line breaks."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  the name is logging's
        """The message, escaped."""
        keeps_lines = getattr(record, "MESSAGE_ID", "") == Event.FAILED.value
        lines = record.message.split("\n") if keeps_lines else [record.message]
        record.message = "\n".join(escaped(line) for line in lines)
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:  # noqa: N802
        """A traceback, with each line escaped."""
        return "\n".join(escaped(line) for line in super().formatException(ei).split("\n"))


class BurstFilter(logging.Filter):
    """Passes at most BURST records of each kind in WINDOW_S.

    Args:
        emit: logs the record with the number of suppressed records.
        clock: seconds.
    """

    def __init__(self, emit: Callable[[logging.LogRecord], None], clock: Callable[[], float]) -> None:
        super().__init__()
        self._emit, self._clock = emit, clock
        self._lock = threading.RLock()
        # by kind: start of the window, number of records in it, level
        self._windows: dict[str, tuple[float, int, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is logged."""
        kind = _kind(record)
        with self._lock:
            self.end_windows()
            if kind in _ALWAYS and hasattr(record, "MESSAGE_ID"):
                return True
            start, count, _ = self._windows.get(kind, (self._clock(), 0, 0))
            self._windows[kind] = start, count + 1, record.levelno
        return count < BURST

    def end_windows(self, *, everything: bool = False) -> None:
        """Log how many records were suppressed in windows that are over."""
        with self._lock:
            now = self._clock()
            for kind, (start, count, level) in list(self._windows.items()):
                if everything or now - start >= WINDOW_S:
                    del self._windows[kind]
                    if count > BURST:
                        self._emit(_summary(kind, count - BURST, level))


class _Counter:
    """Number of records that could not be written."""

    dropped = 0


class _StderrHandler(logging.StreamHandler[TextIO]):
    """Writes lines to the current stderr."""

    def __init__(self, counter: _Counter) -> None:
        logging.Handler.__init__(self)
        self._counter = counter

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stderr

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: ARG002, N802
        self._counter.dropped += 1


def _journal_handler(send: Send, counter: _Counter) -> logging.Handler:
    from systemd.journal import JournalHandler  # noqa: PLC0415  of use to a service only

    class Handler(JournalHandler):  # type: ignore[misc]  # Debian ships it without types
        def handleError(self, record: logging.LogRecord) -> None:  # noqa: ARG002, N802
            counter.dropped += 1

    def send_wanted(message: str, /, **fields: object) -> None:
        wanted = {
            name: escaped(str(value))
            for name, value in fields.items()
            if name in {"MESSAGE_ID", "PRIORITY", "SYSLOG_IDENTIFIER"} or name.startswith("SKBCAPD_")
        }
        send({"MESSAGE": message, "MESSAGE_ID": _default_kind(int(str(fields["levelno"])))} | wanted)

    handler: logging.Handler = Handler(sender_function=send_wanted, SYSLOG_IDENTIFIER="skbcapd")
    return handler


def _kind(record: logging.LogRecord) -> str:
    """The MESSAGE_ID of a record, or the one of its level."""
    return str(getattr(record, "MESSAGE_ID", _default_kind(record.levelno)))


def _default_kind(level: int) -> str:
    return _KINDS.get(level, Event.NOTICE).value


def _summary(kind: str, left_out: int, level: int) -> logging.LogRecord:
    text = f"{left_out} more messages of this kind were suppressed"
    record = logging.LogRecord(__name__, level, __file__, 0, text, (), None)
    record.MESSAGE_ID, record.SKBCAPD_SUPPRESSED = kind, str(left_out)
    return record


def journal(environment: Mapping[str, str] = os.environ, descriptor: int = 2) -> Send | None:
    """The function that sends to the journal, if stderr is connected to it; otherwise None.

    Args:
        environment: the variables of this process.
        descriptor: of stderr.
    """
    try:
        found = os.fstat(descriptor)
    except OSError:  # closed
        return None
    if environment.get("JOURNAL_STREAM") != f"{found.st_dev}:{found.st_ino}":
        return None
    return None if importlib.util.find_spec("systemd") is None else JournalSocket().send


class JournalSocket:
    """The journal's socket.

    Args:
        address: of the socket.
    """

    def __init__(self, address: str = "/run/systemd/journal/socket") -> None:
        self._address = address
        self._is_stalled = False

    def send(self, entry: Mapping[str, str]) -> None:
        """Send an entry.

        Args:
            entry: name to value of each field; names are upper case.

        Raises:
            OSError: it is not taken, or not soon.
        """
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.settimeout(0.0 if self._is_stalled else standard_streams.PATIENCE_S)
            self._is_stalled = True
            sock.sendto(b"".join(_field(*each) for each in entry.items()), self._address)
            self._is_stalled = False


def _field(name: str, value: str) -> bytes:
    """A field in the protocol of the journal; lines in a value need its length."""
    data = value.encode(errors="backslashreplace")
    if b"\n" in data:
        return name.encode() + b"\n" + len(data).to_bytes(8, "little") + data + b"\n"
    return name.encode() + b"=" + data + b"\n"


LOG = Log(send=journal())  # one for the process, as stderr is
