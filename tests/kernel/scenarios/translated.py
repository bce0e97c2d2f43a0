"""More of a host with containers (passing.py): IPv6, a container that translates by itself, an overlay
network, ports and numbers that are used again, and programs that look on.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Callable, Iterator

from tests.kernel.payloads import ETHERNET_BYTES, TCP, UDP
from tests.kernel.scenarios.passing import (
    BRIDGE,
    CONTAINERS,
    DEVICES,
    FEW_BYTES,
    PROXIED,
    PUBLISHED,
    REDIRECTED,
    SENDS,
    SERVER,
    SERVICE_6,
    STOLEN,
    any_address,
    asks,
    both_ends,
    client,
    container,
    decoys,
    echoing,
    end,
    keeps_port,
    published,
    published_udp,
    stolen,
    whose,
)
from tests.kernel.scenarios.stealing import run
from tests.kernel.send.tcp import finish
from tests.kernel.sink import TCP_PORT
from tests.kernel.stage import Scenario, Stage, connect, udp_socket
from tests.kernel.verdict import Frame, Judge, Right
from tests.support.blocks import Label

MESH, CLIENT, IPSEC = 15_006, 40_397, 4500
OVERLAY, OVERLAY_NUMBER, OVERLAY_PORT, OVERLAY_THERE, OVERLAY_MAC = "vxlan7", 7, 4789, "172.30.0.9", "02:30:00:00:00:09"
ETH_P_ALL = 3
SYN, RST, ACK = 0x02, 0x04, 0x10
NETLINK_NETFILTER, REQUEST, ACKNOWLEDGED = 12, 1, 4
DELETE_CONNECTIONS = 1 << 8 | 2  # NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_DELETE
BUFFER_BYTES = 1 << 24


@contextlib.contextmanager
def meshed(stage: Stage, family: str) -> Iterator[None]:
    """The first container redirects all that it receives to one port, as the proxy of a service mesh does."""
    chain = f"type nat hook prerouting priority -100; tcp dport {SERVER} redirect to :{MESH};"
    run(container(stage), "nft", f"table {family} mesh {{ chain pre {{ {chain} }}; }}")
    try:
        yield
    finally:
        run(container(stage), "nft", "delete", "table", family, "mesh")


def mesh(*, ipv6: bool = False) -> Callable[[Stage], Judge]:
    """From outside to a published port, whose container has a proxy: the server behind it gets nothing."""

    def play(stage: Stage) -> Judge:
        family = "ip6" if ipv6 else "ip"
        proxy = stage.start(
            "tcp", "serves", "--source-port", MESH, "--count", SENDS, *any_address(ipv6=ipv6), at=container(stage)
        )
        owners = proxy.says()
        others = decoys(stage, container(stage), SERVER, ipv6=ipv6)
        with meshed(stage, family):
            proxy.go()
            for _ in range(SENDS):
                finish(connect(stage.far, end(stage.wire.near, ipv6=ipv6), PUBLISHED))
            proxy.end()
        for other in others:
            other.close()
        return whose(*owners)

    return play


def ipsec_port(stage: Stage) -> Judge:
    """What comes to the port of IPsec can be encrypted, for any process: only who sends from it is known."""
    with udp_socket(stage.far, port=IPSEC) as answering:
        words = ("--comm", "charon", "--size", 56, "--source-port", IPSEC, "--to", stage.wire.far.ipv4)
        player = stage.start("datagrams", "udp", *words, "--port", IPSEC, "--count", SENDS, "--answered")
        for _ in range(SENDS):
            data, client = answering.recvfrom(2048)
            answering.sendto(data, client)
        owners = player.end()

    def right(frame: Frame) -> Right:
        if IPSEC not in frame.ports:
            return None
        return owners if frame.is_sent else "unknown"

    return right


def forget_connections(stage: Stage) -> None:
    """Make the host forget what it has translated."""

    def forget() -> None:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as asking:
            asking.sendto(
                struct.pack("IHHIIBBH", 20, DELETE_CONNECTIONS, REQUEST | ACKNOWLEDGED, 1, 0, 0, 0, 0), (0, 0)
            )
            answer = asking.recv(64)
        assert struct.unpack_from("i", answer, 16) == (0,), answer

    stage.near.do(forget)


def port_again(*, ipv6: bool = False) -> Callable[[Stage], Judge]:
    """One container after the other at one port, and the host has forgotten the one before: translated, they are
    equal.
    """

    def play(stage: Stage) -> Judge:
        labels: list[Label] = []
        with echoing(stage, 4 * SENDS, ipv6=ipv6) as port:
            for number in (0, 1, 0, 1):
                forget_connections(stage)
                words = ("--comm", f"again-{number}", "--size", 56, "--source-port", CLIENT)
                more = ("--to", end(stage.wire.far, ipv6=ipv6), "--port", port, "--count", SENDS, "--answered")
                labels += stage.play("datagrams", "udp", *words, *more, at=container(stage, number))

        def right(frame: Frame) -> Right:
            is_theirs = frame.protocol == UDP and frame.ids
            return [one for one in labels if frame.ids == (one.tgid, one.tid)] if is_theirs else None

        return right

    return play


def connection_again(stage: Stage) -> Judge:
    """The same with connections, each reset by its end: the first SYN of each shows its numbers."""
    turns: list[Label] = []
    for number in (0, 1, 0, 1):
        forget_connections(stage)
        words = ("--to", stage.wire.far.ipv4, "--port", TCP_PORT, "--source-port", CLIENT, "--count", 3)
        turns += stage.play("again", "tcp", *words, at=container(stage, number))
    begun: dict[int, Label] = {}

    def right(frame: Frame) -> Right:
        if frame.protocol != TCP or CLIENT not in frame.ports:
            return None
        sent, acknowledged = struct.unpack_from("!II", frame.data, ETHERNET_BYTES + 24)
        number = sent if frame.ports[0] == CLIENT else acknowledged
        if frame.ports[0] == CLIENT and frame.tcp_flags & (SYN | ACK) == SYN and sent not in begun:
            begun[sent] = turns[len(begun)]
        latest = list(begun.values())[-1]  # translated, what comes late belongs to who has the port now
        owners = [latest, *(one for first, one in begun.items() if (number - first) % (1 << 32) < FEW_BYTES)]
        # What comes late to a connection that is forgotten is answered by the host, or by the container, whose
        # answer is forwarded.
        return [*owners, "kernel", "forwarded"] if frame.tcp_flags == RST else owners

    return right


@contextlib.contextmanager
def tapped(stage: Stage) -> Iterator[None]:
    """Programs like tcpdump look at all interfaces."""
    places = [(stage.near, device) for device in ("near0", *DEVICES)]
    places += [(container(stage, number), "eth0") for number in range(2)]
    with contextlib.ExitStack() as stack:
        for namespace, device in places:
            tap = namespace.do(socket.socket, socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
            stack.enter_context(tap)
            tap.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
            tap.bind((device, ETH_P_ALL))
        yield


def beside_taps(play: Callable[[Stage], Judge]) -> Callable[[Stage], Judge]:
    """A scenario while programs look on: they have copies of its packets."""

    def under(stage: Stage) -> Judge:
        with tapped(stage):
            return play(stage)

    return under


@contextlib.contextmanager
def overlaid(stage: Stage, *more: str) -> Iterator[None]:
    """A network of the containers that goes on at the far end."""
    near, far = stage.wire.near, stage.wire.far
    words = f"type vxlan id {OVERLAY_NUMBER} dstport {OVERLAY_PORT} {' '.join(more)} dev"
    stage.near.ip(
        f"link add {OVERLAY} {words} {near.device} local {near.ipv4} remote {far.ipv4}",
        f"link set {OVERLAY} master {BRIDGE} addrgenmode none up",
    )
    stage.far.ip(
        f"link add {OVERLAY} address {OVERLAY_MAC} {words} {far.device} local {far.ipv4} remote {near.ipv4}",
        f"link set {OVERLAY} addrgenmode none up",
        f"address add {OVERLAY_THERE}/24 dev {OVERLAY}",
        *(f"neighbour add {ipv4} lladdr {mac} nud permanent dev {OVERLAY}" for ipv4, _, mac in CONTAINERS),
    )
    for number in range(2):
        container(stage, number).ip(f"neighbour replace {OVERLAY_THERE} lladdr {OVERLAY_MAC} nud permanent dev eth0")
    try:
        yield
    finally:
        for namespace in (stage.near, stage.far):
            namespace.ip(f"link del {OVERLAY}")


def overlay(stage: Stage) -> Judge:
    """A container's connections to another machine of its network: the outer datagrams have the process, too."""
    words = ("--to", OVERLAY_THERE, "--port", TCP_PORT, "--count", SENDS)
    with overlaid(stage):
        owners = stage.play("tcp", "connects", *words, at=container(stage))

    def right(frame: Frame) -> Right:
        is_answer = not frame.is_sent and OVERLAY_PORT in frame.ports
        return "unknown" if is_answer else whose(*owners)(frame)

    return right


