"""Sockets older than the capture: their process is the one that has them open."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.kernel.capture import ROOT, Capture, read
from tests.kernel.namespace import Wire
from tests.support.blocks import Packet, comment_fields
from tests.support.deadline import until

COUNT = 23

# Listens on the address given, accepts one connection, and then does nothing until the end of its
# input.
HOLDER = """
import socket, sys
server = socket.socket(socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET)
server.bind((sys.argv[1], 0))
server.listen()
print(server.getsockname()[1], flush=True)
connection, _ = server.accept()
print(flush=True)
sys.stdin.read()
"""


@contextmanager
def holder(wire: Wire, address: str) -> Iterator[tuple[subprocess.Popen[bytes], socket.socket]]:
    """A process at the near end with a listener and a connection, and the far end of the
    connection.
    """
    command = [sys.executable, "-c", HOLDER, address]
    popen = wire.near.namespace.do(subprocess.Popen, command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with popen as process:
        try:
            assert process.stdout
            to = wire.near.ipv6 if ":" in address else wire.near.ipv4
            port = int(process.stdout.readline())
            with closing(wire.far.namespace.do(socket.create_connection, (to, port))) as connection:
                assert process.stdout.readline() == b"\n"
                yield process, connection
        finally:
            process.kill()


def holders(packets: list[Packet], direction: str) -> list[tuple[str, str]]:
    """The processes of the packets of one direction, and how they were found."""
    found = [comment_fields(packet.comment) for packet in packets if packet.direction == direction]
    return [(fields.get("tgid", ""), fields.get("via", "")) for fields in found]


@pytest.mark.parametrize("address", ["0.0.0.0", "::"])  # noqa: S104  in a namespace of our own
def test_a_connection_older_than_the_capture(address: str, wire: Wire, tmp_path: Path) -> None:
    """Received packets, the ACKs that answer them, and a SYN to the listener belong to the process,
    which does nothing.
    """
    file = tmp_path / "older.pcapng"
    with holder(wire, address) as (process, connection):
        arguments = ("-i", wire.near.device, "-w", str(file))
        with closing(Capture(wire.near.namespace, *arguments)) as capture:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for _ in range(COUNT):
                connection.send(b"older")
            until(lambda: unacknowledged(connection) == 0, "all that was sent has been acknowledged")
            with closing(wire.far.namespace.do(socket.create_connection, connection.getpeername()[:2])):
                pass
            ended = capture.stop()
        assert (ended.exit_code, ended.lost) == (0, 0), ended.stderr
    packets = [packet for packet in read(file) if packet.data[12:14] in {b"\x08\x00", b"\x86\xdd"}]
    received = [packet for packet in packets if packet.data.endswith(b"older")]

    assert set(holders(received, "in")) == {(str(process.pid), "flow")}
    assert len({packet.data[-33:-29] for packet in received}) == COUNT  # sequence numbers: some can occur twice
    syns = [packet for packet in packets if packet.direction == "in" and is_syn(packet)]
    assert holders(syns, "in") == [(str(process.pid), "flow")]
    answers = holders(packets, "out")
    assert answers
    assert {tgid for tgid, _ in answers} <= {str(process.pid), ""}
    assert (str(process.pid), "inode") in answers


def unacknowledged(connection: socket.socket) -> int:
    """The number of segments that are not acknowledged: tcpi_unacked of struct tcp_info."""
    return int.from_bytes(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)[24:28], "little")


def is_syn(packet: Packet) -> bool:
    """Whether a packet is a SYN."""
    ip = packet.data[14:]
    return bool(ip[(40 if ip[0] >> 4 == 6 else 20) + 13] == 2)
