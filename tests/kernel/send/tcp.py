"""Speaks TCP, signed: `python -m tests.kernel.send.tcp WAY --to ADDRESS --port N --count N`.

Each way is one moment or one fate of a connection. Data consist of signatures, so that whatever the kernel makes a
segment of, and whenever it sends it, says whose it is. A server reports as soon as it listens, and waits to be told to
go on where the test has to act first.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import struct
import termios
import time
from collections.abc import Callable
from fcntl import ioctl

from tests.kernel.send.identity import Identity, become, pause, report, signature
from tests.kernel.send.process import fork, wait_for, wait_until_renamed

TCP_INFO_RETRANSMITS = 100  # offset of tcpi_total_retrans in struct tcp_info
GUARD_S = 600  # a guard only: the test that started us gives up long before
BACKLOG = 128
WINDOWS = 1 << 15
DISCARD_PORT = 9
IP_TRANSPARENT = 19  # include/uapi/linux/in.h


def connection_to(args: argparse.Namespace) -> socket.socket:
    """Connect to the far end, from --from-port if that is given."""
    source = ("", args.from_port) if args.from_port else None
    if args.mptcp:
        made = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_MPTCP)
        made.settimeout(GUARD_S)
        made.connect((args.to, args.port))
        return made
    return socket.create_connection((args.to, args.port), GUARD_S, source)


def finish(connection: socket.socket) -> None:
    """Send the FIN, and wait for the other side's."""
    connection.shutdown(socket.SHUT_WR)
    while connection.recv(1 << 16):
        pass
    connection.close()


def signatures(size: int) -> bytes:
    """So many bytes of signatures, or a few more."""
    one = signature(0)
    return one * (size // len(one) + 1)


def wait_until_acknowledged(connection: socket.socket) -> None:
    """Wait until the other side has all that was sent."""
    end = time.monotonic() + GUARD_S
    while struct.unpack("i", ioctl(connection, termios.TIOCOUTQ, b"\0" * 4))[0]:
        if time.monotonic() > end:
            raise TimeoutError("data were not acknowledged")


def retransmits(connection: socket.socket) -> int:
    """How many segments the kernel has sent again."""
    information = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_RETRANSMITS + 4)
    return int(struct.unpack_from("=I", information, TCP_INFO_RETRANSMITS)[0])


def listener(args: argparse.Namespace) -> socket.socket:
    """Listen on --source-port."""
    if args.mptcp:
        made = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_MPTCP)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((args.address, args.source_port))
        made.listen(BACKLOG)
    else:
        family = socket.AF_INET6 if ":" in args.to else socket.AF_INET
        made = socket.create_server(("", args.source_port), family=family, backlog=BACKLOG)
    if args.transparent:
        made.setsockopt(socket.SOL_IP, IP_TRANSPARENT, 1)
    made.settimeout(GUARD_S)
    return made


def serve(connection: socket.socket) -> None:
    """Read what comes, answer with a signature, close."""
    connection.settimeout(GUARD_S)
    while connection.recv(1 << 16):
        pass
    connection.sendall(signature(0))
    connection.close()


def connects(args: argparse.Namespace) -> Identity:
    """Connections that carry nothing; those of MPTCP carry a signature: Linux 6.18 loses the end of one without data,
    if it follows the handshake at once.
    """
    who = become("connects")
    for number in range(args.count):
        connection = connection_to(args)
        if args.mptcp:
            connection.sendall(signature(number))
        finish(connection)
    return who


def uploads(args: argparse.Namespace) -> Identity:
    """--count bytes up: most leave when an acknowledgement comes."""
    who = become("uploads")
    connection = connection_to(args)
    connection.sendall(signatures(args.count))
    finish(connection)
    return who


