"""Sums of packets by process: which process sent and received how much.

In: packets from `reader`. Out: sums. A process is a tgid; if that is not known, a name; if that is
not known either, the value of `via`. Packets can also be added up by another field of their
comments, such as the name of the process. Peers are the other ends of packets: IP addresses,
without ports.

The rules not to break: little work per packet, because a file of 1 GB must not take minutes. Memory
is bounded, whatever the file holds: beyond the limits below, new entries are added up as "others",
or are not distinguished.
"""

from __future__ import annotations

import collections
import heapq
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import TypeAlias

from skbcapd.analysis.names import Names
from skbcapd.analysis.peers import Peers
from skbcapd.analysis.sources import Timed
from skbcapd.attribution.fields import GROUPS
from skbcapd.pcapng.blocks import DIRECTION_IN, DIRECTION_OUT
from skbcapd.pcapng.reader import Stamp
from skbcapd.text_safety import escaped_bytes

_PROCESSES_MAX = 1 << 16
_NAMES_MAX = 1 << 18  # of all processes together
_TEXT_MAX = 8 << 20  # bytes of all names, units and other texts together: 31 per name
_KNOWN_BYTES_MAX = 16 << 20  # bytes of the cached stamps
_PEERS_MAX = 1 << 19  # of all processes together
_KNOWN_MAX = 1 << 17  # stamps in the cache; then it is cleared

_SERVICES_MAX = 8  # of one peer

PEER = "peer"
BY = (*GROUPS, PEER)
"""What packets can be added up by."""

_Address: TypeAlias = bytes  # packed
Key: TypeAlias = int | bytes | tuple[bytes | None]
_OTHERS = b"others"


@dataclass(eq=False, slots=True)
class Peer:
    """The sums of the packets with one peer.

    Args:
        services: see `peers`; the first few.
    """

    packets: int = 0
    bytes: int = 0
    services: tuple[int, ...] = ()

    def add(self, wire_len: int, service: int) -> None:
        """Add a packet."""
        self.packets += 1
        self.bytes += wire_len
        if service and service not in self.services and len(self.services) < _SERVICES_MAX:
            self.services += (service,)


@dataclass(eq=False, slots=True)
class Process:
    """The sums of one process, or of the packets with the same value of another field.

    Bytes are those of complete frames, even if fewer bytes were captured.

    Args:
        tgid: process id; None if it is not known, or if there are several.
        via: `via` of the comment if there is no process; None if there is no comment.
        first_ns: time of its first packet, nanoseconds since 1970 UTC.
        last_ns: time of its last packet.
        value: value of the field, if the field is not tgid.
    """

    tgid: int | None
    via: bytes | None
    first_ns: int
    last_ns: int
    value: bytes | None = None
    unit: bytes | None = None
    # (name of the process, name of the thread) -> [packets]; None: packets without names.
    names: dict[tuple[bytes | None, bytes | None], list[int]] = field(default_factory=dict)
    by_direction: dict[int, list[int]] = field(
        default_factory=lambda: {0: [0, 0], DIRECTION_IN: [0, 0], DIRECTION_OUT: [0, 0]}
    )
    peers: dict[bytes, Peer] = field(default_factory=dict)  # by packed address

    @property
    def processes(self) -> list[str]:
        """Its name; of several the one with most packets."""
        return self._ordered(0)

    @property
    def comms(self) -> list[str]:
        """The names of its threads, the one with most packets first."""
        return self._ordered(1)

    def _ordered(self, which: int) -> list[str]:
        counted: collections.Counter[bytes] = collections.Counter()
        for names, (count,) in self.names.items():
            if (name := names[which]) is not None:
                counted[name] += count
        return [escaped_bytes(name) for _, name in sorted((-count, name) for name, count in counted.items())]

    @property
    def packets(self) -> int:
        """Bytes in all directions."""
        return sum(packets for packets, _ in self.by_direction.values())

    @property
    def bytes(self) -> int:
        """In any direction."""
        return sum(size for _, size in self.by_direction.values())

    @property
    def says_anything(self) -> bool:
        """Whether any packet has a process, or a reason why it is not known."""
        return (
            self.tgid is not None
            or self.via is not None
            or self.value is not None
            or bool(self.names.keys() - {(None, None)})
        )

    def busiest(self, count: int | None = None) -> Iterator[tuple[_Address, Peer]]:
        """Its peers by packed address, those with most bytes first; at most so many, or all."""
        ordered = ((-peer.bytes, address) for address, peer in self.peers.items())
        for _, address in sorted(ordered) if count is None else heapq.nsmallest(count, ordered):
            yield address, self.peers[address]


