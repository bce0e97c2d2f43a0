"""Less usual ways to send: `python -m tests.kernel.send.unusual WAY --to ADDRESS --port N --count N`.

Each way is a kind of socket, or a way to come to one, that few programs use. What is sent is signed. Ends when all is
sent, and reports who had the socket.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import socket
import struct
import threading
from collections.abc import Callable

from tests.kernel.send.identity import Identity, become, pause, report, signature
from tests.kernel.send.links import SYN, _tcp, _udp
from tests.kernel.send.process import fork, wait_for
from tests.kernel.send.tcp import GUARD_S, finish, signatures, wait_until_acknowledged

IPPROTO_UDPLITE, IPPROTO_MPTCP = 136, 262
MSG_FASTOPEN, TCP_FASTOPEN = 0x20000000, 23
SO_MAX_PACING_RATE = 47
PIDFD_OPEN, PIDFD_GETFD = 434, 438


def tcp(args: argparse.Namespace, protocol: int = 0) -> socket.socket:
    """A TCP socket with a deadline, not connected."""
    made = socket.socket(socket.AF_INET, socket.SOCK_STREAM, protocol)
    made.settimeout(GUARD_S)
    if args.source_port:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(("", args.source_port))
    return made


def udplite(args: argparse.Namespace) -> list[Identity]:
    """Datagrams by UDP-Lite."""
    who = become("udplite")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM, IPPROTO_UDPLITE) as sender:
        for number in range(args.count):
            sender.sendto(signature(number), (args.to, args.port))
    return [who]


def raw(args: argparse.Namespace) -> list[Identity]:
    """IP packets of our own making."""
    who = become("raw")
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as sender:
        for number in range(args.count):
            sender.sendto(_udp(args.source, args.to, args.port, signature(number)), (args.to, 0))
    return [who]


def mptcp(args: argparse.Namespace) -> list[Identity]:
    """Multipath TCP: the process has one socket, the packets another."""
    who = become("mptcp")
    for _ in range(args.count):
        connection = tcp(args, IPPROTO_MPTCP)
        connection.connect((args.to, args.port))
        connection.sendall(signatures(1 << 16))
        finish(connection)
    return [who]


def fastopen(args: argparse.Namespace) -> list[Identity]:
    """Data in the SYN, or in the system call that connects."""
    who = become("fastopen")
    for number in range(args.count):
        connection = tcp(args)
        connection.setblocking(True)  # noqa: FBT003
        connection.sendto(signature(number), MSG_FASTOPEN, (args.to, args.port))
        finish(connection)
    return [who]


def serves_fastopen(args: argparse.Namespace) -> list[Identity]:
    """A server that takes data in the SYN."""
    who = become("serves")
    with socket.create_server(("", args.source_port)) as listening:
        listening.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN, 16)
        listening.settimeout(GUARD_S)
        pause(who)
        for number in range(args.count):
            connection, _ = listening.accept()
            connection.settimeout(GUARD_S)
            connection.sendall(signature(number))
            finish(connection)
    return [who]


def itself(args: argparse.Namespace) -> list[Identity]:
    """A socket that connects to its own port: its SYN crosses with itself, and nobody has listened."""
    who = become("itself")
    for _ in range(args.count):
        with tcp(args) as connection:
            connection.bind(("127.0.0.1", 0))
            connection.connect(connection.getsockname())
            connection.sendall(signature(0))
            finish(connection)
    return [who]


def refused(args: argparse.Namespace) -> list[Identity]:
    """A connection from one port to another; when both are free, another process tries the same the other way."""
    become("parent")
    ends = [("127.0.0.1", args.source_port + number) for number in range(2)]

    def connect(source: tuple[str, int], to: tuple[str, int]) -> None:
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.bind(source)
            connection.connect_ex(to)

    def first() -> None:
        become("first")
        with socket.create_server(ends[1]):
            connect(ends[0], ends[1])

    def second() -> None:
        become("second")
        connect(ends[1], ends[0])

    who = []
    for _ in range(args.count):
        for run in (first, second):
            child = fork(run)
            wait_for(child)
            who.append(Identity(run.__name__, child, child))
    return who


def threads(args: argparse.Namespace) -> list[Identity]:
    """One thread connects, others send, on duplicates of the descriptor."""
    who = [become("main")]
    connection = tcp(args)

    def connect() -> None:
        who.append(become("connects"))
        connection.connect((args.to, args.port))

    connecting = threading.Thread(target=connect)
    connecting.start()
    connecting.join()

    def send(name: str) -> None:
        who.append(become(name))
        with connection.dup() as one:
            one.sendall(signature(0))
            wait_until_acknowledged(one)

    for number in range(args.count):
        other = threading.Thread(target=send, args=(f"sends-{number}",))
        other.start()
        other.join()
    finish(connection)
    return who


def taken(args: argparse.Namespace) -> list[Identity]:
    """A process that gets the socket of another one by pidfd_getfd(2), as a debugger does, and sends on it."""
    libc = ctypes.CDLL(None, use_errno=True)
    parent = become("given")
    connection = tcp(args)
    connection.connect((args.to, args.port))
    connection.sendall(signature(0))
    wait_until_acknowledged(connection)
    pid, number = os.getpid(), connection.fileno()

    def one() -> None:
        become("takes")
        connection.close()
        pidfd = libc.syscall(PIDFD_OPEN, pid, 0)
        with socket.socket(fileno=libc.syscall(PIDFD_GETFD, pidfd, number, 0)) as got:
            for sequence in range(args.count):
                got.sendall(signature(sequence))
            wait_until_acknowledged(got)

    child = fork(one)
    wait_for(child)
    finish(connection)
    return [parent, Identity("takes", child, child)]


def lingers(args: argparse.Namespace) -> list[Identity]:
    """A close(2) that waits until all is sent."""
    who = become("lingers")
    for _ in range(args.count):
        connection = tcp(args)
        connection.connect((args.to, args.port))
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, GUARD_S))
        connection.setblocking(True)  # noqa: FBT003
        connection.sendall(signatures(1 << 17))
        connection.close()
    return [who]


def paced(args: argparse.Namespace) -> list[Identity]:
    """Data that a timer sends, a few at a time."""
    who = become("paced")
    connection = tcp(args)
    connection.setsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE, 2_000_000)
    connection.connect((args.to, args.port))
    connection.sendall(signatures(500_003))
    finish(connection)
    return [who]


def destroyed(args: argparse.Namespace) -> list[Identity]:
    """A connection that the administrator ends, when told to."""
    who = become("destroyed")
    connection = tcp(args)
    connection.connect((args.to, args.port))
    connection.sendall(signature(0))
    wait_until_acknowledged(connection)
    pause(who)
    return [who]


def forges(args: argparse.Namespace) -> list[Identity]:
    """SYNs of a connection that another process has, as a scanner or a replayed capture has them; by a raw socket."""
    who = become("forges")
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as sender:
        for number in range(args.count):
            frame = bytearray(_tcp(args.source, args.to, args.port, (number, 0), SYN))
            frame[20:22] = args.source_port.to_bytes(2, "big")
            sender.sendto(bytes(frame), (args.to, 0))
    return [who]


def main() -> None:
    """Act as the arguments say, and say who did."""
    ways: dict[str, Callable[[argparse.Namespace], list[Identity]]] = {
        way.__name__: way
        for way in (
            *(udplite, raw, mptcp, fastopen, serves_fastopen, itself, refused),
            *(threads, taken, lingers, paced, destroyed, forges),
        )
    }
    parser = argparse.ArgumentParser()
    parser.add_argument("way", choices=ways)
    parser.add_argument("--to", default="")
    parser.add_argument("--source", default="")
    parser.add_argument("--port", type=int, default=9)
    parser.add_argument("--source-port", type=int, default=0)
    parser.add_argument("--count", type=int, default=1)
    args = parser.parse_args()
    report(*ways[args.way](args))


if __name__ == "__main__":
    main()
