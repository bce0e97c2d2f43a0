"""Whether the process of a packet is right.

A packet as we wrote it goes in, with what is known of it from elsewhere: the signature in its
payload, or what the scenario knows of packets that carry none. Out comes `right`, `unknown` or
`wrong`. Nothing here knows how the program under test finds a process.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from tests.kernel.payloads import ETH_P_IP, ETH_P_IPV6, ETHERNET_BYTES, ICMP, TCP, UDP
from tests.kernel.send.identity import MAGIC, SIGNATURE, SIGNED_MAGIC, WHO
from tests.support.blocks import Label, Packet, comment_fields

ETH_P_ARP = 0x0806
ETH_P_8021Q = b"\x81\x00"
VLAN_TAG_BYTES = 4
ETHERNET = 1
IGMP, ICMPV6, HOP_BY_HOP = 2, 58, 0
ROUTER_AND_NEIGHBOUR = range(130, 138)  # ICMPv6: MLD and neighbour discovery
MLD2_REPORT = 143
ICMP_ERRORS = (3, 5, 11, 12)
ICMPV6_ECHO = 128
EXAMPLES = 11

# Words for packets without a process.
Word = Literal["kernel", "forwarded", "unknown"]
Right = Collection[Label | Word] | Word | None  # None: not a packet of the scenario
Judge = Callable[["Frame"], Right]


@dataclass(frozen=True)
class Frame:
    """A packet, taken apart as far as a judge needs it.

    Args:
        data: from the link layer on.
        link_type: Ethernet, or raw IP.
        is_sent: whether it left this host.
    """

    data: bytes
    link_type: int
    is_sent: bool

    def __str__(self) -> str:
        """The kind of the packet."""
        if self.protocol in (TCP, UDP):
            return f"{'TCP' if self.protocol == TCP else 'UDP'} {self.ports} flags {self.tcp_flags:#04x}"
        return f"EtherType {self.ether_type:#06x} protocol {self.protocol} message {self.message}"

    @cached_property
    def _network(self) -> tuple[int, bytes]:
        """EtherType and the bytes behind the link layer's header, and behind the tag of a VLAN."""
        data = self.data
        if self.link_type == ETHERNET:
            tag = VLAN_TAG_BYTES if self.is_tagged else 0
            return int.from_bytes(data[12 + tag : 14 + tag], "big"), data[ETHERNET_BYTES + tag :]
        return (ETH_P_IPV6 if data[:1] and data[0] >> 4 == 6 else ETH_P_IP), data

    @property
    def is_tagged(self) -> bool:
        """Whether the frame has the tag of a VLAN."""
        return self.link_type == ETHERNET and self.data[12:14] == ETH_P_8021Q

    @property
    def ether_type(self) -> int:
        """The frame's EtherType; that of the IP version where there is no link layer."""
        return self._network[0]

    @cached_property
    def _transport(self) -> tuple[int, bytes]:
        """Protocol and the bytes behind the IP header; 0 and nothing where there is no IP."""
        kind, data = self._network
        if kind == ETH_P_IP and len(data) >= 20:
            return data[9], data[(data[0] & 15) * 4 :]
        if kind == ETH_P_IPV6 and len(data) >= 40:
            if data[6] == HOP_BY_HOP:  # as MLD has it
                return data[40], data[40 + 8 + data[41] * 8 :]
            return data[6], data[40:]
        return -1, b""

    @property
    def protocol(self) -> int:
        """The IP protocol; -1 for none."""
        return self._transport[0]

    @property
    def ports(self) -> tuple[int, int]:
        """Source and destination port of TCP or UDP; zeros of others."""
        return struct.unpack_from("!HH", self._transport[1]) if self.protocol in (TCP, UDP) else (0, 0)

    @property
    def message(self) -> int:
        """The type of an ICMP or ICMPv6 message; -1 of others."""
        return self._transport[1][0] if self.protocol in (ICMP, ICMPV6) else -1

    @property
    def tcp_flags(self) -> int:
        """The flags of a TCP segment; 0 of others."""
        return self._transport[1][13] if self.protocol == TCP else 0

    @property
    def is_housekeeping(self) -> bool:
        """Whether the kernel sends such packets at any time: ARP, neighbors, groups, errors of
        ICMP.
        """
        return (
            self.ether_type == ETH_P_ARP
            or self.protocol == IGMP
            or (self.protocol == ICMP and self.message in ICMP_ERRORS)
            or (self.protocol == ICMPV6 and self.message < ICMPV6_ECHO)
            or (self.protocol == ICMPV6 and (self.message in ROUTER_AND_NEIGHBOUR or self.message == MLD2_REPORT))
        )

    @cached_property
    def signature(self) -> Label | None:
        """The sender in the payload; an error of ICMP only quotes it."""
        at = -1 if self.is_housekeeping else self.data.find(SIGNED_MAGIC)
        if at < 0 or at + SIGNATURE.size > len(self.data):
            return None
        _, tgid, tid, _, comm = SIGNATURE.unpack_from(self.data, at)
        return Label(comm.split(b"\0")[0].decode("latin-1"), tgid, tid)

    @cached_property
    def ids(self) -> tuple[int, int] | None:
        """Process and thread in the payload, without a name."""
        at = self.data.find(MAGIC)
        if at < 0 or at + WHO.size > len(self.data):
            return None
        _, tgid, tid, _ = WHO.unpack_from(self.data, at)
        return tgid, tid


