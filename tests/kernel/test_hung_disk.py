"""The daemon on a disk on which all operations hang, also reads.

The disk is a file system in user space (bindfs) whose process is stopped: open, stat, rename,
close, all of it waits until the process goes on.
"""

from __future__ import annotations

import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from skbcapd.cli.status import ask
from tests.kernel.capture import Daemon, read
from tests.kernel.namespace import Wire
from tests.kernel.test_disk import send, status
from tests.kernel.test_reload_faults import FED_WITHIN_S, SLOWNESS, Manager
from tests.support import faults
from tests.support.deadline import until
from tests.support.key_logs import found, line

pytestmark = pytest.mark.faults

HANGS_S = 3.0
ENDS_WITHIN_S = 8.0 * SLOWNESS  # after SIGTERM


class Disk:
    """A file system that can hang.

    Args:
        tmp_path: where it is mounted.
    """

    def __init__(self, tmp_path: Path) -> None:
        self.place, self._behind = tmp_path / "disk", tmp_path / "behind"
        self.place.mkdir()
        self._behind.mkdir()
        nothing_kept = "attr_timeout=0,entry_timeout=0,negative_timeout=0"
        self._server = subprocess.Popen(["bindfs", "-f", "-o", nothing_kept, str(self._behind), str(self.place)])
        until(self.place.is_mount, "it is mounted")

    @contextmanager
    def hung(self) -> Iterator[None]:
        """Stop the file system."""
        self._server.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._server.send_signal(signal.SIGCONT)

    def files(self) -> list[Path]:
        """The finished captures on it, not compressed."""
        for compressed in self._behind.glob("*/skbcapd-*.zst"):
            subprocess.run(["zstd", "-q", "-d", "--rm", str(compressed)], check=True)
        return sorted(self._behind.glob("*/skbcapd-*.pcapng"))

    def parts(self) -> list[Path]:
        """The unfinished captures."""
        return sorted(self._behind.glob("*/skbcapd-*.part"))

    def close(self) -> None:
        """Unmount it."""
        self._server.send_signal(signal.SIGCONT)
        subprocess.run(["umount", "--lazy", str(self.place)], check=True)
        self._server.terminate()
        self._server.wait()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """A disk that does not hang yet."""
    with closing(Disk(tmp_path)) as made:
        yield made


def sent_to(files: list[Path]) -> int:
    """The datagrams in files."""
    return sum(len(packet.data) > 1400 for path in files for packet in read(path))


@pytest.mark.parametrize("moment", ["writing", "new file", "compressing", "directory gone"])
def test_the_loop_does_not_notice(moment: str, wire: Wire, disk: Disk, tmp_path: Path) -> None:
    """While the disk hangs the daemon answers and the watchdog is fed; then each packet is in a
    file, or counted.
    """
    control, directory = tmp_path / "control", disk.place / "captures"
    settings = {
        "control__socket": str(control),
        "buffer__size": "64MiB",
        "files__keep_free": "1MiB",
        "files__keep_number": "20",
        "files__compress": "zstd",
    }
    count = 0

    def more(number: int) -> None:
        nonlocal count
        send(wire, number)
        count += number

    with (
        closing(Manager(tmp_path / "notify")) as manager,
        closing(Daemon(wire.near, directory, manager.environment, **settings)) as daemon,
    ):
        more(1009)
        until(lambda: status(control)["packets"]["written"] >= count, "what was sent before is written")
        if moment == "compressing":
            more(20_011)
            until(lambda: status(control)["packets"]["written"] >= count, "much is written")
            daemon.process.send_signal(signal.SIGUSR1)
            until(lambda: any(directory.glob("*.zst.part")), "it is compressed")
        if moment == "directory gone":
            directory.rename(disk.place / "old")
        with disk.hung():
            if moment == "new file":
                daemon.process.send_signal(signal.SIGUSR1)
            end = time.monotonic() + HANGS_S
            answers = 0
            while time.monotonic() < end:
                more(503)
                until(lambda: status(control)["packets"]["seen"] >= count, "what was sent is seen")
                answers += 1
        until(lambda: not status(control)["packets"]["pending"], "the disk has all")
        more(101)
        until(lambda: status(control)["packets"]["written"] >= 101, "it writes again")
        ended = daemon.stop(signal.SIGTERM)
        longest_s = manager.longest_s
    kept = sent_to([*disk.files(), *disk.parts()])
    dropped = ended.totals["dropped by kernel"] + ended.totals.get("dropped by the output", 0)
    now = f"{moment}: {answers} answers within 1 s, watchdog fed within {longest_s:.1f} s"
    faults.compare("a disk that hangs whole", 1, f"{now}, {kept} of {count} packets in files, {dropped} dropped")
    assert ended.exit_code == 0, ended.stderr
    assert longest_s < FED_WITHIN_S
    assert kept + dropped >= count
    assert ended.totals["captured"] == sum(len(read(path)) for path in [*disk.files(), *disk.parts()])
    if moment != "directory gone":
        assert "dropped by the output" not in ended.totals


