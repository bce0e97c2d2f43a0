"""TLS secrets in capture files: in the room at the beginning of each file, and as blocks between packets."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from skbcapd.output.block_writer import CaptureFile
from skbcapd.output.directory import CaptureDirectory
from skbcapd.output.key_log import KeyLogs
from skbcapd.output.pcapng_output import FileOutput
from skbcapd.output.pipe import PipeTarget
from skbcapd.output.ring import Recorder
from skbcapd.output.rotation import RotatingOutput
from skbcapd.output.triggers import Limits
from skbcapd.pcapng import secrets
from skbcapd.pcapng.interface import DISK_BLOCK
from skbcapd.worker import Worker
from tests.support.deadline import until
from tests.support.judges import judge
from tests.support.key_logs import found, line
from tests.support.rotation import LO, STAMP, small
from tests.support.writer import packet

ROOT = Path(__file__).parents[2]
RESERVED_LINES = secrets.RESERVED_FOR_LINES // len(line(1))


class Clock:
    """Time as the test has it."""

    now = 1000.0

    def __call__(self) -> float:
        """Seconds."""
        return self.now


class Log:
    """A key log, and a capture that reads it."""

    def __init__(self, path: Path) -> None:
        self.path, self.clock = path, Clock()
        path.touch()
        self.logs = KeyLogs([str(path)], self.clock)

    def write(self, *numbers: int) -> None:
        """Write lines, and wait until they are read."""
        end = self.logs.end + len(numbers)
        self.add(*numbers)
        until(lambda: self.logs.end == end, "the lines are read")

    def add(self, *numbers: int) -> None:
        """Write lines."""
        with self.path.open("ab") as file:
            file.write(b"".join(map(line, numbers)))


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    """The key log of the test."""
    made = Log(tmp_path / "keys.log")
    with made.logs:
        yield made


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """The directory of the files."""
    return tmp_path / "captures"


def rotating(log: Log, place: Path, **limits: int) -> RotatingOutput:
    """An output that writes files."""
    output = RotatingOutput(CaptureDirectory(place), Limits(**limits), key_logs=log.logs)
    output.add_interface(LO)
    return output


def finished(place: Path) -> list[list[tuple[int, list[bytes]]]]:
    """The secrets blocks of each finished file, after capinfos has read it."""
    files = sorted(path for path in place.glob("*.pcapng") if not path.is_symlink())
    for path in files:
        judge(path, "capinfos")
    return [found(path.read_bytes()) for path in files]


def lines(*numbers: int) -> list[bytes]:
    """Lines with these numbers."""
    return list(map(line, numbers))


def test_secrets_stand_before_all_packets(log: Log, place: Path) -> None:
    """A line that is read after its packets stands at the beginning of the file."""
    output = rotating(log, place)
    output.write_blocks(memoryview(small(1)), list)
    log.write(1)
    output.write_blocks(memoryview(small(2)), list)
    log.write(2)
    output.finish([])
    output.close()
    assert finished(place) == [[(0, lines(1, 2))]]


def test_an_unfinished_file_has_them(log: Log, place: Path, tmp_path: Path) -> None:
    """A second after a line was read, the file that is being written has it, and is complete."""
    output = rotating(log, place)
    output.write_blocks(memoryview(small(1)), list)
    log.write(1)
    (part,) = (path for path in place.glob("*.part") if not path.is_symlink())
    copy = tmp_path / "copy.pcapng"

    def has_line() -> bool:
        output.tick(list)
        if output.completed < output.accepted:  # half of a block can be in the file
            return False
        shutil.copy(part, copy)
        return found(copy.read_bytes()) == [(0, lines(1))]

    until(has_line, "the line is in the file")
    judge(copy, "capinfos")
    output.close()


def test_a_file_has_what_is_read_until_it_is_finished(log: Log, place: Path) -> None:
    """A line that is written when the file already ends is in it, and in the next file, too."""
    output = rotating(log, place, packets=1)
    output.write_blocks(memoryview(small(1)), list)
    log.add(1)  # maybe not read yet
    output.write_blocks(memoryview(small(2)), list)
    output.finish([])
    output.close()
    assert finished(place) == [[(0, lines(1))], [(0, lines(1))]]


def test_a_file_has_no_old_lines(log: Log, place: Path) -> None:
    """A file has the lines of the 10 s before it, and no older ones."""
    output = rotating(log, place)
    log.write(1)
    log.clock.now += 6
    log.write(2)
    log.clock.now += 6
    output.rotate(list)
    output.collect_finished(wait=True)  # a file has what is read until it is finished
    log.write(3)
    output.finish([])
    output.close()
    assert finished(place) == [[(0, lines(1, 2))], [(0, lines(2, 3))]]


def test_more_than_fit_stand_between_the_packets(log: Log, place: Path) -> None:
    """Lines that do not fit into the room are blocks before the next packets; none is missing."""
    output = rotating(log, place)
    log.write(*range(RESERVED_LINES - 10))
    output.write_blocks(memoryview(small(1)), list)
    log.write(*range(RESERVED_LINES, RESERVED_LINES + 20))
    output.write_blocks(memoryview(small(2)), list)
    log.write(7_000_000)
    output.finish([])
    output.close()
    ((room, *more),) = finished(place)
    assert room[0] == 0
    assert len(room[1]) >= RESERVED_LINES - 10
    assert [number for number, _ in more] == [1, 2]
    everything = room[1] + more[0][1] + more[1][1]
    assert everything == lines(*range(RESERVED_LINES - 10), *range(RESERVED_LINES, RESERVED_LINES + 20), 7_000_000)


def test_a_full_room_survives_direct_writes(log: Log, place: Path) -> None:
    """Large writes after the room repeat the last bytes of the block before: no line is overwritten."""
    output = rotating(log, place)
    log.write(*range(RESERVED_LINES - 1))
    output.write_blocks(memoryview(small(1)), list)
    big = b"".join(packet(0, bytes(60_000), STAMP.options) for _ in range(40))
    for _ in range(3):
        output.write_blocks(memoryview(big), list)
        output.flush(list)
    output.finish([])
    output.close()
    assert finished(place) == [[(0, lines(*range(RESERVED_LINES - 1)))]]
    assert secrets.RESERVED - secrets.RESERVED_START - secrets.RESERVED_FOR_LINES > DISK_BLOCK


def test_a_dump_has_the_secrets_of_its_packets(log: Log, place: Path) -> None:
    """A dump has all lines in memory, however old they are."""
    files = RotatingOutput(CaptureDirectory(place), Limits(), key_logs=log.logs, on_demand=True)
    output = Recorder(files, 1 << 23)
    output.add_interface(LO)
    log.write(1)
    log.clock.now += 3600
    output.write_blocks(memoryview(small(1)), list)
    log.write(2)
    output.dump(list)
    output.finish([])
    output.close()
    assert finished(place) == [[(0, lines(1, 2))]]


def test_a_file_of_the_user(log: Log, tmp_path: Path) -> None:
    """A file that is named on the command line has them, too."""
    path = tmp_path / "mine.pcapng"
    file = CaptureFile(path, part=False, jobs=Worker("writer"))
    output = FileOutput(file, key_logs=log.logs)
    output.add_interface(LO)
    output.write_blocks(memoryview(small(1)))
    log.add(1)
    output.finish([])
    file.close()
    judge(path, "capinfos")
    assert found(path.read_bytes()) == [(0, lines(1))]


def test_a_pipe_has_them_as_they_come(log: Log, tmp_path: Path) -> None:
    """In a pipe, each line stands before the packets that are written after it was read; there is no empty block."""
    path = tmp_path / "piped.pcapng"
    reading, writing = os.pipe()
    target = PipeTarget(writing)
    output = FileOutput(target, key_logs=log.logs)
    output.add_interface(LO)
    log.write(1)
    output.write_blocks(memoryview(small(1)))
    log.write(2)
    output.write_blocks(memoryview(small(2)))
    output.finish([])
    target.close()
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        path.write_bytes(pipe.read())
    judge(path, "capinfos")
    assert found(path.read_bytes()) == [(0, lines(1)), (1, lines(2))]


def test_a_full_disk(log: Log, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """If a file is cut within its room, nothing is written behind its end."""
    path = tmp_path / "a.pcapng"
    file = CaptureFile(path, part=False)
    output = FileOutput(file, key_logs=log.logs)
    os.ftruncate(file.descriptor, 1000)
    log.write(1)
    output.flush()
    assert path.stat().st_size == 1000
    assert not [text for text in caplog.messages if "missing" in text]
    file.close()


def test_the_block_is_empty_until_there_are_secrets(log: Log, place: Path) -> None:
    """Without lines, tshark and capinfos read a file without secrets and without a complaint."""
    output = rotating(log, place)
    output.write_blocks(memoryview(small(1)), list)
    output.finish([])
    output.close()
    assert finished(place) == [[(0, [])]]
    for path in place.glob("skbcapd-*.pcapng"):
        assert judge(path, "tshark").count("\n") == 1


WRITER = """
import sys, time
from pathlib import Path
from skbcapd.output.directory import CaptureDirectory
from skbcapd.output.key_log import KeyLogs
from skbcapd.output.rotation import RotatingOutput
from skbcapd.output.triggers import Limits
from tests.support.key_logs import line
from tests.support.rotation import LO, small

