"""The flow and the process of a packet, as columns of an index.

In: a frame and the options of its block. Out: a key, equal for all packets of a row.

The rule not to break: what is remembered is found by all the bytes that it depends on. Frames are not trusted: a frame
whose headers are unusual is read header by header, and not remembered.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Hashable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, TypeAlias

from skbcapd.analysis.peers import names_at
from skbcapd.fleet.rows import cells
from skbcapd.frames import headers
from skbcapd.frames.headers import TCP, UDP, Headers
from skbcapd.pcapng.blocks import DIRECTION_IN, DIRECTION_OUT, EPB_PROCESSID_THREADID, IF_DESCRIPTION, IF_NAME
from skbcapd.pcapng.flows import flow_key
from skbcapd.pcapng.reader import Interface, Stamp, walk_options
from skbcapd.text_safety import escaped_bytes

_SUMS_AT = {DIRECTION_OUT: 4, DIRECTION_IN: 6, 0: 8}
_ENDS4 = 12  # bytes of two addresses and two ports
_HEADER4 = 20  # bytes
_TRANSPORT_AT = {4: 34, 16: 54}  # by the size of an address
_WITH_ENDS = {TCP, UDP}
_DNS = (53).to_bytes(2, "big")
_PORTS = struct.Struct(">HH")
_KNOWN_MAX = 1 << 15  # entries; then all are forgotten
_TEXT_MAX = 1000  # characters that are kept for each row
_DESCRIBED_MAX = 520  # bytes of the name of an interface, and of its description; the index has no more of a longer one


class Flow(NamedTuple):
    """Both ends of packets, as this host sees them.

    Addresses are packed, None without an IP header. Ports are None without a header that has some, and in fragments
    other than the first.
    """

    protocol: int | None = None
    local: bytes | None = None
    local_port: int | None = None
    peer: bytes | None = None
    peer_port: int | None = None


class Label(NamedTuple):
    """The process of packets, as text of printable ASCII and numbers; None: not known."""

    process_name: str | None = None
    thread_name: str | None = None
    process_pid: int | None = None
    thread_id: int | None = None
    user_name: str | None = None
    unit: str | None = None
    container_id: str | None = None
    pod: str | None = None
    via: str | None = None


@dataclass(eq=False, slots=True)
class Key:
    """A row without its granule; one object for equal ones, so it is compared by identity.

    Args:
        interface: its interface.
        described: name and description of the interface.
        label: its process.
        flow: its ends.
        owners: its numbers in `Flows.owners` by direction; -1: no packet had it.
        sums: of a granule that has ended, until its rows are made: first and last time, offset of the first and last
            block; packets and bytes sent, received, and others.
        texts: the columns before the name of the peer, and those after it, up to the network namespace; None: they were
            not needed yet.
    """

    interface: Interface
    described: tuple[str, str]
    label: Label
    flow: Flow
    owners: list[int]
    sums: list[int] | None = None
    texts: tuple[str, str] | None = None

    def make_texts(self) -> tuple[str, str]:
        """Make `texts`, and keep it, unless it is long."""
        protocol, local, local_port, peer, peer_port = self.flow
        before = f"{address_text(peer) if peer else ''},{'' if peer_port is None else peer_port}"
        here = f"{address_text(local) if local else ''},{'' if local_port is None else local_port}"
        protocol_text = "" if protocol is None else protocol
        made = before, f"{here},{protocol_text},{_cells(self.label)},{_cells(self.described)}"
        if len(made[1]) < _TEXT_MAX:
            self.texts = made
        return made


_cells = lru_cache(maxsize=1 << 12)(cells)


class Found(NamedTuple):
    """Where a packet is counted.

    Args:
        owner: number of the row and the direction in `Flows.owners`.
        names_at: see `peers.names_at`; of TCP, only what is sent can have names.
        is_countable: whether the reader may count all packets with the same key there.
    """

    owner: int
    names_at: int
    is_countable: bool


_Ends: TypeAlias = tuple[int, int, int, bytes] | tuple[int, int, Flow]
"""What distinguishes rows: ids of the interface and of the label, protocol, and both ends."""


class Flows:
    """Finds flow and process, and remembers them."""

    def __init__(self) -> None:
        self.known: dict[Hashable, Found] = {}
        """What `find` has returned for regular packets that are always returned by the reader, by `Counted.key`."""
        self.owners: list[tuple[Key, int]] = []
        """By OWNER of counters: a row, and where the sums of a direction are in `Key.sums`."""
        self._labels: dict[int, tuple[Label, Stamp]] = {}  # by the id of the stamp, which must live as long
        self._same_labels: dict[Label, Label] = {}  # one object for equal ones, which lives as long as `_keys`
        self._keys: dict[_Ends, Key] = {}  # numbers and bytes: Python's garbage collection need not look at them
        self._interfaces: dict[Interface, tuple[str, str]] = {}

    def clear(self) -> None:
        """Forget everything: numbers of interfaces have another meaning from here on."""
        self.known.clear()
        self.owners.clear()
        self._labels.clear()
        self._keys.clear()
        self._same_labels.clear()
        self._interfaces.clear()

    def find(self, key: Hashable, interface: Interface, stamp: Stamp, frame: memoryview, options: bytes) -> Found:
        """Where a packet is counted that `known` does not have.

        Args:
            key: from the reader; None: it is not remembered.
            interface: its interface.
            stamp: its stamp.
            frame: its bytes.
            options: its options.
        """
        direction = stamp.direction if stamp.direction in _SUMS_AT else 0
        labelled = self._labels.get(id(stamp))
        label = labelled[0] if labelled else self._labelled(stamp, options, interface.section.order)
        usual = usual_ends(frame, interface.link_type)
        if usual is None:
            return self._find_unusual(interface, label, frame, direction)
        protocol, ends = usual
        source_port, size = ends[-4:-2], len(ends) // 2 - 2
        if direction == DIRECTION_IN:
            ends = ends[size : 2 * size] + ends[:size] + ends[-2:] + source_port
        row = self._key(interface, label, protocol, ends)
        owner = row.owners[direction]
        if owner < 0:
            owner = self._owner(row, direction)
        if protocol == TCP:  # what a client of this host asks for is sent
            looks_at = 0 if direction == DIRECTION_IN else _TRANSPORT_AT[size]
        else:
            looks_at = -1 if source_port == _DNS else 0
        found = Found(owner, looks_at, key is not None and looks_at >= 0 and interface.is_countable)
        if key is not None and not found.is_countable:
            if len(self.known) >= _KNOWN_MAX:
                self.known.clear()
            self.known[key] = found
        return found

    def _find_unusual(self, interface: Interface, label: Label, frame: memoryview, direction: int) -> Found:
        """The same for other frames: each is read header by header, and not remembered."""
        read = headers.read(frame, interface.link_type)
        looks_at = names_at(flow_key(frame, interface.link_type), frame) if read.protocol in {TCP, UDP} else 0
        if read.protocol == TCP and direction == DIRECTION_IN:
            looks_at = 0
        flow = _flow(frame, read, direction)
        if flow.protocol in _WITH_ENDS and flow.local and flow.peer and flow.local_port is not None:
            ends = flow.local + flow.peer + _PORTS.pack(flow.local_port, flow.peer_port)
            row = self._key(interface, label, flow.protocol, ends)
        else:
            row = self._keys.get((id(interface), id(label), flow)) or self._new(
                (id(interface), id(label), flow), interface, label, flow
            )
        return Found(self._owner(row, direction), looks_at, is_countable=False)

    def _owner(self, row: Key, direction: int) -> int:
        """The number of a row and a direction."""
        owner = row.owners[direction]
        if owner < 0:
            owner = row.owners[direction] = len(self.owners)
            self.owners.append((row, _SUMS_AT[direction]))
        return owner

    def _labelled(self, stamp: Stamp, options: bytes, order: str) -> Label:
        """The process of a stamp that `_labels` does not have."""
        if len(self._labels) >= _KNOWN_MAX:
            self._labels.clear()
        label = _label(stamp, options, order)
        label = self._same_labels.setdefault(label, label)
        self._labels[id(stamp)] = label, stamp
        return label

    def _key(self, interface: Interface, label: Label, protocol: int, ends: bytes) -> Key:
        """The row of TCP or UDP.

        Args:
            interface: its interface.
            label: of `_same_labels`.
            protocol: its protocol.
            ends: the address of this end and of the other one, and their ports.
        """
        which = id(interface), id(label), protocol, ends
        found = self._keys.get(which)
        if found is None:
            size = len(ends) // 2 - 2
            local_port, peer_port = _PORTS.unpack(ends[-4:])
            flow = Flow(protocol, ends[:size], local_port, ends[size : 2 * size], peer_port)
            found = self._new(which, interface, label, flow)
        return found

    def _new(self, which: _Ends, interface: Interface, label: Label, flow: Flow) -> Key:
        """A row that `_keys` does not have."""
        described = self._interfaces.get(interface) or self._described(interface)
        found = self._keys[which] = Key(interface, described, label, flow, [-1, -1, -1])
        return found

    def _described(self, interface: Interface) -> tuple[str, str]:
        """The name of an interface, and its description: the network namespace."""
        options = dict(interface.options())
        name, description = (options.get(code, b"")[:_DESCRIBED_MAX] for code in (IF_NAME, IF_DESCRIPTION))
        found = escaped_bytes(name), escaped_bytes(description)
        self._interfaces[interface] = found
        return found

    @property
    def is_full(self) -> bool:
        """Whether it must be cleared before the next granule. Within one, equal keys must stay one object."""
        return len(self._keys) >= _KNOWN_MAX


def usual_ends(frame: memoryview, link_type: int) -> tuple[int, bytes] | None:
    """Both ends of TCP and UDP in the usual headers, as `headers.read` finds them, too.

    Returns:
        The protocol, and both addresses and ports, the source first; None for other frames, fragments and wrong
        lengths.
    """
    flow = flow_key(frame, link_type)
    if flow is None:
        return None
    protocol, ends = flow
    if len(ends) == _ENDS4:
        if protocol & 0xFF3F or (not frame[16] and 0 < frame[17] < _HEADER4):  # a fragment (see FLOW4); wrong length
            return None
        protocol >>= 24
    return (protocol, ends) if protocol in _WITH_ENDS else None


def _flow(frame: memoryview, read: Headers, direction: int) -> Flow:
    ends, ports = headers.addresses(frame, read), headers.ports(frame, read)
    if ends is None:
        return Flow()
    protocol = read.protocol if read.protocol >= 0 else None
    source, destination = (ends[0], ports and ports[0]), (ends[1], ports and ports[1])
    local, peer = (destination, source) if direction == DIRECTION_IN else (source, destination)
    return Flow(protocol, *local, *peer)


def _label(stamp: Stamp, options: bytes, order: str) -> Label:
    more = dict(stamp.more)
    ids = (value for code, value in walk_options(options, order) if code == EPB_PROCESSID_THREADID and len(value) == 8)
    _, thread_id = struct.unpack(order + "II", next(ids, bytes(8)))
    return Label(
        _text(stamp.name),
        _text(stamp.comm),
        stamp.tgid,
        thread_id or None,
        _text(more.get("user")),
        _text(stamp.unit),
        _text(more.get("container")),
        _text(more.get("pod")),
        _text(stamp.via),
    )


def _text(value: bytes | None) -> str | None:
    return escaped_bytes(value) if value else None  # an index does not distinguish an empty text


@lru_cache(maxsize=1 << 14)
def address_text(address: bytes) -> str:
    """An IPv4 or IPv6 address as text."""
    return socket.inet_ntop(socket.AF_INET if len(address) == 4 else socket.AF_INET6, address)
