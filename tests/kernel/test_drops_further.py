"""Drops of TCP and IPv6, of joined packets, of more processes than the list has space for, in a network namespace that
loses its name, and of many reasons in one second: their counts are exact.
"""

from __future__ import annotations

import os
import re
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from tests.kernel import namespace as namespaces
from tests.kernel.capture import ROOT, Capture
from tests.kernel.namespace import Namespace, Wire
from tests.kernel.test_drops import Net, Row, dropped_in, drops, ipv4, nft, reason, tc, udp
from tests.support.blocks import comment_fields, packets
from tests.support.deadline import DEADLINE_S, until

NOWHERE, BEYOND6 = "fd00:77::1", "fd00:99::"
UDP_SEGMENT = 103  # include/uapi/linux/udp.h
SEGMENTS = 10
LISTED, MORE = 4096, 1000
MARK = 9
_RECEIVER = """
import socket, sys
listener = socket.create_server((sys.argv[1], 0))
datagrams = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
datagrams.bind((sys.argv[2], 0))
print(listener.getsockname()[1], datagrams.getsockname()[1], flush=True)
connection, _ = listener.accept()
connection.recv(9)
datagrams.recv(9)
print("received", flush=True)
while connection.recv(99):
    pass
"""
_MANY = """
import ctypes, socket, sys
libc, number = ctypes.CDLL(None), int(sys.argv[3])
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for at in range(number):
    libc.prctl(15, b"many%d" % at, 0, 0, 0)  # PR_SET_NAME: a process with another name
    try:
        sock.sendto(bytes(8), (sys.argv[1], int(sys.argv[2])))
    except PermissionError:
        pass
"""


@pytest.fixture
def wire() -> Iterator[Wire]:
    """A wire for one test, which changes it."""
    with namespaces.wire() as made:
        yield made


def capture(wire: Wire, file: Path, mode: str) -> Capture:
    """Capture in both namespaces."""
    names = f"{wire.near.namespace.name},{wire.far.namespace.name}"
    return Capture(wire.near.namespace, "-i", "any", "-w", str(file), "--drops", mode, namespaces=names)


def counted(namespace: Namespace, rule: str, hook: str, family: str = "ip") -> str:
    """Drop what matches a rule of the firewall, which counts; returns the name of its table."""
    table = f"t{abs(hash((rule, hook, family))) % 10**9}"
    rules = f"add table {family} {table}; add chain {family} {table} c {{ type filter hook {hook} priority 0; }}; "
    rules += f"add rule {family} {table} c {rule} counter drop"
    namespace.do(subprocess.run, ["nft", rules], check=True, timeout=DEADLINE_S)
    return f"{family} {table}"


def matched(namespace: Namespace, table: str) -> int:
    """How many packets the rule of a table has dropped, by its own counter."""
    shown = namespace.do(subprocess.check_output, ["nft", f"list table {table}"], text=True, timeout=DEADLINE_S)
    found = re.search(r"counter packets (\d+)", str(shown))
    assert found
    return int(found[1])


def send(address: str, port: int, count: int, *, hops: int = 64) -> None:
    """Send datagrams over IPv6, also if the kernel refuses them."""
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, hops)
        for _ in range(count):
            with suppress(OSError):
                sock.sendto(bytes(8), (address, port))


def connect(address: str, port: int, count: int) -> None:
    """Try to connect, and give up at once."""
    for _ in range(count):
        with socket.socket() as sock:
            sock.settimeout(0)
            with suppress(OSError):
                sock.connect((address, port))


def refused(address: str, count: int) -> None:
    """Connect to a port that is closed."""
    for _ in range(count):
        with socket.socket() as sock, pytest.raises(ConnectionRefusedError):
            sock.connect((address, 9))


