"""A crowd: `python -m tests.kernel.send.crowd WAY --to ADDRESS --count N`.

Processes that wear out the machine, or each other's ids: `hog` (never sleeps), `flood` (never stops sending),
`same_pid` (one process after the other under one and the same id).
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import os
import signal
import socket
import struct
from collections.abc import Callable

from tests.kernel.send.identity import Identity, become, report, signature
from tests.kernel.send.process import run_and_exit, wait_for
from tests.kernel.send.tcp import GUARD_S, finish

CLONE3 = 435  # the same on x86-64 and arm64
CLONE_ARGS = struct.Struct("=11Q")  # struct clone_args of include/uapi/linux/sched.h
FLOOD_BYTES = 64


def hog(args: argparse.Namespace) -> None:
    """Use up a processor until killed."""
    os.sched_setaffinity(0, {args.cpu})
    report(become("hog"))
    while True:
        pass


def flood(args: argparse.Namespace) -> None:
    """Send datagrams from one processor until killed."""
    os.sched_setaffinity(0, {args.cpu})
    who = become("flood")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.connect((args.to, args.port))
        report(who)
        while True:
            sender.send(bytes(FLOOD_BYTES))


def same_pid(args: argparse.Namespace) -> None:
    """Each process sends a datagram and speaks TCP, and the next one has its id."""
    become("parent")
    pid, names = 0, []

    def one(name: str) -> None:
        become(name)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
            datagrams.sendto(signature(0), (args.to, args.port))
        with socket.create_connection((args.to, args.tcp_port), GUARD_S) as connection:
            connection.sendall(signature(0))
            finish(connection)

    for number in range(args.count):
        name = f"same-pid-{number}"
        pid = clone(pid, one, name)
        names.append(Identity(name, pid, pid))
        wait_for(pid)
    report(*names)


def clone(pid: int, run: Callable[[str], object], argument: str) -> int:
    """Run a function in a child with an id of our choice, since Linux 5.5; 0 for any.

    Returns:
        The child's id: another one if somebody has taken it meanwhile.

    Raises:
        OSError: as the kernel says.
    """
    wanted = ctypes.c_uint32(pid)
    chosen = (ctypes.addressof(wanted), 1) if pid else (0, 0)
    words = CLONE_ARGS.pack(0, 0, 0, 0, signal.SIGCHLD, 0, 0, 0, *chosen, 0)
    libc = ctypes.PyDLL(None, use_errno=True)  # keeps the interpreter's lock: the child has it, too
    child = int(libc.syscall(CLONE3, words, len(words)))
    if child == 0:
        run_and_exit(run, argument)
    if child < 0 and pid and ctypes.get_errno() == errno.EEXIST:
        return clone(0, run, argument)
    if child < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return child


def main() -> None:
    """Act as the arguments say."""
    ways: dict[str, Callable[[argparse.Namespace], None]] = {way.__name__: way for way in (hog, flood, same_pid)}
    parser = argparse.ArgumentParser()
    parser.add_argument("way", choices=ways)
    parser.add_argument("--to", default="")
    parser.add_argument("--port", type=int, default=9)
    parser.add_argument("--tcp-port", type=int, default=0)
    parser.add_argument("--cpu", type=int, default=0)
    parser.add_argument("--count", type=int, default=1)
    args = parser.parse_args()
    ways[args.way](args)


if __name__ == "__main__":
    main()
