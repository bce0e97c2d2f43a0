"""Packets that the kernel drops are counted exactly, by reason, interface, direction and process, and their frames
are those that were sent.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from itertools import count as numbers
from pathlib import Path

import pytest

from skbcapd.kernel.btf import Btf
from tests.kernel import namespace as namespaces
from tests.kernel.capture import ROOT, Capture, Ended
from tests.kernel.drop_receiver import RECEIVER
from tests.kernel.namespace import End, Namespace, Wire
from tests.kernel.test_reload import Daemon
from tests.support import judges
from tests.support.blocks import IF_NAME, INTERFACE, STATISTICS, Packet, blocks, comment_fields, options, packets
from tests.support.deadline import DEADLINE_S, until

_ROW = re.compile(r"  (\d+) (\w+) (in|out) (\S+?)(?:, (.*) \((\d+)\))?")
BEYOND = "10.9.9"  # the network behind the far end, which forwards
NOWHERE = "10.77.0.1"
OTHERS = 73
LARGE = 20_000  # bytes, in a list of buffers until it is sent in fragments
DROP_10 = (
    "add table ip t10; add chain ip t10 c { type filter hook input priority 0; }; add rule ip t10 c udp dport 10 drop"
)
SO_RCVBUFFORCE = 33  # include/uapi/asm-generic/socket.h
FRAMES = (41, 43, 47, 59, 61, 67, 71)
REASONS = {name for _, name in Btf.load().enumerators("skb_drop_reason")}

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
        self.numbers = numbers()  # each datagram of `udp` has its own

    def capture(self, file: Path, mode: str) -> Capture:
        """Count or capture drops in all three namespaces."""
        names = ",".join(one.name for one in (self.near.namespace, self.far.namespace, self.beyond))
        return Capture(self.near.namespace, "-i", "any", "-w", str(file), "--drops", mode, namespaces=names)

    def udp(self, address: str, port: int, count: int, size: int = 8) -> None:
        """Send datagrams from near, also if the kernel refuses some."""

        def send() -> None:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                for _ in range(count):
                    with suppress(OSError):
                        sock.sendto(next(self.numbers).to_bytes(size), (address, port))

        self.near.namespace.do(send)

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
        self.rounds([packet], count, mac)

    def rounds(self, packets: list[bytes], count: int, mac: str | None = None) -> None:
        """Send several such packets, one after the other, and so on."""
        to = bytes.fromhex((mac or self.far.mac).replace(":", ""))
        head = to + bytes.fromhex(self.near.mac.replace(":", "")) + b"\x08\0"

        def send() -> None:
            with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
                sock.bind((self.near.device, 0))
                for packet in packets * count:
                    sock.send(head + packet)

        self.near.namespace.do(send)


def reason(name: str) -> str:
    """The reason of this kernel: older ones have not all of them."""
    return name if f"SKB_DROP_REASON_{name}" in REASONS else "NOT_SPECIFIED"


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


def full_queue(near: End, send: Callable[[], None]) -> int:
    """Send through a queue that takes few packets; returns how many it has dropped, by its own counter."""
    device = ("dev", near.device, "root")
    tc("-n", near.namespace.name, "qdisc", "add", *device, "tbf", "rate", "8kbit", "burst", "1600", "limit", "2000")
    send()
    shown = tc("-n", near.namespace.name, "-s", "qdisc", "show", *device[:2])
    tc("-n", near.namespace.name, "qdisc", "del", *device)
    counted = re.search(r"dropped (\d+)", shown)
    assert counted
    return int(counted[1])


def tc_filter(namespace: Namespace, device: str, way: str, port: int, at: int = 36) -> None:
    """Drop datagrams to a port at the ingress or egress of an interface; `at` is the offset of the port in a frame."""
    program = f"4,40 0 0 {at},21 0 1 {port},6 0 0 2,6 0 0 4294967295"  # TC_ACT_SHOT if the halfword is the port
    tc("-n", namespace.name, "qdisc", "add", "dev", device, "clsact")
    tc("-n", namespace.name, "filter", "add", "dev", device, way, "protocol", "all", "bpf", "da", "bytecode", program)


class Tap:
    """All frames that leave an interface, as an AF_PACKET socket gets them."""

    def __init__(self, namespace: Namespace, device: str) -> None:
        self._socket = namespace.do(socket.socket, socket.AF_PACKET, socket.SOCK_RAW, 3 << 8)
        self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 16 << 20)
        self._socket.bind((device, 3))  # ETH_P_ALL
        self._socket.settimeout(0)

    def frames(self) -> Counter[bytes]:
        """Those until now."""
        found: Counter[bytes] = Counter()
        with suppress(BlockingIOError):
            while True:
                frame, (_, _, kind, *_) = self._socket.recvfrom(1 << 16)
                found[frame] += kind == socket.PACKET_OUTGOING
        return found

    def close(self) -> None:
        """Stop."""
        self._socket.close()


@pytest.fixture
def wire() -> Iterator[Wire]:
    """A wire for one test, which breaks it."""
    with namespaces.wire() as made:
        yield made


@pytest.fixture
def net(wire: Wire) -> Iterator[Net]:
    """The three namespaces."""
    with closing(Namespace()) as beyond:
        far = wire.far.namespace
        far.ip(f"link add out0 type veth peer name in0 netns {beyond.name}")
        # Otherwise the kernel sends reports about multicast groups there, and drops them.
        far.sysctl(ipv6__conf__out0__disable_ipv6="1")
        beyond.sysctl(ipv6__conf__all__disable_ipv6="1", ipv6__conf__default__disable_ipv6="1")
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
        subprocess.Popen, [sys.executable, "-c", RECEIVER, ""], stdout=subprocess.PIPE, text=True
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


def socket_drops(namespace: Namespace, port: int, kind: str = "udp") -> int:
    """The kernel's own counter of a socket: of UDP, or of another kind ("udp6", "raw")."""
    lines = str(namespace.do(Path("/proc/thread-self/net", kind).read_text)).splitlines()[1:]
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


