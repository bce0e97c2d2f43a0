"""A host with containers: what passes it, translated or not, is still its sender's, and what
answers its receiver's.

The near end is the host, whose uplink is a tap that this very process joins to the far end
(relay.py), so that no more than a frame's bytes comes from there. Two containers are on a bridge. A
name is right on each of the host's interfaces: who sent the packet, if that was a process of this
machine, else who gets it. Of packets without a payload of ours the scenario knows whose they are.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator

from tests.kernel.namespace import End, Namespace
from tests.kernel.payloads import ICMP, TCP, UDP
from tests.kernel.scenarios import unusual
from tests.kernel.send.identity import SIGNATURE
from tests.kernel.send.tcp import finish
from tests.kernel.sink import TCP_PORT
from tests.kernel.stage import PUT_OFF, Player, Scenario, Stage, connect, udp_socket
from tests.kernel.verdict import ICMPV6, ICMPV6_ECHO, Frame, Judge, Right
from tests.support.blocks import Label
from tests.support.deadline import DEADLINE_S

SENDS = 23
FEW_BYTES = 200_003
BRIDGE = "br0"
PORTS = ("ctr0", "ctr1")  # the host's ends of the containers' pairs
HOST_4, HOST_6 = "172.30.0.1", "fd30::1"
CONTAINERS = (("172.30.0.5", "fd30::5", "02:30:00:00:00:05"), ("172.30.0.6", "fd30::6", "02:30:00:00:00:06"))
BRIDGE_MAC = "02:30:00:00:00:01"
SERVICE, SERVICE_6 = "10.96.0.1", "fd96::1"
PUBLISHED, PROXIED, REDIRECTED, STOLEN, OWN = 8080, 8081, 8090, 8091, 8092
RST, ACK = 0x04, 0x10
CLIENT = 40_361
MEMBERS_CLIENTS = 12  # so many that the kernel gives each member one: but for 1 of 2,048 runs
SERVER, NTP, ROUTED = 5080, 123, "172.31.0"
STOLEN_WORDS = ("--port", OWN, "--to-port", STOLEN, "--transparent")
ORDINARY_WORDS = (*STOLEN_WORDS, "--ordinary")
OF_ADDRESS = ("--port", SERVER, "--to-port", SERVER, "--address", CONTAINERS[0][0], "--reuseport")
SERVER_WORDS = ("--port", SERVER, "--to-port", SERVER)
DEVICES = (BRIDGE, *PORTS)

RULES = """
table {family} nat {{
 chain post {{
  type nat hook postrouting priority 100
  oifname "near0" {ip} saddr {container} masquerade
  oifname "br0" {ip} saddr {container} {ip} daddr {container} masquerade
 }}
 chain pre {{
  type nat hook prerouting priority -100
  {ip} daddr {host} tcp dport {{ {published}, {proxied} }} dnat to {to}
  {ip} daddr {host} udp dport {{ {published}, {proxied} }} dnat to {to}
  iifname "near0" tcp dport {redirected} redirect to :{own}
  iifname "near0" udp dport {redirected} redirect to :{own}
 }}
 chain out {{
  type nat hook output priority -100
  {ip} daddr {service} tcp dport 443 dnat to {to}
  {ip} daddr {service} udp dport 443 dnat to {to}
 }}
}}
"""
STEALING = f"""
table inet stealing {{
 chain pre {{
  type filter hook prerouting priority -150
  iifname "near0" meta l4proto {{ tcp, udp }} th dport {STOLEN} tproxy to :{OWN} meta mark set 1 accept
 }}
}}
"""


def make_host(stage: Stage) -> None:
    """Make the bridge, the containers and the rules of the host."""
    near, far = stage.wire.near, stage.wire.far
    stage.near.sysctl(ipv4__ip_forward="1", ipv6__conf__all__forwarding="1")
    stage.near.ip(
        f"link add {BRIDGE} address {BRIDGE_MAC} type bridge",
        f"link set {BRIDGE} addrgenmode none up",
        f"address add {HOST_4}/24 dev {BRIDGE}",
        f"address add {HOST_6}/64 dev {BRIDGE} nodad",
        "rule add fwmark 1 lookup 100",
        "route add local default dev lo table 100",
        "rule add from ::/0 fwmark 1 lookup 100",
        "route add local ::/0 dev lo table 100",
        f"route add {SERVICE}/32 via {far.ipv4}",
        f"route add {SERVICE_6}/128 via {far.ipv6}",
    )
    for port, (ipv4, ipv6, mac) in zip(PORTS, CONTAINERS, strict=True):
        there = stage.add_namespace(port)
        there.sysctl(ipv4__ping_group_range="0 2147483647")
        stage.near.ip(
            f"link add {port} type veth peer eth0 address {mac} netns {there.name}",
            f"link set {port} master {BRIDGE} addrgenmode none up",
            f"neighbour add {ipv4} lladdr {mac} nud permanent dev {BRIDGE}",
            f"neighbour add {ipv6} lladdr {mac} nud permanent dev {BRIDGE}",
        )
        there.ip(
            "link set lo up",
            "link set eth0 addrgenmode none up",
            f"address add {ipv4}/24 dev eth0",
            f"address add {ipv6}/64 dev eth0 nodad",
            f"neighbour add {HOST_4} lladdr {BRIDGE_MAC} nud permanent dev eth0",
            f"neighbour add {HOST_6} lladdr {BRIDGE_MAC} nud permanent dev eth0",
            f"route add default via {HOST_4}",
            f"route add default via {HOST_6}",
            *(
                f"neighbour add {address} lladdr {other[2]} nud permanent dev eth0"
                for other in CONTAINERS
                if other[0] != ipv4
                for address in other[:2]
            ),
        )
    nft(stage.near, rules_of(near))


def nft(namespace: Namespace, rules: str) -> None:
    """Change the rules of a namespace."""
    command = ["ip", "netns", "exec", namespace.name, "nft", "-f", "-"]
    subprocess.run(command, input=rules, check=True, text=True, timeout=DEADLINE_S)


def rules_of(near: End) -> str:
    """The rules of the host, for both families."""
    ports = {"published": PUBLISHED, "proxied": PROXIED, "redirected": REDIRECTED, "own": OWN}
    families = (
        ("ip", "172.30.0.0/24", near.ipv4, f"172.30.0.5:{SERVER}", SERVICE),
        ("ip6", "fd30::/64", near.ipv6, f"[fd30::5]:{SERVER}", SERVICE_6),
    )
    return "".join(
        RULES.format(family=family, ip=family, container=container, host=host, to=to, service=service, **ports)
        for family, container, host, to, service in families
    )


def whose(*labels: Label) -> Judge:
    """Check all packets but housekeeping and resets: each belongs to one of these processes."""

    def right(frame: Frame) -> Right:
        if frame.tcp_flags & RST:
            return None
        is_echo = frame.protocol in (ICMP, ICMPV6) and not frame.is_housekeeping
        is_echo &= frame.protocol == ICMP or frame.message in (ICMPV6_ECHO, ICMPV6_ECHO + 1)
        return labels if is_echo or frame.protocol in (TCP, UDP) else None

    return right


@contextlib.contextmanager
def echoing(stage: Stage, count: int, *, ipv6: bool = False) -> Iterator[int]:
    """Send datagrams back at the far end; returns the port."""
    echo = udp_socket(stage.far, "::" if ipv6 else "")

    def answer() -> None:
        for _ in range(count):
            data, client = echo.recvfrom(2048)
            echo.sendto(data, client)

    thread = threading.Thread(target=answer)
    thread.start()
    with echo:
        yield echo.getsockname()[1]
        thread.join()


def container(stage: Stage, number: int = 0) -> Namespace:
    """A container's namespace."""
    return stage.others[PORTS[number]]


