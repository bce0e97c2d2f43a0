"""UDP: all ways in which a process gets a socket that it sends on."""

from __future__ import annotations

import threading
from collections.abc import Callable

from tests.kernel.sink import DISCARD_PORT
from tests.kernel.stage import Scenario, Stage, scaled, udp_socket
from tests.kernel.verdict import Judge, by_signature

SENDS = 23
PROCESSES = scaled(211, 7)
PORT_SHARED, PORT_AGAIN = 40_009, 40_013


def sends(way: str, name: str, count: int = SENDS, each: int = 1, *, vm: bool = False) -> Scenario:
    """A sender whose datagrams are all signed, `each` times `count` of them; the far end drops
    them.
    """

    def play(stage: Stage) -> Judge:
        to = ("--to", stage.wire.far.ipv4, "--port", DISCARD_PORT)
        stage.play("udp", way, *to, "--source-port", PORT_SHARED, "--count", count)
        return by_signature()

    return Scenario(name, play, each * count, vm=vm)


def echoed(stage: Stage, count: int, play: Callable[[int], object]) -> Judge:
    """Play with a port at the far end that sends so many datagrams back."""
    echo = udp_socket(stage.far)

    def answer() -> None:
        for _ in range(count):
            data, client = echo.recvfrom(2048)
            echo.sendto(data, client)

    answering = threading.Thread(target=answer)
    answering.start()
    with echo:
        play(echo.getsockname()[1])
        answering.join()
    return by_signature(echoed=True)


def port_again(stage: Stage) -> Judge:
    """Each process binds the port that the one before has just closed, sends, and gets its own
    datagram back.
    """
    words = ("--to", stage.wire.far.ipv4, "--source-port", PORT_AGAIN, "--count", SENDS)
    return echoed(stage, SENDS, lambda port: stage.play("udp", "port_again", *words, "--port", port))


SCENARIOS = [
    sends("connected", "UDP connected"),
    sends("unconnected", "UDP unconnected"),
    sends("first", "UDP first packet of a socket", vm=True),
    sends("processes", "UDP one-packet processes", PROCESSES, vm=True),
    sends("thread", "UDP thread with its own name", each=2),
    sends("reuseport", "UDP SO_REUSEPORT, two processes", each=2),
    Scenario("UDP port used again at once", port_again, 2 * SENDS),
]
