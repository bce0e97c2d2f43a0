"""More of a host with containers (passing.py), with interfaces and services that not every kernel has: VLAN, VRF, IPVS,
GENEVE, WireGuard.

The interfaces of the host are captured. Two sites have the same addresses, each behind a VRF of its own.
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable, Iterator
from functools import partial

from tests.kernel.namespace import Namespace
from tests.kernel.payloads import UDP
from tests.kernel.scenarios.passing import (
    BRIDGE,
    CONTAINERS,
    PUBLISHED,
    SENDS,
    SERVER,
    both_ends,
    container,
    whose,
)
from tests.kernel.scenarios.stealing import run
from tests.kernel.send.identity import SIGNATURE
from tests.kernel.send.tcp import finish
from tests.kernel.sink import TCP_PORT
from tests.kernel.stage import Scenario, Stage, connect, udp_socket
from tests.kernel.verdict import Frame, Judge, Right
from tests.support.blocks import Label
from tests.support.deadline import DEADLINE_S

VLAN, GENEVE, WIREGUARD = "vlan7", "geneve7", "wg7"
NUMBER, GENEVE_PORT, WIREGUARD_PORT = 7, 6081, 51_820
VLAN_HERE, VLAN_THERE, WIREGUARD_HERE, WIREGUARD_THERE = "10.71.0.1", "10.71.0.2", "10.74.0.1", "10.74.0.2"
GENEVE_THERE, GENEVE_MAC = "172.30.0.10", "02:30:00:00:00:0a"
SITES = ("red", "blue")
SITE_HERE, SITE_THERE, SITE_MACS = "10.72.0.1", "10.72.0.2", ("02:72:00:00:00:01", "02:72:00:00:00:02")
BALANCED, CLIENT = 8085, 40_423
DEVICES = tuple(f"{device}*" for device in (VLAN, GENEVE, WIREGUARD, *SITES))  # made later
RULES = f"""
table ip modules {{
 chain post {{
  type nat hook postrouting priority 100
  oifname {{ "{VLAN}", "{WIREGUARD}" }} ip saddr 172.30.0.0/24 masquerade
 }}
 chain pre {{
  type nat hook prerouting priority -100
  ip daddr {VLAN_HERE} tcp dport {PUBLISHED} dnat to {CONTAINERS[0][0]}:{SERVER}
 }}
}}
"""


def make_modules(stage: Stage) -> None:
    """Translate for the interfaces of this file, too."""
    run(stage.near, "nft", "-f", "-", text=RULES)


@contextlib.contextmanager
def vlan(stage: Stage) -> Iterator[None]:
    """An interface for a VLAN on the uplink, at both ends."""
    near, far = stage.wire.near, stage.wire.far
    for one, other, here, there in ((near, far, VLAN_HERE, VLAN_THERE), (far, near, VLAN_THERE, VLAN_HERE)):
        one.namespace.ip(
            f"link add link {one.device} name {VLAN} type vlan id {NUMBER}",
            f"link set {VLAN} addrgenmode none up",
            f"address add {here}/24 dev {VLAN}",
            f"neighbour add {there} lladdr {other.mac} nud permanent dev {VLAN}",
        )
    try:
        yield
    finally:
        for one in (near, far):
            one.namespace.ip(f"link del {VLAN}")


def masqueraded(to: str, made: Callable[[Stage], contextlib.AbstractContextManager[None]]) -> Callable[[Stage], Judge]:
    """A container's TCP client, through such an interface."""

    def play(stage: Stage) -> Judge:
        with made(stage):
            words = ("--to", to, "--port", TCP_PORT, "--count", SENDS)
            return whose(*stage.play("tcp", "connects", *words, at=container(stage)))

    return play


def vlan_client(stage: Stage) -> Judge:
    """A client in a container, through the interface of a VLAN."""
    return masqueraded(VLAN_THERE, vlan)(stage)


