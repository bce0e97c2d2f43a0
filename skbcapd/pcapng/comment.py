r"""The options of a packet: the text of the comment, and the bytes of the pcapng options.

In: fields of a process (name, ids, ...), flags of a packet. Out: bytes of options, which the kernel
program or `pcapng` copies after a frame. No file, no clock, no state.

The rule not to break: a process that chooses a value (such as its own name) must not be able to
write another field. So a comment is one line of printable ASCII, each value has exactly one
spelling, parsing it gives the same bytes, and the character `=` is only after a key: even a search
for the text `comm=chronyd` finds no forged field. The grammar, as in docs/format.md:

    comment = field *( " " field )              each key at most once
    field   = 1*( "a".."z" / "_" ) "=" ( bare / quoted )
    bare    = 1*( printable ASCII but space, double quote, "=" and backslash )
    quoted  = <"> *( printable ASCII but double quote, "=" and backslash / escape ) <">
    escape  = "\\" / "\" <"> / "\x" two lower-case hex digits
"""

from __future__ import annotations

import bisect
import contextlib
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

from skbcapd.attribution.fields import CUTTABLE
from skbcapd.errors import SegmentError
from skbcapd.pcapng.blocks import EPB_FLAGS, EPB_PACKETID, EPB_PROCESSID_THREADID, OPT_COMMENT, OPT_ENDOFOPT

OPTION_MAX = 0xFFFF  # bytes: the length field has 16 bits
# Maximum length of a comment: the options of a label also contain its own header, epb_flags,
# epb_packetid, the process and the end.
OPTIONS_MAX = 512  # bytes of options in a label
COMMENT_MAX = OPTIONS_MAX - (4 + 8 + 12 + 12 + 4)
CMDLINE_MAX = 128  # bytes of a command line in a comment

_CUTTABLE = frozenset(CUTTABLE)
_OPTION_HEAD = struct.Struct("<HH")
_FLAGS_OPTION, _PROCESS_OPTION = struct.Struct("<HHI"), struct.Struct("<HHII")  # code, length, value
_END_OPTION = struct.pack("<HH", OPT_ENDOFOPT, 0)
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
_ESCAPED = {byte: f"\\x{byte:02x}" for byte in range(256)} | _PLAIN | {ord("="): "\\x3d"}


class CommentError(ValueError):
    """A comment, or a field of one, that is not in the grammar."""


def comment(fields: Sequence[tuple[str, bytes | str | int]]) -> str:
    """Write fields as the text of a packet comment.

    Args:
        fields: at least one (key, value), in the order of the comment. A str is written as UTF-8 (a
            surrogate escape as the byte that it stands for), an int in decimal.

    Returns:
        One line of printable ASCII; `parse` returns the same keys and bytes.

    Raises:
        CommentError: no field, a key that is not `[a-z_]+`, or a key used twice.

    Source: docs/format.md, "The comment".
    """
    keys = tuple(key for key, _ in fields)
    if not _are_keys(keys):
        raise CommentError(f"keys are {[*keys]}; expected one or more, each [a-z_]+, none twice")
    return " ".join(f"{key}={_spell(value)}" for key, value in fields)


def parse(text: str) -> list[tuple[str, bytes]]:
    """Parse a comment; accepts only what `comment` writes.

    Args:
        text: the comment from a pcapng reader.

    Returns:
        (key, value) pairs in their order.

    Raises:
        CommentError: the text is not in the grammar, has another spelling of a value than `comment`
            (quotes around a value that needs none), or has a key twice.

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


def fit(fields: Sequence[tuple[str, bytes | str | int]]) -> list[tuple[str, bytes | str | int]]:
    """Cut values so that the comment fits into a label, and add the field `cut`.

    A command line is cut to CMDLINE_MAX bytes. If the comment is still longer than COMMENT_MAX, the
    ends of the longest values that may be cut (attribution.fields) are removed. All cut values then
    have about the same length in the comment.

    Args:
        fields: the argument of `comment`.

    Returns:
        The fields; if one was cut, followed by the field `cut` with the names of all cut fields.
    """
    if _CUTTABLE.isdisjoint(key for key, _ in fields):
        return list(fields)  # names and numbers always fit
    whole = {key: _raw(value) if key in CUTTABLE else value for key, value in fields}
    found = dict(whole)
    if "cmdline" in found:
        found["cmdline"] = _raw(found["cmdline"])[:CMDLINE_MAX]
    # Space for the longest possible `cut`.
    room = COMMENT_MAX - len(" cut=" + ",".join(key for key in CUTTABLE if key in found))

    def shortened(most: int) -> dict[str, bytes | str | int]:
        return {key: _cut(_raw(value), most) if key in CUTTABLE else value for key, value in found.items()}

    if found and len(comment([*found.items()])) > (COMMENT_MAX if found == whole else room):
        # The lengths in descending order: the first one that fits is the largest.
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
        ValueError: the value is too long for the 16-bit length.

    Source: draft-ietf-opsawg-pcapng section 3.5.
    """
    if len(value) > OPTION_MAX:
        raise ValueError(f"option {code} has {len(value)} bytes; expected at most {OPTION_MAX}")
    return struct.pack("<HH", code, len(value)) + value + bytes(-len(value) % 4)


