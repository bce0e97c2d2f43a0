"""Packets of IPv6 that the kernel drops are counted exactly, by reason, interface, direction and process, and their
frames are those that were sent.
"""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.kernel import namespace as namespaces
from tests.kernel.capture import Capture
from tests.kernel.drop_receiver import RECEIVER
from tests.kernel.namespace import Namespace, Wire
from tests.kernel.test_drops import Tap, checksum, dropped_in, drops, full_queue, socket_drops, tc_filter
from tests.support.blocks import Packet, comment_fields
from tests.support.deadline import DEADLINE_S, until

BEYOND, SMALL, NOWHERE = "fd00:99::2", "fd00:98::2", "fd00:77::1"  # forwarded, the second one with a small MTU
NOBODY = "fd00:b2::77"
PORT_AT = 56  # of the target, in a frame with headers of Ethernet, IPv6 and UDP
FRAMES = (41, 43, 47, 53, 59, 61, 67, 71)  # of each kind


@pytest.fixture
def wire() -> Iterator[Wire]:
    """A wire for one test, whose far end forwards."""
    with namespaces.wire() as made:
        near, far = made.near, made.far
        near.namespace.sysctl(ipv6__neigh__near0__mcast_solicit="1", ipv6__neigh__near0__retrans_time_ms="50")
        far.namespace.sysctl(ipv6__conf__all__forwarding="1")
        near.namespace.ip(*(f"route add {target} via {far.ipv6}" for target in (BEYOND, SMALL, NOWHERE)))
        far.namespace.ip(f"route add {BEYOND} via {near.ipv6}", f"route add {SMALL} via {near.ipv6} mtu lock 1280")
        yield made


@dataclass(frozen=True, slots=True)
class Receiver:
    """A process at the far end: an open port, and the port of a socket that is soon full."""

    process: subprocess.Popen[str]
    port: int
    small: int

    def await_received(self) -> None:
        """Return when it has used both sockets."""
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "received\n"


