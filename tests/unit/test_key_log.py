"""Key logs that programs write, replace and truncate, and that are no key logs."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skbcapd.output import key_log
from skbcapd.output.key_log import KeyLog, KeyLogs
from skbcapd.pcapng.secrets import key_lines
from tests.support.deadline import until
from tests.support.key_logs import line

TLS13 = b"CLIENT_HANDSHAKE_TRAFFIC_SECRET"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The path of the key log."""
    return tmp_path / "keys.log"


@pytest.fixture
def log(path: Path) -> Iterator[KeyLog]:
    """A key log that did not exist when the capture began."""
    made = KeyLog(path)
    made.begin()
    yield made
    made.close()


def append(path: Path, text: bytes) -> None:
    """Write as a program does."""
    with path.open("ab") as file:
        file.write(text)


def everything(log: KeyLog) -> bytes:
    """All that is there to read."""
    found = b"".join(log.read())
    while log.is_behind:
        found += b"".join(log.read())
    return found


def test_only_new_lines_are_read(path: Path) -> None:
    """Lines from before the start are skipped; each later one is read once; an incomplete one when it is complete."""
    append(path, line(1))
    log = KeyLog(path)
    log.begin()
    append(path, line(2) + line(3, TLS13)[:50])
    assert everything(log) == line(2)
    append(path, line(3, TLS13)[50:])
    assert everything(log) == line(3, TLS13)
    assert everything(log) == b""
    log.close()


@pytest.mark.parametrize(
    "text",
    [
        b"# a comment\n",
        b"\n \n",
        line(1)[:-2] + b"\n",
        line(1)[:-1] + b"0\n",
        b" " + line(1),
        line(1).replace(b" ", b"\t"),
        line(1).replace(b"CLIENT_RANDOM", b"client_random"),
        line(1).replace(b"00", b"0x"),
        line(1)[:-1] + b"\0\n",
        b"root:$6$abc:19000:0:99999:7:::\n",
        b"PASSWORD hunter2\n",
        bytes(range(256)) * 4 + b"\n",
        b"x" * (1 << 20) + line(1),
    ],
)
def test_other_lines_are_left_out(text: bytes, path: Path, log: KeyLog) -> None:
    """Nothing of a line that is not well-formed is taken; the next line is."""
    append(path, text + line(7))
    assert everything(log) == line(7)


@given(st.binary(max_size=300))
def test_only_lines_of_the_grammar_come_out(text: bytes) -> None:
    """No other text comes out, whatever the file has."""
    for found in key_lines(text + b"\n" + line(1)):
        assert found == line(1)


def test_lines_of_windows(path: Path, log: KeyLog) -> None:
    """A carriage return at the end of a line is removed."""
    append(path, line(1).replace(b"\n", b"\r\n"))
    assert everything(log) == line(1)


def test_a_log_that_is_rotated(path: Path, log: KeyLog) -> None:
    """After a rotation, the last lines of the old file and all of the new one are read."""
    append(path, line(1))
    assert everything(log) == line(1)
    append(path, line(2))
    path.rename(path.with_suffix(".1"))
    append(path, line(3))
    assert everything(log) == line(2) + line(3)


def test_a_log_that_is_truncated_or_deleted(path: Path, log: KeyLog) -> None:
    """A log that is written again from its beginning is read again, and so is one that is there again."""
    append(path, line(1) + line(2))
    everything(log)
    path.write_bytes(line(3))
    assert everything(log) == line(3)
    path.unlink()
    assert everything(log) == b""
    append(path, line(4))
    assert everything(log) == line(4)


def fifo(path: Path) -> None:
    """A FIFO without a writer."""
    os.mkfifo(path)


def loop(path: Path) -> None:
    """A symbolic link to itself."""
    path.symlink_to(path.name)


def device(path: Path) -> None:
    """A device that never ends."""
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (fifo, "not a regular file"),
        (Path.mkdir, "not a regular file"),
        (device, "not a regular file"),
        (loop, "Too many levels of symbolic links"),
    ],
)
def test_something_else_than_a_file(
    make: Callable[[Path], None], reason: str, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One message, however often it is read; a file in its place is read."""
    make(path)
    log = KeyLog(path)
    log.begin()
    for _ in range(3):
        assert log.read() == []
    assert caplog.messages == [f"secrets: {path}: {reason}; expected a key log that can be read"]
    path.rename(path.with_suffix(".old"))
    append(path, line(1))
    assert everything(log) == line(1)
    log.close()


def test_a_log_that_does_not_exist(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One message."""
    log = KeyLog(path)
    log.begin()
    log.read()
    assert caplog.messages == [f"secrets: {path}: it does not exist yet; it is read as soon as it does"]


def test_a_file_that_is_no_key_log(path: Path, log: KeyLog, caplog: pytest.LogCaptureFixture) -> None:
    """One message, which has nothing of the file in it."""
    caplog.clear()
    for _ in range(3):
        append(path, b"password=hunter2\n")
        log.read()
    assert caplog.messages == [
        f"secrets: {path}: found lines that are no secrets; expected a key log such as SSLKEYLOGFILE"
    ]


def test_a_huge_log(path: Path, log: KeyLog, caplog: pytest.LogCaptureFixture) -> None:
    """Of a file of a terabyte only the end is read, in parts; one message."""
    caplog.clear()
    with path.open("wb") as file:
        file.truncate(1 << 40)
        file.seek(0, os.SEEK_END)
        file.write(b"\n" + line(1))
    parts = 0
    found = b"".join(log.read())
    while log.is_behind:
        found += b"".join(log.read())
        parts += 1
    assert found == line(1)
    assert parts <= key_log.BEHIND_MAX // key_log.READ_MAX
    assert len(caplog.messages) == 1
    assert "the oldest are skipped" in caplog.messages[0]


def test_memory_is_bounded(path: Path) -> None:
    """Of many lines only the last ones are kept; a line that is repeated is kept once."""
    with KeyLogs([str(path)]) as logs:
        count = key_log.KEPT_MAX // len(line(1)) + 100
        append(path, b"".join(map(line, range(count))) + 1000 * line(count - 1))
        until(lambda: logs.end == count, "all lines are read")
        kept, end = logs.since(0)
    assert (len(kept) <= key_log.KEPT_MAX, end) == (True, count)
    assert kept.endswith(b"".join(map(line, range(count - 1000, count))))


def test_the_thread_reads_what_is_written(path: Path, tmp_path: Path) -> None:
    """Lines of two logs are known soon after they were written; the thread ends with the capture, and leaves no
    descriptor.
    """
    before = len(list(Path("/proc/self/fd").iterdir()))
    other = tmp_path / "other.log"
    append(other, line(1))
    with KeyLogs([str(path), str(other)]) as logs:
        append(path, line(2))
        until(lambda: logs.end == 1, "the first line")
        append(other, line(3))
        until(lambda: logs.end == 2, "the second line")
        assert logs.since(0) == (line(2) + line(3), 2)
        assert logs.since(1) == (line(3), 2)
        assert (logs.first(3600), logs.first(-1)) == (0, 2)
    assert not any(thread.name == "key log" for thread in threading.enumerate())
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_nothing_happens_without_a_key_log(caplog: pytest.LogCaptureFixture) -> None:
    """Without the setting there is no thread and no message."""
    before = threading.active_count()
    with caplog.at_level(logging.DEBUG), KeyLogs(()) as logs:
        logs.catch_up()
        assert threading.active_count() == before
    assert not caplog.messages
