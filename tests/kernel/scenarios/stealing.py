"""Something behind the hook gives a packet to another socket than its addresses say, or to none.

A decoy has the port, for TCP and UDP, and gets nothing: it is never named. Who gets the packet has another port, or is
in another namespace.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.kernel.namespace import Namespace
from tests.kernel.scenarios.kernels_own import PORTS, this_thread
from tests.kernel.scenarios.passing import decoys
from tests.kernel.send.tcp import finish
from tests.kernel.stage import Scenario, Stage, connect, udp_socket
from tests.kernel.verdict import Frame, Judge, Right
from tests.support import steering
from tests.support.blocks import Label
from tests.support.deadline import DEADLINE_S

SENDS = 23
STOLEN, OWN = 40_351, 40_357
VLAN = 7


def run(namespace: Namespace, *command: str, text: str = "") -> None:
    """Run a program in a namespace."""
    words = ["ip", "netns", "exec", namespace.name, *command]
    subprocess.run(words, input=text, text=True, check=True, capture_output=True, timeout=DEADLINE_S)


def socket_of(pid: int) -> int:
    """The last descriptor of a process that is a socket."""
    found = [number for number in Path(f"/proc/{pid}/fd").iterdir() if str(number.readlink()).startswith("socket:")]
    return max(int(number.name) for number in found)


@contextlib.contextmanager
def decoyed(stage: Stage) -> Iterator[None]:
    """Processes have the port, and get nothing."""
    players = decoys(stage, stage.near, STOLEN)
    try:
        yield
    finally:
        for player in players:
            player.close()


def at_port(owners: list[Label]) -> Judge:
    """Judge what goes to the port, and what comes from it and from the socket's own."""

    def right(frame: Frame) -> Right:
        return owners if {STOLEN, OWN} & set(frame.ports) else None

    return right


def steered(*, stream: bool) -> Callable[[Stage], Judge]:
    """An sk_lookup program gives it to a socket of another port."""

    def play(stage: Stage) -> Judge:
        way = ("tcp", "serves") if stream else ("udp", "answers")
        server = stage.start(*way, "--source-port", OWN, "--count", SENDS)
        owners = server.says()
        with decoyed(stage), steering.steered(stage.near.path, STOLEN, server.pid, socket_of(server.pid)):
            server.go()
            if stream:
                for _ in range(SENDS):
                    finish(connect(stage.far, stage.wire.near.ipv4, STOLEN))
            else:
                with udp_socket(stage.far) as asking:
                    for _ in range(SENDS):
                        asking.sendto(b"?" * 9, (stage.wire.near.ipv4, STOLEN))
                        asking.recv(2048)
            server.end()
        return at_port(owners)

    return play


def steered_relay(stage: Stage) -> Judge:
    """The same, and a child of the process that receives answers, on a socket with the port."""
    words = ("--port", OWN, "--to", stage.wire.near.ipv4, "--to-port", STOLEN, "--count", SENDS)
    relay = stage.start("receivers", "relays", *words)
    owners = relay.says()
    with steering.steered(stage.near.path, STOLEN, relay.pid, socket_of(relay.pid)):
        relay.go()
        with udp_socket(stage.far) as asking:
            for _ in range(SENDS):
                asking.sendto(b"?" * 9, (stage.wire.near.ipv4, STOLEN))
                asking.recv(2048)
        relay.end()

    def right(frame: Frame) -> Right:
        return [frame.signature] if frame.signature else at_port(owners)(frame)

    return right


