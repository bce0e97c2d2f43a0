"""Reading files of other programs, and wrong files."""

from __future__ import annotations

import dis
import gzip
import os
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skbcapd.analysis import sources, split, top
from skbcapd.analysis.account import Account
from skbcapd.analysis.records import records
from skbcapd.analysis.selectors import Selection, Selectors
from skbcapd.attribution.fields import GROUPS
from skbcapd.errors import FileError
from skbcapd.pcapng import comment as label
from skbcapd.pcapng.reader import Reader, Stamp
from tests.support.strangers import (
    EPB,
    IDB,
    ISB,
    NRB,
    PB,
    SHB,
    SPB,
    block,
    comment,
    interface,
    options,
    packet,
    pcap,
    process,
    section,
)

CHRONYD = process(1058, "chronyd")
TORN = "expected a complete one: it is truncated, or still being written"
NANOSECONDS = options((9, b"\x09"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The path of the capture file of the test."""
    return tmp_path / "a.pcapng"


def packets(path: Path) -> list[tuple[int, Stamp, int, bytes]]:
    """Time in nanoseconds, stamp, original length and bytes of all packets."""
    with Reader(path) as reader:
        return [
            (interface.time_ns(time), stamp, wire_len, bytes(frame))
            for interface, stamp, time, wire_len, frame, _ in reader.packets()
        ]


def until_it_fails(path: Path) -> tuple[int, str]:
    """The number of packets before a FileError, and its message."""
    count = 0
    try:
        with Reader(path) as reader:
            for _ in reader.packets():
                count += 1
    except FileError as error:
        return count, error.message
    raise AssertionError(f"{count} packets and no error")


def write(path: Path, *parts: bytes) -> Path:
    """A file with these bytes."""
    path.write_bytes(b"".join(parts))
    return path


def stamps(path: Path, *opts: bytes) -> list[Stamp]:
    """The stamp of packets with these options."""
    write(path, section(), interface(), *(packet(opts=each) for each in opts))
    return [stamp for _, stamp, _, _ in packets(path)]


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_section_in_either_byte_order(order: str, path: Path) -> None:
    """Little and big endian sections give the same packet: process, time, lengths, bytes."""
    numbers, flags = struct.pack(order + "II", 1058, 1059), struct.pack(order + "I", 2)
    opts = comment(b"comm=chronyd pid=1059 tgid=1058", (2, flags), (8, numbers), order=order)
    time = 1_622_469_600_123_456_789
    nanoseconds = options((9, b"\x09"), order=order)
    write(
        path,
        section(order),
        interface(order, opts=nanoseconds),
        packet(b"seven77", opts, order, time=time, wire_len=1500),
    )
    assert packets(path) == [(time, Stamp(1058, b"chronyd", direction=2), 1500, b"seven77")]


def test_sections_of_both_orders_in_one_file(path: Path) -> None:
    """Each section has its own byte order and its own interfaces."""
    write(path, section("<"), interface(), packet(b"little"), section(">"), interface(">"), packet(b"big", order=">"))
    assert [frame for _, _, _, frame in packets(path)] == [b"little", b"big"]
    count, message = until_it_fails(write(path, section(), interface(), packet(), section(">"), packet(order=">")))
    assert (count, "a packet of interface 0, where 0 are described" in message) == (1, True)


@pytest.mark.parametrize(
    ("opts", "time", "expected_ns"),
    [
        (b"", 1_700_000_000_123_456, 1_700_000_000_123_456_000),  # microseconds by default
        (options((9, b"\x09")), 1_700_000_000_123_456_789, 1_700_000_000_123_456_789),
        (options((9, b"\x03")), 1_700_000_000_123, 1_700_000_000_123_000_000),
        (options((9, b"\x8a")), 1024 * 7 + 512, 7_500_000_000),  # 2^-10 s
        (options((9, b"\x00"), (14, struct.pack("<q", -5))), 7, 2_000_000_000),
        (options((9, b"\xff")), 1, 0),
        (options((9, b"\x7f")), 1, 0),
    ],
)
def test_times_are_in_the_interfaces_units(opts: bytes, time: int, expected_ns: int, path: Path) -> None:
    """Resolution (a power of ten or of two) and offset are applied."""
    write(path, section(), interface(opts=opts), packet(time=time))
    assert packets(path)[0][0] == expected_ns


@pytest.mark.parametrize(
    ("opts", "stamp"),
    [
        (b"", Stamp()),
        (CHRONYD, Stamp(1058, b"chronyd", direction=2)),
        (
            process(7, "a", 1, " ppid=1 uid=0 user=root futurekey=x"),
            Stamp(7, b"a", direction=1, more=(("user", b"root"),)),
        ),
        (process(7, "isc-net-0000", more=" process=dig"), Stamp(7, b"isc-net-0000", direction=2, process=b"dig")),
        (
            process(7, "a", more=" unit=ssh.service container=web"),
            Stamp(7, b"a", b"ssh.service", direction=2, more=(("container", b"web"),)),
        ),
        (comment(b"comm=a pid=7 tgid=7 via=flow"), Stamp(7, b"a", via=b"flow")),
        (comment(b"via=forwarded"), Stamp(via=b"forwarded")),
        (comment(b'comm="tmux: server" pid=7 tgid=7'), Stamp(7, b"tmux: server")),
        (options((8, struct.pack("<II", 1058, 1059))), Stamp(1058)),  # ids only
        (options((8, struct.pack("<II", 0, 0))), Stamp()),
        (comment(b"looks odd to me") + b"", Stamp()),
        (options((1, b"looks odd to me"), (1, b"comm=a pid=7 tgid=7")), Stamp(7, b"a")),
        (options((1, b"x=1"), (1, b"comm=a pid=7 tgid=7")), Stamp(7, b"a")),  # in the grammar, but without a process
        (comment(b"PID: 1058\nCmd: /usr/bin/curl\nArgs: curl x"), Stamp(1058, b"curl")),
        (comment(b"PID: 1058"), Stamp(1058)),
        (comment(b"PID: 0\nCmd: \n"), Stamp(None, b"")),
        (comment(b"PIDs: 7"), Stamp()),
        (comment(b"comm=a pid=7 tgid=0"), Stamp(None, b"a")),
        (comment(b"comm=a tgid=4294967296"), Stamp(None, b"a")),
        (comment(b"comm=a tgid=-1"), Stamp(None, b"a")),
        (comment(b"comm=a tgid=7 tgid=8"), Stamp()),
        (comment(b"comm=gr\xc3\xb6\xc3\x9fe tgid=7"), Stamp()),  # not the spelling of skbcapd
        (comment(b"comm=a tgid=7 " + b"x" * 9000), Stamp()),
        (struct.pack("<HH", 1, 400) + b"comm=a tgid=7", Stamp()),  # longer than its block
        (b"\x01", Stamp()),
    ],
)
def test_the_process_in_the_options_of_a_packet(opts: bytes, stamp: Stamp, path: Path) -> None:
    """Comments of skbcapd (also with unknown fields), of ptcpdump, and option 8 give the process;
    other options do not.
    """
    assert stamps(path, opts) == [stamp]


def test_packet_ids_do_not_hide_the_process(path: Path) -> None:
    """Packets that differ only in epb_packetid have equal stamps; other differences give different
    stamps.
    """
    flags, numbers = (2, struct.pack("<I", 2)), (8, struct.pack("<II", 7, 7))
    made = [comment(b"comm=a pid=7 tgid=7", flags, (5, struct.pack("<Q", number)), numbers) for number in range(97)]
    looks_like_one = comment(b"\x05\x00\x08\x00" + b"12345678", flags, (8, struct.pack("<II", 8, 8)))
    found = stamps(path, *made, looks_like_one)
    assert found == [Stamp(7, b"a", direction=2)] * 97 + [Stamp(8, direction=2)]


@pytest.mark.fuzz
@given(st.lists(st.tuples(st.integers(0, 9), st.binary(max_size=24)), max_size=5), st.integers(0, 99))
def test_any_options_are_read_without_a_fault(tmp_path_factory: pytest.TempPathFactory, pairs, cut) -> None:  # type: ignore[no-untyped-def]
    """For any bytes as options, the packet is returned."""
    path = tmp_path_factory.mktemp("any") / "a.pcapng"
    raw = options(*pairs)
    raw = raw[: cut * 4]
    assert len(stamps(path, raw)) == 1


def test_other_blocks_are_passed_over(path: Path) -> None:
    """Statistics, names and blocks of unknown type between packets have no effect."""
    others = [block(kind, b"\x07" * 33) for kind in (ISB, NRB, 0x0BAD, 0x80000001, 0xFFFFFFFF)]
    write(path, section(), others[0], interface(), *(part for other in others for part in (packet(), other)))
    assert len(packets(path)) == 5


def test_old_and_simple_packet_blocks(path: Path) -> None:
    """The obsolete and the simple block are packets, too; the simple one is cut at the snaplen of
    its interface.
    """
    old = block(PB, struct.pack("<HH4I", 0, 0, 0, 3, 5, 7) + b"five5" + bytes(3) + comment(b"comm=a tgid=7"))
    simple = block(SPB, struct.pack("<I", 1500) + b"sixsix")
    write(path, section(), interface(snaplen=6), old, simple)
    assert packets(path) == [(3000, Stamp(7, b"a"), 7, b"five5"), (0, Stamp(), 1500, b"sixsix")]


@pytest.mark.parametrize(
    ("magic", "order", "unit_ns"),
    [(0xA1B2C3D4, "<", 1000), (0xA1B2C3D4, ">", 1000), (0xA1B23C4D, "<", 1), (0xA1B23C4D, ">", 1)],
)
def test_pcap(magic: int, order: str, unit_ns: int, path: Path) -> None:
    """A pcap file of either byte order and resolution gives packets without a process."""
    write(path, pcap([b"one", b"three"], magic, order))
    assert packets(path) == [
        (n * 10**9 + n * unit_ns, Stamp(), len(frame), frame) for n, frame in enumerate([b"one", b"three"], 1)
    ]
    write(path, pcap([b"one", b"three"], magic, order)[:-2])
    assert until_it_fails(path) == (1, f"{path}: at byte 43: the file ends 19 bytes into a packet; {TORN}")


START = section() + interface()


@pytest.mark.parametrize(
    ("content", "count", "message"),
    [
        (b"", 0, "empty; expected pcapng or pcap"),
        (b"\n", 0, "begins with 0a; expected pcapng or pcap"),
        (
            b"#!/bin/sh\necho a script is no capture\n",
            0,
            "begins with 23 21 2f 62 69 6e 2f 73; expected pcapng or pcap",
        ),
        (b"\xd4\xc3\xb2\xa1\x02\x00", 0, "the file ends 6 bytes into its header"),
        (struct.pack("<I", SHB), 0, "at byte 0: the file ends 4 bytes into a block"),
        (START[:20], 0, "at byte 0: the file ends 20 bytes into a block"),
        (block(SHB, b"\x01\x02\x03\x04" + bytes(12)), 0, "byte-order magic 01 02 03 04"),
        (section(major=2), 0, "a section of pcapng version 2; expected 1"),
        (block(SHB, struct.pack("<I", 0x1A2B3C4D)), 0, "a section header has 16 bytes; expected 28 or more"),
        (section() + packet(), 0, "at byte 28: a packet of interface 0, where 0 are described"),
        (START + packet(number=3), 0, "at byte 48: a packet of interface 3, where 1 are described"),
        (START + packet() + packet()[:-1], 1, "at byte 88: the file ends 39 bytes into a block"),
        (START + packet() + b"\x06\x00", 1, "at byte 88: the file ends 2 bytes into a block"),
        (START + packet() + bytes(12), 1, "at byte 88: a block has length 0; expected 12 to"),
        (START + struct.pack("<III", EPB, 37, 37) + bytes(40), 0, "a block has length 37; expected 12 to"),
        (START + struct.pack("<II", EPB, 1 << 31) + bytes(40), 0, "a block has length 2147483648; expected 12 to"),
        (START + packet(cap_len=900), 0, "at byte 48: a packet of 900 bytes in a block of 40"),
        (START + packet(cap_len=0xFFFFFFFF), 0, "a packet of 4294967295 bytes in a block of 40"),
        (START + packet()[:-4] + bytes(4), 0, "at byte 48: a block of 40 bytes ends with another length"),
        (START + block(EPB, bytes(4)), 0, "at byte 48: a packet of 16 bytes in a block of 16"),
        (section() + block(IDB, bytes(4)), 0, "an interface description has 16 bytes; expected 20 or more"),
    ],
    ids=lambda value: "" if isinstance(value, bytes) else str(value),
)
def test_errors_have_their_offset(content: bytes, count: int, message: str, path: Path) -> None:
    """Garbage, truncated files and wrong lengths give a FileError with the byte, after all packets
    before it.
    """
    found, said = until_it_fails(write(path, content))
    assert found == count
    assert said.startswith(f"{path}: ")
    assert message in said


@pytest.mark.fuzz
@given(st.data())
def test_a_changed_file_gives_packets_and_then_perhaps_an_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Whatever bytes are changed, and wherever the file is cut, the only error is FileError."""
    whole = bytearray(START + packet(opts=CHRONYD) + interface(opts=NANOSECONDS) + packet(number=1) * 3)
    for at, value in data.draw(
        st.lists(st.tuples(st.integers(0, len(whole) - 1), st.integers(0, 255)), min_size=1, max_size=9)
    ):
        whole[at] = value
    path = write(tmp_path_factory.mktemp("changed") / "a.pcapng", bytes(whole[: data.draw(st.integers(0, len(whole)))]))
    try:
        assert len(packets(path)) <= 5
    except FileError as error:
        assert error.message.startswith(str(path))  # noqa: PT017  an error may come or not


def compressed(tool: str, path: Path) -> Path:
    """A compressed copy."""
    copy = path.with_suffix(".compressed")
    with copy.open("wb") as file:
        subprocess.run([tool, "-c", "-q", str(path)], stdout=file, check=True)
    return copy


@pytest.mark.parametrize("tool", ["gzip", "zstd"])
def test_compressed_files(tool: str, path: Path) -> None:
    """A compressed file gives the same packets, whatever its name; so do two concatenated ones."""
    frames = [os.urandom(1009) for _ in range(4001)]  # more than several pipes can hold
    write(path, section(), interface(), *map(packet, frames))
    copy = compressed(tool, path)
    assert [frame for _, _, _, frame in packets(copy)] == frames
    write(path, *[copy.read_bytes()] * 2)
    assert [frame for _, _, _, frame in packets(path)] == frames * 2


@pytest.mark.parametrize("tool", ["gzip", "zstd"])
def test_a_truncated_compressed_file(tool: str, path: Path) -> None:
    """The packets of a truncated compressed file are returned, then the error of the decompressor."""
    write(path, section(), interface(), *(packet(os.urandom(1009)) for _ in range(4001)))
    copy = compressed(tool, path)
    os.truncate(copy, 2_000_003)
    count, message = until_it_fails(copy)
    assert 1000 < count < 2000
    assert message.startswith(f"{copy}: {tool}: ")
    assert message.endswith("end of file; expected a complete compressed file") or "premature end" in message


def test_a_compressed_file_that_is_not_a_capture(path: Path) -> None:
    """The output of the decompressor is checked like an uncompressed file."""
    path.write_bytes(gzip.compress(b"no capture at all, but long enough"))
    assert until_it_fails(path) == (0, f"{path}: begins with 6e 6f 20 63 61 70 74 75; expected pcapng or pcap")
    path.write_bytes(b"\x1f\x8bnot gzip either")
    assert until_it_fails(path)[1].startswith(f"{path}: gzip: ")


def test_a_reader_may_leave_early(path: Path) -> None:
    """A compressed file that is not read to its end leaves no process and no open file (a warning
    is a failure).
    """
    write(path, section(), interface(), *(packet(os.urandom(1009)) for _ in range(4001)))
    with Reader(compressed("gzip", path)) as reader:
        next(reader.packets())


def test_files_that_cannot_be_opened(tmp_path: Path) -> None:
    """A missing file, a directory, a FIFO and a path with a NUL are named with what was expected."""
    os.mkfifo(tmp_path / "fifo")
    for path, message in (
        (tmp_path / "nosuch", "No such file or directory; expected a capture file"),
        (tmp_path, "directory; expected a capture file"),
        (tmp_path / "fifo", "not a regular file; expected a capture file"),
        (Path("a\0b"), "embedded null byte; expected a capture file"),
        (tmp_path / "\x1b[31m", r"\x1b[31m: No such file or directory; expected a capture file"),
    ):
        assert message in until_it_fails(path)[1].replace("Is a d", "d")


def test_memory_is_limited(path: Path) -> None:
    """Too many interfaces, or too many bytes of their descriptions, are an error."""
    write(path, section(), interface() * (1 << 16), packet(), interface())
    assert until_it_fails(path)[0] == 1
    large = interface(opts=options((3, b"x" * 65532)))
    write(path, section(), large * 1023, packet(), large * 2)
    assert until_it_fails(path) == (1, until_it_fails(path)[1])
    assert "interfaces described by" in until_it_fails(path)[1]


def test_progress_counts_the_bytes_on_disk(path: Path) -> None:
    """Progress counts up to the size of the file on the disk, also if it is compressed."""
    write(path, section(), interface(), *(packet(bytes(1009)) for _ in range(4001)))
    for file in (path, compressed("zstd", path)):
        seen: list[int] = []
        with Reader(file, seen.append) as reader:
            assert sum(1 for _ in reader.packets()) == 4001
        assert seen == sorted(seen)
        assert seen[-1] == file.stat().st_size


def test_the_comment_of_skbcapd_is_read(path: Path) -> None:
    """The comment of `label` is read back, for any bytes in a name."""
    names = [b"chronyd", b"", b"tmux: server", b"x tgid=1", b"\x1b[31m", bytes(range(1, 16)), b'"\\"']
    made = [label.label([("comm", name), ("pid", 9), ("tgid", 7)], 2, 7, 9).options for name in names]
    assert stamps(path, *made) == [Stamp(7, name, direction=2) for name in names]


@st.composite
def strange_blocks(draw: st.DrawFn) -> bytes:
    """A capture file with blocks of known types, with any lengths and bodies."""
    order = draw(st.sampled_from("<>"))
    parts = [section(order), interface(order, opts=draw(st.binary(max_size=24)))]
    hostile = st.sampled_from([b"\x1b]0;x\x07", b"a/../b", b"\xff" * 15, b"comm=", b"x" * 600]) | st.binary(max_size=20)
    for _ in range(draw(st.integers(0, 9))):
        kind = draw(st.sampled_from(["packet", "named", "block", "lie"]))
        if kind == "packet":
            parts.append(packet(draw(st.binary(max_size=40)), draw(st.binary(max_size=40)), order))
        elif kind == "named":
            fields = [(key, draw(hostile)) for key in ("comm", "tgid", "unit", "via") if draw(st.booleans())]
            text = label.comment(fields).encode() if fields else draw(hostile)
            parts.append(packet(draw(st.binary(max_size=40)), comment(text, order=order), order))
        else:
            made = block(draw(st.sampled_from([SHB, IDB, PB, SPB, NRB, ISB, EPB])), draw(st.binary(max_size=60)), order)
            if kind == "lie":
                length = draw(st.integers(0, 80) | st.integers(0, 2**32 - 1))
                made = made[:4] + struct.pack(order + "I", length) + made[8:]
            parts.append(made)
    return b"".join(parts)


@pytest.mark.fuzz
@given(strange_blocks(), st.sampled_from(GROUPS))
def test_any_file_gives_printable_output_or_an_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, by: str
) -> None:
    """For any file, `top` prints printable text and `split` writes only files beside it, or there
    is a FileError of one line.
    """
    directory = tmp_path_factory.mktemp("strange")
    file, parts = directory / "a.pcapng", directory / "parts"
    file.write_bytes(content)
    parts.mkdir()
    account = Account(by)
    found = sources.Sources([file], Selection(Selectors()))
    account.read(found.unordered())
    said = [str(error) for error in found.wrong]
    said += ["".join(write(account.processes, by)) for write in (top.as_table, top.as_json, top.as_csv)]
    splitter = split.Splitter(file, by, parts)
    try:
        splitter.read(records(found.packets()))
    except FileError as error:
        said.append(str(error))
    assert all(line.isprintable() for text in said for line in text.split("\n"))
    assert {path.parent for path in splitter.paths} <= {parts}
    assert sorted(directory.iterdir()) == [file, parts]
    assert all(path.name.isascii() and path.name.isprintable() for path in parts.iterdir())


@pytest.mark.parametrize("key", ["comm", "unit", "via"])
def test_a_name_longer_than_any_is_none(key: str, path: Path) -> None:
    """A comment with a name longer than two file names is not of skbcapd, so memory is bounded."""
    for size, expected in ((520, b"x" * 520), (521, None)):
        (stamp,) = stamps(path, comment(label.comment([(key, b"x" * size), ("tgid", 7)]).encode()))
        assert getattr(stamp, key) == expected


def test_the_end_of_reading_needs_no_memory() -> None:
    """CPython notes where a `finally` was entered: a number up to 256 exists already, for a larger one it needs memory,
    and asks for it for ever.
    """
    entries = dis._parse_exception_table(Reader.packets.__code__)  # type: ignore[attr-defined]
    ends = [entry.end // 2 for entry in entries if entry.lasti]
    assert ends
    assert max(ends) <= 256
