"""DNS messages: their names, and what they say in the words of tcpdump.

In: a message. Out: names, a line.

The rules not to break: messages are not trusted: loops and lengths are bounded. Names are escaped.

Source: RFC 1035, 3596, 6891.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

from skbcapd.text_safety import escaped_bytes

LABELS_MAX = 128
SIZE_MAX = 253  # characters of a name
_SHOWN_MAX = 4  # answers on a line
_TYPES = {
    1: "A",
    2: "NS",
    5: "CNAME",
    6: "SOA",
    12: "PTR",
    15: "MX",
    16: "TXT",
    28: "AAAA",
    33: "SRV",
    35: "NAPTR",
    41: "OPT",
    43: "DS",
    46: "RRSIG",
    48: "DNSKEY",
    64: "SVCB",
    65: "HTTPS",
    255: "ANY",
}
_CODES = ("", " FormErr", " ServFail", " NXDomain", " NotImp", " Refused", " YXDomain", " YXRRSet", " NXRRSet")


def read_name(message: bytes, at: int) -> tuple[bytes, int]:
    """A name, and the offset behind it.

    Raises:
        ValueError: it is none.
        IndexError: the message ends before.
    """
    labels: list[bytes] = []
    after = size = 0
    for _ in range(LABELS_MAX):
        length = message[at]
        if length == 0:
            return b".".join(labels), after or at + 1
        if length & 0xC0 == 0xC0:
            after = after or at + 2
            at = (length & 0x3F) << 8 | message[at + 1]
            continue
        size += length + 1
        if length & 0xC0 or size > SIZE_MAX:
            break
        labels.append(message[at + 1 : at + 1 + length])
        at += 1 + length
    raise ValueError("no name")


class Record(NamedTuple):
    """A resource record: its owner, its type, the offset of its data, and its data."""

    owner: bytes
    kind: int
    at: int
    data: bytes


def records(message: bytes, at: int, count: int) -> Iterator[Record]:
    """Records from an offset on, up to the first one whose data is incomplete.

    Raises:
        ValueError: a name is none.
        IndexError, struct.error: the message ends before.
    """
    for _ in range(count):
        owner, at = read_name(message, at)
        kind, _, _, size = struct.unpack_from(">HHIH", message, at)
        at += 10
        data = message[at : at + size]
        if len(data) < size:
            return
        yield Record(owner, kind, at, data)
        at += size


def summary(message: bytes, length: int) -> str:
    """A query or an answer on a line; empty if it is none.

    Args:
        message: its captured bytes.
        length: its bytes on the wire.
    """
    try:
        return f"{_summary(message)} ({length})"
    except (IndexError, struct.error, ValueError):
        return ""


def _summary(message: bytes) -> str:
    number, flags, *counts = struct.unpack_from(">6H", message)
    if flags & 0x7800:
        raise ValueError("no query")
    code = flags & 15
    if not flags & 0x8000:
        extra = "".join(
            f" [{count}{word}]"
            for count, word in zip(counts, ("q", "a", "n", "au"), strict=True)
            if count and word != "q"
        )
        text = f"{number}{'+' if flags & 0x100 else ''}{'%' if flags & 0x10 else ''}{extra}"
        return text + "".join(_questions(message, min(counts[0], 1))[0])
    _, at = _questions(message, counts[0])
    said = _CODES[code] if code < len(_CODES) else f" Resp{code}"
    marks = f"{'*' if flags & 0x400 else ''}{'' if flags & 0x80 else '-'}{'|' if flags & 0x200 else ''}"
    marks += "$" if flags & 0x20 else ""
    answers = ",".join(_answers(message, at, counts[1]))
    return f"{number}{said}{marks} {'/'.join(map(str, counts[1:]))}{answers}"


def _questions(message: bytes, count: int) -> tuple[list[str], int]:
    """The questions of a message, and the offset behind them."""
    found, at = [], 12
    if count > 1:
        raise ValueError("more than one question")
    for _ in range(count):
        name, at = read_name(message, at)
        kind, _ = struct.unpack_from(">HH", message, at)
        found.append(f" {_TYPES.get(kind, f'Type{kind}')}? {escaped_bytes(name)}.")
        at += 4
    return found, at


def _answers(message: bytes, at: int, count: int) -> list[str]:
    """The first answers."""
    found = [
        f" {_TYPES.get(record.kind, f'Type{record.kind}')}{_value(message, record)}"
        for record in records(message, at, min(count, _SHOWN_MAX))
    ]
    return [*found, *([" ..."] if count > _SHOWN_MAX else [])]


def _value(message: bytes, record: Record) -> str:
    family = {(1, 4): socket.AF_INET, (28, 16): socket.AF_INET6}.get((record.kind, len(record.data)))
    if family is not None:
        return f" {socket.inet_ntop(family, record.data)}"
    return f" {escaped_bytes(read_name(message, record.at)[0])}." if record.kind in {2, 5, 12} else ""