def drop_by_rules(net: Net, port: int) -> None:
    """Have packets dropped by rules of netfilter and of TC, on both sides."""
    near, far = net.near, net.far
    nft(near.namespace, "output", 7001)
    net.udp(far.ipv4, 7001, 28)
    net.udp(far.ipv4, 7001, 1, LARGE)
    nft(far.namespace, "forward", 7002)
    net.udp(f"{BEYOND}.2", 7002, 31)
    nft(far.namespace, "input", port)
    net.frames(ipv4(near.ipv4, far.ipv4, udp(port)), 23)
    tc_filter(near.namespace, near.device, "egress", 7003)
    net.udp(far.ipv4, 7003, 19)
    tc_filter(far.namespace, far.device, "ingress", port)
    net.frames(ipv4(near.ipv4, far.ipv4, udp(port)), 17)


def provoke(net: Net, port: int, small: int) -> tuple[int, int]:
    """Have packets dropped for 18 causes; returns how many were for a full socket, and for a full queue."""
    far = net.far
    net.udp(far.ipv4, port, 2)
    net.udp(far.ipv4, small, 2)
    net.await_received()
    net.udp(far.ipv4, 9, 53)
    net.udp(far.ipv4, small, 101, 1000)
    send_wrong_packets(net, port)
    net.udp(NOWHERE, 9, 37)
    net.udp("192.168.178.77", 9, 3)  # nobody has this address
    drop_by_rules(net, port)
    full = socket_drops(far.namespace, small)
    limited = full_queue(net.near, lambda: net.udp(far.ipv4, 9, 20, 1000))
    until(lambda: not net.is_resolving("192.168.178.77"), "the neighbour has failed")
    far.namespace.ip("link set far0 down")
    net.udp(far.ipv4, 9, 89)
    return full, limited


def forwarded(frame: bytes) -> bytes:
    """A frame after ip_forward: its time to live is one less."""
    head = frame[14:22] + bytes([frame[22] - 1, frame[23], 0, 0]) + frame[26:34]
    return frame[:14] + head[:10] + struct.pack("!H", checksum(head)) + head[12:] + frame[34:]


