"""The directory of capture files: names, retention, lock, and files from before a crash."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from skbcapd.errors import FileError
from skbcapd.output.directory import CaptureDirectory
from skbcapd.output.naming import CURRENT, escaped_host
from skbcapd.output.retention import Keep
from tests.support import faults
from tests.support.captures import SECTION, names, write
from tests.support.deadline import until
from tests.support.writer import packet

ROOT = Path(__file__).parents[2]


def test_the_next_file_knows_the_disk(tmp_path: Path) -> None:
    """How fast the disk is, and how much the page cache has for it, does not begin again with each file, unless the
    directory was replaced: that can be on another disk.
    """
    path = tmp_path / "captures"
    directory = CaptureDirectory(path)
    first = directory.new_file()
    first.stream.disk.mode.direct.add(1 << 25, 1.0)
    directory.finish(first)
    second = directory.new_file()
    assert second.stream.disk.mode.direct.rate == 1 << 25
    directory.finish(second)
    until(lambda: not directory.waiting, "its files are finished")
    path.rename(tmp_path / "moved")
    assert directory.new_file().stream.disk.mode.direct.rate == float("inf")
    directory.close()


def test_names_and_the_link(tmp_path: Path) -> None:
    """Names have host, UTC time and an increasing number; the link points to the current file, then
    to its final name.
    """
    path = tmp_path / "deep" / "captures"
    directory = CaptureDirectory(path)
    host = re.escape(socket.gethostname())
    file = directory.new_file()
    assert re.fullmatch(rf"skbcapd-{host}-\d{{8}}T\d{{6}}\.\d{{3}}Z-000001\.pcapng", file.path.name)
    assert names(path) == [file.path.name + ".part"]
    directory.begin(file)
    until(
        lambda: (path / CURRENT).exists() and (path / CURRENT).readlink() == file.working_path.relative_to(path),
        "the link leads to it",
    )
    directory.finish(file)
    assert [(done, error) for done, error in directory.finished(wait=True)] == [(file, None)]
    assert names(path) == [file.path.name]
    assert (path / CURRENT).readlink() == Path(file.path.name)
    later = [write(directory, b"") for _ in range(11)]
    assert sorted(later) == later
    assert later[-1].name.endswith("-000012.pcapng")
    directory.close()
    assert write(CaptureDirectory(path), b"").name.endswith("-000013.pcapng")


def test_a_link_of_another_s_stays(tmp_path: Path) -> None:
    """A file named current.pcapng that is not a link is not replaced."""
    (tmp_path / CURRENT).write_bytes(b"mine")
    write(CaptureDirectory(tmp_path), b"")
    assert (tmp_path / CURRENT).read_bytes() == b"mine"


def test_a_second_capture_is_refused(tmp_path: Path) -> None:
    """Only one process writes to a directory; after it has ended, another one can."""
    directory = CaptureDirectory(tmp_path)
    program = "import sys; from pathlib import Path; from skbcapd.output.directory import CaptureDirectory\n"
    program += "CaptureDirectory(Path(sys.argv[1]))"
    command = [sys.executable, "-c", program, str(tmp_path)]
    refused = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert f"FileError: {tmp_path}: another skbcapd writes to it" in refused.stderr
    directory.close()
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize("mode", [0o640, 0o604])
def test_the_mode_is_the_settings(mode: int, tmp_path: Path) -> None:
    """A file has the mode of the setting, also with the umask of the systemd unit (which leaves
    600).
    """
    before = os.umask(0o077)
    try:
        path = write(CaptureDirectory(tmp_path, mode=mode), b"")
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o7777 == mode


def test_an_owner_that_cannot_be_set(tmp_path: Path) -> None:
    """Without CAP_CHOWN, files have the owner of the process, the right mode, and one line is
    logged for all of them.
    """
    program = "import sys; from pathlib import Path; from skbcapd.output.directory import CaptureDirectory\n"
    program += "place = CaptureDirectory(Path(sys.argv[1]), owner=(1009, -1), mode=0o604)\n"
    program += "for _ in range(3): place.finish(place.new_file())\nplace.wait()"
    stripped = ["setpriv", "--inh-caps=-all", "--bounding-set=-all"] if os.geteuid() == 0 else []
    command = [*stripped, sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert re.fullmatch(r".*-000001\.pcapng\.part: Operation not permitted; expected .*files\.owner.*\n", done.stderr)
    found = [path.stat() for path in tmp_path.glob("skbcapd-*.pcapng")]
    assert [(one.st_uid, one.st_mode & 0o7777) for one in found] == [(os.geteuid(), 0o604)] * 3


@pytest.mark.parametrize("name", ["file", "file/captures"])
def test_a_directory_that_cannot_be_made(name: str, tmp_path: Path) -> None:
    """The error names the directory of the config file."""
    (tmp_path / "file").touch()
    with pytest.raises(FileError, match=rf"{tmp_path / name}: .*; expected a directory to write captures to"):
        CaptureDirectory(tmp_path / name)


@pytest.mark.parametrize(
    ("keep", "left"),
    [
        (Keep(), 7),
        (Keep(number=3), 3),
        (Keep(size=250), 2),
        (Keep(size=99), 0),
        (Keep(age_s=3600), 4),
        (Keep(number=5, age_s=3600), 4),
    ],
)
def test_the_oldest_are_deleted(keep: Keep, left: int, tmp_path: Path) -> None:
    """Each limit deletes the oldest files first; compressed files count; the current file and other
    files stay.
    """
    directory = CaptureDirectory(tmp_path, keep=keep)
    made = [write(directory, bytes(100)) for _ in range(7)]
    made[2] = made[2].rename(made[2].with_name(made[2].name + ".zst"))
    for place, path in enumerate(made):
        age = 7200 if place < 3 else 10
        os.utime(path, (time.time() - age, time.time() - age))
    others = ["mine.pcapng", "skbcapd-x.pcapng", made[0].name + ".bak", "dir-000001.pcapng"]
    for name in others:
        (tmp_path / name).write_bytes(bytes(1000))
    at_work = directory.new_file()

    directory.clean()
    expected = [path.name for path in made[7 - left :]] + others + [at_work.working_path.name]
    assert names(tmp_path) == sorted(expected)


def test_a_template_of_one_s_own(tmp_path: Path) -> None:
    """Only files with names of the template are counted, numbered and deleted."""
    directory = CaptureDirectory(tmp_path, "edge+{number}_{time}.pcapng", Keep(number=1))
    (tmp_path / "skbcapd-a-20261123T030405.123Z-000099.pcapng").touch()
    first, second = write(directory, b""), write(directory, b"")
    directory.clean()
    assert re.fullmatch(r"edge\+000001_\d{8}T\d{6}\.\d{3}Z\.pcapng", first.name)
    assert names(tmp_path) == sorted([second.name, "skbcapd-a-20261123T030405.123Z-000099.pcapng"])


@pytest.mark.parametrize("torn", [0, 1, 7, 8, 20, len(packet(0, bytes(70))) - 1])
def test_files_of_a_crash_are_finished(torn: int, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An unfinished file of an earlier run is renamed, without its incomplete block; numbers
    continue after it.
    """
    name = "skbcapd-a-20261123T030405.123Z-000041.pcapng"
    whole = SECTION + packet(0, b"one")
    (tmp_path / f"{name}.part").write_bytes(whole + packet(0, bytes(70))[:torn])
    directory = CaptureDirectory(tmp_path)

    assert (tmp_path / name).read_bytes() == whole
    assert caplog.messages == [
        f"{tmp_path / name}.part: finished after a crash, {torn} bytes of an incomplete block cut off"
    ]
    assert directory.new_file().path.name.endswith("-000042.pcapng")


