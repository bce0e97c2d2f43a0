"""The peer of a frame, with and without what is remembered of its flow."""

from __future__ import annotations

import random

from skbcapd.analysis.peers import _FLOWS_MAX, Peers, peer_of
from skbcapd.pcapng.link_type import ETHERNET, RAW


def frame(choice: random.Random) -> bytes:
    """A frame of few flows, with random other fields: IPv4 with and without options, IPv6, VLAN, ARP, or cut."""
    kind, start = choice.choice([(b"\x08\x00", 0x45), (b"\x08\x00", 0x46), (b"\x86\xdd", 0x60), (b"\x81\x00", 0x45)])
    header = bytearray(choice.randbytes(60))
    header[0], header[9] = start, choice.choice([1, 6, 17])
    header[6:8] = choice.choice([b"\x00\x00", b"\x40\x00", b"\x20\x00", b"\x20\x01", b"\x00\x07"])
    for at in (12, 16):
        header[at : at + 4] = bytes([10, 0, 0, choice.randrange(3)])
    header[20:24] = choice.choice([b"\x00\x35\x80\x00", b"\x80\x00\x00\x35", b"\x00\x00\x00\x07"])
    return (bytes(12) + kind + header)[: choice.choice([10, 33, 34, 37, 38, 39, 74])]


def test_a_remembered_peer_is_the_same() -> None:
    """The peer of each frame is that of a function that remembers nothing, whatever frames came before."""
    choice, peers = random.Random(7), Peers()
    seen = set()
    for _ in range(20_011):
        data, link_type, direction = memoryview(frame(choice)), choice.choice([ETHERNET, RAW]), choice.randrange(4)
        expected = peer_of(data, link_type, direction)
        assert peers.of(data, link_type, direction) == expected
        seen.add(expected)
    assert None in seen
    assert len(seen) > 20


def test_flows_are_bounded() -> None:
    """However many flows a file has, few are remembered, and all peers are right."""
    peers = Peers()
    for number in range(_FLOWS_MAX + 101):
        data = bytes(12) + b"\x08\x00\x45" + bytes(11) + b"\x0a" + number.to_bytes(3, "big") + bytes(8)
        assert peers.of(memoryview(data), ETHERNET, 1) == (b"\x0a" + number.to_bytes(3, "big"), 0)
    assert max(map(len, peers._known)) <= _FLOWS_MAX
