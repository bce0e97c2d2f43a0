"""Packets that the kernel drops are counted exactly, by reason, interface, direction and process."""

from __future__ import annotations

import json
import os
import re
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from tests.kernel.capture import ROOT, Capture, Ended
from tests.kernel.namespace import Namespace, Wire
from tests.support.deadline import DEADLINE_S, until

_ROW = re.compile(r"  (\d+) (\w+) (in|out) (\S+?)(?:, (.*) \((\d+)\))?")
BEYOND = "10.9.9"  # the network behind the far end, which forwards
NOWHERE = "10.77.0.1"
OTHERS = 73
FRAMES = (41, 43, 47, 59, 61, 67, 71)
_RECEIVER = """
import socket, sys, time
sockets = []
for kind, size in ((socket.SOCK_DGRAM, None), (socket.SOCK_DGRAM, 2048)):
    one = socket.socket(socket.AF_INET, kind)
    if size:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)
    one.bind(("0.0.0.0", 0))
    sockets.append(one)
print(*(one.getsockname()[1] for one in sockets), flush=True)
for one in sockets:
    one.recv(9)  # one datagram each, so that its user is on record
print("received", flush=True)
time.sleep(300)
"""

Row = tuple[str, str, str, int]
"""Reason, direction, interface, process id (0: none)."""


def drops(ended: Ended) -> dict[Row, int]:
    """The closing lines about drops."""
    found = map(_ROW.fullmatch, ended.stderr.splitlines())
    return {(row[2], row[3], row[4], int(row[6] or 0)): int(row[1]) for row in found if row}


class Net:
    """near -- far, which forwards -- beyond; all traffic is from this process."""

    def __init__(self, wire: Wire, beyond: Namespace) -> None:
        self.near, self.far, self.beyond = wire.near, wire.far, beyond
        self.await_received: Callable[[], object] = lambda: None

    def capture(self, file: Path) -> Capture:
        """Count drops in all three namespaces."""
        names = ",".join(one.name for one in (self.near.namespace, self.far.namespace, self.beyond))
        return Capture(self.near.namespace, "-i", "any", "-w", str(file), "--drops", "count", namespaces=names)

    def udp(self, address: str, port: int, count: int, size: int = 8) -> None:
        """Send datagrams from near, also if the kernel refuses some."""

        def send() -> None:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                for _ in range(count):
                    with suppress(OSError):
                        sock.sendto(bytes(size), (address, port))

        self.near.namespace.do(send)

    def limited(self, count: int) -> int:
        """Send datagrams through a queue that takes few; returns how many it has dropped, by its own counter."""
        name = self.near.namespace.name
        device = ("dev", self.near.device, "root")
        tc("-n", name, "qdisc", "add", *device, "tbf", "rate", "8kbit", "burst", "1600", "limit", "2000")
        self.udp(self.far.ipv4, 9, count, 1000)
        shown = tc("-n", name, "-s", "qdisc", "show", *device[:2])
        tc("-n", name, "qdisc", "del", *device)
        counted = re.search(r"dropped (\d+)", shown)
        assert counted
        return int(counted[1])

    def is_resolving(self, address: str) -> bool:
        """Whether packets still wait for the address of a neighbour."""
        shown = subprocess.run(
            ["ip", "-n", self.near.namespace.name, "neighbour", "show", address],
            capture_output=True,
            text=True,
            check=True,
        )
        return "INCOMPLETE" in shown.stdout

    def frames(self, packet: bytes, count: int, mac: str | None = None) -> None:
        """Send IPv4 packets from near as frames, past its own rules."""
        to = bytes.fromhex((mac or self.far.mac).replace(":", ""))
        frame = to + bytes.fromhex(self.near.mac.replace(":", "")) + b"\x08\0" + packet

        def send() -> None:
            with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
                sock.bind((self.near.device, 0))
                for _ in range(count):
                    sock.send(frame)

        self.near.namespace.do(send)


