"""Received packets name the receiver, never the sender."""

from __future__ import annotations

import socket
from collections.abc import Callable

from tests.kernel.payloads import ICMP, UDP
from tests.kernel.scenarios.others import AnyThread
from tests.kernel.scenarios.tcp import UNACCEPTED
from tests.kernel.sink import TCP_PORT
from tests.kernel.stage import FEW_TRACEPOINTS, PUT_OFF, Player, Scenario, Stage, connect, udp_socket
from tests.kernel.verdict import Frame, Judge, Right, by_signature
from tests.support.blocks import Label

SENDS = 23
BOUND_PORT, CONNECTED_PORT, GROUP_PORT, SHARED_PORT, CLOSED_PORT = 40_111, 40_123, 40_127, 40_129, 40_151
THREADS_PORT, WORKERS_PORT, EXTENDED_PORT, SIBLINGS_PORT = 40_177, 40_189, 40_193, 40_213
ECHO_REPLY = 0
WORKERS = "TCP listener older than the capture, of a master and its workers"
GROUP = "239.67.0.1"
SYN = 0x02
PADDING = bytes((0, 0, 1, 4, 0, 0, 0, 0))  # an extension header without content
ABOVE, ABOVE_MAC, ABOVE_HERE, ABOVE_THERE = "above0", "52:67:71:73:79:83", "10.89.0.1", "10.89.0.2"


def ask(stage: Stage, to: str, port: int, count: int = SENDS, content: bytes = b"?") -> None:
    """Send datagrams from the far end."""
    with udp_socket(stage.far, stage.wire.far.ipv4) as sender:
        for _ in range(count):
            sender.sendto(content, (to, port))


def bound(stage: Stage) -> Judge:
    """A socket that is only bound."""
    player = stage.start("receivers", "bound", "--port", BOUND_PORT, "--count", SENDS)
    owners = player.says()
    player.go()
    ask(stage, stage.wire.near.ipv4, BOUND_PORT)
    player.end()
    return by_signature(received=owners)


def last_address(addresses: int, *, ipv6: bool = False) -> Callable[[Stage], Judge]:
    """A socket of all addresses, and the last one in the list of an interface: of IPv6 the oldest."""

    def play(stage: Stage) -> Judge:
        near, far = stage.wire.near, stage.wire.far
        net, bits, flag = ("fd00:91::", 128, "nodad") if ipv6 else ("10.91.0.", 32, "")
        hosts = [f"{net}{number}" for number in range(1, addresses)]
        near.namespace.ip(*(f"address add {host}/{bits} dev {near.device} {flag}" for host in hosts))
        to = hosts[0 if ipv6 else -1]
        far.namespace.ip(f"route add {to} via {near.ipv6 if ipv6 else near.ipv4}")
        player = stage.start("receivers", "bound_6" if ipv6 else "bound", "--port", BOUND_PORT, "--count", SENDS)
        owners = player.says()
        player.go()
        with udp_socket(stage.far, far.ipv6 if ipv6 else far.ipv4) as sender:
            for _ in range(SENDS):
                sender.sendto(b"last", (to, BOUND_PORT))
        player.end()
        far.namespace.ip(f"route del {to}")
        near.namespace.ip(*(f"address del {host}/{bits} dev {near.device}" for host in hosts))
        return by_content(b"last", owners)

    return play


def connected(stage: Stage) -> Judge:
    """A socket with its own address, beside one that would receive the rest."""
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
    """A socket in the namespace of a macvlan interface: for the interface below, the datagrams are
    for another machine.
    """
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
    """One packet, two receivers: one of them may be named, or none."""
    words = ("--to", GROUP, "--address", stage.wire.near.ipv4)
    player = stage.start("receivers", "group", "--port", GROUP_PORT, *words, "--count", SENDS)
    owners = player.says()
    ask(stage, GROUP, GROUP_PORT)
    player.end()
    return by_signature(received=owners)


