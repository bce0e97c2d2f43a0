"""Conntrack forgets what it has translated, while the process that had the packets is still there: the next packets
belong to somebody else.

So does kube-proxy where a service loses a server: it changes the rules, and deletes the entries (`conntrack -D`).
"""

from __future__ import annotations

import contextlib

from tests.kernel.payloads import TCP, UDP
from tests.kernel.scenarios.passing import CONTAINERS, SENDS, SERVER, container, whose
from tests.kernel.scenarios.stealing import run
from tests.kernel.scenarios.translated import forget_connections
from tests.kernel.send.tcp import finish
from tests.kernel.stage import Scenario, Stage, connect, udp_socket
from tests.kernel.verdict import Frame, Judge, Right
from tests.support.deadline import DEADLINE_S

SERVICE = 8087
RST = 0x04


def serve_by(stage: Stage, number: int) -> None:
    """The service is in this container from now on, and conntrack knows nothing of before."""
    with contextlib.suppress(Exception):
        run(stage.near, "nft", "delete", "table", "ip", "service")
    rules = (f"{kind} dport {SERVICE} dnat to {CONTAINERS[number][0]}:{SERVER};" for kind in ("tcp", "udp"))
    chain = f"type nat hook prerouting priority -101; {' '.join(rules)}"
    run(stage.near, "nft", f"table ip service {{ chain pre {{ {chain} }}; }}")
    forget_connections(stage)


def moved_datagrams(stage: Stage) -> Judge:
    """The second server never answers: nothing but the rules says that the datagrams are its own."""
    host = (stage.wire.near.ipv4, SERVICE)
    words = ("--source-port", SERVER, "--count", SENDS + 1)
    first = stage.start("udp", "answers", *words, at=container(stage))
    second = stage.start("receivers", "bound", "--port", SERVER, "--count", SENDS, at=container(stage, 1))
    owners, later = first.says(), second.says()
    for player in (first, second):
        player.go()
    with udp_socket(stage.far) as asking:
        serve_by(stage, 0)
        for _ in range(SENDS):
            asking.sendto(b"to the first", host)
            asking.recv(2048)
        serve_by(stage, 1)
        for _ in range(SENDS):
            asking.sendto(b"to the second", host)
        second.end()
    first.close()

    def right(frame: Frame) -> Right:
        if frame.protocol != UDP or not {SERVER, SERVICE} & set(frame.ports):
            return None
        return later if b"to the second" in frame.data else owners

    return right


def moved_connection(stage: Stage) -> Judge:
    """What comes on a connection goes to another container, whose kernel rejects it."""
    words = ("--source-port", SERVER, "--count", 2)
    first = stage.start("tcp", "serves", *words, at=container(stage))
    owners = first.says()
    first.go()
    serve_by(stage, 0)
    finish(connect(stage.far, stage.wire.near.ipv4, SERVICE))
    with connect(stage.far, stage.wire.near.ipv4, SERVICE) as connection, stage.watch() as wait_for:
        connection.sendall(b"to the first")
        wait_for(lambda frame: not frame.is_sent and b"to the first" in frame.data, 1)
        serve_by(stage, 1)
        connection.sendall(b"to nobody")
        connection.settimeout(DEADLINE_S)
        with contextlib.suppress(ConnectionResetError):
            connection.recv(2048)
    run(container(stage), "ss", "-K", "sport", f"= :{SERVER}")  # nobody would answer its FIN
    first.close()

    def right(frame: Frame) -> Right:
        if frame.protocol != TCP or frame.tcp_flags & RST:
            return None
        return ["unknown", "forwarded"] if b"to nobody" in frame.data else whose(*owners)(frame)

    return right


SCENARIOS = [
    Scenario("published UDP port, moved to another container", moved_datagrams, SENDS * 9, SENDS * 3 + 3),
    Scenario("published TCP port, moved to another container", moved_connection, 3 * 9, 3 * 9),
]
