"""Why packets have no process, as far as their file says it.

In: packets without a process. Out: packets and bytes by `via`, direction and protocol, each with the cause.

The rules not to break: a cause repeats what docs/attribution.md says, and names several where the file does not tell
them apart. Memory is bounded: beyond 64 kinds of packets, and beyond 65,536 pairs of a kind and a connection, packets
are only distinguished by direction, or not by connection.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Generic, NamedTuple, TypeVar

from skbcapd.frames import headers
from skbcapd.pcapng.blocks import DIRECTION_IN, DIRECTION_OUT, EPB_FLAGS, RECEPTION_PROMISCUOUS
from skbcapd.pcapng.reader import walk_options
from skbcapd.report.flows import Connection

_KINDS_MAX = 64
_CELLS_MAX = 1 << 16
_OTHERS = b"others"
_SYN, _RST, _ACK, _ECHO_REPLY = 2, 4, 16, {(headers.ICMP, 0), (headers.ICMPV6, 129)}
_RECEPTION = 7 << 2  # the bits of epb_flags

SYN, RST, TCP, UDP, FRAGMENT = "TCP SYN", "TCP RST", "TCP", "UDP", "later fragment"
ECHO_REPLY, ICMP, ICMPV6, IGMP, ARP = "echo reply", "ICMP", "ICMPv6", "IGMP", "ARP"
OTHER_IP, OTHER = "other IP", "no IP"

_Key = TypeVar("_Key")


class Kind(NamedTuple):
    """What is known of a packet without a process.

    Args:
        via: of its comment; None: there is no comment of skbcapd.
        direction: DIRECTION_ value, 0 if it is not known.
        protocol: one of the above; empty if the cause does not depend on it.
        is_foreign: whether it was received for another machine.
        has_process: whether other packets of its connection have a process.
    """

    via: bytes | None
    direction: int
    protocol: str
    is_foreign: bool = False
    has_process: bool = False


class Causes(Generic[_Key]):
    """Adds up packets without a process."""

    def __init__(self) -> None:
        self._kinds: set[Kind] = set()
        self._sums: dict[tuple[Kind, Connection[_Key] | None], list[int]] = {}

    def add(self, kind: Kind, connection: Connection[_Key] | None, wire_len: int) -> None:
        """Add a packet.

        Args:
            kind: see `kind_of`.
            connection: its connection; None: none, or it is not listed.
            wire_len: original length in bytes.
        """
        if kind not in self._kinds:
            if len(self._kinds) >= _KINDS_MAX:
                kind = Kind(_OTHERS, kind.direction, "")
            self._kinds.add(kind)
        sums = self._sums.get((kind, connection))
        if sums is None:
            if len(self._sums) >= _CELLS_MAX:
                connection = None
            sums = self._sums.setdefault((kind, connection), [0, 0])
        sums[0] += 1
        sums[1] += wire_len

    def rows(self) -> Iterator[tuple[Kind, str, int, int]]:
        """What was added: kind, cause, packets and bytes; the most packets first."""
        found: dict[Kind, list[int]] = {}
        for (kind, connection), (packets, size) in self._sums.items():
            has_process = connection is not None and connection.has_process
            known = kind._replace(has_process=has_process)
            sums = found.setdefault(known if cause(known) != cause(kind) else kind, [0, 0])
            sums[0] += packets
            sums[1] += size
        for kind, (packets, size) in sorted(found.items(), key=lambda item: -item[1][0]):
            yield kind, cause(kind), packets, size


def kind_of(via: bytes | None, direction: int, frame: memoryview, link_type: int, options: bytes, order: str) -> Kind:
    """The kind of a packet without a process.

    Args:
        via: of its comment; None: none.
        direction: DIRECTION_ value, 0 if it is not known.
        frame: the captured bytes.
        link_type: LINKTYPE_ value.
        options: of the packet.
        order: byte order of its section, `<` or `>`.
    """
    if via in _OF_VIA:
        return Kind(via, direction, "")
    is_foreign = False
    if via == b"unknown" and direction == DIRECTION_IN:
        for code, value in walk_options(options, order):
            if code == EPB_FLAGS and len(value) == 4:
                is_foreign = struct.unpack(order + "I", value)[0] & _RECEPTION == RECEPTION_PROMISCUOUS
    return Kind(via, direction, protocol_of(frame, link_type), is_foreign)


def protocol_of(frame: memoryview, link_type: int) -> str:
    """What a cause depends on: one of the names above."""
    found = headers.read(frame, link_type)
    if found.is_later:
        return FRAGMENT
    at, protocol = found.transport, found.protocol
    if protocol == headers.TCP:
        flags = frame[at + 13] if at + 13 < len(frame) else 0
        return RST if flags & _RST else SYN if flags & (_SYN | _ACK) == _SYN else TCP
    if protocol in {headers.ICMP, headers.ICMPV6} and at < len(frame):
        name = ICMP if protocol == headers.ICMP else ICMPV6
        return ECHO_REPLY if (protocol, frame[at]) in _ECHO_REPLY else name
    known = {headers.UDP: UDP, headers.UDPLITE: UDP, 2: IGMP}.get(protocol)
    if known is not None:
        return known
    return ARP if found.kind == headers.ARP else OTHER_IP if found.kind in {headers.IPV4, headers.IPV6} else OTHER


_KERNEL = {
    RST: "the kernel resets a connection, such as one to a closed port",
    ICMP: "an answer or an error message of the kernel",
    ECHO_REPLY: "the kernel answers an echo request",
    ICMPV6: "an answer, an error message or neighbour discovery of the kernel",
    ARP: "address resolution by the kernel",
    IGMP: "the kernel reports multicast groups",
}
_NO_SOCKET = "the kernel itself receives such packets, or a process whose name cannot be proven"
_GUARD = "or something in front of the sockets can redirect it (NAT, tc, XDP, sk_lookup, IPVS, VRF)"
_RECEIVED = {
    SYN: f"no process listens at the port, several processes may have the listening socket, {_GUARD}",
    RST: f"it belongs to no known connection, {_GUARD}",
    TCP: f"it belongs to no known connection, or no process has accepted it; {_GUARD}",
    UDP: f"no socket has the port, several processes may have one, {_GUARD}; or it is a tunnel",
    ECHO_REPLY: "no process is known that has sent the request, or two processes have the same identifier",
    FRAGMENT: "the process of the first fragment is not known, or it arrived more than a second before",
}
_OLD = "its socket was not used since the capture began, and /proc did not show (yet) which one process has it open"
_SENT = {
    RST: f"no known process has accepted the connection, or {_OLD}",
    TCP: f"no known process has accepted the connection, or {_OLD}",
    UDP: f"it left in a tunnel, or {_OLD}",
}
_LATE = {
    DIRECTION_IN: "other packets of the connection have a process: it arrived before a process accepted the "
    "connection, or before the first answer, or after the socket was closed",
    DIRECTION_OUT: "other packets of the connection have a process: it was sent before a process accepted the "
    "connection, or before /proc was searched, or after the socket was closed",
}


_NO_DIRECTION = "no process is known for certain, and the file does not say whether it was sent or received"
_BY_DIRECTION = {
    DIRECTION_IN: (_RECEIVED, _NO_SOCKET),
    DIRECTION_OUT: (_SENT, f"it passed from an interface that is not captured, or {_OLD}"),
}
_OF_VIA = {
    None: "the file does not say whose packet it is: it has no comment of skbcapd",
    b"forwarded": "it came in through another interface, and passed through this machine",
    b"group": "it belongs to one of several processes, which have no name in common",
    _OTHERS: "too many kinds to show them",
}


def cause(kind: Kind) -> str:
    """Why a packet of a kind has no process."""
    if kind.via == b"kernel":
        return _KERNEL.get(kind.protocol, "the kernel itself sent it")
    if kind.via != b"unknown":
        return _OF_VIA.get(kind.via, "the comment has neither a name nor a process id")
    if kind.is_foreign:
        return "it is for another machine (the interface is in promiscuous mode)"
    if kind.has_process and kind.direction in _LATE and kind.protocol in {SYN, RST, TCP, UDP}:
        return _LATE[kind.direction]
    causes, otherwise = _BY_DIRECTION.get(kind.direction, ({}, _NO_DIRECTION))
    return causes.get(kind.protocol, otherwise)
