"""Sums of packets by process: which process sent and received how much.

In: packets from `reader`. Out: sums. A process is a tgid; if that is not known, a name; if that is
not known either, the value of `via`. Its peers are the other ends of its packets: IP addresses,
without ports.

The rules not to break: little work per packet, because a file of 1 GB must not take minutes. Memory
is bounded, whatever the file holds: beyond the limits below, new entries are added up as "others",
or are not distinguished.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import TypeAlias

from skbcapd.pcapng.blocks import DIRECTION_IN, DIRECTION_OUT
from skbcapd.pcapng.link_type import ETHERNET, RAW
from skbcapd.pcapng.reader import Reader, Stamp
from skbcapd.text_safety import escaped_bytes

_PROCESSES_MAX = 1 << 16
_NAMES_MAX = 1 << 18  # of all processes together
_PEERS_MAX = 1 << 19  # the same
_KNOWN_MAX = 1 << 17  # stamps of which it is remembered whose they are; then that starts anew

_Key: TypeAlias = int | bytes | tuple[bytes | None]
_OTHERS = b"others"

_IP = {RAW, 228, 229}  # LINKTYPE_RAW, _IPV4, _IPV6
_IPV4, _IPV6, _TAGS = 0x0800, 0x86DD, {0x8100, 0x88A8}


@dataclass(eq=False, slots=True)
class Process:
    """The sums of one process. Bytes are those of whole frames, also where less was captured.

    Args:
        tgid: its id; None when not known.
        via: why it is not known, as the comment says it; None when nothing is said.
        first_ns: time of its first packet, nanoseconds since 1970 UTC.
        last_ns: the same of the last.
    """

    tgid: int | None
    via: bytes | None
    first_ns: int
    last_ns: int
    unit: bytes | None = None
    names: dict[bytes | None, list[int]] = field(default_factory=dict)  # to [packets]; None: packets without
    ways: dict[int, list[int]] = field(default_factory=lambda: {0: [0, 0], DIRECTION_IN: [0, 0], DIRECTION_OUT: [0, 0]})
    peers: dict[bytes, list[int]] = field(default_factory=dict)  # packed address to [packets, bytes]

    @property
    def comms(self) -> list[str]:
        """What its threads are called, the one with most packets first."""
        counted = sorted((-count, name) for name, (count,) in self.names.items() if name is not None)
        return [escaped_bytes(name) for _, name in counted]

    @property
    def packets(self) -> int:
        """In any direction."""
        return sum(packets for packets, _ in self.ways.values())

    @property
    def bytes(self) -> int:
        """In any direction."""
        return sum(size for _, size in self.ways.values())

    @property
    def is_named(self) -> bool:
        """Whether any packet says who it is."""
        return self.tgid is not None or bool(self.comms)

    @property
    def busiest(self) -> list[tuple[str, int, int]]:
        """Its peers with packets and bytes, those with most bytes first."""
        ordered = sorted((-size, peer, packets) for peer, (packets, size) in self.peers.items())
        return [(str(ip_address(peer)), packets, -size) for size, peer, packets in ordered]


class Account:
    """Adds up packets, process by process."""

    def __init__(self) -> None:
        self._processes: dict[_Key, Process] = {}
        self._known: dict[Stamp, tuple[Process, list[int], list[int]]] = {}
        self._names_left = _NAMES_MAX
        self._peers_left = _PEERS_MAX

    @property
    def processes(self) -> list[Process]:
        """All, the one with most bytes first."""
        return sorted(self._processes.values(), key=lambda process: (-process.bytes, process.first_ns))

    def read(self, reader: Reader) -> None:
        """Add all packets of a file.

        Raises:
            FileError: it cannot be read to its end; the packets before that place are counted.
        """
        current = None
        layer, is_plain = 0, False
        known = self._known
        for interface, stamp, time, wire_len, frame, _ in reader.packets():
            if interface is not current:
                current, layer = interface, interface.link_type
                is_plain = interface.ticks == 10**9 and not interface.offset_s
            time_ns = time if is_plain else interface.time_ns(time)
            found = known.get(stamp) or self._find(stamp, time_ns)
            process, way, name = found
            way[0] += 1
            way[1] += wire_len
            name[0] += 1
            if time_ns > process.last_ns:
                process.last_ns = time_ns
            elif time_ns < process.first_ns:
                process.first_ns = time_ns
            peer = _peer(frame, layer, stamp.direction)
            if peer is not None:
                pair = process.peers.get(peer)
                if pair is not None:
                    pair[0] += 1
                    pair[1] += wire_len
                elif self._peers_left:
                    self._peers_left -= 1
                    process.peers[peer] = [1, wire_len]

    def _find(self, stamp: Stamp, time_ns: int) -> tuple[Process, list[int], list[int]]:
        """The process of a stamp, new if need be, and where the stamp's packets are counted there."""
        tgid, comm, unit, via, direction = stamp
        key: _Key = tgid if tgid is not None else comm if comm is not None else (via,)
        if key not in self._processes and len(self._processes) >= _PROCESSES_MAX:
            tgid = comm = unit = None
            key, via = (_OTHERS,), _OTHERS
        process = self._processes.get(key)
        if process is None:
            via = via if isinstance(key, tuple) else None
            process = self._processes[key] = Process(tgid, via, time_ns, time_ns)
        process.unit = process.unit or unit
        if comm is not None and comm not in process.names:
            if self._names_left:
                self._names_left -= 1
            else:
                comm = None
        if len(self._known) >= _KNOWN_MAX:
            self._known.clear()
        way = process.ways.get(direction, process.ways[0])
        found = self._known[stamp] = (process, way, process.names.setdefault(comm, [0]))
        return found


def _peer(frame: memoryview, link_type: int, direction: int) -> bytes | None:
    """The other end's IP address, packed; None where there is none, or no direction says which end is the other."""
    at = 0
    if link_type == ETHERNET:
        if len(frame) < 34:
            return None
        at, kind = 14, frame[12] << 8 | frame[13]
        while kind in _TAGS and at + 4 <= len(frame):
            at, kind = at + 4, frame[at + 2] << 8 | frame[at + 3]
    elif link_type in _IP and len(frame):
        kind = {4: _IPV4, 6: _IPV6}.get(frame[0] >> 4, 0)
    else:
        return None
    if kind == _IPV4:
        at, size = at + 12, 4
    elif kind == _IPV6:
        at, size = at + 8, 16
    else:
        return None
    if direction == DIRECTION_OUT:
        at += size
    elif direction != DIRECTION_IN:
        return None
    peer = bytes(frame[at : at + size])
    return peer if len(peer) == size else None
