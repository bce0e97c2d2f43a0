"""The ring buffer of a daemon: the content of a dump, discarded packets, and that each packet is
counted.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.kernel.capture import ROOT, Daemon, read
from tests.kernel.comparison import Marker
from tests.kernel.namespace import Wire
from tests.support.deadline import DEADLINE_S, until


@pytest.fixture
def marker(wire: Wire) -> Iterator[Marker]:
    """A sender of numbered frames at the near end (this process)."""
    with closing(Marker(wire.near.namespace, wire.near.device)) as made:
        yield made


def files(directory: Path) -> list[Path]:
    """The finished files, oldest first."""
    return sorted(entry for entry in directory.glob("skbcapd-*.pcapng") if not entry.is_symlink())


def sent(path: Path) -> list[bytes]:
    """The frames that the near end sent, in the order of the file; tshark and capinfos have read it
    without a warning.
    """
    return [packet.data for packet in read(path) if packet.direction == "out"]


def dump(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The result of `skbcapd dump` for a directory."""
    settings = ("--set", f"files.directory={directory}", "--set", "files.mode=ring", *arguments)
    config = ("--config", str(ROOT / "etc" / "skbcapd.yaml"))
    return subprocess.run(
        [sys.executable, "-m", "skbcapd", "dump", *config, *settings],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=2 * DEADLINE_S,
        check=False,
    )


def test_a_dump_has_the_packets_since_the_last_one(wire: Wire, marker: Marker, tmp_path: Path) -> None:
    """Two dumps have 23 and 101 frames; 47 frames without a dump are discarded; there is no other
    file.
    """
    with closing(Daemon(wire.near, tmp_path, files__mode="ring")) as daemon:
        for count in (23, 101):
            for _ in range(count):
                marker.send()
            done = dump(tmp_path)
            assert (done.returncode, done.stderr) == (0, "")
            assert Path(done.stdout.strip()) == files(tmp_path)[-1]
        for _ in range(47):
            marker.send()
        ended = daemon.stop()

    first, second = files(tmp_path)
    assert sent(first) + sent(second) == marker.sent[: 23 + 101]
    assert ended.exit_code == 0
    received = len(read(first)) + len(read(second)) - 23 - 101
    assert ended.totals["captured"] == 23 + 101 + received
    assert ended.totals["not dumped from memory"] >= 47
    assert ended.totals["dropped by kernel"] == 0


def test_the_oldest_are_overwritten(wire: Wire, marker: Marker, tmp_path: Path) -> None:
    """A ring of 8 MiB has the last frames without a gap, at least 6 MiB of them and at most 8."""
    with closing(Daemon(wire.near, tmp_path, files__mode="ring", files__ring="8MiB")) as daemon:
        for _ in range(100_003):
            marker.send()
        daemon.process.send_signal(signal.SIGUSR2)
        until(lambda: bool(files(tmp_path)), "the dump is there")
        ended = daemon.stop()

    (file,) = files(tmp_path)
    found = sent(file)
    assert ended.totals["dropped by kernel"] == 0
    assert found == marker.sent[-len(found) :]
    assert 6 << 20 < file.stat().st_size < (8 << 20) + 4096
    forgotten = ended.totals["not dumped from memory"]
    assert ended.totals["captured"] + forgotten >= 100_003
    assert ended.totals["captured"] == len(read(file))


def test_an_empty_dump(wire: Wire, tmp_path: Path) -> None:
    """A dump without packets is a file that readers accept."""
    with closing(Daemon(wire.near, tmp_path, files__mode="ring")) as daemon:
        assert dump(tmp_path).returncode == 0
        assert daemon.stop().totals["captured"] == 0
    assert read(files(tmp_path)[0]) == []


def test_no_daemon_for_a_dump(wire: Wire, tmp_path: Path) -> None:
    """Without a daemon, or with one in mode files, `dump` reports it; the daemon continues."""
    assert dump(tmp_path).stderr.startswith(f"skbcapd: {tmp_path}: no process writes to it")
    done = dump(tmp_path, "--set", "files.mode=files")
    assert (done.returncode, done.stderr.splitlines()[0]) == (
        2,
        "skbcapd: files.mode is files, so all packets are already in files; expected ring",
    )
    with closing(Daemon(wire.near, tmp_path)) as daemon:
        daemon.process.send_signal(signal.SIGUSR2)
        ended = daemon.stop()
    assert ended.exit_code == 0
    assert "SIGUSR2 ignored: files.mode is not ring, so there is nothing to dump" in ended.stderr
