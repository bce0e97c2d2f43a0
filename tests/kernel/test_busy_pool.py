"""A server of several processes that is older than the capture, and gets more requests than /proc can be searched."""

from __future__ import annotations

import socket
from contextlib import closing
from pathlib import Path

from tests.kernel.capture import Capture, read
from tests.kernel.namespace import Wire
from tests.kernel.stage import Player
from tests.support.blocks import comment_fields

PORT = 8080
CONNECTIONS = 600
KNOWN = 200
SYN_ACK = 0x12


def ask(near: str) -> None:
    """Connections to the server, one after the other, without a pause."""
    for _ in range(CONNECTIONS):
        with socket.create_connection((near, PORT)) as connection:
            connection.sendall(b"?")
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(1 << 16):
                pass


def test_name_although_requests_never_pause(wire: Wire, tmp_path: Path) -> None:
    """/proc is searched once; requests that arrive in the meantime do not make the answer worthless."""
    near, file = wire.near, tmp_path / "pool.pcapng"
    with (
        closing(Player(near.namespace, "listeners", "pool", "--comm", "nginx", "--port", str(PORT))) as server,
        closing(Capture(near.namespace, "-i", near.device, "-w", str(file))) as capture,
    ):
        server.says()
        wire.far.namespace.do(ask, near.ipv4)
        server.go()
        server.end()
        ended = capture.stop()

    assert (ended.exit_code, ended.lost) == (0, 0), ended.stderr
    tcp = [
        packet for packet in read(file) if packet.data[12:14] == b"\x08\x00" and packet.data[23] == socket.IPPROTO_TCP
    ]
    accepts = [packet for packet in tcp if packet.data[47] == SYN_ACK]
    assert len(accepts) == CONNECTIONS
    assert {comment_fields(packet.comment).get("comm") for packet in accepts[-KNOWN:]} == {"nginx"}
