"""One process after the other has a port or an echo identifier: `python -m tests.kernel.send.again WAY --to ADDRESS`.

Each is a child with a name of its own, bound to --source-port, and is gone when the next one comes. With --flush the
neighbour is forgotten before each, so that its first packet has to wait for it. The ways: `tcp` (ended by a reset, so
that the port is free at once), `refused` (which nobody takes), `udp` and `echo` (which get back what they have sent),
`fates` (TCP connections that end in as many ways as there are).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable

from tests.kernel.send.datagrams import ECHO_REQUEST, internet_checksum
from tests.kernel.send.identity import Identity, become, report, signature
from tests.kernel.send.process import fork

GUARD_S = 600  # a guard only: the test that started us gives up long before


def tcp(args: argparse.Namespace) -> None:
    """A connection that is reset."""
    with socket.socket() as connection:
        connection.settimeout(GUARD_S)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.bind(("", args.source_port))
        connection.connect((args.to, args.port))
        connection.sendall(signature(0))


def refused(args: argparse.Namespace) -> None:
    """A connection that nobody takes."""
    with socket.socket() as connection:
        connection.settimeout(GUARD_S)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        connection.bind(("", args.source_port))
        connection.connect_ex((args.to, args.port))


def udp(args: argparse.Namespace) -> None:
    """A datagram and its answer."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.settimeout(GUARD_S)
        sender.bind(("", args.source_port))
        sender.sendto(signature(0), (args.to, args.port))
        sender.recv(2048)


def echo(args: argparse.Namespace) -> None:
    """An echo request and its reply."""
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as sender:
        sender.settimeout(GUARD_S)
        message = struct.pack("!BBHHH", ECHO_REQUEST, 0, 0, args.source_port & 0xFFFF, 1) + signature(0)
        checked = message[:2] + struct.pack("!H", internet_checksum(message)) + message[4:]
        sender.sendto(checked, (args.to, 0))
        while sender.recv(2048)[20]:  # its type: 0 is a reply
            pass


def connected(args: argparse.Namespace) -> socket.socket:
    """A connection that has carried something."""
    made = socket.create_connection((args.to, args.port), GUARD_S)
    made.sendall(signature(0))
    return made


def closed(args: argparse.Namespace) -> None:
    """By close(2)."""
    connected(args).close()


def replaced(args: argparse.Namespace) -> None:
    """By dup2(2) over its descriptor."""
    connection = connected(args)
    os.dup2(sys.stderr.fileno(), connection.fileno())
    connection.detach()


def swept(args: argparse.Namespace) -> None:
    """By close_range(2)."""
    connection = connected(args)
    number = connection.detach()
    os.closerange(number, number + 7)


def left(args: argparse.Namespace) -> None:
    """By exit(2)."""
    connected(args).detach()


def killed(args: argparse.Namespace) -> None:
    """By a signal."""
    connected(args).detach()
    os.kill(os.getpid(), signal.SIGKILL)


def executed(args: argparse.Namespace) -> None:
    """By execve(2) of another program, which does not get it."""
    connected(args).detach()
    os.execv("/bin/true", ["true"])  # noqa: S606


def shut(args: argparse.Namespace) -> None:
    """By shutdown(2), and then a wait for the other side's end."""
    with connected(args) as connection:
        connection.shutdown(socket.SHUT_WR)
        connection.recv(1)


FATES = (closed, replaced, swept, left, killed, executed, shut)
WAYS: dict[str, tuple[Callable[[argparse.Namespace], None], ...]] = {
    "tcp": (tcp,),
    "refused": (refused,),
    "udp": (udp,),
    "echo": (echo,),
    "fates": FATES,
}


def one_after_another(args: argparse.Namespace) -> list[Identity]:
    """All of them."""
    who = []
    ways = WAYS[args.way]
    for number in range(args.count):
        if args.flush:
            subprocess.run(["ip", "neighbour", "del", args.to, "dev", args.flush], check=False, capture_output=True)
        way = ways[number % len(ways)]
        name = f"{way.__name__}-{number}"

        def act(name: str = name, way: Callable[[argparse.Namespace], None] = way) -> None:
            become(name)
            way(args)

        child = fork(act)
        _, status = os.waitpid(child, 0)
        if status and status != signal.SIGKILL:
            raise ChildProcessError(f"{name} ended with {status:#x}")
        who.append(Identity(name, child, child))
    return who


def main() -> None:
    """Act as the arguments say, and say who did."""
    parser = argparse.ArgumentParser()
    parser.add_argument("way", choices=WAYS)
    parser.add_argument("--to", required=True)
    parser.add_argument("--port", type=int, default=9)
    parser.add_argument("--source-port", type=int, default=0)
    parser.add_argument("--flush", default="")
    parser.add_argument("--count", type=int, default=1)
    args = parser.parse_args()
    become("parent")
    with contextlib.suppress(BrokenPipeError):
        report(*one_after_another(args))


if __name__ == "__main__":
    main()