def end(of: End, *, ipv6: bool) -> str:
    """The address of one end."""
    return of.ipv6 if ipv6 else of.ipv4


def any_address(*, ipv6: bool) -> tuple[str, ...]:
    """The arguments with which a server listens at all addresses."""
    return ("--to", "::") if ipv6 else ()


def client(way: str, count: int, *, ipv6: bool = False) -> Callable[[Stage], Judge]:
    """A container's TCP client, behind masquerade."""

    def play(stage: Stage) -> Judge:
        to = end(stage.wire.far, ipv6=ipv6)
        return whose(*stage.play("tcp", way, "--to", to, "--port", TCP_PORT, "--count", count, at=container(stage)))

    return play


def asks(*, ipv6: bool = False) -> Callable[[Stage], Judge]:
    """A container's UDP client, behind masquerade."""

    def play(stage: Stage) -> Judge:
        with echoing(stage, SENDS, ipv6=ipv6) as port:
            words = ("--to", end(stage.wire.far, ipv6=ipv6), "--port", port, "--count", SENDS)
            return whose(*stage.play("udp", "asks", *words, at=container(stage)))

    return play


def pings(*, ipv6: bool) -> Callable[[Stage], Judge]:
    """A container's echo requests, behind masquerade."""

    def play(stage: Stage) -> Judge:
        to = end(stage.wire.far, ipv6=ipv6)
        words = ("--comm", "ping", "--count", SENDS, "--size", 56, "--to", to, "--answered")
        return whose(*stage.play("datagrams", "ping", *words, at=container(stage)))

    return play