place, keys = map(Path, sys.argv[1:])
with KeyLogs([str(keys)]) as logs, keys.open("ab", buffering=0) as log:
    output = RotatingOutput(CaptureDirectory(place), Limits(), key_logs=logs)
    output.add_interface(LO)
    for number in range(1_000_000):
        log.write(line(number))
        output.write_blocks(memoryview(small(number)), list)
        output.flush(list)
        time.sleep(0.001)
"""


def test_a_killed_capture_leaves_complete_files(place: Path, tmp_path: Path) -> None:
    """A capture that is killed while it writes secrets leaves a file that opens, with the first lines of the log."""
    keys = tmp_path / "keys.log"
    keys.touch()
    with subprocess.Popen([sys.executable, "-c", WRITER, str(place), str(keys)], cwd=ROOT) as writer:

        def has_many() -> bool:
            parts = [path for path in place.glob("*.part") if not path.is_symlink()]
            return bool(parts) and parts[0].read_bytes().count(b"CLIENT_RANDOM") > 100

        try:
            until(has_many, "secrets are in the file")
        finally:
            writer.kill()
    CaptureDirectory(place).close()  # the next start
    ((room,),) = finished(place)
    whole = [each for each in room[1] if len(each) == len(line(1)) and each.startswith(b"CLIENT_RANDOM")]
    assert len(whole) > 100
    assert whole == lines(*range(len(whole)))
    assert len(room[1]) - len(whole) <= 2  # a line that was cut, and the rest of the comment behind it