def writes(args: argparse.Namespace) -> Identity:
    """--count bytes up by many calls: the socket's lock is taken again and again, on the first processor."""
    who = become("writes")
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    connection = connection_to(args)
    chunk = signatures(1 << 13)
    for _ in range(args.count // len(chunk) + 1):
        connection.sendall(chunk)
    finish(connection)
    return who


def paused(args: argparse.Namespace) -> Identity:
    """A connection; when told to, --count signatures, each by a call of its own; when told to, its end."""
    who = become("paused")
    connection = connection_to(args)
    pause(who)
    for number in range(args.count):
        connection.sendall(signature(number))
    pause(who)
    finish(connection)
    return who


def downloads(args: argparse.Namespace) -> Identity:
    """Bytes down, to the other side's end."""
    who = become("downloads")
    connection = connection_to(args)
    while connection.recv(1 << 16):
        pass
    connection.close()
    return who


def retransmission(args: argparse.Namespace) -> Identity:
    """Data that have to be sent again: the other side drops them until --count retransmissions are reported."""
    who = become("retransmission")
    connection = connection_to(args)
    pause(who)
    connection.sendall(signatures(997))
    end = time.monotonic() + GUARD_S
    while retransmits(connection) < args.count and time.monotonic() < end:
        time.sleep(0.01)
    pause(who)
    finish(connection)
    return who


def exits(args: argparse.Namespace) -> Identity:
    """A process that is gone before its data are: the other side does not read until then."""
    become("parent")

    def one() -> None:
        become("exits")
        connection = connection_to(args)
        connection.settimeout(0)
        data = signatures(1 << 20)
        with contextlib.suppress(BlockingIOError):
            while True:
                connection.send(data)

    child = fork(one)
    wait_for(child)
    return Identity("exits", child, child)


def serves(args: argparse.Namespace) -> Identity:
    """A server that accepts and serves --count connections itself."""
    who = become("serves")
    with listener(args) as listening:
        pause(who)
        for _ in range(args.count):
            serve(listening.accept()[0])
    return who


def streams(args: argparse.Namespace) -> Identity:
    """A server that sends more than a window to whoever connects, and closes."""
    who = become("streams")
    with listener(args) as listening:
        pause(who)
        for _ in range(args.count):
            connection, _ = listening.accept()
            connection.sendall(signatures(WINDOWS))
            connection.close()
    return who


def accepts_late(args: argparse.Namespace) -> Identity:
    """A server that accepts each of --count connections only when told to."""
    who = become("accepts-late")
    with listener(args) as listening:
        pause(who)
        for _ in range(args.count):
            serve(listening.accept()[0])
            pause(who)
    return who


def workers_accept(args: argparse.Namespace) -> None:
    """A server whose two forked workers accept, as pre-forking servers do; the parent only listens."""
    parent = become("parent")

    def one(name: str) -> None:
        become(name)
        for _ in range(args.count):
            serve(listening.accept()[0])

    with listener(args) as listening:
        workers = []
        for name in ("worker-0", "worker-1"):
            child = fork(one, name)
            workers.append(Identity(name, child, child))
            wait_until_renamed(child, parent.comm)
        report(parent, *workers)
        for worker in workers:
            wait_for(worker.tgid)


def worker_serves(args: argparse.Namespace) -> None:
    """A server that accepts, and forks a worker for each connection."""
    processes = [become("parent")]

    def one(connection: socket.socket) -> None:
        become("worker")
        serve(connection)

    with listener(args) as listening:
        pause()
        for _ in range(args.count):
            connection, _ = listening.accept()
            child = fork(one, connection)
            connection.close()
            wait_for(child)
            # Until it names itself it is called as its parent.
            processes += [Identity("parent", child, child), Identity("worker", child, child)]
    report(*processes)


def older(args: argparse.Namespace) -> Identity:
    """A connection, a UDP socket and an accepted connection that are older than the capture, each used when told to."""
    who = become("older")
    with (
        listener(args) as listening,
        connection_to(args) as connection,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams,
    ):
        datagrams.bind(("", args.source_port))
        pause(who)  # the test connects
        accepted, _ = listening.accept()
        pause(who)  # the capture starts, and packets come in
        for one in (connection, accepted):
            one.settimeout(GUARD_S)
            while one.recv(1 << 16):
                pass
            one.sendall(signatures(997))
            one.close()
        for number in range(args.count):
            datagrams.recv(2048)
            datagrams.sendto(signature(number), (args.to, DISCARD_PORT))
    return who


def main() -> None:
    """Act as the arguments say, and say who did."""
    ways: dict[str, Callable[[argparse.Namespace], Identity | None]] = {
        way.__name__: way
        for way in (
            *(connects, uploads, writes, paused, downloads, retransmission, exits),
            *(serves, streams, accepts_late, workers_accept, worker_serves, older),
        )
    }
    parser = argparse.ArgumentParser()
    parser.add_argument("way", choices=ways)
    parser.add_argument("--to", default="")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--from-port", type=int, default=0)
    parser.add_argument("--source-port", type=int, default=0)
    parser.add_argument("--count", type=int, default=1)
    parser.add_argument("--transparent", action="store_true")
    parser.add_argument("--mptcp", action="store_true")
    parser.add_argument("--address", default="")  # of an MPTCP server
    args = parser.parse_args()
    who = ways[args.way](args)
    if who:
        report(who)


if __name__ == "__main__":
    main()