def asked(stage: Stage, host: str, port: int) -> Judge:
    """TCP from outside to the server in a container."""
    server = stage.start("tcp", "serves", "--source-port", SERVER, "--count", SENDS, at=container(stage))
    owners = server.says()
    server.go()
    for _ in range(SENDS):
        finish(connect(stage.far, host, port))
    server.end()
    return whose(*owners)


def vlan_published(stage: Stage) -> Judge:
    """A published port at the address of a VLAN."""
    with vlan(stage):
        return asked(stage, VLAN_HERE, PUBLISHED)


@contextlib.contextmanager
def balanced(stage: Stage) -> Iterator[None]:
    """IPVS has a service at the host's address, whose server is in a container, like kube-proxy's."""
    address = f"{stage.wire.near.ipv4}:{BALANCED}"
    ipvs = partial(run, stage.near, "ipvsadm")
    for protocol in ("-t", "-u"):
        ipvs("-A", protocol, address, "-s", "rr")
        ipvs("-a", protocol, address, "-r", f"{CONTAINERS[0][0]}:{SERVER}", "-m")
    stage.near.sysctl(ipv4__vs__conntrack="1")
    try:
        yield
    finally:
        ipvs("-C")


def balanced_tcp(stage: Stage) -> Judge:
    """From outside."""
    with balanced(stage):
        return asked(stage, stage.wire.near.ipv4, BALANCED)


def balanced_udp(stage: Stage) -> Judge:
    """Datagrams from outside."""
    server = stage.start("udp", "answers", "--source-port", SERVER, "--count", SENDS, at=container(stage))
    owners = server.says()
    server.go()
    with balanced(stage), udp_socket(stage.far) as asking:
        for _ in range(SENDS):
            asking.sendto(b"?" * 9, (stage.wire.near.ipv4, BALANCED))
            asking.recv(2048)
    server.end()
    return whose(*owners)


def balanced_here(stage: Stage) -> Judge:
    """A client on the host itself."""
    with balanced(stage):
        return both_ends(None, stage.wire.near.ipv4, BALANCED)(stage)


@contextlib.contextmanager
def balanced_each(stage: Stage) -> Iterator[None]:
    """IPVS chooses a container for each datagram (one-packet scheduling), which answers from the host's address."""
    near = stage.wire.near
    address = f"{near.ipv4}:{BALANCED}"
    ipvs = partial(run, stage.near, "ipvsadm")
    ipvs("-A", "-u", address, "-s", "rr", "-o")
    for number, (ipv4, _, _) in enumerate(CONTAINERS):
        ipvs("-a", "-u", address, "-r", f"{ipv4}:{BALANCED}", "-g")
        container(stage, number).ip(f"address add {near.ipv4}/32 dev lo")
    stage.near.sysctl(**{f"ipv4__conf__{BRIDGE}__accept_local": "1"})
    try:
        yield
    finally:
        ipvs("-C")
        for number in range(len(CONTAINERS)):
            container(stage, number).ip(f"address del {near.ipv4}/32 dev lo")


def balanced_datagrams(stage: Stage) -> Judge:
    """Datagrams of one client, to one server after the other."""
    host, owners = stage.wire.near.ipv4, {}
    words = ("--address", host, "--source-port", BALANCED, "--count", SENDS)
    with balanced_each(stage), udp_socket(stage.far) as asking:
        servers = [stage.start("udp", "answers", *words, at=container(stage, number)) for number in range(2)]
        for server in servers:
            server.says()
            server.go()
        for number in range(SENDS):
            asked = b"of a server %d." % number
            asking.sendto(asked, (host, BALANCED))
            _, tgid, tid, _, _ = SIGNATURE.unpack(asking.recv(2048))
            owners[asked] = Label("server", tgid, tid)
        for server in servers:
            server.close()
    assert len(set(owners.values())) == 2

    def right(frame: Frame) -> Right:
        if frame.signature:
            return [frame.signature]
        found = next((owner for asked, owner in owners.items() if asked in frame.data), None)
        return found and [found]

    return right


