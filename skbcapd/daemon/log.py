"""What the service says: to the systemd journal by fields, else to stderr as plain lines.

In: an event, a sentence, values. Out: one journal entry with MESSAGE_ID, PRIORITY and a SKBCAPD_ field for each value,
or one line.

The rule: whatever happens, and however often, the log stays short and harmless. Of each event at most BURST lines in
WINDOW_S are written, the others are counted and the count is said, but for answers to what an administrator asks; what
is not printable is written as an escape, because names of devices and files are other people's.

Python's `logging` is not used: its logger tree, handlers and formatters are global state, and the three things needed
here (fields, limit, escapes) would each be a class of our own hung into it.

Source: systemd.journal-fields(7), sd_journal_stream_fd(3) for JOURNAL_STREAM, sd-daemon(3) for the priorities.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping
from enum import Enum
from typing import TextIO

from skbcapd.text_safety import escaped

WINDOW_S = 30.0
BURST = 20

_PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3}


class Event(Enum):
    """A kind of message: its level, and its MESSAGE_ID, which never changes (journalctl MESSAGE_ID=...)."""

    STARTED = ("info", "df8147c4c8f245a4a420a0cc620a7e28")
    STOPPED = ("info", "9bc90034b26f494e8dcfd4ff32f0c584")
    DROPPED = ("warning", "4e1428ab077f4c12a9704ae347954c3a")
    RELOADED = ("info", "0d8a9b1f7c5e4f0e9a6b35c1b1f4a7d2")
    NOT_RELOADED = ("warning", "5b7e2f64a3f84f0b8c1d90e7d63a2c18")
    WARNING = ("warning", "a1b067a4075a4faab2e7dae46c3fa986")
    FAILED = ("error", "c67fa5e5dc9b4538849724a2c1ebc9c1")

    @property
    def level(self) -> str:
        """Of `log.level`."""
        return self.value[0]

    @property
    def message_id(self) -> str:
        """128 bits, hexadecimal."""
        return self.value[1]


_ANSWERS = {Event.RELOADED, Event.NOT_RELOADED}


class Log:
    """Takes messages.

    Args:
        level: the least grave one that is written; one of settings.Level.
        send: takes the fields of a journal entry; None: there is no journal, lines go to stderr.
        clock: seconds.
    """

    def __init__(
        self,
        level: str = "info",
        send: Callable[[Mapping[str, str]], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.level = level
        self._send = send
        self._clock = clock
        self._windows: dict[Event, tuple[float, int]] = {}  # when it began, how often since

    @property
    def is_journal(self) -> bool:
        """Whether somebody keeps fields; a line that is repeated for a reader at a terminal is not wanted then."""
        return self._send is not None

    def write(self, event: Event, text: str, **fields: object) -> None:
        """One message.

        Args:
            event: its kind.
            text: a sentence for people.
            fields: values by name, without the prefix SKBCAPD_; lower case here, upper case there.
        """
        if _PRIORITIES[event.level] > _PRIORITIES[self.level]:
            return
        self.tick()
        if event in _ANSWERS:
            self._put(event, text, fields)
            return
        start, count = self._windows.get(event, (self._clock(), 0))
        self._windows[event] = start, count + 1
        if count < BURST:
            self._put(event, text, fields)

    def fail(self, text: str) -> None:
        """The last message of a program that fails; its lines stay lines, and all are said."""
        self._put(Event.FAILED, text, {})

    def tick(self) -> None:
        """Say what was left out, once its window is over; called once a second."""
        now = self._clock()
        for event, (start, count) in list(self._windows.items()):
            if now - start >= WINDOW_S:
                self._end_window(event, count)

    def close(self) -> None:
        """Say what was left out."""
        for event, (_, count) in list(self._windows.items()):
            self._end_window(event, count)

    def _end_window(self, event: Event, count: int) -> None:
        del self._windows[event]
        if count > BURST:
            left_out = count - BURST
            self._put(event, f"{left_out} more messages of this kind were left out", {"suppressed": left_out})

    def _put(self, event: Event, text: str, fields: Mapping[str, object]) -> None:
        lines = "\n".join(escaped(line) for line in text.split("\n")) if event is Event.FAILED else escaped(text)
        if self._send is None:
            print(f"skbcapd: {lines}", file=sys.stderr, flush=True)
            return
        entry = {
            "MESSAGE": lines,
            "MESSAGE_ID": event.message_id,
            "PRIORITY": str(_PRIORITIES[event.level]),
            "SYSLOG_IDENTIFIER": "skbcapd",
        }
        self._send(entry | {f"SKBCAPD_{name.upper()}": escaped(str(value)) for name, value in fields.items()})


def journal(
    environment: Mapping[str, str] = os.environ, stderr: TextIO | None = None
) -> Callable[[Mapping[str, str]], None] | None:
    """What sends to the journal, if stderr is a stream to it; else None.

    Args:
        environment: the variables of this process.
        stderr: the present one unless given.
    """
    try:
        found = os.fstat((stderr or sys.stderr).fileno())
    except (OSError, ValueError):  # closed
        return None
    if environment.get("JOURNAL_STREAM") != f"{found.st_dev}:{found.st_ino}":
        return None
    try:
        from systemd.journal import sendv  # noqa: PLC0415  of use to a service only
    except ImportError:
        return None

    def send(entry: Mapping[str, str]) -> None:
        sendv(*(f"{name}={value}" for name, value in entry.items()))

    return send
