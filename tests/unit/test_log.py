"""The log: fields for the journal or lines on stderr, a limited number of them, all escaped."""

from __future__ import annotations

import io
import logging
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import pytest

from skbcapd.daemon.log import BURST, LOG, WINDOW_S, JournalSocket, Log, journal
from skbcapd.events import Event

LOGGER = logging.getLogger("skbcapd.tests")


@pytest.fixture(autouse=True)
def _process_log() -> Iterator[None]:
    """Restore the log of the process."""
    yield
    LOG.install()


class Journal:
    """Records entries, and provides the time."""

    def __init__(self) -> None:
        self.entries: list[dict[str, str]] = []
        self.now = 0.0

    def send(self, entry: Mapping[str, str]) -> None:
        """Store one entry."""
        self.entries.append(dict(entry))

    def clock(self) -> float:
        """Seconds."""
        return self.now

    def log(self, level: str = "info") -> Log:
        """A log that writes here."""
        log = Log(level, self.send, self.clock)
        log.install()
        return log


def fail(text: str) -> None:
    """The last message of a program."""
    LOGGER.error("%s", text, extra=Event.FAILED.extra())


def test_an_entry_has_fields() -> None:
    """The journal gets the message, the kind of event, its level, and each value in its own field."""
    journal_ = Journal()
    journal_.log()
    LOGGER.warning("%d packets dropped", 7, extra=Event.DROPPED.extra(file=Path("/a"), dropped=7))
    assert journal_.entries == [
        {
            "MESSAGE": "7 packets dropped",
            "MESSAGE_ID": Event.DROPPED.value,
            "PRIORITY": "4",
            "SYSLOG_IDENTIFIER": "skbcapd",
            "SKBCAPD_FILE": "/a",
            "SKBCAPD_DROPPED": "7",
        }
    ]


@pytest.mark.parametrize(
    ("level", "event", "priority"),
    [("error", Event.FAILED, 3), ("warning", Event.WARNING, 4), ("info", Event.NOTICE, 6), ("debug", Event.NOTICE, 7)],
)
def test_every_entry_has_a_kind(level: str, event: Event, priority: int) -> None:
    """A record without a kind gets that of its level."""
    journal_ = Journal()
    journal_.log("debug")
    getattr(LOGGER, level)("x")
    assert [(one["MESSAGE_ID"], one["PRIORITY"]) for one in journal_.entries] == [(event.value, str(priority))]


def test_without_a_journal_there_are_lines(capsys: pytest.CaptureFixture[str]) -> None:
    """A line on stderr has only the message."""
    Log().install()
    LOGGER.warning("7 packets dropped", extra=Event.DROPPED.extra(dropped=7))
    assert capsys.readouterr() == ("", "skbcapd: 7 packets dropped\n")


@pytest.mark.parametrize(("level", "events"), [("debug", 5), ("info", 4), ("warning", 2), ("error", 0)])
def test_the_level(level: str, events: int) -> None:
    """Messages below log.level are not written; the last message of a failing program always is."""
    journal_ = Journal()
    log = journal_.log("debug")
    log.level = level
    for severity in (logging.INFO, logging.INFO, logging.WARNING, logging.WARNING, logging.DEBUG):
        LOGGER.log(severity, "x")
    assert len(journal_.entries) == events
    fail("y")
    assert len(journal_.entries) == events + 1


def test_many_records_become_few_lines() -> None:
    """Of one kind, BURST lines are written in a window, and then the number of suppressed ones;
    other kinds are not affected.
    """
    journal_ = Journal()
    log = journal_.log()
    for number in range(BURST + 1009):
        LOGGER.warning("%d", number)
    LOGGER.info("other", extra=Event.STARTED.extra())
    assert [entry["MESSAGE"] for entry in journal_.entries] == [*map(str, range(BURST)), "other"]

    journal_.now += WINDOW_S - 1
    log.tick()
    assert len(journal_.entries) == BURST + 1
    journal_.now += 1
    log.tick()
    log.tick()
    assert journal_.entries[BURST + 1 :] == [
        {
            "MESSAGE": "1009 more messages of this kind were suppressed",
            "MESSAGE_ID": Event.WARNING.value,
            "PRIORITY": "4",
            "SYSLOG_IDENTIFIER": "skbcapd",
            "SKBCAPD_SUPPRESSED": "1009",
        }
    ]
    LOGGER.warning("again")
    log.close()
    assert journal_.entries[-1]["MESSAGE"] == "again"