def decoys(stage: Stage, at: Namespace, port: int, *, ipv6: bool = False) -> list[Player]:
    """Processes that use the port, for TCP and UDP, and receive nothing."""
    words, more = ("--source-port", port, "--count", 1), any_address(ipv6=ipv6)
    players = [stage.start(*way, *words, *more, at=at) for way in (("tcp", "serves"), ("udp", "answers"))]
    for player in players:
        player.says()
    return players


def published(port: int, *, ipv6: bool = False, at_host: bool = False) -> Callable[[Stage], Judge]:
    """TCP from outside to a port of the host: it belongs to the server in a container (or on the
    host, redirected).
    """

    def play(stage: Stage) -> Judge:
        host = end(stage.wire.near, ipv6=ipv6)
        at, own = (stage.near, OWN) if at_host else (container(stage), SERVER)
        more = any_address(ipv6=ipv6)
        transparent = ("--transparent",) if port == STOLEN else ()
        server = stage.start("tcp", "serves", "--source-port", own, "--count", SENDS, *more, *transparent, at=at)
        owners = server.says()
        others = decoys(stage, stage.near, port, ipv6=ipv6) if port != PUBLISHED else []
        server.go()
        for _ in range(SENDS):
            finish(connect(stage.far, host, port))
        server.end()
        for other in others:
            other.close()
        return whose(*owners)

    return play


def published_udp(port: int, *, ipv6: bool = False, at_host: bool = False) -> Callable[[Stage], Judge]:
    """The same with UDP."""

    def play(stage: Stage) -> Judge:
        at, own = (stage.near, OWN) if at_host else (container(stage), SERVER)
        more = any_address(ipv6=ipv6)
        server = stage.start("udp", "answers", "--source-port", own, "--count", SENDS, *more, at=at)
        owners = server.says()
        others = decoys(stage, stage.near, port, ipv6=ipv6) if port != PUBLISHED else []
        server.go()
        with udp_socket(stage.far, "::" if ipv6 else "") as sender:
            for _ in range(SENDS):
                sender.sendto(b"?" * 9, (end(stage.wire.near, ipv6=ipv6), port))
                sender.recv(2048)
        server.end()
        for other in others:
            other.close()
        return whose(*owners)

    return play


def published_pool(stage: Stage) -> Judge:
    """Workers share the socket: which of them gets a datagram is not known, who answers is."""
    words = ("--comm", "pool", "--port", SERVER)
    server = stage.start("listeners", "pool_udp", *words, at=container(stage))
    server.says()
    with udp_socket(stage.far) as asking:
        for number in range(SENDS):
            asking.sendto(b"of a pool, %d" % number, (stage.wire.near.ipv4, PUBLISHED))
            asking.recv(2048)
            if number in {0, 1, SENDS - 1}:  # /proc has been asked
                stage.wait_until_written(b"of a pool, %d" % number)
    server.go()
    server.end()
    common = Label("pool", 0, 0)

    def right(frame: Frame) -> Right:
        if frame.protocol != UDP or not {SERVER, PUBLISHED} & set(frame.ports):
            return None
        return [frame.signature] if frame.signature else [common]

    return right


