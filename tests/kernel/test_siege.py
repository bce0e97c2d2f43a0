"""The daemon, and others who would end its capture: a terminal that goes, signals, no process left, nobody who reads.

In each case frames are sent before and after; all of them are in files, and the end is a clean one.
"""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest

from tests.kernel.capture import ATTACH, ROOT, Daemon, Ended
from tests.kernel.comparison import Marker
from tests.kernel.namespace import Wire
from tests.kernel.test_disk import status
from tests.kernel.test_faults import finished, outgoing, send
from tests.support import faults
from tests.support.deadline import DEADLINE_S, until

CGROUPS = Path("/sys/fs/cgroup")
BEFORE, AFTER = 101, 103
STORM = """
import os, sys
pid, number = map(int, sys.argv[1:])
try:
    while True:
        os.kill(pid, number)
except ProcessLookupError:
    pass
"""
# Sends a signal to the program that it starts, as soon as this holds it back.
EARLY = """
import os, re, sys
number, program = int(sys.argv[1]), os.getpid()
if os.fork():
    os.execv(sys.argv[2], sys.argv[2:])
blocked = 0
while not blocked >> (number - 1) & 1:
    blocked = int(re.search(r"SigBlk:\\t(\\w+)", open(f"/proc/{program}/status").read())[1], 16)
os.kill(program, number)
"""


@pytest.fixture
def marker(wire: Wire) -> Iterator[Marker]:
    """A sender of numbered frames at the near end, which is this process."""
    with closing(Marker(wire.near.namespace, wire.near.device)) as made:
        yield made


def check(fault: str, ended: Ended, marker: Marker, directory: Path, more: str = "") -> None:
    """All frames are in files, and the end was a clean one."""
    found = outgoing(*finished(directory))
    faults.compare(fault, 1, f"exit code {ended.exit_code}, {len(found)} of {len(marker.sent)} packets in files{more}")
    assert ended.exit_code == 0, ended.stderr
    assert "Traceback" not in ended.stderr
    assert found == marker.sent


@contextmanager
def few_processes() -> Iterator[Path]:
    """A control group that can be given a limit of processes and threads."""
    version_2 = (CGROUPS / "cgroup.controllers").exists()
    place = CGROUPS / ("" if version_2 else "pids") / f"skbcapd-{uuid.uuid4().hex[:8]}"
    try:
        place.mkdir()
        (place / "pids.max").read_text()
    except OSError:
        pytest.skip("no control group with a limit of processes can be made here")
    try:
        yield place
    finally:
        place.rmdir()


def test_no_process_is_left(wire: Wire, marker: Marker, tmp_path: Path) -> None:
    """Where no thread and no process can be started, as beside a fork bomb, nothing ends and nothing is lost."""
    directory, control = tmp_path / "captures", tmp_path / "control"
    settings = {"control__socket": str(control), "files__compress": "gzip", "files__keep_free": "0"}
    settings |= {"metrics__textfile": str(tmp_path / "skbcapd.prom")}
    with few_processes() as group, closing(Daemon(wire.near, directory, **settings)) as daemon:
        (group / "cgroup.procs").write_text(str(daemon.process.pid))
        (group / "pids.max").write_text("1")
        send(marker, BEFORE)
        daemon.process.send_signal(signal.SIGUSR1)
        daemon.process.send_signal(signal.SIGHUP)
        until(lambda: "not reloaded: Resource temporarily unavailable" in daemon.said(), "the reload is refused")
        until(lambda: "it is not compressed" in daemon.said(), "the compressor is refused")
        send(marker, AFTER)
        until(lambda: status(control)["packets"]["written"] >= BEFORE + AFTER, "all is written")
        ended = daemon.stop()
    check("no process or thread left", ended, marker, directory)