def test_replies_are_always_written() -> None:
    """Replies to actions of an administrator are always written."""
    journal_ = Journal()
    journal_.log()
    for _ in range(BURST + 3):
        LOGGER.info("settings reloaded", extra=Event.RELOADED.extra())
        LOGGER.warning("not reloaded", extra=Event.NOT_RELOADED.extra())
    assert len(journal_.entries) == 2 * (BURST + 3)


def test_the_end_reports_suppressed_lines() -> None:
    """A log that is closed within a window writes the count."""
    journal_ = Journal()
    log = journal_.log()
    for _ in range(BURST + 3):
        LOGGER.warning("x")
    log.close()
    assert journal_.entries[-1]["SKBCAPD_SUPPRESSED"] == "3"


def test_hostile_values_are_escaped_too() -> None:
    """Fields are escaped like the message; the last message keeps its line breaks."""
    journal_ = Journal()
    journal_.log()
    LOGGER.warning("\n", extra=Event.WARNING.extra(file="\x1b\n"))
    LOGGER.error("a\nb")
    fail("a\x1b\n  (hint) b")
    assert [(entry["MESSAGE"], entry.get("SKBCAPD_FILE")) for entry in journal_.entries] == [
        ("\\n", "\\x1b\\n"),
        ("a\\nb", None),
        ("a\\x1b\n  (hint) b", None),
    ]


class Broken(io.StringIO):
    """A stderr that fails."""

    def write(self, _text: str) -> int:
        """Fail."""
        raise OSError(28, os.strerror(28))


@pytest.mark.parametrize("stream", [Broken(), None])
def test_a_line_that_cannot_be_written_is_counted(stream: io.StringIO | None) -> None:
    """On a full disk, or without stderr, lines are dropped and counted, and nothing fails."""
    log, before = Log(), sys.stderr
    log.install()
    sys.stderr = stream
    try:
        for _ in range(7):
            LOGGER.warning("x")
        assert log.dropped == 7
    finally:
        sys.stderr = before


def test_a_journal_that_fails_is_counted() -> None:
    """An entry that the journal rejects is dropped and counted."""

    def send(_entry: Mapping[str, str]) -> None:
        raise ConnectionRefusedError

    log = Log(send=send)
    log.install()
    for _ in range(5):
        LOGGER.warning("x")
    assert log.dropped == 5


def test_each_kind_has_an_id_of_its_own() -> None:
    """A MESSAGE_ID has 128 bits, and belongs to one kind."""
    ids = [event.value for event in Event]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch("[0-9a-f]{32}", one) for one in ids)


def test_the_journal_is_found_by_its_stream() -> None:
    """The log is the journal only if stderr is the stream that systemd names."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        descriptor = theirs.fileno()
        found = os.fstat(descriptor)
        stream = f"{found.st_dev}:{found.st_ino}"
        assert journal({"JOURNAL_STREAM": stream}, descriptor) is not None
        assert journal({"JOURNAL_STREAM": "1:1"}, descriptor) is None
        assert journal({}, descriptor) is None
    assert journal({"JOURNAL_STREAM": stream}, descriptor) is None


def test_an_entry_reaches_the_journal(tmp_path: Path) -> None:
    """Fields are sent in the protocol of the journal; a value with several lines has its length
    before it.
    """
    address = str(tmp_path / "journal")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as daemon:
        daemon.bind(address)
        JournalSocket(address).send({"MESSAGE": "a = b", "SKBCAPD_FILE": "one\ntwo \udcff"})
        assert daemon.recv(1000) == b"MESSAGE=a = b\nSKBCAPD_FILE\n\x0e\0\0\0\0\0\0\0one\ntwo \\udcff\n"


def test_a_journal_that_does_not_read_is_not_waited_for(tmp_path: Path) -> None:
    """Lines that a stopped journal does not accept are counted, within a second; later lines are
    written.
    """
    address = str(tmp_path / "journal")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as daemon:
        daemon.bind(address)
        log = Log(send=JournalSocket(address).send, clock=lambda: 0.0)
        log.install()
        begun = time.monotonic()
        for _ in range(1009):
            LOGGER.error("x", extra=Event.FAILED.extra())
        assert time.monotonic() - begun < 5.0
        daemon.setblocking(False)  # noqa: FBT003  the name of the method says what is false
        taken = 0
        with suppress(BlockingIOError):
            while daemon.recv(1 << 16):
                taken += 1
        assert taken + log.dropped == 1009
        assert log.dropped > 0
        LOGGER.error("again", extra=Event.FAILED.extra())
        assert b"MESSAGE=again\n" in daemon.recv(1 << 16)


def test_a_program_without_stderr() -> None:
    """With stderr closed the command still starts."""
    program = "import os; os.close(2); import skbcapd.cli.main; print(skbcapd.cli.main.LOG.is_journal)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
