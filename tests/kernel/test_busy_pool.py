"""A server of several processes that is older than the capture, and gets more requests than /proc can be searched."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from tests.kernel.capture import Capture, read_so_far
from tests.kernel.namespace import Wire
from tests.kernel.stage import Player
from tests.support.blocks import comment_fields

PORT = 8080
KNOWN = 1000
DESCRIPTORS, PROCESSES = 3_000, 10
CHECKS, CHECK_S = 30, 0.5
SYN_ACK = 0x12


_CROWD = """
import os, resource, sys
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
opened = [os.dup(0) for _ in range(int(sys.argv[1]))]
for _ in range(int(sys.argv[2]) - 1):
    if not os.fork():
        break
else:
    print("opened", flush=True)
sys.stdin.read()
"""


@contextmanager
def crowd() -> Iterator[None]:
    """Processes with so many descriptors that it takes a tenth of a second to look at all of them."""
    command = [sys.executable, "-E", "-s", "-S", "-c", _CROWD, str(DESCRIPTORS), str(PROCESSES)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"opened\n"
        yield


class Asking(threading.Thread):
    """Connections to the server, one after the other, without a pause."""

    def __init__(self, wire: Wire) -> None:
        super().__init__(daemon=True)
        self._wire, self._over = wire, threading.Event()
        self.start()

    def run(self) -> None:
        """Ask until it is over."""
        self._wire.far.namespace.do(self._ask, self._wire.near.ipv4)

    def _ask(self, near: str) -> None:
        while not self._over.is_set():
            with socket.create_connection((near, PORT)) as connection:
                connection.sendall(b"?")
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(1 << 16):
                    pass

    def close(self) -> None:
        """End."""
        self._over.set()
        self.join()


def names(file: Path) -> Counter[str | None]:
    """The names of the last SYN-ACKs in a file."""
    ipv4 = [packet for packet in read_so_far(file) if packet.data[12:14] == b"\x08\x00"]
    tcp = [packet for packet in ipv4 if packet.data[23] == socket.IPPROTO_TCP]
    accepts = [packet for packet in tcp if packet.data[47] == SYN_ACK]
    return Counter(comment_fields(packet.comment).get("comm") for packet in accepts[-KNOWN:])


def test_name_although_requests_never_pause(wire: Wire, tmp_path: Path) -> None:
    """/proc is searched once; requests that arrive in the meantime do not make the answer worthless."""
    near, file = wire.near, tmp_path / "pool.pcapng"
    found: Counter[str | None] = Counter()
    with (
        crowd(),
        closing(Player(near.namespace, "listeners", "pool", "--comm", "nginx", "--port", str(PORT))) as server,
        closing(Capture(near.namespace, "-i", near.device, "-w", str(file))) as capture,
    ):
        server.says()
        with closing(Asking(wire)):
            for _ in range(CHECKS):
                time.sleep(CHECK_S)
                if (found := names(file)) == {"nginx": KNOWN}:
                    break
        server.go()
        server.end()
        ended = capture.stop()

    assert (ended.exit_code, ended.lost) == (0, 0), ended.stderr
    assert found == {"nginx": KNOWN}
