"""Sockets that change hands: `python -m tests.kernel.send.sharing WAY --to ADDRESS --port N --count N`.

Each way is one way in which a process comes to a socket that another has made, or in which the user of a socket changes
its name. What is sent is signed by who sends it. Ends when all is sent; reports every process that had the socket.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
import time
from collections.abc import Callable

from tests.kernel.send.identity import Identity, become, myself, pause, report, signature
from tests.kernel.send.process import fork, wait_for, wait_until_renamed
from tests.kernel.send.tcp import GUARD_S, finish, serve, wait_until_acknowledged

LISTEN_FDS_START = 3  # sd_listen_fds(3)


def udp_to(args: argparse.Namespace) -> socket.socket:
    """A UDP socket with the far end's address."""
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.connect((args.to, args.port))
    return made


def tcp_to(args: argparse.Namespace) -> socket.socket:
    """A TCP connection to the far end."""
    made = socket.create_connection((args.to, args.tcp_port), GUARD_S)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return made


def send(args: argparse.Namespace, *sockets: socket.socket) -> None:
    """Send signatures on each socket, and wait until they have arrived where that can be told."""
    for one in sockets:
        for number in range(args.count):
            one.send(signature(number))
        if one.type == socket.SOCK_STREAM:
            wait_until_acknowledged(one)


def run_again(args: argparse.Namespace, way: str, *passed: socket.socket) -> None:
    """Become this program again, in the same process, with sockets inherited."""
    for one in passed:
        one.set_inheritable(True)
    words = ["--to", args.to, "--port", args.port, "--tcp-port", args.tcp_port, "--count", args.count]
    words += ["--inherited", ",".join(str(one.fileno()) for one in passed)]
    flags = ["-E", "-s", "-S", "-m", "tests.kernel.send.sharing", way]
    os.execv(sys.executable, [sys.executable, *flags, *map(str, words)])  # noqa: S606 - its own program


def inherited(args: argparse.Namespace) -> list[socket.socket]:
    """The sockets that this program was given."""
    given = [socket.socket(fileno=int(number)) for number in args.inherited.split(",")]
    for one in given:
        one.settimeout(GUARD_S)
    return given


def forked(args: argparse.Namespace) -> list[Identity]:
    """Parent, child, parent again on the same sockets."""
    parent = become("parent")
    with udp_to(args) as datagrams, tcp_to(args) as connection:

        def one() -> None:
            become("child")
            send(args, datagrams, connection)

        send(args, datagrams, connection)
        child = fork(one)
        wait_for(child)
        send(args, datagrams, connection)
        finish(connection)
    return [parent, Identity("child", child, child)]


def executed(args: argparse.Namespace) -> list[Identity]:
    """A parent that sends, then a child that runs another program on the same sockets."""
    parent = become("parent")
    with udp_to(args) as datagrams, tcp_to(args) as connection:
        send(args, datagrams, connection)
        child = fork(lambda: run_again(args, "heir", datagrams, connection))
        wait_for(child)
        send(args, datagrams, connection)
        finish(connection)
    return [parent, Identity("heir", child, child)]


def heir(args: argparse.Namespace) -> list[Identity]:
    """The other program of `executed` and `left`."""
    who = become("heir")
    send(args, *inherited(args))
    return [who]


def left(args: argparse.Namespace) -> list[Identity]:
    """A parent that makes sockets, uses none of them but to connect, and is gone when its child sends."""
    parent = become("parent")
    reading, writing = os.pipe()
    datagrams, connection = udp_to(args), tcp_to(args)
    os.set_inheritable(writing, True)  # noqa: FBT003 - closed when the heir, too, has ended

    def middle() -> None:
        pid = os.getpid()

        def orphan() -> None:
            while os.getppid() == pid:
                time.sleep(0.001)
            run_again(args, "heir", datagrams, connection)

        heirs = fork(orphan)
        os.write(writing, heirs.to_bytes(4, "little"))

    middle_pid = fork(middle)
    datagrams.close()
    connection.close()
    os.close(writing)
    wait_for(middle_pid)
    heirs = int.from_bytes(os.read(reading, 4), "little")
    while os.read(reading, 1):
        pass
    return [parent, Identity("heir", heirs, heirs)]


