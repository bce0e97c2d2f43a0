"""One packet on several devices: the same epb_packetid on each of them, or with `dedup: first` only one of them.

The scenes play without AF_PACKET sockets, whose clones would make a router copy the packet.
"""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.kernel.blocks import Packet
from tests.kernel.capture import Capture, Ended, read
from tests.kernel.namespace import Namespace
from tests.kernel.scene import COUNT, Play, Stage
from tests.kernel.scenes import bridged, macvlan, routed
from tests.kernel.send.identity import MAGIC, WHO

# On how many devices each datagram is seen. Bridged: of three the last is flooded, the second is for the bridge's host.
PLACES = {
    routed: {4: COUNT},  # left0, first0, second0, right0
    bridged: {4: COUNT, 3: COUNT, 5: COUNT},
    macvlan: {3: COUNT, 2: COUNT},  # mac0, near0, far0; far0, near0
}


@dataclass(frozen=True)
class Seen:
    """What the two captures wrote."""

    every: list[Packet]
    first: list[Packet]
    ended: Ended


@pytest.fixture(scope="module", params=PLACES, ids=[play.__name__ for play in PLACES])
def play(request: pytest.FixtureRequest) -> Play:
    """A scene."""
    return request.param


@pytest.fixture(scope="module")
def seen(play: Play, tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """Play a scene under a capture of every sighting, and one of the first."""
    directory: Path = tmp_path_factory.mktemp("identifiers")
    with ExitStack() as stack:
        stage = Stage(play.__name__, stack, watched=False)
        here = Namespace()
        stack.callback(here.close)
        captures = [
            stack.enter_context(closing(Capture(here, "-w", str(directory / f"{way}.pcapng"), dedup=way)))
            for way in ("all", "first")
        ]
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


def test_the_identifier_goes_with_the_packet(play: Play, seen: Seen) -> None:
    """On all devices of its way a packet has one identifier, and no other packet has it."""
    ways = Counter((datagram(packet), packet.packet_id) for packet in seen.every)

    assert None not in {identifier for _, identifier in ways}
    assert len({one for one, _ in ways}) == len({identifier for _, identifier in ways}) == len(ways)
    assert Counter(ways.values()) == PLACES[play]


def test_first_is_each_packet_once(play: Play, seen: Seen) -> None:
    """With `dedup: first` each packet is in the file once, as it left its sender; the others are counted."""
    once = Counter(datagram(packet) for packet in seen.first)
    further = sum((places - 1) * packets for places, packets in PLACES[play].items())

    assert once == Counter({datagram(packet): 1 for packet in seen.every})
    assert {packet.direction for packet in seen.first} == {"out"}
    assert seen.ended.totals["seen before, on another device"] >= further
    assert (seen.ended.exit_code, seen.ended.totals["dropped by kernel"]) == (0, 0)
