"""Capture files of other programs: handmade blocks, options and records.

It does not use the package under test.
"""

from __future__ import annotations

import contextlib
import ssl
import struct
from collections.abc import Sequence

SHB, IDB, PB, SPB, NRB, ISB, EPB, DSB = 0x0A0D0D0A, 1, 2, 3, 4, 5, 6, 10


def block(kind: int, body: bytes, order: str = "<") -> bytes:
    """A block; its body is padded to four bytes."""
    body += bytes(-len(body) % 4)
    length = struct.pack(order + "I", len(body) + 12)
    return struct.pack(order + "I", kind) + length + body + length


def options(*pairs: tuple[int, bytes], order: str = "<") -> bytes:
    """Options, ended by opt_endofopt if there is any."""
    raw = b"".join(struct.pack(order + "HH", code, len(text)) + text + bytes(-len(text) % 4) for code, text in pairs)
    return raw + (bytes(4) if raw else b"")


def section(order: str = "<", *, major: int = 1, length: int = -1) -> bytes:
    """A Section Header Block."""
    return block(SHB, struct.pack(order + "IHHq", 0x1A2B3C4D, major, 0, length), order)


def interface(order: str = "<", link_type: int = 1, snaplen: int = 0, opts: bytes = b"") -> bytes:
    """An Interface Description Block."""
    return block(IDB, struct.pack(order + "HHI", link_type, 0, snaplen) + opts, order)


def packet(
    frame: bytes = b"frame",
    opts: bytes = b"",
    order: str = "<",
    *,
    number: int = 0,
    time: int = 0,
    wire_len: int | None = None,
    cap_len: int | None = None,
) -> bytes:
    """An Enhanced Packet Block; `cap_len` is wrong if it is given."""
    lengths = (len(frame) if cap_len is None else cap_len, len(frame) if wire_len is None else wire_len)
    head = struct.pack(order + "5I", number, time >> 32, time & 0xFFFFFFFF, *lengths)
    return block(EPB, head + frame + bytes(-len(frame) % 4) + opts, order)


def comment(text: bytes, *others: tuple[int, bytes], order: str = "<") -> bytes:
    """Options with a comment first."""
    return options((1, text), *others, order=order)


def process(tgid: int, comm: str, direction: int = 2, more: str = "") -> bytes:
    """The options of a packet of skbcapd, as in docs/format.md."""
    numbers = struct.pack("<II", tgid, tgid)
    return comment(
        f"comm={comm} pid={tgid} tgid={tgid}{more}".encode(), (2, struct.pack("<I", direction)), (8, numbers)
    )


def pcap(frames: Sequence[bytes], magic: int = 0xA1B2C3D4, order: str = "<", link_type: int = 1) -> bytes:
    """A pcap file; packet n is n seconds and n units old."""
    head = struct.pack(order + "IHHiIII", magic, 2, 4, 0, 0, 262144, link_type)
    records = (struct.pack(order + "4I", n, n, len(frame), len(frame)) + frame for n, frame in enumerate(frames, 1))
    return head + b"".join(records)


def udp(source: str, destination: str, size: int = 60, tags: int = 0) -> bytes:
    """An Ethernet frame with IPv4 and UDP, after optional VLAN tags."""
    addresses = b"".join(bytes(map(int, address.split("."))) for address in (source, destination))
    head = struct.pack(">BBHHHBBH", 0x45, 0, size - 14 - 4 * tags, 0, 0, 64, 17, 0)
    frame = bytes(12) + bytes.fromhex("81000007") * tags + b"\x08\x00" + head + addresses
    return frame + bytes(size - len(frame))


def hello(name: str | None) -> bytes:
    """What a TLS client sends first."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    client = context.wrap_bio(incoming, outgoing, server_hostname=name)
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()