@pytest.fixture
def receiver(wire: Wire) -> Iterator[Receiver]:
    """The process."""
    command = [sys.executable, "-c", RECEIVER, wire.far.ipv6]
    process = wire.far.namespace.do(subprocess.Popen, command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield Receiver(process, *map(int, process.stdout.readline().split()))
    finally:
        process.kill()
        process.communicate()


def send(wire: Wire, address: str, port: int, count: int, size: int = 8) -> None:
    """Send datagrams from near, also if the kernel refuses some."""

    def each() -> None:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
            for _ in range(count):
                with suppress(OSError):
                    sock.sendto(bytes(size), (address, port))

    wire.near.namespace.do(each)


def ipv6(source: str, target: str, payload: bytes, *, hops: int = 64, protocol: int = 17) -> bytes:
    """A packet."""
    ends = socket.inet_pton(socket.AF_INET6, source) + socket.inet_pton(socket.AF_INET6, target)
    return struct.pack("!IHBB", 6 << 28, len(payload), protocol, hops) + ends + payload


def udp(source: str, target: str, port: int, *, wrong: int = 0, size: int = 8) -> bytes:
    """A datagram; `wrong` is added to its checksum."""
    ends = socket.inet_pton(socket.AF_INET6, source) + socket.inet_pton(socket.AF_INET6, target)
    head = struct.pack("!HHHH", 5353, port, 8 + size, 0)
    check = checksum(ends + struct.pack("!II", 8 + size, 17) + head + bytes(size))
    return head[:6] + struct.pack("!H", check ^ wrong) + bytes(size)


def frames(wire: Wire, packet: bytes, count: int, mac: str | None = None) -> None:
    """Send packets from near as frames, past its own rules."""
    ends = ((mac or wire.far.mac) + wire.near.mac).replace(":", "")

    def each() -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
            sock.bind((wire.near.device, 0))
            for _ in range(count):
                sock.send(bytes.fromhex(ends) + b"\x86\xdd" + packet)

    wire.near.namespace.do(each)


def nft(namespace: Namespace, hook: str, rule: str) -> None:
    """Drop what matches a rule at a hook."""
    rules = f"add table ip6 {hook}; add chain ip6 {hook} c {{ type filter hook {hook} priority 0; }}; "
    namespace.do(subprocess.run, ["nft", f"{rules} add rule ip6 {hook} c {rule} drop"], check=True, timeout=DEADLINE_S)


def send_wrong_packets(wire: Wire, port: int) -> None:
    """Send packets that the far end drops for what they are, FRAMES of each kind."""
    near, far = wire.near.ipv6, wire.far.ipv6
    kinds = (
        ipv6(near, BEYOND, udp(near, BEYOND, 9), hops=1),
        ipv6(near, SMALL, udp(near, SMALL, 9, size=1400)),
        ipv6(near, far, udp(near, far, port, wrong=1)),
        ipv6("::1", far, udp("::1", far, port)),  # a martian
        ipv6(near, far, bytes(8), protocol=253),
        ipv6(near, NOWHERE, udp(near, NOWHERE, 9)),
        ipv6(near, far, udp(near, far, 9)),
    )
    for packet, count in zip(kinds, FRAMES[:-1], strict=True):
        frames(wire, packet, count)
    frames(wire, ipv6(near, far, udp(near, far, port)), FRAMES[-1], "02:00:00:00:00:09")


def drop_by_rules(wire: Wire, port: int) -> None:
    """Have packets dropped by rules of netfilter and of TC, on both sides."""
    near, far = wire.near, wire.far
    nft(near.namespace, "output", "udp dport 7001")
    send(wire, far.ipv6, 7001, 29)
    nft(far.namespace, "forward", "udp dport 7002")
    send(wire, BEYOND, 7002, 31)
    nft(far.namespace, "input", f"udp dport {port}")
    frames(wire, ipv6(near.ipv6, far.ipv6, udp(near.ipv6, far.ipv6, port)), 23)
    nft(far.namespace, "prerouting", "fib saddr . iif oif 0")  # the reverse path filter of IPv6
    frames(wire, ipv6("fd00:55::1", far.ipv6, udp("fd00:55::1", far.ipv6, port)), 13)
    tc_filter(near.namespace, near.device, "egress", 7003, PORT_AT)
    send(wire, far.ipv6, 7003, 19)
    tc_filter(far.namespace, far.device, "ingress", port, PORT_AT)
    frames(wire, ipv6(near.ipv6, far.ipv6, udp(near.ipv6, far.ipv6, port)), 17)


def provoke(wire: Wire, receiver: Receiver) -> tuple[int, int]:
    """Have packets dropped for 16 causes; returns how many were for a full socket, and for a full queue."""
    far = wire.far
    for port in (receiver.port, receiver.small):
        send(wire, far.ipv6, port, 2)
    receiver.await_received()
    send(wire, far.ipv6, receiver.small, 101, 1000)
    full = socket_drops(far.namespace, receiver.small, "udp6")
    send_wrong_packets(wire, receiver.port)
    send(wire, NOBODY, 9, 3)
    drop_by_rules(wire, receiver.port)
    limited = full_queue(wire.near, lambda: send(wire, far.ipv6, 9, 20, 1000))
    until(lambda: not is_resolving(wire), "the neighbour has failed")
    far.namespace.ip("link set far0 down")
    send(wire, far.ipv6, 9, 89)
    return full, limited


def is_resolving(wire: Wire) -> bool:
    """Whether packets still wait for the address of a neighbour."""
    command = ["ip", "-n", wire.near.namespace.name, "neighbour", "show", NOBODY]
    return b"INCOMPLETE" in subprocess.check_output(command)


def check_frames(dropped: list[Packet], sent: Counter[bytes]) -> None:
    """Each dropped frame of the far end is one that was sent, byte for byte, but for the hop limit of one that was to
    be forwarded; those of the near end are packets of IPv6 as long as their header says.
    """
    received: Counter[bytes] = Counter()
    for one in dropped:
        head = 14 * (one.link_type == 1)
        assert struct.unpack("!H", one.data[head + 4 : head + 6])[0] == len(one.data) - head - 40
        if one.direction == "in":
            is_forwarded = one.data[38:54] == socket.inet_pton(socket.AF_INET6, BEYOND) and one.data[21] == 63
            received[one.data[:21] + b"\x40" + one.data[22:] if is_forwarded else one.data] += 1
    assert received <= sent


def test_each_drop_of_ipv6_is_counted_with_its_reason_and_process(
    wire: Wire, receiver: Receiver, tmp_path: Path
) -> None:
    """Drops for 16 causes are counted exactly, each with its interface and direction, and with the sender or the
    receiver, or with no process; the file has exactly these packets, each as it was sent.
    """
    pid, me = receiver.process.pid, os.getpid()
    names, file = f"{wire.near.namespace.name},{wire.far.namespace.name}", tmp_path / "drops.pcapng"
    arguments = ("-i", "any", "-w", str(file), "--drops", "capture")
    with (
        closing(Capture(wire.near.namespace, *arguments, namespaces=names)) as capturing,
        closing(Tap(wire.near.namespace, "near0")) as tap,
    ):
        full, limited = provoke(wire, receiver)
        ended = capturing.stop()
        sent = tap.frames()

    assert (full >= 97, limited >= 17, ended.lost) == (True, True, 0)
    found = drops(ended)
    everything = dict(found)
    found.pop(("NOT_SPECIFIED", "in", "far0", 0), None)  # groups of multicast
    # As for IPv4; and the neighbour that failed, for which the kernel gives no reason.
    queue, device = (found.pop((name, "out", "near0", me), 0) for name in ("QDISC_DROP", "NOT_SPECIFIED"))
    left = queue + device - limited - 89 - 3
    assert (queue >= limited, device >= 3, left in {0, 1}) == (True, True, True)
    assert found == {
        ("IP_INHDR", "in", "far0", 0): FRAMES[0],  # hop limit
        ("PKT_TOO_BIG", "in", "far0", 0): FRAMES[1],
        ("UDP_CSUM", "in", "far0", pid): FRAMES[2],
        ("IP_INHDR", "in", "far0", pid): FRAMES[3],  # a martian
        ("IP_NOPROTO", "in", "far0", 0): FRAMES[4],
        ("IP_INNOROUTES", "in", "far0", 0): FRAMES[5],
        ("NO_SOCKET", "in", "far0", 0): FRAMES[6] + 20 - limited - left,
        ("OTHERHOST", "in", "far0", 0): FRAMES[7],
        ("SOCKET_RCVBUFF", "in", "far0", pid): full,
        ("NETFILTER_DROP", "out", "near0", me): 29,
        ("NETFILTER_DROP", "in", "far0", 0): 31 + 13,  # forward, and reverse path
        ("NETFILTER_DROP", "in", "far0", pid): 23,
        ("TC_EGRESS", "out", "near0", me): 19,
        ("TC_INGRESS", "in", "far0", 0): 17,
    }
    dropped = dropped_in(file, ended)
    expected: Counter[tuple[str, str, int]] = Counter()
    for (name, direction, _, tgid), number in everything.items():
        expected[name, direction, tgid] += number
    assert expected == Counter(
        (comment_fields(one.comment)["drop"], one.direction, one.label.tgid if one.label else 0) for one in dropped
    )
    assert not Counter(one.comment for one in dropped if "at" not in comment_fields(one.comment))
    check_frames(dropped, sent)
