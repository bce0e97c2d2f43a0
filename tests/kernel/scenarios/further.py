"""More ways to come to a socket and to send on it, and to receive."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator

from tests.kernel.namespace import Namespace
from tests.kernel.payloads import UDP
from tests.kernel.scenarios.received import by_content
from tests.kernel.sink import DISCARD_PORT, TCP_PORT, Sink
from tests.kernel.stage import Scenario, Stage, udp_socket
from tests.kernel.verdict import Frame, Judge, Right, by_signature
from tests.support.blocks import Label

SENDS = 23
CHOSEN_PORT, ROUTED_PORT = 40_427, 40_429
PAIRS = {"pair0": "02:77:00:00:00:02", "pair1": "02:77:00:00:01:02"}
PAIR_MAC, PAIR_HERE, PAIR_THERE, PAIR_PORT = "02:77:00:00:00:01", "10.77.0.1", "10.77.0.2", 40_471
IPPROTO_ROUTING, TYPE_SEGMENT_ROUTING, ETH_P_IPV6 = 43, 4, 0x86DD


def sends(way: str, name: str, packets: int, *words: str) -> Scenario:
    """A sender of tests/kernel/send/further.py, whose packets are all its own."""

    def play(stage: Stage) -> Judge:
        to = ("--to", stage.wire.far.ipv4, "--port", DISCARD_PORT, "--tcp-port", TCP_PORT)
        places = {"--file": stage.directory / "pages", "--netns": stage.far.path}
        more = [str(word) for name in words for word in (name, places[name])]
        users = stage.play("further", way, *to, "--count", SENDS, *more)
        return by_signature(users, users)

    return Scenario(name, play, packets)


def chosen(stage: Stage) -> Judge:
    """A program chooses the socket: never the other one is named."""
    player = stage.start("further", "chosen", "--port", CHOSEN_PORT, "--count", SENDS)
    _, owner = player.says()
    player.go()
    with udp_socket(stage.far) as asking:
        for _ in range(SENDS):
            asking.sendto(b"to choose", (stage.wire.near.ipv4, CHOSEN_PORT))
            asking.recv(2048)
    player.end()

    def right(frame: Frame) -> Right:
        if frame.signature and frame.is_sent and CHOSEN_PORT in frame.ports:
            return [frame.signature]
        return by_content(b"to choose", [owner])(frame)

    return right


def source_routed(stage: Stage) -> Judge:
    """Datagrams whose routing header sends them on to another address: a process that has the port gets none."""
    near, far = stage.wire.near, stage.wire.far
    player = stage.start("receivers", "bound_6", "--port", ROUTED_PORT, "--count", 1)
    owners = player.says()
    player.go()
    source, to = (socket.inet_pton(socket.AF_INET6, end.ipv6) for end in (far, near))
    elsewhere = socket.inet_pton(socket.AF_INET6, "2001:db8::1")
    routing = struct.pack("!BBBBBBH", UDP, 4, TYPE_SEGMENT_ROUTING, 1, 1, 0, 0) + elsewhere + to
    datagram = struct.pack("!HHHH", ROUTED_PORT, ROUTED_PORT, 8 + 9, 0) + b"elsewhere"
    packet = struct.pack("!IHBB", 6 << 28, len(routing) + len(datagram), IPPROTO_ROUTING, 64) + source + to
    ends = (bytes.fromhex(end.mac.replace(":", "")) for end in (near, far))
    frame = b"".join(ends) + ETH_P_IPV6.to_bytes(2, "big") + packet + routing + datagram
    with stage.far.do(socket.socket, socket.AF_PACKET, socket.SOCK_RAW, 0) as sender:
        sender.bind((far.device, 0))
        for _ in range(SENDS):
            sender.send(frame)
    with stage.far.do(socket.socket, socket.AF_INET6, socket.SOCK_DGRAM) as asking:
        asking.sendto(b"to the port", (near.ipv6, ROUTED_PORT))
    player.end()

    def right(frame: Frame) -> Right:
        if b"elsewhere" in frame.data:
            return "unknown"
        return by_content(b"to the port", owners)(frame)

    return right


@contextlib.contextmanager
def pairs(stage: Stage) -> Iterator[list[Namespace]]:
    """Two interfaces of the near end with the same address, and behind each a namespace, which have the same, too."""
    with contextlib.ExitStack() as stack:
        places = []
        for device, mac in PAIRS.items():
            there = Namespace()
            stack.callback(there.close)
            places.append(there)
            stage.near.ip(
                f"link add {device} address {PAIR_MAC} type veth peer eth0 address {mac} netns {there.name}",
                f"link set {device} addrgenmode none up",
                f"address add {PAIR_HERE}/24 dev {device}",
                f"neighbour add {PAIR_THERE} lladdr {mac} nud permanent dev {device}",
            )
            there.ip(
                "link set eth0 addrgenmode none up",
                f"address add {PAIR_THERE}/24 dev eth0",
                f"neighbour add {PAIR_HERE} lladdr {PAIR_MAC} nud permanent dev eth0",
            )
        yield places
        for device in PAIRS:
            stage.near.ip(f"link del {device}")


def at_devices(stage: Stage) -> Judge:
    """Two connections at once, with the same addresses and ports, each through an interface of its own."""
    owners: dict[bytes, list[Label]] = {}
    with pairs(stage) as places, contextlib.ExitStack() as stack:
        players = []
        for there, (device, mac) in zip(places, PAIRS.items(), strict=True):
            stack.enter_context(contextlib.closing(Sink(there)))
            words = ("--device", device, "--to", PAIR_THERE, "--port", PAIR_PORT, "--tcp-port", TCP_PORT)
            players.append(stage.start("further", "at_device", *words, "--count", SENDS))
            owners[bytes.fromhex(mac.replace(":", ""))] = players[-1].says()
        for player in players:
            player.go()
            player.says()
        for player in players:
            player.go()
            player.end()

    def right(frame: Frame) -> Right:
        if PAIR_PORT not in frame.ports:
            return None
        return next(found for mac, found in owners.items() if mac in frame.data[:12])

    return right


SCENARIOS = [
    sends("spawned", "shared with a child of vfork", SENDS * 10),
    sends("lent", "TCP, pages and memory sent by other processes", 7, "--file"),
    sends("entered", "sockets of a network namespace that the process has left", SENDS * 4, "--netns"),
    sends("one_table", "two processes with one table of descriptors", SENDS * 2),
    Scenario("TCP, two connections with the same addresses and ports", at_devices, SENDS * 2, SENDS * 3),
    Scenario("received UDP, SO_REUSEPORT with a program", chosen, SENDS * 2, SENDS),
    Scenario("received UDP, routing header to another address", source_routed, SENDS + 1, SENDS),
]