def overlay_at_one_port(stage: Stage) -> Judge:
    """All outer datagrams have one port at both ends: what comes in can be for any container."""
    words = ("--to", OVERLAY_THERE, "--port", TCP_PORT, "--count", 1)
    with overlaid(stage, "srcport", str(OVERLAY_PORT), str(OVERLAY_PORT + 1)):
        users = stage.play("tcp", "connects", *words, at=container(stage))
        server = stage.start("udp", "answers", "--source-port", SERVER, "--count", SENDS, at=container(stage, 1))
        owners = server.says()
        server.go()
        with udp_socket(stage.far) as asking:
            for _ in range(SENDS):
                asking.sendto(b"?" * 9, (CONTAINERS[1][0], SERVER))
                asking.recv(2048)
        server.end()

    def right(frame: Frame) -> Right:
        is_answer = not frame.is_sent and OVERLAY_PORT in frame.ports
        if is_answer:
            return "unknown"
        if (frame.protocol == UDP and SERVER in frame.ports) or frame.signature:
            return owners
        return whose(*users, *owners)(frame)

    return right


SCENARIOS = [
    Scenario("masqueraded UDP client, IPv6", asks(ipv6=True), SENDS * 6, vm=True),
    Scenario("masquerade keeps a port that the host uses, IPv6", keeps_port(ipv6=True), SENDS * 6),
    Scenario("published UDP port, IPv6", published_udp(PUBLISHED, ipv6=True), SENDS * 6, 3),
    Scenario("published TCP port, a proxy listens, IPv6", published(PROXIED, ipv6=True), SENDS * 18, SENDS * 9),
    Scenario("published UDP port, a proxy listens, IPv6", published_udp(PROXIED, ipv6=True), SENDS * 6, 3),
    Scenario("TCP, REDIRECT, IPv6", published(REDIRECTED, ipv6=True, at_host=True), SENDS * 6, SENDS * 3),
    Scenario("UDP, REDIRECT, IPv6", published_udp(REDIRECTED, ipv6=True, at_host=True), SENDS * 2, 1),
    Scenario("TCP, TPROXY, IPv6", stolen(published(STOLEN, ipv6=True, at_host=True)), SENDS * 6, SENDS * 3),
    Scenario("hairpin, IPv6", both_ends(1, "fd00:b2::24", PUBLISHED), SENDS * 6, SENDS * 3),
    Scenario("DNAT in OUTPUT, IPv6", both_ends(None, SERVICE_6, 443), SENDS * 6, SENDS * 3),
    Scenario("published TCP port, REDIRECT in the container", mesh(), SENDS * 18, SENDS * 9, vm=True),
    Scenario("published TCP port, REDIRECT in the container, IPv6", mesh(ipv6=True), SENDS * 18, SENDS * 9),
    Scenario("UDP port used again behind NAT", port_again(), SENDS * 24, vm=True),
    Scenario("UDP port used again behind NAT, IPv6", port_again(ipv6=True), SENDS * 24),
    Scenario("TCP port used again behind NAT", connection_again, 12 * 15),
    Scenario("masqueraded TCP client, beside tcpdump", beside_taps(client("connects", SENDS)), SENDS * 18),
    Scenario("masqueraded UDP client, beside tcpdump", beside_taps(asks()), SENDS * 6),
    Scenario("published TCP port, beside tcpdump", beside_taps(published(PUBLISHED)), SENDS * 18, SENDS * 9),
    Scenario("UDP at the port of IPsec", ipsec_port, SENDS * 2, SENDS),
    Scenario("VXLAN", overlay, SENDS * 12, SENDS * 3),
    Scenario("VXLAN, one port at both ends", overlay_at_one_port, SENDS * 4 + 12, SENDS * 2 + 3),
]