@contextlib.contextmanager
def sites(stage: Stage) -> Iterator[list[Namespace]]:
    """Two VRFs, each with an interface to a site; the addresses are the same."""
    with contextlib.ExitStack() as stack:
        made = []
        for number, site in enumerate(SITES):
            there = Namespace()
            made.append(there)
            stack.callback(there.close)
            stage.near.ip(
                f"link add {site} type vrf table {200 + number}",
                f"link add {site}0 address {SITE_MACS[0]} type veth "
                f"peer eth0 address {SITE_MACS[1]} netns {there.name}",
                f"link set {site} up",
                f"link set {site}0 master {site} addrgenmode none up",
                f"address add {SITE_HERE}/24 dev {site}0",
                f"neighbour add {SITE_THERE} lladdr {SITE_MACS[1]} nud permanent dev {site}0",
            )
            there.ip(
                "link set eth0 addrgenmode none up",
                f"address add {SITE_THERE}/24 dev eth0",
                f"neighbour add {SITE_HERE} lladdr {SITE_MACS[0]} nud permanent dev eth0",
            )
        try:
            yield made
        finally:
            for site in SITES:
                stage.near.ip(f"link del {site}0", f"link del {site}")


def in_vrfs(stage: Stage) -> Judge:
    """A server in each VRF, at one address and port, asked from one address and port: site by site, then in turns."""
    words = ("--source-port", SERVER, "--count", 2 * SENDS)
    owners = {}
    with sites(stage) as there, contextlib.ExitStack() as stack:
        servers = [stage.start("udp", "answers", "--device", site, *words) for site in SITES]
        for site, server in zip(SITES, servers, strict=True):
            owners[site.encode()] = server.says()
            server.go()
        asking = [stack.enter_context(udp_socket(one, SITE_THERE, CLIENT)) for one in there]
        turns = [0] * SENDS + [1] * SENDS + [0, 1] * SENDS
        for number in turns:
            asking[number].sendto(b"to %s, please" % SITES[number].encode(), (SITE_HERE, SERVER))
            asking[number].recv(2048)
        for server in servers:
            server.end()

    def right(frame: Frame) -> Right:
        if frame.protocol != UDP or CLIENT not in frame.ports:
            return None
        if frame.signature:
            return [frame.signature]
        return next(found for site, found in owners.items() if b"to %s, please" % site in frame.data)

    return right


@contextlib.contextmanager
def geneve(stage: Stage) -> Iterator[None]:
    """A network of the containers that goes on at the far end."""
    near, far = stage.wire.near, stage.wire.far
    stage.near.ip(
        f"link add {GENEVE} type geneve id {NUMBER} remote {far.ipv4}",
        f"link set {GENEVE} master {BRIDGE} addrgenmode none up",
    )
    stage.far.ip(
        f"link add {GENEVE} address {GENEVE_MAC} type geneve id {NUMBER} remote {near.ipv4}",
        f"link set {GENEVE} addrgenmode none up",
        f"address add {GENEVE_THERE}/24 dev {GENEVE}",
        *(f"neighbour add {ipv4} lladdr {mac} nud permanent dev {GENEVE}" for ipv4, _, mac in CONTAINERS),
    )
    container(stage).ip(f"neighbour replace {GENEVE_THERE} lladdr {GENEVE_MAC} nud permanent dev eth0")
    try:
        yield
    finally:
        for namespace in (stage.near, stage.far):
            namespace.ip(f"link del {GENEVE}")


def wg(namespace: Namespace, *words: str, text: str = "") -> str:
    """Run WireGuard's program in a namespace; returns what it says."""
    command = ["ip", "netns", "exec", namespace.name, "wg", *words]
    done = subprocess.run(command, input=text, text=True, check=True, capture_output=True, timeout=DEADLINE_S)
    return done.stdout.strip()