def shared_port(stage: Stage) -> Judge:
    """The kernel chooses later which of the two gets a datagram."""
    player = stage.start("receivers", "shared_port", "--port", SHARED_PORT)
    owners = player.says()
    ask(stage, stage.wire.near.ipv4, SHARED_PORT)
    player.go()
    player.end()
    return by_signature(received=owners)


def threads_share(stage: Stage) -> Judge:
    """The kernel chooses which socket of a process gets a datagram: only the thread is not certain."""
    player = stage.start("receivers", "threads_share", "--port", THREADS_PORT, "--count", SENDS)
    owners = player.says()
    # Until a thread has returned from its system call, a child of the process could have had the sockets, too.
    ask(stage, stage.wire.near.ipv4, THREADS_PORT, 1, b"first of threads")
    stage.wait_until_written(b"first of threads")
    ask(stage, stage.wire.near.ipv4, THREADS_PORT, SENDS - 1, b"to threads")
    player.says()
    stage.wait_until_written(b"to threads")  # /proc has been asked
    player.go()
    player.end()
    return by_signature(received=owners)


def threads_listen(stage: Stage) -> Judge:
    """The same with TCP; once a thread has the connection, the thread is certain."""
    player = stage.start("receivers", "threads_share", "--stream", "--port", THREADS_PORT, "--count", SENDS)
    [owner] = player.says()
    for _ in range(SENDS):
        with connect(stage.far, stage.wire.near.ipv4, THREADS_PORT) as connection:
            connection.sendall(b"?")
            connection.recv(1)
    player.says()
    player.go()
    player.end()

    def right(frame: Frame) -> Right:
        return AnyThread(owner) if THREADS_PORT in frame.ports else None

    return right


def start_workers(stage: Stage) -> tuple[Player, list[socket.socket]]:
    """Listen before the capture."""
    player = stage.start("receivers", "workers", "--port", WORKERS_PORT)
    player.says()
    return player, []


def workers(stage: Stage) -> Judge:
    """Until a worker has accepted a connection it can belong to any of them, or to the master: all
    have a name in common.
    """
    player, _ = stage.early[WORKERS]
    player.go()
    processes = player.says()
    for number in range(SENDS):
        with connect(stage.far, stage.wire.near.ipv4, WORKERS_PORT) as connection:
            connection.sendall(b"to workers")
            connection.recv(1)
        if not number:
            stage.wait_until_written(b"to workers")  # /proc has been asked
    player.go()
    player.end()
    common = Label(processes[0].comm, 0, 0)

    def right(frame: Frame) -> Right:
        if WORKERS_PORT not in frame.ports:
            return None
        return [common] if frame.tcp_flags & SYN else [common, *processes]

    return right


def siblings(stage: Stage) -> Judge:
    """The port is still known when the listener that was last used has been closed."""
    player = stage.start("receivers", "siblings", "--port", SIBLINGS_PORT)
    owners = player.says()
    for _ in range(SENDS):
        with connect(stage.far, stage.wire.near.ipv4, SIBLINGS_PORT) as connection:
            connection.sendall(b"?")
            connection.recv(1)
    player.go()
    player.end()

    def right(frame: Frame) -> Right:
        return owners if SIBLINGS_PORT in frame.ports else None

    return right


def extended(name: str, option: int) -> Scenario:
    """Datagrams with an extension header of IPv6."""

    def play(stage: Stage) -> Judge:
        player = stage.start("receivers", "bound_6", "--port", EXTENDED_PORT, "--count", SENDS)
        owners = player.says()
        player.go()
        with stage.far.do(socket.socket, socket.AF_INET6, socket.SOCK_DGRAM) as sender:
            sender.setsockopt(socket.IPPROTO_IPV6, option, PADDING)
            for _ in range(SENDS):
                sender.sendto(b"extended", (stage.wire.near.ipv6, EXTENDED_PORT))
        player.end()
        return by_content(b"extended", owners)

    return Scenario(f"received UDP, {name}", play, SENDS)


