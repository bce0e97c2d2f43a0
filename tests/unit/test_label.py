"""The grammar of the comment and the bytes of options, compared with handmade tables and random
values.
"""

from __future__ import annotations

import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skbcapd.pcapng import blocks
from skbcapd.pcapng import comment as label
from skbcapd.pcapng.comment import OPTIONS_MAX, CommentError, comment, option, packet_options, parse

SEED = "comm=chronyd pid=1058 tgid=1058"
KEYS = st.text(string.ascii_lowercase + "_", min_size=1, max_size=12)
# Random bytes, and bytes that the grammar itself uses.
HOSTILE = st.binary(max_size=40) | st.lists(
    st.sampled_from([b"comm=", b"pid=1", b" ", b'"', b"\\", b"=", b"\\x3d", b"\n"])
).map(b"".join)
FIELDS = st.lists(st.tuples(KEYS, HOSTILE), min_size=1, max_size=6, unique_by=lambda field: field[0])


@pytest.mark.parametrize(
    ("value", "spelled"),
    [
        (b"chronyd", "chronyd"),
        (1058, "1058"),
        (-1, "-1"),
        ("/usr/sbin/chronyd", "/usr/sbin/chronyd"),
        (b"kworker/0:1-ev", "kworker/0:1-ev"),
        (b"(sd-pam)", "(sd-pam)"),
        (b"!#$%&'()*+,-./:;<>?@[]^_`{|}~", "!#$%&'()*+,-./:;<>?@[]^_`{|}~"),
        (b"", '""'),
        (b" ", '" "'),
        (b"tmux: server", '"tmux: server"'),
        (b"a=b", r'"a\x3db"'),
        (b'say "hi"', r'"say \"hi\""'),
        (b"back\\slash", r'"back\\slash"'),
        (b"\\x41", r'"\\x41"'),
        (b"\x00\n\r\t\x1b[31m\x7f", r'"\x00\x0a\x0d\x09\x1b[31m\x7f"'),
        ("größe", r'"gr\xc3\xb6\xc3\x9fe"'),
        (b"\xff\xfe", r'"\xff\xfe"'),
        ("\udcff", r'"\xff"'),
        (b"x pid=1 tgid=1", r'"x pid\x3d1 tgid\x3d1"'),
        (b'x" pid=1 y="', r'"x\" pid\x3d1 y\x3d\""'),
    ],
)
def test_value_has_the_documented_spelling(value: bytes | str | int, spelled: str) -> None:
    """A value is bare, or quoted and escaped, as docs/format.md says."""
    assert comment([("comm", value), ("pid", 7)]) == f"comm={spelled} pid=7"


def test_seed_comment() -> None:
    """The process of the first question is written as `comm=chronyd pid=1058 tgid=1058` and read
    back.
    """
    assert comment([("comm", b"chronyd"), ("pid", 1058), ("tgid", 1058)]) == SEED
    assert parse(SEED) == [("comm", b"chronyd"), ("pid", b"1058"), ("tgid", b"1058")]


@pytest.mark.fuzz
@given(FIELDS)
def test_any_bytes_round_trip(fields: list[tuple[str, bytes]]) -> None:
    """For any bytes in the values, parsing returns the same keys and bytes."""
    assert parse(comment(fields)) == fields


@pytest.mark.fuzz
@given(HOSTILE)
def test_no_comm_can_forge_a_field(comm: bytes) -> None:
    """A search for `key=` finds the real keys only."""
    text = comment([("comm", comm), ("pid", 1), ("tgid", 2)])
    assert re.findall(r"([a-z_]*)=", text) == ["comm", "pid", "tgid"]
    assert text.isascii()
    assert text.isprintable()


