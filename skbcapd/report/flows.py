"""Connections and protocols of the packets in a capture.

In: frames. Out: for each pair of addresses and ports, its first and last packet, and sums; sums for
each protocol.

The rules not to break: memory is bounded: connections after the first 65,536 are only counted in
their protocol. Little work per packet: the headers of a flow are read once.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Generic, NamedTuple, TypeVar

from skbcapd.analysis.peers import is_regular
from skbcapd.frames import headers
from skbcapd.pcapng.blocks import DIRECTION_IN
from skbcapd.pcapng.flows import FlowKey, flow_key

_CONNECTIONS_MAX = 1 << 16
_KNOWN_MAX = 1 << 16
_PROTOCOLS_MAX = 1 << 12
_OTHERS = "others"

_IP = {headers.ICMP: "icmp", headers.ICMPV6: "icmpv6", 2: "igmp", 47: "gre", 50: "esp"}

_Key = TypeVar("_Key", bound=Hashable)


class End(NamedTuple):
    """One end of a connection.

    Args:
        address: packed.
        port: 0 if the protocol has none.
    """

    address: bytes
    port: int

    def __str__(self) -> str:
        address = ip_address(self.address)
        text = f"[{address}]" if address.version == 6 and self.port else str(address)
        return f"{text}:{self.port}" if self.port else text


@dataclass(eq=False, slots=True)
class Connection(Generic[_Key]):
    """The packets between two ends.

    Args:
        protocol: such as tcp/443.
        local: the sender of a sent packet, the receiver of a received one.
        remote: the other end.
        first_ns: nanoseconds since 1970 UTC.
        last_ns: the same.
        owner: key of the first packet with a process, otherwise of the first packet.
        is_owned: whether its packet had a process.
        has_process: whether any packet has a process, whatever the owner is.
    """

    protocol: str
    local: End
    remote: End
    first_ns: int
    last_ns: int
    owner: _Key
    is_owned: bool
    packets: int = 0
    bytes: int = 0
    has_process: bool = False


class Flows(Generic[_Key]):
    """Adds up packets by connection and by protocol."""

    def __init__(self) -> None:
        self.protocols: dict[str, list[int]] = {}
        """Packets and bytes of each protocol."""
        self.left_out = 0
        """Packets of connections that are not listed."""
        self._connections: dict[tuple[str, frozenset[End]], Connection[_Key]] = {}
        self._known: dict[FlowKey, tuple[list[int], Connection[_Key] | None]] = {}

    @property
    def connections(self) -> list[Connection[_Key]]:
        """All connections, the one with most bytes first."""
        return sorted(self._connections.values(), key=lambda each: (-each.bytes, each.first_ns))

    def add(
        self,
        time_ns: int,
        frame: memoryview,
        link_type: int,
        direction: int,
        wire_len: int,
        owner: _Key,
        *,
        is_owned: bool,
    ) -> Connection[_Key] | None:
        """Add a packet; returns its connection, None if there is none, or if it is not listed.

        Args:
            time_ns: nanoseconds since 1970 UTC.
            frame: the captured bytes.
            link_type: LINKTYPE_ value.
            direction: DIRECTION_ value, 0 if it is not known.
            wire_len: original length in bytes.
            owner: key of its process.
            is_owned: whether it has a process.
        """
        flow = flow_key(frame, link_type)
        found = None if flow is None else self._known.get(flow)
        if found is None:
            found = self._find(flow, time_ns, frame, link_type, direction, owner, is_owned=is_owned)
        sums, connection = found
        sums[0] += 1
        sums[1] += wire_len
        if connection is None:
            self.left_out += 1
            return None
        connection.packets += 1
        connection.bytes += wire_len
        connection.first_ns = min(connection.first_ns, time_ns)
        connection.last_ns = max(connection.last_ns, time_ns)
        if is_owned and not connection.is_owned:
            connection.owner, connection.is_owned = owner, True
        return connection

    def _find(
        self,
        flow: FlowKey | None,
        time_ns: int,
        frame: memoryview,
        link_type: int,
        direction: int,
        owner: _Key,
        *,
        is_owned: bool,
    ) -> tuple[list[int], Connection[_Key] | None]:
        """The sums of the protocol of a frame, and its connection; new if needed, and remembered for its flow."""
        read = headers.read(frame, link_type)
        ends, ports = headers.addresses(frame, read), headers.ports(frame, read)
        protocol = _protocol(read, ports)
        if protocol not in self.protocols and len(self.protocols) >= _PROTOCOLS_MAX:
            protocol = _OTHERS
        sums = self.protocols.setdefault(protocol, [0, 0])
        if ends is None:
            return sums, None
        source, destination = (End(*end) for end in zip(ends, ports or (0, 0), strict=True))
        key = protocol, frozenset((source, destination))
        connection = self._connections.get(key)
        if connection is None and len(self._connections) < _CONNECTIONS_MAX:
            local, remote = (destination, source) if direction == DIRECTION_IN else (source, destination)
            connection = Connection(protocol, local, remote, time_ns, time_ns, owner, is_owned)
            self._connections[key] = connection
        if flow is not None and is_regular(flow, frame, read):
            if len(self._known) >= _KNOWN_MAX:
                self._known.clear()
            self._known[flow] = sums, connection
        return sums, connection


def _protocol(found: headers.Headers, ports: tuple[int, int] | None) -> str:
    """The protocol of a frame, with the lower port, which in most cases is that of the server."""
    if found.protocol in headers.WITH_PORTS:
        name = headers.WITH_PORTS[found.protocol]
        return f"{name}/{min(ports)}" if ports else f"{name} fragment"
    if found.protocol >= 0:
        return _IP.get(found.protocol, f"IP protocol {found.protocol}")
    return {headers.ARP: "arp", headers.IPV4: "ipv4", headers.IPV6: "ipv6", 0: "unknown"}.get(
        found.kind, f"EtherType {found.kind:#06x}"
    )
