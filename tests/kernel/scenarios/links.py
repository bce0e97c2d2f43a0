"""More ways to reach a host with containers (passing.py): a virtual machine on its bridge, an address that it answers
for (proxy ARP), and a BPF program that hands packets into a container.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

from tests.kernel.payloads import TCP, UDP
from tests.kernel.scenarios.passing import (
    BRIDGE,
    BRIDGE_MAC,
    CONTAINERS,
    HOST_4,
    PORTS,
    SENDS,
    SERVER,
    container,
    decoys,
    echoing,
    whose,
)
from tests.kernel.send.tcp import finish
from tests.kernel.sink import TCP_PORT
from tests.kernel.stage import Scenario, Stage, connect, udp_socket
from tests.kernel.verdict import Frame, Judge, Right
from tests.support import steering

GUEST, GUEST_HERE, GUEST_MAC = "guest0", "172.30.0.20", "02:30:00:00:00:14"
DISCARD_PORT = 9
PROXIED, HANDED = "192.168.178.77", "172.31.1.6"
DEVICES = (f"{GUEST}*",)  # made later


@contextlib.contextmanager
def guest(stage: Stage) -> Iterator[tuple[str, ...]]:
    """A tap on the bridge; gives words for the program behind it."""
    stage.near.ip(
        f"tuntap add dev {GUEST} mode tap",
        f"link set {GUEST} master {BRIDGE} addrgenmode none up",
        f"neighbour add {GUEST_HERE} lladdr {GUEST_MAC} nud permanent dev {BRIDGE}",
    )
    try:
        yield ("--device", GUEST, "--source", GUEST_HERE, "--source-mac", GUEST_MAC, "--host", HOST_4)
    finally:
        stage.near.ip(f"link del {GUEST}", f"neighbour del {GUEST_HERE} dev {BRIDGE}")


def guest_asks_outside(stage: Stage) -> Judge:
    """Datagrams of a virtual machine to the far end, masqueraded: of no process of the host, also not of the one that
    has the port there.
    """
    others = decoys(stage, stage.near, DISCARD_PORT)
    with guest(stage) as words, echoing(stage, SENDS) as port:
        to = ("--to", stage.wire.far.ipv4, "--to-mac", BRIDGE_MAC, "--port", port)
        stage.play("links", "guest", *words, *to, "--count", SENDS)
    for other in others:
        other.close()

    def right(frame: Frame) -> Right:
        if frame.signature is None:
            return None
        return ["forwarded", "unknown"] if frame.is_sent else "unknown"

    return right


def guest_asks_container(stage: Stage) -> Judge:
    """Datagrams of a virtual machine to a server in a container: of the server, or of no process."""
    ipv4, _, mac = CONTAINERS[0]
    container(stage).ip(f"neighbour add {GUEST_HERE} lladdr {GUEST_MAC} nud permanent dev eth0")
    server = stage.start("udp", "answers", "--source-port", SERVER, "--count", SENDS, at=container(stage))
    owners = server.says()
    server.go()
    with guest(stage) as words:
        to = ("--to", ipv4, "--to-mac", mac, "--port", SERVER)
        stage.play("links", "guest", *words, *to, "--count", SENDS)
    server.end()
    container(stage).ip(f"neighbour del {GUEST_HERE} dev eth0")

    def right(frame: Frame) -> Right:
        return owners if frame.protocol == UDP and SERVER in frame.ports else None

    return right


@contextlib.contextmanager
def routed(stage: Stage, address: str, *, proxied: bool) -> Iterator[None]:
    """A container has a further address, which is not translated; the far end asks for it, or has a route."""
    near, far, there = stage.wire.near, stage.wire.far, container(stage, 1)
    stage.near.ip(
        f"route add {address}/32 dev {BRIDGE}",
        f"neighbour add {address} lladdr {CONTAINERS[1][2]} nud permanent dev {BRIDGE}",
    )
    there.ip(f"address add {address}/32 dev eth0", f"route replace {far.ipv4}/32 via {HOST_4} src {address}")
    if proxied:
        stage.near.sysctl(**{f"ipv4__conf__{near.device}__proxy_arp": "1"})
    else:
        stage.far.ip(f"route add {address}/32 via {near.ipv4}")
    try:
        yield
    finally:
        stage.near.sysctl(**{f"ipv4__conf__{near.device}__proxy_arp": "0"})
        if not proxied:
            stage.far.ip(f"route del {address}/32")
        there.ip(f"route del {far.ipv4}/32", f"address del {address}/32 dev eth0")
        stage.near.ip(f"route del {address}/32", f"neighbour del {address} dev {BRIDGE}")


def served(stage: Stage, address: str) -> Judge:
    """Datagrams and connections from outside to servers in the container; the host has the port, too."""
    others = decoys(stage, stage.near, SERVER)
    words = ("--source-port", SERVER, "--count", SENDS)
    servers = [stage.start(*way, *words, at=container(stage, 1)) for way in (("udp", "answers"), ("tcp", "serves"))]
    owners = dict(zip((UDP, TCP), [server.says() for server in servers], strict=True))
    for server in servers:
        server.go()
    with udp_socket(stage.far) as asking:
        for _ in range(SENDS):
            asking.sendto(b"?" * 9, (address, SERVER))
            asking.recv(2048)
    for _ in range(SENDS):
        finish(connect(stage.far, address, SERVER))
    for server in servers:
        server.end()
    for other in others:
        other.close()

    def right(frame: Frame) -> Right:
        return owners.get(frame.protocol) if SERVER in frame.ports else None

    return right


def proxied_server(stage: Stage) -> Judge:
    """The host answers ARP for the container's address."""
    with routed(stage, PROXIED, proxied=True):
        return served(stage, PROXIED)


def proxied_client(stage: Stage) -> Judge:
    """The same, and the container asks."""
    with routed(stage, PROXIED, proxied=True):
        words = ("--to", stage.wire.far.ipv4, "--port", TCP_PORT, "--count", SENDS)
        return whose(*stage.play("tcp", "connects", *words, at=container(stage, 1)))


@contextlib.contextmanager
def handed(stage: Stage) -> Iterator[None]:
    """What the uplink receives for the container is handed into it."""
    host = stage.near
    ends = [host.do(socket.if_nametoindex, device) for device in (stage.wire.near.device, PORTS[1])]
    with routed(stage, HANDED, proxied=False), contextlib.ExitStack() as stack:
        host.do(stack.enter_context, steering.handed_to_peer(ends[0], HANDED, ends[1]))
        yield


def handed_server(stage: Stage) -> Judge:
    """Servers behind such a program."""
    with handed(stage):
        return served(stage, HANDED)


def handed_client(stage: Stage) -> Judge:
    """A client behind such a program."""
    with handed(stage):
        words = ("--to", stage.wire.far.ipv4, "--port", TCP_PORT, "--count", SENDS)
        return whose(*stage.play("tcp", "connects", *words, at=container(stage, 1)))


SCENARIOS = [
    Scenario("virtual machine on the bridge, masqueraded", guest_asks_outside, SENDS * 6, SENDS * 6),
    Scenario("virtual machine on the bridge, asks a container", guest_asks_container, SENDS * 4, 4),
    Scenario("TCP and UDP servers, proxy ARP", proxied_server, SENDS * 24, SENDS * 9 + 3),
    Scenario("TCP client, proxy ARP", proxied_client, SENDS * 18, 0),
    Scenario("TCP and UDP servers, bpf_redirect_peer", handed_server, SENDS * 12, SENDS * 3 + 1),
    Scenario("TCP client, bpf_redirect_peer", handed_client, SENDS * 12, 0),
]
