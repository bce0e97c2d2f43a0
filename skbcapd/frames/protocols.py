"""What a packet of UDP, ICMP, ARP and others says, in the words of tcpdump.

In: bytes of a frame, and where a header begins. Out: text.

The rules not to break: frames are not trusted; what is not captured is an IndexError or a struct.error, which
`summary` takes. Only numbers, addresses and escaped names become text.

Source: RFC 792, 4443, 4861, 826, 1035, 5905, 9293; the output of tcpdump 4.99.
"""

from __future__ import annotations

import socket
import struct

from skbcapd.frames import dns
from skbcapd.frames.headers import ICMP, ICMPV6, TCP, UDP, WITH_PORTS

_DOMAIN = (53, 5353)
_NTP = 123
_NTP_MODES = ("unspecified", "symmetric active", "symmetric passive", "Client", "Server", "Broadcast", "Reserved", "")
_NAMES = {2: "igmp", 4: "ipip", 41: "ip6", 47: "gre", 50: "esp", 51: "ah", 89: "ospf", 103: "pim", 112: "vrrp"}
_UNREACHABLE = {
    0: "net {} unreachable",
    1: "host {} unreachable",
    6: "net {} unreachable - unknown",
    7: "host {} unreachable - unknown",
    9: "net {} unreachable - admin prohibited",
    10: "host {} unreachable - admin prohibited",
    13: "host {} unreachable - admin prohibited filter",
}
_ICMP = {4: "source quench", 9: "router advertisement", 10: "router solicitation", 12: "parameter problem"}
_EXCEEDED = ("time exceeded in-transit", "ip reassembly time exceeded")
_REDIRECTED = ("net", "host", "tos and net", "tos and host")
_ICMPV6 = {
    2: "packet too big",
    3: "time exceeded in-transit",
    4: "parameter problem",
    130: "multicast listener query",
    131: "multicast listener report",
    132: "multicast listener done",
    133: "router solicitation",
    134: "router advertisement",
    135: "neighbor solicitation",
    136: "neighbor advertisement",
    137: "redirect",
    143: "multicast listener report v2",
}
_UNREACHABLE_V6 = (
    "unreachable route",
    "unreachable prohibited",
    "beyond scope",
    "unreachable address",
    "unreachable port",
    "source address failed policy",
    "reject route",
)


def address(packed: bytes) -> str:
    """An IP address as text."""
    return socket.inet_ntop(socket.AF_INET if len(packed) == 4 else socket.AF_INET6, packed)


def hardware(packed: bytes) -> str:
    """A hardware address as text."""
    return packed.hex(":")


def name(protocol: int) -> str:
    """An IP protocol that is not read further."""
    known = WITH_PORTS.get(protocol) or _NAMES.get(protocol)
    return known or {ICMP: "icmp", ICMPV6: "icmp6"}.get(protocol, f"ip-proto-{protocol}")


def arp(frame: bytes, at: int, length: int) -> str:
    """A packet of ARP.

    Args:
        frame: the frame.
        at: where the packet begins.
        length: its length on the wire.
    """
    kind, _, hardware_len, protocol_len, operation = struct.unpack_from(">HHBBH", frame, at)
    if (kind, hardware_len, protocol_len) != (1, 6, 4) or operation not in {1, 2}:
        return f"operation {operation}, length {length}"
    sender_mac, sender, _, target = struct.unpack_from(">6s4s6s4s", frame, at + 8)
    if operation == 1:
        return f"Request who-has {address(target)} tell {address(sender)}, length {length}"
    return f"Reply {address(sender)} is-at {hardware(sender_mac)}, length {length}"


def udp(frame: bytes, at: int, length: int, *, quiet: bool) -> str:
    """A packet of UDP, with what it says if it belongs to DNS or NTP.

    Args:
        frame: the frame.
        at: where the header begins.
        length: bytes of header and data on the wire.
        quiet: only its length.
    """
    ports = struct.unpack_from(">HH", frame, at)
    size = max(0, length - 8)
    if not quiet and any(port in _DOMAIN for port in ports):
        said = dns.summary(frame[at + 8 :], size)
        if said:
            return said
    if not quiet and _NTP in ports and size >= 48:
        first = frame[at + 8]
        return f"NTPv{first >> 3 & 7}, {_NTP_MODES[first & 7]}, length {size}"
    return f"UDP, length {size}"


def icmp(frame: bytes, at: int, length: int) -> str:
    """A packet of ICMP; arguments as for `udp`."""
    kind, code = frame[at], frame[at + 1]
    if kind in {0, 8}:
        number, sequence = struct.unpack_from(">HH", frame, at + 4)
        text = f"echo {'request' if kind else 'reply'}, id {number}, seq {sequence}"
    elif kind == 3:
        text = _unreachable(frame, at, code)
    elif kind == 5:
        what = _REDIRECTED[code] if code < len(_REDIRECTED) else f"code {code}"
        gateway, quoted = struct.unpack_from(">4s16x4s", frame, at + 4)[0], _quoted(frame, at + 8)
        text = f"redirect {quoted} to {what} {address(gateway)}"
    elif kind == 11 and code < len(_EXCEEDED):
        text = _EXCEEDED[code]
    else:
        text = _ICMP.get(kind, f"type-#{kind}")
    return f"ICMP {text}, length {length}"


