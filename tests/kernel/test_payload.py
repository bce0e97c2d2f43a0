"""`payload: none`: no byte behind the headers reaches the file, and no header is missing."""

from __future__ import annotations

import mmap
import socket
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrHopByHop, PadN
from scapy.layers.l2 import Dot1Q
from scapy.packet import Packet, Raw

from skbcapd.frames import headers
from skbcapd.pcapng.link_type import ETHERNET
from tests.kernel.capture import Capture, read, read_so_far
from tests.kernel.cases import CASES
from tests.kernel.comparison import Marker, difference, run_sender
from tests.kernel.namespace import Namespace, Wire
from tests.kernel.reference import SOL_PACKET, Reference
from tests.kernel.send.identity import pattern
from tests.kernel.sink import DISCARD_PORT, Sink
from tests.kernel.stage import Player
from tests.support.blocks import comment_fields
from tests.support.deadline import until
from tests.support.headers import ETHER, FRAMES, V4, V6, header_end

TOKEN = b"GET /?token=4b1d-9c77 HTTP/1.1\r\n\r\n"
OTHER_TOKEN = b"GET /?token=not-of-nginx"
SECRET = b"secret" * 20
CONNECTIONS = 7
PORT = 8080
SYN, ACK = 0x02, 0x10
PACKET_TX_RING, TP_STATUS_SEND_REQUEST = 13, 1
FRAME_AT = 32  # behind struct tpacket_hdr
SENT = ("seed-udp", "udp-17", "udp-65507", "udp6-1400", "tcp-short", "tcp-sendfile", "arp", "ping")
PAGE = 4096
WINDOW = 508  # bytes of a frame in which headers are searched (bpf/payload.h)


def frames() -> dict[str, tuple[bytes, int]]:
    """Frames with all kinds of headers, right and wrong ones, each with the number of its bytes before the payload.

    That is known from how scapy has built them.
    """
    made = {name: (bytes(frame), len(bytes(frame)) - len(frame.lastlayer())) for name, frame in FRAMES.items()}
    for name, known, rest in (
        ("40 bytes of TCP options", ETHER / V4 / TCP(sport=7, dport=8, options=[("NOP", None)] * 40), SECRET),
        ("long extension headers", ETHER / V6 / _long(100) / TCP(sport=7, dport=8), SECRET),
        ("three tags", ETHER / Dot1Q(vlan=1) / Dot1Q(vlan=2) / Dot1Q(vlan=3) / V4 / TCP(sport=7, dport=8), SECRET),
        ("IPv4 in IPv4", ETHER / IP(src="10.0.0.1", dst="10.0.0.2", proto=4), bytes(V4 / TCP() / SECRET)),
        ("IPv6 in IPv4", ETHER / IP(src="10.0.0.1", dst="10.0.0.2", proto=41), bytes(V6 / TCP() / SECRET)),
        ("encrypted", ETHER / IPv6(src="fd00::1", dst="fd00::2", nh=50), SECRET),
    ):
        made[name] = bytes(known / Raw(rest)), len(bytes(known))
    made["more headers than are searched"] = (
        bytes(ETHER / V6 / _long(250) / TCP(sport=7, dport=8) / Raw(SECRET)),
        WINDOW,
    )
    plain = bytes(FRAMES["tcp"])
    for name, at, value, end in (
        ("TCP header longer than its packet", 46, 0xF0, 34),
        ("TCP header of 16 bytes", 46, 0x40, 34),
        ("IPv4 header of 16 bytes", 14, 0x44, 14),
        ("IPv4 header longer than its packet", 14, 0x4F, 14),
        ("no version 4", 14, 0x65, 14),
    ):
        made[name] = plain[:at] + bytes([value]) + plain[at + 1 :] + SECRET, end
    ethernet = bytes(ETHER)[:12]
    made["beginning of IPv4"] = ethernet + b"\x08\x00\x45\x00", 16
    made["no header"] = ethernet + b"\x08\x00", 14
    made["LLC"] = ethernet + len(SECRET).to_bytes(2, "big") + SECRET, 14
    return made


def _long(size: int) -> Packet:
    """Extension headers with a lot of padding."""
    padding = PadN(optdata=bytes(size))
    return IPv6ExtHdrHopByHop(options=[padding]) / IPv6ExtHdrDestOpt(options=[padding])


def send(namespace: Namespace, device: str, made: list[bytes]) -> None:
    """Send frames by an AF_PACKET socket: copied into the linear part of an sk_buff."""
    with namespace.do(socket.socket, socket.AF_PACKET, socket.SOCK_RAW, 0) as sender:
        sender.bind((device, 0))
        for frame in made:
            sender.send(frame)


