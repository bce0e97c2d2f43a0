"""On a host with containers (passing.py): ports and addresses of two processes, at once or one after the other."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from tests.kernel.namespace import Namespace
from tests.kernel.payloads import UDP
from tests.kernel.scenarios.passing import SENDS, container, echoing
from tests.kernel.scenarios.stealing import run
from tests.kernel.stage import Scenario, Stage, udp_socket
from tests.kernel.verdict import Frame, Judge, Right
from tests.support.blocks import Label

AGAIN, COLLIDING = 40_439, 40_459
LINKS, GATEWAY, TWIN = ("twin0", "twin1"), "10.76.0.1", "10.76.0.2"
MACS = ("02:76:00:00:00:01", "02:76:00:00:00:02")
MARK = 70
# Each twin has a zone of conntrack; what answers it is told apart by the port that masquerade has chosen.
RULES = f"""
table ip twins {{
 chain zones {{
  type filter hook prerouting priority -300
  iifname "{LINKS[0]}" ct original zone set {MARK}
  iifname "{LINKS[1]}" ct original zone set {MARK + 1}
 }}
 chain marks {{
  type filter hook prerouting priority -150
  iifname "{LINKS[0]}" ct mark set {MARK}
  iifname "{LINKS[1]}" ct mark set {MARK + 1}
  iifname "near0" meta mark set ct mark
 }}
 chain post {{
  type nat hook postrouting priority 100
  oifname "near0" ip saddr {TWIN} masquerade
 }}
}}
"""


def peer_first(stage: Stage) -> Judge:
    """A port of the host that another process has by now, and the peer of the one before sends first."""
    words = ("--source-port", AGAIN, "--to", stage.wire.far.ipv4)
    with udp_socket(stage.far) as peer:
        player = stage.start(
            *("datagrams", "udp", "--comm", "before", "--size", 56, "--count", 1, "--answered", *words),
            *("--port", peer.getsockname()[1]),
        )
        data, address = peer.recvfrom(2048)
        peer.sendto(data, address)
        before = player.end()
        server = stage.start("udp", "answers", "--source-port", AGAIN, "--count", SENDS)
        owners = server.says()
        server.go()
        for _ in range(SENDS):
            peer.sendto(b"to the next", address)
            peer.recv(2048)
        server.end()

    def right(frame: Frame) -> Right:
        if AGAIN not in frame.ports:
            return None
        return before if frame.ids else owners

    return right


def owned_by(labels: list[Label]) -> Judge:
    """Judge datagrams and their echoes by the ids in them."""

    def right(frame: Frame) -> Right:
        is_theirs = frame.protocol == UDP and frame.ids
        return [one for one in labels if frame.ids == (one.tgid, one.tid)] if is_theirs else None

    return right


def at_once(stage: Stage, *places: Namespace) -> Judge:
    """Senders in namespaces with one source port and one destination, at the same time.

    Their first datagrams are sent one after the other: conntrack drops one of two that get the same port for their
    answers before either is confirmed (nf_ct_resolve_clash in net/netfilter/nf_conntrack_core.c).
    """
    labels: list[Label] = []
    with echoing(stage, len(places) * SENDS) as port:
        words = ("--size", 56, "--source-port", COLLIDING, "--to", stage.wire.far.ipv4)
        more = ("--port", port, "--count", SENDS, "--answered", "--held")
        players = []
        for number, place in enumerate(places):
            players.append(stage.start("datagrams", "udp", "--comm", f"once-{number}", *words, *more, at=place))
            players[-1].says()
        for player in players:
            player.go()
        for player in players:
            labels += player.end()
    return owned_by(labels)


def colliding(stage: Stage) -> Judge:
    """Two containers: masquerade gives one of them another port."""
    return at_once(stage, container(stage), container(stage, 1))


@contextlib.contextmanager
def twins(stage: Stage) -> Iterator[list[Namespace]]:
    """Two namespaces with the same addresses, each on a link of its own, as separate networks of containers have."""
    places = []
    with contextlib.ExitStack() as stack:
        stage.near.sysctl(ipv4__conf__near0__rp_filter="0")
        for number, link in enumerate(LINKS):
            there = Namespace()
            stack.callback(there.close)
            places.append(there)
            stage.near.ip(
                f"link add {link} address {MACS[0]} type veth peer eth0 address {MACS[1]} netns {there.name}",
                f"link set {link} addrgenmode none up",
                f"neighbour add {TWIN} lladdr {MACS[1]} nud permanent dev {link}",
                f"route add {TWIN}/32 dev {link} table {MARK + number}",
                f"rule add fwmark {MARK + number} lookup {MARK + number}",
            )
            there.ip(
                "link set eth0 addrgenmode none up",
                f"address add {TWIN}/24 dev eth0",
                f"neighbour add {GATEWAY} lladdr {MACS[0]} nud permanent dev eth0",
                f"route add default via {GATEWAY}",
            )
        run(stage.near, "nft", "-f", "-", text=RULES)
        yield places
        run(stage.near, "nft", "delete", "table", "ip", "twins")
        for number, link in enumerate(LINKS):
            stage.near.ip(f"link del {link}", f"rule del fwmark {MARK + number} lookup {MARK + number}")


def same_address(stage: Stage) -> Judge:
    """At the same time, with the same source port."""
    with twins(stage) as places:
        return at_once(stage, *places)


SCENARIOS = [
    Scenario("UDP port used again, the peer sends first, on a host that translates", peer_first, SENDS * 2 + 2, 1),
    Scenario("two containers at one port at the same time", colliding, SENDS * 12),
    Scenario("two containers with the same address", same_address, SENDS * 4),
]
