"""Processes that follow one another at one port or identifier: what is answered is for the one that has asked.

Who that is, the answer alone has to tell: the flags of TCP, or what it gives back.
"""

from __future__ import annotations

from tests.kernel.payloads import TCP
from tests.kernel.scenarios import udp
from tests.kernel.sink import DISCARD_PORT, TCP_PORT
from tests.kernel.stage import Scenario, Stage, listener
from tests.kernel.verdict import Frame, Judge, Right, by_signature
from tests.support.blocks import Label

PROCESSES = 7
AGAIN_PORT, ECHO_ID, REFUSED_PORT = 40_283, 40_289, 40_297
SYN, RST, ACK = 0x02, 0x04, 0x10


def connections(stage: Stage) -> Judge:
    """Connections from one port, each reset by its process: a SYN-ACK begins the next one's turn."""
    words = ("--to", stage.wire.far.ipv4, "--source-port", AGAIN_PORT, "--count", PROCESSES)
    turns = iter(stage.play("again", "tcp", *words, "--port", TCP_PORT))
    current: list[Label] = []

    def right(frame: Frame) -> Right:
        if frame.protocol != TCP or frame.is_sent or frame.ports[1] != AGAIN_PORT:
            return None
        if frame.tcp_flags & SYN:
            current[:] = [next(turns)]
        return current

    return right


def refused(stage: Stage) -> Judge:
    """A connection, and then another from the same port, when nobody listens any more: the reset is for the second."""
    to = stage.wire.far.ipv4
    users: list[Label] = []
    with listener(stage.far, to) as listening:
        port = listening.getsockname()[1]
        words = ("--to", to, "--source-port", REFUSED_PORT, "--port", port)
        player = stage.start("again", "tcp", *words)
        connection, _ = listening.accept()
        users += player.end()  # which has reset it
        connection.close()
    users += stage.play("again", "refused", *words)

    def right(frame: Frame) -> Right:
        if frame.protocol != TCP or frame.is_sent or frame.ports[1] != REFUSED_PORT:
            return None
        return users[1:] if frame.tcp_flags == RST | ACK else users[:1]

    return right


def datagrams(stage: Stage) -> Judge:
    """Each gets back what it has sent."""
    words = ("--to", stage.wire.far.ipv4, "--source-port", AGAIN_PORT, "--count", PROCESSES)
    return udp.echoed(stage, PROCESSES, lambda port: stage.play("again", "udp", *words, "--port", port))


def echoes(stage: Stage) -> Judge:
    """Each gets back what it has sent."""
    words = ("--to", stage.wire.far.ipv4, "--source-port", ECHO_ID, "--count", PROCESSES)
    stage.play("again", "echo", *words, "--port", DISCARD_PORT)
    return by_signature(echoed=True)


SCENARIOS = [
    Scenario("TCP port used again", connections, PROCESSES * 2, PROCESSES * 2),
    Scenario("TCP port used again, refused", refused, 2, 4),
    Scenario("UDP port used again", datagrams, PROCESSES),
    Scenario("echo identifier used again", echoes, PROCESSES, PROCESSES),
]