@pytest.fixture
def receiver(wire: Wire) -> Iterator[tuple[subprocess.Popen[str], int, int]]:
    """A process at the far end that receives, with its ports of TCP and of UDP over IPv6."""
    command = [sys.executable, "-c", _RECEIVER, wire.far.ipv4, wire.far.ipv6]
    process = wire.far.namespace.do(subprocess.Popen, command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        first, second = map(int, process.stdout.readline().split())
        yield process, first, second
    finally:
        process.kill()
        process.communicate()


def drop_tcp_and_ipv6(wire: Wire, receiver: tuple[subprocess.Popen[str], int, int]) -> tuple[int, int]:
    """Have segments of TCP and packets of IPv6 dropped; returns how many segments the firewall has dropped at near, and
    at far.
    """
    process, stream, datagrams = receiver
    near, far = wire.near, wire.far
    with near.namespace.do(socket.create_connection, (far.ipv4, stream)) as connection:
        connection.send(bytes(8))
        near.namespace.do(send, far.ipv6, datagrams, 1)
        assert process.stdout is not None
        process.stdout.readline()
        received = counted(far.namespace, f"tcp dport {stream}", "input")
        connection.send(bytes(8))
        until(lambda: matched(far.namespace, received) > 0, "a segment is dropped")
        # Closed with a reset, it sends nothing again.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    near.namespace.do(refused, far.ipv4, 5)
    sent = counted(near.namespace, "tcp dport 77", "output")
    near.namespace.do(connect, far.ipv4, 77, 7)
    near.namespace.do(send, far.ipv6, 9, 11)
    near.namespace.do(send, NOWHERE, 9, 13)
    near.namespace.do(send, f"{BEYOND6}2", 9, 17, hops=1)
    counted(near.namespace, "udp dport 77", "output", "ip6")
    near.namespace.do(send, far.ipv6, 77, 19)
    counted(far.namespace, f"udp dport {datagrams}", "input", "ip6")
    near.namespace.do(send, far.ipv6, datagrams, 23)
    return matched(near.namespace, sent), matched(far.namespace, received)


def same_again(wire: Wire, count: int) -> None:
    """Send a datagram that arrives, and then the same again, which a hook at the egress drops, and so on."""
    near, far = wire.near, wire.far
    # IPv6 has no identification
    program = f"4,32 0 0 4294963220,21 0 1 {MARK},6 0 0 2,6 0 0 4294967295"  # TC_ACT_SHOT if skb->mark is MARK
    tc("-n", near.namespace.name, "qdisc", "add", "dev", near.device, "clsact")
    words = ["protocol", "all", "bpf", "da", "bytecode", program]
    tc("-n", near.namespace.name, "filter", "add", "dev", near.device, "egress", *words)
    cpus = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cpus)})  # a processor uses the same memory again
    try:
        with (
            closing(near.namespace.do(socket.socket, socket.AF_INET6, socket.SOCK_DGRAM)) as sock,
            closing(far.namespace.do(socket.socket, socket.AF_INET6, socket.SOCK_DGRAM)) as to,
        ):
            to.bind((far.ipv6, 0))
            to.settimeout(DEADLINE_S)
            for mark in (0, MARK) * count:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
                sock.sendto(bytes(16), to.getsockname())
                if not mark:
                    to.recv(16)
    finally:
        os.sched_setaffinity(0, cpus)


@pytest.mark.vm
def test_drops_of_tcp_and_ipv6(wire: Wire, receiver: tuple[subprocess.Popen[str], int, int], tmp_path: Path) -> None:
    """Segments of TCP and packets of IPv6 that the kernel drops are counted exactly, and captured, each with the sender
    or receiver. A datagram that is dropped before it leaves has not the identifier of an earlier one with the same
    content.
    """
    near, far = wire.near, wire.far
    far.namespace.sysctl(ipv6__conf__all__forwarding="1")
    near.namespace.ip(f"route add {NOWHERE} via {far.ipv6}", f"route add {BEYOND6}/64 via {far.ipv6}")
    far.namespace.ip(f"route add {BEYOND6}/64 via {near.ipv6}")
    file, me = tmp_path / "drops.pcapng", os.getpid()
    with closing(capture(wire, file, "capture")) as capturing:
        sent, received = drop_tcp_and_ipv6(wire, receiver)
        same_again(wire, 29)
        ended = capturing.stop()
    expected: dict[Row, int] = {
        ("NETFILTER_DROP", "in", "far0", receiver[0].pid): received + 23,
        ("NETFILTER_DROP", "out", "near0", me): sent + 19,
        ("NO_SOCKET", "in", "far0", 0): 5 + 11,
        ("IP_INNOROUTES", "in", "far0", 0): 13,
        ("IP_INHDR", "in", "far0", 0): 17,
        ("TC_EGRESS", "out", "near0", me): 29,
    }
    found = {row: number for row, number in drops(ended).items() if row[0] != "NOT_SPECIFIED"}  # groups of multicast
    assert (sent, found) == (7, expected)
    every = [(comment_fields(one.comment), one) for one in dropped_in(file, ended)]
    written = [(said["drop"], int(said.get("tgid", 0))) for said, _ in every if said["drop"] != "NOT_SPECIFIED"]
    assert {*written} == {(name, tgid) for name, _, _, tgid in expected}
    missing = sum(expected.values()) - len(written)
    # On a busy machine, some find no space; they are counted.
    assert 0 <= missing <= ended.lost + ended.missed, ended.stderr
    arrived = {one.packet_id for one in packets(file.read_bytes()) if one.interface == "far0"}
    assert not arrived & {one.packet_id for said, one in every if said["drop"] == "TC_EGRESS"}


