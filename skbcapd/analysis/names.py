"""Names of IP addresses that are in a capture: from DNS answers, and from the server name (SNI) of TLS clients.

In: frames. Out: names by address.

The rules not to break: a name says what somebody asked for in this capture, no more. An address can have several names,
then all are kept. Only names of letters, digits and `_.-` are taken. Frames are not trusted: each length is checked,
loops and memory are bounded.

Source: RFC 1035, 3596 (DNS); RFC 8446 section 4.1.2, 6066 section 3 (TLS).
"""

from __future__ import annotations

import re
import struct

from skbcapd.frames import headers
from skbcapd.frames.dns import read_name, records
from skbcapd.frames.headers import TCP, UDP

_DNS = 53
_HELLO = b"\x16\x03"  # a handshake record of TLS
_START = 160  # bytes of a frame in which a port or the begin of TLS is looked for
_A, _CNAME, _AAAA = 1, 5, 28
_RECORDS_MAX = 64
_ADDRESSES_MAX = 1 << 16
_NAMES_MAX = 8  # of one address
_NAME = re.compile(rb"[A-Za-z0-9_.-]{1,253}")
_SERVER_NAME = 0  # type of the extension, and of a host name in it


class Names:
    """The names that were seen."""

    def __init__(self) -> None:
        self._found: dict[bytes, dict[str, None]] = {}

    def of(self, address: bytes) -> list[str]:
        """The names of a packed address, the first one first."""
        return list(self._found.get(address, ()))

    def text_of(self, address: bytes | None) -> str | None:
        """The names of an address in binary form, separated by spaces; None if it has no name."""
        found = self._found.get(address) if address else None
        return " ".join(found) if found else None

    def see(self, frame: memoryview, link_type: int) -> None:
        """Take the names that a frame has."""
        start = bytes(frame[:_START])
        if b"\x00\x35" not in start and _HELLO not in start:
            return
        found = headers.read(frame, link_type)
        ends, ports = headers.addresses(frame, found), headers.ports(frame, found)
        if ends is None or ports is None:
            return
        payload = bytes(frame[found.payload :])
        try:
            if found.protocol == UDP and ports[0] == _DNS:
                for address, name in _answers(payload):
                    self._add(address, name)
            elif found.protocol == TCP and payload.startswith(_HELLO):
                self._add(ends[1], _server_name(payload))
        except (IndexError, struct.error, ValueError):
            return  # it ends too early, or is something else

    def _add(self, address: bytes, name: bytes) -> None:
        name = name.rstrip(b".").lower()
        if not _NAME.fullmatch(name):
            return
        if address not in self._found and len(self._found) >= _ADDRESSES_MAX:
            return
        names = self._found.setdefault(address, {})
        if len(names) < _NAMES_MAX:
            names[name.decode("ascii")] = None


def _answers(message: bytes) -> list[tuple[bytes, bytes]]:
    """Addresses and the name that was asked for, of a DNS answer."""
    _, flags, questions, answers, _, _ = struct.unpack_from(">6H", message)
    if not flags & 0x8000 or flags & 0x020F or questions != 1:  # a response, not truncated, without an error
        return []
    asked, at = _name(message, 12)
    at += 4
    aliases, found = {asked}, []
    for record in records(message, at, min(answers, _RECORDS_MAX)):
        owner, size = record.owner.lower(), len(record.data)
        if owner in aliases and record.kind == _CNAME:
            aliases.add(_name(message, record.at)[0])
        elif owner in aliases and (record.kind, size) in {(_A, 4), (_AAAA, 16)}:
            found.append((record.data, asked))
    return found


def _name(message: bytes, at: int) -> tuple[bytes, int]:
    """A name in lower case, and the offset behind it; errors as in `read_name`."""
    name, after = read_name(message, at)
    return name.lower(), after


def _server_name(record: bytes) -> bytes:
    """The server name in the first record of a TLS client; empty if it has none.

    Raises:
        IndexError, struct.error: the record ends before.
    """
    if record[5] != 1:  # no client hello
        return b""
    at = 5 + 4 + 2 + 32
    at += 1 + record[at]  # session id
    at += 2 + struct.unpack_from(">H", record, at)[0]  # cipher suites
    at += 1 + record[at]  # compression methods
    (size,) = struct.unpack_from(">H", record, at)
    at, end = at + 2, at + 2 + size
    while at + 4 <= end:
        kind, size = struct.unpack_from(">HH", record, at)
        if kind == _SERVER_NAME:
            _, name_type, length = struct.unpack_from(">HBH", record, at + 4)
            name = record[at + 9 : at + 9 + length]
            return name if name_type == _SERVER_NAME and len(name) == length else b""
        at += 4 + size
    return b""