def fragments(version: int) -> Scenario:
    """Datagrams in three fragments; the first one has the ports."""

    def play(stage: Stage) -> Judge:
        player = stage.start("receivers", "bound_6", "--port", EXTENDED_PORT, "--count", SENDS)
        owners = player.says()
        player.go()
        family = socket.AF_INET6 if version == 6 else socket.AF_INET
        to = stage.wire.near.ipv6 if version == 6 else stage.wire.near.ipv4
        with stage.far.do(socket.socket, family, socket.SOCK_DGRAM) as sender:
            for _ in range(SENDS):
                sender.sendto(b"fragment" * 500, (to, EXTENDED_PORT))
        player.end()
        return by_content(b"fragment", owners)

    return Scenario(f"received UDP, fragments of IPv{version}", play, SENDS * 3)


def by_content(content: bytes, owners: list[Label]) -> Judge:
    """Judge what is received with a content."""

    def right(frame: Frame) -> Right:
        return owners if content in frame.data and not frame.is_sent else None

    return right


def echo_reply(way: str, name: str) -> Scenario:
    """The reply belongs to the process that sent the request; the kernel answers the request of the
    far end.
    """

    def play(stage: Stage) -> Judge:
        words = ("--comm", way, "--count", SENDS, "--size", 56, "--to", stage.wire.far.ipv4, "--answered")
        owners: list[Label] = stage.play("datagrams", way, *words)

        def right(frame: Frame) -> Right:
            return owners if frame.protocol == ICMP and frame.message == ECHO_REPLY and not frame.is_sent else None

        return right

    return Scenario(name, play, SENDS)


def nobody(stage: Stage) -> Judge:
    """A port that is closed."""
    ask(stage, stage.wire.near.ipv4, CLOSED_PORT)

    def right(frame: Frame) -> Right:
        return "unknown" if frame.protocol == UDP else None

    return right


# If a receive cannot be seen, the processes that have the socket open are looked up, and these have
# ended by then.
UNSEEN = {FEW_TRACEPOINTS: SENDS}

SCENARIOS = [
    Scenario("received UDP, bound socket", bound, SENDS, unknown_by=UNSEEN, vm=True),
    Scenario("received UDP at the last of 24 addresses", last_address(24), SENDS, unknown_by=UNSEEN),
    Scenario(
        "received UDP at the last of 24 addresses, IPv6", last_address(24, ipv6=True), SENDS, unknown_by=UNSEEN, vm=True
    ),
    Scenario("received UDP at the last of 70 addresses", last_address(70), SENDS, SENDS),
    Scenario("received UDP at the last of 70 addresses, IPv6", last_address(70, ipv6=True), SENDS, SENDS),
    Scenario("received UDP, connected socket", connected, SENDS, unknown_by=UNSEEN),
    Scenario("received UDP through a macvlan interface", above_udp, SENDS, unknown_by=UNSEEN, vm=True),
    Scenario("received TCP through a macvlan interface", above_tcp, SENDS * 6),
    Scenario("received multicast, two members", group, SENDS, SENDS),
    Scenario("received UDP, SO_REUSEPORT", shared_port, SENDS, SENDS),
    Scenario("received UDP, SO_REUSEPORT by threads", threads_share, SENDS, 3 * PUT_OFF, searched=True),
    Scenario("received TCP, SO_REUSEPORT by threads", threads_listen, SENDS * 5, SENDS * UNACCEPTED),
    Scenario("received TCP, SO_REUSEPORT, one of two has gone", siblings, SENDS * 5, SENDS * UNACCEPTED),
    Scenario(WORKERS, workers, SENDS * 5, SENDS * UNACCEPTED, early=start_workers, searched=True),
    extended("hop-by-hop options", socket.IPV6_HOPOPTS),
    extended("destination options", socket.IPV6_DSTOPTS),
    fragments(4),
    fragments(6),
    echo_reply("ping", "echo reply to a ping socket"),
    echo_reply("icmp", "echo reply to a raw socket"),
    Scenario("received UDP for nobody", nobody, SENDS, SENDS),
]