@pytest.mark.fuzz
@given(st.text('ab=_" \\x0137df\n\xff\u20ac') | st.from_regex(r'\A[a-z_]{0,2}="?[ -~]*"?\Z'))
def test_parse_accepts_only_what_comment_writes(text: str) -> None:
    """A text is an error (CommentError), or the only spelling of its fields."""
    try:
        fields = parse(text)
    except CommentError:
        return
    assert comment(fields) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "comm",
        "comm=",
        "=x",
        "Comm=x",
        "comm=x ",
        " comm=x",
        "comm=x  pid=1",
        "comm=x\tpid=1",
        "comm=x\n",
        "comm=x pid=1\n",
        "comm=a=b",
        'comm="x"',
        'comm="a b',
        'comm="a b"c',
        'comm=a"b',
        r"comm=a\b",
        'comm="a=b"',
        r'comm="\n"',
        r'comm="\x0A"',
        r'comm="\x0"',
        r'comm="\x20"',
        r'comm="\x41"',
        r'comm="a b\x41"',
        r'comm="a b\x7e"',
        r'comm="a b\x20"',
        r'comm="a b\x0A"',
        'comm="\n"',
        'comm="é"',
        "comm=é",
        "comm=x comm=y",
        "PID: 1058\nCmd: chronyd",
    ],
)
def test_parse_refuses(text: str) -> None:
    """Texts outside of the grammar are errors, including similar ones and comments of other tools."""
    with pytest.raises(CommentError):
        parse(text)


@pytest.mark.parametrize("fields", [[], [("", b"x")], [("Comm", b"x")], [("a b", b"x")], [("a=", b"")], [("a\n", b"")]])
def test_comment_refuses_keys(fields: list[tuple[str, bytes]]) -> None:
    """A key that cannot be read back, or no field at all, is an error."""
    with pytest.raises(CommentError):
        comment(fields)


def test_comment_refuses_a_key_twice() -> None:
    """A duplicate key is an error."""
    with pytest.raises(CommentError):
        comment([("comm", b"a"), ("pid", 1), ("comm", b"b")])


@pytest.mark.parametrize(
    ("code", "value", "raw"),
    [
        (0, b"", "0000 0000"),
        (1, b"a", "0100 0100 61000000"),
        (2, b"eth0", "0200 0400 65746830"),
        (9, b"\x09", "0900 0100 09000000"),
        (0x8001, b"12345", "0180 0500 3132333435000000"),
    ],
)
def test_option_bytes(code: int, value: bytes, raw: str) -> None:
    """An option is code, length without padding, value, zeros up to four bytes."""
    assert option(code, value) == bytes.fromhex(raw)


def test_option_of_65535_bytes_is_the_longest() -> None:
    """The largest length works; one byte more is an error, and does not overflow."""
    assert len(option(1, bytes(65535))) == 4 + 65536
    with pytest.raises(ValueError, match="option 1 has 65536 bytes"):
        option(1, bytes(65536))


COMMENT = "0100 1f00" + SEED.encode().hex() + "00"
FLAGS_OUT = "0200 0400 02000000"
PROCESS = "0800 0800 22040000 23040000"
END = "0000 0000"


@pytest.mark.parametrize(
    ("arguments", "raw"),
    [
        ((SEED, blocks.DIRECTION_OUT, 1058, 1059), COMMENT + FLAGS_OUT + PROCESS + END),
        ((None, blocks.DIRECTION_OUT, 1058, 1059), FLAGS_OUT + PROCESS + END),
        ((SEED, blocks.DIRECTION_OUT, 0, 0), COMMENT + FLAGS_OUT + END),
        ((None, 0, 0, 0), "0200 0400 00000000" + END),
        ((None, 2, 1058, 0), FLAGS_OUT + "0800 0800 22040000 00000000" + END),
        ((None, 0xFFFFFFFF, 2**32 - 1, 2**32 - 1), "0200 0400 ffffffff 0800 0800 ffffffff ffffffff" + END),
    ],
)
def test_packet_options_bytes(arguments: tuple[str | None, int, int, int], raw: str) -> None:
    """The options are comment, flags, process, end; there is no process option if both ids are
    unknown.
    """
    assert packet_options(*arguments) == bytes.fromhex(raw)


def test_flag_values() -> None:
    """The epb_flags constants are the bits of the draft."""
    assert (blocks.DIRECTION_IN, blocks.DIRECTION_OUT) == (0b01, 0b10)
    receptions = (blocks.RECEPTION_UNICAST, blocks.RECEPTION_MULTICAST, blocks.RECEPTION_BROADCAST)
    assert (*receptions, blocks.RECEPTION_PROMISCUOUS) == (0b00100, 0b01000, 0b01100, 0b10000)
    assert (blocks.CHECKSUM_NOT_READY, blocks.CHECKSUM_VALID, blocks.SEGMENTATION_OFFLOADED) == (0x200, 0x400, 0x800)


