"""Files after a crash are finished; other things with such names are not changed."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from skbcapd.output import blocks, crashed
from skbcapd.output.directory import CaptureDirectory
from tests.support import faults
from tests.support.captures import SECTION, names
from tests.support.deadline import until
from tests.support.writer import packet

NAME = "skbcapd-a-20261123T030405.123Z-000041.pcapng"


@pytest.mark.parametrize("kind", ["fifo", "directory", "device", "link", "hard link"])
def test_a_part_that_is_no_file(kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A FIFO is not waited for; a link is not followed; a file with a second name is not cut."""
    victim, part = tmp_path / "victim", tmp_path / f"{NAME}.part"
    victim.write_bytes(SECTION + b"precious")
    if kind == "fifo":
        os.mkfifo(part)
    elif kind == "directory":
        part.mkdir()
    elif kind == "device":
        os.mknod(part, 0o20600, os.makedev(1, 5))
    elif kind == "link":
        part.symlink_to("victim")
    else:
        part.hardlink_to(victim)
    directory = CaptureDirectory(tmp_path)
    assert names(tmp_path) == sorted([f"{NAME}.part", "victim"])
    assert victim.read_bytes() == SECTION + b"precious"
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith(f"{tmp_path / NAME}.part: ")
    assert directory.new_file().path.name.endswith("-000042.pcapng")


def test_a_large_file_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A search that takes too long continues in another process; numbers continue at once."""
    monkeypatch.setattr(crashed, "SEARCH_S", 0.0)
    whole = SECTION + packet(0, bytes(70_000)) * 101
    (tmp_path / f"{NAME}.part").write_bytes(whole + packet(0, bytes(70))[:-3])
    directory = CaptureDirectory(tmp_path)
    assert names(tmp_path) == [f"{NAME}.part"]
    assert directory.new_file().path.name.endswith("-000042.pcapng")
    until(lambda: (directory.tick(), bool(caplog.messages))[1], "it is finished")
    torn = len(packet(0, bytes(70))) - 3
    assert caplog.messages == [
        f"{tmp_path / NAME}.part: finished after a crash, {torn} bytes of an incomplete block cut off"
    ]
    assert (tmp_path / NAME).read_bytes() == whole


def test_many_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many files crashes have left, few are open at a time, and all are finished."""
    monkeypatch.setattr(crashed, "SEARCH_S", 0.0)
    data = SECTION + packet(0, bytes(60))
    for number in range(1, 24):
        (tmp_path / NAME.replace("41", f"{number:02}")).with_suffix(".pcapng.part").write_bytes(data + b"torn")
    before = len([*Path("/proc/self/fd").iterdir()])
    directory = CaptureDirectory(tmp_path)
    assert len([*Path("/proc/self/fd").iterdir()]) < before + 10
    until(lambda: (directory.tick(), not [*tmp_path.glob("*.part")])[1], "all are finished")
    assert len(names(tmp_path)) == 23
    assert {(tmp_path / name).read_bytes() for name in names(tmp_path)} == {data}
    directory.close()
    assert len([*Path("/proc/self/fd").iterdir()]) == before


def test_a_search_that_is_not_over_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a capture ends before the search, the next start finishes the file."""
    monkeypatch.setattr(crashed, "SEARCH_S", 0.0)
    data = SECTION + packet(0, bytes(70_000)) * 101
    (tmp_path / f"{NAME}.part").write_bytes(data)
    slow = tmp_path / "slow.py"
    slow.write_text("import time; time.sleep(60)")
    with monkeypatch.context() as patched:  # a quick search may be over by chance
        patched.setattr(blocks, "__file__", str(slow))
        directory = CaptureDirectory(tmp_path)
        directory.tick()
        directory.close()
    assert (tmp_path / f"{NAME}.part").read_bytes() == data
    monkeypatch.setattr(crashed, "SEARCH_S", 60.0)
    CaptureDirectory(tmp_path).close()
    assert (tmp_path / NAME).read_bytes() == data


def test_a_start_beside_much(tmp_path: Path) -> None:
    """A start with more files than can be searched in time takes at most a second."""
    with (tmp_path / f"{NAME}.part").open("wb") as file:
        file.write(SECTION)
        content = packet(0, bytes(60)) * 11_000
        for _ in range((200 << 20) // len(content)):
            file.write(content)
    begun = time.monotonic()
    directory = CaptureDirectory(tmp_path)
    took = time.monotonic() - begun
    faults.compare("a large file left by a crash", 1, f"200 MiB: the start takes {took:.1f} s")
    assert took < 1.0
    directory.close()
