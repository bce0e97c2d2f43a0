"""Drops that come from other parts of the kernel: filters of sockets and control groups, full sockets and rings, XDP,
connection tracking, fragments, senders that have ended, and interfaces that go down. What is no packet of a network is
not counted.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

import pytest

from tests.kernel import namespace as namespaces
from tests.kernel.capture import Capture
from tests.kernel.namespace import End, Namespace, Wire
from tests.kernel.test_drops import Net, Row, checksum, dropped_in, drops, ipv4, socket_drops, tc, udp
from tests.support import steering
from tests.support.blocks import comment_fields
from tests.support.deadline import DEADLINE_S, until

pytestmark = pytest.mark.faults  # takes long
UNUSED = 253  # a protocol for experiments
SO_ATTACH_FILTER = 26  # include/uapi/asm-generic/socket.h
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 1, 0x1000  # include/uapi/linux/if_tun.h
RING = 5  # packets that the tun device takes
PINGS = 41
NOBODY = "192.168.178.77"
INVALID = (
    "add table ip t; add chain ip t c { type filter hook input priority 0; }; "
    "add rule ip t c tcp dport 9 ct state invalid drop"
)
NOTHING = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0))  # a filter that passes nothing
ATTACH = struct.pack("HxxxxxxQ", 1, ctypes.addressof(NOTHING))
# Its socket is used once during the capture; then it is full at once, has a filter, or is in a control group.
_RECEIVER = f"""
import ctypes, os, socket, struct, sys
address, port, kind, protocol, how = sys.argv[1:]
one = socket.socket(socket.AF_INET, int(kind), int(protocol))
one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
if how.startswith("/"):
    open(how + "/cgroup.procs", "w").write(str(os.getpid()))
    one.close()
    one = socket.socket(socket.AF_INET, int(kind), int(protocol))
one.bind((address, int(port)))
print("open", flush=True)
one.recv(9)
if how == "filter":
    nothing = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0))
    one.setsockopt(socket.SOL_SOCKET, {SO_ATTACH_FILTER}, struct.pack("HxxxxxxQ", 1, ctypes.addressof(nothing)))
print("used", flush=True)
sys.stdin.read()
"""
_SENDER = """
import os, socket, sys
address, count, size, group = sys.argv[1:]
if group:
    open(group + "/cgroup.procs", "w").write(str(os.getpid()))
one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for _ in range(int(count)):
    try:
        one.sendto(bytes(int(size)), (address, 9))
    except PermissionError:
        pass
"""
# A child sends on the socket that it shares with its parent, and ends; then the parent does, also on one of its own.
_SHARED = """
import os, socket, sys
shared, own = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
child = os.fork()
shared.sendto(bytes(8), (sys.argv[1], 9)) if not child else os.waitpid(child, 0)
shared.sendto(bytes(8), (sys.argv[1], 9))
if child:
    own.sendto(bytes(8), (sys.argv[1], 9))
    open(sys.argv[2], "w").write(str(child))
"""
_PINGS = f"""
import socket, struct, sys
one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP)
one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
for _ in range({PINGS}):
    one.sendto(struct.pack("!BBHHH", 8, 0, 0, 1, 1) + bytes(1000), (sys.argv[1], 0))