_Found: TypeAlias = tuple[Process, list[int], list[int]]


class Account:
    """Adds up packets by process, or by another field.

    Args:
        by: the field, one of BY.
        names: takes the names in all frames; None for none.
    """

    def __init__(self, by: str = "tgid", names: Names | None = None) -> None:
        self._by = by
        self._names = names
        self._processes: dict[Key, Process] = {}
        self._known: dict[Stamp, tuple[Process, list[int], list[int]]] = {}
        self._known_size = 0
        self._names_left = _NAMES_MAX
        self._text_left = _TEXT_MAX
        self._peers_left = _PEERS_MAX

    @property
    def processes(self) -> list[Process]:
        """All rows, the one with most bytes first."""
        return sorted(self._processes.values(), key=lambda process: (-process.bytes, process.first_ns))

    @property
    def rows(self) -> Mapping[Key, Process]:
        """All rows by their keys."""
        return self._processes

    def key(self, stamp: Stamp) -> Key:
        """The value by which packets are added up; a tuple if the packet has no process."""
        value = stamp.value(self._by)
        if value is not None:
            return value
        if self._by == "tgid" and stamp.name is not None:
            return stamp.name
        return (stamp.via if stamp.tgid is None and stamp.name is None else None,)

    def read(self, packets: Iterable[Timed]) -> None:
        """Add packets."""
        current = None
        layer = 0
        known = self._known
        by_peer = self._by == PEER
        see = self._names.see if self._names else None
        peer_of = Peers().of
        for time_ns, (interface, stamp, _, wire_len, frame, _) in packets:
            if interface is not current:
                current, layer = interface, interface.link_type
            if see is not None:
                see(frame, layer)
            peer = peer_of(frame, layer, stamp.direction)
            if by_peer:
                found = self._find_peer(peer and peer[0], stamp, time_ns)
            else:
                found = known.get(stamp) or self._find(stamp, self.key(stamp), time_ns)
            process, way, name = found
            way[0] += 1
            way[1] += wire_len
            name[0] += 1
            if time_ns > process.last_ns:
                process.last_ns = time_ns
            elif time_ns < process.first_ns:
                process.first_ns = time_ns
            if peer is not None:
                sums = process.peers.get(peer[0])
                if sums is None and self._peers_left:
                    self._peers_left -= 1
                    sums = process.peers[peer[0]] = Peer()
                if sums is not None:
                    sums.add(wire_len, peer[1])

    def _find_peer(self, address: bytes | None, stamp: Stamp, time_ns: int) -> _Found:
        """The row of a peer."""
        key: Key = (None,) if address is None else str(ip_address(address)).encode()
        return self._row(stamp, key, time_ns)

    def _find(self, stamp: Stamp, key: Key, time_ns: int) -> _Found:
        """As `_row`; what was found is remembered for the stamp."""
        found = self._row(stamp, key, time_ns)
        if len(self._known) >= _KNOWN_MAX or self._known_size > _KNOWN_BYTES_MAX:
            self._known.clear()
            self._known_size = 0
        self._known_size += stamp.size
        self._known[stamp] = found
        return found

    def _row(self, stamp: Stamp, key: Key, time_ns: int) -> _Found:
        """The row of a stamp, and the counter for its names; new if needed."""
        tgid, via, names = stamp.tgid, stamp.via, (stamp.name, stamp.comm)
        process = self._processes.get(key)
        if process is None and (len(self._processes) >= _PROCESSES_MAX or not self._has_room(key)):
            tgid, via, names, key = None, _OTHERS, (None, None), (_OTHERS,)
            process = self._processes.get(key)
        if process is None:
            via = via if isinstance(key, tuple) else None
            value = key if isinstance(key, bytes) and self._by != "tgid" else None
            process = self._processes[key] = Process(tgid, via, time_ns, time_ns, value)
        if process.tgid != tgid:
            process.tgid = None
        if process.unit is None and stamp.unit is not None and key != (_OTHERS,) and self._has_room(stamp.unit):
            process.unit = stamp.unit
        if names not in process.names:
            if self._names_left and self._has_room(*names):
                self._names_left -= 1
            else:
                names = None, None
        way = process.by_direction.get(stamp.direction, process.by_direction[0])
        return process, way, process.names.setdefault(names, [0])

    def _has_room(self, *texts: Key | None) -> bool:
        """Whether there is space for texts, which are counted then."""
        flat = (part for text in texts for part in (text if isinstance(text, tuple) else (text,)))
        size = sum(len(part) for part in flat if isinstance(part, bytes))
        if size > self._text_left:
            return False
        self._text_left -= size
        return True