def send_joined(wire: Wire, unread: socket.socket) -> None:
    """Send datagrams to a socket that nobody reads, and some that the far interface joins."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for _ in range(29):
            sock.sendto(bytes(8), unread.getsockname())
        sock.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 100)
        for _ in range(3):
            sock.sendto(os.urandom(100 * SEGMENTS), (wire.far.ipv4, 78))


def test_joined_packets_and_more_processes_than_the_list_has_space_for(wire: Wire, tmp_path: Path) -> None:
    """Packets that the interface has joined to one are dropped as one. Datagrams in the buffer of a socket that is
    closed are not counted, as the page says. Beyond the space of the list, processes have one row for each reason and
    interface: so the totals are exact.
    """
    near, far = wire.near, wire.far
    far.namespace.do(subprocess.run, ["ethtool", "-K", "far0", "gro", "on", "rx-gro-list", "on"], check=True)
    near.namespace.do(
        subprocess.run, ["ethtool", "-K", "near0", "tx-udp-segmentation", "off", "gso", "off"], check=True
    )
    rule = counted(far.namespace, "udp dport 78", "prerouting")
    counted(near.namespace, "udp dport 77", "output")
    unread = far.namespace.do(socket.socket, socket.AF_INET, socket.SOCK_DGRAM)
    with closing(unread), closing(capture(wire, tmp_path / "many.pcapng", "count")) as counting:
        unread.bind((far.ipv4, 0))
        near.namespace.do(send_joined, wire, unread)
        unread.close()
        command = [sys.executable, "-c", _MANY, far.ipv4, "77", str(LISTED + MORE)]
        near.namespace.do(subprocess.run, command, check=True, timeout=DEADLINE_S)
        ended = counting.stop()
    joined = matched(far.namespace, rule)
    assert joined < 3 * SEGMENTS
    assert drops(ended)["NETFILTER_DROP", "in", "far0", 0] == joined
    assert f"the network stack dropped {joined + LISTED + MORE} packets; 0 more drops were no loss" in ended.stderr
    others = re.search(r"^  (\d+) NETFILTER_DROP out near0, other processes$", ended.stderr, re.MULTILINE)
    assert others
    assert MORE < int(others[1]) < LISTED
    assert "unlisted" not in ended.stderr


def test_counts_stay_when_a_namespace_loses_its_name(wire: Wire, tmp_path: Path) -> None:
    """What was dropped in a network namespace of the capture is in the totals, also once the namespace has not the name
    any more; and so is what is dropped there later.
    """
    near, file, name = wire.near, tmp_path / "gone.pcapng", f"{wire.near.namespace.name}-gone"
    nft(near.namespace, "output", 77)
    thread = near.namespace.do(threading.get_native_id)
    subprocess.run(["ip", "netns", "attach", name, str(thread)], check=True)

    def send_some(count: int) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            for _ in range(count):
                with suppress(OSError):
                    sock.sendto(bytes(8), (wire.far.ipv4, 77))

    try:
        with closing(
            Capture(near.namespace, "-i", "any", "-w", str(file), "--drops", "capture", namespaces=name)
        ) as one:
            near.namespace.do(send_some, 31)
            until(lambda: file.read_bytes().count(b"drop=NETFILTER_DROP") == 31, "all are in the file")
            subprocess.run(["ip", "netns", "del", name], check=True)
            near.namespace.do(send_some, 37)
            ended = one.stop()
    finally:
        subprocess.run(["ip", "netns", "del", name], check=False, stderr=subprocess.DEVNULL)
    assert drops(ended) == {("NETFILTER_DROP", "out", "near0", os.getpid()): 68}
    assert len(dropped_in(file, ended)) == 68


RATE, OVERALL, ROUNDS = 7, 28, 41  # drops_rate, four times as many of all reasons, and frames of each kind


def test_the_rate_of_all_reasons_together(wire: Wire, tmp_path: Path) -> None:
    """Of several reasons at the same time, four times `drops_rate` packets are written in a second, although no reason
    alone has more than its own rate; the others are limited, and each drop is counted.
    """
    near, far = wire.near, wire.far
    net, file = Net(wire, far.namespace), tmp_path / "rate.pcapng"
    far.namespace.sysctl(ipv4__ip_forward="1", ipv4__conf__far0__rp_filter="1", ipv4__conf__all__rp_filter="0")
    far.namespace.ip("route add 10.9.9.0/24 via 192.168.178.24")
    kinds = {
        "UDP_CSUM": ipv4(near.ipv4, far.ipv4, udp(9, 0x1234)),
        "IP_INHDR": ipv4(near.ipv4, "10.9.9.2", udp(9), ttl=1),
        "IP_CSUM": ipv4(near.ipv4, far.ipv4, udp(9), wrong=1),
        "IP_RPFILTER": ipv4("10.55.0.1", far.ipv4, udp(9)),
        reason("IP_LOCALNET"): ipv4("127.0.0.1", far.ipv4, udp(9)),
        "IP_NOPROTO": ipv4(near.ipv4, far.ipv4, bytes(8), protocol=253),
        "IP_INNOROUTES": ipv4(near.ipv4, "10.77.0.1", udp(9)),
        "NO_SOCKET": ipv4(near.ipv4, far.ipv4, udp(9)),
    }
    arguments = ("-i", far.device, "-w", str(file), "--drops", "capture")
    with closing(Capture(far.namespace, *arguments, drops_rate=str(RATE))) as capture:
        net.frames(kinds["NO_SOCKET"], 1)  # now the program knows the interface
        until(lambda: b"drop=NO_SOCKET" in file.read_bytes(), "the first packet is in the file")
        offset = time.time_ns() - time.monotonic_ns()  # a second of the program is one of the monotonic clock
        until(lambda: time.monotonic_ns() % 10**9 < 10**8, "a second begins: all rounds are in it")
        net.rounds([*kinds.values()], ROUNDS)
        ended = capture.stop()

    expected = {(name, "in", "far0", 0): ROUNDS + (name == "NO_SOCKET") for name in kinds}
    assert drops(ended) == expected
    written = dropped_in(file, ended)[1:]
    limited = ended.totals["dropped by the network and not written, more than drops_rate allows"]
    assert len(written) + limited == ROUNDS * len(kinds)
    in_seconds = Counter((one.time_ns - offset) // 10**9 for one in written)
    assert max(in_seconds.values()) in {OVERALL - 1, OVERALL}  # the first packet can have been in the same second


TYPES = Path("/sys/kernel/btf/vmlinux")
_WITH_TYPES = f'mount --bind "$0" {TYPES} && exec "$@"'


@pytest.mark.faults  # it compiles with types that no cache has
def test_a_kernel_without_reasons(wire: Wire, tmp_path: Path) -> None:
    """Where the types of the kernel have no reasons, as before Linux 5.17, all drops are unknown, and counted exactly,
    each with its process; doctor says so.
    """
    near, far = wire.near, wire.far
    name = b"\0skb_drop_reason\0"
    types = TYPES.read_bytes()
    assert types.count(name) == 1
    older, file = tmp_path / "btf", tmp_path / "older.pcapng"
    older.write_bytes(types.replace(name, b"\0" + b"x" * (len(name) - 2) + b"\0"))
    through = ("unshare", "--mount", "sh", "-c", _WITH_TYPES, str(older))
    said = subprocess.check_output([*through, sys.executable, "-m", "skbcapd", "doctor"], cwd=ROOT, text=True)
    assert "none: all drops are counted as unknown" in said
    nft(near.namespace, "output", 77)
    net, names = Net(wire, far.namespace), f"{near.namespace.name},{far.namespace.name}"
    arguments = ("-i", "any", "-w", str(file), "--drops", "capture")
    with closing(Capture(near.namespace, *arguments, through=through, namespaces=names)) as capture:
        net.udp(far.ipv4, 77, 29)
        net.frames(ipv4(near.ipv4, far.ipv4, udp(9)), 23)
        ended = capture.stop()
    assert drops(ended) == {("unknown", "in", "far0", 0): 23, ("unknown", "out", "near0", os.getpid()): 29}
    assert "the network stack dropped 52 packets; 0 more drops were no loss" in ended.stderr
    assert [comment_fields(one.comment)["drop"] for one in dropped_in(file, ended)] == ["unknown"] * 52