def moved(stage: Stage, begin: Callable[[str], None], end: Callable[[], None]) -> Judge:
    """Datagrams that go on to a device, and so to a process in another namespace that has the same addresses."""
    device, near = PORTS[0], stage.wire.near
    there = stage.others[device]
    there.ip(f"link set eth0 address {near.mac}", f"address add {near.ipv4}/32 dev eth0")
    player = stage.start("receivers", "bound", "--port", STOLEN, "--count", SENDS, at=there)
    owners = player.says()
    with decoyed(stage):
        begin(device)
        player.go()
        with udp_socket(stage.far) as asking:
            for _ in range(SENDS):
                asking.sendto(b"moved" * 3, (near.ipv4, STOLEN))
        player.end()
        end()
    there.ip(f"address del {near.ipv4}/32 dev eth0")
    return at_port([*owners, this_thread()])  # who gets it; who sends it, as that is a process of this machine


def mirred(stage: Stage) -> Judge:
    """By tc."""
    near = stage.wire.near.device

    def begin(to: str) -> None:
        run(stage.near, "tc", "qdisc", "add", "dev", near, "clsact")
        match = f"protocol ip u32 match ip protocol 17 0xff match ip dport {STOLEN} 0xffff"
        action = f"action mirred egress redirect dev {to}"
        run(stage.near, *f"tc filter add dev {near} ingress {match} {action}".split())

    return moved(stage, begin, lambda: run(stage.near, "tc", "qdisc", "del", "dev", near, "clsact"))


def forwarded(stage: Stage) -> Judge:
    """By nftables at the device's ingress."""
    near = stage.wire.near.device

    def begin(to: str) -> None:
        lines = (
            "table netdev moving {",
            "chain moves {",
            f"type filter hook ingress device {near} priority 0",
            f"udp dport {STOLEN} fwd to {to}",
            "}",
            "}",
        )
        run(stage.near, "nft", "-f", "-", text="\n".join(lines) + "\n")

    return moved(stage, begin, lambda: run(stage.near, "nft", "delete", "table", "netdev", "moving"))


def dropped(stage: Stage) -> Judge:
    """By XDP, which gives it to nobody."""

    def play() -> None:
        with steering.dropped(socket.if_nametoindex(stage.wire.near.device)), udp_socket(stage.far) as asking:
            for _ in range(SENDS):
                asking.sendto(b"?" * 9, (stage.wire.near.ipv4, STOLEN))

    with decoyed(stage):
        stage.near.do(play)

    def right(frame: Frame) -> Right:
        return "unknown" if STOLEN in frame.ports else None

    return right


def tagged(stage: Stage) -> Judge:
    """A tag, which the device has taken off the frame: those are for a VLAN that this machine does not have. The
    others belong to a server.
    """
    server = stage.start("udp", "answers", "--source-port", STOLEN, "--count", 2 * SENDS)
    owners = server.says()
    server.go()

    def play(asking: socket.socket) -> None:
        with steering.tagged(socket.if_nametoindex(stage.wire.far.device), VLAN):
            for _ in range(SENDS):
                asking.sendto(b"?" * 9, (stage.wire.near.ipv4, STOLEN))

    with udp_socket(stage.far) as asking:
        for number in range(2 * SENDS):
            if number == SENDS:
                stage.far.do(play, asking)
            asking.sendto(b"?" * 9, (stage.wire.near.ipv4, STOLEN))
            asking.recv(2048)
    server.end()

    def right(frame: Frame) -> Right:
        if STOLEN not in frame.ports:
            return None
        return "unknown" if frame.is_tagged else owners

    return right


SCENARIOS = [
    Scenario("UDP, sk_lookup", steered(stream=False), SENDS * 2, SENDS),
    Scenario("TCP, sk_lookup", steered(stream=True), SENDS * 6, SENDS * 3),
    Scenario("UDP, sk_lookup, a child answers", steered_relay, SENDS * 2, SENDS),
    Scenario("UDP, moved to another namespace by tc", mirred, SENDS, SENDS),
    Scenario("UDP, moved to another namespace by nftables", forwarded, SENDS, SENDS),
    Scenario("received UDP, dropped by XDP", dropped, SENDS, SENDS),
    Scenario("received UDP of another VLAN", tagged, SENDS * 5, SENDS),
]
