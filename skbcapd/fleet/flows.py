"""The flow and the process of a packet, as columns of an index.

In: a frame and the options of its block. Out: a key, equal for all packets of a row.

The rule not to break: what is remembered is found by all the bytes that it depends on. Frames are not trusted: a frame
whose headers are unusual is read header by header, and not remembered.
"""

from __future__ import annotations

import struct
from typing import NamedTuple, TypeAlias

from skbcapd.frames import headers
from skbcapd.frames.headers import IPV4, IPV6, TCP, UDP, Headers
from skbcapd.pcapng.blocks import DIRECTION_IN, DIRECTION_OUT, EPB_PROCESSID_THREADID
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
_FIRST = 4  # packets of a connection in which the TLS client says its server's name

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


class Found(NamedTuple):
    """Where a packet is counted.

    Args:
        interface: its interface.
        label: its process.
        flow: both ends.
        direction: 1 in, 2 out, 0 not known.
        looks: packets of a granule in which names are looked for.
        stamp: kept, because its id is in the key of the cache.
    """

    interface: Interface
    label: Label
    flow: Flow
    direction: int
    looks: int
    stamp: Stamp


class Flows:
    """Finds flow and process, and remembers them."""

    def __init__(self) -> None:
        self._known: dict[Bytes, Found] = {}
        self._labels: dict[Label, Label] = {}  # one object for equal ones
        self._ends: dict[Flow, Flow] = {}

    def clear(self) -> None:
        """Forget everything: numbers of interfaces have another meaning from here on."""
        self._known.clear()
        self._labels.clear()
        self._ends.clear()

    def find(
        self, raw: Bytes, interface: Interface, stamp: Stamp, frame: memoryview, options: bytes
    ) -> tuple[Found, bool]:
        """Where a packet is counted, and whether all packets with the same `raw` are counted there.

        Args:
            raw: from `FLOW4` or `FLOW6`; anything for other frames.
            interface: its interface.
            stamp: its stamp.
            frame: its bytes.
            options: its options.
        """
        found = self._known.get(raw)
        if found is not None:
            return found, True
        read = headers.read(frame, interface.link_type)
        direction = stamp.direction if stamp.direction in {DIRECTION_IN, DIRECTION_OUT} else 0
        flow = _flow(frame, read, direction)
        looks = _FIRST if read.protocol == TCP else 0
        if read.protocol == UDP and _DNS in {flow.local_port, flow.peer_port}:
            looks = _ALWAYS
        if len(self._known) >= _KNOWN_MAX or max(len(self._labels), len(self._ends)) >= _KNOWN_MAX:
            self.clear()
        label = _label(stamp, options, interface.section.order)
        # A value that is the same object is found faster.
        found = Found(
            interface, self._labels.setdefault(label, label), self._ends.setdefault(flow, flow), direction, looks, stamp
        )
        is_regular = _is_regular(raw, interface, read)
        if is_regular:
            self._known[raw] = found
        return found, is_regular


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
