"""Selectors: choose packets of capture files by process, peer, port, interface, direction, time and
filter.

In: arguments of a command line; packets from `reader`. Out: the packets that match all selectors.

The rules: of one selector given several times, one must match; of different selectors, all must. A
selector never matches an unknown value: a packet without a unit belongs to no unit. Names are globs
or regular expressions between slashes, as in the rules of a capture.

Filters run in the interpreter of libpcap (`pcap_offline_filter`), so they have the same results as
in tcpdump. It gets only the first bytes of a frame that the filter can read. In Python, one
instruction would take as long as that call.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import TypeAlias

from skbcapd.analysis.when import Span
from skbcapd.attribution.fields import GROUPS
from skbcapd.config.pattern import TextPattern
from skbcapd.errors import UsageError
from skbcapd.filter.packet_filter import FilterError, OfflineFilter
from skbcapd.frames import headers
from skbcapd.frames.headers import Bytes, Headers
from skbcapd.pcapng.blocks import DIRECTION_IN, DIRECTION_OUT, IF_NAME
from skbcapd.pcapng.reader import Interface, Packet, Stamp

TEXTS = tuple(name for name in GROUPS if name != "tgid")
"""Fields of a comment by which packets can be selected, each by a pattern."""
OF_DROPS = {"drop": "dropped", "at": "dropped-at"}
"""Fields that only dropped packets have, and the option that selects by each."""

_MATCH_S = 0.02  # for one regular expression and one text
_KNOWN_BYTES_MAX = 16 << 20  # of the cached stamps; then the cache is cleared
_DIRECTIONS = {"in": DIRECTION_IN, "out": DIRECTION_OUT}
_IDS_MAX = 1 << 32
_Network: TypeAlias = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True, kw_only=True)
class Selectors:
    """The selectors of a command; without any, all packets match.

    Args:
        texts: field (one of TEXTS or OF_DROPS) -> patterns.
        tgids: process ids.
        peers: networks; a packet without a direction has a peer at each end.
        ports: ranges of ports, of either end.
        interfaces: patterns of names.
        directions: bits of epb_flags.
        span: time.
        expression: packet filter; empty: none.
    """

    texts: Mapping[str, Sequence[TextPattern]] = field(default_factory=dict)
    tgids: frozenset[int] = frozenset()
    peers: Sequence[_Network] = ()
    ports: Sequence[range] = ()
    interfaces: Sequence[TextPattern] = ()
    directions: frozenset[int] = frozenset()
    span: Span = field(default_factory=Span)
    expression: str = ""


class Selection:
    """Applies selectors, and caches the results for stamps and interfaces.

    Args:
        selectors: the selectors.

    Raises:
        UsageError: the filter is wrong.
    """

    def __init__(self, selectors: Selectors) -> None:
        self._selectors = selectors
        self._known: dict[Stamp, bool] = {}
        self._known_size = 0
        try:
            self._filter = OfflineFilter(selectors.expression) if selectors.expression else None
        except FilterError as error:
            raise UsageError(
                f'FILTER: found "{selectors.expression}" ({error}); expected a filter as in tcpdump, or a file',
                "man pcap-filter; direction and interface: --direction, --interface",
            ) from None

    @property
    def span(self) -> Span:
        """The selected span of time."""
        return self._selectors.span

    @property
    def is_of_drops(self) -> bool:
        """Whether only dropped packets are selected."""
        return not OF_DROPS.keys().isdisjoint(self._selectors.texts)

    @property
    def is_all(self) -> bool:
        """Whether there is no selector."""
        wanted = self._selectors
        selectors = (wanted.texts, wanted.tgids, wanted.peers, wanted.ports, wanted.interfaces, wanted.directions)
        return not any(selectors) and not wanted.expression and wanted.span == Span()

    def chosen(self, packets: Iterator[Packet]) -> Iterator[Packet]:
        """The packets of a file that match all selectors."""
        return packets if self.is_all else self._matching(packets)

    def _matching(self, packets: Iterator[Packet]) -> Iterator[Packet]:
        wanted, known, sees_frames = self._selectors, self._known, self._sees_frames
        asks_stamp = bool(wanted.texts or wanted.tgids or wanted.directions)
        current = None
        is_wanted, first, last = False, 0, 0
        takes = None
        for packet in packets:
            interface, stamp, time, wire_len, frame, _ = packet
            if interface is not current:
                current = interface
                is_wanted = self._takes_interface(interface)
                first, last = _ticks(wanted.span, interface)
                takes = self._filter.for_link(interface.link_type) if self._filter else None
            if not is_wanted or not first <= time < last:
                continue
            if asks_stamp and not (known[stamp] if stamp in known else self._takes_stamp(stamp)):
                continue
            if takes is not None and not takes(frame, wire_len):
                continue
            if sees_frames and not self._takes_frame(frame, interface.link_type, stamp.direction):
                continue
            yield packet

    @property
    def _sees_frames(self) -> bool:
        return bool(self._selectors.peers or self._selectors.ports)

    def _takes_interface(self, interface: Interface) -> bool:
        patterns = self._selectors.interfaces
        name = next((value for code, value in interface.options() if code == IF_NAME), b"")
        return not patterns or _matches(patterns, name)

    def _takes_stamp(self, stamp: Stamp) -> bool:
        """Check a stamp, and cache the result."""
        wanted = self._selectors
        found = (
            (not wanted.tgids or stamp.tgid in wanted.tgids)
            and (not wanted.directions or stamp.direction in wanted.directions)
            and all(_matches(patterns, stamp.value(name)) for name, patterns in wanted.texts.items())
        )
        self._known_size += stamp.size + 256
        if self._known_size > _KNOWN_BYTES_MAX:
            self._known.clear()
            self._known_size = 0
        self._known[stamp] = found
        return found

    def _takes_frame(self, frame: Bytes, link_type: int, direction: int) -> bool:
        """Whether a frame has a selected peer and a selected port."""
        found = headers.read(frame, link_type)
        if self._selectors.peers and not self._takes_peer(frame, found, direction):
            return False
        if not self._selectors.ports:
            return True
        ports = headers.ports(frame, found) or ()
        return any(port in wanted for port in ports for wanted in self._selectors.ports)

    def _takes_peer(self, frame: Bytes, found: Headers, direction: int) -> bool:
        ends = headers.addresses(frame, found)
        if ends is None:
            return False
        peers = {DIRECTION_IN: ends[:1], DIRECTION_OUT: ends[1:]}.get(direction, ends)
        return any(ip_address(peer) in network for peer in peers for network in self._selectors.peers)


def _ticks(span: Span, interface: Interface) -> tuple[int, int]:
    """The first time in a span and the first time after it, in the units of an interface."""
    bounds = []
    for bound_ns, otherwise in ((span.begin_ns, -1), (span.end_ns, 1 << 65)):
        if bound_ns is None:
            bounds.append(otherwise)
        else:  # rounded up
            bounds.append(-(-(bound_ns - interface.offset_s * 10**9) * interface.ticks // 10**9))
    return bounds[0], bounds[1]


def _matches(patterns: Iterable[TextPattern], value: int | bytes | None) -> bool:
    """Whether a text matches; an empty one does not."""
    if not isinstance(value, bytes) or not value:
        return False
    text = os.fsdecode(value)
    for pattern in patterns:
        try:
            if pattern.matches(text, _MATCH_S):
                return True
        except TimeoutError:
            continue
    return False


def pattern(text: str) -> TextPattern:
    """A glob, or a regular expression between slashes.

    Raises:
        ValueError: it is wrong.
    """
    if not text:
        raise ValueError("empty")
    return TextPattern(text)


def tgid(text: str) -> int:
    """A process id.

    Raises:
        ValueError: it is wrong.
    """
    if not re.fullmatch(r"[0-9]{1,10}", text) or not 0 < int(text) < _IDS_MAX:
        raise ValueError("not a process id")
    return int(text)


def peer(text: str) -> _Network:
    """An address, or a network as ADDRESS/BITS.

    Raises:
        ValueError: it is wrong.
    """
    return ip_network(text, strict=False)


def port(text: str) -> range:
    """A port, or FIRST-LAST.

    Raises:
        ValueError: it is wrong.
    """
    found = re.fullmatch(r"([0-9]{1,5})(?:-([0-9]{1,5}))?", text)
    if not found:
        raise ValueError("not a port")
    first, last = int(found[1]), int(found[2] or found[1])
    if not first <= last < 1 << 16:
        raise ValueError("not a port")
    return range(first, last + 1)


def direction(text: str) -> int:
    """`in` or `out`, as bits of epb_flags."""
    return _DIRECTIONS[text]
