"""Packet filters match the same packets as libpcap."""

from __future__ import annotations

import fcntl
import itertools
import socket
import struct
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import pytest

from skbcapd.filter import packet_filter
from tests.kernel import expressions
from tests.kernel.capture import Capture, read
from tests.kernel.cases import CASES
from tests.kernel.comparison import Marker, run_sender
from tests.kernel.expressions import ETHERNET, RAW
from tests.kernel.libpcap import Judge
from tests.kernel.namespace import Wire
from tests.kernel.reference import Reference
from tests.kernel.send.identity import pattern
from tests.kernel.sink import DISCARD_PORT, Sink
from tests.kernel.verdicts import verdicts
from tests.support import faults

BATCH = 37  # filters in one program: more compile faster, but one failure shows less


def usable(texts: Iterator[str] | tuple[str, ...]) -> Iterator[str]:
    """Those that libpcap accepts for at least one link type, and that are not too long."""
    return (
        text
        for text in texts
        if len(text) <= packet_filter.EXPRESSION_MAX and any(Judge(text, link).compiles for link in (ETHERNET, RAW))
    )


CHOSEN = {
    "written": list(usable(expressions.WRITTEN)),
    "random": list(itertools.islice(usable(expressions.drawn(59)), expressions.RANDOM)),
}
FRAMES = expressions.frames()
BATCHES = [
    pytest.param(texts[at : at + BATCH], id=f"{kind}-{at}")
    for kind, texts in CHOSEN.items()
    for at in range(0, len(texts), BATCH)
]


@pytest.fixture(scope="module")
def tally(request: pytest.FixtureRequest) -> Iterator[Counter[str]]:
    """The tried expressions, printed at the end."""
    counts: Counter[str] = Counter()
    yield counts
    reporter = request.config.pluginmanager.get_plugin("terminalreporter")
    assert reporter
    reporter.section("packet filters: pcap_offline_filter and our C text in the kernel")
    for what, count in counts.items():
        reporter.write_line(f"{what:<12}{count:>9,}")


@pytest.mark.many
@pytest.mark.parametrize("texts", BATCHES)
def test_every_verdict_is_libpcaps(texts: list[str], tally: Counter[str]) -> None:
    """Compiled and run in the kernel, an expression matches the same frames as pcap_offline_filter."""
    taken = refused = 0
    different = []
    for text, ours in zip(texts, verdicts(texts, FRAMES), strict=True):
        judges = {link: Judge(text, link) for link in (ETHERNET, RAW)}
        theirs = [judges[frame.link_type].takes(frame.data, frame.wire_len) for frame in FRAMES]
        different += [(text, frame) for frame, our, their in zip(FRAMES, ours, theirs, strict=True) if our != their]
        taken += sum(ours)
        refused += len(ours) - sum(ours)
    tally.update(
        expressions=len(texts), verdicts=taken + refused, taken=taken, refused=refused, different=len(different)
    )

    assert not different
    assert taken > len(texts)
    assert refused > len(texts)


def test_the_conformance_is_broad() -> None:
    """At least 300 expressions are tried, each on frames of both link types."""
    assert sum(map(len, CHOSEN.values())) > 300
    assert {frame.link_type for frame in FRAMES} == {ETHERNET, RAW}


# Live: each filter with its own capture, all of the same frames.
LIVE = (
    "udp port 9 and not vlan",
    "vlan 5 and udp[8:4] = 0x78787878",
    "vlan 100 and vlan 5",
    "ip protochain 6 or greater 1600",
    "ether[len - 1] & 1 = 0",  # the last byte, at any offset
    "tcp[((tcp[12:1] & 0xf0) >> 2):4] > 0x80000000 or icmp",
    "ip6 or (vlan and ip6)",
)
TAGGED = (b"\x81\x00", b"\x88\xa8", b"\x88\x47")
TUN = "tun0"
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 1, 0x1000


