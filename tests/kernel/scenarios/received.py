"""Received packets: whoever gets them here, never who sent them there."""

from __future__ import annotations

from tests.kernel.payloads import ICMP, UDP
from tests.kernel.sink import TCP_PORT
from tests.kernel.stage import FEW_TRACEPOINTS, Scenario, Stage, udp_socket
from tests.kernel.verdict import Frame, Judge, Right, by_signature
from tests.support.blocks import Label

SENDS = 23
BOUND_PORT, CONNECTED_PORT, GROUP_PORT, SHARED_PORT, CLOSED_PORT = 40_111, 40_123, 40_127, 40_129, 40_151
GROUP = "239.67.0.1"
ABOVE, ABOVE_MAC, ABOVE_HERE, ABOVE_THERE = "above0", "52:67:71:73:79:83", "10.89.0.1", "10.89.0.2"


def ask(stage: Stage, to: str, port: int, count: int = SENDS) -> None:
    """Send datagrams from the far end."""
    with udp_socket(stage.far, stage.wire.far.ipv4) as sender:
        for _ in range(count):
            sender.sendto(b"?", (to, port))


def bound(stage: Stage) -> Judge:
    """A socket that is only bound."""
    player = stage.start("receivers", "bound", "--port", BOUND_PORT, "--count", SENDS)
    owners = player.says()
    player.go()
    ask(stage, stage.wire.near.ipv4, BOUND_PORT)
    player.end()
    return by_signature(received=owners)


def connected(stage: Stage) -> Judge:
    """A socket with an address of its own, beside one that would take the rest."""
    with udp_socket(stage.far, stage.wire.far.ipv4) as sender:
        to = ("--to", stage.wire.far.ipv4, "--to-port", sender.getsockname()[1])
        player = stage.start("receivers", "connected", "--port", CONNECTED_PORT, *to, "--count", SENDS)
        owners = player.says()
        player.go()
        for _ in range(SENDS):
            sender.sendto(b"?", (stage.wire.near.ipv4, CONNECTED_PORT))
        player.end()
    return by_signature(received=owners)


def make_above(stage: Stage) -> None:
    """Make a macvlan device on the wire's near end, in a namespace of its own, as for a container."""
    near, far, there = stage.wire.near, stage.wire.far, stage.add_namespace(ABOVE)
    stage.near.ip(
        f"link add {ABOVE} link {near.device} netns {there.name} address {ABOVE_MAC} type macvlan mode bridge"
    )
    there.ip(
        f"link set {ABOVE} addrgenmode none up",
        f"address add {ABOVE_HERE}/24 dev {ABOVE}",
        f"neighbour add {ABOVE_THERE} lladdr {far.mac} nud permanent dev {ABOVE}",
    )
    far.namespace.ip(
        f"address add {ABOVE_THERE}/24 dev {far.device}",
        f"neighbour add {ABOVE_HERE} lladdr {ABOVE_MAC} nud permanent dev {far.device}",
    )


def above_udp(stage: Stage) -> Judge:
    """A socket in the namespace of a macvlan device: for the device below, the datagrams are for another machine."""
    player = stage.start("receivers", "bound", "--port", BOUND_PORT, "--count", SENDS, at=stage.others[ABOVE])
    owners = player.says()
    player.go()
    ask(stage, ABOVE_HERE, BOUND_PORT)
    player.end()
    return by_signature(received=owners)


def above_tcp(stage: Stage) -> Judge:
    """A client in that namespace."""
    words = ("--to", ABOVE_THERE, "--port", TCP_PORT, "--count", SENDS)
    users = stage.play("tcp", "connects", *words, at=stage.others[ABOVE])
    return by_signature(users, users)


def group(stage: Stage) -> Judge:
    """One packet, two receivers: neither alone is the whole truth, so either may be named, or nobody."""
    words = ("--to", GROUP, "--address", stage.wire.near.ipv4)
    player = stage.start("receivers", "group", "--port", GROUP_PORT, *words, "--count", SENDS)
    owners = player.says()
    ask(stage, GROUP, GROUP_PORT)
    player.end()
    return by_signature(received=owners)


def shared_port(stage: Stage) -> Judge:
    """Which of the two gets a datagram is the kernel's choice, made later."""
    player = stage.start("receivers", "shared_port", "--port", SHARED_PORT)
    owners = player.says()
    ask(stage, stage.wire.near.ipv4, SHARED_PORT)
    player.go()
    player.end()
    return by_signature(received=owners)


def echo_reply(way: str, name: str) -> Scenario:
    """The reply is the asker's; the request that comes from the far end is the kernel's to answer."""

    def play(stage: Stage) -> Judge:
        to = stage.wire.far.ipv4
        owners: list[Label] = stage.play("datagrams", way, "--comm", way, "--count", SENDS, "--size", 56, "--to", to)

        def right(frame: Frame) -> Right:
            return owners if frame.protocol == ICMP and not frame.is_sent else None

        return right

    return Scenario(name, play, SENDS)


def nobody(stage: Stage) -> Judge:
    """A port that is closed."""
    ask(stage, stage.wire.near.ipv4, CLOSED_PORT)

    def right(frame: Frame) -> Right:
        return "unknown" if frame.protocol == UDP else None

    return right


# Where a receive cannot be seen the socket's holder is looked for, and these have ended by then.
UNSEEN = {FEW_TRACEPOINTS: SENDS}

SCENARIOS = [
    Scenario("received UDP, bound socket", bound, SENDS, unknown_by=UNSEEN, vm=True),
    Scenario("received UDP, connected socket", connected, SENDS, unknown_by=UNSEEN),
    Scenario("received UDP through a macvlan device", above_udp, SENDS, unknown_by=UNSEEN, vm=True),
    Scenario("received TCP through a macvlan device", above_tcp, SENDS * 6),
    Scenario("received multicast, two members", group, SENDS, SENDS),
    Scenario("received UDP, SO_REUSEPORT", shared_port, SENDS, SENDS),
    echo_reply("ping", "echo reply to a ping socket"),
    echo_reply("icmp", "echo reply to a raw socket"),
    Scenario("received UDP for nobody", nobody, SENDS, SENDS),
]
