"""What the service says: fields for the journal or lines for people, few of them, and none that does harm."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from skbcapd.daemon.log import BURST, WINDOW_S, Event, Log, journal


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
        return Log(level, self.send, self.clock)


def test_an_entry_has_fields() -> None:
    """The journal gets the sentence, the kind of event, its level, and each value in a field of its own."""
    journal_ = Journal()
    journal_.log().write(Event.DROPPED, "7 packets dropped", file=Path("/a"), dropped=7)
    assert journal_.entries == [
        {
            "MESSAGE": "7 packets dropped",
            "MESSAGE_ID": Event.DROPPED.message_id,
            "PRIORITY": "4",
            "SYSLOG_IDENTIFIER": "skbcapd",
            "SKBCAPD_FILE": "/a",
            "SKBCAPD_DROPPED": "7",
        }
    ]


def test_without_a_journal_there_are_lines(capsys: pytest.CaptureFixture[str]) -> None:
    """A line on stderr has the sentence only."""
    Log().write(Event.DROPPED, "7 packets dropped", dropped=7)
    assert capsys.readouterr() == ("", "skbcapd: 7 packets dropped\n")


@pytest.mark.parametrize(("level", "events"), [("debug", 4), ("info", 4), ("warning", 2), ("error", 0)])
def test_the_level(level: str, events: int) -> None:
    """What is less grave than log.level is not written; that a program fails always is."""
    journal_ = Journal()
    log = journal_.log(level)
    for event in (Event.STARTED, Event.STOPPED, Event.DROPPED, Event.WARNING):
        log.write(event, "x")
    assert len(journal_.entries) == events
    log.fail("y")
    assert len(journal_.entries) == events + 1


def test_a_flood_is_a_few_lines() -> None:
    """Of one kind BURST lines are written in a window, and then how many were left out; other kinds go on."""
    journal_ = Journal()
    log = journal_.log()
    for number in range(BURST + 1009):
        log.write(Event.WARNING, str(number))
    log.write(Event.STARTED, "other")
    assert [entry["MESSAGE"] for entry in journal_.entries] == [*map(str, range(BURST)), "other"]

    journal_.now += WINDOW_S - 1
    log.tick()
    assert len(journal_.entries) == BURST + 1
    journal_.now += 1
    log.tick()
    log.tick()
    assert journal_.entries[BURST + 1 :] == [
        {
            "MESSAGE": "1009 more messages of this kind were left out",
            "MESSAGE_ID": Event.WARNING.message_id,
            "PRIORITY": "4",
            "SYSLOG_IDENTIFIER": "skbcapd",
            "SKBCAPD_SUPPRESSED": "1009",
        }
    ]
    log.write(Event.WARNING, "again")
    log.close()
    assert journal_.entries[-1]["MESSAGE"] == "again"


def test_the_end_says_what_was_left_out() -> None:
    """A log that is closed within a window does not keep the count to itself."""
    journal_ = Journal()
    log = journal_.log()
    for _ in range(BURST + 3):
        log.write(Event.WARNING, "x")
    log.close()
    assert journal_.entries[-1]["SKBCAPD_SUPPRESSED"] == "3"


def test_hostile_values_are_harmless_too() -> None:
    """Fields are escaped as the sentence is; of a failure, lines stay lines."""
    journal_ = Journal()
    log = journal_.log()
    log.write(Event.WARNING, "\n", file="\x1b\n")
    log.fail("a\x1b\n  (hint) b")
    assert [(entry["MESSAGE"], entry.get("SKBCAPD_FILE")) for entry in journal_.entries] == [
        ("\\n", "\\x1b\\n"),
        ("a\\x1b\n  (hint) b", None),
    ]


def test_each_kind_has_an_id_of_its_own() -> None:
    """A MESSAGE_ID is 128 bits, and stands for one kind."""
    ids = [event.message_id for event in Event]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch("[0-9a-f]{32}", one) for one in ids)


def test_the_journal_is_found_by_its_stream() -> None:
    """Only when stderr is the stream that systemd names is there a journal."""
    ours, theirs = socket.socketpair()
    with ours, theirs, theirs.makefile("w") as stderr:
        found = os.fstat(theirs.fileno())
        stream = f"{found.st_dev}:{found.st_ino}"
        assert journal({"JOURNAL_STREAM": stream}, stderr) is not None
        assert journal({"JOURNAL_STREAM": "1:1"}, stderr) is None
        assert journal({}, stderr) is None
    assert journal({"JOURNAL_STREAM": stream}, stderr) is None


def test_a_program_without_stderr() -> None:
    """With stderr closed the command still starts."""
    program = "import os; os.close(2); import skbcapd.cli.main; print(skbcapd.cli.main.LOG.is_journal)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
