r"""What is stamped on a packet: the comment's text, and the pcapng option bytes that hold it.

A process's facts (name, ids, ...) and a packet's flags enter; option bytes leave, ready to be copied
behind a frame by the kernel program or by `pcapng`. Pure: no file, no clock, no state.

The rule not to break: whoever chooses a value (any process chooses its own name) must not be able to
write another field. So a comment is one line of printable ASCII, every value has exactly one spelling,
that spelling parses back to the very bytes, and the character `=` stands nowhere but behind a key: even
a reader that only looks for the text `comm=chronyd` finds no forged one. The grammar, as in docs/format.md:

    comment = field *( " " field )              each key at most once
    field   = 1*( "a".."z" / "_" ) "=" ( bare / quoted )
    bare    = 1*( printable ASCII but space, double quote, "=" and backslash )
    quoted  = <"> *( printable ASCII but double quote, "=" and backslash / escape ) <">
    escape  = "\\" / "\" <"> / "\x" two lower-case hex digits
"""

from __future__ import annotations

import bisect
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

# epb_flags, draft-ietf-opsawg-pcapng section 4.3.1 (bit 0 is the least significant).
DIRECTION_IN = 1
DIRECTION_OUT = 2
RECEPTION_UNICAST = 1 << 2
RECEPTION_MULTICAST = 2 << 2
RECEPTION_BROADCAST = 3 << 2
RECEPTION_PROMISCUOUS = 4 << 2
CHECKSUM_NOT_READY = 1 << 9
CHECKSUM_VALID = 1 << 10
SEGMENTATION_OFFLOADED = 1 << 11

# Option codes: section 3.5 (end, comment) and section 4.3 (the rest).
OPT_ENDOFOPT = 0
OPT_COMMENT = 1
EPB_FLAGS = 2
EPB_PACKETID = 5
EPB_PROCESSID_THREADID = 8

OPTION_MAX = 0xFFFF  # bytes: the length field has 16 bits
# A comment that leaves room for its own head, epb_flags, epb_packetid, the process and the end in a label.
OPTIONS_MAX = 512  # bytes of options that a label has room for
COMMENT_MAX = OPTIONS_MAX - (4 + 8 + 12 + 12 + 4)
CMDLINE_MAX = 128  # bytes of a command line in a comment
_CUTTABLE = ("user", "exe", "cmdline", "cgroup", "unit", "container")

_KEY = re.compile(r"[a-z_]+")
_BARE = re.compile(rb"[!#-<>-\[\]-~]+")
_FIELD = re.compile(
    r"([a-z_]+)="
    r"(?:([!#-<>-\[\]-~]+)"  # bare
    r'|"((?:[ !#-<>-\[\]-~]|\\["\\]|\\x(?:[01][0-9a-f]|3d|7f|[89a-f][0-9a-f]))*)")'  # quoted
    r"( |\Z)"
)
_ESCAPE = re.compile(r"\\(?:x(..)|(.))")
_PLAIN = {byte: chr(byte) for byte in range(0x20, 0x7F)} | {ord(char): "\\" + char for char in '"\\'}
_SHOWN = {byte: chr(byte) if 0x20 <= byte < 0x7F else f"\\x{byte:02x}" for byte in range(256)} | {0x5C: "\\\\"}
_ESCAPED = {byte: f"\\x{byte:02x}" for byte in range(256)} | _PLAIN | {ord("="): "\\x3d"}


class CommentError(ValueError):
    """A comment, or a field for one, that the grammar does not give."""


def comment(fields: Sequence[tuple[str, bytes | str | int]]) -> str:
    """Write fields as the text of a packet comment.

    Args:
        fields: at least one (key, value), in the order they shall stand. A str is written as its UTF-8
            bytes (surrogate escapes give back the byte they stand for), an int in decimal.

    Returns:
        One line of printable ASCII; `parse` gives the same keys and bytes back.

    Raises:
        CommentError: no field, a key that is not `[a-z_]+`, or a key used twice.

    Source: docs/format.md, "The comment".
    """
    keys = [key for key, _ in fields]
    if not keys or len(set(keys)) < len(keys) or not all(map(_KEY.fullmatch, keys)):
        raise CommentError(f"keys are {keys}; expected one or more, each [a-z_]+, none twice")
    return " ".join(f"{key}={_spell(value)}" for key, value in fields)