@given(st.just([]) | FIELDS, st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_flags_stand_where_the_label_says(fields: list[tuple[str, bytes]], flags: int, extra: int) -> None:
    """Bits that are added at `flags_at` give the same options as with these bits from the start."""
    made = label.label(fields, flags, 1058, 1059)
    raw = bytearray(made.options)
    assert made.flags_at % 4 == 0
    word = int.from_bytes(raw[made.flags_at : made.flags_at + 4], "little")
    raw[made.flags_at : made.flags_at + 4] = (word | extra).to_bytes(4, "little")
    assert bytes(raw) == label.label(fields, flags | extra, 1058, 1059).options


LONG = ("user", "exe", "cmdline", "cgroup", "unit", "container")
VALUES = st.binary(max_size=600) | st.integers(0, 600).map(lambda size: b"/x" * size) | HOSTILE
KNOWN = st.fixed_dictionaries(
    {"comm": st.binary(max_size=15), "pid": st.just(2**32 - 1), "tgid": st.just(2**32 - 1)},
    optional={"ppid": st.just(2**32 - 1), "uid": st.just(2**32 - 1)} | dict.fromkeys(LONG, VALUES),
).map(lambda known: [*known.items(), ("via", b"forwarded")])


@given(KNOWN, st.booleans())
def test_a_label_always_fits(fields: list[tuple[str, bytes | int]], linked: bool) -> None:  # noqa: FBT001
    """The fields of any process fit into the label of the kernel; cut values are prefixes, and are
    named.
    """
    made = label.label(fields, 2, 2**32 - 1, 2**32 - 1, linked=linked)
    assert len(made.options) <= OPTIONS_MAX
    length = int.from_bytes(made.options[2:4], "little")
    text = dict(parse(made.options[4 : 4 + length].decode()))
    cut = text.pop("cut", b"").decode().split(",")
    assert [*text] == [key for key, _ in fields]
    for key, value in fields:
        raw = value if isinstance(value, bytes) else str(value).encode()
        assert raw.startswith(text[key])
        assert (key in cut) == (raw != text[key])
        assert key in LONG or raw == text[key]


@given(KNOWN)
def test_nothing_is_cut_without_need(fields: list[tuple[str, bytes | int]]) -> None:
    """No value is cut if all of them fit; otherwise almost the full space is used."""
    whole = [(key, value[:128] if key == "cmdline" and isinstance(value, bytes) else value) for key, value in fields]
    made = dict(label.fit(fields))
    cut = made.pop("cut", b"")
    if len(comment(whole)) <= label.COMMENT_MAX - 48:
        assert [*made.items()] == whole
        assert cut in {b"", "cmdline"}
    elif cut:
        # A step of the common length removes or adds up to four bytes of each value.
        assert len(comment([*made.items()])) > label.COMMENT_MAX - 48 - 6 * 4


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ([("cmdline", b"x" * 128)], [("cmdline", b"x" * 128)]),
        ([("cmdline", b"x" * 129)], [("cmdline", b"x" * 128), ("cut", "cmdline")]),
        ([("exe", b"/" * 468)], [("exe", b"/" * 468)]),
        ([("exe", b"/" * 469)], [("exe", b"/" * 460), ("cut", "exe")]),
        ([("exe", b"\xff" * 200)], [("exe", b"\xff" * 114), ("cut", "exe")]),
        (
            [("comm", b"x"), ("user", b"u"), ("exe", b"/" * 300), ("cgroup", b"c" * 300), ("unit", b"x.service")],
            [
                *(("comm", b"x"), ("user", b"u"), ("exe", b"/" * 203), ("cgroup", b"c" * 203), ("unit", b"x.service")),
                ("cut", "exe,cgroup"),
            ],
        ),
    ],
)
def test_the_longest_values_are_cut(fields: list[tuple[str, bytes]], expected: list[tuple[str, bytes | str]]) -> None:
    """The longest values are cut to one length in the comment; no escape is split; short values are
    complete.
    """
    assert label.fit(fields) == expected
