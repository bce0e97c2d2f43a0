"""Sends frames and datagrams: `python -m tests.kernel.send.datagrams WAY --comm NAME --count N ...`.

The ways: `udp` (v4, v6, by --threads named threads, with --segment as UDP GSO, with --zerocopy), `frame` (an
AF_PACKET socket: exactly the bytes given), `icmp` (raw socket), `ping` (datagram socket of ICMP). Ends when all is
sent, with --answered when each has its answer, too; and says who sent. With --held, it waits for the test when the
first one is answered.
"""

from __future__ import annotations

import argparse
import socket
import struct
import threading
from collections.abc import Callable

from tests.kernel.send.identity import Identity, become, pause, payload, report
from tests.kernel.send.zerocopy import MSG_ZEROCOPY, SO_ZEROCOPY, wait_for_completions

SOL_UDP = 17
UDP_SEGMENT = 103  # include/uapi/linux/udp.h
ECHO_REQUEST, ECHO_REQUEST_6 = 8, 128
ECHO_REPLY = 0
IPV4_HEADER_BYTES = 20
GUARD_S = 600  # a guard only: the test that started us gives up long before

Send = Callable[[Identity, int], None]


def udp(args: argparse.Namespace) -> tuple[socket.socket, Send]:
    """Datagrams of --size bytes, or the --hex ones, from one socket that all threads share."""
    sender = socket.socket(socket.AF_INET6 if ":" in args.to else socket.AF_INET, socket.SOCK_DGRAM)
    sender.bind((args.source, args.source_port))
    sender.connect((args.to, args.port))
    if args.segment:
        sender.setsockopt(SOL_UDP, UDP_SEGMENT, args.segment)
    if args.zerocopy:
        sender.setsockopt(socket.SOL_SOCKET, SO_ZEROCOPY, 1)

    def send(who: Identity, sequence: int) -> None:
        data = bytes.fromhex(args.hex) or payload(args.size, who.tgid, who.tid, sequence)
        sender.send(data, MSG_ZEROCOPY if args.zerocopy else 0)
        if args.zerocopy:
            wait_for_completions(sender, sequence)

    return sender, send


def frame(args: argparse.Namespace) -> tuple[socket.socket, Send]:
    """The frame given by --hex, whole, past every protocol."""
    sender = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    sender.bind((args.device, 0))
    data = bytes.fromhex(args.hex)

    def send(_who: Identity, _sequence: int) -> None:
        sender.send(data)

    return sender, send


def icmp(args: argparse.Namespace) -> tuple[socket.socket, Send]:
    """Echo requests of --size bytes from a raw socket: the checksum is ours."""
    sender = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)

    def send(who: Identity, sequence: int) -> None:
        data = payload(args.size, who.tgid, who.tid, sequence)
        message = struct.pack("!BBHHH", ECHO_REQUEST, 0, 0, who.tid & 0xFFFF, sequence) + data
        checked = message[:2] + struct.pack("!H", internet_checksum(message)) + message[4:]
        sender.sendto(checked, (args.to, 0))

    return sender, send


def ping(args: argparse.Namespace) -> tuple[socket.socket, Send]:
    """Echo requests of --size bytes from a ping socket: the kernel fills in identifier and checksum."""
    family, kind = (socket.AF_INET6, ECHO_REQUEST_6) if ":" in args.to else (socket.AF_INET, ECHO_REQUEST)
    protocol = socket.IPPROTO_ICMPV6 if family == socket.AF_INET6 else socket.IPPROTO_ICMP
    sender = socket.socket(family, socket.SOCK_DGRAM, protocol)

    def send(who: Identity, sequence: int) -> None:
        data = payload(args.size, who.tgid, who.tid, sequence)
        sender.sendto(struct.pack("!BBHHH", kind, 0, 0, 0, sequence) + data, (args.to, 0))

    return sender, send


def internet_checksum(message: bytes) -> int:
    """Give the checksum of RFC 1071 over a message whose checksum field is zero."""
    total: int = sum(word for (word,) in struct.iter_unpack("!H", message + bytes(len(message) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


def wait_for_answers(sender: socket.socket, count: int) -> None:
    """Take so many answers; a raw ICMP socket gets other messages, too."""
    sender.settimeout(GUARD_S)
    while count:
        data = sender.recv(1 << 16)
        count -= sender.type != socket.SOCK_RAW or data[IPV4_HEADER_BYTES] == ECHO_REPLY


def held(sender: socket.socket, send: Send) -> Send:
    """A way to send that takes the first answer, and waits for the test, before the second one."""

    def sends(who: Identity, sequence: int) -> None:
        if sequence == 1:
            wait_for_answers(sender, 1)
            pause(who)
        send(who, sequence)

    return sends


def run(send: Send, comm: str, count: int, threads: int) -> list[Identity]:
    """Send `count` times: from this thread, or from each of `threads` threads named NAME-0, NAME-1, ..."""
    senders: list[Identity] = []

    def work(name: str) -> None:
        who = become(name)
        for sequence in range(count):
            send(who, sequence)
        senders.append(who)

    if not threads:
        work(comm)
        return senders
    become("bystander")
    workers = [threading.Thread(target=work, args=(f"{comm}-{number}",)) for number in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return senders


def main() -> None:
    """Send as the arguments say."""
    parser = argparse.ArgumentParser()
    parser.add_argument("way", choices=["udp", "frame", "icmp", "ping"])
    parser.add_argument("--comm", required=True)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--size", type=int, default=0)
    parser.add_argument("--hex", default="")
    parser.add_argument("--device", default="")
    parser.add_argument("--source", default="")
    parser.add_argument("--source-port", type=int, default=0)
    parser.add_argument("--to", default="")
    parser.add_argument("--port", type=int, default=9)
    parser.add_argument("--segment", type=int, default=0)
    parser.add_argument("--zerocopy", action="store_true")
    parser.add_argument("--answered", action="store_true")
    parser.add_argument("--held", action="store_true")
    args = parser.parse_args()
    ways: dict[str, Callable[[argparse.Namespace], tuple[socket.socket, Send]]] = {
        "udp": udp,
        "frame": frame,
        "icmp": icmp,
        "ping": ping,
    }
    sender, send = ways[args.way](args)
    with sender:
        senders = run(held(sender, send) if args.held else send, args.comm, args.count, args.threads)
        if args.answered:
            wait_for_answers(sender, args.count - args.held)
    report(*senders)


if __name__ == "__main__":
    main()