def test_empty_and_half_compressed_files_of_a_crash_are_deleted(tmp_path: Path) -> None:
    """A file without a complete block, and the output of an interrupted compressor, are deleted;
    other files are not.
    """
    name = "skbcapd-a-20261123T030405.123Z-000041.pcapng"
    for left in (f"{name}.part", f"{name.replace('41', '42')}.gz.part", "mine.part", "mine.pcapng.part"):
        (tmp_path / left).write_bytes(b"junk")
    CaptureDirectory(tmp_path)
    assert names(tmp_path) == ["mine.part", "mine.pcapng.part"]


def test_a_directory_that_was_replaced_is_found_again(tmp_path: Path) -> None:
    """When the directory was deleted, the next file is made in a new one."""
    path = tmp_path / "captures"
    directory = CaptureDirectory(path)
    write(directory, b"")
    path.rename(tmp_path / "moved")
    assert not directory.is_there
    assert write(directory, b"").parent == path
    assert directory.is_there


@pytest.mark.parametrize(
    ("name", "expected"), [("web-1.example", "web-1.example"), ("a\x1b]0;b\x07/../c d", "a_]0_b__.._c_d"), ("", "_")]
)
def test_a_machine_may_be_called_anything(name: str, expected: str) -> None:
    """Only letters, digits, dots and hyphens of a host name are used in file names."""
    assert escaped_host(name) == expected.replace("]", "_")


def test_others_cannot_write_to_created_directories(tmp_path: Path) -> None:
    """Parent directories are created so that others can only read them, whatever the umask."""
    before = os.umask(0)
    try:
        CaptureDirectory(tmp_path / "a" / "b" / "captures").close()
    finally:
        os.umask(before)
    made = [tmp_path / "a", tmp_path / "a" / "b", tmp_path / "a" / "b" / "captures"]
    modes = [path.stat().st_mode & 0o7777 for path in made]
    faults.compare("parent directories, umask 0", 1, f"modes {', '.join(f'{mode:o}' for mode in modes)}")
    assert modes == [0o755, 0o755, 0o750]


def test_a_number_beyond_all_reason(tmp_path: Path) -> None:
    """A file with a huge number does not make new names too long."""
    for digits in (180, 13, 12):
        (tmp_path / f"skbcapd-a-20261123T030405.123Z-{'9' * digits}.pcapng").touch()
    directory = CaptureDirectory(tmp_path)
    assert directory.new_file().path.name.endswith("-000001.pcapng") or write(directory, b"")
    directory.close()
    again = CaptureDirectory(tmp_path)
    assert len(write(again, b"").name) < 80
