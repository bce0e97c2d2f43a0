"""Capturing commands with a standard descriptor that is closed, full, or a pipe without a reader."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.kernel.capture import ATTACH, read
from tests.kernel.comparison import Marker
from tests.kernel.namespace import Wire
from tests.support import faults
from tests.support.deadline import until
from tests.support.descriptors import CASES, Faulty

SENT = 23


@pytest.fixture
def marker(wire: Wire) -> Iterator[Marker]:
    """A sender of numbered frames at the near end (this process)."""
    with closing(Marker(wire.near.namespace, wire.near.device)) as made:
        yield made


def ended(faulty: Faulty, marker: Marker) -> None:
    """Send frames until the command ends by itself."""

    def is_over() -> bool:
        marker.send()
        return faulty.process.poll() is not None

    try:
        until(is_over, "it ends")
    finally:
        faulty.process.kill()


@pytest.mark.parametrize("fault", ["closed", "full", "broken"])
@pytest.mark.parametrize("descriptor", [0, 1, 2])
def test_a_file_is_complete(descriptor: int, fault: str, wire: Wire, marker: Marker, tmp_path: Path) -> None:
    """With any fault of any descriptor -c 23 packets are in the file, nothing else is, and the exit
    code is 0.
    """
    file = tmp_path / "a.pcapng"
    words = ["capture", "--set", f"attach={ATTACH}", "-i", wire.near.device, "-c", str(SENT), "-w", str(file)]
    faulty = wire.near.namespace.do(Faulty, descriptor, fault, words)
    ended(faulty, marker)
    said = faulty.wait()
    assert said.exit_code == 0, said
    assert "Traceback" not in said.stderr
    assert said.stdout == ""
    now = f"exit code {said.exit_code}, {len(read(file))} of {SENT} packets in the file"
    faults.compare("a standard descriptor closed, full or broken", 1, now)
    assert len(read(file)) == SENT


@pytest.mark.parametrize("to", [[], ["-w", "-"]])
def test_packets_that_cannot_be_written_end_a_capture(
    to: list[str], wire: Wire, marker: Marker, tmp_path: Path
) -> None:
    """Packets for a stdout that is closed or full: exit code 1 and one line; for a reader that has
    ended: 0.
    """
    for descriptor, fault in CASES:
        words = ["capture", "--set", f"attach={ATTACH}", "-i", wire.near.device, "-c", str(SENT), *to]
        faulty = wire.near.namespace.do(Faulty, descriptor, fault, words)
        ended(faulty, marker)
        said = faulty.wait()
        fails = descriptor == 1 and fault != "broken"
        assert said.exit_code == int(fails), (descriptor, fault, said)
        assert "Traceback" not in said.stderr
        assert ("skbcapd: standard output: " in said.stderr) == fails
    assert not list(tmp_path.iterdir())


def test_a_service_continues_without_its_log(wire: Wire, marker: Marker, tmp_path: Path) -> None:
    """A daemon whose log cannot be written continues, and ends with 0 and a complete file."""
    for number, (descriptor, fault) in enumerate(CASES):
        directory = tmp_path / str(number)
        settings = (
            f"attach={ATTACH}",
            f"interfaces={wire.near.device}",
            "control.socket=none",
            f"files.directory={directory}",
            f"files.packets={SENT}",
        )
        sets = [word for setting in settings for word in ("--set", setting)]
        words = ["run", "--config", "etc/skbcapd.yaml", "--duration", "2", *sets]
        faulty = wire.near.namespace.do(Faulty, descriptor, fault, words)
        ended(faulty, marker)
        said = faulty.wait()
        assert said.exit_code == 0, (descriptor, fault, said)
        assert "Traceback" not in said.stderr
        files = sorted(directory.glob("skbcapd-*.pcapng"))
        assert files
        now = f"exit code {said.exit_code}, {len(read(files[0]))} of {SENT} packets in its first file"
        faults.compare("a log that cannot be written", 1, now)
        assert len(read(files[0])) == SENT


def test_the_doctor_reports_whatever_is_wrong(wire: Wire) -> None:
    """`doctor` ends with 0, or with 1 if its report cannot be written."""
    for descriptor, fault in CASES:
        said = wire.near.namespace.do(Faulty, descriptor, fault, ["doctor"]).wait()
        fails = descriptor == 1 and fault != "broken"
        assert said.exit_code == int(fails), (descriptor, fault, said)
        assert "Traceback" not in said.stderr
