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
import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import TypeAlias

from skbcapd.analysis.names import Names
from skbcapd.analysis.peers import names_at, peer_of, starts_tls
from skbcapd.analysis.sources import Timed
from skbcapd.attribution.fields import GROUPS
from skbcapd.pcapng.blocks import DIRECTION_IN, DIRECTION_OUT
from skbcapd.pcapng.flows import BYTES, FIRST_NS, LAST_NS, PACKETS, Counter, FlowKey, flow_key
from skbcapd.pcapng.reader import Stamp
from skbcapd.pcapng.repeats import Repeats
from skbcapd.text_safety import escaped_bytes

_PROCESSES_MAX = 1 << 16
_NAMES_MAX = 1 << 18  # of all processes together
_TEXT_MAX = 8 << 20  # bytes of all names, units and other texts together: 31 per name
_KNOWN_BYTES_MAX = 16 << 20  # bytes of the stamps of these flows
_PEERS_MAX = 1 << 19  # of all processes together
_FLOWS_MAX = 1 << 15  # flows that are remembered; then they are added up

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

    def note(self, service: int) -> None:
        """Add a service."""
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


@dataclass(eq=False, slots=True)
class _Sums:
    """The sums of packets with the same stamp and flow, until they are added to those of a process.

    Args:
        process: the row.
        way: packets and bytes of the row in their direction.
        name: packets of the row with their names.
        peer: the peer of the row; None: none, or too many.
        names_at: see `peers.names_at`.
        stamp: kept, because `_flows` has its id.
        counter: the sums; the reader adds to it, too.
    """

    process: Process
    way: list[int]
    name: list[int]
    peer: Peer | None
    names_at: int
    stamp: Stamp
    counter: Counter


_Row: TypeAlias = tuple[Process, list[int], list[int]]
_Flows: TypeAlias = dict[FlowKey | None, _Sums]


class Account:
    """Adds up packets by process, or by another field.

    Args:
        by: the field, one of BY.
        names: takes the names in all frames; None for none.
        has_drops: whether frames that the kernel has dropped are added up, too. They may have been captured before.
    """

    def __init__(self, by: str = "tgid", names: Names | None = None, *, has_drops: bool = False) -> None:
        self.left_out = 0
        """Dropped frames that were not added up."""
        self._by = by
        self._has_drops = has_drops
        self._names = names
        self.counted = Repeats()
        """The flows that `Sources.unordered` may count."""
        self._processes: dict[Key, Process] = {}
        self._flows: dict[int, _Flows] = {}  # by the id of the stamp, then by `flow_key`
        self._rows: dict[int, _Row] = {}  # by the id of the stamp
        self._single: list[_Sums] = []  # of frames with unusual headers
        self._flow_count = self._stamps_size = 0
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
        """Add packets, and those that are counted meanwhile."""
        has_drops, flows_of, no_flows = self._has_drops, self._flows, _Flows()
        see = self._names.see if self._names else None
        for time_ns, (interface, stamp, _, wire_len, frame, _) in packets:
            if interface.is_of_drops and not has_drops:
                self.left_out += 1
                continue
            layer = interface.link_type
            flow = flow_key(frame, layer)
            sums = flows_of.get(id(stamp), no_flows).get(flow)
            if sums is None:
                sums = self._find(flow, stamp, frame, layer, time_ns)
            if flow is not None and sums.names_at >= 0 and interface.is_countable:
                self.counted.add(sums.counter)
            counter = sums.counter
            counter[PACKETS] += 1
            counter[BYTES] += wire_len
            if time_ns > counter[LAST_NS]:
                counter[LAST_NS] = time_ns
            elif time_ns < counter[FIRST_NS]:
                counter[FIRST_NS] = time_ns
            if see is not None and (at := sums.names_at) and (at < 0 or starts_tls(frame, at)):
                see(frame, layer)
        self._flush()

    def _find(self, flow: FlowKey | None, stamp: Stamp, frame: memoryview, layer: int, time_ns: int) -> _Sums:
        """New sums for the packets with the same bytes and stamp; for a frame with unusual headers, only for itself."""
        peer = peer_of(frame, layer, stamp.direction)
        if self._by == PEER:
            row = self._row(stamp, (None,) if peer is None else str(ip_address(peer[0])).encode(), time_ns)
        else:
            row = self._rows.get(id(stamp)) or self._row(stamp, self.key(stamp), time_ns)
        process, way, name = row
        with_peer = None
        if peer is not None:
            with_peer = process.peers.get(peer[0])
            if with_peer is None and self._peers_left:
                self._peers_left -= 1
                with_peer = process.peers[peer[0]] = Peer()
            if with_peer is not None:
                with_peer.note(peer[1])
        if self._flow_count >= _FLOWS_MAX or self._stamps_size > _KNOWN_BYTES_MAX:
            self._flush()
        looks_at = names_at(flow, frame) if self._names else 0
        counter = [0, 0, time_ns, time_ns, 0, 0, looks_at, 0]
        sums = _Sums(process, way, name, with_peer, looks_at, stamp, counter)
        self._flow_count += 1
        self._rows[id(stamp)] = row
        if flow is None:
            self._single.append(sums)
        elif (flows := self._flows.get(id(stamp))) is not None:
            flows[flow] = sums
        else:
            self._flows[id(stamp)] = {flow: sums}
            self._stamps_size += stamp.size
        return sums

    def _flush(self) -> None:
        """Add the sums of flows to those of their processes, and forget the flows."""
        self.counted.forget()
        for sums in itertools.chain(self._single, *(flows.values() for flows in self._flows.values())):
            packets, size, first_ns, last_ns, *_ = sums.counter
            sums.way[0] += packets
            sums.way[1] += size
            sums.name[0] += packets
            process = sums.process
            process.first_ns = min(process.first_ns, first_ns)
            process.last_ns = max(process.last_ns, last_ns)
            if sums.peer is not None:
                sums.peer.packets += packets
                sums.peer.bytes += size
        self._flows.clear()
        self._rows.clear()
        self._single.clear()
        self._flow_count = self._stamps_size = 0

    def _row(self, stamp: Stamp, key: Key, time_ns: int) -> _Row:
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