def test_the_end_does_not_wait_for_it(wire: Wire, disk: Disk, tmp_path: Path) -> None:
    """SIGTERM while the disk hangs ends the capture in some seconds; packets that are not on the
    disk are counted as dropped.
    """
    control, count = tmp_path / "control", 5003
    settings = {"control__socket": str(control), "files__keep_free": "0", "files__compress": "zstd"}
    with closing(Daemon(wire.near, disk.place / "captures", **settings)) as daemon:
        send(wire, 1009)
        until(lambda: status(control)["packets"]["written"] >= 1009, "what was sent before is written")
        with disk.hung():
            send(wire, count)
            until(lambda: status(control)["packets"]["seen"] >= count + 1009, "what was sent is seen")
            begun = time.monotonic()
            daemon.process.send_signal(signal.SIGTERM)
            until(lambda: "packets captured" in daemon.said(), "it tells its totals")
            took = time.monotonic() - begun
        ended = daemon.wait()
    with closing(Daemon(wire.near, disk.place / "captures", **settings)) as daemon:
        until(lambda: "finished after a crash" in daemon.said(), "the file is finished")
        daemon.stop()
    assert disk.parts() == []
    kept = sent_to(disk.files())
    dropped = ended.totals["dropped by the output"]
    faults.compare("SIGTERM while the disk hangs", 1, f"totals after {took:.1f} s; {kept} in files, {dropped} dropped")
    assert took < ENDS_WITHIN_S
    assert ended.exit_code == 0, ended.stderr
    assert dropped >= count
    assert kept >= 1009


def test_a_dump_that_captures_meanwhile(wire: Wire, disk: Disk, tmp_path: Path) -> None:
    """The disk hangs while a dump captures: the daemon answers, memory stays within its size, and each
    packet is in the file, or counted; the log says how many the file misses.
    """
    control, count, rounds = tmp_path / "control", 3001, 7
    settings = {"control__socket": str(control), "files__mode": "ring", "files__ring": "8MiB", "files__keep_free": "0"}
    with closing(Daemon(wire.near, disk.place / "captures", **settings)) as daemon:
        send(wire, 1009)
        assert "dump" in ask(str(control), request="dump after=3600")
        until(lambda: status(control)["packets"]["written"] >= 1009, "what was sent before is written")
        with disk.hung():
            for _ in range(rounds):
                send(wire, count)
                found = status(control)["memory"]
                assert found["used"] <= found["size"]
            until(lambda: status(control)["packets"]["seen"] >= rounds * count, "what was sent is seen")
        until(lambda: status(control)["packets"]["written"] > 1009, "the disk writes again")
        ended = daemon.stop(signal.SIGTERM)
    kept, missing = sent_to(disk.files()), ended.totals["not dumped from memory"]
    assert ended.exit_code == 0, ended.stderr
    assert kept > 1009
    assert kept + missing + ended.totals["dropped by kernel"] >= rounds * count + 1009
    assert ended.totals["captured"] == sum(len(read(path)) for path in disk.files())
    assert re.search(rf"; {missing} packets are missing, because the disk was late and memory was full", ended.stderr)


@pytest.mark.many
def test_a_key_log_that_hangs(wire: Wire, disk: Disk, tmp_path: Path) -> None:
    """While the disk of a key log hangs, a file is rotated and finished, and the capture ends in some seconds."""
    control, directory, keys = tmp_path / "control", tmp_path / "captures", disk.place / "keys.log"
    keys.write_bytes(line(1))
    settings = {"control__socket": str(control), "files__keep_free": "0", "secrets": str(keys)}

    def files() -> list[Path]:
        return sorted(path for path in directory.glob("skbcapd-*.pcapng") if not path.is_symlink())

    with closing(Daemon(wire.near, directory, **settings)) as daemon:
        with keys.open("ab") as file:
            file.write(line(2))
        send(wire, 101)
        until(lambda: status(control)["packets"]["written"] >= 101, "what was sent before is written")
        with disk.hung():
            send(wire, 503)
            daemon.process.send_signal(signal.SIGUSR1)
            until(lambda: len(files()) == 1, "the file is finished")
            begun = time.monotonic()
            daemon.process.send_signal(signal.SIGTERM)
            ended = daemon.wait()
            took = time.monotonic() - begun
    assert took < ENDS_WITHIN_S
    assert ended.exit_code == 0, ended.stderr
    assert sent_to(files()) == 101 + 503
    assert found(files()[0].read_bytes())[0][1] == [line(2)]