def check_frames(file: Path, dropped: list[Packet], sent: Counter[bytes]) -> None:
    """Each dropped frame is one that was sent, byte for byte; where the packet was captured before, both have the same
    identifier.
    """
    known: dict[int, dict[str, bytes]] = {}
    for one in packets(file.read_bytes()):
        if one.packet_id is not None and "drop" not in comment_fields(one.comment):
            known.setdefault(one.packet_id, {})[one.interface] = one.data
    received: Counter[bytes] = Counter()
    numbered: Counter[bytes] = Counter()
    for one in dropped:
        name = comment_fields(one.comment)["drop"]
        if one.link_type == 101:  # it was dropped before it was at an interface
            assert name in {"NETFILTER_DROP", "NEIGH_FAILED"}
            assert (one.direction, one.packet_id) == ("out", None)
            assert struct.unpack("!H", one.data[2:4])[0] == len(one.data) == one.original_len
            assert not checksum(one.data[:20])
            numbered[one.data[28:]] += 1
        elif one.direction == "out":
            assert known[one.packet_id]["near0"] == one.data if one.packet_id else name == "TC_EGRESS"
            numbered[one.data[42:]] += 1
        else:
            before = known[one.packet_id or 0]
            original = before["far0"]
            assert before["near0"] == original
            is_forwarded = name == "NETFILTER_DROP" and original[30:34] == socket.inet_aton(f"{BEYOND}.2")
            assert one.data == (forwarded(original) if is_forwarded else original)
            received[original] += 1
    assert received <= sent
    assert {*numbered.values()} == {1}  # each datagram has a number of its own
    assert {len(one) for one in numbered} == {8, 1000, LARGE}
    assert all(int.from_bytes(one) < 1 << 16 for one in numbered)  # only the last bytes are not 0


@pytest.mark.vm
def test_each_drop_is_counted_with_its_reason_and_process(
    net: Net, receiver: tuple[int, int, int], tmp_path: Path
) -> None:
    """Drops for 18 causes are counted exactly, each with its interface and direction, and with the sender or
    the receiver, or with no process; frames for another host are no loss. If drops are captured, too, the file has
    exactly these packets, each as it was sent.
    """
    pid, port, small = receiver
    me = os.getpid()
    net.near.namespace.sysctl(ipv4__neigh__near0__mcast_solicit="1", ipv4__neigh__near0__retrans_time_ms="50")
    with (
        closing(net.capture(tmp_path / "count.pcapng", "count")) as counting,
        closing(net.capture(tmp_path / "drops.pcapng", "capture")) as capturing,
        closing(Tap(net.near.namespace, "near0")) as tap,
    ):
        full, limited = provoke(net, port, small)
        ended, counted = capturing.stop(), counting.stop()
        sent = tap.frames()

    assert (full >= 97, limited >= 17) == (True, True)
    found = drops(ended)
    assert all(drops(counted).get(row, 0) >= number for row, number in found.items())  # it runs longer
    everything = dict(found)
    # An interface whose other end is down drops packets itself; a moment later, its queue does.
    queue, device = (found.pop((name, "out", "near0", me), 0) for name in ("QDISC_DROP", "NOT_SPECIFIED"))
    left = queue + device - limited - 89  # what the limited queue still had when the other end went down
    assert (queue >= limited, left in {0, 1}) == (True, True)
    assert found == {
        ("NO_SOCKET", "in", "far0", 0): 53 + 20 - limited - left,
        ("SOCKET_RCVBUFF", "in", "far0", pid): full,
        ("IP_INHDR", "in", "far0", 0): FRAMES[0],  # time to live
        ("PKT_TOO_BIG", "in", "far0", 0): FRAMES[1],
        ("UDP_CSUM", "in", "far0", pid): FRAMES[2],
        ("IP_CSUM", "in", "far0", pid): FRAMES[3],
        ("IP_RPFILTER", "in", "far0", pid): FRAMES[4],
        (reason("IP_LOCALNET"), "in", "far0", pid): FRAMES[5],  # a martian
        ("IP_NOPROTO", "in", "far0", 0): FRAMES[6],
        ("OTHERHOST", "in", "far0", 0): OTHERS,
        ("IP_INNOROUTES", "in", "far0", 0): 37,
        ("NEIGH_FAILED", "out", "near0", me): 3,
        ("NETFILTER_DROP", "out", "near0", me): 29,
        ("NETFILTER_DROP", "in", "far0", 0): 31,  # forward
        ("NETFILTER_DROP", "in", "far0", pid): 23,
        ("TC_EGRESS", "out", "near0", me): 19,
        ("TC_INGRESS", "in", "far0", 0): 17,  # the filter could also redirect: addresses prove no receiver
    }
    lost = sum(everything.values()) - OTHERS
    assert f"the network stack dropped {lost} packets; {OTHERS} more drops were no loss" in ended.stderr
    assert (ended.lost, counted.lost) == (0, 0)
    assert not dropped_in(tmp_path / "count.pcapng", counted)
    dropped = dropped_in(tmp_path / "drops.pcapng", ended)
    expected: Counter[tuple[str, str, int]] = Counter()
    for (name, direction, _, tgid), number in everything.items():
        expected[name, direction, tgid] += number
    assert expected == Counter(
        (comment_fields(one.comment)["drop"], one.direction, one.label.tgid if one.label else 0) for one in dropped
    )
    check_frames(tmp_path / "drops.pcapng", dropped, sent)
    check_places(tmp_path / "drops.pcapng", net, dropped)