def send_paged(namespace: Namespace, device: str, made: list[bytes]) -> None:
    """Send frames by a ring of memory: all but the Ethernet header stays in pages.

    Source: Documentation/networking/packet_mmap.rst; struct tpacket_hdr of include/uapi/linux/if_packet.h.
    """
    with namespace.do(socket.socket, socket.AF_PACKET, socket.SOCK_RAW, 0) as sender:
        sender.setsockopt(SOL_PACKET, PACKET_TX_RING, struct.pack("=4I", PAGE, len(made), PAGE, len(made)))
        sender.bind((device, 0))
        with mmap.mmap(sender.fileno(), PAGE * len(made), mmap.MAP_SHARED) as ring:
            for number, frame in enumerate(made):
                start = PAGE * number
                ring[start + FRAME_AT : start + FRAME_AT + len(frame)] = frame
                ring[start : start + 12] = struct.pack("=QI", TP_STATUS_SEND_REQUEST, len(frame))
            sender.send(b"")


def is_of_test(frame: bytes) -> bool:
    """Whether a frame is no report of the kernel to multicast routers, which it sends also while a capture begins."""
    return not frame.startswith(bytes.fromhex("333300000016"))


@pytest.mark.vm
def test_frames_end_behind_their_headers(wire: Wire, tmp_path: Path) -> None:
    """Each sent and received frame is kept to its last header, and no further; its original length is true.

    The Python implementation finds the same ends.
    """
    near, far, sent_file, known = wire.near, wire.far, tmp_path / "sent.bin", dict(frames().values())
    files = {direction: tmp_path / f"{direction}.pcapng" for direction in ("out", "in")}
    with ExitStack() as stack:
        stack.enter_context(closing(Sink(far.namespace)))
        marker = stack.enter_context(closing(Marker(near.namespace, near.device)))
        references = [stack.enter_context(closing(Reference(end.namespace, end.device))) for end in (near, far)]
        captures = [
            stack.enter_context(
                closing(
                    Capture(
                        end.namespace,
                        *("-i", end.device, "--payload", "none", "-w", str(files[direction])),
                        directions=direction,
                    )
                )
            )
            for end, direction in ((near, "out"), (far, "in"))
        ]
        send(near.namespace, near.device, [*known])  # the first ones come to Python
        first = marker.send()
        for file in files.values():
            until(lambda file=file: first[:14] in file.read_bytes(), "the labels are there")  # type: ignore[misc]
        send(near.namespace, near.device, [*known])
        send_paged(near.namespace, near.device, [*known])
        for case in CASES:
            if case.name in SENT:
                sent_file.write_bytes(pattern(case.size))
                senders, error = run_sender(near.namespace, case.command(wire, sent_file))
                assert senders, error
        last = marker.send()
        theirs = {
            direction: [
                frame.data
                for frame in reference.read_until(last)
                if frame.outgoing == (direction == "out") and is_of_test(frame.data) and frame.data not in marker.sent
            ]
            for direction, reference in zip(files, references, strict=True)
        }
        ended = [capture.stop() for capture in captures]

    assert all(map(is_of_test, known))
    assert sum(frame in known for frame in theirs["out"]) == 3 * len(known)
    for found, (direction, file) in zip(ended, files.items(), strict=True):
        assert (found.exit_code, found.lost) == (0, 0), found.stderr
        assert "paged frames" not in found.stderr
        packets = [packet for packet in read(file) if is_of_test(packet.data) and packet.data != last[:14]]
        ends = [(frame, known.get(frame) or header_end(frame)) for frame in theirs[direction]]
        parting = difference(sorted(frame[:end] for frame, end in ends), sorted(packet.data for packet in packets))
        assert not parting, f"{direction}: {parting}"
        assert sorted(len(frame) for frame, _ in ends) == sorted(packet.original_len for packet in packets)
        assert SECRET[:6] not in file.read_bytes()
        for frame, end in ends:
            assert min(WINDOW, headers.read(frame, ETHERNET).payload) == end
    assert max(map(len, theirs["out"])) > 9_000  # the network card segments; a slow machine fills less than 64 KiB


