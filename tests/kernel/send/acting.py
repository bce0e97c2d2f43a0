"""Does what it is told: `python -m tests.kernel.send.acting NAME`.

Each line on stdin is one order, as JSON: its name, and its arguments.

Sockets have names, which the orders use. After each order it reports itself. What is sent is signed.
"""

from __future__ import annotations

import json
import socket
import struct
import sys
from collections.abc import Callable
from pathlib import Path

from tests.kernel.send.identity import become, report, signature

GUARD_S = 600  # a guard only: the test that started us gives up long before
TCP_REPAIR, TCP_REPAIR_QUEUE, TCP_QUEUE_SEQ = 19, 20, 21  # include/uapi/linux/tcp.h
REPAIR_OFF_NO_WP, QUEUES = -1, (1, 2)
IP_ADD_SOURCE_MEMBERSHIP = 39  # include/uapi/linux/in.h
KINDS = {"udp": socket.SOCK_DGRAM, "tcp": socket.SOCK_STREAM}

_sockets: dict[str, socket.socket] = {}


def make(name: str, kind: str, port: int, options: list[list[int]], device: str = "", address: str = "") -> None:
    """Make a socket, bound to a port; `options` are numbers: level, option, value."""
    made = _sockets[name] = socket.socket(socket.AF_INET, KINDS[kind])
    made.settimeout(GUARD_S)
    for option in options:
        made.setsockopt(*option)
    if device:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
    if port:
        made.bind((address, port))


def connect(name: str, to: str, port: int) -> None:
    """Connect; a UDP socket that is connected already gets another peer."""
    _sockets[name].connect((to, port))


def listen(name: str) -> None:
    """Listen."""
    _sockets[name].listen()


def accept(name: str, made: str) -> None:
    """Accept a connection."""
    _sockets[made], _ = _sockets[name].accept()


def send(name: str, count: int) -> None:
    """Send on a connected socket."""
    for number in range(count):
        _sockets[name].send(signature(number))


def send_to(name: str, to: str, port: int, count: int) -> None:
    """Send datagrams."""
    for number in range(count):
        _sockets[name].sendto(signature(number), (to, port))


def receive(name: str, count: int) -> None:
    """Receive so many messages; of a stream, at least so many bytes."""
    of_stream = _sockets[name].type == socket.SOCK_STREAM
    while count > 0:
        got = _sockets[name].recv(1 << 16)
        assert got
        count -= len(got) if of_stream else 1


def close(name: str) -> None:
    """Close."""
    _sockets.pop(name).close()


def join(name: str, group: str, address: str, source: str) -> None:
    """Join a multicast group, of one source if it is given."""
    level, ends = socket.IPPROTO_IP, socket.inet_aton(group) + socket.inet_aton(address)
    if source:
        _sockets[name].setsockopt(level, IP_ADD_SOURCE_MEMBERSHIP, ends + socket.inet_aton(source))
    else:
        _sockets[name].setsockopt(level, socket.IP_ADD_MEMBERSHIP, ends)


def frame(device: str, packet: str) -> None:
    """Send a frame by an AF_PACKET socket, as it is."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sender:
        sender.bind((device, 0))
        sender.send(bytes.fromhex(packet))


def leave(name: str, numbers: str) -> None:
    """Close a connection without a packet, as CRIU does; its numbers are in a file then."""
    connection = _sockets[name]
    connection.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
    found = []
    for queue in QUEUES:
        connection.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR_QUEUE, queue)
        found.append(connection.getsockopt(socket.IPPROTO_TCP, TCP_QUEUE_SEQ, 4))
    Path(numbers).write_bytes(b"".join(found))
    close(name)


def take(name: str, to: str, port: int, numbers: str) -> None:
    """Make this connection again, on a socket that has its port: without a packet."""
    connection = _sockets[name]
    connection.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
    for queue, number in zip(QUEUES, struct.iter_unpack("I", Path(numbers).read_bytes()), strict=True):
        connection.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR_QUEUE, queue)
        connection.setsockopt(socket.IPPROTO_TCP, TCP_QUEUE_SEQ, struct.pack("I", *number))
    connection.connect((to, port))
    connection.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, struct.pack("i", REPAIR_OFF_NO_WP))


def identify() -> None:
    """Only report."""


def main() -> None:
    """Obey, to the end of stdin."""
    orders: dict[str, Callable[..., None]] = {
        order.__name__: order
        for order in (make, connect, listen, accept, send, send_to, receive, close, join, frame, leave, take, identify)
    }
    who = become(sys.argv[1])
    report(who)
    for line in sys.stdin:
        order, *arguments = json.loads(line)
        orders[order](*arguments)
        report(who)


if __name__ == "__main__":
    main()