def parse(text: str) -> list[tuple[str, bytes]]:
    """Read a packet comment back, accepting only what `comment` writes.

    Args:
        text: the comment as a pcapng reader gives it.

    Returns:
        (key, value) pairs in the order they stand.

    Raises:
        CommentError: the text is not in the grammar, spells a value in another way than `comment`
            would (quotes around a value that needs none), or has a key twice.

    Source: docs/format.md, "The comment".
    """
    fields: dict[str, bytes] = {}
    at = 0
    while True:
        field = _FIELD.match(text, at)
        if not field:
            raise CommentError(f"comment has {text[at : at + 32]!r} at {at}; expected key=value")
        key, bare, quoted, space = field.groups()
        value = _ESCAPE.sub(_unescape, bare if quoted is None else quoted).encode("latin-1")
        if quoted is not None and _BARE.fullmatch(value):
            raise CommentError(f"comment quotes {key} at {at}; expected {key}={quoted} without quotes")
        if key in fields:
            raise CommentError(f"comment has {key} again at {at}; expected each key once")
        fields[key] = value
        at = field.end()
        if not space:
            return list(fields.items())


def shown(value: bytes) -> str:
    r"""Write a value for people and for other programs: plain where `comment` would quote, safe on a terminal.

    Args:
        value: any bytes, such as a process's name.

    Returns:
        Printable ASCII; a backslash is `\\`, any other byte `\x` and two hex digits: two values never look alike.
    """
    return "".join(map(_SHOWN.__getitem__, value))


def fit(fields: Sequence[tuple[str, bytes | str | int]]) -> list[tuple[str, bytes | str | int]]:
    """Cut values so that their comment fits a label, and say so.

    A command line longer than CMDLINE_MAX bytes is cut to that. Where the whole is still longer than COMMENT_MAX, the
    longest of user, exe, cmdline, cgroup, unit and container lose their ends, so that as spelled none is longer than
    the longest that had to be cut.

    Args:
        fields: as for `comment`.

    Returns:
        The fields; if one was cut, with a last one, `cut`, that names each of those.
    """
    whole = {key: _raw(value) if key in _CUTTABLE else value for key, value in fields}
    found = dict(whole)
    if "cmdline" in found:
        found["cmdline"] = _raw(found["cmdline"])[:CMDLINE_MAX]
    # Room for the longest `cut` that there can be.
    room = COMMENT_MAX - len(" cut=" + ",".join(key for key in _CUTTABLE if key in found))

    def shortened(most: int) -> dict[str, bytes | str | int]:
        return {key: _cut(_raw(value), most) if key in _CUTTABLE else value for key, value in found.items()}

    if found and len(comment([*found.items()])) > (COMMENT_MAX if found == whole else room):
        # The lengths in falling order: the first that fits is the largest.
        lengths = range(COMMENT_MAX, 1, -1)
        fits = bisect.bisect_left(lengths, x=True, key=lambda most: len(comment([*shortened(most).items()])) <= room)
        found = shortened(lengths[min(fits, len(lengths) - 1)])
    cut = ",".join(key for key in found if found[key] != whole[key])
    return [*found.items(), *([("cut", cut)] if cut else [])]


def option(code: int, value: bytes) -> bytes:
    """Build one pcapng option: code, length, value, zeros up to a multiple of four bytes.

    Args:
        code: option code, u16.
        value: at most 65535 bytes.

    Returns:
        The option's bytes, little endian.

    Raises:
        ValueError: the value does not fit the option's 16-bit length.

    Source: draft-ietf-opsawg-pcapng section 3.5.
    """
    if len(value) > OPTION_MAX:
        raise ValueError(f"option {code} has {len(value)} bytes; expected at most {OPTION_MAX}")
    return struct.pack("<HH", code, len(value)) + value + bytes(-len(value) % 4)


