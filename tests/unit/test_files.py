"""Capture files: names, modes, the way from NAME.part to NAME, and what is said when a file cannot be used."""

from __future__ import annotations

import errno
import os
import re
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from skbcapd.errors import FileError
from skbcapd.files import BlockSink, CaptureFile, StandardOutput, count_packets, owner_ids
from tests.unit.writer import block, packet

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _umask() -> Iterator[None]:
    """The umask that systemd and Debian's login give."""
    before = os.umask(0o022)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    """Permission bits."""
    return stat.S_IMODE(path.stat().st_mode)


def names(directory: Path) -> list[str]:
    """What is in a directory."""
    return [entry.name for entry in directory.iterdir()]


def test_what_is_flushed_can_be_read_before_the_end(tmp_path: Path) -> None:
    """A file in work holds all that was flushed, under the name that is shown."""
    file = CaptureFile(tmp_path / "a.pcapng", part=True)
    file.stream.write(b"blocks")
    file.stream.flush()
    assert file.working_path == tmp_path / "a.pcapng.part"
    assert file.working_path.read_bytes() == b"blocks"
    file.close()


def test_a_file_that_the_user_named(tmp_path: Path) -> None:
    """A file from the command line has its name from the start, and replaces what was there."""
    path = tmp_path / "mine.pcapng"
    path.write_bytes(b"old and long")
    file = CaptureFile(path, part=False)
    assert names(tmp_path) == ["mine.pcapng"]
    file.stream.write(b"new")
    file.close()
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize(
    ("name", "reason"),
    [("missing/a", "No such file or directory"), ("file/a", "Not a directory"), ("directory", "Is a directory")],
)
def test_a_file_that_cannot_be_opened(name: str, reason: str, tmp_path: Path) -> None:
    """The error names the file and the reason."""
    (tmp_path / "file").touch()
    (tmp_path / "directory").mkdir()
    with pytest.raises(FileError, match=rf"{re.escape(str(tmp_path / name))}: {reason}; expected a file to write to"):
        CaptureFile(tmp_path / name, part=False)


def test_a_full_disk(tmp_path: Path) -> None:
    """What the disk does not take at the end is said once; nothing tries to write it again."""
    full = tmp_path / "full"
    full.symlink_to("/dev/full")
    file = CaptureFile(full, part=False)
    file.stream.write(packet(0))
    with pytest.raises(FileError, match="full: No space left on device while finishing it"):
        file.close()


def test_what_a_full_disk_refuses_is_counted() -> None:
    """After an error a sink takes no more, and counts packets, no other blocks, of what was held and what comes."""
    with Path("/dev/full").open("wb") as full:
        sink = BlockSink(full.fileno())
        sink.write(packet(0) + block(1, 0, b"", b""))
        assert (sink.lost, sink.error) == (0, None)
        sink.flush()
        sink.write(memoryview(packet(1) * 3))
        assert (sink.lost, sink.size) == (4, 0)
        assert sink.error is not None
        assert sink.error.errno == errno.ENOSPC


def test_a_torn_block_is_cut_off(tmp_path: Path) -> None:
    """Of a write that the disk took in part, nothing stays: the file ends with the last whole block."""
    program = (
        "import resource, signal, sys; from skbcapd.files import CaptureFile; from pathlib import Path\n"
        "from tests.unit.writer import packet\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "file = CaptureFile(Path(sys.argv[1]), part=True)\n"
        "file.stream.write(packet(0, bytes(70_000)))\n"
        "file.stream.write(packet(0, bytes(70_000)))\n"
        "print(file.stream.lost, file.stream.size)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "a.pcapng")],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    assert done.stdout == f"1 {len(packet(0, bytes(70_000)))}\n"
    assert (tmp_path / "a.pcapng.part").read_bytes() == packet(0, bytes(70_000))


def test_packets_are_counted_among_blocks() -> None:
    """Only Enhanced Packet Blocks count."""
    assert count_packets(packet(0) + block(5, 0, b"", b"") + packet(1, b"x")) == 2
    assert count_packets(b"") == 0


def test_owners() -> None:
    """A name is looked up; what is not said is -1; a stranger is an error that names the setting."""
    assert owner_ids("self") == (-1, -1)
    assert owner_ids("root") == (0, -1)
    assert owner_ids("root:root") == (0, 0)
    assert owner_ids(":root") == (-1, 0)
    with pytest.raises(FileError, match=r"files\.owner is nobody-here: no such user or group"):
        owner_ids("nobody-here")


def test_a_file_that_was_taken_away(tmp_path: Path) -> None:
    """A file that somebody removed while it was written cannot get its name, and that is said."""
    file = CaptureFile(tmp_path / "a.pcapng", part=True)
    file.working_path.unlink()
    with pytest.raises(FileError, match=r"a\.pcapng\.part: No such file or directory while finishing it"):
        file.close()


def test_standard_output_takes_blocks_and_lines() -> None:
    """Blocks go to the descriptor as they are, lines as ASCII; both are there once it is closed."""
    reading, writing = os.pipe()
    output = StandardOutput(writing)
    output.stream.write(b"\xff\0\n")
    output.text.write("line\n")
    output.close()
    assert os.read(reading, 100) == b"\xff\0\nline\n"
    os.close(reading)
    os.close(writing)


@pytest.mark.parametrize("way", ["stream.write(b'blocks')", "text.write('line')"])
@pytest.mark.parametrize(
    ("reader", "said"),
    [("closed", ""), ("full", "standard output: No space left on device while finishing it")],
)
def test_standard_output_that_takes_no_more(way: str, reader: str, said: str) -> None:
    """A reader that has gone is no error; a full device is one, said once, also when the interpreter ends."""
    program = (
        "from skbcapd.files import StandardOutput, FileError\n"
        "output = StandardOutput()\n"
        f"output.{way}\n"
        "try:\n    output.stream.flush() or output.text.flush()\nexcept OSError:\n    pass\n"
        "try:\n    output.close()\nexcept FileError as error:\n    print(error, file=__import__('sys').stderr)\n"
    )
    reading, writing = os.pipe() if reader == "closed" else (os.open(os.devnull, 0), os.open("/dev/full", os.O_WRONLY))
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-c", program], stdout=writing, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writing)
    assert (done.returncode, done.stderr.strip()) == (0, said)
