"""Sends a file over TCP: `python -m tests.kernel.send.stream WAY --comm NAME --to ADDRESS --port N --file FILE`.

The ways are those by which pages get into a socket: `send` (copied by the kernel), `sendfile` and `splice` (pages
of the page cache), `zerocopy` (this process's pages). Both sides have closed when it ends: nothing of the
connection comes after.
"""

from __future__ import annotations

import argparse
import os
import socket
from collections.abc import Callable
from pathlib import Path

from tests.kernel.send.identity import become, report
from tests.kernel.send.zerocopy import MSG_ZEROCOPY, SO_ZEROCOPY, wait_for_completions

CHUNK = 64 << 10


def send(connection: socket.socket, path: Path) -> None:
    """Copy the bytes into the socket: the kernel puts them into pages of its own."""
    connection.sendall(path.read_bytes())


def sendfile(connection: socket.socket, path: Path) -> None:
    """Hand the file's pages to the socket."""
    with path.open("rb") as file:
        connection.sendfile(file)


def splice(connection: socket.socket, path: Path) -> None:
    """Hand the file's pages to the socket, through a pipe."""
    reading, writing = os.pipe()
    with path.open("rb") as file:
        while moved := os.splice(file.fileno(), writing, CHUNK):
            while moved:
                moved -= os.splice(reading, connection.fileno(), moved)


def zerocopy(connection: socket.socket, path: Path) -> None:
    """Hand this process's pages to the socket; each chunk waits for the one before, as locked memory is scarce."""
    connection.setsockopt(socket.SOL_SOCKET, SO_ZEROCOPY, 1)
    rest = memoryview(path.read_bytes())
    sends = 0
    while rest:
        rest = rest[connection.send(rest[:CHUNK], MSG_ZEROCOPY) :]
        wait_for_completions(connection, sends)
        sends += 1


def main() -> None:
    """Send as the arguments say."""
    ways: dict[str, Callable[[socket.socket, Path], None]] = {
        "send": send,
        "sendfile": sendfile,
        "splice": splice,
        "zerocopy": zerocopy,
    }
    parser = argparse.ArgumentParser()
    parser.add_argument("way", choices=ways)
    parser.add_argument("--comm", required=True)
    parser.add_argument("--to", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--file", type=Path, required=True)
    args = parser.parse_args()
    who = become(args.comm)
    with socket.create_connection((args.to, args.port)) as connection:
        ways[args.way](connection, args.file)
        connection.shutdown(socket.SHUT_WR)
        connection.recv(1)  # the other side's end
    report(who)


if __name__ == "__main__":
    main()