def tc(*words: str) -> str:
    """Run tc."""
    return str(subprocess.check_output(["tc", *words], text=True, timeout=DEADLINE_S))


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ipv4(source: str, target: str, payload: bytes, *, ttl: int = 64, protocol: int = 17, wrong: int = 0) -> bytes:
    """An IPv4 packet; `wrong` is added to its header checksum."""
    ends = socket.inet_aton(source) + socket.inet_aton(target)
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 7, 0x4000, ttl, protocol, 0) + ends
    return head[:10] + struct.pack("!H", checksum(head) ^ wrong) + ends + payload


def udp(port: int, check: int = 0, size: int = 8) -> bytes:
    """A datagram; checksum 0: none."""
    return struct.pack("!HHHH", 5353, port, 8 + size, check) + bytes(size)


def nft(namespace: Namespace, hook: str, port: int) -> None:
    """Drop datagrams to a port at a hook."""
    rules = f"add table ip t{port}; add chain ip t{port} c {{ type filter hook {hook} priority 0; }}; "
    rules += f"add rule ip t{port} c udp dport {port} drop"
    namespace.do(subprocess.run, ["nft", rules], check=True, timeout=DEADLINE_S)


@pytest.fixture
def net(wire: Wire) -> Iterator[Net]:
    """The three namespaces."""
    with closing(Namespace()) as beyond:
        far = wire.far.namespace
        far.ip(f"link add out0 type veth peer name in0 netns {beyond.name}")
        far.ip("link set out0 addrgenmode none up mtu 1300", f"address add {BEYOND}.1/24 dev out0")
        beyond.ip("link set lo up", "link set in0 addrgenmode none up", f"address add {BEYOND}.2/24 dev in0")
        far.sysctl(ipv4__ip_forward="1", ipv4__conf__far0__rp_filter="1", ipv4__conf__all__rp_filter="0")
        wire.near.namespace.ip(
            f"route add {BEYOND}.0/24 via {wire.far.ipv4}", f"route add {NOWHERE} via {wire.far.ipv4}"
        )
        yield Net(wire, beyond)


@pytest.fixture
def receiver(net: Net) -> Iterator[tuple[int, int, int]]:
    """A process at the far end: its id, an open port, and the port of a socket that is soon full."""
    process = net.far.namespace.do(
        subprocess.Popen, [sys.executable, "-c", _RECEIVER], stdout=subprocess.PIPE, text=True
    )
    output = process.stdout
    assert output is not None
    net.await_received = output.readline
    try:
        first, second = map(int, output.readline().split())
        yield process.pid, first, second
    finally:
        process.kill()
        process.communicate()


def socket_drops(namespace: Namespace, port: int) -> int:
    """The kernel's own counter of a UDP socket."""
    lines = str(namespace.do(Path("/proc/thread-self/net/udp").read_text)).splitlines()[1:]
    return sum(int(line.split()[-1]) for line in lines if int(line.split()[1].split(":")[1], 16) == port)


def send_wrong_packets(net: Net, port: int) -> None:
    """Send packets that the far end drops for what they are, FRAMES of each kind."""
    near, far = net.near.ipv4, net.far.ipv4
    kinds = (
        ipv4(near, f"{BEYOND}.2", udp(9), ttl=1),
        ipv4(near, f"{BEYOND}.2", udp(9, 0, 1400)),
        ipv4(near, far, udp(port, 0x1234)),
        ipv4(near, far, udp(port), wrong=1),
        ipv4("10.55.0.1", far, udp(port)),
        ipv4("127.0.0.1", far, udp(port)),
        ipv4(near, far, bytes(8), protocol=253),
    )
    for packet, count in zip(kinds, FRAMES, strict=True):
        net.frames(packet, count)
    net.frames(ipv4(near, far, udp(port)), OTHERS, "02:00:00:00:00:09")


