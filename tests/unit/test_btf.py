"""Offsets from BTF: of a handmade blob, of broken blobs, and of the running kernel."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skbcapd.errors import BtfError
from skbcapd.kernel.btf import Btf
from tests.support import blob
from tests.support.blob import Blob

OTHER_KINDS = sorted(set(range(1, 20)) - {blob.STRUCT, blob.UNION})


def handmade() -> bytes:
    """Two structs as in the kernel, between types of all other kinds."""
    made = Blob()
    for kind in OTHER_KINDS:
        made.add(kind, "decoy", members=3)
    integer = made.add(blob.INT, "int")
    pair = made.struct("", 16, ("next", integer, 0), ("prev", integer, 64))
    node = made.struct("", 24, ("", pair, 0), ("rbnode", integer, 0), kind=blob.UNION)
    bits = made.struct("", 4, ("pkt_type", integer, 0, 3), ("ip_summed", integer, 5, 2), ("mark", integer, 16))
    made.add(blob.FWD, "sk_buff")
    made.add(blob.TYPEDEF, "net")
    made.struct("sk_buff", 232, ("", node, 0), ("len", integer, 448), ("", bits, 1024), ("head", integer, 1600))
    made.struct("k_buff", 8, ("len", integer, 32))
    made.struct("sk_buff", 1, ("len", integer, 0))
    made.struct("same", 8, ("netmem", integer, 64), ("end", integer, 32, 0))
    made.add(blob.FUNC_PROTO, members=2)
    return made.build()


HANDMADE = handmade()


def test_a_name_of_an_enum_without_a_name() -> None:
    """It is found wherever it is, with enums of both sizes; another one is missing."""
    made = Blob()
    made.enum("named", ("FIRST", 3))
    made.enum("", ("WIDE", 5), ("LAST", 7), kind=blob.ENUM64)
    found = Btf(made.build())
    assert [found.enumerator(name) for name in ("FIRST", "WIDE", "LAST", "FIRS", "IRST")] == [3, 5, 7, None, None]


@pytest.mark.parametrize(
    ("name", "field", "found"),
    [
        ("sk_buff", "len", (448, 0)),
        ("sk_buff", "head", (1600, 0)),
        ("sk_buff", "next", (0, 0)),
        ("sk_buff", "prev", (64, 0)),
        ("sk_buff", "rbnode", (0, 0)),
        ("sk_buff", "pkt_type", (1024, 3)),
        ("sk_buff", "ip_summed", (1029, 2)),
        ("sk_buff", "mark", (1040, 0)),
        ("k_buff", "len", (32, 0)),
        ("same", "end", (32, 0)),
    ],
)
def test_the_offset_of_a_field(name: str, field: str, found: tuple[int, int]) -> None:
    """A field is found at its offset, also in anonymous members, as a bitfield, and after types of
    all kinds.
    """
    btf = Btf(HANDMADE)

    assert btf.bits(name, field) == found
    assert btf.offset(name, field) == found[0] // 8
    assert btf.has(name, field)


def test_functions_and_structs_have_numbers() -> None:
    """Functions and structs have type ids; other names have none."""
    made = Blob()
    made.struct("words", 8)
    function = made.add(blob.FUNC, "cast")
    made.add(blob.TYPEDEF, "page")
    btf = Btf(made.build())

    assert (btf.number("words"), btf.function("cast")) == (function - 1, function)
    assert btf.function("page") is None
    assert btf.function("gone") is None


def test_sizes_and_renamed_fields() -> None:
    """A struct has its size; of several names of a field the first that exists is used."""
    btf = Btf(HANDMADE)

    assert (btf.size("sk_buff"), btf.size("k_buff")) == (232, 8)
    assert btf.offset("same", "bv_page", "netmem", "end") == 8
    assert not btf.has("sk_buff", "gone")
    assert not btf.has("gone", "len")


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda btf: btf.offset("sk_buff", "old", "older"), "struct sk_buff has no field older"),
        (lambda btf: btf.bits("sk_buff", "gone"), "struct sk_buff has no field gone"),
        (lambda btf: btf.size("buff"), "struct buff is not in this kernel's BTF"),
        (lambda btf: btf.size("net"), "struct net is not in this kernel's BTF"),
        (lambda btf: btf.size("decoy"), "struct decoy is not"),
    ],
)
def test_missing_fields_are_named(ask: Callable[[Btf], object], message: str) -> None:
    """The error names a missing struct or field, with a hint."""
    with pytest.raises(BtfError, match=message) as raised:
        ask(Btf(HANDMADE))
    assert raised.value.hint


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "0 bytes long; expected at least a header"),
        (HANDMADE[:23], "23 bytes long; expected at least a header"),
        (HANDMADE[:-1], "its header says that there are more"),
        (Blob().build(magic=0x9FEB), "magic 0x9feb version 1; expected 0xeb9f"),
        (Blob().build(version=2), "version 2; expected"),
        (Blob().build(types=b"\0" * 11), "11 bytes of types"),
        (Blob().build(types=struct.pack("<III", 0, blob.STRUCT << 24 | 1, 8)), "12 bytes of types"),
        (b"\x7fELF" + bytes(64), "starts with magic 0x457f"),
    ],
)
def test_wrong_btf_is_rejected(data: bytes, message: str) -> None:
    """Bytes that are not BTF, or incomplete, give an error with what was found and what was
    expected.
    """
    with pytest.raises(BtfError, match=message):
        Btf(data)


@pytest.mark.parametrize("kind", [0, 20, 31])
def test_an_unknown_kind_is_refused(kind: int) -> None:
    """A type of unknown kind has an unknown length, so it is an error."""
    made = Blob()
    made.add(blob.INT, "int")
    made.add(kind)

    with pytest.raises(BtfError, match=f"type 2 is of kind {kind}"):
        Btf(made.build())


def test_a_missing_file_is_explained(tmp_path: Path) -> None:
    """Without BTF in the kernel, the error names the file and the kernel option."""
    with pytest.raises(BtfError, match=r"vmlinux: No such file") as raised:
        Btf.load(tmp_path / "vmlinux")
    assert "CONFIG_DEBUG_INFO_BTF" in raised.value.hint


def ask_everything(data: bytes) -> None:
    """All queries on a blob: results, or BtfError."""
    try:
        btf = Btf(data)
    except BtfError:
        return
    for name in ("sk_buff", "k_buff", "same", "gone"):
        btf.has(name, "gone")
        for ask in (btf.size, lambda of: btf.offset(of, "len"), lambda of: btf.bits(of, "ip_summed")):
            with contextlib.suppress(BtfError):
                assert type(ask(name)) in {int, tuple}


@given(st.integers(0, len(HANDMADE)))
def test_a_truncated_blob_gives_btf_error(length: int) -> None:
    """A blob that is truncated anywhere gives BtfError or results, never another exception."""
    ask_everything(HANDMADE[:length])


@given(st.lists(st.tuples(st.integers(0, len(HANDMADE) - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_a_corrupted_blob_gives_btf_error(changes: list[tuple[int, int]]) -> None:
    """A blob with changed bytes gives BtfError or results, never another exception, and never
    hangs.
    """
    data = bytearray(HANDMADE)
    for at, value in changes:
        data[at] = value
    ask_everything(bytes(data))


def chain(last: int) -> bytes:
    """A hundred unions, each with two anonymous members of the next type; the last one has the
    member `last`.
    """
    made = Blob()
    for number in range(1, 101):
        inner = number + 1 if number < 100 else last
        made.struct("" if number > 1 else "sk_buff", 8, ("", inner, 0), ("", inner, 0), kind=blob.UNION)
    return made.build()


@pytest.mark.parametrize(
    ("last", "message"),
    [(0, "no field len"), (1, "no field len"), (99, "no field len"), (101, "type 100"), (0xFFFFFFFF, "type 100")],
)
def test_types_that_nest_without_end(last: int, message: str) -> None:
    """Anonymous members that contain themselves, grow without limit or have no type are an error."""
    with pytest.raises(BtfError, match=message):
        Btf(chain(last)).bits("sk_buff", "len")


def test_the_running_kernel() -> None:
    """The types of the running kernel have the layout of its ABI and its own code."""
    btf = Btf.load()

    # skb->len and data_len are declared on one line; list pointers are first in sk_buff (see
    # sk_buff_head).
    assert btf.offset("sk_buff", "data_len") == btf.offset("sk_buff", "len") + 4
    assert [btf.offset("sk_buff", name) for name in ("next", "prev")] == [0, 8]
    assert btf.offset("sk_buff", "data") == btf.offset("sk_buff", "head") + 8
    assert btf.bits("sk_buff", "pkt_type")[1] == 3
    assert btf.bits("sk_buff", "ip_summed")[1] == 2
    for name in ("sk_buff", "net_device", "task_struct", "sock"):
        assert btf.size(name) % 8 == 0
    # User ABI, the same on every kernel: arch/*/include/uapi/asm/ptrace.h, linux/if_ether.h,
    # linux/ip.h, linux/in6.h.
    assert (btf.size("ethhdr"), btf.size("iphdr"), btf.size("in6_addr")) == (14, 20, 16)
    assert btf.offset("iphdr", "saddr") == 12
    if btf.has("pt_regs", "orig_ax"):
        assert (btf.size("pt_regs"), btf.offset("pt_regs", "di")) == (168, 112)
