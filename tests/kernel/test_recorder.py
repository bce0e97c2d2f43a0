"""The ring buffer of a daemon: the content of a dump, discarded packets, and that each packet is
counted.
"""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import datetime
from pathlib import Path

import pytest

from tests.kernel.capture import ROOT, Daemon, read
from tests.kernel.comparison import Marker
from tests.kernel.namespace import Wire
from tests.kernel.test_disk import status
from tests.support.deadline import DEADLINE_S, until
from tests.support.judges import rows

MANY = 10_007


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


def dump(control: Path, *arguments: str) -> subprocess.Popen[str]:
    """A running `skbcapd dump` for the daemon at a control socket."""
    config = ("--config", str(ROOT / "etc" / "skbcapd.yaml"), "--set", f"control.socket={control}")
    return subprocess.Popen(
        [sys.executable, "-m", "skbcapd", "dump", *config, *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command."""
    stdout, stderr = process.communicate(timeout=2 * DEADLINE_S)
    return process.returncode, stdout, stderr


def times(path: Path) -> list[float]:
    """The time of each packet as tshark reads it, in seconds since 1970."""
    return [float(row[0]) for row in rows(path, "frame.time_epoch")]


def test_a_dump_has_the_packets_since_the_last_one(wire: Wire, marker: Marker, tmp_path: Path) -> None:
    """Two dumps have 23 and 101 frames; 47 frames without a dump are discarded; there is no other
    file.
    """
    control = tmp_path / "control"
    with closing(Daemon(wire.near, tmp_path, files__mode="ring", control__socket=str(control))) as daemon:
        for count in (23, 101):
            for _ in range(count):
                marker.send()
            code, stdout, stderr = ended(dump(control))
            assert code == 0, stderr
            assert Path(stdout.strip()) == files(tmp_path)[-1]
            assert stderr.strip() in daemon.said()
        for _ in range(47):
            marker.send()
        end = daemon.stop()

    first, second = files(tmp_path)
    assert sent(first) + sent(second) == marker.sent[: 23 + 101]
    assert end.exit_code == 0
    received = len(read(first)) + len(read(second)) - 23 - 101
    assert end.totals["captured"] == 23 + 101 + received
    assert end.totals["not dumped from memory"] >= 47
    assert end.totals["dropped by kernel"] == 0
    match = re.fullmatch(rf"dumped (\d+) packets from (\S+) to (\S+) to {second} \(trigger: command\)\n", stderr)
    assert match
    found = times(second)
    assert int(match[1]) == len(found)
    told = [datetime.fromisoformat(text).timestamp() for text in match.groups()[1:]]
    assert told == [pytest.approx(found[0], abs=0.001), pytest.approx(found[-1], abs=0.001)]


def test_what_came_just_before_and_after_an_event(wire: Wire, marker: Marker, tmp_path: Path) -> None:
    """`dump --since 1s --after 4s`: one file has all packets of that time without a gap; a reload and
    another trigger meanwhile change nothing; older and later ones stay in memory for the next dump.
    """
    control = tmp_path / "control"

    def send_until(is_over: Callable[[], bool]) -> None:
        until(lambda: (marker.send(), is_over())[1], "it is over")

    settings = {"files__ring_time": "5m", "control__socket": str(control), "directions": "out"}
    with closing(Daemon(wire.near, tmp_path, files__mode="ring", **settings)) as daemon:
        begin = time.time()
        send_until(lambda: time.time() > begin + 4)
        event = time.time()
        command = dump(control, "--since", "1s", "--after", "4s")  # time for what happens meanwhile
        send_until(lambda: status(control)["memory"]["dump"] is not None)
        begun, found = time.time(), status(control)["memory"]
        daemon.process.send_signal(signal.SIGHUP)
        daemon.process.send_signal(signal.SIGUSR2)
        send_until(lambda: status(control)["memory"]["dump"] is None)
        marker.send()
        code, stdout, stderr = ended(command)
        assert code == 0, stderr
        rest = Path(ended(dump(control))[1].strip())
        end = daemon.stop()
    file = Path(stdout.strip())
    assert set(files(tmp_path)) == {file, rest}
    first, size = marker.sent.index(sent(file)[0]), len(sent(file))
    assert sent(file) == marker.sent[first : first + size]
    assert sent(rest) == marker.sent[:first] + marker.sent[first + size :]
    others = times(rest)
    assert others[first - 1] < begun - 1  # each packet of the last second is in the dump
    assert others[first] > event + 4  # and each of the seconds after it
    assert 0 < first < len(others)
    assert (found["time_s"], found["dump"]["trigger"]) == (300, "command")
    assert 0 < found["rate"] < found["holds_s"] * found["rate"] <= found["size"] * 1.01
    assert end.exit_code == 0
    assert end.totals["captured"] == size + len(others) == len(marker.sent)
    assert end.totals.get("not dumped from memory", 0) == end.totals["dropped by kernel"] == 0


def test_the_end_while_a_dump_goes_on(wire: Wire, marker: Marker, tmp_path: Path) -> None:
    """SIGTERM while a dump captures: the file is finished, with all packets until then."""
    control = tmp_path / "control"
    settings = {"files__mode": "ring", "control__socket": str(control), "directions": "out"}
    with closing(Daemon(wire.near, tmp_path, **settings)) as daemon:
        marker.send()
        command = dump(control, "--after", "1h")
        until(lambda: status(control)["memory"]["dump"] is not None, "it captures")
        for _ in range(1008):
            marker.send()
        end = daemon.stop(signal.SIGTERM)
        code, _, stderr = ended(command)
    (file,) = files(tmp_path)
    assert sent(file) == marker.sent
    assert (end.exit_code, end.totals["captured"]) == (0, len(read(file)))
    assert "(trigger: command)" in end.stderr
    assert code == 1
    assert "its log says what it has dumped" in stderr


def test_only_root_and_the_user_of_the_daemon_order_a_dump(wire: Wire, tmp_path: Path) -> None:
    """Another user who can connect gets an error, and there is no dump."""
    control = Path(tempfile.mkdtemp()) / "control"
    try:
        control.parent.chmod(0o755)
        with closing(Daemon(wire.near, tmp_path, files__mode="ring", control__socket=str(control))) as daemon:
            control.chmod(0o666)
            asked = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); "
            asked += "s.sendall(b'dump\\n'); print(s.recv(1000).decode())"
            words = ["setpriv", "--reuid", "65534", "--clear-groups", "--inh-caps=-all", "/usr/bin/python3", "-c"]
            done = subprocess.run([*words, asked, str(control)], capture_output=True, text=True, check=True)
            assert json.loads(done.stdout)["error"] == "only root and the user of the daemon may order a dump"
            end = daemon.stop()
    finally:
        shutil.rmtree(control.parent)
    assert files(tmp_path) == []
    assert "dumped" not in end.stderr


def test_the_oldest_are_overwritten(wire: Wire, tmp_path: Path) -> None:
    """A ring of 8 MiB has the last frames without a gap, at least 6 MiB of them and at most 8."""
    with (
        closing(Marker(wire.near.namespace, wire.near.device, 1400)) as marker,
        closing(Daemon(wire.near, tmp_path, files__mode="ring", files__ring="8MiB")) as daemon,
    ):
        for _ in range(MANY):
            marker.send()
        daemon.process.send_signal(signal.SIGUSR2)
        until(lambda: bool(files(tmp_path)), "the dump is there")
        end = daemon.stop()

    (file,) = files(tmp_path)
    found = sent(file)
    assert end.totals["dropped by kernel"] == 0
    assert found == marker.sent[-len(found) :]
    assert 6 << 20 < file.stat().st_size < (8 << 20) + 4096
    forgotten = end.totals["not dumped from memory"]
    assert end.totals["captured"] + forgotten >= MANY
    assert end.totals["captured"] == len(read(file))


def test_an_empty_dump(wire: Wire, tmp_path: Path) -> None:
    """A dump without packets is a file that readers accept."""
    control = tmp_path / "control"
    with closing(Daemon(wire.near, tmp_path, files__mode="ring", control__socket=str(control))) as daemon:
        assert ended(dump(control))[0] == 0
        assert daemon.stop().totals["captured"] == 0
    assert read(files(tmp_path)[0]) == []


def test_no_daemon_for_a_dump(wire: Wire, tmp_path: Path) -> None:
    """Without a daemon, or with one in mode files, `dump` reports it; the daemon continues."""
    control = tmp_path / "control"
    code, _, stderr = ended(dump(control))
    assert (code, "expected a daemon that listens there" in stderr) == (1, True)
    with closing(Daemon(wire.near, tmp_path, control__socket=str(control))) as daemon:
        code, _, stderr = ended(dump(control))
        assert code == 1
        assert "files.mode is files, so all packets are already in files; expected ring" in stderr
        daemon.process.send_signal(signal.SIGUSR2)
        end = daemon.stop()
    assert end.exit_code == 0
    assert "SIGUSR2 ignored: files.mode is not ring, so there is nothing to dump" in end.stderr