def test_each_drop_is_counted_with_its_reason_and_process(
    net: Net, receiver: tuple[int, int, int], tmp_path: Path
) -> None:
    """Drops of 16 reasons are counted exactly, each with its interface and direction, and with the sender or
    the receiver, or with no process; frames for another host are no loss.
    """
    near, far = net.near, net.far
    pid, port, small = receiver
    me = os.getpid()
    near.namespace.sysctl(ipv4__neigh__near0__mcast_solicit="1", ipv4__neigh__near0__retrans_time_ms="50")
    with closing(net.capture(tmp_path / "drops.pcapng")) as capture:
        net.udp(far.ipv4, port, 1)
        net.udp(far.ipv4, small, 1)
        net.await_received()
        net.udp(far.ipv4, 9, 53)
        net.udp(far.ipv4, small, 101, 1000)
        send_wrong_packets(net, port)
        net.udp(NOWHERE, 9, 37)
        net.udp("192.168.178.77", 9, 3)  # nobody has this address
        nft(near.namespace, "output", 7001)
        net.udp(far.ipv4, 7001, 29)
        nft(far.namespace, "forward", 7002)
        net.udp(f"{BEYOND}.2", 7002, 31)
        nft(far.namespace, "input", port)
        net.frames(ipv4(near.ipv4, far.ipv4, udp(port)), 23)
        full = socket_drops(far.namespace, small)
        limited = net.limited(20)
        until(lambda: not net.is_resolving("192.168.178.77"), "the neighbour has failed")
        far.namespace.ip("link set far0 down")
        net.udp(far.ipv4, 9, 89)
        ended = capture.stop()

    assert (full >= 97, limited >= 17) == (True, True)
    found = drops(ended)
    # An interface whose other end is down drops packets itself; a moment later, its queue does.
    queue, device = (found.pop((reason, "out", "near0", me)) for reason in ("QDISC_DROP", "NOT_SPECIFIED"))
    assert limited <= queue == limited + 89 + 1 - device  # the 1 is what the limited queue still had
    assert found == {
        ("NO_SOCKET", "in", "far0", 0): 53 + 20 - limited - 1,
        ("SOCKET_RCVBUFF", "in", "far0", pid): full,
        ("IP_INHDR", "in", "far0", 0): FRAMES[0],  # time to live
        ("PKT_TOO_BIG", "in", "far0", 0): FRAMES[1],
        ("UDP_CSUM", "in", "far0", pid): FRAMES[2],
        ("IP_CSUM", "in", "far0", pid): FRAMES[3],
        ("IP_RPFILTER", "in", "far0", pid): FRAMES[4],
        ("IP_LOCALNET", "in", "far0", pid): FRAMES[5],  # a martian
        ("IP_NOPROTO", "in", "far0", 0): FRAMES[6],
        ("OTHERHOST", "in", "far0", 0): OTHERS,
        ("IP_INNOROUTES", "in", "far0", 0): 37,
        ("NEIGH_FAILED", "out", "near0", me): 3,
        ("NETFILTER_DROP", "out", "near0", me): 29,
        ("NETFILTER_DROP", "in", "far0", 0): 31,  # forward
        ("NETFILTER_DROP", "in", "far0", pid): 23,
    }
    assert (
        f"the network dropped {sum(found.values()) + queue + device - OTHERS} packets, and {OTHERS} without a loss"
        in ended.stderr
    )
    assert ended.lost == 0


_COMPILED = """
import hashlib, json, os, sys, zlib
from skbcapd.kernel import abi, compiler, drops, kept_btf, loader, program
btf, counts = kept_btf.load(), sys.argv[1] == "count"
definitions = abi.definitions(btf, abi.Geometry(4)) | {"CPUS": 1} | (drops.definitions(btf) if counts else {})
hooks = program.choose_hooks("tracepoint", ("out", "in"), "queue")
hooks += [*program.choose_learning_hooks("tracepoint", "queue", btf), *loader._behind(hooks, loader._UNFILTERED)]
made = compiler.build(definitions, {hook.function for hook in hooks} | ({"on_drop"} if counts else set()), "")
fixed = {table.name: zlib.crc32(table.name.encode()) for table in made.maps}
code = {name: hashlib.sha256(made.code(name, fixed)).hexdigest() for name in made.functions}
print(json.dumps(code), flush=True)
os._exit(0)  # as bcc needs it
"""


def test_the_programs_for_captured_packets_stay_the_same() -> None:
    """With `drops: count`, one program is added, and each of the others has the same instructions as without."""
    without, counting = (
        json.loads(subprocess.check_output([sys.executable, "-c", _COMPILED, word], cwd=ROOT, timeout=DEADLINE_S))
        for word in ("none", "count")
    )
    assert len(without) >= 15
    assert counting.pop("on_drop")
    assert counting == without
