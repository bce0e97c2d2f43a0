"""Capturing commands with a standard descriptor that is closed, full, or a pipe without a reader."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TypeAlias

import pytest

from tests.kernel.capture import ATTACH, read
from tests.kernel.comparison import Marker
from tests.kernel.namespace import Wire
from tests.support import faults
from tests.support.deadline import until
from tests.support.descriptors import CASES, Faulty, Said

pytestmark = pytest.mark.faults

SENT = 23
AT_ONCE = 3  # commands
SMALL = ("--set", f"attach={ATTACH}", "--set", "buffer.size=4MiB")
Ended: TypeAlias = tuple[int, str, Said]


@pytest.fixture
def marker(wire: Wire) -> Iterator[Marker]:
    """A sender of numbered frames at the near end (this process)."""
    with closing(Marker(wire.near.namespace, wire.near.device)) as made:
        yield made


def run_each(
    wire: Wire,
    words: Callable[[int], list[str]],
    send: Callable[[], object],
    is_enough: Callable[[int], bool] = lambda _: False,
) -> Iterator[Ended]:
    """Run a command with each fault of each descriptor, some at once.

    Args:
        wire: where, at the near end.
        words: the command of a case, by its number in CASES.
        send: sends a frame; called until all have ended.
        is_enough: whether a command, by its number, is to be ended with SIGTERM.

    Yields:
        Descriptor, fault, and the end of the command.
    """
    for start in range(0, len(CASES), AT_ONCE):
        running: list[Faulty] = []
        told: set[int] = set()

        def are_over(start: int = start, running: list[Faulty] = running, told: set[int] = told) -> bool:
            send()
            for number, faulty in enumerate(running, start):
                if number not in told and is_enough(number):
                    told.add(number)
                    faulty.process.terminate()
            return all(faulty.process.poll() is not None for faulty in running)

        cases = CASES[start : start + AT_ONCE]
        try:
            for number, case in enumerate(cases, start):
                running.append(wire.near.namespace.do(Faulty, *case, words(number)))
            until(are_over, "they end")
        finally:
            said = [faulty.kill() for faulty in running]
        for (descriptor, fault), one in zip(cases, said, strict=True):
            yield descriptor, fault, one


def test_a_file_is_complete(wire: Wire, marker: Marker, tmp_path: Path) -> None:
    """With any fault of any descriptor -c 23 packets are in the file, nothing else is, and the exit
    code is 0.
    """

    def words(number: int) -> list[str]:
        return ["capture", *SMALL, "-i", wire.near.device, "-c", str(SENT), "-w", str(tmp_path / f"{number}.pcapng")]

    for number, (descriptor, fault, said) in enumerate(run_each(wire, words, marker.send)):
        assert said.exit_code == 0, (descriptor, fault, said)
        assert "Traceback" not in said.stderr
        assert said.stdout == ""
        count = len(read(tmp_path / f"{number}.pcapng"))
        now = f"exit code {said.exit_code}, {count} of {SENT} packets in the file"
        faults.compare("a standard descriptor closed, full or broken", 1, now)
        assert count == SENT


@pytest.mark.parametrize("to", [[], ["-w", "-"]])
def test_packets_that_cannot_be_written_end_a_capture(
    to: list[str], wire: Wire, marker: Marker, tmp_path: Path
) -> None:
    """Packets for a stdout that is closed or full: exit code 1 and one line; for a reader that has
    ended: 0.
    """
    words = ["capture", *SMALL, "-i", wire.near.device, "-c", str(SENT), *to]
    for descriptor, fault, said in run_each(wire, lambda _: words, marker.send):
        fails = descriptor == 1 and fault != "broken"
        assert said.exit_code == int(fails), (descriptor, fault, said)
        assert "Traceback" not in said.stderr
        assert ("skbcapd: standard output: " in said.stderr) == fails
    assert not list(tmp_path.iterdir())


def test_a_service_continues_without_its_log(wire: Wire, marker: Marker, tmp_path: Path) -> None:
    """A daemon whose log cannot be written continues, and ends with 0 and a complete file."""

    def words(number: int) -> list[str]:
        settings = (
            f"interfaces={wire.near.device}",
            "control.socket=none",
            f"files.directory={tmp_path / str(number)}",
            f"files.packets={SENT}",
            "files.every=0",
        )
        sets = [word for setting in settings for word in ("--set", setting)]
        return ["run", "--config", "etc/skbcapd.yaml", *SMALL, *sets]

    def has_finished_file(number: int) -> bool:
        return any((tmp_path / str(number)).glob("skbcapd-*.pcapng"))

    for number, (descriptor, fault, said) in enumerate(run_each(wire, words, marker.send, has_finished_file)):
        assert said.exit_code == 0, (descriptor, fault, said)
        assert "Traceback" not in said.stderr
        files = sorted((tmp_path / str(number)).glob("skbcapd-*.pcapng"))
        assert files
        count = len(read(files[0]))
        now = f"exit code {said.exit_code}, {count} of {SENT} packets in its first file"
        faults.compare("a log that cannot be written", 1, now)
        assert count == SENT


def test_the_doctor_reports_whatever_is_wrong(wire: Wire) -> None:
    """`doctor` ends with 0, or with 1 if its report cannot be written."""
    for descriptor, fault, said in run_each(wire, lambda _: ["doctor"], lambda: None):
        fails = descriptor == 1 and fault != "broken"
        assert said.exit_code == int(fails), (descriptor, fault, said)
        assert "Traceback" not in said.stderr