def test_a_terminal_that_goes(wire: Wire, marker: Marker, tmp_path: Path) -> None:
    """When the terminal is closed the daemon goes on: the signal of that asks for a reload."""
    directory, control = tmp_path / "captures", tmp_path / "control"
    ours, theirs = pty.openpty()
    fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
    chosen = {"interfaces": wire.near.device, "files.directory": directory, "control.socket": control}
    words = [word for key, value in chosen.items() for word in ("--set", f"{key}={value}")]
    process = wire.near.namespace.do(
        subprocess.Popen,
        [sys.executable, "-m", "skbcapd", "run", *words, "--set", f"attach={ATTACH}", "--set", "files.keep_free=0"],
        cwd=ROOT,
        stdin=theirs,
        stdout=subprocess.DEVNULL,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    said = b""
    try:
        while b" packets, " not in said:  # the status line is there
            said += os.read(ours, 4096)
        send(marker, BEFORE)
        os.close(ours)
        uptime = status(control)["uptime_s"]
        until(lambda: status(control)["uptime_s"] > uptime + 2, "it has tried to write the status line")
        send(marker, AFTER)
        process.terminate()
        ended = Ended(process.wait(DEADLINE_S), b"", "")
    finally:
        process.kill()
        process.wait()
    check("the terminal is closed", ended, marker, directory)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2])
def test_a_signal_before_it_is_ready(number: signal.Signals, wire: Wire, marker: Marker, tmp_path: Path) -> None:
    """A signal that comes while the program is compiled and loaded waits, and is obeyed when the capture runs."""
    said = {signal.SIGHUP: "settings reloaded", signal.SIGUSR2: "SIGUSR2 ignored"}
    through = (sys.executable, "-E", "-s", "-S", "-c", EARLY, str(int(number)))
    with closing(Daemon(wire.near, tmp_path, through, files__keep_free="0")) as daemon:
        if number in said:
            until(lambda: said[number] in daemon.said(), "it is obeyed")
        else:
            until(lambda: len(finished(tmp_path)) == 1, "a file is finished")
        send(marker, AFTER)
        ended = daemon.stop()
    check("a signal while it starts", ended, marker, tmp_path)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2])
def test_a_storm_of_signals(number: signal.Signals, wire: Wire, marker: Marker, tmp_path: Path) -> None:
    """Beside a storm of signals the daemon answers, makes few files, and ends when it is told to, with exit code 0."""
    directory, control = tmp_path / "captures", tmp_path / "control"
    with closing(Daemon(wire.near, directory, control__socket=str(control), files__keep_free="0")) as daemon:
        words = [sys.executable, "-E", "-s", "-S", "-c", STORM, str(daemon.process.pid), str(int(number))]
        with subprocess.Popen(words) as storm:
            try:
                send(marker, BEFORE)
                for _ in range(3):
                    until(lambda: status(control)["packets"]["written"] >= len(marker.sent), "all is written")
                    send(marker, AFTER)
                begun = time.monotonic()
                ended = daemon.stop(signal.SIGTERM)
                took_s = time.monotonic() - begun
            finally:
                storm.kill()
    check("a storm of signals", ended, marker, directory, f", {len(finished(directory))} files")
    assert took_s < DEADLINE_S / 2
    assert len(finished(directory)) < 100


def test_a_service_manager_that_does_not_read(wire: Wire, marker: Marker, tmp_path: Path) -> None:
    """A service manager that is stopped holds nothing up: the daemon answers, captures, and ends."""
    directory, control, notify = tmp_path / "captures", tmp_path / "control", tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(notify))
        through = ("env", f"NOTIFY_SOCKET={notify}", "WATCHDOG_USEC=28000000")
        with closing(
            Daemon(wire.near, directory, through, control__socket=str(control), files__keep_free="0")
        ) as daemon:
            send(marker, BEFORE)
            # Each second has a message; the socket takes ten, or what net.unix.max_dgram_qlen says.
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as filler:
                filler.setblocking(False)  # noqa: FBT003  the name of the method says what is false
                with suppress(BlockingIOError):
                    while filler.sendto(b"X=1", str(notify)):
                        pass
            uptime = status(control)["uptime_s"]
            until(lambda: status(control)["uptime_s"] > uptime + 3, "three seconds of its time have passed")
            send(marker, AFTER)
            ended = daemon.stop()
    check("the service manager hangs", ended, marker, directory)
