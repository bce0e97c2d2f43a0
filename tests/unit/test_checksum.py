"""Checksums as the hardware computes them, compared with scapy."""

from __future__ import annotations

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Packet, Raw

from skbcapd.capture.checksum import fill

# Both addresses are given: scapy would look them up by ARP and neighbor solicitations on the
# machine's network.
ETHERNET = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
V4 = IP(src="192.0.2.1", dst="192.0.2.2")
V6 = IPv6(src="2001:db8::1", dst="2001:db8::2")


def unfinished(packet: Packet, transport: int, field: int) -> tuple[bytes, int]:
    """A frame as it leaves a host with checksum offload: the field has the sum of the pseudo
    header.
    """
    whole = bytes(packet)
    at = transport + field
    summed = whole[transport:at] + bytes(2) + whole[at + 2 :] + bytes((len(whole) - transport) % 2)
    rest = sum(int.from_bytes(summed[i : i + 2], "big") for i in range(0, len(summed), 2))
    pseudo = (0xFFFF - int.from_bytes(whole[at : at + 2], "big") - rest) % 0xFFFF
    return whole[:at] + pseudo.to_bytes(2, "big") + whole[at + 2 :], transport | field << 16


@pytest.mark.parametrize("size", [0, 1, 2, 17, 1400])
@pytest.mark.parametrize(
    ("packet", "transport", "field"),
    [
        (ETHERNET / V4 / UDP(sport=7, dport=9), 34, 6),
        (ETHERNET / V4 / TCP(sport=7, dport=9), 34, 16),
        (ETHERNET / V6 / UDP(sport=7, dport=9), 54, 6),
        (ETHERNET / Dot1Q(vlan=7) / V6 / TCP(sport=7, dport=9), 58, 16),
    ],
)
def test_a_checksum_is_completed(packet: Packet, transport: int, field: int, size: int) -> None:
    """The frame is that of scapy, for all protocols, tags and lengths."""
    whole = packet / Raw(bytes(i * 7 & 255 for i in range(size)))
    frame, place = unfinished(whole, transport, field)

    assert frame != bytes(whole)
    assert fill(memoryview(frame), len(frame), place) == bytes(whole)


def test_a_sum_of_zero_is_sent_as_ones() -> None:
    """A UDP checksum of 0 is written as 0xffff: 0 means that there is none."""
    frame = bytes(34) + b"\xff\xff" + bytes(6)

    assert fill(memoryview(frame), len(frame), 34 | 6 << 16) == bytes(34) + b"\xff\xff" + bytes(4) + b"\xff\xff"


@pytest.mark.parametrize(("kept", "place"), [(41, 34 | 6 << 16), (42, 34 | 7 << 16), (42, 0xFFFF | 6 << 16)])
def test_checksums_that_cannot_be_computed(kept: int, place: int) -> None:
    """A frame that was cut, or whose checksum field is outside of it, is not changed."""
    assert fill(memoryview(bytes(42))[:kept], 42, place) is None
