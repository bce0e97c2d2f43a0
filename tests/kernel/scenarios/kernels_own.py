"""Packets that the kernel sends itself or for others, in the context of any process: they must not
name that process.
"""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path

from tests.kernel.payloads import ICMP, UDP
from tests.kernel.scenarios.received import CLOSED_PORT, ask
from tests.kernel.send.identity import signature
from tests.kernel.send.tcp import finish
from tests.kernel.stage import Scenario, Stage, connect, udp_socket
from tests.kernel.verdict import ETH_P_ARP, IGMP, Frame, Judge, Right
from tests.support.blocks import Label

SENDS = 23
COOKIE_PORT = 40_153
NEIGHBOUR_SOLICITATION = 135
SYN, RST, ACK = 0x02, 0x04, 0x10

# One-armed routing: the far end sends packets for this network to the near end, which sends them
# back.
ROUTED = "10.71.0"
# A bridge at the near end, between two namespaces.
BRIDGE, PORTS, BRIDGED = "bridge0", ("port0", "port1"), "10.73.0"


def sends_to_strangers(stage: Stage) -> None:
    """Send to neighbors that do not exist: the kernel sends requests for them at once."""
    for to in ("192.168.178.77", "fd00:b2::77"):
        stage.play("udp", "first", "--to", to, "--count", 3)


def arp(stage: Stage) -> Judge:
    """ARP requests are sent inside the system call of the sender; the far end answers its own."""
    with stage.watch() as wait_for:
        sends_to_strangers(stage)
        stage.far.ip(f"neighbour del {stage.wire.near.ipv4} dev {stage.wire.far.device}")
        ask(stage, stage.wire.near.ipv4, CLOSED_PORT, 1)
        wait_for(lambda frame: frame.is_sent and frame.ether_type == ETH_P_ARP and frame.data[21] == 2, 1)

    def right(frame: Frame) -> Right:
        return "kernel" if frame.is_sent and frame.ether_type == ETH_P_ARP else None

    return right


def neighbours(stage: Stage) -> Judge:
    """Neighbor solicitations are sent inside the system call of the sender."""
    with stage.watch() as wait_for:
        sends_to_strangers(stage)
        # Two: a kernel that hides a process from tracing does not show packets that a timer sends
        # while that process is current.
        wait_for(lambda frame: frame.is_sent and frame.message == NEIGHBOUR_SOLICITATION, 2)

    def right(frame: Frame) -> Right:
        return "kernel" if frame.is_sent and frame.message == NEIGHBOUR_SOLICITATION else None

    return right


def reset(stage: Stage) -> Judge:
    """Connections to a closed port."""
    for _ in range(SENDS):
        with contextlib.suppress(ConnectionRefusedError):
            connect(stage.far, stage.wire.near.ipv4, CLOSED_PORT).close()

    def right(frame: Frame) -> Right:
        return "kernel" if frame.is_sent and frame.tcp_flags & RST else None

    return right


def unreachable(stage: Stage) -> Judge:
    """Datagrams to a closed port."""
    stage.near.sysctl(ipv4__icmp_ratelimit="0")
    ask(stage, stage.wire.near.ipv4, CLOSED_PORT)

    def right(frame: Frame) -> Right:
        return "kernel" if frame.is_sent and frame.protocol == ICMP else None

    return right


def groups(stage: Stage) -> Judge:
    """Reports of a group that a process joins and leaves, by IGMP and by MLD."""
    with stage.watch() as wait_for:
        stage.play("receivers", "joins", "--port", CLOSED_PORT, "--address", stage.wire.near.ipv4)
        wait_for(lambda frame: frame.is_sent and frame.protocol == IGMP, 2)

    def right(frame: Frame) -> Right:
        return "kernel" if frame.is_sent and frame.protocol == IGMP else None

    return right


def cookies(stage: Stage) -> Judge:
    """Each SYN is answered with a cookie, for which no socket exists: the kernel sends that
    SYN-ACK.
    """
    stage.near.sysctl(ipv4__tcp_syncookies="2")
    player = stage.start("tcp", "serves", "--source-port", COOKIE_PORT, "--count", SENDS)
    owners = player.says()
    player.go()
    for _ in range(SENDS):
        finish(connect(stage.far, stage.wire.near.ipv4, COOKIE_PORT))
    player.end()
    stage.near.sysctl(ipv4__tcp_syncookies="1")

    def right(frame: Frame) -> Right:
        if frame.is_housekeeping:
            return None
        if frame.is_sent and frame.tcp_flags == SYN | ACK:
            return "kernel"
        return [frame.signature] if frame.signature and frame.is_sent else owners

    return right


def routed(stage: Stage) -> Judge:
    """Datagrams of the far end for a network that the near end forwards to: of this process, in
    both directions.
    """
    near, far = stage.wire.near, stage.wire.far
    stage.near.sysctl(
        ipv4__ip_forward="1", ipv4__conf__all__send_redirects="0", **{f"ipv4__conf__{near.device}__send_redirects": "0"}
    )
    stage.near.ip(f"route add {ROUTED}.0/24 via {far.ipv4}")
    stage.far.ip(f"route add {ROUTED}.0/24 via {near.ipv4}")
    ask(stage, f"{ROUTED}.9", CLOSED_PORT)
    stage.near.ip(f"route del {ROUTED}.0/24")
    stage.far.ip(f"route del {ROUTED}.0/24")
    sender = this_thread()

    def right(frame: Frame) -> Right:
        return [sender] if frame.protocol == UDP else None

    return right


def this_thread() -> Label:
    """The sender at the far end."""
    comm = Path("/proc/thread-self/comm").read_text().removesuffix("\n")
    return Label(comm, os.getpid(), threading.get_native_id())


def make_bridge(stage: Stage) -> None:
    """Make the bridge before the capture, so that its interfaces exist."""
    stage.near.ip(f"link add {BRIDGE} type bridge", f"link set {BRIDGE} addrgenmode none up")
    for number, port in enumerate(PORTS, 1):
        there = stage.add_namespace(port)
        stage.near.ip(
            f"link add {port} type veth peer eth0 netns {there.name}",
            f"link set {port} master {BRIDGE}",
            f"link set {port} addrgenmode none up",
        )
        there.ip("link set eth0 addrgenmode none up", f"address add {BRIDGED}.{number}/24 dev eth0")


def bridged(stage: Stage) -> Judge:
    """Datagrams from one port of the bridge to the other: they belong to the sender, in another
    namespace.
    """
    left, right = (stage.others[port] for port in PORTS)
    with udp_socket(left) as sender, udp_socket(right, f"{BRIDGED}.2") as receiver:
        for _ in range(SENDS):
            sender.sendto(signature(0), receiver.getsockname())
            receiver.recv(2048)

    def signed(frame: Frame) -> Right:
        return [frame.signature] if frame.signature else None

    return signed


SCENARIOS = [
    Scenario("ARP", arp, 2, vm=True),
    Scenario("neighbour discovery", neighbours, 1),
    Scenario("reset to a closed port", reset, SENDS),
    Scenario("ICMP unreachable", unreachable, SENDS),
    Scenario("IGMP", groups, 2),
    Scenario("SYN cookies", cookies, SENDS * 5, SENDS * 3),
    Scenario("forwarded by routing", routed, 2 * SENDS, vm=True),
    Scenario("forwarded by a bridge", bridged, 2 * SENDS),
]
