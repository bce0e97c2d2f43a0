"""Several sockets at one port, or several processes at one socket: whose is what comes in?

Who else could have the port gets nothing: it listens on another device, for another address, for IPv6 only, or no more.
Where a socket is open in several processes, any of them may take a connection or a datagram: what is said of it is what
they have in common, and never the number of one of them.
"""

from __future__ import annotations

import socket
from collections.abc import Callable

from tests.kernel.scenarios.tcp import CONNECTIONS, UNACCEPTED, UNNAMED
from tests.kernel.send.tcp import finish
from tests.kernel.stage import FEW_TRACEPOINTS, PUT_OFF, Player, Scenario, Stage, connect, udp_socket
from tests.kernel.verdict import Frame, Judge, Right
from tests.support.blocks import Label

PORT = 40_231
SENDS = 23
SYN, ACK = 0x02, 0x10
EVERYWHERE = "::"


def listens(stage: Stage, way: str, comm: str, *more: str | int, port: int = PORT) -> tuple[Player, list[Label]]:
    """Start a server; give it, and who it is, when it is ready."""
    player = stage.start("listeners", way, "--comm", comm, "--port", port, *more)
    return player, player.says()


def visit(stage: Stage, to: str, content: bytes = b"visit", count: int = CONNECTIONS) -> None:
    """Connect from the far end, again and again."""
    for _ in range(count):
        connection = connect(stage.far, to, PORT)
        connection.sendall(content)
        finish(connection)


def at(port: int, owners: list[Label]) -> Judge:
    """Judge all packets of a port: its server's."""

    def right(frame: Frame) -> Right:
        return owners if port in frame.ports else None

    return right


def beside(*more: str, others: list[tuple[str | int, ...]], late: bool = True) -> Callable[[Stage], Judge]:
    """A server that gets the connections, and others that could have been it, which listen after (`late`) or before."""

    def start_others(stage: Stage) -> list[Player]:
        return [listens(stage, str(way), f"other-{number}", *words)[0] for number, (way, *words) in enumerate(others)]

    def play(stage: Stage) -> Judge:
        players = [] if late else start_others(stage)
        words = [word.format(near=stage.wire.near) for word in more]
        server, owners = listens(stage, "serves", "server", *words, "--count", CONNECTIONS)
        if late:
            players = start_others(stage)
        server.go()
        visit(stage, stage.wire.near.ipv4)
        server.end()
        for player in players:
            player.go()
            player.end()
        return at(PORT, owners)

    return play


def refused(stage: Stage) -> Judge:
    """A listener that takes IPv6 only gets nothing of IPv4: nobody does."""
    player, _ = listens(stage, "idles", "other", "--address", EVERYWHERE, "--v6only", 1)
    for _ in range(CONNECTIONS):
        with stage.far.do(socket.socket) as connection:
            connection.connect_ex((stage.wire.near.ipv4, PORT))
    player.go()
    player.end()

    def right(frame: Frame) -> Right:
        if PORT not in frame.ports:
            return None
        return "kernel" if frame.is_sent else "unknown"

    return right


def pool(stage: Stage) -> Judge:
    """Until a worker has accepted a connection it may become any one's, or the master's."""
    player, processes = listens(stage, "pool", "pool")
    visit(stage, stage.wire.near.ipv4, b"first", 1)
    stage.wait_until_written(b"first")
    visit(stage, stage.wire.near.ipv4)
    visit(stage, stage.wire.near.ipv4, b"last", 1)
    stage.wait_until_written(b"last")
    player.go()
    player.end()
    common = Label("pool", 0, 0)

    def right(frame: Frame) -> Right:
        if PORT not in frame.ports:
            return None
        if frame.tcp_flags & SYN:
            return [common]
        return [frame.signature] if frame.signature else [common, *processes]

    return right


def ask(stage: Stage, count: int, content: bytes) -> None:
    """Send datagrams to the port, and wait for an answer to each: /proc is asked before the second, and at the end."""
    with udp_socket(stage.far) as asking:
        for number in range(count):
            asking.sendto(content + b"%d." % number, (stage.wire.near.ipv4, PORT))
            asking.recv(2048)
            if number in (0, count - 1):
                stage.wait_until_written(content + b"%d." % number)


def pool_udp(stage: Stage) -> Judge:
    """Which worker gets a datagram is not known; who answers is."""
    player, _ = listens(stage, "pool_udp", "pool")
    ask(stage, SENDS, b"of a pool")
    player.go()
    player.end()
    common = Label("pool", 0, 0)

    def right(frame: Frame) -> Right:
        if PORT not in frame.ports:
            return None
        return [frame.signature] if frame.signature else [common]

    return right


def grows(stage: Stage) -> Judge:
    """At first all sockets of the port are one process's, later they are two's."""
    player, owners = listens(stage, "grows", "grows", "--reuseport")
    ask(stage, SENDS, b"before")
    player.go()
    player.says()
    ask(stage, SENDS, b"after")
    player.go()
    player.end()
    before, after = Label("grows", owners[0].tgid, 0), Label("grows", 0, 0)

    def right(frame: Frame) -> Right:
        if PORT not in frame.ports:
            return None
        if frame.signature:
            return [frame.signature]
        return [before] if b"before" in frame.data else [after]

    return right


UNTIL_ACCEPTED = CONNECTIONS * UNACCEPTED
SCENARIOS = [
    Scenario(
        "TCP listeners of two interfaces",
        beside("--device", "{near.device}", others=[("idles", "--device", "lo")]),
        CONNECTIONS * 6,
        UNTIL_ACCEPTED,
    ),
    Scenario(
        "TCP listener beside one of another interface",
        beside("--reuseport", others=[("idles", "--reuseport", "--device", "lo")]),
        CONNECTIONS * 6,
        UNTIL_ACCEPTED,
    ),
    Scenario(
        "TCP listener beside one of another address",
        beside("--reuseport", others=[("idles", "--reuseport", "--address", "127.0.0.1")]),
        CONNECTIONS * 6,
        UNTIL_ACCEPTED,
    ),
    Scenario(
        "TCP listener, one of its address has gone",
        beside(others=[("gone", "--address", "192.168.178.24")], late=False),
        CONNECTIONS * 6,
        UNTIL_ACCEPTED,
    ),
    Scenario(
        "TCP listener of IPv4 and IPv6, one of IPv4 has gone",
        beside("--address", EVERYWHERE, others=[("gone",)], late=False),
        CONNECTIONS * 6,
        UNTIL_ACCEPTED,
    ),
    Scenario(
        "TCP listener beside one of IPv6 only",
        beside(others=[("idles", "--address", EVERYWHERE, "--v6only", "1")]),
        CONNECTIONS * 6,
        UNTIL_ACCEPTED,
    ),
    Scenario("TCP over IPv4 to a listener of IPv6 only", refused, CONNECTIONS * 2, CONNECTIONS),
    Scenario(
        "TCP, a master and its workers",
        pool,
        CONNECTIONS * 6,
        (CONNECTIONS + 2) * UNNAMED,
        searched=True,
    ),
    Scenario(
        "received UDP, a master and its workers",
        pool_udp,
        SENDS * 2,
        PUT_OFF,
        unknown_by={FEW_TRACEPOINTS: SENDS},
        searched=True,
    ),
    Scenario("received UDP, SO_REUSEPORT, of a process that forks", grows, SENDS * 4, 2 * PUT_OFF, searched=True),
]
