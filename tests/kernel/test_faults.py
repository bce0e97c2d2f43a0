"""The daemon, with a disk that fails: dropped packets are counted, and begin and end are logged
once.

In each case frames are sent before, during and after the fault. Those before and after are in
files, those during are counted as dropped by the output, and no frame is neither.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

import pytest

from tests.kernel.capture import Daemon, Ended, read
from tests.kernel.comparison import Marker
from tests.kernel.namespace import Wire
from tests.support import faults
from tests.support.blocks import packets as parse
from tests.support.deadline import until

pytestmark = pytest.mark.faults

BEFORE, DURING, AFTER = 101, 211, 307
STOPPED, AGAIN = "packets are dropped until files can be written again", "writing again"
LOST = "dropped by the output"
SMALL = {"files__keep_free": "0", "files__keep_size": "0"}


@pytest.fixture
def marker(wire: Wire) -> Iterator[Marker]:
    """A sender of numbered frames at the near end (this process)."""
    with closing(Marker(wire.near.namespace, wire.near.device)) as made:
        yield made


@contextmanager
def disk(kind: str, tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MiB."""
    place, image = tmp_path / "disk", tmp_path / "image"
    place.mkdir()
    if kind in ("tmpfs", "inodes"):
        limits = {"tmpfs": "size=24m", "inodes": "size=24m,nr_inodes=64"}
        command = ["mount", "-t", "tmpfs", "-o", limits[kind], "tmpfs"]
    else:
        with image.open("wb") as file:
            file.truncate(24 << 20)
        subprocess.run(["mkfs.ext4", "-q", "-m", "0", str(image)], check=True)
        command = ["mount", "-o", "loop", str(image)]
    subprocess.run([*command, str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def send(marker: Marker, count: int) -> None:
    """Send so many frames."""
    for _ in range(count):
        marker.send()


def outgoing(*files: Path) -> list[bytes]:
    """Frames that the near end sent, from files that tshark and capinfos read without a warning."""
    return [packet.data for file in files for packet in read(file) if packet.direction == "out"]


def finished(directory: Path) -> list[Path]:
    """The finished files, oldest first."""
    return sorted(entry for entry in directory.glob("skbcapd-*.pcapng") if not entry.is_symlink())


def in_work(directory: Path) -> bytes:
    """The current file."""
    return b"".join(entry.read_bytes() for entry in directory.glob("*.part"))


def check(name: str, ended: Ended, marker: Marker, found: list[bytes]) -> None:
    """The frames before and after are in files, the others counted; begin and end were logged once."""
    assert ended.exit_code == 0, ended.stderr
    assert ended.stderr.count(STOPPED) == ended.stderr.count(AGAIN) == 1, ended.stderr
    lost = ended.totals.get(LOST, 0)
    faults.add(name, 1, BEFORE + AFTER, len(found), BEFORE + AFTER - len(set(found) & set(kept(marker))))
    assert found[:BEFORE] == marker.sent[:BEFORE]
    assert found[-AFTER:] == marker.sent[-AFTER:]
    assert ended.totals["dropped by kernel"] == 0
    assert len(found) + lost == BEFORE + DURING + AFTER


def kept(marker: Marker) -> list[bytes]:
    """The expected frames."""
    return marker.sent[:BEFORE] + marker.sent[-AFTER:]


def trial(
    daemon: Daemon,
    marker: Marker,
    written: Callable[[], bytes],
    breaks: Callable[[], object],
    mends: Callable[[], object],
) -> Ended:
    """Frames before, during and after a fault."""
    send(marker, BEFORE)
    until(lambda: marker.sent[-1] in written(), "what was sent before the fault is written")
    breaks()

    def stopped() -> bool:
        return STOPPED in daemon.said()

    half = DURING // 2
    send(marker, half)
    until(stopped, "it says that it cannot write")
    send(marker, DURING - half)
    mends()
    until(lambda: AGAIN in daemon.said(), "it says that it can write again")
    send(marker, AFTER)
    return daemon.stop()


@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
def test_a_full_disk(kind: str, wire: Wire, marker: Marker, tmp_path: Path) -> None:
    """While a disk is full, packets are dropped and counted."""
    with ExitStack() as stack:
        place = stack.enter_context(disk(kind, tmp_path))
        directory, ballast = place / "captures", place / "ballast"
        daemon = stack.enter_context(closing(Daemon(wire.near, directory, **SMALL)))

        def fill() -> None:
            with ballast.open("wb", buffering=0) as file:
                size = 1 << 20
                while size:
                    try:
                        file.write(bytes(size))
                    except OSError:
                        size //= 2
            os.sync()

        def full() -> None:
            fill()
            # Use up the space that a file system has reserved for the current file.
            while STOPPED not in daemon.said():
                marker.send()

        send(marker, BEFORE)
        until(lambda: marker.sent[-1] in in_work(directory), "what was sent before is written")
        full()
        counted = len(marker.sent)
        ballast.unlink()
        until(lambda: AGAIN in daemon.said(), "it says that it can write again")
        send(marker, AFTER)
        ended = daemon.stop()

        found = outgoing(*finished(directory))
        lost = ended.totals[LOST]
        assert found[:BEFORE] == marker.sent[:BEFORE]
        assert found[-AFTER:] == marker.sent[-AFTER:]
        assert len(found) + lost == counted + AFTER
        assert ended.stderr.count(STOPPED) == ended.stderr.count(AGAIN) == 1
        missing = len(set(kept(marker)) - set(found))
        faults.add(f"full {kind}", 1, BEFORE + AFTER, len(found), missing)


def test_a_directory_removed(wire: Wire, marker: Marker, tmp_path: Path) -> None:
    """A directory that was deleted is created again; later packets are there."""
    directory = tmp_path / "captures"
    with closing(Daemon(wire.near, directory, **SMALL)) as daemon:

        def remove() -> None:
            for entry in directory.iterdir():
                entry.unlink()
            directory.rmdir()

        ended = trial(daemon, marker, lambda: in_work(directory), remove, lambda: None)
    found = outgoing(*finished(directory))
    assert ended.exit_code == 0
    assert found[-AFTER:] == marker.sent[-AFTER:]
    assert ended.stderr.count(STOPPED) == ended.stderr.count(AGAIN) == 1
    faults.add("directory removed", 1, AFTER, len(found), len(set(marker.sent[-AFTER:]) - set(found)))


def test_a_directory_replaced(wire: Wire, marker: Marker, tmp_path: Path) -> None:
    """A directory that was moved keeps its files; a new one in its place gets later packets."""
    directory, old = tmp_path / "captures", tmp_path / "old"
    with closing(Daemon(wire.near, directory, **SMALL)) as daemon:

        def replace() -> None:
            directory.rename(old)
            directory.mkdir()

        ended = trial(daemon, marker, lambda: in_work(directory), replace, lambda: None)
    before = [packet.data for packet in parse(in_work(old)) if packet.direction == "out"]
    check("directory replaced", ended, marker, before + outgoing(*finished(directory)))


def test_a_directory_that_cannot_be_written(wire: Wire, marker: Marker, tmp_path: Path) -> None:
    """If no new file can be created, the old one continues or packets are counted, until one can be
    created.
    """
    with ExitStack() as stack:
        directory = stack.enter_context(disk("ext4", tmp_path)) / "captures"
        directory.mkdir()
        daemon = stack.enter_context(closing(Daemon(wire.near, directory, **SMALL)))

        def forbid() -> None:
            subprocess.run(["chattr", "+i", str(directory)], check=True)
            daemon.process.send_signal(signal.SIGUSR1)

        def allow() -> None:
            subprocess.run(["chattr", "-i", str(directory)], check=True)

        stack.callback(allow)
        ended = trial(daemon, marker, lambda: in_work(directory), forbid, allow)
        parts = [packet.data for packet in parse(in_work(directory)) if packet.direction == "out"]
        check("directory not writable", ended, marker, parts + outgoing(*finished(directory)))


def test_no_free_inode(wire: Wire, marker: Marker, tmp_path: Path) -> None:
    """If the file system has no inode left for the next file, packets are counted until it has one."""
    with ExitStack() as stack:
        place = stack.enter_context(disk("inodes", tmp_path))
        directory, others = place / "captures", place / "others"
        others.mkdir()
        daemon = stack.enter_context(closing(Daemon(wire.near, directory, **SMALL)))

        def use_up() -> None:
            with suppress(OSError):
                for number in range(1009):
                    (others / str(number)).touch()
            daemon.process.send_signal(signal.SIGUSR1)

        ended = trial(daemon, marker, lambda: in_work(directory), use_up, lambda: shutil.rmtree(others))
        check("no free inode", ended, marker, outgoing(*finished(directory)))


def test_two_daemons(wire: Wire, tmp_path: Path) -> None:
    """A second daemon for the same directory ends at once, with a message; the first continues."""
    with closing(Daemon(wire.near, tmp_path)) as first:
        with pytest.raises(
            AssertionError, match=f"ended before it captured: .*{tmp_path}: another skbcapd writes to it"
        ):
            Daemon(wire.near, tmp_path)
        assert first.stop().exit_code == 0


def test_a_killed_daemon(wire: Wire, marker: Marker, tmp_path: Path) -> None:
    """After SIGKILL, the next start finishes the file; it has all blocks that were written."""
    tries = 3
    for number in range(tries):
        with closing(Daemon(wire.near, tmp_path)) as daemon:
            until(lambda number=number: len(finished(tmp_path)) == number, "earlier ones are finished")  # type: ignore[misc]
            send(marker, 1009)
            until(lambda: marker.sent[-1] in in_work(tmp_path), "the last frame is written")
            daemon.stop(signal.SIGKILL)
    with closing(Daemon(wire.near, tmp_path)) as daemon:
        until(lambda: len(finished(tmp_path)) == tries, "all are finished")
        said = daemon.stop().stderr
    found = outgoing(*finished(tmp_path))
    faults.add("daemon killed by SIGKILL", tries, len(marker.sent), len(found), len(set(marker.sent) - set(found)))
    assert found == marker.sent
    assert not in_work(tmp_path)
    assert "finished after a crash" in said
