"""Escapes untrusted text; the only module that does it.

In: text or bytes that others choose (names of processes, interfaces, files; packets). Out: one line
of printable characters.

The rule not to break: control characters, changes of the writing direction and line breaks do not
pass. Everything that is printed on a terminal, in a log or in a table passes this module.
"""

from __future__ import annotations

import re

_BYTES = {byte: chr(byte) if 0x20 <= byte < 0x7F else f"\\x{byte:02x}" for byte in range(256)} | {0x5C: "\\\\"}


def escaped(text: str) -> str:
    r"""Escape each character that is not printable: a new line as `\n`, others as `\x1b`, `\u202e`.

    Args:
        text: any text; surrogates, too.

    Returns:
        One line; printable characters are unchanged.
    """
    return re.sub(r"[^ -~]", lambda match: match[0] if match[0].isprintable() else _escape(match[0]), text)


def escaped_bytes(value: bytes) -> str:
    r"""Write bytes as printable ASCII.

    Args:
        value: any bytes, such as the name of a process.

    Returns:
        Printable ASCII; a backslash is `\\`, any other byte `\x` and two hex digits: different
        values have different results.
    """
    return "".join(map(_BYTES.__getitem__, value))


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
