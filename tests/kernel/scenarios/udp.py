"""UDP: every way in which a process comes to a socket that it sends on."""

from __future__ import annotations

import threading

from tests.kernel.sink import DISCARD_PORT
from tests.kernel.stage import Scenario, Stage, udp_socket
from tests.kernel.verdict import Judge, by_signature

SENDS = 23
PROCESSES = 211
PORT_SHARED, PORT_AGAIN = 40_009, 40_013


def sends(way: str, count: int = SENDS, port: int = 0, few: int | None = None) -> Scenario:
    """A sender whose datagrams are all signed, and dropped at the far end."""
    few = few or count
    packets = 2 * count if way in ("thread", "reuseport") else count

    def play(stage: Stage) -> Judge:
        to = stage.wire.far.ipv4
        stage.play(
            "udp", way, "--to", to, "--port", DISCARD_PORT, "--source-port", port, "--count", stage.scaled(count, few)
        )
        return by_signature()

    names = {
        "connected": "UDP connected",
        "unconnected": "UDP unconnected",
        "first": "UDP first packet of a socket",
        "processes": "UDP one-packet processes",
        "thread": "UDP thread with its own name",
        "reuseport": "UDP SO_REUSEPORT, two processes",
    }
    return Scenario(names[way], play, packets if few == count else few, vm=way in ("first", "processes"))


def port_again(stage: Stage) -> Judge:
    """Each process binds the port that the one before has just left, sends, and gets its own datagram back."""
    echo = udp_socket(stage.far)

    def answer() -> None:
        for _ in range(SENDS):
            data, client = echo.recvfrom(2048)
            echo.sendto(data, client)

    answering = threading.Thread(target=answer)
    answering.start()
    with echo:
        to, port = stage.wire.far.ipv4, echo.getsockname()[1]
        stage.play("udp", "port_again", "--to", to, "--port", port, "--source-port", PORT_AGAIN, "--count", SENDS)
        answering.join()
    return by_signature(echoed=True)


SCENARIOS = [
    sends("connected"),
    sends("unconnected"),
    sends("first"),
    sends("processes", PROCESSES, few=7),
    sends("thread"),
    sends("reuseport", port=PORT_SHARED),
    Scenario("UDP port used again at once", port_again, 2 * SENDS),
]