@contextlib.contextmanager
def wireguard(stage: Stage) -> Iterator[None]:
    """An encrypted network to the far end."""
    near, far = stage.wire.near, stage.wire.far
    secrets = [wg(stage.near, "genkey") for _ in range(2)]
    publics = [wg(stage.near, "pubkey", text=secret) for secret in secrets]
    for one, other, secret, public, here in (
        (near, far, secrets[0], publics[1], WIREGUARD_HERE),
        (far, near, secrets[1], publics[0], WIREGUARD_THERE),
    ):
        one.namespace.ip(f"link add {WIREGUARD} type wireguard")
        peer = ("peer", public, "allowed-ips", "0.0.0.0/0", "endpoint", f"{other.ipv4}:{WIREGUARD_PORT}")
        words = ("set", WIREGUARD, "listen-port", str(WIREGUARD_PORT), "private-key", "/dev/stdin", *peer)
        wg(one.namespace, *words, text=secret)
        one.namespace.ip(f"link set {WIREGUARD} up", f"address add {here}/24 dev {WIREGUARD}")
    try:
        yield
    finally:
        for namespace in (stage.near, stage.far):
            namespace.ip(f"link del {WIREGUARD}")


def outer_unknown(play: Callable[[Stage], Judge], port: int) -> Callable[[Stage], Judge]:
    """The outer packets that are received can be for any process behind the tunnel."""

    def under(stage: Stage) -> Judge:
        inner = play(stage)

        def right(frame: Frame) -> Right:
            is_outer = frame.protocol == UDP and port in frame.ports
            if not is_outer:
                return inner(frame)
            return inner(frame) if frame.is_sent else "unknown"

        return right

    return under


def geneve_client(stage: Stage) -> Judge:
    """A container's connections to another machine of its network."""
    return outer_unknown(masqueraded(GENEVE_THERE, geneve), GENEVE_PORT)(stage)


def wireguard_client(stage: Stage) -> Judge:
    """A container's connections through an encrypted network."""
    return outer_unknown(masqueraded(WIREGUARD_THERE, wireguard), WIREGUARD_PORT)(stage)


def wireguard_host(stage: Stage) -> Judge:
    """The same by a process of the host."""

    def play(stage: Stage) -> Judge:
        with wireguard(stage):
            words = ("--to", WIREGUARD_THERE, "--port", TCP_PORT, "--count", SENDS)
            return whose(*stage.play("tcp", "connects", *words))

    return outer_unknown(play, WIREGUARD_PORT)(stage)


VLAN_KIND, VRF_KIND = "link lower0 name upper0 type vlan id 7", "upper0 type vrf table 10"
GENEVE_KIND, WIREGUARD_KIND = "upper0 type geneve id 7 remote 10.0.0.1", "upper0 type wireguard"
SCENARIOS = [
    Scenario("masqueraded TCP client, VLAN interface", vlan_client, SENDS * 20, vm=True, needs=VLAN_KIND),
    Scenario("published TCP port, VLAN interface", vlan_published, SENDS * 20, SENDS * 12, vm=True, needs=VLAN_KIND),
    Scenario("UDP servers of two VRFs with the same addresses", in_vrfs, SENDS * 8, 2, vm=True, needs=VRF_KIND),
    Scenario("TCP, IPVS", balanced_tcp, SENDS * 18, SENDS * 9, vm=True, needs="ipvs"),
    Scenario("UDP, IPVS", balanced_udp, SENDS * 6, 3, vm=True, needs="ipvs"),
    Scenario("TCP client of the host, IPVS", balanced_here, SENDS * 6, SENDS * 3, vm=True, needs="ipvs"),
    Scenario(
        "UDP, IPVS, each datagram to another server",
        balanced_datagrams,
        SENDS * 6,
        SENDS * 3 + 3,
        vm=True,
        needs="ipvs",
    ),
    Scenario("GENEVE", geneve_client, SENDS * 12, SENDS * 3, vm=True, needs=GENEVE_KIND),
    Scenario("WireGuard, a container", wireguard_client, SENDS * 12, SENDS * 8, vm=True, needs=WIREGUARD_KIND),
    Scenario("WireGuard, the host", wireguard_host, SENDS * 9, SENDS * 3, vm=True, needs=WIREGUARD_KIND),
]