"""


class Scene(Net):
    """Processes at both ends of a wire; all end with it."""

    def __init__(self, wire: Wire, group: Path, stack: ExitStack) -> None:
        super().__init__(wire, wire.far.namespace)
        self.group, self.note = group, group.parent.parent / "note"
        self.child = 0  # a process id
        self._stack = stack

    def receive(self, port: int, how: str, kind: int = socket.SOCK_DGRAM, protocol: int = 0) -> int:
        """Start a receiver at the far end, and let it receive once; returns its process id."""
        command = [sys.executable, "-c", _RECEIVER, self.far.ipv4, str(port), str(kind), str(protocol), how]
        process = self.far.namespace.do(
            subprocess.Popen, command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._stack.callback(process.communicate)
        self._stack.callback(process.kill)
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        self.send(port, 1, kind=kind, protocol=protocol)
        assert process.stdout.readline() == "used\n"
        return process.pid

    def send(self, port: int, count: int, size: int = 8, kind: int = socket.SOCK_DGRAM, protocol: int = 0) -> None:
        """Send to the far end, from this process."""

        def each() -> None:
            with socket.socket(socket.AF_INET, kind, protocol) as sock:
                for _ in range(count):
                    sock.sendto(bytes(size), (self.far.ipv4, port if kind == socket.SOCK_DGRAM else 0))

        self.near.namespace.do(each)

    def ended(self, code: str, *arguments: str) -> int:
        """Run a process at the near end to its end; returns its id."""
        command = [sys.executable, "-c", code, *arguments]
        process = self.near.namespace.do(subprocess.Popen, command)
        process.wait(DEADLINE_S)
        return process.pid


@pytest.fixture
def group(tmp_path: Path) -> Iterator[Path]:
    """A control group of version 2."""
    place = tmp_path / "groups"
    place.mkdir()
    subprocess.run(["mount", "-t", "cgroup2", "none", str(place)], check=True)
    made = place / f"skbcapd-{os.getpid()}"
    try:
        made.mkdir()
        yield made
        until(lambda: not (made / "cgroup.procs").read_text(), "the group is empty")
        made.rmdir()
    finally:
        subprocess.run(["umount", str(place)], check=True)


@pytest.fixture
def scene(group: Path) -> Iterator[Scene]:
    """A wire for one test."""
    with namespaces.wire() as wire, ExitStack() as stack:
        wire.near.namespace.sysctl(ipv4__neigh__near0__mcast_solicit="1", ipv4__neigh__near0__retrans_time_ms="50")
        for end in (wire.near, wire.far):
            end.namespace.sysctl(ipv4__ipfrag_time="1", ipv4__icmp_ratelimit="0")
        yield Scene(wire, group, stack)


def drop_at_tun(near: Namespace) -> None:
    """Have packets dropped by a tun device that takes few, and that nobody reads; and packets that come from there, for
    which it does not take the answers.
    """
    device = near.do(os.open, "/dev/net/tun", os.O_RDWR)
    try:
        fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH22x", b"tun9", IFF_TUN | IFF_NO_PI))
        near.sysctl(ipv6__conf__tun9__disable_ipv6="1")
        near.ip(f"link set tun9 up txqueuelen {RING}", "address add 10.66.0.1/24 dev tun9")
        with closing(near.do(socket.socket, socket.AF_INET, socket.SOCK_DGRAM)) as sock:
            for _ in range(19):
                sock.sendto(bytes(8), ("10.66.0.2", 9))
        for _ in range(7):
            near.do(os.write, device, ipv4("10.66.0.2", "10.66.0.1", udp(9)))
    finally:
        os.close(device)


@contextmanager
def dropped_by_xdp(far: End) -> Iterator[None]:
    """Drop all that the far end receives."""
    one = steering.dropped(far.namespace.do(socket.if_nametoindex, far.device))
    far.namespace.do(one.__enter__)
    try:
        yield
    finally:
        far.namespace.do(one.__exit__, None, None, None)


def fragments(near: str, far: str) -> list[bytes]:
    """Two fragments of a datagram that has more."""
    whole = ipv4(near, far, udp(9, 0, 800))
    made = []
    for at in (0, 24):  # in units of 8 bytes
        head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + 96, 7, 0x2000 | at, 64, 17, 0) + whole[12:20]
        made.append(head[:10] + struct.pack("!H", checksum(head)) + head[12:] + whole[20 + 8 * at :][:96])
    return made


def segment(near: str, far: str, port: int) -> bytes:
    """A segment of TCP that belongs to no connection."""
    head = struct.pack("!HHIIBBHHH", 5353, port, 1, 1, 0x50, 0x10, 1000, 0, 0)
    ends = socket.inet_aton(near) + socket.inet_aton(far) + struct.pack("!HH", 6, len(head))
    return ipv4(near, far, head[:16] + struct.pack("!H", checksum(ends + head)) + head[18:], protocol=6)


def drop_other_messages() -> None:
    """Have messages dropped that belong to no network: of UNIX sockets, and of netlink."""
    for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
        for has_filter in (False, True):
            one, other = socket.socketpair(socket.AF_UNIX, kind)
            with closing(one), closing(other), suppress(OSError):
                if has_filter:
                    other.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, ATTACH)
                for _ in range(7):
                    one.send(bytes(100))
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as links:
        links.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        links.bind((0, 1))
        for number in range(20):
            subprocess.run(["ip", "link", "set", "lo", "mtu", str(60000 + number)], check=True)


def drop_received(scene: Scene) -> dict[Row, int]:
    """Have packets dropped at the far end; returns the rows that are expected."""
    near, far = scene.near, scene.far
    with_filter = scene.receive(7001, "filter")
    scene.send(7001, 37)
    in_group = scene.receive(7002, str(scene.group))
    with steering.refused(scene.group, sent=False):
        scene.send(7002, 13)
    lite = scene.receive(7003, "full", protocol=socket.IPPROTO_UDPLITE)
    scene.send(7003, 31, 4000, protocol=socket.IPPROTO_UDPLITE)
    scene.receive(0, "full", socket.SOCK_RAW, UNUSED)
    scene.send(0, 29, 4000, socket.SOCK_RAW, UNUSED)
    scene.frames(segment(near.ipv4, far.ipv4, 9), 11)
    scene.rounds(fragments(near.ipv4, far.ipv4), 1)
    with dropped_by_xdp(far):
        scene.send(7001, 17)
    return {
        ("SOCKET_FILTER", "in", "far0", with_filter): 37,
        ("SOCKET_FILTER", "in", "far0", in_group): 13,
        ("SOCKET_RCVBUFF", "in", "far0", lite): socket_drops(far.namespace, 7003, "udplite"),
        ("IP_NOPROTO", "in", "far0", 0): socket_drops(far.namespace, UNUSED, "raw"),  # a full socket is none
        ("NETFILTER_DROP", "in", "far0", 0): 11,
        ("FRAG_REASM_TIMEOUT", "in", "far0", 0): 1,  # the datagram
        ("NOT_SPECIFIED", "in", "far0", 0): 17,
    }


def drop_sent(scene: Scene) -> dict[Row, int]:
    """Have packets dropped at the near end, by processes that have ended; returns the rows that are expected."""
    near, far = scene.near, scene.far
    with steering.refused(scene.group, sent=True):
        in_group = scene.ended(_SENDER, far.ipv4, "11", "8", str(scene.group))
    unresolved = scene.ended(_SENDER, NOBODY, "3", "8", "")
    shared = scene.ended(_SHARED, NOBODY, str(scene.note))
    scene.child = int(scene.note.read_text())
    until(lambda: not scene.is_resolving(NOBODY), "the neighbour has failed")
    drop_at_tun(near.namespace)
    device = ("dev", near.device, "root")
    tc("-n", near.namespace.name, "qdisc", "add", *device, "tbf", "rate", "80bit", "burst", "1600", "limit", "100000")
    queued = scene.ended(_SENDER, far.ipv4, "23", "1000", "")
    tc("-n", near.namespace.name, "qdisc", "del", *device)
    return {
        ("BPF_CGROUP_EGRESS", "out", "near0", in_group): 11,
        ("NEIGH_FAILED", "out", "near0", unresolved): 3,
        ("NEIGH_FAILED", "out", "near0", shared): 1,
        ("NEIGH_FAILED", "out", "near0", 0): 3,  # two are of the child, which has ended
        ("FULL_RING", "out", "tun9", 0): 19 - RING + 7,  # tun has taken the socket from them
        ("NOT_SPECIFIED", "out", "tun9", 0): RING,  # when it was closed
        ("NO_SOCKET", "in", "tun9", 0): 7,
        ("NOT_SPECIFIED", "out", "near0", queued): 22,  # when the queue was deleted
        ("NO_SOCKET", "in", "far0", 0): 1,  # the first one, which the queue has passed on
    }


def test_drops_of_other_parts_of_the_kernel(scene: Scene, tmp_path: Path) -> None:
    """They are counted exactly, each with the sender, also one that has ended, or the receiver, or no process; messages
    of UNIX sockets and of netlink are not among them.
    """
    near, far, file = scene.near.namespace, scene.far.namespace, tmp_path / "members.pcapng"
    far.do(subprocess.run, ["nft", INVALID], check=True, timeout=DEADLINE_S)
    far.sysctl(netfilter__nf_conntrack_tcp_loose="0")
    arguments = ("-i", "any", "-w", str(file), "--drops", "capture")
    with closing(Capture(near, *arguments, namespaces=f"{near.name},{far.name}")) as capture:
        expected = drop_received(scene)
        pings = scene.ended(_PINGS, scene.far.ipv4)
        expected |= drop_sent(scene)
        near.do(drop_other_messages)
        until(lambda: b"FRAG_REASM_TIMEOUT" in file.read_bytes(), "the fragments are dropped")
        ended = capture.stop()
    found = drops(ended)
    full = found.pop(("SOCKET_RCVBUFF", "in", "near0", pings), 0)
    assert full >= PINGS - 4
    assert found.pop(("QUEUE_PURGE", "in", "near0", 0), 0) == PINGS - full  # which the process has not read
    # What the child sent has no process; or the child, if it was dropped before the parent used the socket.
    child = found.pop(("NEIGH_FAILED", "out", "near0", scene.child), 0)
    found["NEIGH_FAILED", "out", "near0", 0] = found.get(("NEIGH_FAILED", "out", "near0", 0), 0) + child
    assert (child <= 2, found) == (True, expected)
    dropped = [comment_fields(one.comment) for one in dropped_in(file, ended)]
    missing = PINGS + sum(expected.values()) - len(dropped)
    assert 0 <= missing <= ended.lost, ended.stderr  # on a busy machine, some find no space; they are counted
    assert not [one for one in dropped if "at" not in one]
