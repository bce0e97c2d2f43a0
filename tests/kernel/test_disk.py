"""The daemon, with a disk that is slow, hangs, or has too little free space: it answers, and
counts.

In each case the sum is asked for while the fault lasts: every packet that was seen is in one of the
counts, and at the end as many are in files as are counted as captured.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from skbcapd.cli.status import ask
from tests.kernel.capture import Daemon, read
from tests.kernel.namespace import Wire
from tests.kernel.test_faults import finished
from tests.support import faults
from tests.support.deadline import until
from tests.support.runqueue import waited_s

pytestmark = pytest.mark.faults

SIZE = 1400
_DAEMONS: dict[Path, int] = {}  # process by control socket
ASKED_EVERY_S = 0.04  # at most: the daemon accepts 32 connections per second
SEND = """
import socket, sys
sender = socket.socket(type=socket.SOCK_DGRAM)
for _ in range(int(sys.argv[2])):
    sender.sendto(bytes({size}), (sys.argv[1], 9))
"""


def send(wire: Wire, count: int) -> None:
    """Send so many datagrams to the far end."""
    words = ["python3", "-E", "-s", "-S", "-c", SEND.format(size=SIZE), wire.far.ipv4, str(count)]
    wire.near.namespace.do(subprocess.run, words, check=True)


@contextmanager
def frozen(place: Path) -> Iterator[None]:
    """A file system on which writes hang."""
    subprocess.run(["fsfreeze", "-f", str(place)], check=True)
    try:
        yield
    finally:
        subprocess.run(["fsfreeze", "-u", str(place)], check=True)


def status(path: Path) -> dict[str, Any]:
    """The status of the daemon, within a second, not counting waits for a processor; its sum is
    right.
    """
    if path not in _DAEMONS:
        _DAEMONS[path] = ask(str(path))["pid"]
    time.sleep(ASKED_EVERY_S)
    both: tuple[int | str, ...] = ("self", _DAEMONS[path])
    begun, waited = time.monotonic(), sum(map(waited_s, both))
    found: dict[str, Any] = ask(str(path))
    took = time.monotonic() - begun - max(0.0, sum(map(waited_s, both)) - waited)
    assert took < 1.0
    _DAEMONS[path] = found["pid"]
    packets = dict(found["packets"])
    assert packets.pop("seen") == sum(packets.values()) + sum(found["dropped"].values())
    return found


def sent(directory: Path) -> int:
    """The datagrams in finished files."""
    return sum(len(packet.data) == SIZE + 42 for path in finished(directory) for packet in read(path))


def test_a_disk_that_hangs(wire: Wire, place: Path, tmp_path: Path) -> None:
    """While the disk hangs the daemon answers; packets that do not fit into 16 MiB and the buffer
    are dropped and counted.
    """
    count, control = 30_011, tmp_path / "control"
    settings = {"control__socket": str(control), "buffer__size": "8MiB", "files__keep_free": "0"}
    with closing(Daemon(wire.near, place / "captures", **settings)) as daemon:
        send(wire, 101)
        until(lambda: status(control)["packets"]["written"] >= 101, "what was sent before is written")
        with frozen(place):
            send(wire, count)
            until(lambda: status(control)["packets"]["seen"] >= count + 101, "what was sent is seen")
            found = status(control)
            assert found["packets"]["written"] < count
            assert found["dropped"]["full"] > 0
        until(lambda: not status(control)["packets"]["pending"], "the disk has all")
        ended = daemon.stop()
    kept = sent(place / "captures")
    dropped = ended.totals["dropped by kernel"]
    assert ended.exit_code == 0, ended.stderr
    assert "dropped by the output" not in ended.totals
    assert kept + dropped >= count + 101
    assert ended.totals["captured"] == sum(len(read(path)) for path in finished(place / "captures"))
    faults.add("disk hangs", 1, kept, kept, 0)
    faults.compare("a disk that hangs", 1, f"status within 1 s; {kept} packets in files, {dropped} dropped and counted")


def test_free_space_ends_while_a_file_is_written(wire: Wire, place: Path, tmp_path: Path) -> None:
    """The free space stays; no captured file is deleted, and later packets are counted."""
    directory, control = place / "captures", tmp_path / "control"
    settings = {"control__socket": str(control), "files__keep_free": "120MiB", "files__size": "16MiB"}
    with closing(Daemon(wire.near, directory, **settings)) as daemon:
        for _ in range(4):
            send(wire, 10_007)
            status(control)
        until(lambda: status(control)["dropped"]["output"] > 0, "writing stops")
        found = status(control)
        assert Path(found["files"]["path"]).exists()
        assert found["files"]["deleted_files"] == 0
        ended = daemon.stop()
    free = subprocess.run(["stat", "-f", "-c", "%a %S", str(place)], capture_output=True, text=True, check=True).stdout
    blocks, size = map(int, free.split())
    assert blocks * size >= (120 << 20) - (1 << 20)  # the file system itself uses the rest
    kept = sum(len(read(path)) for path in finished(directory))
    assert kept == ended.totals["captured"]
    assert kept + ended.totals["dropped by the output"] + ended.totals["dropped by kernel"] >= 4 * 10_007
    assert ended.stderr.count("free space is down to files.keep_free; packets are dropped until") >= 1
    faults.add("keep_free reached", 1, kept, kept, 0)
    now = f"{found['files']['deleted_files']} files deleted; {kept} packets in files"
    faults.compare(
        "free space reaches keep_free", 1, f"{now}, {ended.totals['dropped by the output']} dropped and counted"
    )


def test_a_directory_with_other_files(wire: Wire, tmp_path: Path) -> None:
    """FIFOs, devices and directories with names of captures, and a lock of a reader, do not prevent
    a start.
    """
    name = "skbcapd-vm-20261101T000000.000Z-00000{}.pcapng{}"
    with ExitStack() as stack:
        for number, ending in enumerate(("", ".part", ".gz", ".gz.part"), 1):
            subprocess.run(["mkfifo", str(tmp_path / name.format(number, ending))], check=True)
        (tmp_path / name.format(5, ".part")).mkdir()
        subprocess.run(["mknod", str(tmp_path / name.format(6, ".part")), "c", "1", "5"], check=True)
        holder = stack.enter_context(
            subprocess.Popen(["flock", "-s", str(tmp_path), "cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
        )
        stack.callback(holder.kill)
        daemon = stack.enter_context(closing(Daemon(wire.near, tmp_path, files__compress="gzip", files__keep_free="0")))
        send(wire, 101)
        ended = daemon.stop()
    assert ended.exit_code == 0, ended.stderr
    assert ended.totals["captured"] >= 101
    now = f"exit code {ended.exit_code}, {ended.totals['captured']} packets captured"
    faults.compare("FIFOs and devices with names of captures", 1, now)
