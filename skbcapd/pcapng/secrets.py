"""TLS secrets: the lines of a key log, and the Decryption Secrets Block that holds them.

In: text of a key log (SSLKEYLOGFILE). Out: its well-formed lines; a block with them; a block with empty space, into
which lines are written later.

The rule: only well-formed lines leave this module, whatever the text is.

Source: draft-ietf-tls-keylogfile for the lines; draft-ietf-opsawg-pcapng section 4.7 for the block.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

from skbcapd.pcapng.blocks import SECRETS, TLS_KEY_LOG

LINE_MAX = 512
"""Bytes of the longest line that can be well-formed, and more."""

RESERVED = 1 << 18
"""Bytes of the block with empty space."""

_HEAD = 16  # bytes before the text: type, length, type of secrets, length of the text
# TLS 1.2 and before: client random, master secret. TLS 1.3: client random, a secret as long as the hash.
_LINE = re.compile(
    rb"CLIENT_RANDOM [0-9a-fA-F]{64} [0-9a-fA-F]{96}"
    rb"|(?:CLIENT_EARLY_TRAFFIC_SECRET|(?:CLIENT|SERVER)_HANDSHAKE_TRAFFIC_SECRET|(?:CLIENT|SERVER)_TRAFFIC_SECRET_0"
    rb"|(?:EARLY_)?EXPORTER_SECRET) [0-9a-fA-F]{64} (?:[0-9a-fA-F]{64}|[0-9a-fA-F]{96})"
)
_EMPTY = b"#" + b" " * 62 + b"\n"  # a comment, which readers skip; short, as they search each line for a secret
# The last bytes stay empty: a direct write after the block repeats the bytes since the last block of the disk.
_KEPT_EMPTY = 1 << 13


def key_lines(text: bytes) -> Iterator[bytes]:
    """The well-formed lines of a key log, each with a newline."""
    for line in text.split(b"\n"):
        if _LINE.fullmatch(line := line.removesuffix(b"\r")):
            yield line + b"\n"


def block(text: bytes) -> bytes:
    """A Decryption Secrets Block with the lines of a key log."""
    padding = bytes(-len(text) % 4)
    length = _HEAD + len(text) + len(padding) + 4
    return struct.pack("<4I", SECRETS, length, TLS_KEY_LOG, len(text)) + text + padding + struct.pack("<I", length)


def reserved_block() -> bytes:
    """A block of RESERVED bytes whose text consists of comments.

    Lines that are written over the comments, from RESERVED_START on, change nothing else in the file: it can be read
    at any time.
    """
    size = RESERVED - _HEAD - 4
    return block((_EMPTY * (size // len(_EMPTY) + 1))[: size - 1] + b"\n")


RESERVED_START = _HEAD
"""Offset in the block at which lines can be written."""

RESERVED_FOR_LINES = (RESERVED - _HEAD - _KEPT_EMPTY) // len(_EMPTY) * len(_EMPTY)
"""Bytes that can be written there."""


def filled(text: bytes) -> bytes:
    """Lines, followed by the rest of the comment that they are written over, so that no line is broken."""
    rest = -len(text) % len(_EMPTY)
    return text if not rest else text + (b"#" * (rest - 1) + b"\n")