def reset(stage: Stage) -> Judge:
    """A connection from one port, and then another, when nobody listens any more: that reset is the kernel's."""
    server = stage.start("tcp", "serves", "--source-port", OWN, "--count", 1)
    owners = server.says()
    server.go()
    with stage.watch() as wait_for:
        for _ in range(2):
            with stage.far.do(socket.socket) as client:
                client.settimeout(DEADLINE_S)
                client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                client.bind(("", CLIENT))
                if not client.connect_ex((stage.wire.near.ipv4, OWN)):
                    client.shutdown(socket.SHUT_WR)
                    while client.recv(2048):
                        pass
                    server.end()
        wait_for(lambda frame: frame.tcp_flags == RST | ACK, 1)

    def right(frame: Frame) -> Right:
        if CLIENT not in frame.ports or frame.tcp_flags == RST:
            return None
        return "kernel" if frame.tcp_flags & RST else owners

    return right


def stolen(play: Callable[[Stage], Judge]) -> Callable[[Stage], Judge]:
    """A scenario while TPROXY gives what comes to a port to a socket of another port."""

    def under(stage: Stage) -> Judge:
        nft(stage.near, STEALING)
        try:
            return play(stage)
        finally:
            nft(stage.near, "delete table inet stealing\n")

    return under


def steals_udp(stage: Stage) -> Judge:
    """TPROXY gives datagrams to another socket, which does not answer: the packets are unknown, and
    never name the process that uses the port.
    """
    player = stage.start("receivers", "bound", "--port", OWN, "--count", SENDS, "--transparent")
    owners = player.says()
    others = decoys(stage, stage.near, STOLEN)
    player.go()
    with udp_socket(stage.far) as sender:
        for _ in range(SENDS):
            sender.sendto(b"?" * 9, (stage.wire.near.ipv4, STOLEN))
    player.end()
    for other in others:
        other.close()
    return whose(*owners)


def relayed(port: int, *where: object, at_host: bool = False) -> Callable[[Stage], Judge]:
    """A process receives what comes to a port of the host, its child answers on another socket."""

    def play(stage: Stage) -> Judge:
        near = stage.wire.near.ipv4
        words = (*(("--to", near) if at_host else ()), *where, "--count", SENDS)
        relay = stage.start("receivers", "relays", *words, at=stage.near if at_host else container(stage))
        owners = relay.says()
        relay.go()
        with udp_socket(stage.far) as client:
            for _ in range(SENDS):
                client.sendto(b"?" * 9, (near, port))
                client.recv(2048)
        relay.end()

        def right(frame: Frame) -> Right:
            if frame.signature:
                return [frame.signature]
            return owners if frame.protocol == UDP else None

        return right

    return play


def published_members(stage: Stage) -> Judge:
    """Two processes share the port; when one has ended, the other one gets the datagrams of its clients."""
    near = stage.wire.near.ipv4
    server = stage.start("receivers", "members", "--port", SERVER, at=container(stage))
    server.says()
    owners: dict[bytes, Label] = {}
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(udp_socket(stage.far)) for _ in range(MEMBERS_CLIENTS)]
        for phase in range(2):
            for turn in range(3):
                for place, client in enumerate(clients):
                    asked = b"of member %d %d %d" % (phase, turn, place)
                    client.sendto(asked, (near, PUBLISHED))
                    _, tgid, tid, _, _ = SIGNATURE.unpack(client.recv(2048))
                    owners[asked] = Label("member", tgid, tid)
                    if place in {0, 1} and not turn:  # /proc has been asked
                        stage.wait_until_written(asked)
            server.go()
            server.says()
    server.go()
    server.end()

    def right(frame: Frame) -> Right:
        if frame.signature:
            return [frame.signature]
        found = next((owner for asked, owner in owners.items() if asked in frame.data), None)
        return found and [found, Label("member", 0, 0)]

    return right


def passed_on(stage: Stage) -> Judge:
    """The process of a container that has sent ends; its child receives the answers on the same socket."""
    with udp_socket(stage.far) as far:
        words = ("--to", stage.wire.far.ipv4, "--to-port", far.getsockname()[1], "--count", SENDS)
        player = stage.start("receivers", "passes_on", "--port", 0, *words, at=container(stage))
        _, client = far.recvfrom(2048)
        far.sendto(b"to whom?", client)  # until somebody uses it, a socket that was passed on is its sender's
        owners = player.says()
        player.go()
        for number in range(SENDS):
            far.sendto(b"passed on %d" % number, client)
        player.says()
        player.end()

    def right(frame: Frame) -> Right:
        if frame.signature:
            return [frame.signature]
        return owners if frame.protocol == UDP and b"to whom?" not in frame.data else None

    return right


