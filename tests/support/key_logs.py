"""Lines of key logs, as programs with TLS write them, and what is in the secrets blocks of a file."""

from __future__ import annotations

import struct

from tests.support.strangers import DSB, block

TLSK = 0x544C534B


def line(number: int, label: bytes = b"CLIENT_RANDOM") -> bytes:
    """A line: TLS 1.2, or with another label TLS 1.3."""
    size = 48 if label == b"CLIENT_RANDOM" else 32
    return b"%s %s %s\n" % (label, number.to_bytes(32, "big").hex().encode(), bytes(size).hex().encode())


def secrets(text: bytes, order: str = "<", kind: int = TLSK, size: int | None = None) -> bytes:
    """A Decryption Secrets Block; `size` is wrong if it is given."""
    return block(DSB, struct.pack(order + "II", kind, len(text) if size is None else size) + text, order)


def found(file: bytes) -> list[tuple[int, list[bytes]]]:
    """Each secrets block of a little endian file: the number of packets before it, and its lines without comments."""
    at = packets = 0
    blocks = []
    while at < len(file):
        kind, length = struct.unpack_from("<II", file, at)
        assert file[at + 4 : at + 8] == file[at + length - 4 : at + length]
        packets += kind == 6
        if kind == DSB:
            of, size = struct.unpack_from("<II", file, at + 8)
            assert of == TLSK
            text = file[at + 16 : at + 16 + size]
            blocks.append((packets, [each + b"\n" for each in text.split(b"\n") if each and each[:1] != b"#"]))
        at += length
    return blocks
