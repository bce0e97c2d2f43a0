"""Each kind of end of a capture leaves a complete file, correct totals and exit code 0."""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from tests.kernel.capture import Capture, Ended, read
from tests.kernel.comparison import Marker
from tests.kernel.namespace import Wire
from tests.support.blocks import Packet
from tests.support.blocks import packets as parse
from tests.support.deadline import until

SENT = 1009


@pytest.fixture
def marker(wire: Wire) -> Iterator[Marker]:
    """A sender of numbered frames at the near end (this process)."""
    with closing(Marker(wire.near.namespace, wire.near.device)) as made:
        yield made


def captured(ended: Ended, found: list[Packet]) -> list[bytes]:
    """Check the end of a capture; returns the frames that it wrote."""
    assert ended.exit_code == 0, ended.stderr
    assert ended.totals["captured"] == len(found)
    assert ended.totals["dropped by kernel"] == ended.lost == 0
    return [packet.data for packet in found if packet.direction == "out"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_and_what_was_seen_is_written(
    number: signal.Signals, wire: Wire, marker: Marker, tmp_path: Path
) -> None:
    """After a signal right after the last of 1009 frames, all of them are in the file."""
    file = tmp_path / "signal.pcapng"
    with closing(Capture(wire.near.namespace, "-i", wire.near.device, "-w", str(file))) as capture:
        for _ in range(SENT):
            marker.send()
        ended = capture.stop(number)

    assert captured(ended, read(file)) == marker.sent
    assert len(marker.sent) == SENT


def test_count_ends_it_with_so_many_packets(wire: Wire, marker: Marker, tmp_path: Path) -> None:
    """With -c 23 the capture ends by itself, and the first 23 of 101 frames are in the file, no
    more.
    """
    file = tmp_path / "count.pcapng"
    with closing(Capture(wire.near.namespace, "-i", wire.near.device, "-w", str(file), "-c", "23")) as capture:
        for _ in range(101):
            marker.send()
        ended = capture.wait()

    assert captured(ended, read(file)) == marker.sent[:23]


def test_duration_ends_it(wire: Wire, marker: Marker, tmp_path: Path) -> None:
    """With --duration the capture ends by itself, with all frames that were sent."""
    file = tmp_path / "duration.pcapng"
    arguments = ("-i", wire.near.device, "-w", str(file), "--duration", "2")
    with closing(Capture(wire.near.namespace, *arguments)) as capture:
        capture.process.send_signal(signal.SIGSTOP)  # however slow the sender is: the kernel captures
        for _ in range(23):
            marker.send()
        capture.process.send_signal(signal.SIGCONT)
        ended = capture.wait()

    assert captured(ended, read(file)) == marker.sent


def test_a_closed_pipe_ends_it(wire: Wire, marker: Marker) -> None:
    """When the reader of `-w -` ends after 1000 bytes, the capture ends with exit code 0 and
    without a traceback.
    """
    with closing(Capture(wire.near.namespace, "-i", wire.near.device, "-w", "-")) as capture, ExitStack() as stack:
        assert capture.process.stdout is not None
        head = subprocess.Popen(["head", "-c", "1000"], stdin=capture.process.stdout, stdout=subprocess.DEVNULL)
        stack.callback(head.wait)
        stack.callback(head.kill)
        capture.process.stdout.close()

        def ended() -> bool:
            marker.send()  # only a write shows it
            return capture.process.poll() is not None

        until(ended, "the capture ends after its pipe was closed")
        assert capture.process.returncode == 0
        assert capture.process.stderr is not None
        said = capture.process.stderr.read().decode()

    assert "Traceback" not in said
    assert re.search(r"^\d+ packets captured$", said, re.MULTILINE)


def test_standard_output_gets_the_same_file(wire: Wire, marker: Marker, tmp_path: Path) -> None:
    """With `-w -` the complete file is written to stdout, and nothing else."""
    file = tmp_path / "stdout.pcapng"
    with closing(Capture(wire.near.namespace, "-i", wire.near.device, "-w", "-")) as capture:
        for _ in range(101):
            marker.send()
        ended = capture.stop()
    file.write_bytes(ended.stdout)

    assert captured(ended, read(file)) == marker.sent


def test_without_a_file_each_packet_is_a_line(wire: Wire, marker: Marker) -> None:
    """Without -w, each packet is one line with process, interface and direction."""
    with closing(Capture(wire.near.namespace, "-i", wire.near.device)) as capture:
        for _ in range(23):
            marker.send()
        ended = capture.stop()
    lines = ended.stdout.decode().splitlines()

    assert ended.exit_code == 0
    assert len(lines) == ended.totals["captured"] == 23
    for line in lines:
        assert re.search(rf"\S+\[\d+\].*\b{wire.near.device}\b.*\bout\b", line)


def test_a_file_can_be_read_while_it_is_written(wire: Wire, marker: Marker, tmp_path: Path) -> None:
    """While the capture runs, sent frames are in the file, up to a complete block."""
    file = tmp_path / "live.pcapng"
    with closing(Capture(wire.near.namespace, "-i", wire.near.device, "-w", str(file))) as capture:
        for _ in range(23):
            marker.send()

        def written() -> bool:
            return marker.sent[-1] in file.read_bytes()

        until(written, "the last frame is in the file")
        found = [packet.data for packet in parse(file.read_bytes()) if packet.direction == "out"]
        ended = capture.stop()

    assert found == marker.sent
    assert captured(ended, read(file)) == marker.sent