def send(wire: Wire, address: str, size: int) -> None:
    """Send a few datagrams from the near end."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with closing(wire.near.namespace.do(socket.socket, family, socket.SOCK_DGRAM)) as sender:
        for number in range(7):
            sender.sendto(b"x" * (size + number), (address, DISCARD_PORT))


def send_tagged(wire: Wire) -> None:
    """Send frames with tags or labels in the frame itself."""
    frames = {frame.data for frame in FRAMES if frame.link_type == ETHERNET and frame.data[12:14] in TAGGED}
    with closing(wire.near.namespace.do(socket.socket, socket.AF_PACKET, socket.SOCK_RAW, 0)) as sender:
        sender.bind((wire.near.device, 0))
        for frame in sorted(frames):
            sender.send(frame)


@pytest.fixture(scope="module")
def addresses(wire: Wire) -> Iterator[list[str]]:
    """Where to send: through the wire, a tunnel without link-layer headers, and VLANs if the kernel
    has them.
    """
    near, far = wire.near, wire.far
    with near.namespace.do(Path("/dev/net/tun").open, "r+b", buffering=0) as tunnel:  # belongs where it is opened
        fcntl.ioctl(tunnel, TUNSETIFF, struct.pack("16sH22x", TUN.encode(), IFF_TUN | IFF_NO_PI))
        near.namespace.sysctl(**{f"ipv6__conf__{TUN}__disable_ipv6": "1"})
        near.namespace.ip(f"link set {TUN} up", f"address add 10.9.0.1/24 dev {TUN}")
        found = [far.ipv4, far.ipv6, "10.9.0.2"]
        with suppress(RuntimeError):  # no 8021q, as natively on some machines: there all tags are in the frames
            near.namespace.ip(
                f"link add link {near.device} name vlan5 type vlan id 5",
                f"link add link {near.device} name service100 type vlan protocol 802.1ad id 100",
                "link add link service100 name customer5 type vlan id 5",
                *(f"link set {name} addrgenmode none up" for name in ("vlan5", "service100", "customer5")),
                "address add 10.5.0.1/24 dev vlan5",
                "address add fd00:b5::1/64 dev vlan5 nodad",
                "address add 10.6.0.1/24 dev customer5",
                f"neighbour add 10.5.0.2 lladdr {far.mac} dev vlan5",
                f"neighbour add fd00:b5::2 lladdr {far.mac} dev vlan5",
                f"neighbour add 10.6.0.2 lladdr {far.mac} dev customer5",
            )
            found += ["10.5.0.2", "fd00:b5::2", "10.6.0.2"]
        yield found


@pytest.mark.parametrize(
    "live", [pytest.param(LIVE[:2], id="two", marks=pytest.mark.vm), pytest.param(LIVE[2:], id="all")]
)
def test_a_capture_keeps_the_packets_that_libpcap_keeps(
    live: tuple[str, ...], wire: Wire, addresses: list[str], tmp_path: Path
) -> None:
    """`capture FILTER` writes the frames that an AF_PACKET socket sees and libpcap matches: tagged,
    paged, without Ethernet.
    """
    near = wire.near
    files = [tmp_path / f"{number}.pcapng" for number in range(len(live))]
    data = tmp_path / "sent.bin"
    with ExitStack() as stack:
        stack.enter_context(closing(Sink(wire.far.namespace)))
        marker = stack.enter_context(closing(Marker(near.namespace, near.device)))
        tunnel_marker = stack.enter_context(closing(Marker(near.namespace, TUN)))
        references = [
            (ETHERNET, marker, stack.enter_context(closing(Reference(near.namespace, near.device)))),
            (RAW, tunnel_marker, stack.enter_context(closing(Reference(near.namespace, TUN)))),
        ]
        captures = [
            stack.enter_context(
                closing(Capture(near.namespace, "-i", near.device, "-i", TUN, "-w", str(file), *text.split()))
            )
            for file, text in zip(files, live, strict=True)
        ]
        for address in addresses:
            send(wire, address, 20)
            send(wire, address, 1400)
        send_tagged(wire)
        for case in CASES:
            if case.name in {"udp-zerocopy", "tcp-sendfile", "tcp-splice", "arp", "icmp", "udp-65507"}:
                data.write_bytes(pattern(case.size))
                _, error = run_sender(near.namespace, case.command(wire, data))
                assert not error
        frames = [
            (link, frame.data)
            for link, device_marker, reference in references
            for frame in reference.read_until(device_marker.send())
            if frame.outgoing
        ]
        for capture in captures:
            ended = capture.stop()
            assert ended.exit_code == 0, ended.stderr
            assert ended.lost == 0

    for text, file in zip(live, files, strict=True):
        judges = {link: Judge(text, link) for link in (ETHERNET, RAW)}
        expected = sorted(frame for frame in frames if judges[frame[0]].takes(frame[1], len(frame[1])))
        ours = [(packet.link_type, packet.data) for packet in read(file) if packet.direction == "out"]
        assert sorted(frame for frame in ours if frame[1] not in {*marker.sent, *tunnel_marker.sent}) == expected, text
        assert 0 < len(expected) < len(frames), text


@pytest.mark.parametrize(
    ("interfaces", "expected"), [("near0", {"255.255.255.255", "192.168.178.255"}), ("near*", {"255.255.255.255"})]
)
def test_ip_broadcast_uses_the_netmask(interfaces: str, expected: set[str], wire: Wire, tmp_path: Path) -> None:
    """`ip broadcast` uses the netmask of a named interface; for several it means 255.255.255.255,
    as in tcpdump.
    """
    file = tmp_path / "a.pcapng"
    destinations = ("255.255.255.255", "192.168.178.255", wire.far.ipv4)
    with closing(Capture(wire.near.namespace, "-i", interfaces, "-w", str(file), "ip broadcast")) as capture:
        with closing(wire.near.namespace.do(socket.socket, socket.AF_INET, socket.SOCK_DGRAM)) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, wire.near.device.encode())
            for destination in destinations * 7:
                sock.sendto(b"x", (destination, DISCARD_PORT))
        ended = capture.stop()
    assert ended.exit_code == 0
    found = Counter(socket.inet_ntoa(packet.data[30:34]) for packet in read(file) if packet.direction == "out")
    taken = f"{found.total()} packets to {', '.join(sorted(found))}"
    faults.compare("filter: ip broadcast", 1, f"interfaces: {interfaces}: {taken}")
    assert found == dict.fromkeys(expected, 7)
