"""MPTCP: the sockets of its subflows belong to the kernel, the process has another one."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

from tests.kernel.namespace import End
from tests.kernel.payloads import TCP
from tests.kernel.scenarios.tcp import UNACCEPTED
from tests.kernel.send.tcp import finish
from tests.kernel.stage import Scenario, Stage
from tests.kernel.verdict import Frame, Judge, Right
from tests.support.blocks import Label
from tests.support.deadline import DEADLINE_S, until

SENDS = 23
SECOND, SYN = "192.168.178.7", 0x02
PORT, FEW_BYTES = 40_717, 200_003


def of(owners: list[Label]) -> Judge:
    """Judge the packets of the port."""

    def right(frame: Frame) -> Right:
        return owners if frame.protocol == TCP and PORT in frame.ports else None

    return right


def multipath(stage: Stage) -> socket.socket:
    """A socket of MPTCP at the far end."""
    made = stage.far.do(socket.socket, socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_MPTCP)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.settimeout(DEADLINE_S)
    return made


@contextlib.contextmanager
def sink(stage: Stage) -> Iterator[None]:
    """A server at the far end that reads each connection to its end."""
    with multipath(stage) as listening:
        listening.bind(("", PORT))
        listening.listen()

        def take() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listening.accept()
                    with connection:
                        while connection.recv(1 << 20):
                            pass

        taking = threading.Thread(target=take, daemon=True)
        taking.start()
        yield
        listening.shutdown(socket.SHUT_RDWR)
        taking.join(DEADLINE_S)


@contextlib.contextmanager
def second_path(stage: Stage, end: End, use: str) -> Iterator[None]:
    """One end has a second address, from which it adds a subflow to each connection, or which it announces."""
    for one in (stage.near, stage.far):
        one.ip("mptcp limits set subflow 2 add_addr_accepted 2")
    end.namespace.ip(f"address add {SECOND}/24 dev {end.device}", f"mptcp endpoint add {SECOND} dev {end.device} {use}")
    try:
        yield
    finally:
        until(lambda: not stage.moving(), "connections have ended")
        end.namespace.ip("mptcp endpoint flush", f"address del {SECOND}/24 dev {end.device}")


def joins(frame: Frame) -> bool:
    """Whether a packet with data, or its acknowledgement, passes on the second path."""
    return frame.protocol == TCP and socket.inet_aton(SECOND) in frame.data[:34] and not frame.tcp_flags & SYN


def ask_on_two(stage: Stage) -> None:
    """Connections from the far end, each until it has used its second path."""
    for _ in range(SENDS):
        with stage.watch() as wait_for, multipath(stage) as connection:
            connection.connect((stage.wire.near.ipv4, PORT))
            connection.sendall(b"?")
            wait_for(joins, 1)
            finish(connection)


def served_on_two(stage: Stage) -> Judge:
    """A server whose clients have two paths."""
    server = stage.start("tcp", "serves", "--source-port", PORT, "--count", SENDS, "--mptcp")
    owners = server.says()
    server.go()
    with second_path(stage, stage.wire.far, "subflow"):
        ask_on_two(stage)
        server.end()
    return of(owners)


def announced(stage: Stage) -> Judge:
    """A server that announces another address, where another process listens on its port: that one gets nothing."""
    near, words = stage.wire.near, ("--source-port", PORT, "--mptcp")
    with second_path(stage, near, "signal"):
        other = stage.start("tcp", "serves", *words, "--address", SECOND)
        other.says()
        server = stage.start("tcp", "serves", *words, "--address", near.ipv4, "--count", SENDS)
        owners = server.says()
        server.go()
        ask_on_two(stage)
        server.end()
        other.close()
    return of(owners)


def asked_on_two(stage: Stage) -> Judge:
    """A client with two paths."""
    with sink(stage), second_path(stage, stage.wire.near, "subflow"), stage.watch() as wait_for:
        words = ("--to", stage.wire.far.ipv4, "--port", PORT, "--mptcp")
        player = stage.start("tcp", "paused", *words, "--count", SENDS)
        owners = player.says()
        player.go()
        wait_for(joins, 1)
        player.says()
        player.go()
        player.end()
        return of(owners)


def serves(stage: Stage) -> Judge:
    """A server."""
    server = stage.start("tcp", "serves", "--source-port", PORT, "--count", SENDS, "--mptcp")
    owners = server.says()
    server.go()
    for _ in range(SENDS):
        with multipath(stage) as connection:
            connection.connect((stage.wire.near.ipv4, PORT))
            connection.sendall(b"?")  # as in tests/kernel/send/tcp.py: connects
            finish(connection)
    server.end()
    return of(owners)


def connects(stage: Stage) -> Judge:
    """A client."""
    words = ("--to", stage.wire.far.ipv4, "--port", PORT, "--mptcp")
    with sink(stage):
        return of(stage.play("tcp", "connects", *words, "--count", SENDS))


def uploads(stage: Stage) -> Judge:
    """A client that sends much."""
    words = ("--to", stage.wire.far.ipv4, "--port", PORT, "--mptcp")
    with sink(stage):
        return of(stage.play("tcp", "uploads", *words, "--count", FEW_BYTES))


SCENARIOS = [
    Scenario("MPTCP server", serves, SENDS * 6, SENDS * (UNACCEPTED + 1), needs="mptcp"),
    Scenario("MPTCP client", connects, SENDS * 6, 0, needs="mptcp"),
    Scenario("MPTCP server, two paths", served_on_two, SENDS * 9, SENDS * 20, needs="mptcp"),
    Scenario(
        "MPTCP server, its second path where another process listens", announced, SENDS * 9, SENDS * 20, needs="mptcp"
    ),
    Scenario("MPTCP client, two paths", asked_on_two, SENDS, 7, needs="mptcp"),
    Scenario("MPTCP upload", uploads, 23, 0, needs="mptcp"),
]