def packet_options(comment: str | None, flags: int, tgid: int, tid: int, *, linked: bool = False) -> bytes:
    """Build the options of an Enhanced Packet Block: comment, flags, packetid, process, end; always in this order.

    The process option is left out when both ids are 0. The draft lets 0 stand for an id that is not
    known or makes no sense, so zeros would say nothing, in 12 bytes of every such packet, and could be
    read as Linux's pid 0, the idle task. One id alone is written beside a 0.

    Args:
        comment: the text from `comment`, or None for none.
        flags: epb_flags, u32, from this module's constants.
        tgid: the process's id as the user knows it (pcapng: process id); 0 when not known.
        tid: the thread's id (pcapng: thread id); 0 when not known.
        linked: with room for epb_packetid.

    Returns:
        Option bytes, little endian, a multiple of four long, the end option included.

    Raises:
        ValueError: the comment is longer than 65535 bytes, or is not ASCII.

    Source: draft-ietf-opsawg-pcapng sections 3.5, 4.3 and 4.3.1.
    """
    options = b"" if comment is None else option(OPT_COMMENT, comment.encode("ascii"))
    options += option(EPB_FLAGS, struct.pack("<I", flags))
    if linked:
        options += option(EPB_PACKETID, bytes(8))
    if tgid or tid:
        options += option(EPB_PROCESSID_THREADID, struct.pack("<II", tgid, tid))
    return options + option(OPT_ENDOFOPT, b"")


@dataclass(frozen=True, slots=True)
class Label:
    """The bytes that the kernel program copies behind a frame.

    Args:
        options: what `packet_options` gives.
        flags_at: where in `options` the u32 epb_flags stands (a multiple of four), so that the kernel
            program can OR in what differs from packet to packet (reception type, checksum, GSO).
        linked: whether the u64 epb_packetid follows, 8 bytes behind flags_at: 0 here, another one in each packet.
    """

    options: bytes
    flags_at: int
    linked: bool = False


def label(
    fields: Sequence[tuple[str, bytes | str | int]], flags: int, tgid: int, tid: int, *, linked: bool = False
) -> Label:
    """Build the label of one (process, device, direction).

    Args:
        fields: the comment's fields, as for `comment`; none for no comment. Long values are cut, see `fit`.
        flags: the epb_flags bits that all its packets share: the direction.
        tgid: process id, 0 when not known.
        tid: thread id, 0 when not known.
        linked: whether its packets carry an identifier.

    Returns:
        The label.

    Raises:
        ValueError: the comment does not fit an option (65535 bytes); CommentError for wrong fields.

    Source: docs/format.md.
    """
    text = comment(fit(fields)) if fields else None
    before = 0 if text is None else len(option(OPT_COMMENT, text.encode("ascii")))
    return Label(packet_options(text, flags, tgid, tid, linked=linked), before + 4, linked)


def _spell(value: bytes | str | int) -> str:
    """Give the one spelling of a value: bare where it can be, else quoted and escaped."""
    if isinstance(value, int):
        return str(value)
    raw = _raw(value)
    if _BARE.fullmatch(raw):
        return raw.decode("ascii")
    return '"' + "".join(map(_ESCAPED.__getitem__, raw)) + '"'


def _raw(value: bytes | str | int) -> bytes:
    """Give the bytes of a value."""
    if isinstance(value, bytes):
        return value
    return str(value).encode("utf-8", "surrogateescape")


def _cut(value: bytes, most: int) -> bytes:
    """Give the longest start of a value whose spelling has at most `most` characters, of which there are two."""
    value = value[:most]
    bare = _BARE.match(value)
    quoted = list(accumulate((len(_ESCAPED[byte]) for byte in value), initial=2))
    return value[: max(bisect.bisect_right(quoted, most) - 1, bare.end() if bare else 0)]


def _unescape(found: re.Match[str]) -> str:
    return chr(int(found[1], 16)) if found[1] else found[2]
