"""Hostile processes: names that are not text, thousands of sockets and processes, clients that do
not disconnect.
"""

from __future__ import annotations

import contextlib
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.kernel.capture import ROOT, Daemon, read
from tests.kernel.comparison import Marker
from tests.kernel.namespace import Wire
from tests.support.deadline import DEADLINE_S, until

SOCKETS, PROCESSES, MARKERS = 3001, 307, 1009
NAME = '\x1b]0;x\x07\n=" '  # sets the title of a terminal
PROGRAM = f"""
import ctypes, os, resource, socket, sys
resource.setrlimit(resource.RLIMIT_NOFILE, ({SOCKETS + 101}, {SOCKETS + 101}))
libc, name = ctypes.CDLL(None), {NAME!r}
there = (sys.argv[1], 9)
libc.prctl(15, name.encode())
held = []
for number in range({SOCKETS}):
    held.append(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    held[-1].sendto(b"hostile %d" % number, there)
for number in range({PROCESSES}):
    child = os.fork()
    if not child:
        libc.prctl(15, b"\\x1b[%dm\\xff" % number)
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"hostile child %d" % number, there)
        os._exit(0)
    os.waitpid(child, 0)
"""


AGAIN = f"""
import ctypes, socket, sys
ctypes.CDLL(None).prctl(15, {NAME!r}.encode())
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for _ in range(101):
    sender.sendto(b"again", (sys.argv[1], 9))
"""


@pytest.fixture
def marker(wire: Wire) -> Iterator[Marker]:
    """A sender of numbered frames at the near end (this process)."""
    with closing(Marker(wire.near.namespace, wire.near.device)) as made:
        yield made


class Crowd:
    """Clients that connect to the control socket and the metrics port as often as they can, until
    they are stopped.
    """

    def __init__(self, wire: Wire, control: Path) -> None:
        self.answers = 0
        self._stop = threading.Event()
        self._namespace = wire.near.namespace
        doors = (str(control), ("127.0.0.1", 9479))
        self._threads = [threading.Thread(target=self._knock, args=(door,)) for door in doors]
        for thread in self._threads:
            thread.start()

    def _knock(self, address: str | tuple[str, int]) -> None:
        family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
        held: list[socket.socket] = []
        while not self._stop.is_set():
            client = self._namespace.do(socket.socket, family)
            client.settimeout(0.1)
            with contextlib.suppress(OSError):
                client.connect(address)
                client.sendall((b"", b"x" * 4097, b"packets\n", b"GET / HTTP/1.1\r\n\r\n")[len(held) % 4])
                self.answers += bool(client.recv(1)) if len(held) % 4 > 1 else 0
            held.append(client)
            for old in held[:-101]:
                old.close()
            del held[:-101]
        for client in held:
            client.close()

    def close(self) -> None:
        """Stop."""
        self._stop.set()
        for thread in self._threads:
            thread.join()


def anonymous_kib(daemon: Daemon) -> int:
    """Memory of its own."""
    found = re.search(r"^RssAnon:\s+(\d+) kB$", Path(f"/proc/{daemon.process.pid}/status").read_text(), re.MULTILINE)
    assert found
    return int(found[1])


def test_hostile_processes_have_no_effect(wire: Wire, marker: Marker, tmp_path: Path) -> None:
    """All frames are written with their process, in bounded memory; status prints printable text."""
    near, control = wire.near, tmp_path / "control"
    settings = {"control__socket": str(control), "metrics__listen": "127.0.0.1:9479", "comment": "comm,pid,tgid,exe"}
    near.namespace.ip("link set lo up")
    growth = []
    with closing(Daemon(near, tmp_path / "files", **settings)) as daemon, closing(Crowd(wire, control)) as crowd:
        for _ in range(2):
            hostile = near.namespace.do(
                subprocess.Popen, [sys.executable, "-S", "-c", PROGRAM, wire.far.ipv4], stderr=subprocess.PIPE
            )
            for _ in range(MARKERS):
                marker.send()
            _, wrong = hostile.communicate(timeout=DEADLINE_S)
            assert (hostile.returncode, wrong) == (0, b"")
            growth.append(anonymous_kib(daemon))
        until(lambda: crowd.answers > 0, "a client has been refused by an answer")
        crowd.close()
        status = [sys.executable, "-m", "skbcapd", "status", "--config", "etc/skbcapd.yaml"]
        status += ["--set", f"control.socket={control}"]
        until(
            lambda: subprocess.run(status, cwd=ROOT, capture_output=True, check=False).returncode == 0,
            "status is answered, now that the crowd has gone",
        )
        shown = ""

        def shows_the_name() -> bool:
            """Whether status has the name: it samples a limited number of packets per second."""
            nonlocal shown
            near.namespace.do(subprocess.run, [sys.executable, "-S", "-c", AGAIN, wire.far.ipv4], check=True)
            shown = subprocess.run(status, cwd=ROOT, capture_output=True, text=True, check=False).stdout
            return "\\x1b]0;x\\x07" in shown

        until(shows_the_name, "status has the hostile name")
        ended = daemon.stop()

    assert ended.exit_code == 0
    assert ended.totals["dropped by kernel"] == 0
    assert all(line.isprintable() for text in (shown, ended.stderr) for line in text.split("\n"))
    (file,) = (path for path in (tmp_path / "files").glob("*.pcapng") if not path.is_symlink())
    found = [packet for packet in read(file) if packet.direction == "out"]
    assert [packet.data for packet in found if packet.data in set(marker.sent)] == marker.sent
    theirs = [packet for packet in found if b"hostile " in packet.data]
    assert len(theirs) == 2 * (SOCKETS + PROCESSES)
    assert all(packet.comment.startswith('comm="\\x1b') for packet in theirs)
    assert all(len(re.findall(r"[a-z]+=", packet.comment)) <= 5 for packet in theirs)
    assert growth[1] - growth[0] < 32 * 1024