def left_port(stage: Stage) -> Judge:
    """A client takes another port for its socket; the next datagrams to the first one are for who has it then."""
    with udp_socket(stage.far) as far:
        words = ("--port", 0, "--to", stage.wire.far.ipv4, "--to-port", far.getsockname()[1])
        player = stage.start("receivers", "leaves", *words)
        _, client = far.recvfrom(2048)
        far.sendto(b"to the first", client)
        owners = player.says()
        second = stage.start("receivers", "bound", "--port", client[1], "--count", SENDS)
        later = second.says()
        second.go()
        for _ in range(SENDS):
            far.sendto(b"to the second", client)
        second.end()
        player.go()
        player.end()

    def right(frame: Frame) -> Right:
        if frame.protocol != UDP:
            return None
        return later if b"to the second" in frame.data else owners

    return right


def keeps_port(*, ipv6: bool = False) -> Callable[[Stage], Judge]:
    """Masquerade keeps the port of the container, which a process on the host uses, too, like ntpd
    and its clients.
    """

    def play(stage: Stage) -> Judge:
        others = decoys(stage, stage.near, NTP, ipv6=ipv6)
        with echoing(stage, SENDS, ipv6=ipv6) as port:
            words = ("--comm", "ntp", "--size", 56, "--source-port", NTP, "--to", end(stage.wire.far, ipv6=ipv6))
            more = ("--port", port, "--count", SENDS, "--answered")
            owners = stage.play("datagrams", "udp", *words, *more, at=container(stage))
        for other in others:
            other.close()
        return whose(*owners)

    return play


def hosts_client(stage: Stage) -> Judge:
    """A client on the host itself, in a namespace that translates."""
    return whose(*stage.play("tcp", "connects", "--to", stage.wire.far.ipv4, "--port", TCP_PORT, "--count", SENDS))


def both_ends(at: int | None, to: str, port: int) -> Callable[[Stage], Judge]:
    """A client in a container (None: at the host), the server in the first one: each packet is of
    one of the two.
    """

    def play(stage: Stage) -> Judge:
        words, more = ("--source-port", SERVER, "--count", SENDS), any_address(ipv6=":" in to)
        server = stage.start("tcp", "serves", *words, *more, at=container(stage))
        owners = server.says()
        server.go()
        there = stage.near if at is None else container(stage, at)
        clients = stage.play("tcp", "connects", "--to", to, "--port", port, "--count", SENDS, at=there)
        server.end()

        def right(frame: Frame) -> Right:
            if frame.protocol != TCP:
                return None
            # A sent packet belongs to its sender; a received one for an address of the interface to
            # its receiver.
            return owners if frame.ports[0] in (SERVER, port) else clients

        def either(frame: Frame) -> Right:
            found = right(frame)
            return found if found is None or frame.is_sent else [*owners, *clients]

        return either

    return play


def routed(stage: Stage) -> Judge:
    """A container whose network the far end knows: nothing is translated for it."""
    stage.near.ip(f"address add {ROUTED}.1/24 dev {BRIDGE}")
    stage.far.ip(f"route add {ROUTED}.0/24 via {stage.wire.near.ipv4}")
    mac = CONTAINERS[1][2]
    stage.near.ip(f"neighbour add {ROUTED}.6 lladdr {mac} nud permanent dev {BRIDGE}")
    container(stage, 1).ip(
        f"address add {ROUTED}.6/24 dev eth0",
        f"route add {stage.wire.far.ipv4}/32 via {HOST_4} src {ROUTED}.6",
    )
    words = ("--to", stage.wire.far.ipv4, "--port", TCP_PORT, "--count", SENDS)
    return whose(*stage.play("tcp", "connects", *words, at=container(stage, 1)))


