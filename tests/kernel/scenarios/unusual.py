"""Kinds of sockets that few programs use, and packets that somebody else makes of another's connection."""

from __future__ import annotations

import subprocess

from tests.kernel.payloads import TCP
from tests.kernel.scenarios.tcp import CONNECTIONS, UNACCEPTED
from tests.kernel.send.tcp import finish
from tests.kernel.sink import DISCARD_PORT, TCP_PORT
from tests.kernel.stage import Scenario, Stage, listener
from tests.kernel.verdict import Frame, Judge, Right, by_signature
from tests.support.blocks import Label
from tests.support.deadline import DEADLINE_S

SENDS = 23
REFUSED_PORT, FAST_PORT, FORGED_PORT = 40_241, 40_253, 40_277
SYN, ACK, RST = 0x02, 0x10, 0x04


def sends(
    way: str, name: str, packets: int, unknown: int = 0, count: int = SENDS, port: int = TCP_PORT, *, vm: bool = False
) -> Scenario:
    """A sender of tests/kernel/send/unusual.py, whose packets are all its own."""

    def play(stage: Stage) -> Judge:
        ends = ("--to", stage.wire.far.ipv4, "--source", stage.wire.near.ipv4)
        users = stage.play("unusual", way, *ends, "--port", port, "--count", count)
        return by_signature(users, users)

    return Scenario(name, play, packets, unknown, vm=vm)


def refused(stage: Stage) -> Judge:
    """The reset is the kernel's, whoever had the port before. Of the first one's packets both ends are here."""
    users = stage.play("unusual", "refused", "--source-port", REFUSED_PORT, "--count", 7)
    turns = iter(users)
    current: list[Label] = []

    def right(frame: Frame) -> Right:
        if not {REFUSED_PORT, REFUSED_PORT + 1} <= set(frame.ports):
            return None
        if frame.tcp_flags & (SYN | ACK) == SYN:
            current[:] = [next(turns)]
        is_refusal = current[0].comm == "second" and frame.tcp_flags & RST
        return "kernel" if is_refusal else current

    return right


def fast_server(stage: Stage) -> Judge:
    """The client has a cookie from its first connection on: then data come in the SYN."""
    stage.near.sysctl(ipv4__tcp_fastopen="3")
    stage.far.sysctl(ipv4__tcp_fastopen="3")
    server = stage.start("unusual", "serves_fastopen", "--source-port", FAST_PORT, "--count", CONNECTIONS)
    owners = server.says()
    server.go()
    words = ("--to", stage.wire.near.ipv4, "--port", FAST_PORT, "--count", CONNECTIONS)
    stage.play("unusual", "fastopen", *words, at=stage.far)
    server.end()

    def right(frame: Frame) -> Right:
        return owners if FAST_PORT in frame.ports else None

    return right


def destroyed(stage: Stage) -> Judge:
    """`ss -K` sends the reset in its own system call."""
    with listener(stage.far, stage.wire.far.ipv4) as listening:
        port = listening.getsockname()[1]
        player = stage.start("unusual", "destroyed", "--to", stage.wire.far.ipv4, "--port", port)
        users = player.says()
        connection, _ = listening.accept()
        with connection, stage.watch() as wait_for:
            command = ["ip", "netns", "exec", stage.near.name, "ss", "-K", "dport", f"= :{port}"]
            subprocess.run(command, check=True, capture_output=True, timeout=DEADLINE_S)
            wait_for(lambda frame: bool(frame.tcp_flags & RST), 1)
        player.go()
        player.end()

    def right(frame: Frame) -> Right:
        return users if port in frame.ports else None

    return right


def forged(stage: Stage) -> Judge:
    """What comes in goes on being the connection's, whoever sends a SYN of the same addresses and ports."""
    near, far = stage.wire.near.ipv4, stage.wire.far.ipv4
    with listener(stage.far, far) as listening:
        port = listening.getsockname()[1]
        ends = ("--to", far, "--port", port)
        player = stage.start("tcp", "downloads", *ends, "--from-port", FORGED_PORT)
        connection, _ = listening.accept()
        words = ("--source", near, "--source-port", FORGED_PORT, "--count", 3)
        forgers = stage.play("unusual", "forges", *ends, *words)
        connection.sendall(bytes(100_003))
        finish(connection)
        users = player.end()

    def right(frame: Frame) -> Right:
        if frame.protocol != TCP or port not in frame.ports:
            return None
        return [*users, *forgers] if frame.is_sent and frame.tcp_flags & (SYN | ACK) == SYN else users

    return right


SCENARIOS = [
    sends("udplite", "UDP-Lite", SENDS, port=DISCARD_PORT),
    sends("raw", "raw socket, with IP headers of its own", SENDS, port=DISCARD_PORT),
    sends("threads", "TCP connected by one thread, used by others", SENDS * 2),
    sends("taken", "taken by pidfd_getfd", 7),
    sends("lingers", "TCP closed while data are left", 7, count=3, vm=True),
    sends("paced", "TCP sent by a timer", 7),
    sends("fastopen", "TCP fast open", SENDS * 5),
    sends("mptcp", "multipath TCP", SENDS, count=5),
    Scenario("TCP fast open, a server", fast_server, CONNECTIONS * 5, CONNECTIONS * UNACCEPTED),
    sends("itself", "TCP connected to itself", SENDS * 4),
    Scenario("TCP, refused at a port of a connection before", refused, 7 * 2),
    Scenario("TCP connection ended by the administrator", destroyed, 4),
    Scenario("TCP, another process forges a SYN", forged, 7),
]
