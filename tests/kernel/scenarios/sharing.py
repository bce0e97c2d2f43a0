"""Sockets that are passed on, and users that change their names."""

from __future__ import annotations

from tests.kernel.scenarios.tcp import CONNECTIONS, UNNAMED
from tests.kernel.send.tcp import finish
from tests.kernel.sink import DISCARD_PORT, TCP_PORT
from tests.kernel.stage import Scenario, Stage, connect, udp_socket
from tests.kernel.verdict import Judge, by_signature

SENDS = 23
ACTIVATED_PORT = 40_063


def sharing(way: str, name: str, packets: int, *, vm: bool = False) -> Scenario:
    """A UDP socket and a TCP connection, used by one process after the other."""

    def play(stage: Stage) -> Judge:
        to = ("--to", stage.wire.far.ipv4, "--port", DISCARD_PORT, "--tcp-port", TCP_PORT)
        users = stage.play("sharing", way, *to, "--count", SENDS)
        return by_signature(users, users)

    return Scenario(name, play, packets, vm=vm)


def activated(stage: Stage) -> Judge:
    """The first connection and datagram can arrive before the service has used its sockets: both
    processes have them open.
    """
    player = stage.start("sharing", "activated", "--source-port", ACTIVATED_PORT, "--count", CONNECTIONS)
    users = player.says()
    player.go()
    near = stage.wire.near.ipv4
    with udp_socket(stage.far) as asking:
        for _ in range(CONNECTIONS):
            connection = connect(stage.far, near, ACTIVATED_PORT)
            connection.sendall(bytes(997))
            finish(connection)
            asking.sendto(b"?", (near, ACTIVATED_PORT))
            asking.recv(2048)
    player.end()
    return by_signature(users, users)


SCENARIOS = [
    sharing("forked", "shared with a forked child", 6 * SENDS, vm=True),
    sharing("executed", "shared with a program that the child runs", 6 * SENDS),
    sharing("left", "inherited from a process that has exited", 2 * SENDS),
    sharing("passed", "passed by SCM_RIGHTS", 6 * SENDS),
    Scenario("socket activation", activated, 6 * CONNECTIONS, (UNNAMED + 1) * CONNECTIONS),
    sharing("renamed_by_exec", "name changed by exec", 4 * SENDS),
    sharing("renamed", "name changed by prctl", 2 * SENDS, vm=True),
]
