"""Receives: `python -m tests.kernel.send.receivers WAY --port N --count N`. Says that it is ready, then waits.

What a received packet carries is the name of the process that gets it: this one.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import socket
import struct
import threading
from collections.abc import Callable

from tests.kernel.send.identity import Identity, become, pause, report, signature
from tests.kernel.send.process import fork, wait_for

THREADS = 4
IP_TRANSPARENT = 19  # include/uapi/linux/in.h
SO_BUSY_POLL, SO_PREFER_BUSY_POLL = 46, 69  # include/uapi/asm-generic/socket.h
POLLS_US = 20_000
GUARD_S = 600  # a guard only: the test that started us gives up long before


def udp(port: int = 0) -> socket.socket:
    """A UDP socket, bound to a port of every address."""
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.settimeout(GUARD_S)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind(("", port))
    return made


def bound(args: argparse.Namespace) -> list[Identity]:
    """A bound socket; nobody has used it before the first datagram."""
    who = become("bound")
    with udp(args.port) as receiver:
        if args.transparent:
            receiver.setsockopt(socket.SOL_IP, IP_TRANSPARENT, 1)
        pause(who)
        for _ in range(args.count):
            receiver.recv(2048)
    return [who]


def relays(args: argparse.Namespace) -> list[Identity]:
    """This process receives; a child answers on a socket of its own, as --to and --to-port say."""
    who = become("relays")
    orders, answered = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)

    def prepare(made: socket.socket, *, answers: bool = False) -> socket.socket:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT if args.reuseport else socket.SO_REUSEADDR, 1)
        if args.transparent and not (answers and args.ordinary):
            made.setsockopt(socket.SOL_IP, IP_TRANSPARENT, 1)
        return made

    def answer() -> None:
        become("answers")
        with prepare(socket.socket(socket.AF_INET, socket.SOCK_DGRAM), answers=True) as sender:
            sender.bind((args.to, args.to_port))
            answered.send(b"!")
            for number in range(args.count):
                host, port = answered.recv(2048).decode().split()
                sender.sendto(signature(number), (host, int(port)))

    child = fork(answer)
    orders.recv(1)  # of two sockets at one port, the later one receives
    with prepare(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as receiver:
        receiver.bind((args.address, args.port))
        receiver.settimeout(GUARD_S)
        pause(who)
        for _ in range(args.count):
            _, (host, port) = receiver.recvfrom(2048)
            orders.send(f"{host} {port}".encode())
    wait_for(child)
    return [who]


def passes_on(args: argparse.Namespace) -> list[Identity]:
    """A process that sends once, and ends; its child, which has the socket, only receives."""
    lives, closed = os.pipe()

    def receive(receiver: socket.socket) -> None:
        who = become("child")
        receiver.recv(2048)
        pause(who)
        for _ in range(args.count):
            receiver.recv(2048)
        report(who)

    def send() -> None:
        become("sends")
        with udp() as sender:
            sender.sendto(signature(0), (args.to, args.to_port))
            fork(receive, sender)

    wait_for(fork(send))
    os.close(closed)
    os.read(lives, 1)  # returns when the child has ended
    return []


def leaves(args: argparse.Namespace) -> list[Identity]:
    """Asks, and then takes another port: the socket stays open."""
    who = become("leaves")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(GUARD_S)
        client.connect((args.to, args.to_port))
        client.send(signature(0))
        client.recv(2048)
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.connect(client.fileno(), bytes(16), 16):  # AF_UNSPEC
            raise OSError(ctypes.get_errno(), "connect")
        client.connect((args.to, args.to_port))
        pause(who)
    return [who]


def members(args: argparse.Namespace) -> list[Identity]:
    """Two processes on one port (SO_REUSEPORT) that answer; the test says when the second one ends."""
    become("parent")
    ready = socket.socketpair()

    def one() -> None:
        become("member")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            server.bind(("", args.port))
            ready[1].send(b"!")
            while True:
                _, client = server.recvfrom(2048)
                server.sendto(signature(0), client)

    children = [fork(one) for _ in range(2)]
    for _ in children:
        ready[0].recv(1)
    found = [Identity("member", child, child) for child in children]
    pause(*found)
    for child in reversed(children):
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        pause(*found)
    return found


def polls(args: argparse.Namespace) -> list[Identity]:
    """A bound socket whose process polls the interface itself for what it receives."""
    who = become("polls")
    with udp(args.port) as receiver:
        receiver.setsockopt(socket.SOL_SOCKET, SO_BUSY_POLL, POLLS_US)
        receiver.setsockopt(socket.SOL_SOCKET, SO_PREFER_BUSY_POLL, 1)
        receiver.settimeout(None)  # with a timeout, Python would wait in poll(2)
        pause(who)
        for _ in range(args.count):
            receiver.recv(2048)
    return [who]


def connected(args: argparse.Namespace) -> list[Identity]:
    """A bound and connected socket, beside one that is only bound to the same port."""
    who = become("connected")
    with udp(args.port) as receiver, udp(args.port):
        receiver.connect((args.to, args.to_port))
        pause(who)
        for _ in range(args.count):
            receiver.recv(2048)
    return [who]


def group(args: argparse.Namespace) -> list[Identity]:
    """Two processes that have joined a multicast group; each gets every datagram."""
    become("parent")
    ready = socket.socketpair()

    def one(name: str) -> None:
        become(name)
        with udp(args.port) as receiver:
            membership = struct.pack("4s4s", socket.inet_aton(args.to), socket.inet_aton(args.address))
            receiver.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
            ready[1].send(b"!")
            for _ in range(args.count):
                receiver.recv(2048)

    members = []
    for name in ("member-0", "member-1"):
        child = fork(one, name)
        members.append(Identity(name, child, child))
    for _ in members:
        ready[0].recv(1)
    report(*members)
    for member in members:
        wait_for(member.tgid)
    return members


def joins(args: argparse.Namespace) -> list[Identity]:
    """Joins a multicast group, and leaves it again when the socket is closed."""
    who = become("joins")
    for number in range(2):
        with udp(args.port) as receiver:
            membership = struct.pack("4s4s", socket.inet_aton(f"239.67.1.{number}"), socket.inet_aton(args.address))
            receiver.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
    return [who]


def shared_port(args: argparse.Namespace) -> list[Identity]:
    """Two processes on one port (SO_REUSEPORT), until told to stop: the kernel chooses one for each datagram."""
    become("parent")
    ready = socket.socketpair()

    def one(name: str) -> None:
        become(name)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
            receiver.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            receiver.bind(("", args.port))
            ready[1].send(b"!")
            while True:
                receiver.recv(2048)

    members = []
    for name in ("shared-0", "shared-1"):
        child = fork(one, name)
        members.append(Identity(name, child, child))
    for _ in members:
        ready[0].recv(1)
    pause(*members)
    for member in members:
        os.kill(member.tgid, signal.SIGKILL)
        os.waitpid(member.tgid, 0)
    return members


def threads_share(args: argparse.Namespace) -> list[Identity]:
    """Threads of one process on one port, each with a socket of its own (SO_REUSEPORT); UDP, or TCP with --stream."""
    become("threads")
    kind = socket.SOCK_STREAM if args.stream else socket.SOCK_DGRAM
    got = threading.Semaphore(0)

    def serve(one: socket.socket) -> None:
        with one:
            while True:
                if args.stream:
                    connection, _ = one.accept()
                    with connection:
                        connection.recv(1 << 16)
                else:
                    one.recv(2048)
                got.release()

    for _ in range(THREADS):
        made = socket.socket(socket.AF_INET, kind)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        made.bind(("", args.port))
        if args.stream:
            made.listen()
        threading.Thread(target=serve, args=(made,), daemon=True).start()
    who = Identity("threads", os.getpid(), 0)
    report(who)
    for _ in range(args.count):
        assert got.acquire(timeout=GUARD_S)
    pause(who)
    return [who]


def workers(args: argparse.Namespace) -> list[Identity]:
    """A master that listens before its workers are there, which all accept from its socket; until told to stop."""
    become("workers")
    listening = socket.create_server(("", args.port))

    def one() -> None:
        while True:
            connection, _ = listening.accept()
            with connection:
                connection.recv(1 << 16)

    children = [fork(one) for _ in range(THREADS)]
    pause()  # the capture starts
    pause(*(Identity("workers", child, child) for child in children))
    for child in children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return [Identity("workers", child, child) for child in children]


def siblings(args: argparse.Namespace) -> list[Identity]:
    """Two processes that listen at one port, each with its own socket; the later one ends, the other serves."""
    become("parent")
    ready = socket.socketpair()

    def one(name: str) -> None:
        become(name)
        with socket.socket() as listening:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            listening.bind(("", args.port))
            listening.listen()
            ready[1].send(b"!")
            while True:
                connection, _ = listening.accept()
                with connection:
                    connection.recv(1 << 16)

    children = []
    for name in ("sibling-0", "sibling-1"):
        children.append(fork(one, name))
        ready[0].recv(1)
    first, last = children
    os.kill(last, signal.SIGKILL)
    os.waitpid(last, 0)
    pause(Identity("sibling-0", first, first))
    os.kill(first, signal.SIGKILL)
    os.waitpid(first, 0)
    return [Identity("sibling-0", first, first)]


def bound_6(args: argparse.Namespace) -> list[Identity]:
    """A bound socket of IPv6 that takes IPv4, too."""
    who = become("bound-6")
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as receiver:
        receiver.settimeout(GUARD_S)
        receiver.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        receiver.bind(("", args.port))
        pause(who)
        for _ in range(args.count):
            receiver.recv(1 << 16)
    return [who]


def main() -> None:
    """Act as the arguments say, and say who did."""
    ways: dict[str, Callable[[argparse.Namespace], list[Identity]]] = {
        way.__name__: way
        for way in (
            bound,
            relays,
            passes_on,
            leaves,
            members,
            polls,
            connected,
            group,
            joins,
            shared_port,
            threads_share,
            workers,
            siblings,
            bound_6,
        )
    }
    parser = argparse.ArgumentParser()
    parser.add_argument("way", choices=ways)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--to", default="")
    parser.add_argument("--to-port", type=int, default=0)
    parser.add_argument("--address", default="")
    parser.add_argument("--count", type=int, default=1)
    parser.add_argument("--stream", action="store_true")
    parser.add_argument("--transparent", action="store_true")
    parser.add_argument("--ordinary", action="store_true")  # the socket that answers is not transparent
    parser.add_argument("--reuseport", action="store_true")
    args = parser.parse_args()
    report(*ways[args.way](args))


if __name__ == "__main__":
    main()
