"""Lets every packet pass that waits in a queue of the firewall: `python -m tests.kernel.send.verdicts WAY --queue N`.

The ways: `plain` (a send for each verdict), `uring` (by io_uring). Says that it is ready, and goes on until it is told
to stop. What it lets pass leaves inside its own system calls, and is never its own.

Source: include/uapi/linux/netfilter/nfnetlink_queue.h, nfnetlink.h, netlink.h.
"""

from __future__ import annotations

import argparse
import select
import socket
import struct
import sys
from collections.abc import Callable, Iterator

from tests.kernel.send.identity import become, report
from tests.kernel.send.links import Ring

NETLINK_NETFILTER = 12
PACKET, VERDICT, CONFIG = (3 << 8 | number for number in range(3))
NLM_F_REQUEST, NLM_F_ACK = 1, 4
CFG_CMD, CFG_PARAMS, CFG_QUEUE_MAXLEN = 1, 2, 3
BIND, COPY_META = 1, 1
PACKET_HEADER, VERDICT_HEADER = 1, 2
ACCEPT = 1
QUEUE_MAX = 65_536
HEADER = struct.Struct("=IHHII")
SO_RCVBUFFORCE = 33


def attribute(kind: int, value: bytes) -> bytes:
    """A netlink attribute."""
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def message(kind: int, queue: int, *attributes: bytes, flags: int = 0) -> bytes:
    """A message about a queue."""
    body = struct.pack("!BBH", socket.AF_UNSPEC, 0, queue) + b"".join(attributes)
    return HEADER.pack(HEADER.size + len(body), kind, NLM_F_REQUEST | flags, 0, 0) + body


def waiting(data: bytes) -> Iterator[int]:
    """The numbers of the packets that one read tells of."""
    at = 0
    while at < len(data):
        length, kind, _, _, _ = HEADER.unpack_from(data, at)
        if kind == PACKET:
            inner = at + HEADER.size + 4
            while inner < at + length:
                size, attribute_kind = struct.unpack_from("=HH", data, inner)
                if attribute_kind == PACKET_HEADER:
                    yield struct.unpack_from("!I", data, inner + 4)[0]
                    break
                inner += size + -size % 4
        at += length + -length % 4


def opened(queue: int) -> socket.socket:
    """The queue's socket."""
    made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)
    made.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 16 << 20)
    made.bind((0, 0))
    for command in (
        attribute(CFG_CMD, struct.pack("!BBH", BIND, 0, 0)),
        attribute(CFG_PARAMS, struct.pack("!IB", 0, COPY_META)),
        attribute(CFG_QUEUE_MAXLEN, struct.pack("!I", QUEUE_MAX)),
    ):
        made.send(message(CONFIG, queue, command, flags=NLM_F_ACK))
        (error,) = struct.unpack_from("=i", made.recv(1 << 16), HEADER.size)
        if error:
            raise OSError(-error, "nfnetlink_queue")
    return made


def run(queue: int, send: Callable[[socket.socket, bytes], object]) -> None:
    """Let packets pass until something comes in by stdin."""
    with opened(queue) as verdicts:
        report(become("verdictd"))
        while True:
            ready, _, _ = select.select([verdicts, sys.stdin], [], [])
            if sys.stdin in ready:
                return
            for number in waiting(verdicts.recv(1 << 17)):
                send(verdicts, message(VERDICT, queue, attribute(VERDICT_HEADER, struct.pack("!II", ACCEPT, number))))


def main() -> None:
    """Act as the arguments say."""
    parser = argparse.ArgumentParser()
    parser.add_argument("way", choices=["plain", "uring"])
    parser.add_argument("--queue", type=int, required=True)
    args = parser.parse_args()
    if args.way == "plain":
        run(args.queue, socket.socket.send)
    else:
        ring = Ring(0)
        run(args.queue, lambda verdicts, data: ring.send(verdicts, data, 0))


if __name__ == "__main__":
    main()
