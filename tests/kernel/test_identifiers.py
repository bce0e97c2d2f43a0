"""One packet on several devices: the same epb_packetid on each of them, or with `dedup: first` only
one of them.

The scenes play without AF_PACKET sockets, whose clones would make a router copy the packet.
"""

from __future__ import annotations

import socket
from collections import Counter
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.kernel.capture import Capture, Ended, read
from tests.kernel.namespace import Namespace, Wire
from tests.kernel.scene import COUNT, Play, Stage
from tests.kernel.scenes import bridged, macvlan, routed
from tests.kernel.send.identity import MAGIC, WHO
from tests.kernel.sink import TCP_PORT, Sink
from tests.support import faults
from tests.support.blocks import Packet
from tests.support.deadline import until

TCPI_RETRANSMITS = 2  # offset in struct tcp_info: retransmissions of the oldest data that are not acknowledged

# On how many devices each datagram is seen. Bridged: of three the last is flooded, the second is
# for the bridge's host.
PLACES: dict[Play, dict[int, int]] = {
    routed: {4: COUNT},  # left0, first0, second0, right0
    bridged: {4: COUNT, 3: COUNT, 5: COUNT},
    macvlan: {3: COUNT, 2: COUNT},  # mac0, near0, far0; far0, near0 (and mac0: see LATE)
}
LATE = ("mac0", "in")  # the interface is made while the capture runs: what arrives at once may be before its tap


@dataclass(frozen=True)
class Seen:
    """The packets of the two captures."""

    every: list[Packet]
    first: list[Packet]
    ended: Ended


@pytest.fixture(scope="module", params=PLACES, ids=[play.__name__ for play in PLACES])
def play(request: pytest.FixtureRequest) -> Play:
    """A scene."""
    found: Play = request.param
    return found


@pytest.fixture(scope="module")
def seen(play: Play, tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """Play a scene under a capture of every sighting, and one of the first."""
    directory: Path = tmp_path_factory.mktemp("identifiers")
    with ExitStack() as stack:
        stage = Stage(play.__name__, stack, watched=False)
        here = Namespace()
        stack.callback(here.close)
        captures = []
        for way in ("all", "first"):
            arguments = ("-i", "any", "-w", str(directory / f"{way}.pcapng"))
            namespaces = ",".join(namespace.name for namespace in stage.namespaces)
            capture = Capture(here, *arguments, dedup=way, namespaces=namespaces)
            captures.append(stack.enter_context(closing(capture)))
        play(stage)
        stage.end()
        _, ended = [capture.stop() for capture in captures]
        names = {f"network namespace {namespace.name}" for namespace in stage.namespaces}
    every, first = (
        [packet for packet in read(directory / f"{way}.pcapng") if packet.description in names and MAGIC in packet.data]
        for way in ("all", "first")
    )
    return Seen(every, first, ended)


def datagram(packet: Packet) -> bytes:
    """Who sent it and its number: no two datagrams have the same."""
    return packet.data[packet.data.index(MAGIC) :][: WHO.size]


def test_the_identifier_stays_with_the_packet(play: Play, seen: Seen) -> None:
    """On all interfaces a packet has one identifier, and no other packet has it."""
    every = [packet for packet in seen.every if (packet.interface, packet.direction) != LATE]
    ways = Counter((datagram(packet), packet.packet_id) for packet in every)

    assert None not in {identifier for _, identifier in ways}
    assert len({one for one, _ in ways}) == len({identifier for _, identifier in ways}) == len(ways)
    assert Counter(ways.values()) == PLACES[play]


def test_first_is_each_packet_once(play: Play, seen: Seen) -> None:
    """With `dedup: first` each packet is in the file once, from the interface of its sender; the
    others are counted.
    """
    once = Counter(datagram(packet) for packet in seen.first)
    further = sum((places - 1) * packets for places, packets in PLACES[play].items())

    every = {datagram(packet) for packet in seen.every}
    faults.compare(
        "dedup: first, seen first elsewhere", 1, f"{len(every - set(once))} of {len(every)} packets in no file"
    )
    assert once == Counter({datagram(packet): 1 for packet in seen.every})
    assert {packet.direction for packet in seen.first} == {"out"}
    assert seen.ended.totals["seen before on another interface"] >= further
    assert (seen.ended.exit_code, seen.ended.totals["dropped by kernel"]) == (0, 0)


def test_data_sent_again_has_another_identifier(wire: Wire, tmp_path: Path) -> None:
    """Each retransmission of the same data, in the same memory, has its own identifier, at both
    ends of the wire.
    """
    file, near, far = tmp_path / "again.pcapng", wire.near, wire.far
    both = f"{near.namespace.name},{far.namespace.name}"
    with (
        closing(Sink(far.namespace)),
        closing(Capture(near.namespace, "-i", "any", "-w", str(file), namespaces=both)) as capture,
        near.namespace.do(socket.create_connection, (far.ipv4, TCP_PORT)) as connection,
    ):
        far.namespace.ip(f"address del {far.ipv4}/24 dev {far.device}")  # nobody answers
        try:
            connection.send(MAGIC)

            def again() -> bool:
                return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 8)[TCPI_RETRANSMITS] >= 2

            until(again, "the data is sent again, twice")
            assert capture.stop().exit_code == 0
        finally:
            far.namespace.ip(f"address add {far.ipv4}/24 dev {far.device}")
    sent, arrived = (
        [
            packet.packet_id
            for packet in read(file)
            if packet.data.endswith(MAGIC)
            and packet.description == f"network namespace {end.namespace.name}"
            and packet.direction == direction
        ]
        for end, direction in ((near, "out"), (far, "in"))
    )

    assert len(sent) == len(set(sent)) >= 3
    assert set(arrived) == set(sent)
