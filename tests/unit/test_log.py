"""The log: fields for the journal or lines for people, few of them, and none that does harm."""

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
    """The process's own log takes over again."""
    yield
    LOG.install()


class Journal:
    """Takes entries, and tells the time."""

    def __init__(self) -> None:
        self.entries: list[dict[str, str]] = []
        self.now = 0.0

    def send(self, entry: Mapping[str, str]) -> None:
        """One entry."""
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
    """The journal gets the sentence, the kind of event, its level, and each value in a field of its own."""
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
    """A record that says no kind has that of its level."""
    journal_ = Journal()
    journal_.log("debug")
    getattr(LOGGER, level)("x")
    assert [(one["MESSAGE_ID"], one["PRIORITY"]) for one in journal_.entries] == [(event.value, str(priority))]


def test_without_a_journal_there_are_lines(capsys: pytest.CaptureFixture[str]) -> None:
    """A line on stderr has the sentence only."""
    Log().install()
    LOGGER.warning("7 packets dropped", extra=Event.DROPPED.extra(dropped=7))
    assert capsys.readouterr() == ("", "skbcapd: 7 packets dropped\n")


@pytest.mark.parametrize(("level", "events"), [("debug", 5), ("info", 4), ("warning", 2), ("error", 0)])
def test_the_level(level: str, events: int) -> None:
    """What is less severe than log.level is not written; that a program fails always is."""
    journal_ = Journal()
    log = journal_.log("debug")
    log.level = level
    for severity in (logging.INFO, logging.INFO, logging.WARNING, logging.WARNING, logging.DEBUG):
        LOGGER.log(severity, "x")
    assert len(journal_.entries) == events
    fail("y")
    assert len(journal_.entries) == events + 1


def test_a_flood_is_a_few_lines() -> None:
    """Of one kind BURST lines are written in a window, and then how many were left out; other kinds go on."""
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


def test_answers_are_always_written() -> None:
    """What an administrator has asked for is answered each time."""
    journal_ = Journal()
    journal_.log()
    for _ in range(BURST + 3):
        LOGGER.info("settings reloaded", extra=Event.RELOADED.extra())
        LOGGER.warning("not reloaded", extra=Event.NOT_RELOADED.extra())
    assert len(journal_.entries) == 2 * (BURST + 3)


def test_the_end_says_what_was_left_out() -> None:
    """A log that is closed within a window does not keep the count to itself."""
    journal_ = Journal()
    log = journal_.log()
    for _ in range(BURST + 3):
        LOGGER.warning("x")
    log.close()
    assert journal_.entries[-1]["SKBCAPD_SUPPRESSED"] == "3"


def test_hostile_values_are_harmless_too() -> None:
    """Fields are escaped as the sentence is; of a failure, lines stay lines."""
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
    """A stderr that takes nothing."""

    def write(self, _text: str) -> int:
        """Refuse."""
        raise OSError(28, os.strerror(28))


@pytest.mark.parametrize("stream", [Broken(), None])
def test_a_line_that_cannot_be_written_is_counted(stream: io.StringIO | None) -> None:
    """On a full disk, or with no stderr, lines are dropped and counted, and nothing fails."""
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
    """An entry that the journal refuses is dropped and counted."""

    def send(_entry: Mapping[str, str]) -> None:
        raise ConnectionRefusedError

    log = Log(send=send)
    log.install()
    for _ in range(5):
        LOGGER.warning("x")
    assert log.dropped == 5


def test_each_kind_has_an_id_of_its_own() -> None:
    """A MESSAGE_ID is 128 bits, and stands for one kind."""
    ids = [event.value for event in Event]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch("[0-9a-f]{32}", one) for one in ids)


def test_the_journal_is_found_by_its_stream() -> None:
    """Only when stderr is the stream that systemd names is there a journal."""
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
    """Fields arrive in the protocol of the journal; a value with lines has its length in front."""
    address = str(tmp_path / "journal")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as daemon:
        daemon.bind(address)
        JournalSocket(address).send({"MESSAGE": "a = b", "SKBCAPD_FILE": "one\ntwo \udcff"})
        assert daemon.recv(1000) == b"MESSAGE=a = b\nSKBCAPD_FILE\n\x0e\0\0\0\0\0\0\0one\ntwo \\udcff\n"


def test_a_journal_that_does_not_read_is_not_waited_for(tmp_path: Path) -> None:
    """Lines that a stopped journal does not take are counted, within a second; those that come later are written."""
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
