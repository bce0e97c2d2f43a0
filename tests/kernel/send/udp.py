"""Sends signed datagrams: `python -m tests.kernel.send.udp WAY --to ADDRESS --port N --count N`.

Each way is one way in which a process comes to a UDP socket. Every datagram carries the name and ids of the thread that
sent it. Ends when all is sent.
"""

from __future__ import annotations

import argparse
import os
import socket
import threading
from collections.abc import Callable

from tests.kernel.send.identity import become, pause, report, signature
from tests.kernel.send.process import fork, wait_for

ANSWER_TIMEOUT_S = 600  # a guard only: the test that started us gives up long before


def udp_socket(args: argparse.Namespace, port: int = 0) -> socket.socket:
    """Give a UDP socket, bound to a port if one is given."""
    made = socket.socket(socket.AF_INET6 if ":" in args.to else socket.AF_INET, socket.SOCK_DGRAM)
    made.settimeout(ANSWER_TIMEOUT_S)
    if args.device:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, args.device.encode())
    if port:
        made.bind((args.address, port))
    return made


def connected(args: argparse.Namespace) -> None:
    """One socket with an address of its own."""
    become("connected")
    with udp_socket(args) as sender:
        sender.connect((args.to, args.port))
        for number in range(args.count):
            sender.send(signature(number))


def lingers(args: argparse.Namespace) -> None:
    """One socket that stays open until the test has seen to what was sent."""
    who = become("lingers")
    with udp_socket(args) as sender:
        for number in range(args.count):
            sender.sendto(signature(number), (args.to, args.port))
        pause(who)


def unconnected(args: argparse.Namespace) -> None:
    """One socket that is told the address each time."""
    become("unconnected")
    with udp_socket(args) as sender:
        for number in range(args.count):
            sender.sendto(signature(number), (args.to, args.port))


def first(args: argparse.Namespace) -> None:
    """One socket for each datagram."""
    become("first")
    for number in range(args.count):
        with udp_socket(args) as sender:
            sender.sendto(signature(number), (args.to, args.port))


def processes(args: argparse.Namespace) -> None:
    """One process for each datagram."""
    become("parent")

    def one(number: int) -> None:
        become(f"one-{number}")
        with udp_socket(args) as sender:
            sender.sendto(signature(number), (args.to, args.port))

    for number in range(args.count):
        wait_for(fork(one, number))


def thread(args: argparse.Namespace) -> None:
    """The main thread and one with a name of its own, in turns, on one socket."""
    become("main")
    with udp_socket(args) as sender:

        def one(number: int) -> None:
            become("named thread")
            sender.sendto(signature(number), (args.to, args.port))

        for number in range(args.count):
            sender.sendto(signature(number), (args.to, args.port))
            other = threading.Thread(target=one, args=(number,))
            other.start()
            other.join()


def reuseport(args: argparse.Namespace) -> None:
    """Two processes on one port, in turns: each sends, and waits for the other's turn on a pipe."""
    become("parent")
    turns = [os.pipe(), os.pipe()]

    def one(me: int) -> None:
        become(f"reuseport-{me}")
        with udp_socket(args) as sender:
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sender.bind(("", args.source_port))
            for number in range(args.count):
                os.read(turns[me][0], 1)
                sender.sendto(signature(number), (args.to, args.port))
                os.write(turns[1 - me][1], b"!")

    children = [fork(one, me) for me in range(2)]
    os.write(turns[0][1], b"!")
    for child in children:
        wait_for(child)


def port_again(args: argparse.Namespace) -> None:
    """One process after the other on one port; each gets its own datagram back before it goes."""
    become("parent")

    def one(number: int) -> None:
        become(f"again-{number}")
        with udp_socket(args, args.source_port) as sender:
            sender.sendto(signature(number), (args.to, args.port))
            sender.recv(2048)

    for number in range(args.count):
        wait_for(fork(one, number))


def answers(args: argparse.Namespace) -> None:
    """A server: answers each datagram with its own signature."""
    who = become("server")
    with udp_socket(args, args.source_port) as server:
        pause(who)
        for number in range(args.count):
            _, client = server.recvfrom(2048)
            server.sendto(signature(number), client)


def asks(args: argparse.Namespace) -> None:
    """A client: sends, and waits for the answer each time."""
    who = become("client")
    with udp_socket(args) as client:
        client.connect((args.to, args.port))
        for number in range(args.count):
            client.send(signature(number))
            client.recv(2048)
    report(who)


def main() -> None:
    """Send as the arguments say."""
    ways: dict[str, Callable[[argparse.Namespace], None]] = {
        way.__name__: way
        for way in (connected, lingers, unconnected, first, processes, thread, reuseport, port_again, answers, asks)
    }
    parser = argparse.ArgumentParser()
    parser.add_argument("way", choices=ways)
    parser.add_argument("--to", default="")
    parser.add_argument("--port", type=int, default=9)
    parser.add_argument("--source-port", type=int, default=0)
    parser.add_argument("--device", default="")
    parser.add_argument("--address", default="")  # of the port
    parser.add_argument("--count", type=int, required=True)
    args = parser.parse_args()
    ways[args.way](args)


if __name__ == "__main__":
    main()
