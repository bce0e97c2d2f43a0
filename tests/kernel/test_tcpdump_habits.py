"""Options of tcpdump in a live capture: direction, a filter from a file, series of files, the printed line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.kernel.capture import Capture, read
from tests.kernel.comparison import Marker
from tests.kernel.namespace import Wire
from tests.support.deadline import until
from tests.support.judges import rows

SENT, RECEIVED = 23, 13


@pytest.fixture
def near(wire: Wire) -> Iterator[Marker]:
    """A sender of numbered frames at the near end."""
    with closing(Marker(wire.near.namespace, wire.near.device)) as made:
        yield made


@pytest.fixture
def far(wire: Wire) -> Iterator[Marker]:
    """A sender of numbered frames at the far end."""
    with closing(Marker(wire.far.namespace, wire.far.device)) as made:
        yield made


@pytest.mark.parametrize(("direction", "expected"), [("in", RECEIVED), ("out", SENT)])
def test_one_direction(direction: str, expected: int, wire: Wire, near: Marker, far: Marker, tmp_path: Path) -> None:
    """With -Q, only the frames of that direction are in the file."""
    file = tmp_path / "a.pcapng"
    with closing(Capture(wire.near.namespace, "-i", wire.near.device, "-Q", direction, "-nUw", str(file))) as capture:
        for _ in range(SENT):
            near.send()
        for _ in range(RECEIVED):
            far.send()
        ended = capture.stop()
    found = [packet.data for packet in read(file)]
    assert ended.exit_code == 0, ended.stderr
    assert found == {"out": near, "in": far}[direction].sent
    assert len(found) == expected


def test_the_printed_line(wire: Wire, near: Marker, far: Marker, tmp_path: Path) -> None:
    """A line has what the file has: process, way of finding it, interface and direction; -F reads the filter, and the
    other options shape the line.
    """
    filter_file = tmp_path / "filter"
    filter_file.write_text("# all frames\ngreater 1\n")
    words = ("-i", wire.near.device, "-tt", "--nano", "-#eXXF", str(filter_file), "-B", "16384")
    with closing(Capture(wire.near.namespace, *words)) as capture:
        near.send()
        far.send()
        ended = capture.stop()
    assert ended.exit_code == 0, ended.stderr
    lines = [line for line in ended.stdout.decode("ascii").splitlines() if not line.startswith("\t")]
    name, mac = wire.near.device, r"[0-9a-f:]{17}"
    shape = rf" +(\d+)  \d{{10}}\.\d{{9}} (\S+) {name} (in|out) {mac} > {mac}, .*length \d+:?.*"
    found = [match.groups() for line in lines if (match := re.fullmatch(shape, line))]
    assert [(number, direction) for number, _, direction in found] == [("1", "out"), ("2", "in")], lines
    assert re.fullmatch(r"\S+\[\d+\](/\w+)?", found[0][1])
    assert re.fullmatch(r"\S+\[\d+\]/path", found[1][1])
    dumps = [line for line in ended.stdout.decode().splitlines() if line.startswith("\t")]
    raw = [bytes.fromhex(line[10:49].replace(" ", "")) for line in dumps]
    assert b"".join(raw) == near.sent[0] + far.sent[0]


def test_a_series_of_files(wire: Wire, near: Marker, tmp_path: Path) -> None:
    """With -C and -W, -w makes a series; the newest files are kept, and together they end with the last frame."""
    words = ("-i", wire.near.device, "-w", str(tmp_path / "trace.pcap"), "-C", "1", "-W", "2")
    with closing(Capture(wire.near.namespace, *words)) as capture:
        for _ in range(23003):
            near.send()
        ended = capture.stop()
    assert ended.exit_code == 0, ended.stderr
    files = sorted(tmp_path.glob("trace-*.pcapng"))
    assert len(files) == 2
    found = [packet.data for file in files for packet in read(file)]
    assert found == near.sent[-len(found) :]
    assert ended.totals["captured"] == 23003
    assert 1 << 20 <= files[0].stat().st_size < 17 << 16
    assert rows(files[0], "frame.number")


def test_a_file_every_second(wire: Wire, near: Marker, tmp_path: Path) -> None:
    """With -G 1, a second later the next file begins; each has the time in its name, and together they have all frames
    in order.
    """

    def finished() -> list[Path]:
        found = (path for path in tmp_path.glob("*.pcapng") if not path.is_symlink())
        return sorted(found, key=lambda path: path.stem.rpartition("-")[2])

    words = ("-i", wire.near.device, "-w", str(tmp_path / "trace-%Y%m%d_%H%M%S.pcap"), "-G", "1")
    with closing(Capture(wire.near.namespace, *words)) as capture:
        for number in (1, 2):
            near.send()
            until(lambda count=number: len(finished()) >= count, "a file has ended")  # type: ignore[misc]
        near.send()
        ended = capture.stop()
    assert ended.exit_code == 0, ended.stderr
    files = finished()
    assert all(re.fullmatch(r"trace-\d{8}T\d{6}\.\d{3}Z-\d{6}\.pcapng", path.name) for path in files), files
    assert len(files) >= 3
    assert [packet.data for path in files for packet in read(path)] == near.sent
    assert ended.totals["captured"] == 3