def passed(args: argparse.Namespace) -> list[Identity]:
    """Sockets that travel to another process as a message (SCM_RIGHTS)."""
    ours, theirs = socket.socketpair()

    def one() -> None:
        become("taker")
        ours.close()
        _, numbers, _, _ = socket.recv_fds(theirs, 1, 2)
        send(args, *(socket.socket(fileno=number) for number in numbers))

    taker = fork(one)  # before the sockets are made, so that it inherits none
    giver = become("giver")
    with udp_to(args) as datagrams, tcp_to(args) as connection:
        send(args, datagrams, connection)
        socket.send_fds(ours, [b"!"], [datagrams.fileno(), connection.fileno()])
        wait_for(taker)
        send(args, datagrams, connection)
        finish(connection)
    return [giver, Identity("taker", taker, taker)]


def activated(args: argparse.Namespace) -> list[Identity]:
    """Sockets made by one process, and handed to a service that it starts, which finds them at descriptor 3 and 4."""
    activator = become("activator")
    with (
        socket.create_server(("", args.source_port)) as listening,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams,
    ):
        datagrams.bind(("", args.source_port))

        def one() -> None:
            for number, given in enumerate((listening, datagrams), LISTEN_FDS_START):
                high = os.dup2(given.fileno(), 100 + number)
                os.dup2(high, number, inheritable=True)
            inherited = [socket.socket(fileno=LISTEN_FDS_START + number) for number in range(2)]
            run_again(args, "service", *inherited)

        service = fork(one)
        wait_until_renamed(service, activator.comm)  # until then, both candidates have the same name
        pause(activator, Identity("service", service, service))
        wait_for(service)
    return [activator, Identity("service", service, service)]


def service(args: argparse.Namespace) -> list[Identity]:
    """The service of `activated`: one answer for each connection and each datagram."""
    who = become("service")
    listening, datagrams = inherited(args)
    listening.settimeout(GUARD_S)
    datagrams.settimeout(GUARD_S)
    for number in range(args.count):
        serve(listening.accept()[0])
        _, client = datagrams.recvfrom(2048)
        datagrams.sendto(signature(number), client)
    return [who]


def renamed_by_exec(args: argparse.Namespace) -> list[Identity]:
    """A process that sends, and runs another program in its place, which sends on the same sockets."""
    who = become("before exec")
    datagrams, connection = udp_to(args), tcp_to(args)
    report(who)
    send(args, datagrams, connection)
    run_again(args, "after_exec", datagrams, connection)
    return []


def after_exec(args: argparse.Namespace) -> list[Identity]:
    """The other program of `renamed_by_exec`, under the name that exec(2) has given it."""
    who = myself()
    datagrams, connection = inherited(args)
    send(args, datagrams, connection)
    finish(connection)
    return [who, Identity("before exec", who.tgid, who.tid)]


def renamed(args: argparse.Namespace) -> list[Identity]:
    """A thread that changes its name between one datagram and the next."""
    who = [become("name")]
    with udp_to(args) as datagrams, tcp_to(args) as connection:
        for number in range(args.count):
            who.append(become(f"name-{number}"))
            datagrams.send(signature(number))
            connection.send(signature(number))
            wait_until_acknowledged(connection)
        finish(connection)
    return who


def main() -> None:
    """Act as the arguments say, and say who did."""
    ways: dict[str, Callable[[argparse.Namespace], list[Identity]]] = {
        way.__name__: way
        for way in (
            *(forked, executed, heir, left, passed, activated, service),
            *(renamed_by_exec, after_exec, renamed),
        )
    }
    parser = argparse.ArgumentParser()
    parser.add_argument("way", choices=ways)
    parser.add_argument("--to", default="")
    parser.add_argument("--port", type=int, default=9)
    parser.add_argument("--tcp-port", type=int, default=0)
    parser.add_argument("--source-port", type=int, default=0)
    parser.add_argument("--count", type=int, default=1)
    parser.add_argument("--inherited", default="")
    args = parser.parse_args()
    who = ways[args.way](args)
    if args.way not in ("heir", "service"):  # their parents say it for them
        report(*who)


if __name__ == "__main__":
    main()
