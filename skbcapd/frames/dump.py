"""Bytes as lines of hexadecimal numbers and characters, in the form of tcpdump.

In: bytes. Out: lines, each after a line break and a tab.

The rule not to break: a byte becomes a line break only before a tab, and otherwise a printable character. So a packet
cannot forge the line of another one.
"""

from __future__ import annotations

_WIDTH = 16
_TEXT = {byte: chr(byte) if 0x20 <= byte < 0x7F else "." for byte in range(256)} | {0x0D: "", 0x0A: "\n\t"}


def hexadecimal(raw: bytes, *, characters: bool) -> str:
    """Sixteen bytes a line, in groups of two, with their characters if wanted."""
    lines = []
    for at in range(0, len(raw), _WIDTH):
        row = raw[at : at + _WIDTH]
        groups = "".join(f" {row[place : place + 2].hex()}" for place in range(0, len(row), 2))
        shown = "".join(chr(byte) if 0x20 < byte < 0x7F else "." for byte in row)
        lines.append(f"\n\t0x{at:04x}: {groups:<40}  {shown}" if characters else f"\n\t0x{at:04x}: {groups}")
    return "".join(lines)


def text(raw: bytes) -> str:
    """The characters; all others are dots."""
    return "\n\t" + "".join(map(_TEXT.__getitem__, raw)) if raw else ""
