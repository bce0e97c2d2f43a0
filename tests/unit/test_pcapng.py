"""All blocks of the writer, byte for byte, and read back by scapy."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.utils import RawPcapNgReader

from skbcapd.attribution.processes import Process
from skbcapd.pcapng.blocks import DIRECTION_OUT
from skbcapd.pcapng.comment import comment, packet_options
from skbcapd.pcapng.interface import Interface
from skbcapd.pcapng.writer import PcapngWriter
from tests.support.frames import NTP_FRAME

ETH0 = Interface(b"eth0", "", 1, 262144, None, None, None)
FULL = Interface(b"eth0", "netns web", 1, 262144, bytes.fromhex("3c7c3f2023bd"), 10**10, "udp port 123")
OPTIONS = packet_options(comment([("comm", b"chronyd"), ("pid", 1058), ("tgid", 1058)]), DIRECTION_OUT, 1058, 1058)
TIME_NS = 1_622_469_600_123_456_789


def written(write: Callable[[PcapngWriter], object]) -> bytes:
    """The bytes that a writer writes to its sink."""
    sink = io.BytesIO()
    write(PcapngWriter(sink))
    return sink.getvalue()


SHB = "0a0d0d0a {0} 4d3c2b1a 0100 0000 ffffffffffffffff {1} {0}"
IDB = "01000000 {0} {2} 0000 00000400 {1} {0}"
TSRESOL = "0900 0100 09000000"
END = "0000 0000"


@pytest.mark.parametrize(
    ("arguments", "raw"),
    [
        (("", "", ""), SHB.format("1c000000", "")),
        (
            ("x86_64", "Linux 6.1", "skbcapd"),
            SHB.format(
                "48000000",
                "0200 0600 7838365f363400000300 0900 4c696e757820362e310000000400 0700 736b626361706400" + END,
            ),
        ),
        (("", "", "", "note"), SHB.format("28000000", "0100 0400 6e6f7465" + END)),
        (("\udcff", "ß", ""), SHB.format("30000000", "0200 0100 3f000000 0300 0200 c39f0000" + END)),
    ],
)
def test_section_bytes(arguments: tuple[str, str, str], raw: str) -> None:
    """A section header has version 1.0, no length, and options for known values only."""
    assert written(lambda writer: writer.write_section(*arguments)) == bytes.fromhex(raw)


@pytest.mark.parametrize(
    ("interface", "raw"),
    [
        (ETH0, IDB.format("28000000", "0200 0400 65746830" + TSRESOL + END, "0100")),
        (
            FULL,
            IDB.format(
                "64000000",
                "0200 0400 65746830"
                "0300 0900 6e65746e7320776562000000"
                "0600 0600 3c7c3f2023bd0000"
                "0800 0800 00e40b5402000000" + TSRESOL + "0b00 0d00 0075647020706f727420313233000000" + END,
                "0100",
            ),
        ),
        (
            Interface(b"\xff\xc3\x9f", "", 101, 262144, None, None, None),
            IDB.format("2c000000", "0200 0600 5c786666c39f0000" + TSRESOL + END, "6500"),
        ),
    ],
)
def test_interface_bytes(interface: Interface, raw: str) -> None:
    """An interface block has nanosecond resolution and options for known values only."""
    assert written(lambda writer: writer.write_interface(interface)) == bytes.fromhex(raw)


def test_interface_repeats_the_section_os() -> None:
    """if_os is the os of the section of the interface."""
    sink = io.BytesIO()
    writer = PcapngWriter(sink)
    writer.write_section("", "Linux", "")
    sink.seek(0)
    sink.truncate()
    writer.write_interface(ETH0)
    options = "0200 0400 65746830" + TSRESOL + "0c00 0500 4c696e7578000000" + END
    assert sink.getvalue() == bytes.fromhex(IDB.format("34000000", options, "0100"))


def test_interface_ids_count_within_a_section() -> None:
    """Ids are 0, 1, 2, ... in the order of the calls, and start again with a new section."""
    writer = PcapngWriter(io.BytesIO())
    writer.write_section("", "", "")
    assert [writer.write_interface(ETH0) for _ in range(3)] == [0, 1, 2]
    writer.write_section("", "", "")
    assert writer.write_interface(ETH0) == 0


@pytest.mark.parametrize("mac", [b"", b"12345", b"1234567", bytes(20)])
def test_interface_refuses_other_addresses(mac: bytes) -> None:
    """An address that is not an EUI-48 (InfiniBand has 20 bytes) is an error."""
    with pytest.raises(ValueError, match="expected 6"):
        Interface(b"ib0", "", 1, 0, mac, None, None)


EPB_SEED = (
    "06000000 b8000000 02000000 812b8416 158d3a4e"  # 0x16842b81_4e3a8d15 ns
    "5a000000 5a000000" + NTP_FRAME.hex() + "0000"
    "0100 1f00" + b"comm=chronyd pid=1058 tgid=1058".hex() + "00"
    "0200 0400 02000000 0800 0800 22040000 22040000 0000 0000 b8000000"
)


def test_seed_packet_bytes() -> None:
    """The frame of the first question becomes the block in docs/format.md, field by field."""
    raw = written(lambda writer: writer.write_packet(2, TIME_NS, NTP_FRAME, len(NTP_FRAME), OPTIONS))
    assert raw == bytes.fromhex(EPB_SEED)


@pytest.mark.parametrize(
    ("arguments", "raw"),
    [
        ((0, 0, b"", 0, b""), "06000000 20000000" + "00" * 20 + "20000000"),
        (
            (1, 2**64 - 1, b"a", 65549, b""),
            "06000000 24000000 01000000 ffffffff ffffffff 01000000 0d000100 61000000 24000000",
        ),
        (
            (0, 2**32, memoryview(b"abcd"), 4, packet_options(None, 1, 0, 0)),
            "06000000 30000000 00000000 01000000 00000000 04000000 04000000 61626364 02000400 01000000"
            + END
            + "30000000",
        ),
    ],
)
def test_packet_bytes(arguments: tuple[int, int, bytes, int, bytes], raw: str) -> None:
    """The time is split without rounding, the frame padded, the original length kept; options are
    optional.
    """
    assert written(lambda writer: writer.write_packet(*arguments)) == bytes.fromhex(raw)


@pytest.mark.parametrize("time_ns", [-1, 2**64])
def test_packet_refuses_times_that_do_not_fit(time_ns: int) -> None:
    """A time that is no u64 is an error."""
    with pytest.raises(Exception, match=r"argument|format"):
        written(lambda writer: writer.write_packet(0, time_ns, b"", 0, b""))


ISB_FULL = (
    "05000000 70000000 00000000 00000000 07000000"
    "0200 0800 02000000 00000000 0300 0800 02000000 01000000"
    "0400 0800 0b00000000000000 0500 0800 0d00000000000000 0600 0800 1100000000000000"
    "0700 0800 1300000000000000 0800 0800 0000000000010000 0000 0000 70000000"
)


@pytest.mark.parametrize(
    ("arguments", "raw"),
    [
        ((3, 2**32 + 5), "05000000 18000000 03000000 01000000 05000000 18000000"),
        (
            (0, 7, 2**33, 2**33 + 1, 11, 13, 17, 19, 2**40),
            ISB_FULL,
        ),
        (
            (0, 0, None, None, None, 0, None, None, 23),
            "05000000 34000000" + "00" * 12 + "0500 0800" + "00" * 8 + "0800 0800 1700000000000000 0000 0000 34000000",
        ),
    ],
)
def test_statistics_bytes(arguments: tuple[int, ...], raw: str) -> None:
    """Counters are u64, times are two words, upper first; 0 is written and None is left out."""
    assert written(lambda writer: writer.write_statistics(*arguments)) == bytes.fromhex(raw)


@pytest.mark.parametrize(
    ("process", "entry"),
    [
        (Process(1058, 0, b"", None, None, b"", b"", b"", b""), "22040000"),
        (
            Process(1058, 7, b"curl", 1, 1000, b"alice", b"/usr/bin/curl", b"curl\0a b\0", b"/"),
            "22040000 0200 0400 6375726c 0300 0d00 2f7573722f62696e2f6375726c000000 0400 0800 6375726c00612062"
            "0500 0400 01000000 0600 0400 e8030000 0700 0500 616c696365000000 0900 0800 8015a0f81f4d8416" + END,
        ),
        (
            Process(1, 0, "ß\x1b\n".encode() + b"\xff", 0, 0, b"", b"", b"", b""),
            "01000000 0200 0c00 c39f5c7831625c6e5c786666 0500 0400 00000000 0600 0400 00000000" + END,
        ),
    ],
)
def test_process_bytes(process: Process, entry: str) -> None:
    """A process is a custom block of Wireshark: known fields, as printable UTF-8 and little-endian
    numbers.
    """
    raw = bytes.fromhex(entry)
    size = struct.pack("<I", 24 + len(raw))
    expected = bytes.fromhex("ad0b0000") + size + bytes.fromhex("6e7f0000 03000000") + struct.pack("<I", len(raw))
    boot_ns = 0x16844D1FF8A01580 - 7

    assert written(lambda writer: writer.write_process(process, boot_ns)) == expected + raw + size


def test_ready_blocks_pass_untouched() -> None:
    """write_blocks writes the bytes of its argument unchanged."""
    assert written(lambda writer: writer.write_blocks(memoryview(b"any bytes"))) == b"any bytes"


def test_nothing_else_is_written() -> None:
    """No header or interface of scapy itself is written, also if a writer is closed without use."""
    assert written(lambda writer: writer.close()) == b""


def test_the_base_writes_no_packet_past_us() -> None:
    """`write` of the base class, which has no interface or time, fails and writes nothing."""
    sink = io.BytesIO()
    with pytest.raises(TypeError):
        PcapngWriter(sink).write(NTP_FRAME)
    assert sink.getvalue() == b""


def test_close_leaves_the_sink_open() -> None:
    """The sink belongs to the caller: after `with` it is flushed and still open."""
    sink = io.BytesIO()
    with io.BufferedWriter(sink) as buffered:
        with PcapngWriter(buffered) as writer:
            writer.write_section("", "", "")
        assert len(sink.getvalue()) == 28
        assert not buffered.closed


@given(st.integers(0, 2**64 - 1), st.binary(max_size=70), st.integers(0, 9000), st.integers(0, 2))
def test_scapy_reads_back_what_was_written(time_ns: int, frame: bytes, cut: int, interface_id: int) -> None:
    """The reader of scapy returns frame, time, link type and length, for all paddings."""
    sink = io.BytesIO()
    writer = PcapngWriter(sink)
    writer.write_section("x86_64", "Linux", "skbcapd")
    for link_type in (1, 101, 113):
        writer.write_interface(Interface(b"dev", "", link_type, 0, None, None, None))
    options = packet_options(None, DIRECTION_OUT, 1058, 1059)
    writer.write_packet(interface_id, time_ns, frame, len(frame) + cut, options)
    writer.write_statistics(interface_id, time_ns, received=1)
    sink.seek(0)
    ((read, metadata),) = RawPcapNgReader(io.BytesIO(sink.getvalue()))
    assert read == frame
    assert (metadata.tshigh << 32 | metadata.tslow, metadata.tsresol) == (time_ns, 10**9)
    assert (metadata.wirelen, metadata.linktype) == (len(frame) + cut, (1, 101, 113)[interface_id])


def test_import_is_cheap_and_silent() -> None:
    """Importing the module loads no layer and no libpcap binding of scapy, and prints nothing."""
    heavy = ("scapy.all", "scapy.arch", "scapy.layers", "scapy.packet")
    code = f"import sys, skbcapd.pcapng.writer; print([name for name in sys.modules if name.startswith({heavy})])"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")