def _unreachable(frame: bytes, at: int, code: int) -> str:
    target = _quoted(frame, at + 8)
    if code == 2:
        return f"{target} protocol {frame[at + 17]} unreachable"
    if code == 3:
        return f"{target} {_quoted_port(frame, at + 8)} unreachable"
    if code == 4:
        (mtu,) = struct.unpack_from(">H", frame, at + 6)
        return f"{target} unreachable - need to frag" + (f" (mtu {mtu})" if mtu else "")
    what = _UNREACHABLE.get(code)
    return what.format(target) if what else f"{target} unreachable - #{code}"


def _quoted(frame: bytes, at: int) -> str:
    """The destination of the packet in an error; without an address, an IndexError."""
    return address(struct.unpack_from(">4s", frame, at + 16)[0])


def _quoted_port(frame: bytes, at: int) -> str:
    """The protocol and destination port of the packet in an error."""
    protocol, words = frame[at + 9], frame[at] & 15
    if protocol not in WITH_PORTS:
        return f"protocol {protocol} port"
    (port,) = struct.unpack_from(">H", frame, at + 4 * words + 2)
    return f"{WITH_PORTS[protocol]} port {port}"


def icmpv6(frame: bytes, at: int, length: int) -> str:
    """A packet of ICMP for IPv6; arguments as for `udp`."""
    kind, code = frame[at], frame[at + 1]
    text = _ICMPV6.get(kind, f"icmp6-type-#{kind}")
    if kind in {128, 129}:
        number, sequence = struct.unpack_from(">HH", frame, at + 4)
        text = f"echo {'request' if kind == 128 else 'reply'}, id {number}, seq {sequence}"
    elif kind == 135:
        text += f", who has {address(struct.unpack_from('>16s', frame, at + 8)[0])}"
    elif kind == 136:
        text += f", tgt is {address(struct.unpack_from('>16s', frame, at + 8)[0])}"
    elif kind == 2:
        text += f", mtu {struct.unpack_from('>I', frame, at + 4)[0]}"
    elif kind == 1:
        text = _unreachable_v6(frame, at, code)
    elif kind == 143:
        text += f", {struct.unpack_from('>H', frame, at + 6)[0]} group record(s)"
    return f"ICMP6, {text}, length {length}"


def _unreachable_v6(frame: bytes, at: int, code: int) -> str:
    why = _UNREACHABLE_V6[code] if code < len(_UNREACHABLE_V6) else f"code-#{code}"
    target = address(struct.unpack_from(">16s", frame, at + 8 + 24)[0])
    protocol = frame[at + 8 + 6]
    if code != 4 or protocol not in {TCP, UDP}:
        return f"destination unreachable, {why} {target}"
    (port,) = struct.unpack_from(">H", frame, at + 8 + 42)
    return f"destination unreachable, {why}, {target} {WITH_PORTS[protocol]} port {port}"


def tcp_options(raw: bytes, base: int) -> str:
    """The options of a TCP header, separated by commas.

    Args:
        raw: their bytes.
        base: subtracted from the numbers of SACK.
    """
    found, at = [], 0
    while at < len(raw):
        kind = raw[at]
        if kind == 0:
            found.append("eol")
            break
        if kind == 1:
            found.append("nop")
            at += 1
            continue
        size = raw[at + 1] if at + 1 < len(raw) else 0
        if size < 2 or at + size > len(raw):
            found.append(f"[bad opt {kind}]")
            break
        found.append(_tcp_option(kind, raw[at + 2 : at + size], base))
        at += size
    return ",".join(found)


def _tcp_option(kind: int, value: bytes, base: int) -> str:
    match kind, len(value):
        case 2, 2:
            return f"mss {int.from_bytes(value, 'big')}"
        case 3, 1:
            return f"wscale {value[0]}"
        case 4, 0:
            return "sackOK"
        case 5, size if size % 8 == 0:
            edges = [(edge - base) % (1 << 32) for edge in struct.unpack(f">{size // 4}I", value)]
            pairs = "".join(f"{{{left}:{right}}}" for left, right in zip(edges[::2], edges[1::2], strict=True))
            return f"sack {len(edges) // 2} {pairs}"
        case 8, 8:
            return "TS val {} ecr {}".format(*struct.unpack(">II", value))
    return f"unknown-{kind} 0x{value.hex()}" if value else f"unknown-{kind}"