def same_addresses(stage: Stage) -> Judge:
    """Two containers use one source port and one destination in turn: each packet belongs to its
    own sender.
    """
    labels: list[Label] = []
    with echoing(stage, 2 * SENDS) as port:
        for number in range(2):
            words = ("--comm", f"twin-{number}", "--size", 56, "--source-port", 40_177, "--to", stage.wire.far.ipv4)
            more = ("--port", port, "--count", SENDS, "--answered")
            labels += stage.play("datagrams", "udp", *words, *more, at=container(stage, number))

    def right(frame: Frame) -> Right:
        is_theirs = frame.protocol == UDP and frame.ids
        return [one for one in labels if frame.ids == (one.tgid, one.tid)] if is_theirs else None

    return right


SCENARIOS = [
    Scenario("masqueraded TCP client", client("connects", SENDS), SENDS * 18, vm=True),
    Scenario("masqueraded TCP upload", client("uploads", FEW_BYTES), 23),
    Scenario("masqueraded TCP client, IPv6", client("connects", SENDS, ipv6=True), SENDS * 18),
    Scenario("masqueraded UDP client", asks(), SENDS * 6, vm=True),
    Scenario("masqueraded echo", pings(ipv6=False), SENDS * 6, vm=True),
    Scenario("masqueraded echo, IPv6", pings(ipv6=True), SENDS * 6),
    Scenario("masquerade keeps a port that the host uses", keeps_port(), SENDS * 6, vm=True),
    Scenario("two containers at one port", same_addresses, SENDS * 12),
    Scenario("published TCP port", published(PUBLISHED), SENDS * 18, SENDS * 9, vm=True),
    Scenario("published TCP port, IPv6", published(PUBLISHED, ipv6=True), SENDS * 18, SENDS * 9),
    Scenario("published UDP port", published_udp(PUBLISHED), SENDS * 6, 3, vm=True),
    Scenario("published TCP port, a proxy listens", published(PROXIED), SENDS * 18, SENDS * 9, vm=True),
    Scenario("published UDP port, a proxy listens", published_udp(PROXIED), SENDS * 6, 3),
    Scenario("published UDP port, a master and its workers", published_pool, SENDS * 6, 6 + 3 * PUT_OFF),
    Scenario("TCP, REDIRECT", published(REDIRECTED, at_host=True), SENDS * 6, SENDS * 3),
    Scenario("UDP, REDIRECT", published_udp(REDIRECTED, at_host=True), SENDS * 2, 1),
    Scenario("TCP, TPROXY", stolen(published(STOLEN, at_host=True)), SENDS * 6, SENDS * 3),
    Scenario("UDP, TPROXY", stolen(steals_udp), SENDS, SENDS),
    Scenario("UDP, TPROXY, a child answers", stolen(relayed(STOLEN, *STOLEN_WORDS, at_host=True)), SENDS * 2, SENDS),
    Scenario(
        "UDP, TPROXY, an ordinary socket answers",
        stolen(relayed(STOLEN, *ORDINARY_WORDS, at_host=True)),
        SENDS * 2,
        SENDS,
    ),
    Scenario("masqueraded UDP client, passed on to a child", passed_on, SENDS * 4),
    Scenario("UDP, a port that its socket has left, on a host that translates", left_port, SENDS + 2, SENDS),
    Scenario(
        "published UDP port, SO_REUSEPORT and two addresses", relayed(PUBLISHED, *OF_ADDRESS), SENDS * 8, SENDS * 3
    ),
    Scenario("published UDP port, another socket answers", relayed(PUBLISHED, *SERVER_WORDS), SENDS * 8, SENDS * 4),
    Scenario(
        "published UDP port, one of two processes ends", published_members, MEMBERS_CLIENTS * 48, MEMBERS_CLIENTS * 8
    ),
    Scenario("TCP client of a host that translates", hosts_client, SENDS * 6),
    Scenario("container to a published port, hairpin", both_ends(1, "192.168.178.24", PUBLISHED), SENDS * 6, SENDS * 3),
    Scenario("reset to a port that was open, on a host that translates", reset, 7, 6),
    Scenario("forged SYN, on a host that translates", unusual.forged, 7),
    Scenario("DNAT in OUTPUT", both_ends(None, SERVICE, 443), SENDS * 6, SENDS * 3, vm=True),
    Scenario("container to container, bridged", both_ends(1, "172.30.0.5", SERVER), SENDS * 6, SENDS * 3),
    Scenario("container, routed", routed, SENDS * 18),
]