def dropped_in(file: Path, ended: Ended) -> list[Packet]:
    """The dropped packets in a complete file."""
    every = packets(file.read_bytes())
    assert ended.totals["captured"] == len(every)
    return [one for one in every if "drop" in comment_fields(one.comment)]


def check_places(file: Path, net: Net, dropped: list[Packet]) -> None:
    """Their interfaces are named after namespaces, and only theirs; the function that dropped them is a known one;
    tshark reads the same.
    """
    near, far = net.near.namespace.name, net.far.namespace.name
    raw = " without a link-layer header"
    assert {(one.interface, one.description) for one in dropped} == {
        (f"drops@{name}", f"network namespace {name}: dropped packets{more}")
        for name, more in ((near, ""), (near, raw), (far, ""))
    }
    fields = [comment_fields(one.comment) for one in dropped]
    assert not Counter(one["drop"] for one in fields if "at" not in one)
    at = {one["drop"]: one["at"] for one in fields}
    assert at["NO_SOCKET"] in {"__udp4_lib_rcv", "udp_rcv"}  # the second one on Linux 7.2, which has not the first
    assert at["IP_INNOROUTES"] == "ip_error"
    rows = judges.rows(file, "frame.comment", "frame.len", where='frame.comment contains "drop="')
    assert rows == [[one.comment, str(one.original_len)] for one in dropped]


def statistics_of(file: Path) -> dict[str, list[int]]:
    """By interface of dropped packets: received, accepted, dropped, delivered packets, in the statistics of a file."""
    names, found = [], {}
    for block in blocks(file.read_bytes()):
        if block.kind == INTERFACE:
            names.append(next(value.decode() for _, code, value in options(block.body[8:]) if code == IF_NAME))
        elif block.kind == STATISTICS:
            said = {code: int.from_bytes(value, "little") for _, code, value in options(block.body[12:])}
            name = names[int.from_bytes(block.body[:4], "little")]
            if name.startswith("drops@"):
                found[name] = [said[code] for code in (4, 6, 7, 8)]
    return found


def test_filter_rules_payload_and_rate_apply_to_drops(wire: Wire, tmp_path: Path) -> None:
    """Of the dropped packets, only those are written that packet filter and rules keep, without payload, and no more
    of a reason than the rate allows; the others are counted, each once, also in the statistics of the file.
    """
    near, far = wire.near, wire.far
    file, rate, flood = tmp_path / "some.pcapng", 7, 997
    settings = {"rules": "[{drop: NO_*, snaplen: 64}, {action: drop}]", "payload": "none", "drops_rate": str(rate)}
    settings["directions"] = "in"  # not the ICMP messages for these packets
    arguments = ("-i", far.device, "-w", str(file), "--drops", "capture")

    def send(port: int, count: int) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            for _ in range(count):
                with suppress(OSError):
                    sock.sendto(bytes(1000), (far.ipv4, port))

    with closing(Capture(far.namespace, *arguments, "udp dst port 9 or udp dst port 10", **settings)) as capture:
        near.namespace.do(send, 9, 1)  # now the program knows the interfaces
        until(lambda: b"drop=NO_SOCKET" in file.read_bytes(), "the first packet is in the file")
        begin = time.monotonic()
        near.namespace.do(send, 11, 23)  # the filter
        far.namespace.do(subprocess.run, ["nft", DROP_10], check=True, timeout=DEADLINE_S)
        near.namespace.do(send, 10, rate)  # a rule: another reason
        near.namespace.do(send, 9, flood)
        seconds = int(time.monotonic() - begin) + 2
        ended = capture.stop()
        far.namespace.do(subprocess.run, ["nft", "delete table ip t10"], check=True, timeout=DEADLINE_S)

    found = packets(file.read_bytes())
    fields = [comment_fields(one.comment) for one in found]
    assert {(one["drop"], one["via"]) for one in fields} == {("NO_SOCKET", "unknown")}
    assert {(len(one.data), one.original_len) for one in found} == {(42, 1042)}
    assert rate <= len(found) <= 1 + rate * seconds  # the first packet was before
    limited = 1 + flood - len(found)
    assert statistics_of(file) == {
        f"drops@{far.namespace.name}": [24 + rate + flood, 1 + rate + flood, limited, rate + len(found)]
    }
    totals = ended.totals
    assert totals["captured"] == len(found)
    assert totals["dropped by the network and not written, more than drops_rate allows"] == limited
    # Each was captured on far0, too, where a rule leaves it out; those to port 11 are filtered twice. Packets of other
    # tests can be filtered before their interfaces are known.
    assert totals["filtered"] > 2 * 23 + 2 * rate + flood
    assert "left out, because their process is not known" not in totals  # no rule is about a process
    assert ended.exit_code == 0