@dataclass(frozen=True)
class Verdicts:
    """The packets of one scenario."""

    right: int = 0
    unknown: int = 0
    wrong: int = 0
    examples: tuple[str, ...] = ()
    """The packets that are not right, one line per kind, the wrong ones first."""

    @property
    def packets(self) -> int:
        """All of them."""
        return self.right + self.unknown + self.wrong


def verdict(packet: Packet, right: Collection[Label | Word] | Word) -> Literal["right", "unknown", "wrong"]:
    """Judge one packet.

    Args:
        packet: as we wrote it.
        right: the processes and words that may stand on it; one is enough.

    Returns:
        The verdict. A packet of a process that is said to be of nobody known is `unknown`, whatever
        the word; one of nobody is right under its word only, and wrong under any name. Option 8 has
        to say the same as the comment.
    """
    right = [right] if isinstance(right, str) else right
    name, via = packet.label, comment_fields(packet.comment).get("via", "")
    if packet.process != ((name.tgid, name.tid) if name and name.tgid else None):
        return "wrong"
    if name is not None:
        return "right" if name in right else "wrong"
    if via in {"unknown", "group"}:  # a group that has nothing in common
        return "unknown"
    if via in right:
        return "right"
    return "wrong" if any(isinstance(one, str) for one in right) else "unknown"


def judge(packets: Iterable[Packet], judge_of: Judge) -> Verdicts:
    """Judge the packets of a scenario."""
    counts = {"right": 0, "unknown": 0, "wrong": 0}
    kinds: Counter[tuple[str, str]] = Counter()
    for packet in packets:
        frame = Frame(packet.data, packet.link_type, packet.direction == "out")
        right = judge_of(frame)
        if right is None:
            continue
        found = verdict(packet, right)
        counts[found] += 1
        if found != "right":
            kind = f"{packet.interface} {packet.direction} {frame}: {packet.comment}; right: {right}"
            kinds[found, kind] += 1
    worst = sorted(kinds.items(), key=lambda kind: (kind[0][0] != "wrong", -kind[1]))[:EXAMPLES]
    examples = (f"{count} x {found}: {kind}" for (found, kind), count in worst)
    return Verdicts(**counts, examples=tuple(examples))


def by_signature(
    sent: Collection[Label] | Word | None = None,
    received: Collection[Label] | Word | None = None,
    *,
    echoed: bool = False,
) -> Judge:
    """Judge a sent packet by its signature.

    Args:
        sent: who may send what carries none; None leaves those packets out.
        received: who may receive; None leaves received packets out.
        echoed: a received packet carries the signature of who asked, which is the one who gets it.
    """

    def right(frame: Frame) -> Right:
        if frame.is_housekeeping:
            return None
        if frame.signature and (frame.is_sent or echoed):
            return [frame.signature]
        return sent if frame.is_sent else received

    return right