def packet_options(comment: str | None, flags: int, tgid: int, tid: int, *, linked: bool = False) -> bytes:
    """Build the options of an Enhanced Packet Block: comment, flags, packetid, process, end; always
    in this order.

    The process option is left out if both ids are 0. In the draft, 0 is an id that is not known,
    but on Linux, pid 0 is the idle task. If only one id is known, the other is written as 0.

    Args:
        comment: the text from `comment`, or None.
        flags: epb_flags, u32, from this module's constants.
        tgid: process id; 0 if not known.
        tid: thread id; 0 if not known.
        linked: whether to reserve space for epb_packetid.

    Returns:
        Option bytes, little endian, a multiple of four, including the end option.

    Raises:
        ValueError: the comment is longer than 65535 bytes, or is not ASCII.

    Source: draft-ietf-opsawg-pcapng sections 3.5, 4.3 and 4.3.1.
    """
    options = b"" if comment is None else option(OPT_COMMENT, comment.encode("ascii"))
    options += _FLAGS_OPTION.pack(EPB_FLAGS, 4, flags)
    if linked:
        options += option(EPB_PACKETID, bytes(8))
    if tgid or tid:
        options += _PROCESS_OPTION.pack(EPB_PROCESSID_THREADID, 8, tgid, tid)
    return options + _END_OPTION


@dataclass(frozen=True, slots=True)
class Label:
    """The bytes that the kernel program copies after a frame.

    Args:
        options: the result of `packet_options`.
        flags_at: offset of the u32 epb_flags in `options` (a multiple of four). The kernel program
            adds the bits that differ between packets (reception type, checksum, GSO).
        linked: whether there is a u64 epb_packetid, 8 bytes after flags_at: 0 here, different in
            each packet.
    """

    options: bytes
    flags_at: int
    linked: bool = False


def label(
    fields: Sequence[tuple[str, bytes | str | int]], flags: int, tgid: int, tid: int, *, linked: bool = False
) -> Label:
    """Build the label of one (process, interface, direction).

    Args:
        fields: fields of the comment, as for `comment`; empty: no comment. Long values are cut, see
            `fit`.
        flags: the bits of epb_flags that all its packets have: the direction.
        tgid: process id, 0 if not known.
        tid: thread id, 0 if not known.
        linked: whether its packets have an identifier.

    Returns:
        The label.

    Raises:
        ValueError: the comment does not fit an option (65535 bytes); CommentError for wrong fields.

    Source: docs/format.md.
    """
    text = comment(fit(fields)) if fields else None
    before = 0 if text is None else len(option(OPT_COMMENT, text.encode("ascii")))
    return Label(packet_options(text, flags, tgid, tid, linked=linked), before + 4, linked)


def read_label(options: bytes) -> tuple[Label, int, int]:
    """Take the label out of the options of a packet, which the kernel program has written with one.

    Args:
        options: options as from `packet_options`.

    Returns:
        The label; the flags of the packet; its identifier, 0 for none.

    Raises:
        SegmentError: they are not from such a program.
    """
    at = 0
    with contextlib.suppress(struct.error):
        code, size = _OPTION_HEAD.unpack_from(options)
        if code == OPT_COMMENT:
            at = _OPTION_HEAD.size + size + -size % 4
        code, size, flags = _FLAGS_OPTION.unpack_from(options, at)
        following, _ = _OPTION_HEAD.unpack_from(options, at + _FLAGS_OPTION.size)
        if code == EPB_FLAGS:
            cleared, linked, flags_at = bytearray(options), following == EPB_PACKETID, at + _OPTION_HEAD.size
            cleared[flags_at : flags_at + 4] = bytes(4)
            packet_id = cleared[flags_at + 8 : flags_at + 16] if linked else b""
            cleared[flags_at + 8 : flags_at + 8 + len(packet_id)] = bytes(len(packet_id))
            return Label(bytes(cleared), flags_at, linked), flags, int.from_bytes(packet_id, "little")
    raise SegmentError(f"options of {len(options)} bytes have no flags at {at}")


@lru_cache(maxsize=256)  # the keys of a capture are those of its settings, with and without some
def _are_keys(keys: tuple[str, ...]) -> bool:
    """Whether a comment may have these keys."""
    return bool(keys) and len(set(keys)) == len(keys) and all(map(_KEY.fullmatch, keys))


def _spell(value: bytes | str | int) -> str:
    """The only spelling of a value: bare if possible, otherwise quoted and escaped."""
    if isinstance(value, int):
        return str(value)
    raw = _raw(value)
    if _BARE.fullmatch(raw):
        return raw.decode("ascii")
    return '"' + "".join(map(_ESCAPED.__getitem__, raw)) + '"'


def _raw(value: bytes | str | int) -> bytes:
    """A value as bytes."""
    if isinstance(value, bytes):
        return value
    return str(value).encode("utf-8", "surrogateescape")


def _cut(value: bytes, most: int) -> bytes:
    """The longest start of a value whose spelling has at most `most` characters."""
    value = value[:most]
    bare = _BARE.match(value)
    quoted = list(accumulate((len(_ESCAPED[byte]) for byte in value), initial=2))
    return value[: max(bisect.bisect_right(quoted, most) - 1, bare.end() if bare else 0)]


def _unescape(found: re.Match[str]) -> str:
    return chr(int(found[1], 16)) if found[1] else found[2]