@pytest.mark.faults  # it compiles twice
def test_a_reload_changes_the_filter_of_drops(wire: Wire, tmp_path: Path) -> None:
    """After a reload, the new packet filter applies to dropped packets, too."""
    config, directory = tmp_path / "skbcapd.yaml", tmp_path / "captures"
    directory.mkdir()
    config.write_text("drops: capture\nfilter: udp dst port 9\n")
    with closing(Daemon(wire, config, directory)) as daemon:
        config.write_text("drops: capture\nfilter: udp dst port 10\n")
        daemon.process.send_signal(signal.SIGHUP)
        daemon.wait_for("settings reloaded", 1)
        nft(wire.near.namespace, "output", 10)
        nft(wire.near.namespace, "output", 9)
        net = Net(wire, wire.far.namespace)
        for port, count in ((9, 3), (10, 5), (9, 2)):
            net.udp(wire.far.ipv4, port, count)
        daemon.process.send_signal(signal.SIGTERM)
        daemon.process.communicate(timeout=DEADLINE_S)
    (file,) = (entry for entry in directory.glob("*.pcapng") if not entry.is_symlink())
    found = packets(file.read_bytes())
    assert [comment_fields(one.comment)["drop"] for one in found] == ["NETFILTER_DROP"] * 5
    assert {one.data[22:24] for one in found} == {struct.pack("!H", 10)}


_COMPILED = """
import hashlib, json, os, sys, zlib
from skbcapd.kernel import abi, compiler, drops, kept_btf, loader, program
btf, word = kept_btf.load(), sys.argv[1]
parts = drops.parts(btf, "count" if word == "old" else word)
definitions = abi.definitions(btf, abi.Geometry(4)) | {"CPUS": 1} | parts.definitions
if word == "old":  # a kernel before 5.17
    definitions = {name: value for name, value in definitions.items() if name not in {"DROP_REASON", "DROPRECEIVER"}}
hooks = program.choose_hooks("tracepoint", ("out", "in"), "queue")
hooks += [*program.choose_learning_hooks("tracepoint", "queue", btf), *loader._behind(hooks, loader._UNFILTERED)]
made = compiler.build(definitions, {hook.function for hook in [*hooks, *parts.hooks]}, "")
fixed = {table.name: zlib.crc32(table.name.encode()) for table in made.maps}
code = {name: hashlib.sha256(made.code(name, fixed)).hexdigest() for name in made.functions}
print(json.dumps(code), flush=True)
os._exit(0)  # as bcc needs it
"""


def test_the_programs_for_captured_packets_stay_the_same() -> None:
    """With `drops: count`, one program is added, and each of the others has the same instructions as without. For a
    kernel that tells no reason, it is another one.
    """
    without, counting, old = (
        json.loads(subprocess.check_output([sys.executable, "-c", _COMPILED, word], cwd=ROOT, timeout=DEADLINE_S))
        for word in ("none", "count", "old")
    )
    assert len(without) >= 15
    assert counting.pop("on_drop") != old.pop("on_drop")
    assert counting == old == without
