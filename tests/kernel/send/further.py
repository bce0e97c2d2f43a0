"""More ways to come to a socket, or to send on it: `python -m tests.kernel.send.further WAY --to ADDRESS --port N`.

What is sent is signed by who sends it. Ends when all is sent; reports every process that had the socket.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import socket
import struct
import sys
from collections.abc import Callable
from pathlib import Path

from tests.kernel.send.identity import Identity, become, pause, report, signature
from tests.kernel.send.process import fork, run_and_exit, wait_for
from tests.kernel.send.sharing import send, tcp_to, udp_to
from tests.kernel.send.tcp import GUARD_S, finish, signatures, wait_until_acknowledged
from tests.kernel.send.zerocopy import MSG_ZEROCOPY, SO_ZEROCOPY, wait_for_completions

CLONE_NEWNET, CLONE_FILES, SIGCHLD = 0x40000000, 0x400, 17
SYS_CLONE = 56 if os.uname().machine == "x86_64" else 220
SO_ATTACH_REUSEPORT_CBPF = 51
RETURN_INDEX = 0x06  # BPF_RET | BPF_K
PAGE_BYTES = 1 << 12


def spawned(args: argparse.Namespace) -> list[Identity]:
    """A parent and, in turns, children of vfork(2) that run another program on the same sockets."""
    who = [become("parent")]
    with udp_to(args) as datagrams, tcp_to(args) as connection:
        for one in (datagrams, connection):
            one.set_inheritable(True)
        for _ in range(2):
            send(args, datagrams, connection)
            words = ["--to", args.to, "--port", args.port, "--tcp-port", args.tcp_port, "--count", args.count]
            words += ["--inherited", f"{datagrams.fileno()},{connection.fileno()}"]
            command = [sys.executable, "-E", "-s", "-S", "-m", "tests.kernel.send.sharing", "heir", *map(str, words)]
            child = os.posix_spawn(sys.executable, command, os.environ)
            wait_for(child)
            who.append(Identity("heir", child, child))
        send(args, datagrams, connection)
        finish(connection)
    return who


def lent(args: argparse.Namespace) -> list[Identity]:
    """A connection on which other processes send pages of a file, and memory without a copy."""
    who = [become("parent")]
    connection = tcp_to(args)
    connection.setsockopt(socket.SOL_SOCKET, SO_ZEROCOPY, 1)

    def by_sendfile() -> None:
        with Path(args.file).open("w+b") as file:
            file.write(signatures(1 << 16))
            file.flush()
            os.sendfile(connection.fileno(), file.fileno(), 0, 1 << 16)

    def by_splice() -> None:
        reading, writing = os.pipe()
        for _ in range(args.count):
            os.write(writing, signatures(PAGE_BYTES - 64))
            libc = ctypes.CDLL(None)
            libc.splice(reading, None, connection.fileno(), None, PAGE_BYTES, 0)

    def by_zerocopy() -> None:
        for number in range(args.count):
            connection.send(signature(0) * 100, MSG_ZEROCOPY)
            wait_for_completions(connection, number)

    def one(name: str, run: Callable[[], None]) -> None:
        become(name)
        run()
        wait_until_acknowledged(connection)

    for name, run in (("sendfile", by_sendfile), ("splice", by_splice), ("zerocopy", by_zerocopy)):
        send(args, connection)
        child = fork(one, name, run)
        wait_for(child)
        who.append(Identity(name, child, child))
    send(args, connection)
    finish(connection)
    return who


def entered(args: argparse.Namespace) -> list[Identity]:
    """Sockets of the namespace before; the process enters another one, and has sockets there, too."""
    libc = ctypes.CDLL(None, use_errno=True)
    who = become("enters")
    with udp_to(args) as datagrams, tcp_to(args) as connection:
        send(args, datagrams, connection)
        with Path(args.netns).open("rb") as there:
            if libc.setns(there.fileno(), CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
        send(args, datagrams, connection)
        finish(connection)
    return [who]


def one_table(args: argparse.Namespace) -> list[Identity]:
    """Two processes with one table of descriptors (CLONE_FILES): each has what the other one opens."""
    libc = ctypes.CDLL(None, use_errno=True)
    parent = become("parent")
    ready, turn = os.pipe(), os.pipe()

    def other() -> None:
        become("other")
        os.write(ready[1], b"!")
        for _ in range(args.count):
            number = int(os.read(turn[0], 8))
            with socket.socket(fileno=number) as given:
                given.send(signature(0))
                given.detach()
            os.write(ready[1], b"!")

    child = libc.syscall(SYS_CLONE, CLONE_FILES | SIGCHLD, None, None, None, None)
    if not child:
        run_and_exit(other)
    os.read(ready[0], 1)
    with udp_to(args) as datagrams:  # the child has it, too
        for number in range(args.count):
            datagrams.send(signature(number))
            os.write(turn[1], b"%8d" % datagrams.fileno())
            os.read(ready[0], 1)
    wait_for(child)
    return [parent, Identity("other", child, child)]


def chosen(args: argparse.Namespace) -> list[Identity]:
    """Two processes on one port (SO_REUSEPORT): a program gives each datagram to the second one."""
    become("parent")
    ready = os.pipe()
    go = os.pipe()

    def one(number: int) -> None:
        become(f"chosen-{number}")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
            receiver.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            receiver.bind(("", args.port))
            if number:
                code = ctypes.create_string_buffer(struct.pack("HBBI", RETURN_INDEX, 0, 0, number))
                program = struct.pack("HxxxxxxQ", 1, ctypes.addressof(code))
                receiver.setsockopt(socket.SOL_SOCKET, SO_ATTACH_REUSEPORT_CBPF, program)
            os.write(ready[1], b"!")
            if number:
                for sequence in range(args.count):
                    _, client = receiver.recvfrom(2048)
                    receiver.sendto(signature(sequence), client)
            else:
                os.close(go[1])
                os.read(go[0], 1)  # until the parent closes it

    who = []
    for number in range(2):
        child = fork(one, number)
        who.append(Identity(f"chosen-{number}", child, child))
        os.read(ready[0], 1)
    pause(*who)
    wait_for(who[1].tgid)
    os.close(go[1])
    wait_for(who[0].tgid)
    return who


def at_device(args: argparse.Namespace) -> list[Identity]:
    """A connection through one interface, from a port that other processes use on other interfaces."""
    who = become(args.device)
    with socket.socket() as connection:
        connection.settimeout(GUARD_S)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, args.device.encode())
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        connection.bind(("", args.port))
        connection.connect((args.to, args.tcp_port))
        pause(who)
        send(args, connection)
        pause(who)
        finish(connection)
    return [who]


def main() -> None:
    """Act as the arguments say, and say who did."""
    ways = {way.__name__: way for way in (spawned, lent, entered, one_table, chosen, at_device)}
    parser = argparse.ArgumentParser()
    parser.add_argument("way", choices=ways)
    parser.add_argument("--to", default="")
    parser.add_argument("--port", type=int, default=9)
    parser.add_argument("--tcp-port", type=int, default=0)
    parser.add_argument("--count", type=int, default=1)
    parser.add_argument("--device", default="")
    parser.add_argument("--file", default="")
    parser.add_argument("--netns", default="")
    args = parser.parse_args()
    report(*ways[args.way](args))


if __name__ == "__main__":
    main()
