"""Servers that are not alone at their port: `python -m tests.kernel.send.listeners WAY --port N --count N`.

The ways: `serves` (connections, one after the other), `idles` (listens, and nothing else), `gone` (listened, and does
no more), `pool` and `pool_udp` (a master and workers that all have its socket), `grows` (a process with two sockets at
one port, and then its child, too). A connection is read to its end and answered with a signature. Each says when it is
ready.
"""

from __future__ import annotations

import argparse
import os
import select
import signal
import socket
import sys
from collections.abc import Callable

from tests.kernel.send.identity import Identity, become, pause, report, signature
from tests.kernel.send.process import fork, wait_for
from tests.kernel.send.tcp import serve

WORKERS = 3


def made(args: argparse.Namespace, kind: socket.SocketKind = socket.SOCK_STREAM) -> socket.socket:
    """A socket that is bound as the arguments say, and listens if it can."""
    one = socket.socket(socket.AF_INET6 if ":" in args.address else socket.AF_INET, kind)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if args.reuseport:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    if args.device:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, args.device.encode())
    if one.family == socket.AF_INET6:
        one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, args.v6only)
    one.bind((args.address, args.port))
    if kind == socket.SOCK_STREAM:
        one.listen()
    return one


def serves(args: argparse.Namespace) -> None:
    """Serves connections, when told to."""
    who = become(args.comm)
    with made(args) as listening:
        pause(who)
        for _ in range(args.count):
            serve(listening.accept()[0])


def idles(args: argparse.Namespace) -> None:
    """Listens until told to end."""
    who = become(args.comm)
    with made(args):
        pause(who)


def gone(args: argparse.Namespace) -> None:
    """Listens no more."""
    who = become(args.comm)
    made(args).close()
    pause(who)


def work(one: socket.socket) -> None:
    """Serve whatever comes, for ever."""
    while True:
        if one.type == socket.SOCK_STREAM:
            serve(one.accept()[0])
        else:
            data, client = one.recvfrom(2048)
            one.sendto(signature(len(data)), client)


def answer(*sockets: socket.socket) -> None:
    """Answer datagrams until a line comes in."""
    of = {one.fileno(): one for one in sockets}
    with select.epoll() as waiting:
        for number in (sys.stdin.fileno(), *of):
            waiting.register(number, select.EPOLLIN)
        while True:
            for number, _ in waiting.poll():
                if number not in of:
                    sys.stdin.readline()
                    return
                data, client = of[number].recvfrom(2048)
                of[number].sendto(signature(len(data)), client)


def kill(children: list[int]) -> None:
    """End them."""
    for child in children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _pool(args: argparse.Namespace, kind: socket.SocketKind) -> None:
    who = become(args.comm)
    with made(args, kind) as shared:
        children = [fork(work, shared) for _ in range(WORKERS)]
        pause(who, *(Identity(args.comm, child, child) for child in children))
        kill(children)


def pool(args: argparse.Namespace) -> None:
    """A master that listens, and workers that accept; until told to end."""
    _pool(args, socket.SOCK_STREAM)


def pool_udp(args: argparse.Namespace) -> None:
    """The same with datagrams."""
    _pool(args, socket.SOCK_DGRAM)


def grows(args: argparse.Namespace) -> None:
    """Two sockets of one process at one port; when told to, it forks, and its child answers in its place."""
    who = become(args.comm)
    sockets = [made(args, socket.SOCK_DGRAM) for _ in range(2)]
    report(who)
    answer(*sockets)
    child = fork(answer, *sockets)
    report(who, Identity(args.comm, child, child))
    wait_for(child)


def main() -> None:
    """Act as the arguments say."""
    ways: dict[str, Callable[[argparse.Namespace], None]] = {
        way.__name__: way for way in (serves, idles, gone, pool, pool_udp, grows)
    }
    parser = argparse.ArgumentParser()
    parser.add_argument("way", choices=ways)
    parser.add_argument("--comm", required=True)
    parser.add_argument("--address", default="")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--device", default="")
    parser.add_argument("--v6only", type=int, default=0)
    parser.add_argument("--reuseport", action="store_true")
    parser.add_argument("--count", type=int, default=1)
    args = parser.parse_args()
    ways[args.way](args)


if __name__ == "__main__":
    main()
