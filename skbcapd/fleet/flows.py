"""The flow and the process of a packet, as columns of an index.

In: a frame and the options of its block. Out: a key, equal for all packets of a row.

The rule not to break: what is remembered is found by all the bytes that it depends on. Frames are not trusted: a frame
whose headers are unusual is read header by header, and not remembered.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, TypeAlias

from skbcapd.frames import headers
from skbcapd.frames.headers import IPV4, IPV6, TCP, UDP, Headers
from skbcapd.pcapng.blocks import DIRECTION_IN, DIRECTION_OUT, EPB_PROCESSID_THREADID, IF_DESCRIPTION, IF_NAME
from skbcapd.pcapng.link_type import ETHERNET
from skbcapd.pcapng.reader import Interface, Stamp, walk_options
from skbcapd.text_safety import escaped_bytes

# What distinguishes flows in an Ethernet frame: EtherType, version and length of the IPv4 header, fragment, protocol,
# addresses, ports; for IPv6 EtherType, version, protocol, addresses, ports.
FLOW4 = struct.Struct(">12xHB5xHxB2xQI")
FLOW6 = struct.Struct(">12xHB5xBx32sI")
_LINK = 14  # bytes of the Ethernet header
_FRAGMENT = 0x3FFF  # offset, and more fragments
_KNOWN_MAX = 1 << 15  # entries; then all are forgotten
_DNS = 53
_ALWAYS = 1 << 62
_FIRST = 4  # packets that a client has sent, in each granule: one may have its server's name

Bytes: TypeAlias = tuple[int | bytes, ...]
"""Bytes of a frame, the id of its stamp, and the number of its interface."""


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
        label: its process.
        flow: both ends.
        columns: the columns of the peer, and those from the local end to the network namespace.
    """

    interface: Interface
    label: Label
    flow: Flow
    columns: tuple[tuple[object, ...], tuple[object, ...]]


class Found(NamedTuple):
    """Where a packet is counted.

    Args:
        key: its row.
        direction: DIRECTION_IN, DIRECTION_OUT, or 0.
        looks: packets of a granule in which names are looked for.
        stamp: kept, because its id is in the key of the cache.
    """

    key: Key
    direction: int
    looks: int
    stamp: Stamp


class Flows:
    """Finds flow and process, and remembers them."""

    def __init__(self) -> None:
        self.known: dict[Bytes, Found] = {}
        """What `find` has returned, where `raw` has all bytes that it depends on."""
        self._labels: dict[int, tuple[Label, Stamp]] = {}  # by the id of the stamp, which must live as long
        self._keys: dict[tuple[Interface, Label, Flow], Key] = {}
        self._interfaces: dict[Interface, tuple[str, str]] = {}

    def clear(self) -> None:
        """Forget everything: numbers of interfaces have another meaning from here on."""
        self.known.clear()
        self._labels.clear()
        self._keys.clear()
        self._interfaces.clear()

    def find(
        self, raw: Bytes, interface: Interface, stamp: Stamp, frame: memoryview, options: bytes
    ) -> tuple[Found, bool]:
        """Where a packet is counted that `known` does not have, and whether `known` has it now.

        Args:
            raw: from `FLOW4` or `FLOW6`; anything for other frames.
            interface: its interface.
            stamp: its stamp.
            frame: its bytes.
            options: its options.
        """
        read = headers.read(frame, interface.link_type)
        direction = stamp.direction if stamp.direction in {DIRECTION_IN, DIRECTION_OUT} else 0
        flow = _flow(frame, read, direction)
        looks = 0
        if read.protocol == UDP and _DNS in {flow.local_port, flow.peer_port}:
            looks = _ALWAYS
        elif read.protocol == TCP and direction != DIRECTION_IN:  # what a client of this host asks for
            looks = _FIRST
        labelled = self._labels.get(id(stamp))
        if labelled is None:
            if len(self._labels) >= _KNOWN_MAX:
                self._labels.clear()
            labelled = self._labels[id(stamp)] = _label(stamp, options, interface.section.order), stamp
        found = Found(self._key(interface, labelled[0], flow), direction, looks, stamp)
        is_regular = _is_regular(raw, interface, read)
        if is_regular:
            if len(self.known) >= _KNOWN_MAX:
                self.known.clear()
            self.known[raw] = found
        return found, is_regular

    def _key(self, interface: Interface, label: Label, flow: Flow) -> Key:
        found = self._keys.get((interface, label, flow))
        if found is None:
            peer, local = (address and address_text(address) for address in (flow.peer, flow.local))
            columns = (
                (peer, flow.peer_port),
                (local, flow.local_port, flow.protocol, *label, *self._described(interface)),
            )
            found = self._keys[interface, label, flow] = Key(interface, label, flow, columns)
        return found

    def _described(self, interface: Interface) -> tuple[str, str]:
        """The name of an interface, and its description: the network namespace."""
        found = self._interfaces.get(interface)
        if found is None:
            options = dict(interface.options())
            found = escaped_bytes(options.get(IF_NAME, b"")), escaped_bytes(options.get(IF_DESCRIPTION, b""))
            self._interfaces[interface] = found
        return found

    def forget(self) -> None:
        """Between two granules: bound the memory. Within one, equal keys must stay one object."""
        if len(self._keys) >= _KNOWN_MAX:
            self.clear()


def _is_regular(raw: Bytes, interface: Interface, read: Headers) -> bool:
    """Whether `raw` has all bytes that the flow depends on."""
    if interface.link_type != ETHERNET or read.protocol not in {TCP, UDP} or read.network != _LINK:
        return False
    match raw:
        case (0x0800, 0x45, int() as fragment, protocol, _, _, _, _):
            return read.kind == IPV4 and protocol == read.protocol and not fragment & _FRAGMENT
        case (0x86DD, _, protocol, _, _, _, _):
            return read.kind == IPV6 and protocol == read.protocol
    return False


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
    return None if value is None else escaped_bytes(value)


@lru_cache(maxsize=1 << 14)
def address_text(address: bytes) -> str:
    """An IPv4 or IPv6 address as text."""
    return socket.inet_ntop(socket.AF_INET if len(address) == 4 else socket.AF_INET6, address)
