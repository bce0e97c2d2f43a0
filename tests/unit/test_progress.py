"""The progress bar: drawn on a terminal after a second, and nowhere else."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import select
import struct
import termios
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

import pytest

from skbcapd.analysis.progress import Progress
from tests.support.deadline import DEADLINE_S


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Two files of 100 and 300 bytes, and one that does not exist."""
    for name, size in (("a", 100), ("b", 300)):
        (tmp_path / name).write_bytes(bytes(size))
    return [tmp_path / "a", tmp_path / "b", tmp_path / "nosuch"]


@pytest.fixture
def terminal() -> Iterator[tuple[TextIO, Callable[[], str]]]:
    """A terminal of 28 columns, and a reader of everything that is written to it."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 28, 0, 0))
    with os.fdopen(theirs, "w") as stream, os.fdopen(ours, "rb", buffering=0) as other:

        def read() -> str:
            print("$", end="", file=stream, flush=True)  # a terminal passes data on late: wait for the end
            seen = b""
            while not seen.endswith(b"$"):
                assert select.select([other], [], [], DEADLINE_S)[0], seen
                seen += other.read(4096)
            return seen.decode().removesuffix("$")

        yield stream, read


class Clock:
    """A clock that stands still until it is set."""

    def __init__(self) -> None:
        self.now = 7.0

    def __call__(self) -> float:
        """The time."""
        return self.now


def test_it_is_drawn_after_a_second_and_removed(terminal: tuple[TextIO, Callable[[], str]], files: list[Path]) -> None:
    """Nothing is drawn for a second; then the progress over all files, ten times a second at most;
    then an empty line.
    """
    (stream, read), clock = terminal, Clock()
    with Progress(files, stream, clock) as progress:
        show = progress.next_file()
        for clock.now, done in ((7.5, 20), (8.25, 40), (8.3, 60), (9.0, 100)):
            show(done)
        show = progress.next_file()
        clock.now = 10.0
        show(300)
        clock.now = 11.0
        progress.next_file()(7)
    assert read().split("\r") == [
        "",
        "\x1b[K[##                  ]  10%",
        "\x1b[K[#####               ]  25%",
        "\x1b[K[####################] 100%",
        "\x1b[K[####################] 100%",
        "\x1b[K",
    ]


def test_short_work_shows_no_bar(terminal: tuple[TextIO, Callable[[], str]], files: list[Path]) -> None:
    """Before a second has passed, nothing is written to the terminal."""
    (stream, read), clock = terminal, Clock()
    with Progress(files, stream, clock) as progress:
        clock.now += 0.97
        progress.next_file()(100)
    assert read() == ""


def test_no_bar_without_a_terminal(files: list[Path]) -> None:
    """A log file gets no bar."""
    stream, clock = io.StringIO(), Clock()
    with Progress(files, stream, clock) as progress:
        clock.now += 100
        progress.next_file()(50)
    assert stream.getvalue() == ""