@contextmanager
def whole(wire: Wire) -> Iterator[None]:
    """A process with another name that sends datagrams, and continues."""
    script = """
import socket, sys
from pathlib import Path
Path("/proc/self/comm").write_text("whole")
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
    for _ in range(int(sys.argv[3])):
        sender.sendto(sys.argv[4].encode(), (sys.argv[1], int(sys.argv[2])))
print("sent", flush=True)
sys.stdin.read()
"""
    words = [wire.far.ipv4, str(DISCARD_PORT), str(CONNECTIONS), OTHER_TOKEN.decode()]
    command = [sys.executable, "-E", "-s", "-S", "-c", script, *words]
    with wire.near.namespace.do(subprocess.Popen, command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"sent\n"
        yield


def ask(wire: Wire) -> int:
    """A connection to the server, with a request that has the token; returns the port of the client."""
    with wire.far.namespace.do(socket.create_connection, (wire.near.ipv4, PORT)) as connection:
        connection.sendall(TOKEN)
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(1 << 16):
            pass
        port: int = connection.getsockname()[1]
    return port


def ask_until_known(wire: Wire, file: Path) -> set[int]:
    """Connections to the server, until a SYN-ACK was named: until then, /proc has not been searched for all processes
    that have the listener open. Returns the ports of the clients.
    """
    asked: set[int] = set()

    def is_known() -> bool:
        asked.add(ask(wire))
        return any(
            packet.data[47] & (SYN | ACK) == SYN | ACK and "via=group" in packet.comment
            for packet in read_so_far(file)
            if PORT in ports(packet.data)
        )

    until(is_known, "a SYN-ACK has the name of the group")
    return asked


RULES = "{process: nginx, payload: none}, {process: whole}"
CHOICES: dict[str, tuple[list[str], dict[str, str]]] = {
    "others are kept": ([], {"rules": f"[{RULES}]"}),
    "others are dropped": ([], {"rules": f"[{RULES}, {{action: drop}}]"}),
    "ad hoc": (["--process", "nginx", "--payload", "none"], {}),
}


@pytest.mark.parametrize(
    "choice", [pytest.param("others are dropped", marks=pytest.mark.vm), "others are kept", "ad hoc"]
)
def test_only_nginx_without_payload(wire: Wire, tmp_path: Path, choice: str) -> None:
    """A rule for a server whose master and workers share the listening socket has each handshake of its
    connections, and the payload of none of their packets is in the file; packets of another process are complete.

    Also not in packets that pass before a worker has accepted the connection: their process is not known.
    """
    near, file = wire.near, tmp_path / "nginx.pcapng"
    options, settings = CHOICES[choice]
    with (
        closing(Sink(wire.far.namespace)),
        closing(Player(near.namespace, "listeners", "pool", "--comm", "nginx", "--port", PORT)) as server,
        closing(Reference(near.namespace, near.device)) as reference,
        closing(Capture(near.namespace, "-i", near.device, "-w", str(file), *options, **settings)) as capture,
        closing(Marker(near.namespace, near.device)) as marker,
    ):
        server.says()
        early = ask_until_known(wire, file)
        asked = {ask(wire) for _ in range(CONNECTIONS)}
        with whole(wire):
            pass
        theirs = [frame.data for frame in reference.read_until(marker.send()) if PORT in ports(frame.data)]
        server.go()
        server.end()
        ended = capture.stop()

    assert (ended.exit_code, ended.lost) == (0, 0), ended.stderr
    assert sum(TOKEN in frame for frame in theirs) == CONNECTIONS + len(early)
    data, packets = file.read_bytes(), read(file)
    assert TOKEN[:20] not in data
    assert data.count(OTHER_TOKEN) == (0 if options else CONNECTIONS)

    ours = [packet for packet in packets if PORT in ports(packet.data)]
    named = [packet for packet in ours if comment_fields(packet.comment).get("comm") == "nginx"]
    kept = sorted(frame[: header_end(frame)] for frame in theirs)
    assert {packet.data for packet in named} <= set(kept)
    if choice == "others are kept":
        parting = difference(kept, sorted(packet.data for packet in ours))
        assert not parting, parting
    else:
        assert named == ours
    syns = [packet for packet in named if packet.data[47] & SYN]
    missing = Counter(frame for frame in kept if frame[47] & SYN) - Counter(packet.data for packet in syns)
    assert not [frame for frame in missing if asked & {*ports(frame)}]
    assert 2 * CONNECTIONS < len(syns) <= 2 * (CONNECTIONS + len(early))
    assert {comment_fields(packet.comment)["via"] for packet in syns} == {"group"}


def ports(frame: bytes) -> tuple[int, ...]:
    """The ports of a TCP segment over IPv4."""
    is_tcp = frame[12:14] == b"\x08\x00" and frame[23] == socket.IPPROTO_TCP
    return struct.unpack_from("!HH", frame, 34) if is_tcp else ()
