"""A frame as a few words, as tcpdump prints it.

In: a frame. Out: one line without a line break. TCP sequence numbers are relative to the first packet of a connection,
so a summary has a state; it is bounded.

The rules not to break: frames are not trusted. Only numbers, addresses and escaped names become text, so a frame
cannot send control characters to a terminal. What was not captured is `[|tcp]` and the like.

Source: the output of tcpdump 4.99 (print-tcp.c for the relative numbers).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

from skbcapd.frames import headers, protocols
from skbcapd.frames.headers import ARP, IPV4, IPV6, Headers
from skbcapd.lru import Bounded
from skbcapd.pcapng import link_type as links

_CONNECTIONS_MAX = 1 << 16
_FLAGS = ((1, "F"), (2, "S"), (4, "R"), (8, "P"), (16, "."), (32, "U"), (64, "E"), (128, "W"))
_SYN, _FIN, _RST, _ACK, _URG = 2, 1, 4, 16, 32
_WORDS = {IPV4: ("IP", "IPv4"), IPV6: ("IP6", "IPv6"), ARP: ("ARP", "ARP")}
_TAGS = (0x8100, 0x88A8, 0x9100)
_TAGS_MAX = 8
_LENGTH_MAX = 1500  # of IEEE 802.3; a larger number is a type
_NUMBERS = 1 << 32
_TUNNELS = {4, 41}  # IPv4 and IPv6 in IP
_DEPTH_MAX = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """What is printed of a packet.

    Args:
        clock: 0 time of day; 1 none; 2 seconds since 1970; 3 since the packet before; 4 date and time of day;
            5 since the first packet.
        digits: of the fraction of a second.
        numbered: the number of the packet.
        link: the link header.
        quiet: shorter.
        verbose: fields of the IP header, options of TCP, and more of the process.
        absolute: TCP sequence numbers as in the frame.
        dump: bytes of the packet: hex, both (hex and characters), text, or none (empty).
        dump_link: those of the link header, too.
    """

    clock: int = 0
    digits: int = 6
    numbered: bool = False
    link: bool = False
    quiet: bool = False
    verbose: bool = False
    absolute: bool = False
    dump: str = ""
    dump_link: bool = False


class Summary:
    """Makes summaries.

    Args:
        form: what is in them.
    """

    def __init__(self, form: Form) -> None:
        self._form = form
        self._first: Bounded[tuple[bytes, bytes, int], tuple[int, int]] = Bounded(_CONNECTIONS_MAX)

    def of(self, frame: bytes, link_type: int, wire_len: int) -> tuple[str, Headers]:
        """The summary of a frame, and its headers.

        Args:
            frame: the captured bytes.
            link_type: LINKTYPE_ value.
            wire_len: length of the complete frame.
        """
        found = headers.read(frame, link_type)
        is_ethernet = link_type == links.ETHERNET and len(frame) >= 14
        before = self._ethernet(frame, wire_len) if is_ethernet else ""
        word = _WORDS.get(found.kind, ("",))[0]
        if found.kind == ARP:
            text = _whole(lambda: protocols.arp(frame, found.network, wire_len - found.network), "arp")
            return (f"{before}{text}" if self._form.link and is_ethernet else f"{before}ARP, {text}"), found
        if word:
            name = "" if self._form.link and is_ethernet and not self._form.verbose else f"{word} "
            return f"{before}{name}{self._ip(frame, found, wire_len)}", found
        if before and self._form.link:
            return before.rstrip(": "), found
        return before + _unknown(frame, link_type, found, wire_len), found

    def _ethernet(self, frame: bytes, wire_len: int) -> str:
        """The link header, or its VLAN tags only."""
        form, kind, text = self._form, int.from_bytes(frame[12:14], "big"), ""
        if form.link:
            target, source = protocols.hardware(frame[:6]), protocols.hardware(frame[6:12])
            text = f"{source} > {target}, {_ethertype(kind)}, length {wire_len}: "
        at = 14
        for _ in range(_TAGS_MAX):
            if kind not in _TAGS or at + 4 > len(frame):
                break
            tag, kind = struct.unpack_from(">HH", frame, at)
            at += 4
            text += f"vlan {tag & 0xFFF}, " + (f"p {tag >> 13}, {_ethertype(kind)}, " if form.link else "")
        return text

    def _ip(self, frame: bytes, found: Headers, wire_len: int, depth: int = 0) -> str:
        """A packet of IP, without the word IP."""
        ends = headers.addresses(frame, found)
        if ends is None:
            return "[|ip]"
        source, target = map(protocols.address, ends)
        size = _ip_size(frame, found) or max(0, wire_len - found.network)
        length = max(0, found.network + size - found.transport)
        verbose = f"({_header(frame, found, size)}) " if self._form.verbose else ""
        if found.protocol < 0:
            return f"{verbose}{source} > {target}: [|ip], length {size}"
        name = protocols.name(found.protocol)
        if found.is_later:
            return f"{verbose}{source} > {target}: {name} fragment at {_offset(frame, found)}, length {length}"
        if found.protocol in _TUNNELS and depth < _DEPTH_MAX and not found.is_fragment:
            return f"{verbose}{source} > {target}: {self._inner(frame[found.transport :], length, depth + 1)}"
        ports = headers.ports(frame, found)
        between = f"{source}.{ports[0]} > {target}.{ports[1]}" if ports else f"{source} > {target}"
        text = _whole(lambda: self._transport(frame, found, length, ends), name)
        return f"{verbose}{between}: {text}"

    def _inner(self, packet: bytes, length: int, depth: int) -> str:
        """A packet of IP in another one."""
        found = headers.read(packet, links.RAW)
        if found.kind not in _WORDS:
            return f"[|ip], length {length}"
        word = "" if self._form.link else f"{_WORDS[found.kind][0]} "
        return f"{word}{self._ip(packet, found, length, depth)}"

    def _transport(self, frame: bytes, found: Headers, length: int, ends: tuple[bytes, bytes]) -> str:
        """What follows the addresses; errors if it was not captured."""
        at = found.transport
        match found.protocol:
            case headers.TCP:
                return self._tcp(frame, found, length, ends)
            case headers.UDP:
                return protocols.udp(frame, at, length, quiet=self._form.quiet or found.is_fragment)
            case headers.ICMP:
                return protocols.icmp(frame, at, length)
            case headers.ICMPV6:
                return protocols.icmpv6(frame, at, length)
            case headers.SCTP:
                return f"sctp, length {max(0, length - 12)}"
        return f"{protocols.name(found.protocol)}, length {length}"

    def _tcp(self, frame: bytes, found: Headers, length: int, ends: tuple[bytes, bytes]) -> str:
        at = found.transport
        source, target, sequence, ack, words, flags, window, _, urgent = struct.unpack_from(">HHIIBBHHH", frame, at)
        size = max(0, length - 4 * (words >> 4))
        if self._form.quiet:
            return f"tcp {size}"
        if words >> 4 < 5:
            return f"[bad header length {4 * (words >> 4)}], length {length}"
        base = 0  # of the numbers in the option SACK
        if flags & _ACK and not self._form.absolute:
            sequence, ack, base = self._relative(ends, (source, target), (sequence, ack), flags)
        text = f"Flags [{''.join(letter for bit, letter in _FLAGS if flags & bit) or 'none'}]"
        if size or flags & (_SYN | _FIN | _RST):
            text += f", seq {sequence}" + (f":{(sequence + size) % _NUMBERS}" if size else "")
        text += f", ack {ack}" if flags & _ACK else ""
        text += f", win {window}" + (f", urg {urgent}" if flags & _URG else "")
        if self._form.verbose and found.payload > at + 20:
            text += f", options [{protocols.tcp_options(frame[at + 20 : found.payload], base)}]"
        return f"{text}, length {size}"

    def _relative(
        self, ends: tuple[bytes, bytes], ports: tuple[int, int], numbers: tuple[int, int], flags: int
    ) -> tuple[int, int, int]:
        """Sequence number and acknowledgement, from the first ones that were seen of the connection, and the first
        sequence number of the other side.
        """
        sequence, ack = numbers
        is_reverse = ports[0] > ports[1] or (ports[0] == ports[1] and ends[0] > ends[1])
        one, other = (ends[1], ends[0]) if is_reverse else ends
        key = one, other, (min(ports) << 16) | max(ports)
        first = self._first.use(key)
        if first is None or flags & _SYN:
            before = (ack - 1) % _NUMBERS
            self._first[key] = (before, sequence) if is_reverse else (sequence, before)
            return sequence, ack, before
        mine, others = (first[1], first[0]) if is_reverse else first
        return (sequence - mine) % _NUMBERS, (ack - others) % _NUMBERS, others


def _unknown(frame: bytes, link_type: int, found: Headers, wire_len: int) -> str:
    if link_type != links.ETHERNET:
        return f"{links.name(link_type)}, length {wire_len}"
    if len(frame) < 14:
        return f"[|ether], length {wire_len}"
    kind = int.from_bytes(frame[found.network - 2 : found.network], "big")
    return f"{_ethertype(kind)}, length {wire_len}"


def _whole(make: Callable[[], str], name: str) -> str:
    """A text, or that its bytes were not captured."""
    try:
        return make()
    except (IndexError, struct.error):
        return f"[|{name}]"


def _ethertype(kind: int) -> str:
    if kind <= _LENGTH_MAX:
        return "802.3"
    name = _WORDS[kind][1] if kind in _WORDS else "802.1Q" if kind in _TAGS else "Unknown"
    return f"ethertype {name} (0x{kind:04x})"


def _ip_size(frame: bytes, found: Headers) -> int:
    """The length of a packet as its header says; 0 if it does not (a large segment)."""
    at = found.network
    if found.kind == IPV4:
        return int.from_bytes(frame[at + 2 : at + 4], "big")
    size = int.from_bytes(frame[at + 4 : at + 6], "big")
    return size + 40 if size else 0


def _offset(frame: bytes, found: Headers) -> int:
    """Where a fragment belongs, in bytes."""
    if found.kind == IPV4:
        return 8 * (int.from_bytes(frame[found.network + 6 : found.network + 8], "big") & 0x1FFF)
    return int.from_bytes(frame[found.transport - 6 : found.transport - 4], "big") & 0xFFF8


def _header(frame: bytes, found: Headers, size: int) -> str:
    """The fields of an IP header."""
    at = found.network
    name = "ICMPv6" if found.protocol == headers.ICMPV6 else protocols.name(found.protocol).upper()
    if found.kind == IPV6:
        first, _, _, hops = struct.unpack_from(">IHBB", frame, at)
        traffic = f"class 0x{first >> 20 & 0xFF:02x}, " if first >> 20 & 0xFF else ""
        flow = f"flowlabel 0x{first & 0xFFFFF:05x}, " if first & 0xFFFFF else ""
        return f"{traffic}{flow}hlim {hops}, next-header {name} ({found.protocol}) payload length: {size - 40}"
    service, number, word, hops = struct.unpack_from(">xBxxHHB", frame, at)
    marks = {0: "none", 1: "+", 2: "DF", 3: "+, DF"}[word >> 13 & 3]
    return (
        f"tos 0x{service:x}, ttl {hops}, id {number}, offset {8 * (word & 0x1FFF)}, flags [{marks}], "
        f"proto {name} ({found.protocol}), length {size}"
    )
